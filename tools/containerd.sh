#!/bin/sh
# Gets container runtimes that take plugins, for the test that meets a real one.
#
# Debian 12 has containerd 1.6, which is too old, so this takes the packages of later releases
# of Debian and unpacks them below target/containerd, without installing anything. Where they
# cannot be had it says so and fails; the test is then skipped.
set -eu

cd "$(dirname "$0")/.."
into=$PWD/target/containerd
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT
# apt fetches as a user of its own.
chmod 755 "$lists"

# The mirror that this machine takes its own packages from.
# shellcheck disable=SC2016 # the names are apt's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -v security | head -n 1)

get() {
    release=$1
    [ -n "$mirror" ] || { echo 'apt knows no mirror'; return 1; }
    if [ -x "$into/$release/usr/bin/containerd" ]; then return 0; fi
    mkdir -p "$lists/$release/state/lists/partial" "$lists/$release/cache/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$release" \
        >"$lists/$release/sources"
    apt() {
        apt-get -qq -o Dir::Etc::sourcelist="$lists/$release/sources" \
            -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$lists/$release/state/lists" \
            -o Dir::Cache="$lists/$release/cache" -o Acquire::Languages=none \
            -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
    }
    (cd "$lists/$release" && apt update && apt download containerd) || return 1
    rm -rf "${into:?}/$release"
    mkdir -p "$into"
    rm -rf "${into:?}/$release.new"
    dpkg-deb -x "$lists/$release"/containerd_*.deb "$into/$release.new" &&
        mv "$into/$release.new" "$into/$release"
}

for release in trixie forky; do
    if ! get "$release" >"$lists/log" 2>&1; then
        tail -n 3 "$lists/log" >&2
        printf 'containerd: none of Debian %s can be had here; its test is skipped\n' "$release" >&2
        exit 1
    fi
done
