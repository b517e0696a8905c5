#!/usr/bin/env bash
# Shows accelpool on a machine without accelerators, from the first claim to a clean machine.
#
# Everything that is shown is checked: a surprise ends the demo with an error. It lives in
# .demo/, writes CDI specs where podman reads them, and removes what it made at the end;
# the picture of the topology stays.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo
# The daemon owns this folder while it runs, so whoever runs one here takes turns; the test
# suites (tests/src/podman.rs) take the same lock.
cdi_dir=/var/run/cdi
lock=/run/lock/accelpool-cdi.lock
claims=(train small left right second)

steps=0
# shellcheck source=tools/demo-stage.sh
. tools/demo-stage.sh

step() {
    steps=$((steps + 1))
    printf '\n\n%s%d. %s%s\n%s\n' "$bold" "$steps" "$1" "$plain" "$dim$2$plain"
}

# Shows a command that must be refused with the code `$2`.
refused() {
    local status=0
    show "$1" 2> >(tee "$demo/refusal" >&2) || status=$?
    # tee may still be writing.
    wait $!
    [ "$status" != 0 ] || fail "this was not refused: $1"
    grep --quiet "$2" "$demo/refusal" || fail "this was not refused for $2: $1"
}

leave() {
    podman rm --force --time 0 accelpool-demo >/dev/null 2>&1 || true
}

sweep() {
    local claim
    for claim in "${claims[@]}"; do
        rm -f "$cdi_dir/accelpool.dev-claim_$claim.json"
    done
    find "$demo" -mindepth 1 ! -name topology.svg -delete 2>/dev/null || true
    [ -z "${SUDO_UID:-}" ] || chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$demo" || true
}

build() {
    say 'Building the daemon and the command line (the first time takes some minutes) ...'
    cargo build --locked --bin accelpoold --bin accelpool
}

prepare_machine() {
    local program
    for program in podman runc /bin/busybox flock; do
        command -v "$program" >/dev/null || fail "$program is missing: run tools/setup.sh"
    done
    if accelpool --socket /run/accelpool/node.sock status >/dev/null 2>&1; then
        fail "an accelpoold runs on this machine and owns $cdi_dir: stop it first"
    fi
    exec 9>>"$lock"
    flock --nonblock 9 || {
        say 'Waiting for the test suite, or another demo, on this machine ...'
        flock 9
    }
    begin
    mkdir -p "$demo/root/bin" "$demo/sim"
    cp /bin/busybox "$demo/root/bin/"
    cat >"$demo/node.toml" <<END
state_dir = "$demo/state"
run_dir = "$demo/run"
cdi_dir = "$cdi_dir"

[[vendor]]
name = "sim"
profile = "dgx-h100"
dir = "$demo/sim"
END
    # Limits that root may set also inside a container or a virtual machine; no systemd needed.
    cat >"$demo/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
END
    export CONTAINERS_CONF=$demo/containers.conf
    export ACCELPOOL_SOCKET=$demo/run/node.sock
    # What the demo waits for, it waits for at length: the machine may be busy.
    if ! podman run --rm --network none --rootfs "$demo/root" /bin/busybox true \
        >"$demo/podman.log" 2>&1 9>&-; then
        cat "$demo/podman.log" >&2
        fail 'podman cannot run a container here: mend what it says above and try again'
    fi
}

start() {
    step 'Start the daemon on a simulated NVIDIA DGX H100' \
        'Its GPUs are simulated, but their device nodes are real, and so is everything else.'
    start_daemon "$demo/node.toml"
    show 'accelpool devices'
}

claim() {
    step 'Claim a whole GPU, a MIG partition, and two shares of one GPU' \
        'Each answer is on disk before it is given; the partition is cut for the claim.'
    show 'accelpool claim create train --device gpu-0000-1b-00-0'
    show 'accelpool claim create small --partition 1g.10gb'
    show 'accelpool claim create left --device gpu-0000-52-00-0 --memory 20Gi --compute 250'
    show 'accelpool claim create right --device gpu-0000-52-00-0 --memory 40Gi --compute 500'
    show 'accelpool claims'
}

partition_id() {
    accelpool explain small -o json | sed -n 's/.*"cdi_id": "\(.*\)".*/\1/p'
}

contain() {
    step 'Run containers: each sees what it was granted, and nothing else' \
        'They hold a busybox, and no driver: what matters is what the runtime lets in.'
    local small look
    look='ls -l /dev | grep nvidia; find /dev/nvidia-caps -type c 2>/dev/null; env | grep GRANT'
    small=$(partition_id)
    say 'The whole GPU:'
    show "podman run --rm --network none --device accelpool.dev/claim=train-r0-gpu-0000-1b-00-0 \\
    --rootfs \"\$PWD/.demo/root\" /bin/busybox sh -c '$look'" | tee "$demo/seen"
    check_seen 'nvidia0$' 'nvidia[1-7]$'
    say 'The partition, which brings the two capabilities that open it:'
    show "podman run --rm --network none --device $small \\
    --rootfs \"\$PWD/.demo/root\" /bin/busybox sh -c '$look'" | tee "$demo/seen"
    check_seen 'nvidia-caps/nvidia-cap' 'nvidia0$'
    say 'No grant, no GPU:'
    show "podman run --rm --network none --rootfs \"\$PWD/.demo/root\" /bin/busybox sh -c \\
    'ls /dev | grep nvidia || echo no GPU here'" | tee "$demo/seen"
    check_seen 'no GPU here' 'nvidia0$'
}

# What the last container printed has a line with `$1` and none with `$2`.
check_seen() {
    grep --quiet "$1" "$demo/seen" || fail "the container does not see $1"
    ! grep --quiet "$2" "$demo/seen" || fail "the container sees $2"
}

over_commit() {
    step 'Ask for more than there is' \
        'The shared GPU has 79 GiB, of which 60 are promised; train has its GPU alone.'
    refused 'accelpool claim create more --device gpu-0000-52-00-0 --memory 40Gi' AP0104
    refused 'accelpool claim create more --device gpu-0000-1b-00-0' AP0103
    say 'Every refusal has a page, and is remembered:'
    show 'accelpool explain more'
}

crash() {
    step 'Kill the daemon half-way through a claim, beside a running container' \
        'First the container:'
    show "podman run --detach --rm --name accelpool-demo --network none \\
    --device accelpool.dev/claim=train-r0-gpu-0000-1b-00-0 \\
    --rootfs \"\$PWD/.demo/root\" /bin/busybox sleep 600 >/dev/null"
    say "The driver is scripted to hang once it has cut the next partition:"
    cat >"$demo/script.toml" <<'END'
[[call]]
id = "hang-once"
method = "create_partition"
at = "after"
hang = true
END
    mv "$demo/script.toml" "$demo/sim/"
    printf '\n%s$ accelpool claim create second --partition 3g.40gb &%s\n' "$bold" "$plain"
    accelpool claim create second --partition 3g.40gb >"$demo/second" 2>&1 9>&- &
    local asking=$!
    await 'accelpool claims -o json | grep "\"state\": \"preparing\""'
    await 'grep 3g.40gb .demo/sim/state.json'
    show 'accelpool claims'
    printf '\n%s$ kill -9 %s   # the daemon%s\n' "$bold" "$daemon" "$plain"
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
    ! wait "$asking" || fail 'a claim was granted by a daemon that was killed'
    cat "$demo/second"
}

recover() {
    step 'Start it again: nothing is lost, nothing is left over' \
        'What nobody was promised is undone: the partition is gone from the GPU. The rest holds.'
    start_daemon "$demo/node.toml"
    show 'accelpool claims'
    show 'accelpool partitions'
    ! grep --quiet 3g.40gb .demo/sim/state.json || fail 'a partition that nobody owns was left'
    say 'The container never noticed, and the claim works when it is asked for again:'
    show 'podman exec accelpool-demo /bin/busybox ls /dev/nvidia0'
    show 'accelpool claim create second --partition 3g.40gb'
    podman rm --force --time 0 accelpool-demo >/dev/null
}

look() {
    step 'Look around' \
        'The simulated GPUs stand beside the real NUMA nodes and buses of this machine.'
    show 'accelpool devices'
    show 'accelpool topology'
    show 'accelpool topology --svg .demo/topology.svg'
    grep --quiet '</svg>' "$demo/topology.svg" || fail 'the picture is no picture'
}

give_back() {
    step 'Give everything back' \
        'Partitions that were cut for a claim go with it.'
    show "accelpool claim release ${claims[*]}"
    say 'The id of the whole GPU no longer resolves:'
    refused "podman run --rm --network none --device accelpool.dev/claim=train-r0-gpu-0000-1b-00-0 \\
    --rootfs \"\$PWD/.demo/root\" /bin/busybox true" 'unresolvable CDI devices'
    local left
    left=$(find "$cdi_dir" -name 'accelpool.dev-claim_*' | wc -l)
    [ "$left" = 0 ] || fail "$left CDI specs were left"
    stop_daemon || fail 'the daemon did not stop in good order'
}

if [ "${1:-}" != --built ]; then
    build
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            fail 'device nodes and containers need root: run this as root, or install sudo'
        exec sudo -- env CARGO_TARGET_DIR="$target" "$PWD/tools/demo.sh" --built
    fi
fi
export PATH=$target/debug:$PATH
began=$SECONDS
prepare_machine
start
claim
contain
over_commit
crash
recover
look
give_back
printf '\n%sAll shown and checked in %d s.%s The picture is .demo/topology.svg; all else is removed.\n' \
    "$green" "$((SECONDS - began))" "$plain"
