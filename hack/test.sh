#!/usr/bin/env bash
# Runs all tests, or those in PATH, and prepares the machine first: hack/test.sh [PATH...]
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH
paths=("$@")
# Three groups in parallel, the longest first: the operator's tests and most unit tests wait more than they compute.
parallel=(-n 3 --durations=25 --dist loadscope --no-loadscope-reorder tests/e2e tests/worker tests/integration tests/unit)
# Requests in flight and pairs of workers are tested last and alone: beside other engines on two cores, the only replica that is left during a
# failure would be too slow for its probes.
alone=(tests/e2e/test_disruption.py tests/e2e/test_rollout.py tests/e2e/test_prefill.py)

# Keep a cluster that was already running.
was_up=0
[[ -x $cache/bin/cluster ]] && cluster status >/dev/null 2>&1 && was_up=1
finish() { ((was_up)) || [[ ! -x $cache/bin/cluster ]] || cluster down || true; }
[[ ${CLUSTER:-local} == local ]] && trap finish EXIT
hack/deploy.sh
hack/tools.sh s3
for model in toy embedding; do .venv/bin/python hack/model.py "$model"; done
failed=0
if ((${#paths[@]})); then
  .venv/bin/python -m pytest "${paths[@]}" || failed=1
else
  .venv/bin/python -m pytest "${parallel[@]}" "${alone[@]/#/--ignore=}" || failed=1
  .venv/bin/python -m pytest "${alone[@]}" || failed=1
fi
((failed == 0))
