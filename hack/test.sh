#!/usr/bin/env bash
# All tests, from whatever state the machine is in: hack/test.sh [PATH...]
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH
paths=("$@")
((${#paths[@]})) || paths=(tests/unit tests/integration tests/worker tests/e2e)

# A cluster that was up before stays up.
was_up=0
[[ -x $cache/bin/cluster ]] && cluster status >/dev/null 2>&1 && was_up=1
hack/deploy.sh
hack/tools.sh s3
for model in toy embedding; do .venv/bin/python hack/model.py "$model"; done
finish() { ((was_up)) || cluster down; }
[[ ${CLUSTER:-local} == local ]] && trap finish EXIT
.venv/bin/python -m pytest "${paths[@]}"
