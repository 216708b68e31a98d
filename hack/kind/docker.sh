#!/usr/bin/env bash
# Runs a Docker Engine of our own, for machines without one: Debian's packages, unpacked in the cache and not installed. It
# runs in its own network, mount and PID namespaces, with its own socket and data.
#   hack/kind/docker.sh up              starts it, if it does not run
#   hack/kind/docker.sh down [--purge]  stops it with all its containers; --purge also removes its images and the packages
#   hack/kind/docker.sh env             prints the variables with which `docker` and `kind` use it
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
dir=$cache/kind/docker
root=$dir/root
. "$here/../common.sh"

name=vllmendpoint-docker # of the network namespace and of the control groups
# The machine reaches published ports at the second address of the link; Docker's networks are in the pool.
link=vllmendpoint-d
link_host=10.98.0.1 link_docker=10.98.0.2
bridge=10.97.0.1/24 pool=10.97.128.0/17 networks=10.97.0.0/16

# Settings of the machine that the kubelet changes from inside of a node; `down` restores them.
settings=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu

unpack() {
  local packages=(docker.io containerd runc tini slirp4netns libslirp0 libdevmapper1.02.1 libglib2.0-0) tmp
  [[ -e $dir/.unpacked ]] && return
  [[ $(. /etc/os-release && echo "${VERSION_CODENAME:-}") == bookworm ]] || die "no Docker Engine: unpacking one needs Debian 12; start Docker instead"
  tmp=$(mktemp -d "$dir/packages.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$tmp'" EXIT
  watched "apt-get update" apt-get update
  watched "downloading ${packages[*]}" env -C "$tmp" apt-get -o APT::Sandbox::User=root download "${packages[@]}"
  rm -rf "$root"
  for package in "$tmp"/*.deb; do dpkg -x "$package" "$root"; done
  touch "$dir/.unpacked"
}

runs() { DOCKER_HOST=unix://$dir/docker.sock timeout 20 "$root/usr/bin/docker" info >/dev/null 2>&1; }

# The files that differ in the mount namespace, and then the engine, which is not process 1, because that process must reap.
# shellcheck disable=SC2016 # expanded in the namespaces
engine='
mount -t tmpfs tmpfs /run
mount --bind "$dir/resolv.conf" /etc/resolv.conf
exec "$root/usr/bin/tini-static" -s -- "$root/usr/sbin/dockerd" "$@"'

up() {
  local options=() until
  [[ $EUID == 0 ]] || die "no Docker Engine: running one of our own needs root; start Docker instead"
  mkdir -p "$dir"
  unpack
  if runs; then return; fi
  down
  [[ ! -e /run/netns/$name ]] || die "another cache's Docker runs on this machine, in the network namespace $name"
  info "starting Docker in namespaces of its own"
  for setting in "${settings[@]}"; do echo "$setting $(<"/proc/sys/$setting")"; done >"$dir/settings"
  ip netns add "$name"
  ip link add "$link" type veth peer name "$link" netns "$name"
  ip addr add "$link_host/30" dev "$link"
  ip link set "$link" up
  ip route add "$networks" via "$link_docker"
  ip -n "$name" addr add "$link_docker/30" dev "$link"
  ip -n "$name" link set "$link" up
  ip -n "$name" link set lo up

  # Access to the internet, without a change of the machine's network. 10.0.2.3 is its DNS server.
  LD_LIBRARY_PATH=$libraries setsid "$root/usr/bin/slirp4netns" --configure --mtu 65520 --disable-host-loopback \
    --netns-type path "/run/netns/$name" tap0 >"$dir/network.log" 2>&1 </dev/null 9>&- &
  echo $! >"$dir/network.pid"
  echo "nameserver 10.0.2.3" >"$dir/resolv.conf"

  if ! capable; then
    info "this machine lacks CAP_SYS_RESOURCE: containers run without it"
    options+=(--add-runtime "ours=$here/runtime" --default-runtime ours)
  fi
  export dir root VLLMENDPOINT_RUNC=$root/usr/sbin/runc LD_LIBRARY_PATH=$libraries
  # PATH has the engine's own containerd and runc first.
  PATH=$root/usr/bin:$root/usr/sbin:$PATH setsid nsenter "--net=/run/netns/$name" unshare --mount --pid --fork --kill-child --mount-proc \
    bash -c "$engine" dockerd --host "unix://$dir/docker.sock" --data-root "$dir/data" --exec-root "$dir/exec" \
    --pidfile "$dir/dockerd.pid" --bip "$bridge" --default-address-pool "base=$pool,size=24" --cgroup-parent "/$name" \
    --oom-score-adjust 0 "${options[@]}" >"$dir/docker.log" 2>&1 </dev/null 9>&- &
  echo $! >"$dir/engine.pid"
  until=$((SECONDS + 60))
  until runs; do
    kill -0 "$(<"$dir/engine.pid")" 2>/dev/null || { tail -n 20 "$dir/docker.log" >&2; die "Docker did not start; see $dir/docker.log"; }
    ((SECONDS < until)) || die "Docker does not answer after 60 s; see $dir/docker.log"
    sleep 0.2
  done
  info "Docker is running: $dir/docker.sock"
}

# CAP_SYS_RESOURCE is bit 24.
capable() { local set; set=$(awk '/CapBnd/ { print $2 }' /proc/self/status) && ((0x$set >> 24 & 1)); }

# A recorded process, unless its number belongs to another program by now.
recorded() {
  local pid
  [[ -e $dir/$1.pid ]] || return 0
  pid=$(<"$dir/$1.pid")
  grep -qa "$dir\|$name" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
  return 0
}

down() {
  local pid until
  # Docker stops its containers on SIGTERM. The end of tini, the first process of the PID namespace, ends all others.
  pid=$(recorded engine)
  if [[ -n $pid ]]; then
    info "stopping Docker and its containers"
    # shellcheck disable=SC2046 # one number for each child
    kill -TERM $(cat /proc/"$pid"/task/*/children) || true
    until=$((SECONDS + 30))
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < until)); do sleep 0.2; done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  pid=$(recorded network)
  [[ -z $pid ]] || kill "$pid" 2>/dev/null || true
  if [[ -e $dir/settings ]]; then while read -r setting value; do echo "$value" >"/proc/sys/$setting"; done <"$dir/settings"; fi
  rm -f "$dir"/*.pid "$dir/docker.sock" "$dir/settings"
  # Another cache may run an engine.
  [[ -z $(ip netns pids "$name" 2>/dev/null) ]] || return 0
  ip link delete "$link" 2>/dev/null || true
  ip netns delete "$name" 2>/dev/null || true
  until=$((SECONDS + 10))
  for group in /sys/fs/cgroup/*/"$name" /sys/fs/cgroup/"$name"; do
    while [[ -d $group ]] && ! find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && ((SECONDS < until)); do sleep 0.2; done
  done
}

case ${1:-} in
  up) mkdir -p "$dir"; locked "$dir/lock" 300; up ;;
  down)
    mkdir -p "$dir"
    locked "$dir/lock" 300
    down
    [[ ${2:-} != --purge ]] || rm -rf "$dir"
    ;;
  env)
    # shellcheck disable=SC2016 # expanded by the shell that evaluates it
    printf 'export DOCKER_HOST=unix://%s/docker.sock PATH=%s/usr/bin:$PATH\n' "$dir" "$root"
    ;;
  *) die "usage: docker.sh up|down [--purge]|env" ;;
esac
