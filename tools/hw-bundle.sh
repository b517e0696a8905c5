#!/usr/bin/env bash
# Puts what checks and measures accelpool on a real GPU into one folder, to be carried to a
# machine that has the driver and no Rust.
#
#     tools/hw-bundle.sh [--profile dev|release] [DIR]     (default: release, target/hw/accelpool-hw)
#
# It runs where glibc is at least that of the machine that built it (Debian 12: 2.36); the
# libraries beyond glibc that accelpoold needs lie in lib/.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=release
if [ "${1:-}" = --profile ]; then
    profile=$2
    shift 2
fi
out=${1:-target/hw/accelpool-hw}
case $profile in
    dev) built=debug ;;
    *) built=$profile ;;
esac
programs=${CARGO_TARGET_DIR:-target}/$built

# One call for each, as the suites do it: together they would be built with other features.
build() {
    cargo build --quiet --locked --profile "$profile" -p "$1" --bin "$2"
    install -m 755 "$programs/$2" "$out/$2"
}

# The libraries that a program needs and glibc does not bring, by what the loader finds here.
libraries() {
    ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' |
        grep -v -E '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so'
}

mkdir -p "$out/lib"
build accelpool-hw accelpool-hw
build accelpool-daemon accelpoold
build accelpool-cli accelpool
build accelpool-cuda-standin cuda-tenant
for library in $(libraries "$out/accelpoold"); do
    install -m 755 "$(readlink -f "$library")" "$out/lib/$(basename "$library")"
done
glibc=$(ldd --version | sed -n '1s/.* //p')
cat >"$out/README" <<END
accelpool-hw, built with glibc $glibc: it runs where glibc is as new (ldd --version).

  ./accelpool-hw check         the adapter on this machine's GPUs; about a minute
  ./accelpool-hw turns         GPUs that are shared by turns, measured; about ten minutes
  ./accelpool-hw turns --short whether all of that can be measured here; half a minute
  ./accelpool-hw help

Needs root, NVIDIA's driver, and GPUs that nobody uses. Changes no setting.
END
printf 'made %s (glibc %s)\n' "$out" "$glibc"
