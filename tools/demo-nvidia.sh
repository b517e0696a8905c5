#!/usr/bin/env bash
# Shows the NVIDIA adapter at work on a machine without GPUs: a stand-in for the driver's library
# describes a DGX H100 of which two GPUs are in MIG mode. Production's own code loads it.
#
# Everything that is shown is checked: a surprise ends the demo with an error. It lives in
# .demo-nvidia/, which is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo-nvidia
libraries=$demo/driver/usr/lib/$(uname -m)-linux-gnu
machine=$libraries/nvml-standin.json
source=vendors/nvidia/standin/machines/dgx-h100-mig.json
export ACCELPOOL_SOCKET=$demo/run/node.sock
# shellcheck source=tools/demo-stage.sh
. tools/demo-stage.sh

leave() { :; }

# Describes the machine, with `$1` added to what the file says of it.
describe() {
    sed "s|^ \"driver_version\"| \"procfs\": \"$demo/proc\",$1&|" "$source" >"$machine.next"
    mv "$machine.next" "$machine"
}

# Changes what the driver says that the first GPU needs, from `$1` to `$2`.
recovery_action() {
    sed "0,/\"recovery_action\": $1/s//\"recovery_action\": $2/" "$machine" >"$machine.next"
    mv "$machine.next" "$machine"
}

# What the kernel would show of each GPU: `address uuid minor` on a line.
gpus() {
    sed -n 's/^   "\(uuid\|pci\|minor\)": "\?\([^",]*\).*/\2/p' "$source" | paste - - - |
        awk '{ print $2, $1, $3 }'
}

# Puts a GPU below the PCIe root and the NUMA node that it has in a DGX H100.
place_on_bus() {
    local root numa=1 device
    case $1 in
        0000:1b:*) root=15 numa=0 ;;
        0000:43:*) root=37 numa=0 ;;
        0000:52:*) root=48 numa=0 ;;
        0000:61:*) root=59 numa=0 ;;
        0000:9d:*) root=97 ;;
        0000:c3:*) root=b7 ;;
        0000:d1:*) root=c7 ;;
        *) root=d7 ;;
    esac
    device=$demo/sys/devices/pci0000:$root/0000:$root:01.0/$1
    mkdir -p "$device"
    printf '%s\n' "$numa" >"$device/numa_node"
    ln -s "$device" "$demo/sys/bus/pci/devices/$1"
}

prepare_machine() {
    begin
    mkdir -p "$libraries" "$demo"/{dev,cdi,sys/bus/pci/devices} "$demo/proc/driver/nvidia/gpus"
    cp "$target"/debug/deps/libaccelpool_nvml_standin.so "$libraries/libnvidia-ml.so.1"
    printf 'Character devices:\n195 nvidia\n241 nvidia-uvm\n242 nvidia-caps\n' >"$demo/proc/devices"
    mknod "$demo/dev/nvidiactl" c 195 255
    mknod "$demo/dev/nvidia-uvm" c 241 0
    gpus | while read -r address uuid minor; do
        place_on_bus "$address"
        mknod "$demo/dev/nvidia$minor" c 195 "$minor"
        mkdir "$demo/proc/driver/nvidia/gpus/$address"
        printf 'Model: NVIDIA H100 80GB HBM3\nGPU UUID: %s\nDevice Minor: %s\n' \
            "$uuid" "$minor" >"$demo/proc/driver/nvidia/gpus/$address/information"
    done
    describe ''
    cat >"$demo/node.toml" <<END
state_dir = "$demo/state"
run_dir = "$demo/run"
cdi_dir = "$demo/cdi"
observe_interval_ms = 500

[[vendor]]
name = "nvidia"
driver_root = "$demo/driver"
machine_root = "$demo"
END
}

# The GPU instances on the machine, whoever knows of them.
instances() {
    grep -c '"gpu":' "$machine.mig" || true
}

look_around() {
    start_daemon "$demo/node.toml"
    show 'accelpool devices'
    [ "$(accelpool devices | grep -c 'NVIDIA H100')" = 8 ] || fail 'there are not eight GPUs'
    show 'accelpool topology'
    show 'accelpool partitions --possible'
}

claim() {
    show 'accelpool claim create small --partition 1g.10gb'
    [ "$(instances)" = 1 ] || fail 'one claim did not make one GPU instance'
    show 'accelpool partitions'
}

crash() {
    printf '\nThe driver hangs between GPU instance and compute instance; the daemon is killed there.\n'
    describe ' "hang": ["nvmlGpuInstanceCreateComputeInstance"],'
    accelpool claim create second --partition 3g.40gb >"$demo/second" 2>&1 &
    local asking=$!
    await "grep -A5 '\"size\": 4' '$machine.mig' | grep '\"compute\": \\[\\]'"
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
    ! wait "$asking" || fail 'a claim was granted by a daemon that was killed'
    [ "$(instances)" = 2 ] || fail 'the crash left no half-created instance'
    describe ''
    start_daemon "$demo/node.toml"
    # shellcheck disable=SC2016 # it is expanded at each try
    await '[ "$(instances)" = 1 ]'
    show 'accelpool partitions'
    show 'accelpool claim create second --partition 3g.40gb'
    [ "$(instances)" = 2 ] || fail 'the claim was not granted when it was asked for again'
}

fault() {
    printf '\nXID 79 of the first GPU, which asks for a reset; XID 31 of the second is its tenant.\n'
    local events='{"device": 0, "kind": 8, "value": 79}, {"device": 1, "kind": 8, "value": 31}'
    describe " \"events\": [$events],"
    # By rename, as all changes: the stand-in may be reading it.
    recovery_action 0 1
    await 'accelpool devices | grep fell-off-bus'
    show 'accelpool devices'
    [ "$(accelpool devices | grep -c fell-off-bus)" = 1 ] || fail 'the wrong GPU is tainted'
    printf '\nOne reason, wherever it is told.\n'
    show 'accelpool topology -o yaml | grep -A2 fell-off-bus'
    show 'accelpool devices -o yaml | grep -A2 fell-off-bus'
    show 'accelpool audit show .demo-nvidia/state/audit | grep tainted'
    local told
    for told in 'topology -o yaml' 'devices -o yaml' 'audit show .demo-nvidia/state/audit'; do
        # shellcheck disable=SC2086 # several words
        [ "$(accelpool $told | grep -c 'xid-79: the GPU has fallen off the bus')" = 1 ] ||
            fail "another reason in: accelpool $told"
    done
    printf '\nThe GPU was reset, and the driver asks for nothing any more.\n'
    recovery_action 1 0
    await '! accelpool devices | grep fell-off-bus'
    show 'accelpool devices'
}

give_back() {
    show 'accelpool claim release small second'
    [ "$(instances)" = 0 ] || fail 'GPU instances were left'
    stop_daemon || fail 'the daemon did not stop in good order'
}

if [ "${1:-}" != --built ]; then
    cargo build --locked --bin accelpoold --bin accelpool
    cargo build --locked -p accelpool-nvml-standin
    if [ "$(id -u)" != 0 ]; then
        exec sudo -- env CARGO_TARGET_DIR="$target" "$PWD/tools/demo-nvidia.sh" --built
    fi
fi
export PATH=$target/debug:$PATH
prepare_machine
look_around
claim
crash
fault
give_back
printf '\nAll shown and checked.\n'
