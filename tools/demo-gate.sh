#!/usr/bin/env bash
# Shows the device gate at work: a container that is privileged and asks for all GPUs gets none,
# until a claim is prepared for its cgroup. The GPUs are simulated: their nodes are real, and
# behind them is no driver. So the kernel's answer to an open tells what the gate did:
# "Operation not permitted" is a refusal, "No such device or address" means it was let through.
#
# Needs root, cgroup v2 (a hybrid mount will do), podman and runc. Everything that is shown is
# checked: a surprise ends the demo with an error. It lives in .demo-gate/ and in a cgroup of its
# own, which are removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo-gate
gpu="gpu-0000-1b-00-0"
export ACCELPOOL_SOCKET=$demo/run/node.sock
refused='Operation not permitted'
let_through='No such device or address'
# shellcheck source=tools/demo-stage.sh
. tools/demo-stage.sh

# Removes the demo's cgroups; podman's monitor leaves some time after its container.
remove_cgroups() {
    local mount tries=0
    while read -r mount; do
        until [ ! -d "$mount/$top" ] ||
            find "$mount/$top" -depth -type d -exec rmdir {} + 2>/dev/null; do
            tries=$((tries + 1))
            [ "$tries" -lt 200 ] || return 0
            sleep 0.05
        done
    done < <(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts)
}

leave() {
    stop_daemon || true
    remove_cgroups
    ! mountpoint -q "$demo/bpf" || umount "$demo/bpf"
}

[ "$(id -u)" = 0 ] || { printf 'demo: the gate needs root\n' >&2; exit 1; }
cgroup2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroup2" ] || { printf 'demo: no cgroup v2 is mounted here\n' >&2; exit 1; }
top=accelpool-demo-gate-$$
pod=/$top/kubepods/pod-demo

cargo build --quiet --locked --bin accelpoold --bin accelpool
export PATH="${CARGO_TARGET_DIR:-$PWD/target}/debug:$PATH"

begin
mkdir -p "$demo/bpf" "$demo/root/bin" "$demo/root/tmp" "$cgroup2$pod"
cp /bin/busybox "$demo/root/bin/busybox"
mount -t bpf bpf "$demo/bpf"

configure() {
    cat >"$demo/node.toml" <<END
state_dir = "$demo/state"
run_dir = "$demo/run"
cdi_dir = "$demo/cdi"

[gate]
root = "$cgroup2/$top/kubepods"
pins = "$demo/bpf/accelpool"

[[vendor]]
name = "sim"
profile = "dgx-h100"

[[pool]]
name = "all"
gate = "$1"
END
}

# The gate stands in mode `$1` once the daemon says so.
start_gate() {
    configure "$1"
    start_daemon "$demo/node.toml"
    await "accelpool gate -o json | grep -q '\"mode\": \"$1\"'"
}

# Runs the tenant: privileged, with the variable that makes NVIDIA's runtime inject all GPUs.
# It makes itself a node of the GPU by number, since in a privileged container it may.
tenant() {
    printf '\n$ podman run --privileged -e NVIDIA_VISIBLE_DEVICES=all ... # opens the GPU\n'
    podman --runtime runc --cgroup-manager cgroupfs --root "$demo/storage" --runroot "$demo/podman" \
        run --rm --network none --privileged -e NVIDIA_VISIBLE_DEVICES=all \
        --cgroup-parent "$pod" --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
        --rootfs "$demo/root" /bin/busybox sh -c \
        "rm -f /tmp/gpu; busybox mknod /tmp/gpu c $1 $2; cat /tmp/gpu" >"$demo/said" 2>&1 || true
    sed 's/^/  /' "$demo/said"
    grep -q "$3" "$demo/said" || fail "expected: $3"
}

start_gate enforce
show 'accelpool gate'
node=$(find "$demo/run/sim" -name nvidia0 | head -n 1)
[ -n "$node" ] || fail 'the simulated GPU has no node'
major=$((0x$(stat -c %t "$node"))) minor=$((0x$(stat -c %T "$node")))

say 'Without a claim, in mode enforce: the kernel refuses it, privileged or not.'
tenant "$major" "$minor" "$refused"
show 'accelpool gate'
accelpool gate -o json | grep -q '"denied"' || fail 'the refusal was not counted'

say "With a claim for the pod's cgroup: the same container opens it."
show "accelpool claim create train --device $gpu --cgroup $pod"
tenant "$major" "$minor" "$let_through"

say 'Released: refused again.'
show 'accelpool claim release train'
tenant "$major" "$minor" "$refused"

say 'The daemon is killed: what it guarded stays guarded.'
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
daemon=''
tenant "$major" "$minor" "$refused"

say 'In mode audit: nothing is refused, and everything is counted.'
start_gate audit
tenant "$major" "$minor" "$let_through"
await "accelpool gate | grep -q audited"
show 'accelpool gate'
printf '\nAll shown and checked.\n'
