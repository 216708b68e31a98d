#!/usr/bin/env bash
# Shows the product: serves a model, freezes its engine, shows that the operator detects it, and resumes the engine. Checks
# each answer that it prints. Keeps the cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH
export CLUSTER=${CLUSTER:-local}
namespace=demo
endpoint=smollm

stage() { printf '\n\033[1m[%4ds] %s\033[0m\n' "$SECONDS" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
condition() { kubectl get vep "$endpoint" -o "jsonpath={.status.conditions[?(@.type=='$1')].$2}"; }
worker() { kubectl get pods -l app.kubernetes.io/instance=$endpoint,app.kubernetes.io/component=worker \
  --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }

# signal_engine POD SIGNAL: sends a signal to the engine core process in a worker pod.
signal_engine() {
  kubectl exec "$1" -c main -- python3 -c '
import os, pathlib, signal, sys
found = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/comm") if "EngineCor" in p.read_text()]
for pid in found: os.kill(pid, getattr(signal, sys.argv[1]))
sys.exit(0 if found else "no engine core process found")' "$2"
}

# await CONDITION STATUS SECONDS [INTERVAL]: polls until the condition has the status. Prints each new reason and message of
# Ready, and at least one line every 20 s.
await() {
  local from previous="" printed_at=0 line
  from=$(now)
  while [[ $(condition "$1" status) != "$2" ]]; do
    line="$(condition Ready reason): $(condition Ready message)"
    [[ $line != ": " ]] || line="the operator has not reconciled the endpoint yet"
    if [[ $line != "$previous" ]] || ((SECONDS - printed_at >= 20)); then
      printf '  [%4ss] %s\n' "$(since "$from")" "$line"
      previous=$line printed_at=$SECONDS
    fi
    awk -v t="$(since "$from")" -v m="$3" 'BEGIN { exit t > m }' || die "$1 is not $2 after $3 s; run kubectl describe vep $endpoint"
    sleep "${4:-1}"
  done
}

ask() {
  python3 - "$url/v1/chat/completions" "$endpoint" "$1" <<'PYTHON'
import http.client, json, sys, urllib.error, urllib.request

url, model, question = sys.argv[1:]
body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0}
request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
try:
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            print(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        print(f"HTTP {error.code}: {error.read(300).decode(errors='replace')}")
except (OSError, http.client.HTTPException) as error:  # such as a timeout: the request was routed to the frozen engine
    print(f"no answer: {getattr(error, 'reason', None) or error}")
PYTHON
}

# ask_until refused|answered QUESTION: repeats the question until the frontend answers with an HTTP error (refused) or with
# text (answered), and fails if it does not within one minute. Sets `answer` to the last response.
ask_until() {
  local from=$SECONDS previous="" got
  while :; do
    answer=$(ask "$2")
    case $answer in HTTP*) got=refused ;; "no answer"*) got=none ;; *) got=answered ;; esac
    [[ $got != "$1" ]] || return 0
    ((SECONDS - from < ${ask_seconds:-60})) || die "the question was not $1; the last response was: $answer"
    [[ $answer == "$previous" ]] || printf '  %s\n' "$answer"
    previous=$answer
    sleep 0.2
  done
}

# ask_capital: asks the model a question and checks its answer.
ask_capital() {
  ask_until answered "What is the capital of France?"
  printf '  Q: What is the capital of France?\n  A: %s\n' "$answer"
  [[ $answer == *Paris* ]] || die "the answer does not contain 'Paris'"
}

hack/deploy.sh

if [[ $CLUSTER == kind ]]; then
  export KUBECONFIG=$cache/kind/kubeconfig models=/var/lib/vllmendpoint/models
else
  KUBECONFIG=$(cluster kubeconfig)
  export KUBECONFIG models=$cache/models
fi

stage "kubectl apply: a VLLMEndpoint"
kubectl create namespace $namespace --dry-run=client -o yaml | kubectl apply -f - >/dev/null
kubectl label namespace $namespace --overwrite pod-security.kubernetes.io/enforce=restricted >/dev/null
# This changes the project's own kubeconfig only, not the user's current namespace.
kubectl config set-context --current --namespace=$namespace >/dev/null
# The endpoint of an earlier demo keeps its pinned image, so it is deleted first.
pods=(pods -l "app.kubernetes.io/instance=$endpoint")
if [[ -n $(kubectl get vep $endpoint --ignore-not-found -o name && kubectl get "${pods[@]}" -o name) ]]; then
  echo "  deleting the endpoint of an earlier demo (up to 60 s) and its pods (up to 90 s)"
  kubectl delete vep $endpoint --ignore-not-found --timeout=60s >/dev/null
  kubectl wait --for=delete "${pods[@]}" --timeout=90s >/dev/null 2>&1 || true
fi
sed "s|@MODELS@|$models|" samples/models-volume.yaml | kubectl apply -f - >/dev/null
kubectl apply -f samples/smollm.yaml

stage "waiting for Ready (an engine without a GPU loads for one to two minutes)"
kubectl wait --for=condition=Ready vep/$endpoint --timeout=15m >/dev/null &
waiting=$!
# shellcheck disable=SC2154 # coproc sets forward_PID
trap 'kill $waiting ${forward_PID:-} 2>/dev/null || true' EXIT
await Ready True 900
wait $waiting || die "kubectl wait failed"
waiting=
echo "  Ready: $(condition Ready message)"

stage "send a question through the frontend's Service"
coproc forward { exec kubectl port-forward "service/$endpoint" :8000 2>&1; }
read -r -t 30 line <&"${forward[0]}" || die "kubectl port-forward did not print a port within 30 s"
port=${line#*127.0.0.1:}
url=http://127.0.0.1:${port%% *}
ask_capital
echo
kubectl get vep -o wide
conditions='{range .status.conditions[*]}{.type}{"\t"}{.status}{"\t"}{.reason}{"\t"}{.message}{"\n"}{end}'
kubectl get vep $endpoint -o "jsonpath=$conditions" |
  awk -F '\t' '{ printf "%-21s  %-5s  %-10s  %s\n", $1, $2, $3, $4 }'

stage "freeze the engine core (SIGSTOP): all processes run, but the engine does not generate"
pod=$(worker)
frozen=$(now)
signal_engine "$pod" SIGSTOP
await Generating False 120 0.2
why="$(condition Generating reason): $(condition Generating message)"
printf '  after %s s: %s\n' "$(since "$frozen")" "$why"
[[ $why == EngineStalled:*"$pod"* ]] || die "the condition Generating names another cause or another pod"
kubectl wait --for=condition=Ready=False "pod/$pod" --timeout=30s >/dev/null
ask_until refused "Are you there?"
printf '  the frontend no longer routes to this worker: %s\n' "$answer"
kubectl get vep

stage "resume the engine core (SIGCONT)"
resumed=$(now)
signal_engine "$pod" SIGCONT
await Generating True 120 0.2
printf '  generating again after %s s\n' "$(since "$resumed")"
await Ready True 60 0.2
ask_capital
restarts=$(kubectl get pod "$pod" -o jsonpath='{.status.containerStatuses[0].restartCount}')
echo "  restarts of $pod: $restarts"
[[ $restarts == 0 ]] || die "the worker was restarted"

stage "done"
selected=
[[ $CLUSTER == local ]] || selected=" CLUSTER=$CLUSTER"
cat <<TXT
The cluster keeps running:
  export KUBECONFIG=\$(make -s kubeconfig$selected)     # a separate context with the namespace $namespace
  kubectl get vep -o wide
  kubectl describe vep $endpoint
make clean$selected removes the cluster.
TXT
