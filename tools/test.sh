#!/bin/sh
# Runs every test. Device nodes and containers are real, so most suites need root.
#
# Builds as the user who calls; where that is not root, only the test programs are run
# through sudo, and what they made in the source tree is given back. Arguments go to
# `cargo test` instead of `--workspace`.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --workspace

if [ "$(id -u)" = 0 ]; then
    exec cargo test --locked "$@"
fi

command -v sudo >/dev/null || {
    printf 'test: the suites need root: run this as root, or install sudo\n' >&2
    exit 1
}
host=$(rustc --version --verbose | sed -n 's/^host: //p')
give_back() {
    for made in target .demo .demo-metrics; do
        [ ! -e "$made" ] || sudo chown -R "$(id -u):$(id -g)" "$made"
    done
}
trap give_back EXIT
# Some tests run cargo themselves, and so need the caller's PATH and toolchain.
as_root="['sudo', '--preserve-env', 'env', 'PATH=$PATH', 'HOME=$HOME']"
cargo test --locked --config "target.$host.runner=$as_root" "$@"
