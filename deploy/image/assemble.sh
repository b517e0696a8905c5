#!/bin/sh
# Puts programs and the few files that they need into a folder: an image's whole content.
#
#   assemble.sh <folder with the binaries> <folder to make> [program...]
set -eu

binaries=$1
rootfs=$2
shift 2
# The operator's tool is as large as the libraries together, and has an image of its own.
[ $# -gt 0 ] || set -- accelpoold accelpool-dra

if [ -e "$rootfs" ]; then
  echo "assemble.sh: '$rootfs' exists: name a folder to be made" >&2
  exit 1
fi
mkdir -p "$rootfs/usr/bin" "$rootfs/etc" "$rootfs/tmp" "$rootfs/run/accelpool" \
  "$rootfs/var/lib/accelpool" "$rootfs/var/lib/kubelet" "$rootfs/var/run/cdi"
# As on a merged-usr system, so that the loader is where the programs look for it.
for folder in bin lib lib64; do
  mkdir -p "$rootfs/usr/$folder"
  ln -s "usr/$folder" "$rootfs/$folder"
done
chmod 1777 "$rootfs/tmp"

for program in "$@"; do
  strip -o "$rootfs/usr/bin/$program" "$binaries/$program"
  chmod 0755 "$rootfs/usr/bin/$program"
done

# The shared libraries, the loader among them, each at the path under which it is found.
for program in "$@"; do
  ldd "$binaries/$program" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p'
done | sort -u | while read -r library; do
  target="$rootfs/usr/${library#/}"
  target=$(printf '%s' "$target" | sed 's,/usr/usr/,/usr/,')
  mkdir -p "$(dirname "$target")"
  cp -L "$library" "$target"
  chmod 0755 "$target"
  strip --strip-unneeded "$target" 2>/dev/null || true
done

# Names for the ids: the daemon gives its socket to the group `accelpool`.
printf 'root:x:0:0:root:/:/sbin/nologin\n' >"$rootfs/etc/passwd"
printf 'root:x:0:\naccelpool:x:988:\n' >"$rootfs/etc/group"
