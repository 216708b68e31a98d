#!/usr/bin/env bash
# Runs the cluster on kind with a registry next to it, as https://kind.sigs.k8s.io/docs/user/local-registry describes:
#   hack/kind/cluster.sh up               starts the registry and creates the cluster, if they do not run
#   hack/kind/cluster.sh load NAME ID     pushes a built image, lets the node pull it, and removes unused older tags
#   hack/kind/cluster.sh down [--purge]   removes the cluster; with --purge, also the images and the engine of hack/kind/docker.sh
# KIND_IMAGE names the node image, KIND_REGISTRY_IMAGE the image of the registry.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH KUBECONFIG=$cache/kind/kubeconfig
name=vllmendpoint
node=$name-control-plane
registry=$name-registry
. hack/common.sh
. hack/kind/engine.sh

start_registry() {
  local image=${KIND_REGISTRY_IMAGE:-}
  [[ $engine == machine ]] || image=${image:-localhost/vllmendpoint/registry:dev}
  if [[ $(docker inspect --format '{{.State.Running}}' "$registry" 2>/dev/null) != true ]]; then
    docker rm --force "$registry" >/dev/null 2>&1 || true
    watched "starting the registry" docker run --detach --restart always --name "$registry" --publish "127.0.0.1:${kind_registry#*:}:5000" \
      --volume "$registry:/var/lib/registry" --env REGISTRY_STORAGE_DELETE_ENABLED=true "${image:-docker.io/library/registry:3}"
  fi
}

# The node resolves the registry's name by Docker's network of the cluster.
connect_registry() {
  docker network connect kind "$registry" 2>/dev/null || true # it may be connected already
  docker exec "$node" mkdir -p "/etc/containerd/certs.d/$kind_registry"
  printf '[host."http://%s:5000"]\n' "$registry" | docker exec -i "$node" cp /dev/stdin "/etc/containerd/certs.d/$kind_registry/hosts.toml"
}

up() {
  local options=() image=${KIND_IMAGE:-} built
  mkdir -p "$cache/kind"
  if [[ $engine == ours ]]; then
    built=$(hack/kind/node-image.sh) # also builds kind, kubectl and the registry
    image=${image:-$built}
  fi
  info "node image: ${image:-that of kind}${KIND_IMAGE:+ (KIND_IMAGE)}"
  [[ -z $image ]] || options+=(--image "$image")
  start_registry
  if kind get clusters 2>/dev/null | grep -qx "$name"; then
    # The cluster may be incomplete or stopped, and its kubeconfig may be missing.
    info "a kind cluster exists: waiting up to 50 s for its node"
    kind export kubeconfig --name "$name" --kubeconfig "$KUBECONFIG" &&
      kubectl wait --for=condition=Ready node --all --timeout=50s && connect_registry && return
    info "the kind cluster is not healthy: recreating it; its contents are lost"
    kind delete cluster --name "$name" --kubeconfig "$KUBECONFIG"
  fi
  sed "s|@MODELS@|$cache/models|" hack/kind.yaml >"$cache/kind/config.yaml"
  # The machine reaches the namespace of our engine at this address.
  [[ $engine == machine ]] || printf 'networking:\n  apiServerAddress: 10.98.0.2\n  apiServerPort: 6443\n' >>"$cache/kind/config.yaml"
  kind create cluster --name "$name" --kubeconfig "$KUBECONFIG" --config "$cache/kind/config.yaml" --wait 120s "${options[@]}"
  connect_registry
}

# The registry stores, and the node pulls, only the layers that they do not have.
load() {
  local image=$kind_registry/${1#localhost/}
  image=${image%:*}:${2:0:12}
  docker tag "$1" "$image"
  watched "pushing $image" docker push "$image"
  progress() { docker exec "$node" du -sh /var/lib/containerd 2>/dev/null | awk '{ print $1 " in the node" }'; }
  watched "pulling $image" docker exec "$node" crictl pull "$image"
  prune "${image%:*}" "${image##*:}"
}

# prune REPOSITORY TAG: removes all other tags of an image, from Docker, the node and the registry, except those of Deployments
# and pods.
prune() {
  local used old api="http://$registry:5000/v2/${1#*/}" digest type removed=0 accepted=()
  used=$(kubectl get deployments,pods --all-namespaces -o jsonpath='{..image}')
  docker images --format '{{.Repository}}:{{.Tag}}' "$1" | { grep -vxF "$1:$2" || true; } | xargs -r docker rmi >/dev/null
  curl() { docker exec "$node" curl -fsS "$@"; }
  for type in oci.image.index.v1 oci.image.manifest.v1 docker.distribution.manifest.list.v2 docker.distribution.manifest.v2; do
    accepted+=(--header "Accept: application/vnd.$type+json")
  done
  for old in $(curl "$api/tags/list" | python3 -c 'import json, sys; print(*json.load(sys.stdin)["tags"] or [])'); do
    [[ $old == "$2" || " $used " == *" $1:$old "* ]] && continue
    info "removing $1:$old, which no pod uses"
    digest=$(curl --head "${accepted[@]}" "$api/manifests/$old" | tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" { print $2 }')
    curl --request DELETE "$api/manifests/$digest"
    docker exec "$node" crictl rmi "$1:$old" >/dev/null 2>&1 || true # it may not have been pulled
    removed=1
  done
  ((removed)) || return 0
  # A restart clears the list of layers that the registry keeps in memory.
  docker exec "$registry" "$(docker inspect --format '{{index .Config.Entrypoint 0}}' "$registry")" garbage-collect --delete-untagged \
    /etc/distribution/config.yml >/dev/null 2>&1 || info "warning: the registry did not remove unused layers"
  docker restart "$registry" >/dev/null
}

down() {
  if [[ ! -e $cache/kind/docker/engine.pid ]] && ! timeout 20 docker info >/dev/null 2>&1; then
    info "no Docker Engine runs, so no kind cluster does"
  else
    use_docker
    kind delete cluster --name "$name" --kubeconfig "$KUBECONFIG"
    docker rm --force "$registry" >/dev/null 2>&1 || true
    [[ ${1:-} != --purge ]] || docker volume rm --force "$registry" >/dev/null
  fi
  [[ ! -d $cache/kind/docker ]] || hack/kind/docker.sh down "$@"
}

case ${1:-} in
  up) use_docker; up ;;
  load) use_docker; load "$2" "$3" ;;
  down) down "${@:2}" ;;
  *) die "usage: cluster.sh up|load NAME ID|down [--purge]" ;;
esac
