#!/bin/sh
# Installs what building and testing accelpool needs on Debian 12, beyond Rust itself.
#
# Does nothing where everything is there already. Where it cannot help it says in one
# line what to do and fails. Arguments are further Debian packages.
set -eu

# pkg-config finds hwloc and, through it, udev; podman, runc and a static busybox run
# the containers of the test suites and of the demo; prometheus scrapes and lints metrics.
packages="build-essential pkg-config libhwloc-dev libudev-dev podman runc busybox-static prometheus $*"

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

installed() {
    test "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    missing=''
    for package in $packages; do
        installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0

    command -v apt-get >/dev/null ||
        fail "apt-get is missing: install the equivalents of$missing and try again"
    if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        fail "neither root nor sudo without a password: run 'apt-get install$missing' as root"
    fi
    printf 'setup: installing%s\n' "$missing"
    log=$(mktemp)
    # The tests start what they need themselves; nothing shall run as a service.
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then policy=''; else
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
    fi
    # shellcheck disable=SC2086 # the list is meant to be split
    if ! {
        as_root apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq \
                --no-install-recommends -o DPkg::Lock::Timeout=120 $missing </dev/null
    } >"$log" 2>&1; then
        [ -z "$policy" ] || as_root rm -f "$policy"
        tail -n 20 "$log" >&2
        fail "apt-get failed, its last lines stand above: install$missing and try again"
    fi
    [ -z "$policy" ] || as_root rm -f "$policy"
    rm -f "$log"
}

# Compares the versions `$1` and `$2`; succeeds if `$1` is at least `$2`.
at_least() {
    test "$(printf '%s\n%s\n' "$1" "$2" | sort --version-sort | head -n 1)" = "$2"
}

check_rust() {
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    command -v cargo >/dev/null ||
        fail "cargo is missing: install Rust $wanted or newer with rustup, or add it to PATH"
    found=$(cargo --version | cut -d ' ' -f 2)
    at_least "$found" "$wanted" ||
        fail "cargo $found is too old: install Rust $wanted or newer with rustup"
}

check_rust
install_packages
