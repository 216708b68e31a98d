#!/usr/bin/env bash
# Builds the images `operator` and `worker-cpu` from the Dockerfile:
#   hack/images.sh [buildah]   without Docker: as root, into containers-storage (Debian's packages, no image registry)
#   hack/images.sh docker      with Docker (BuildKit); worker, for GPUs, is built too when it is named
#   hack/images.sh buildah|docker IMAGE...   only these
#   hack/images.sh clean       removes from containers-storage what was built, and every dangling image
# The last lines say `NAME ID`, one image a line. Everything else goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
tool=${1:-buildah}
shift || true
images=("$@")
((${#images[@]})) || images=(operator worker-cpu)
prefix=localhost/vllmendpoint

say() { printf '[images %3ds] %s\n' "$SECONDS" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command with its output in a log; tells its newest line now and then, and all of the end if it fails.
quietly() {
  local what=$1 log waited=0
  shift
  log=$(mktemp)
  say "$what"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    ((++waited % 20)) || say "$what: $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-120)"
  done
  if ! wait "$pid"; then
    pid=
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "$what failed (above: the end of its output)"
  fi
  pid=
  rm -f "$log"
}

# The machine's own CA and proxies, where it has some, for the build only: nothing of them gets into an image.
options=()
ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[[ -s $ca ]] && options+=(--secret "id=ca,src=$ca")
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
  [[ -n ${!name:-} ]] && options+=(--build-arg "$name=${!name}")
done

install_tools() {
  local missing=()
  for program in buildah mmdebstrap; do command -v "$program" >/dev/null || missing+=("$program"); done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "${missing[*]} not found, and no apt-get to install it with"
  quietly "apt-get update" apt-get update
  quietly "installing ${missing[*]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
}

# from_scratch IMAGE SOURCE TARGET: an image of one file, or of an archive's content
from_scratch() {
  local container
  container=$(buildah from scratch)
  buildah add -q "$container" "$2" "$3" >/dev/null
  buildah commit -q --rm "$container" "$1" >/dev/null
}

# The two images that the Dockerfile starts from, made here, since no image registry is asked.
make_bases() {
  local uv_version
  base=$prefix/debian:bookworm-slim
  if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    quietly "Debian base" mmdebstrap --mode=root --variant=minbase \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
      bookworm "$scratch/base.tar"
    from_scratch "$base" "$scratch/base.tar" /
  fi

  [[ -x $cache/bin/uv ]] || quietly "uv" hack/tools.sh
  uv_version=$("$cache/bin/uv" --version | cut -d ' ' -f 2)
  uv=$prefix/uv:$uv_version
  if ! buildah inspect --type image "$uv" >/dev/null 2>&1; then
    say "uv $uv_version"
    from_scratch "$uv" "$(readlink -f "$cache/bin/uv")" /uv
  fi
}

# Two builds at once would make the same layers twice.
mkdir -p "$cache"
exec 9>"$cache/images.lock"
if ! flock -n 9; then
  say "another build is under way: waiting for it"
  flock -w 1800 9 || die "the other build did not end within half an hour; it holds $cache/images.lock"
fi

scratch=$(mktemp -d)
pid=
trap 'rm -rf "$scratch"; [[ -z $pid ]] || kill "$pid"' EXIT
trap 'exit 130' INT TERM

case $tool in
  buildah)
    [[ $EUID == 0 ]] || die "buildah needs root here: the cluster takes the layers from root's storage"
    install_tools
    make_bases
    build() {
      # chroot: no container runtime is needed, and the kernel's cgroup version does not matter.
      quietly "$1" buildah build --layers --isolation chroot --network host --pull-never "${options[@]}" \
        --build-arg "BASE=$base" --build-arg "UV=$uv" --target "$1" -t "$prefix/$1:dev" .
    }
    id() { buildah inspect --type image --format '{{.FromImageID}}' "$1"; }
    ;;
  docker)
    docker info >/dev/null 2>&1 || die "docker info fails: start Docker, or use hack/images.sh buildah"
    build() { quietly "$1" env DOCKER_BUILDKIT=1 docker build "${options[@]}" --target "$1" -t "$prefix/$1:dev" .; }
    id() { docker image inspect --format '{{.Id}}' "$1" | cut -d : -f 2; }
    ;;
  clean)
    command -v buildah >/dev/null || exit 0
    mapfile -t built < <(buildah images --format '{{.Name}}:{{.Tag}}' --filter "reference=$prefix/*")
    ((${#built[@]} == 0)) || quietly "removing ${built[*]}" buildah rmi -f "${built[@]}"
    quietly "removing dangling images" buildah rmi --prune
    exit
    ;;
  *) die "unknown builder '$tool': buildah, docker or clean" ;;
esac

for image in "${images[@]}"; do build "$image"; done
say "done"
for image in "${images[@]}"; do echo "$prefix/$image:dev $(id "$prefix/$image:dev")"; done
