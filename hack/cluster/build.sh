#!/usr/bin/env bash
# Builds all programs of the local cluster from checksummed Go modules into $CACHE/bin. Skips programs that are up to date.
# usage: build.sh [STAGE...]     stages: packages kube runtime coredns cluster (default: all)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin
. "$here/../common.sh"

# The checksum of the inputs of a stage: the compiler, this script and the given files. A stage with an unchanged checksum is
# up to date.
sum_of() { { echo "$go_version"; find "$here/build.sh" "$@" -type f ! -name '*_test.go' -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -c1-64; }
current() { [[ -f $bin/.$1.sum && $(<"$bin/.$1.sum") == "$2" ]]; }

progress() { echo "$(wc -l <"$1") packages compiled"; }

# go_build DIR OUTPUT PACKAGE [FLAG...]: -v prints each package that is compiled; `progress` counts them.
go_build() {
  local dir=$1 output=$2 package=$3
  shift 3
  (cd "$here/$dir" && GOGC=400 GOFLAGS=-mod=readonly go build -v -buildvcs=false -trimpath "$@" -o "$output.new" "$package")
  mv "$output.new" "$output" # a new file: running processes and hard links in images keep the old one
}
pure_build() { CGO_ENABLED=0 go_build "$@"; }

stage_packages() {
  local want=(libseccomp-dev pkg-config gcc libc6-dev nftables) missing=() p
  for p in "${want[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  info "packages: installing ${missing[*]}"
  watched packages apt-get update
  watched packages env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

stage_kube() {
  local sum version=v1.36.2 package=k8s.io/component-base/version n
  sum=$(sum_of "$here/kube")
  current kube "$sum" && return
  info "kube: Kubernetes $version and etcd in one binary (first run: about ten minutes on two cores)"
  # Without these flags the server reports the version v0.0.0, which charts with a kubeVersion refuse.
  watched kube pure_build kube "$bin/kube" . -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=36"
  for n in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    ln -sfn kube "$bin/$n"
  done
  echo "$sum" >"$bin/.kube.sum"
}

stage_runtime() {
  local sum n p cni=github.com/containernetworking/plugins/plugins
  sum=$(sum_of "$here/go.mod" "$here/go.sum")
  current runtime "$sum" && return
  info "runtime: containerd, runc, CNI plugins"
  mkdir -p "$bin/cni"
  for n in containerd containerd-shim-runc-v2 ctr; do
    watched "$n" pure_build . "$bin/$n" "github.com/containerd/containerd/v2/cmd/$n" -ldflags '-s -w'
  done
  # The kubelet's seccomp profiles need the tag seccomp; a static binary runs in every mount namespace of the node.
  CGO_ENABLED=1 watched runc go_build . "$bin/runc" github.com/opencontainers/runc \
    -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags "-static"'
  for p in main/bridge main/loopback ipam/host-local meta/portmap; do
    watched "${p#*/}" pure_build . "$bin/cni/${p#*/}" "$cni/$p" -ldflags '-s -w'
  done
  echo "$sum" >"$bin/.runtime.sum"
}

stage_coredns() {
  local sum
  sum=$(sum_of "$here/go.mod" "$here/go.sum" "$here/cmd/coredns" "$here/cmd/pause")
  current coredns "$sum" && return
  info "coredns: CoreDNS and the pause program"
  watched coredns pure_build . "$bin/coredns" ./cmd/coredns -ldflags '-s -w'
  watched pause pure_build . "$bin/pause" ./cmd/pause -ldflags '-s -w'
  echo "$sum" >"$bin/.coredns.sum"
}

stage_cluster() {
  local sum
  sum=$(sum_of "$here/go.mod" "$here/go.sum" "$here/cmd/cluster" "$here/internal")
  current cluster "$sum" && return
  info "cluster: the program that starts and stops the cluster"
  watched cluster pure_build . "$bin/cluster" ./cmd/cluster -ldflags '-s -w'
  echo "$sum" >"$bin/.cluster.sum"
}

command -v go >/dev/null || die "no Go compiler on PATH: install Go 1.26 or newer"
go_version=$(cd "$here" && go version)
mkdir -p "$bin"
(($#)) || set -- packages kube runtime coredns cluster
for stage in "$@"; do
  declare -F "stage_$stage" >/dev/null || die "unknown stage $stage; use packages, kube, runtime, coredns or cluster"
done
locked "$cache/build.lock" 1800
for stage in "$@"; do "stage_$stage"; done
info "done: $bin"
