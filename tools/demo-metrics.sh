#!/usr/bin/env bash
# Shows who used what: the real daemon and the real driver on a simulated node under load by
# five agents, a real Prometheus that scrapes them, sums that are the device, and a picture.
# Lives in .demo-metrics/ and leaves nothing running; the picture stays there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.demo-metrics
target=${CARGO_TARGET_DIR:-$PWD/target}
seconds=${ACCELPOOL_DEMO_SECONDS:-60}

if [ "$(id -u)" != 0 ]; then
    echo "demo-metrics: the daemon needs root to make device nodes: run it as root" >&2
    exit 1
fi
cargo build --quiet --locked -p accelpool-daemon --bin accelpoold -p accelpool-dra-driver \
    --bin accelpool-dra -p accelpool-cli --bin accelpool
cargo build --quiet --locked -p accelpool-tests --example demo_metrics

rm -rf "$folder"
mkdir -p "$folder"
"$target/debug/examples/demo_metrics" "$folder" "$seconds"
rm -rf "$folder/kubelet" "$folder/accelpool-dra.toml"
printf '\nAll shown and checked; look at the picture: %s\n' "$folder/usage.svg"
