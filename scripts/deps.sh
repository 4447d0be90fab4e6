#!/usr/bin/env bash
# Installs what a make target needs and prints nothing when it is all there.
#
#   deps.sh WHAT...      WHAT: build (Go), net (iproute2, nftables, iptables, strace), race (a C compiler), awscli,
#                        vm (QEMU, and the kernel of the package VM_KERNEL, unpacked in the cache and not installed)
#   deps.sh --go-path    print the directory of a Go that is new enough, if this script has brought one
#   deps.sh --kernel     print the directory of that kernel
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
wanted_go=$(awk '$1 == "go" { print $2 }' "$root/go.mod")
vm_kernel=${VM_KERNEL:-linux-image-cloud-amd64}
kernel_dir=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vpccni/kernel-$vm_kernel
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

if [ "${1:-}" = --kernel ]; then
  echo "$kernel_dir"
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
    vm) need qemu-system-x86_64 qemu-system-x86 ;;
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

# A meta-package names the kernel's own, which is unpacked: installing it would make an initramfs and change the boot menu.
if [[ " $* " == *" vm "* ]] && [ ! -e "$kernel_dir/vmlinuz" ]; then
  echo "fetching $vm_kernel"
  apt-cache show "$vm_kernel" >/dev/null 2>&1 || apt-get update >/dev/null
  image=$(apt-cache depends "$vm_kernel" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  fetch() { (cd "$tmp" && apt-get -o APT::Sandbox::User=root download "${image:-$vm_kernel}") >"$tmp/log" 2>&1; }
  # The list of packages may be older than the archive.
  fetch || { apt-get update >/dev/null && fetch; } || { tail -20 "$tmp/log" >&2; exit 1; }
  dpkg -x "$tmp"/*.deb "$tmp/root"
  rm -rf "$kernel_dir" && mkdir -p "$kernel_dir/lib"
  modules=$(echo "$tmp"/root/lib/modules/* "$tmp"/root/usr/lib/modules/* | tr ' ' '\n' | grep -v '\*' | head -1)
  cp -r "${modules%/*}" "$kernel_dir/lib/"
  mv "$tmp"/root/boot/vmlinuz-* "$kernel_dir/vmlinuz"
fi
