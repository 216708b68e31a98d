#!/usr/bin/env bash
# Everything up to a running operator: tools, images, model, cluster, Helm release. Safe to repeat; a change of our
# code alone builds and loads two small layers. CLUSTER=local (default: hack/cluster, no Docker) or kind.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin
export PATH=$bin:$PATH
cluster=${CLUSTER:-local}
namespace=vllmendpoint-system
model=SmolLM2-135M-Instruct
. hack/common.sh

stage() { printf '\n\033[1m[%4ds] %s\033[0m\n' $((SECONDS - begun)) "$*"; }

# Runs a command in the background with its lines marked; `settle NAME` waits for it. In a process group of its own: a
# Ctrl-C reaches this script alone, which ends what it started.
declare -A pids=()
together() {
  local name=$1
  shift
  set -m
  # sed stays to the end: to write to nobody would kill what tidies up after itself.
  { "$@" 2>&1 | (trap '' TERM; exec sed -u "s/^/  $name: /"); } </dev/null &
  pids[$name]=$!
  set +m
}
settle() {
  wait "${pids[$1]}" || die "$1 failed, see its lines above"
  unset "pids[$1]"
}
trap 'for pid in "${pids[@]}"; do stop "$pid" 15; done' EXIT

# The model is a file tree on this machine; the node sees it through a hostPath volume.
prepare_model() {
  hack/setup.sh
  .venv/bin/python hack/model.py chat "$cache/models/$model"
}

build_local() {
  [[ $EUID == 0 ]] || die "the local cluster needs root (or use CLUSTER=kind with Docker)"
  together cluster hack/cluster/build.sh
  together model prepare_model
  settle model
  hack/images.sh buildah >"$cache/images.txt"
  settle cluster
}
up_local() {
  local stage ready
  export KUBECONFIG
  KUBECONFIG=$(cluster kubeconfig)
  ready=$(dirname "$KUBECONFIG")/ready # made when a start has come to its end
  for stage in kube runtime coredns cluster; do
    if [[ -e $ready && $bin/.$stage.sum -nt $ready ]]; then
      say "$stage was built anew since the cluster was started: it is made anew, and what was in it is gone"
      cluster down
    fi
  done
  cluster up
}

build_kind() {
  command -v kind >/dev/null || die "kind is not installed: https://kind.sigs.k8s.io (or use CLUSTER=local, without Docker)"
  command -v kubectl >/dev/null || die "kubectl is not installed"
  hack/tools.sh
  prepare_model
  hack/images.sh docker >"$cache/images.txt"
}
up_kind() {
  export KUBECONFIG=$cache/kind/kubeconfig
  mkdir -p "$cache/kind"
  if kind get clusters 2>/dev/null | grep -qx vllmendpoint; then
    # It may be half made, or stopped; and its kubeconfig may be lost.
    say "a kind cluster is there: waiting up to 50 s for its node"
    kind export kubeconfig --name vllmendpoint --kubeconfig "$KUBECONFIG" &&
      kubectl wait --for=condition=Ready node --all --timeout=50s && return
    say "it is not healthy: it is made anew, and what was in it is gone"
    kind delete cluster --name vllmendpoint --kubeconfig "$KUBECONFIG"
  fi
  sed "s|@MODELS@|$cache/models|" hack/kind.yaml >"$cache/kind/config.yaml"
  kind create cluster --name vllmendpoint --kubeconfig "$KUBECONFIG" --config "$cache/kind/config.yaml" --wait 120s
}

case $cluster in local | kind) ;; *) die "CLUSTER=$cluster: local or kind" ;; esac

stage "tools, images and model (from nothing about 15 minutes on two cores, else seconds)"
mkdir -p "$cache"
"build_$cluster"

stage "Kubernetes ($cluster)"
"up_$cluster"

stage "images into the node"
# Tagged by content: what runs keeps its image, what changed is rolled out.
declare -A tags=()
while read -r name id; do
  image=${name%:*} tag=${id:0:12}
  tags[${image##*/}]=$tag
  if [[ $cluster == kind ]]; then
    docker tag "$name" "$image:$tag"
    kind load docker-image --name vllmendpoint "$image:$tag"
  else
    buildah tag "$name" "$image:$tag"
    cluster load "$image:$tag"
    # Each old build that has a name keeps its layers, 6 GB of them where dependencies changed.
    buildah images --format '{{.Name}}:{{.Tag}}' | grep "^$image:" | { grep -vxE "$image:(dev|$tag)" || true; } |
      xargs -r buildah rmi >/dev/null
  fi
done <"$cache/images.txt"

stage "helm install"
progress() { kubectl -n "$namespace" get pods --no-headers 2>&1 | tail -n 1; }
watched "the operator" helm upgrade --install vllmendpoint-operator charts/vllmendpoint-operator --namespace "$namespace" --create-namespace \
  --set global.imageRegistry=localhost \
  --set image.repository=vllmendpoint/operator --set-string image.tag="${tags[operator]}" \
  --set worker.image.repository=vllmendpoint/worker-cpu --set-string worker.image.tag="${tags[worker-cpu]}" \
  --wait --timeout 3m
kubectl -n "$namespace" get pods
printf '\n[%4ds] the operator runs\n' $((SECONDS - begun))
