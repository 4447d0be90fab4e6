#!/usr/bin/env bash
# Installs what a make target needs and prints nothing when it is all there.
#
#   deps.sh WHAT...      WHAT: build (Go), net (iproute2, nftables, iptables, strace), race (a C compiler), awscli
#   deps.sh --go-path    print the directory of a Go that is new enough, if this script has brought one
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
wanted_go=$(awk '$1 == "go" { print $2 }' "$root/go.mod")
own_go=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vpccni/go-$wanted_go

go_is_enough() { # PROGRAM: from 1.21 on, go fetches the toolchain that go.mod names by itself
  local v
  v=$(cd / && "$1" env GOVERSION 2>/dev/null) || return 1
  [[ $v =~ ^go1\.([0-9]+) ]] && (( BASH_REMATCH[1] >= 21 ))
}

if [ "${1:-}" = --go-path ]; then
  [ -x "$own_go/bin/go" ] && echo "$own_go/bin"
  exit 0
fi

packages=()
need() { # COMMAND PACKAGE...
  local command=$1
  shift
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || packages+=("$@")
}

for what in "$@"; do
  case $what in
    build) need git git ca-certificates; [ -x "$own_go/bin/go" ] || go_is_enough go || packages+=(golang-go ca-certificates) ;;
    net) need ip iproute2; need nft nftables; need iptables-legacy iptables; need strace strace ;;
    race) need gcc gcc libc6-dev ;;
    awscli) [ -x /usr/bin/aws ] || [ "${AWSCLI_UNAVAILABLE:-}" = 1 ] || packages+=(awscli) ;;
    *) echo "deps.sh: unknown: $what" >&2; exit 2 ;;
  esac
done

if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "missing Debian packages: ${packages[*]} (install them, or run as root once)" >&2
    exit 1
  fi
  echo "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 ||
    { tail -20 "$log" >&2; exit 1; }
  rm -f "$log"
fi

# Debian's own Go can be too old to fetch a newer one by itself, but it can download modules, and the Go toolchain is
# published as one. Modules carry no executable bits, hence the chmod.
if [[ " $* " == *" build "* ]] && [ ! -x "$own_go/bin/go" ] && ! go_is_enough go; then
  module=golang.org/toolchain@v0.0.1-go$wanted_go.linux-$(dpkg --print-architecture)
  echo "fetching Go $wanted_go"
  dir=$(cd / && GOFLAGS=-modcacherw go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mkdir -p "$(dirname "$own_go")"
  rm -rf "$own_go.tmp"
  cp -r "$dir" "$own_go.tmp"
  chmod +x "$own_go.tmp"/bin/* "$own_go.tmp"/pkg/tool/*/*
  mv "$own_go.tmp" "$own_go"
fi
