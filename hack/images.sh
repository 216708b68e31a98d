#!/usr/bin/env bash
# Builds the images `operator`, `frontend` and `worker-cpu` from the Dockerfile:
#   hack/images.sh [buildah]   without Docker: as root, into containers-storage (Debian packages, no image registry)
#   hack/images.sh docker      with Docker (BuildKit); hack/kind/README.md describes which engine is used
#   hack/images.sh buildah|docker IMAGE...   only these images; `worker` is the image for GPUs
#   hack/images.sh tidy        removes the working containers and mounts that an interrupted build left in containers-storage
#   hack/images.sh clean       like tidy; also removes the built images from buildah and Docker, all dangling images, and
#                              BuildKit's cache
# The last lines of stdout are `NAME ID`, one per image. All other output goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
tool=${1:-buildah}
shift || true
images=("$@")
((${#images[@]})) || images=(operator frontend worker-cpu)
prefix=localhost/vllmendpoint
. hack/common.sh
. hack/kind/engine.sh

# The build uses the CA bundle and proxies of the machine, if any. They are not stored in an image.
options=()
ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[[ -s $ca ]] && options+=(--secret "id=ca,src=$ca")
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
  [[ -n ${!name:-} ]] && options+=(--build-arg "$name=${!name}")
done

# install_tools PROGRAM...: the Debian packages of these names
install_tools() {
  local missing=()
  for program in "$@"; do command -v "$program" >/dev/null || missing+=("$program"); done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "${missing[*]} not found, and apt-get is not available to install it"
  watched "apt-get update" apt-get update
  watched "installing ${missing[*]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
}

# Removes the working containers, and their mounts, of an interrupted build. Many of them have no name of ours, so they are
# identified by their bottom layer, which is that of one of our base images. A buildah command that finds nothing mounted
# also removes buildah's own bind mount of the storage.
tidy() {
  local left id name image ours
  command -v buildah >/dev/null && [[ $EUID == 0 ]] || return 0
  left=$(buildah containers --noheading --format '{{.ContainerID}} {{.ContainerName}} {{.ImageID}}')
  [[ -n $left ]] || return 0
  ours=$(buildah images --format '{{.Name}}:{{.Tag}}' | while read -r name; do
    [[ $name != "$prefix"/* ]] || bottom "$name"
  done)
  while read -r id name image; do
    [[ $name == "$container" || -n $image && -n $ours && $ours == *"$(bottom "$image")"* ]] || continue
    info "removing $name of an interrupted build"
    buildah rm "$id" >/dev/null
  done <<<"$left"
}
bottom() { buildah inspect --type image --format '{{index .OCIv1.RootFS.DiffIDs 0}}' "$1" 2>/dev/null || echo none; }
container=vllmendpoint-base # the working container of from_scratch

# from_scratch IMAGE SOURCE TARGET: creates an image from one file, or from the contents of an archive
from_scratch_buildah() {
  buildah from -q --name "$container" scratch >/dev/null
  buildah add -q "$container" "$2" "$3" >/dev/null
  buildah commit -q --rm "$container" "$1" >/dev/null
}
from_scratch_docker() {
  if [[ $3 == / ]]; then docker import "$2" "$1" >/dev/null; return; fi
  tar -C "$(dirname "$2")" -c "$(basename "$2")" --transform "s|.*|${3#/}|" | docker import - "$1" >/dev/null
}
has_buildah() { buildah inspect --type image "$1" >/dev/null 2>&1; }
has_docker() { docker image inspect "$1" >/dev/null 2>&1; }

# Creates the two base images of the Dockerfile, because no image registry is used.
make_bases() {
  local uv_version
  base=$prefix/debian:bookworm-slim
  if ! "has_$tool" "$base"; then
    watched "Debian base" mmdebstrap --mode=root --variant=minbase \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
      bookworm "$scratch/base.tar"
    "from_scratch_$tool" "$base" "$scratch/base.tar" /
  fi

  [[ -x $cache/bin/uv ]] || watched "uv" hack/tools.sh
  uv_version=$("$cache/bin/uv" --version | cut -d ' ' -f 2)
  uv=$prefix/uv:$uv_version
  if ! "has_$tool" "$uv"; then
    info "uv $uv_version"
    "from_scratch_$tool" "$uv" "$(readlink -f "$cache/bin/uv")" /uv
  fi
}

# Parallel builds would build the same layers twice. buildah's storage is one per machine, so its lock is, too: a build with
# another cache has working containers as well.
mkdir -p "$cache"
lock=$cache/images.lock
[[ $tool == docker || $EUID != 0 ]] || lock=${VLLMENDPOINT_BUILDAH_LOCK:-/run/vllmendpoint-images.lock}
if [[ $tool == tidy ]]; then
  exec 9>"$lock"
  if flock -n 9; then tidy; else info "a build is running: nothing was removed"; fi
  exit
fi
locked "$lock" 1800

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $tool in
  buildah)
    [[ $EUID == 0 ]] || die "buildah must run as root: the cluster reads the layers from root's storage"
    install_tools buildah mmdebstrap
    tidy
    trap 'rm -rf "$scratch"; tidy' EXIT
    make_bases
    build() {
      # Isolation by chroot needs no container runtime and works with every cgroup version.
      watched "$1" buildah build --layers --isolation chroot --network host --pull-never "${options[@]}" \
        --build-arg "BASE=$base" --build-arg "UV=$uv" --target "$1" -t "$prefix/$1:dev" .
    }
    id() { buildah inspect --type image --format '{{.FromImageID}}' "$1"; }
    ;;
  docker)
    use_docker
    builds_with_buildkit || die "this Docker client has no BuildKit: install its plugin buildx, see https://docs.docker.com/go/buildx"
    if [[ $engine == ours ]]; then
      install_tools mmdebstrap
      make_bases
      options+=(--build-arg "BASE=$base" --build-arg "UV=$uv")
    fi
    build() { watched "$1" env DOCKER_BUILDKIT=1 docker build --progress plain "${options[@]}" --target "$1" -t "$prefix/$1:dev" .; }
    id() { docker image inspect --format '{{.Id}}' "$1" | cut -d : -f 2; }
    ;;
  clean)
    tidy
    if command -v buildah >/dev/null; then
      mapfile -t built < <(buildah images --format '{{.Name}}:{{.Tag}}' --filter "reference=$prefix/*")
      ((${#built[@]} == 0)) || watched "removing ${built[*]}" buildah rmi -f "${built[@]}"
      watched "removing dangling images" buildah rmi --prune
    fi
    if timeout 20 docker info >/dev/null 2>&1; then
      mapfile -t built < <(docker images --format '{{.Repository}}:{{.Tag}}' --filter "reference=$prefix/*")
      ((${#built[@]} == 0)) || watched "removing ${built[*]} from Docker" docker rmi -f "${built[@]}"
      watched "removing BuildKit's cache" docker builder prune --all --force
    fi
    exit
    ;;
  *) die "unknown command '$tool'; use buildah, docker, tidy or clean" ;;
esac

for image in "${images[@]}"; do build "$image"; done
info "done"
for image in "${images[@]}"; do echo "$prefix/$image:dev $(id "$prefix/$image:dev")"; done
