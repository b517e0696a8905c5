#!/usr/bin/env bash
# Shows shared devices at work on a machine without GPUs: programs of CUDA's driver API on a
# stand-in for the driver, whose engine really takes the time that a kernel claims. Daemon,
# arbiter, shim and `accelpool run` are production's own.
#
# Everything that is shown is checked: a surprise ends the demo with an error. It lives in
# .demo-turns/, which is removed at the end. With --lenient, as the tests run it, times are as long
# as a machine that others use as well makes them; what is counted stays exact.
# shellcheck disable=SC2016 # what is awaited is expanded at each try
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo-turns
# Sockets have short names, and the source tree may lie deep.
sockets=$(mktemp -d /tmp/accelpool-demo-XXXXXX)
device=gpu-0000-01-00-0
export ACCELPOOL_SOCKET=$sockets/node.sock
export ACCELPOOL_CUDA_STANDIN=$sockets/engine.sock
export LD_LIBRARY_PATH=$demo/driver
engine=''
# Thousandths, and microseconds.
share_error=10 p99_max=20000 grant_max=50000
declare -A to from runner
# shellcheck source=tools/demo-stage.sh
. tools/demo-stage.sh

leave() {
    local pid
    for pid in "${runner[@]}" $engine; do
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

sweep() {
    rm -rf "$demo" "$sockets"
}

# Runs the tenant `$1` with a claim of the rest, and waits until it can be told what to do.
tenant() {
    local name=$1 input output
    shift
    mkfifo "$demo/$name.in" "$demo/$name.out"
    printf '\n$ accelpool run --name %s %s -- cuda-tenant &\n' "$name" "$*"
    accelpool run --name "$name" "$@" -- cuda-tenant \
        <"$demo/$name.in" >"$demo/$name.out" 2>>"$demo/log" &
    runner[$name]=$!
    exec {input}>"$demo/$name.in" {output}<"$demo/$name.out"
    rm "$demo/$name.in" "$demo/$name.out"
    to[$name]=$input from[$name]=$output
    [ "$(ask "$name" 'start 0')" = ok ] || fail "tenant $name does not start"
}

tell() {
    printf '%s\n' "$2" >&"${to[$1]}"
}

answer() {
    local line
    read -r -t 120 line <&"${from[$1]}" || fail "tenant $1 is silent"
    printf '%s\n' "$line"
}

ask() {
    tell "$1" "$2"
    answer "$1"
}

# Ends a tenant in good order.
dismiss() {
    tell "$1" quit
    wait "${runner[$1]}" || fail "tenant $1 failed"
    unset "runner[$1]"
}

# The field `$2` of claim `$1`, from the form for programs.
figure() {
    accelpool top --once -o json | sed -n "/\"claim\": \"$1\"/,/\"unclassified\"/s/.*\"$2\": \([0-9]*\).*/\1/p"
}

# What the two heavy tenants used since `used_before`, as thousandths of both.
share_of_heavy() {
    local heavy=$(($(figure heavy used_ns) - heavy_before)) light=$(($(figure light used_ns) - light_before))
    echo $((1000 * heavy / (heavy + light)))
}

used_before() {
    heavy_before=$(figure heavy used_ns) light_before=$(figure light used_ns)
}

prepare_machine() {
    begin
    mkdir -p "$demo/driver" "$demo/sim"
    cp "$target"/debug/deps/libaccelpool_cuda_standin.so "$demo/driver/libcuda.so.1"
    # The GPU of the profile, as a driver would show it.
    cat >"$demo/machine.json" <<END
{"devices": [{"uuid": "GPU-ed6e0001-0100-4a11-8c00-000000000001", "name": "NVIDIA L4",
  "pci": "0000:01:00.0", "memory_bytes": 24152899584, "context_bytes": 268435456,
  "switch_ns": 50000}]}
END
    cat >"$demo/node.toml" <<END
state_dir = "$demo/state"
run_dir = "$sockets"
cdi_dir = "$demo/cdi"

[[vendor]]
name = "sim"
profile = "mixed-edge"
dir = "$demo/sim"
turns = true
END
    cuda-engine "$ACCELPOOL_CUDA_STANDIN" "$demo/machine.json" 2>>"$demo/log" &
    engine=$!
    await '[ -S "$ACCELPOOL_CUDA_STANDIN" ]'
    start_daemon "$demo/node.toml"
}

weights() {
    printf '\nTwo tenants that want all of one GPU; the first is owed three times what the other is.\n'
    tenant heavy --device $device --memory 4Gi --compute 600
    tenant light --device $device --memory 4Gi --compute 200
    tell heavy 'burn 200 14000'
    tell light 'burn 200 14000'
    await '[ "$(figure light turns)" -gt 2 ]'
    used_before
    sleep 10
    local share
    share=$(share_of_heavy)
    show 'accelpool top --once'
    printf '\nOver ten seconds: %d.%d %% and %d.%d %%.\n' $((share / 10)) $((share % 10)) \
        $(((1000 - share) / 10)) $(((1000 - share) % 10))
    if [ "$share" -lt $((750 - share_error)) ] || [ "$share" -gt $((750 + share_error)) ]; then
        fail "it is not 75 to 25 within $share_error thousandths"
    fi
    [[ $(answer heavy) = ok* && $(answer light) = ok* ]] || fail 'a tenant failed'
}

realtime() {
    printf '\nA real-time tenant: 1 ms of work now and then, beside two that leave no gap.\n'
    tell heavy 'burn 200 6000'
    tell light 'burn 200 6000'
    tenant prompt --device $device --memory 2Gi --compute 100 --class realtime
    local median p99 max
    read -r _ median p99 max <<<"$(ask prompt 'pace 1000 150 20000')"
    printf 'It waited and ran for %d us (median), %d us (99 of 100), %d us (longest).\n' \
        "$median" "$p99" "$max"
    # One in turn with the two would wait for a turn of 5 ms or several at each step.
    [ "$median" -le $((p99_max / 2)) ] || fail "its median is over $((p99_max / 2)) us"
    [ "$p99" -le $p99_max ] || fail "its 99th percentile is over $p99_max us"
    show 'accelpool top --once'
    [[ $(answer heavy) = ok* && $(answer light) = ok* ]] || fail 'a tenant failed'
    dismiss prompt
}

quota() {
    printf '\nOne tenant asks for all of its memory, and then for one byte more.\n'
    local free rest
    read -r _ free _ <<<"$(ask heavy info)"
    rest=$(ask heavy "alloc $free")
    printf 'cuMemAlloc(%d): %s\n' "$free" "$rest"
    [[ $rest = ok* ]] || fail 'the last byte of the quota was not granted'
    local more
    more=$(ask heavy 'alloc 1')
    printf 'cuMemAlloc(1): %s, CUDA_ERROR_OUT_OF_MEMORY\n' "$more"
    [ "$more" = 'error 2' ] || fail 'a byte over the quota was granted'
    [[ $(ask light 'alloc 1073741824') = ok* ]] || fail 'the other tenant was refused its own'
    [[ $(ask heavy "free ${rest#ok }") = ok* ]] || fail 'the memory cannot be given back'
}

killed_holder() {
    printf '\nThe tenant that has the GPU is killed with -9 while another asks for it.\n'
    tell light 'burn 200 5000'
    local try holder longest
    for try in 1 2 3; do
        tenant "victim$try" --device $device --memory 1Gi --compute 100
        holder=$(ask "victim$try" pid)
        tell "victim$try" 'burn 200 60000'
        await "accelpool top --once | grep -q '^victim$try  *normal  *running'"
        tell heavy 'pace 100 1 0'
        kill -9 "${holder#ok }"
        read -r _ _ _ longest <<<"$(answer heavy)"
        printf 'killed; another had its turn and its kernel done after %d us\n' "$longest"
        [ "$longest" -le $grant_max ] || fail "that is more than $grant_max us"
        wait "${runner[victim$try]}" || true
        unset "runner[victim$try]"
    done
    await '! accelpool claims | grep -q victim'
    [[ $(answer light) = ok* ]] || fail 'a tenant failed'
}

killed_daemon() {
    printf '\nThe daemon is killed with -9 under load and started again.\n'
    tell heavy 'burn 200 8000'
    tell light 'burn 200 8000'
    await 'accelpool top --once | grep -q running'
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
    sleep 1
    start_daemon "$demo/node.toml"
    await '[ "$(figure heavy turns)" -gt 2 ] && [ "$(figure light turns)" -gt 2 ]'
    show 'accelpool top --once'
    local heavy light
    heavy=$(answer heavy) light=$(answer light)
    printf 'heavy: %s kernels, light: %s kernels, and no error\n' "${heavy#ok }" "${light#ok }"
    [[ $heavy = ok* && $light = ok* ]] || fail 'a tenant failed'
    dismiss heavy
    dismiss light
    await '[ "$(accelpool claims 2>/dev/null | wc -l)" = 0 ]'
    stop_daemon || fail 'the daemon did not stop in good order'
}

if [ "${1:-}" = --lenient ]; then
    # A tenant that gets no processor loses turns; still, who is owed more has more.
    share_error=240 p99_max=2000000 grant_max=2000000
    shift
fi
if [ "${1:-}" != --built ]; then
    cargo build --locked --bin accelpoold --bin accelpool --bin cuda-engine --bin cuda-tenant
    cargo build --locked -p accelpool-cuda-standin
    if [ "$(id -u)" != 0 ]; then
        exec sudo -- env CARGO_TARGET_DIR="$target" "$PWD/tools/demo-turns.sh" --built
    fi
fi
export PATH=$target/debug:$PATH
prepare_machine
weights
realtime
quota
killed_holder
killed_daemon
printf '\nAll shown and checked.\n'
