#!/usr/bin/env bash
# All tests, from whatever state the machine is in: hack/test.sh [PATH...]
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH
paths=("$@")
# Three groups at a time, the longest first: the operator's tests, and most of the pure ones, wait more than they work.
((${#paths[@]})) || paths=(-n 3 --durations=25 --dist loadscope --no-loadscope-reorder tests/e2e tests/worker tests/integration tests/unit)

# A cluster that was up before stays up.
was_up=0
[[ -x $cache/bin/cluster ]] && cluster status >/dev/null 2>&1 && was_up=1
finish() { ((was_up)) || [[ ! -x $cache/bin/cluster ]] || cluster down || true; }
[[ ${CLUSTER:-local} == local ]] && trap finish EXIT
hack/deploy.sh
hack/tools.sh s3
for model in toy embedding; do .venv/bin/python hack/model.py "$model"; done
.venv/bin/python -m pytest "${paths[@]}"
