# Sourced by the scripts in hack/: log lines with the name of the script and the elapsed time, and waits that print their
# progress and are bounded.
# shellcheck shell=bash
script=$(basename "${BASH_SOURCE[1]}" .sh)
begun=$SECONDS

info() { printf '[%s %3ds] %s\n' "$script" $((SECONDS - begun)) "$*" >&2; }
die() { info "error: $*"; exit 1; }

# Prints the progress of a command: by default the last line of its log. A script may redefine it.
progress() { tail -n 1 "$1" | tr -d '\r' | cut -c 1-120; }

# watched WHAT COMMAND...: runs the command, prints a line every 20 s, and prints the command's output only if it fails.
watched() {
  local what=$1 log ticks=0 rc=0
  shift
  log=$(mktemp)
  # The command runs in its own process group, so that an interrupt ends the whole group: background processes of a script
  # ignore Ctrl-C and would continue. It does not inherit the lock (file descriptor 9).
  set -m
  "$@" >"$log" 2>&1 </dev/null 9>&- &
  watching=$!
  set +m
  trap 'stop "$watching"; rm -f "$log"; exit 130' INT TERM
  while kill -0 "$watching" 2>/dev/null; do
    sleep 0.2 || true # an interrupt may end sleep; the trap must still run
    ((++ticks % 100)) || info "$what: still running: $(progress "$log")"
  done
  wait "$watching" || rc=$?
  trap - INT TERM
  ((rc == 0)) || tail -n 40 "$log" >&2
  rm -f "$log"
  ((rc == 0)) || die "$what failed with exit status $rc; see its output above"
}

# stop GROUP [SECONDS]: terminates a process group and waits for its end; kills it after SECONDS (default: 5).
stop() {
  local until=$((SECONDS + ${2:-5}))
  kill -TERM -- "-$1" 2>/dev/null || return 0
  while ((SECONDS < until)); do
    kill -0 -- "-$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}

# locked FILE SECONDS: takes the lock until the script ends; waits at most SECONDS for another run that holds it.
locked() {
  local until=$((SECONDS + $2))
  exec 9>"$1"
  flock -n 9 && return
  info "waiting for another run to release $1"
  until flock -w 20 9; do
    ((SECONDS < until)) || die "another run did not release $1 within $2 s"
    info "still waiting for another run to release $1"
  done
}
