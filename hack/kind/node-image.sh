#!/usr/bin/env bash
# Builds a node image for kind without an image registry, from the base image of `hack/images.sh docker`, Debian packages and
# programs that are built from Go modules, and an image of a registry for the cluster. Prints the name of the node image. Does
# nothing if nothing changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin
export PATH=$bin:$PATH
prefix=localhost/vllmendpoint
. hack/common.sh

hack/cluster/build.sh >&2
hack/tools.sh kind >&2

programs=(kube cluster containerd containerd-shim-runc-v2 ctr runc pause cni/host-local cni/loopback cni/portmap ptp crictl registry)
# The builds above record the checksums of their inputs.
sum=$({ cat "$0" hack/kind/go.mod "$bin"/.{kube,runtime,coredns,cluster,crictl,registry,kind-coredns,ptp}.sum
  find hack/kind/node -type f -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -c 1-12)
image=$prefix/kind-node:$sum
if docker image inspect "$image" >/dev/null 2>&1; then echo "$image"; exit; fi

base=$prefix/debian:bookworm-slim # of hack/images.sh
mkdir -p "$cache/kind"
context=$(mktemp -d "$cache/kind/context.XXXXXX")
trap 'rm -rf "$context"' EXIT
mkdir "$context/bin"
for program in "${programs[@]}"; do cp "$bin/$program" "$context/bin/"; done
cp "$bin/kind-coredns" "$context/bin/coredns"
cp -r hack/kind/node/. "$context"
# The Go module of kind has the files of its base image, without their modes.
cp -r "$(cd hack/kind && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files" "$context/base"
find "$context" -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +
chmod 755 "$context"/bin/* "$context"/{base,files}/kind/bin/* "$context"/base/usr/local/bin/*

build() { watched "$1" env DOCKER_BUILDKIT=1 docker build --progress plain --build-arg "BASE=$base" --target "$@" "$context"; }
build registry -t "$prefix/registry:dev"
# kubeadm lists the images that it requires; kind's configuration of containerd names another version of pause.
declare -A names=()
ln -sf "$bin/kube" "$context/kubeadm"
while read -r name; do
  case $name in */coredns:*) target=coredns ;; */pause:*) target=pause ;; *) target=kubernetes ;; esac
  names[$name]=$target
done < <("$context/kubeadm" config images list --kubernetes-version "$("$bin/kubelet" --version | cut -d ' ' -f 2)"
  sed -n 's/.*sandbox_image = "\(.*\)"/\1/p' "$context/base/etc/containerd/config.toml")
for target in kubernetes coredns pause; do
  options=()
  for name in "${!names[@]}"; do [[ ${names[$name]} != "$target" ]] || options+=(-t "$name"); done
  build "$target" "${options[@]}"
done
docker save -o "$context/images.tar" "${!names[@]}"
docker rmi "${!names[@]}" >/dev/null
build node -t "$image"
docker images --format '{{.Repository}}:{{.Tag}}' "$prefix/kind-node" | { grep -vxF "$image" || true; } | xargs -r docker rmi >/dev/null || true
echo "$image"
