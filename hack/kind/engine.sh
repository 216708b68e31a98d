# Sourced by the scripts that use Docker, after hack/common.sh: selects the Docker Engine.
# shellcheck shell=bash disable=SC2034 # used by the scripts that source this file
kind_registry=localhost:5011 # the cluster's own registry, in the names of images

# use_docker: sets `engine` to `machine` if `docker info` succeeds, as on a machine with Docker Engine. Otherwise starts the
# engine of hack/kind/docker.sh, lets `docker` and `kind` use it, and sets `engine` to `ours`.
use_docker() {
  local cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint} reason
  local ours=unix://$cache/kind/docker/docker.sock
  if [[ ${DOCKER_HOST:-} != "$ours" ]] && reason=$(timeout 20 docker info 2>&1); then
    engine=machine
    info "using the Docker Engine of this machine: docker info succeeds"
    return
  fi
  engine=ours
  # shellcheck disable=SC2015 # the last line of docker's output is its error
  [[ ${DOCKER_HOST:-} == "$ours" ]] || info "using an unpacked Docker Engine and no image registry: docker info fails ($(tail -n 1 <<<"$reason"))"
  hack/kind/docker.sh up
  eval "$(hack/kind/docker.sh env)"
}

# Succeeds if `docker build` uses BuildKit: since version 23, the client needs the plugin buildx for it.
builds_with_buildkit() {
  local version
  docker buildx version >/dev/null 2>&1 && return
  version=$(docker version --format '{{.Client.Version}}')
  ((${version%%.*} < 23))
}
