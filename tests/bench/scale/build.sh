#!/usr/bin/env bash
# Builds kwok and the ideal operator from checksummed Go modules into $CACHE/bin. Skips programs that are up to date; the
# first run takes about five minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin

info() { printf '[bench %3ds] %s\n' "$SECONDS" "$*"; }
command -v go >/dev/null || { info "error: no Go compiler on PATH: install Go 1.26 or newer" >&2; exit 1; }

# build DIR OUTPUT PACKAGE
build() {
  local sum
  sum=$({ go version && find "$here/$1" "$here/build.sh" -type f -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -c1-64)
  [[ -f $bin/.$2.sum && $(<"$bin/.$2.sum") == "$sum" ]] && return
  info "$2"
  (cd "$here/$1" && CGO_ENABLED=0 GOGC=400 GOFLAGS=-mod=readonly go build -buildvcs=false -trimpath -ldflags '-s -w' \
    -o "$bin/$2.new" "$3")
  mv "$bin/$2.new" "$bin/$2"
  echo "$sum" >"$bin/.$2.sum"
}

mkdir -p "$bin"
"$here/../../../hack/cluster/build.sh" kube cluster
build kwok kwok sigs.k8s.io/kwok/cmd/kwok
build ideal bench-ideal .

# The operator in the environment of its image: Debian's optimized Python, and only its own packages. The workspace also
# has Dynamo's packages, some of which kopf imports.
info "installing the operator's environment"
UV_PROJECT_ENVIRONMENT=$cache/operator "$bin/uv" sync --quiet --frozen --python /usr/bin/python3 --package vllmendpoint-operator \
  --no-dev --compile-bytecode
