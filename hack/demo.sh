#!/usr/bin/env bash
# The whole product, shown: a model served, its engine frozen, noticed, thawed. Leaves the cluster up.
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

# Stops, or continues, the engine's core process in a worker pod.
signal_engine() {
  kubectl exec "$1" -c main -- python3 -c '
import os, pathlib, signal, sys
found = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/comm") if "EngineCor" in p.read_text()]
for pid in found: os.kill(pid, getattr(signal, sys.argv[1]))
sys.exit(0 if found else "no engine core process found")' "$2"
}

# Polls until CONDITION has STATUS; prints each new reason and message on the way, and a line every 20 s at least.
await() {
  local from said="" spoke=0 line
  from=$(now)
  while [[ $(condition "$1" status) != "$2" ]]; do
    line="$(condition Ready reason): $(condition Ready message)"
    [[ $line != ": " ]] || line="the operator has not looked at it yet"
    if [[ $line != "$said" ]] || ((SECONDS - spoke >= 20)); then
      printf '  [%4ss] %s\n' "$(since "$from")" "$line"
      said=$line spoke=$SECONDS
    fi
    awk -v t="$(since "$from")" -v m="$3" 'BEGIN { exit t > m }' || die "$1 is not $2 after $3 s; see kubectl describe vep $endpoint"
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
except (OSError, http.client.HTTPException) as error:  # such as a time-out: it was routed to an engine that is frozen
    print(f"no answer: {getattr(error, 'reason', None) or error}")
PYTHON
}

# Asks until the answer is an error of HTTP's (refused), or is one (answered), for a minute; then `answer` is the last one.
ask_until() {
  local from=$SECONDS said="" got
  while :; do
    answer=$(ask "$2")
    case $answer in HTTP*) got=refused ;; "no answer"*) got=none ;; *) got=answered ;; esac
    [[ $got != "$1" ]] && ((SECONDS - from < 60)) || return 0
    [[ $answer == "$said" ]] || printf '  %s\n' "$answer"
    said=$answer
    sleep 0.2
  done
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
# A context of our own file: nobody's current namespace is changed.
kubectl config set-context --current --namespace=$namespace >/dev/null
# An earlier demo's endpoint runs an earlier image, pinned: start from nothing.
pods=(pods -l "app.kubernetes.io/instance=$endpoint")
if [[ -n $(kubectl get vep $endpoint --ignore-not-found -o name && kubectl get "${pods[@]}" -o name) ]]; then
  echo "  an earlier demo's endpoint goes first (up to a minute), then its pods (up to 90 s)"
  kubectl delete vep $endpoint --ignore-not-found --timeout=60s >/dev/null
  kubectl wait --for=delete "${pods[@]}" --timeout=90s >/dev/null 2>&1 || true
fi
sed "s|@MODELS@|$models|" samples/models-volume.yaml | kubectl apply -f - >/dev/null
kubectl apply -f samples/smollm.yaml

stage "waiting for Ready: an engine without a GPU loads for a minute or two"
kubectl wait --for=condition=Ready vep/$endpoint --timeout=15m >/dev/null &
waiting=$!
trap 'kill $waiting ${forward_PID:-} 2>/dev/null || true' EXIT
await Ready True 900
wait $waiting || die "kubectl wait failed"
waiting=
echo "  Ready: $(condition Ready message)"

stage "a question, through the frontend's Service"
coproc forward { exec kubectl port-forward "service/$endpoint" :8000 2>&1; }
read -r -t 30 line <&"${forward[0]}" || die "kubectl port-forward gave no port"
port=${line#*127.0.0.1:}
url=http://127.0.0.1:${port%% *}
ask_until answered "What is the capital of France?"
printf '  Q: What is the capital of France?\n  A: %s\n\n' "$answer"
[[ $answer == *Paris* ]] || die "the model did not answer as it should"
kubectl get vep -o wide
conditions='{range .status.conditions[*]}{.type}{"\t"}{.status}{"\t"}{.reason}{"\t"}{.message}{"\n"}{end}'
kubectl get vep $endpoint -o "jsonpath=$conditions" |
  awk -F '\t' '{ printf "%-21s  %-5s  %-10s  %s\n", $1, $2, $3, $4 }'

stage "the engine's core process is frozen (SIGSTOP): every process lives, nothing generates"
pod=$(worker)
frozen=$(now)
signal_engine "$pod" SIGSTOP
await Generating False 120 0.2
why="$(condition Generating reason): $(condition Generating message)"
printf '  after %s s: %s\n' "$(since "$frozen")" "$why"
[[ $why == EngineStalled:*"$pod"* ]] || die "the condition Generating names another cause, or another pod"
kubectl wait --for=condition=Ready=False "pod/$pod" --timeout=30s >/dev/null
ask_until refused "Are you there?"
[[ $answer == HTTP* ]] || die "the frontend still routes to a frozen engine: $answer"
printf '  the frontend no longer routes to it: %s\n' "$answer"
kubectl get vep

stage "thawed (SIGCONT)"
thawed=$(now)
signal_engine "$pod" SIGCONT
await Generating True 120 0.2
printf '  generates again after %s s\n' "$(since "$thawed")"
await Ready True 60 0.2
ask_until answered "What is the capital of France?"
printf '  A: %s\n' "$answer"
restarts=$(kubectl get pod "$pod" -o jsonpath='{.status.containerStatuses[0].restartCount}')
echo "  restarts of $pod: $restarts"
[[ $restarts == 0 ]] || die "the worker was restarted"

stage "done"
cat <<TXT
The cluster stays up:
  export KUBECONFIG=\$(make -s kubeconfig)     # context of its own, namespace $namespace
  kubectl get vep -o wide
  kubectl describe vep $endpoint
make clean removes all of it.
TXT
