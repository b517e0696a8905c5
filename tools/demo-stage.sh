# shellcheck shell=bash
# What the demos of this folder share: how they show and check, and how they end. Each sources it
# from the root of the tree with `demo` set, the folder that it lives in, and defines `leave`,
# which ends what it has started.
: "${demo:?}"

# Where cargo builds, also for a caller that has it elsewhere.
# shellcheck disable=SC2034 # the demos use it
target=${CARGO_TARGET_DIR:-$PWD/target}

# shellcheck disable=SC2034 # not every demo uses each of them
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

# The daemon of the demo; it writes to `$demo/log`.
daemon=''

fail() {
    printf '%sdemo: %s%s\n' "$red" "$1" "$plain" >&2
    exit 1
}

say() {
    printf '\n%s\n' "$dim$1$plain"
}

# Shows a command and runs it; its end is ours. A lock on 9 is ours alone, too.
show() {
    printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1" 9>&-
}

# Waits until a command succeeds.
await() {
    local tries=0
    until eval "$1" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 1200 ] || fail "waited 60 s in vain for: $1"
        sleep 0.05
    done
}

# Starts the daemon with the configuration `$1` and waits until it is ready.
start_daemon() {
    printf '\n%s$ accelpoold run --config %s &%s\n' "$bold" "${1#"$PWD/"}" "$plain"
    accelpoold run --config "$1" >>"$demo/log" 2>&1 9>&- &
    daemon=$!
    # shellcheck disable=SC2016 # expanded at each try
    await '! kill -0 "$daemon" || accelpool status | grep -q " is ready "'
    kill -0 "$daemon" 2>/dev/null || fail 'the daemon did not start'
}

# Ends it in good order; whether it was.
stop_daemon() {
    local pid=$daemon
    daemon=''
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid"; }
}

clean_up() {
    local status=$?
    trap - EXIT
    if [ "$status" != 0 ] && [ -f "$demo/log" ]; then
        printf '\nwhat the daemon said last:\n' >&2
        tail -n 10 "$demo/log" >&2
    fi
    leave
    stop_daemon || true
    sweep
    exit "$status"
}

# Removes what the demo has written.
sweep() {
    rm -rf "$demo"
}

# From here on `leave` is called however it ends.
begin() {
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    rm -rf "$demo"
}
