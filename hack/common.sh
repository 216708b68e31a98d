# Sourced by the scripts here: lines that say who speaks and since when, and waits that are neither silent nor endless.
# shellcheck shell=bash
script=$(basename "${BASH_SOURCE[1]}" .sh)
begun=$SECONDS

say() { printf '[%s %3ds] %s\n' "$script" $((SECONDS - begun)) "$*" >&2; }
die() { say "error: $*"; exit 1; }

# How far a command is, told from its log: the newest line. A script may tell it otherwise.
progress() { tail -n 1 "$1" | tr -d '\r' | cut -c 1-120; }

# watched WHAT COMMAND...: a line every 20 s, so that no minute is silent; the command's output only if it fails.
watched() {
  local what=$1 log ticks=0 rc=0
  shift
  log=$(mktemp)
  # A process group of its own, so that an interrupt ends all of it: what a script runs in the background ignores Ctrl-C,
  # and would go on alone. Without the locks (9), which are the script's.
  set -m
  "$@" >"$log" 2>&1 </dev/null 9>&- &
  watching=$!
  set +m
  trap 'stop "$watching"; rm -f "$log"; exit 130' INT TERM
  while kill -0 "$watching" 2>/dev/null; do
    sleep 0.2 || true # an interrupt may end it, and the trap is to run
    ((++ticks % 100)) || say "$what: still at it: $(progress "$log")"
  done
  wait "$watching" || rc=$?
  trap - INT TERM
  ((rc == 0)) || tail -n 40 "$log" >&2
  rm -f "$log"
  ((rc == 0)) || die "$what failed (exit status $rc), see above"
}

# stop GROUP [SECONDS]: ends a process group and waits until it is gone; what is left after so long (5 s) is killed.
stop() {
  local until=$((SECONDS + ${2:-5}))
  kill -TERM -- "-$1" 2>/dev/null || return 0
  while ((SECONDS < until)); do
    kill -0 -- "-$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}

# locked FILE SECONDS: this script alone, from here to its end; waits for another run so long at most.
locked() {
  local until=$((SECONDS + $2))
  exec 9>"$1"
  flock -n 9 && return
  say "another run holds $1: waiting until it ends"
  until flock -w 20 9; do
    ((SECONDS < until)) || die "the other run did not end within $2 s; it holds $1"
    say "still waiting for the run that holds $1"
  done
}
