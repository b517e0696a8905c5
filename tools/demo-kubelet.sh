#!/usr/bin/env bash
# Shows accelpool under a kubelet, without Kubernetes: the real daemon and the real driver on
# a simulated node, between doubles of the kubelet and the API server. Lives in .demo-kubelet/
# and leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.demo-kubelet
target=${CARGO_TARGET_DIR:-$PWD/target}

if [ "$(id -u)" != 0 ]; then
    echo "demo-kubelet: the daemon needs root to make device nodes: run it as root" >&2
    exit 1
fi
cargo build --quiet --locked -p accelpool-daemon --bin accelpoold
cargo build --quiet --locked -p accelpool-dra-driver --bin accelpool-dra --example demo_kubelet

rm -rf "$folder"
mkdir -p "$folder"
if ! "$target/debug/examples/demo_kubelet" "$folder" "$target/debug"; then
    echo "demo-kubelet: failed; the logs are in $folder" >&2
    exit 1
fi
rm -rf "$folder"
