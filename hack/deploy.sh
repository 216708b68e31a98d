#!/usr/bin/env bash
# Installs everything that a running operator needs: tools, images, model, cluster, Helm release. It can be repeated; a
# change of the project's code builds and loads only small layers. CLUSTER=local (default: hack/cluster, no Docker) or kind
# (hack/kind/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin
export PATH=$bin:$PATH
cluster=${CLUSTER:-local}
namespace=vllmendpoint-system
model=SmolLM2-135M-Instruct
registry=localhost # in the names of images
. hack/common.sh
. hack/kind/engine.sh

stage() { printf '\n\033[1m[%4ds] %s\033[0m\n' $((SECONDS - begun)) "$*"; }

# together NAME COMMAND...: runs the command in the background and prefixes its output with NAME; `settle NAME` waits for
# it. The command has its own process group: Ctrl-C reaches only this script, which then stops the command.
declare -A pids=()
together() {
  local name=$1
  shift
  set -m
  # sed ignores SIGTERM: without a reader, SIGPIPE would kill the command during its cleanup.
  { "$@" 2>&1 | (trap '' TERM; exec sed -u "s/^/  $name: /"); } </dev/null &
  pids[$name]=$!
  set +m
}
settle() {
  wait "${pids[$1]}" || die "$1 failed, see its lines above"
  unset "pids[$1]"
}
# shellcheck disable=SC2154 # the loop sets pid
trap 'for pid in "${pids[@]}"; do stop "$pid" 15; done' EXIT

# The model is a directory on this machine; pods mount it through a hostPath volume.
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
  ready=$(dirname "$KUBECONFIG")/ready # created when a start is complete
  for stage in kube runtime coredns cluster; do
    if [[ -e $ready && $bin/.$stage.sum -nt $ready ]]; then
      info "$stage was rebuilt after the cluster started: recreating the cluster; its contents are lost"
      cluster down
    fi
  done
  cluster up
}

build_kind() {
  use_docker
  if [[ $engine == machine ]]; then
    command -v kind >/dev/null || die "kind is not installed; see https://kind.sigs.k8s.io, or use CLUSTER=local without Docker"
    command -v kubectl >/dev/null || die "kubectl is not installed"
  fi
  hack/tools.sh
  prepare_model
  hack/images.sh docker >"$cache/images.txt"
}
up_kind() {
  export KUBECONFIG=$cache/kind/kubeconfig
  registry=$kind_registry
  hack/kind/cluster.sh up
}

case $cluster in local | kind) ;; *) die "CLUSTER=$cluster is unknown; use local or kind" ;; esac

stage "tools, images and model (first run: about 15 minutes on two cores; later: seconds)"
mkdir -p "$cache"
"build_$cluster"

stage "Kubernetes ($cluster)"
"up_$cluster"

stage "load images into the node"
# Images are tagged by content: running pods keep their image, and a changed image is rolled out.
declare -A tags=()
while read -r name id; do
  image=${name%:*} tag=${id:0:12}
  tags[${image##*/}]=$tag
  if [[ $cluster == kind ]]; then
    hack/kind/cluster.sh load "$name" "$id" </dev/null
  else
    buildah tag "$name" "$image:$tag"
    cluster load "$image:$tag"
    # Old tags keep their layers on disk (6 GB after a change of dependencies), so remove them.
    buildah images --format '{{.Name}}:{{.Tag}}' | grep "^$image:" | { grep -vxE "$image:(dev|$tag)" || true; } |
      xargs -r buildah rmi >/dev/null
  fi
done <"$cache/images.txt"

stage "helm install"
progress() { kubectl -n "$namespace" get pods --no-headers 2>&1 | tail -n 1; }
watched "the operator" helm upgrade --install vllmendpoint-operator charts/vllmendpoint-operator --namespace "$namespace" --create-namespace \
  --set global.imageRegistry="$registry" \
  --set image.repository=vllmendpoint/operator --set-string image.tag="${tags[operator]}" \
  --set worker.image.repository=vllmendpoint/worker-cpu --set-string worker.image.tag="${tags[worker-cpu]}" \
  --set frontend.image.repository=vllmendpoint/frontend --set-string frontend.image.tag="${tags[frontend]}" \
  --wait --timeout 3m
kubectl -n "$namespace" get pods
printf '\n[%4ds] the operator is running\n' $((SECONDS - begun))
