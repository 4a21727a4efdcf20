# shellcheck shell=bash
# What the builders of images share (source it): messages, and Debian packages by name.
#
# Packages are fetched with apt, as root or not, and kept in build/debs/NAME/. They are unpacked, never installed, and
# an image is made from the same ones until UPDATE=1 asks for newer: a second `make images` needs no network. Nothing
# here changes the machine: where apt has no package lists (a fresh container) or outdated ones, private ones are
# fetched into build/apt/.

say() { printf '%s\n' "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# need TOOL PACKAGE: ends with the mend if a program is missing.
need() {
  command -v "$1" >/dev/null || die "the program $1 is missing; run tests/deps (package $2)"
}

# The checkout, and the folder for everything made from it (git-ignored).
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${CKVMM_BUILD:-$top/build}
# depmod, mke2fs and debugfs are not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# only_one: waits until no other builder works in this build folder. Held until this shell ends.
only_one() {
  mkdir -p "$build"
  exec {lock}>"$build/.lock"
  flock -n "$lock" || { say "waiting for another build in $build"; flock "$lock"; }
}

# fingerprint FILE...: one digest of their names (relative to the checkout) and contents.
fingerprint() {
  (cd "$top" && sha256sum -- "${@/#"$top/"/}") | sha256sum | cut -c1-64
}

# Builders run with the lock held, so package lists are fetched once and a package at most once a run.
apt_options=() apt_said=''
declare -A fresh=()

# apt_quietly DIR COMMAND...: apt-get in that folder; what it says is in $apt_said.
apt_quietly() {
  local dir=$1
  shift
  # Sandbox::User: as root, apt would warn that its user _apt may not write into our folder.
  apt_said=$(env -C "$dir" apt-get -q -o APT::Sandbox::User=root ${apt_options[@]+"${apt_options[@]}"} "$@" 2>&1)
}

private_lists() {
  local dir=$build/apt
  mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
  apt_options=(-o "Dir::State=$dir/state" -o "Dir::State::lists=$dir/state/lists" -o "Dir::Cache=$dir/cache"
    -o Dir::State::status=/var/lib/dpkg/status)
  say "fetching package lists into $dir (the machine's own are missing or outdated)"
  apt_quietly "$dir" update || die "apt-get update failed: $apt_said"
}

# package NAME: sets $deb to the path of its .deb, which is fetched if it is not here or if UPDATE=1.
package() {
  local name=$1 dir=$build/debs/$1 new found
  if [ ! -d "$dir" ] || { [ -n "${UPDATE:-}" ] && [ -z "${fresh[$name]:-}" ]; }; then
    command -v apt-get >/dev/null || die "package $name is fetched with apt-get, which this machine has not"
    say "fetching package $name"
    new=$build/debs/.$name.new
    rm -rf "$new"
    mkdir -p "$new"
    if ! apt_quietly "$new" download "$name"; then
      [ ${#apt_options[@]} -gt 0 ] || private_lists
      apt_quietly "$new" download "$name" || die "cannot fetch package $name: $apt_said"
    fi
    rm -rf "$dir"
    mv "$new" "$dir"
    fresh[$name]=1
  fi
  found=("$dir"/*.deb)
  deb=${found[0]}
  [ -s "$deb" ] || die "no package in $dir; remove that folder and try again"
}

# kernel_name cloud|generic: prints what this distribution calls that kernel's package.
kernel_name() {
  local like
  # shellcheck disable=SC1091
  like=$(. /etc/os-release 2>/dev/null && printf '%s' " ${ID:-} ${ID_LIKE:-} ") || like=
  case $1,$like in
    cloud,*' ubuntu '*) echo linux-image-virtual ;;
    generic,*' ubuntu '*) echo linux-image-generic ;;
    cloud,*) echo linux-image-cloud-amd64 ;;
    generic,*) echo linux-image-amd64 ;;
  esac
}

# kernel_packages NAME: sets $debs to the .deb files of a kernel, found by following NAME's dependencies. (Debian has
# kernel and modules in one package behind a meta-package, Ubuntu in two.)
kernel_packages() {
  local queue=("$1") seen=' ' name depends
  debs=()
  while [ ${#queue[@]} -gt 0 ]; do
    name=${queue[0]} queue=("${queue[@]:1}")
    case $seen in *" $name "*) continue ;; esac
    seen+="$name "
    package "$name"
    debs+=("$deb")
    depends=$(dpkg-deb -f "$deb" Depends | grep -oE '\blinux-(image|modules)-[^ ,|(]+') || depends=
    mapfile -t -O ${#queue[@]} queue <<<"$depends"
    [ -n "${queue[-1]:-}" ] || unset 'queue[-1]'
  done
}

# modules_in_order ROOT VERSION MODULE...: prints the paths of the module files to load, each after what it needs.
# A module that is built into the kernel, or that this kernel has not, is passed over.
modules_in_order() {
  local root=$1 version=$2 module
  shift 2
  for module; do
    modprobe -d "$root" -S "$version" --show-depends "$module" 2>/dev/null || true
  done | sed -n 's/^insmod \(.*\.ko[.a-z]*\) *$/\1/p' | awk '!seen[$0]++'
}

# copy_module FILE DIR: copies a module into DIR as plain .ko (busybox insmod reads no other) and prints its new name.
copy_module() {
  local name
  name=$(basename "$1")
  case $name in
    *.ko) cp "$1" "$2/$name" ;;
    *.ko.zst) name=${name%.zst}; zstd -dcq "$1" >"$2/$name" ;;
    *.ko.xz) name=${name%.xz}; xz -dc "$1" >"$2/$name" ;;
    *.ko.gz) name=${name%.gz}; gzip -dc "$1" >"$2/$name" ;;
    *) die "$1: a kernel module of unknown kind" ;;
  esac
  printf '%s\n' "$name"
}

# unpack_kernel DIR: unpacks $debs into DIR and makes the modules' index; sets $vmlinuz and $kernel_version.
unpack_kernel() {
  local dir=$1 one found
  rm -rf "$dir"
  mkdir -p "$dir"
  for one in "${debs[@]}"; do dpkg-deb -x "$one" "$dir"; done
  # Where /lib is a link to /usr/lib, packages say /usr/lib; depmod looks in /lib.
  [ -e "$dir/lib/modules" ] || { mkdir -p "$dir/lib" && ln -s ../usr/lib/modules "$dir/lib/modules"; }
  found=("$dir"/boot/vmlinuz-*)
  vmlinuz=${found[0]}
  [ -s "$vmlinuz" ] || die "no kernel in ${debs[*]}"
  kernel_version=${vmlinuz##*/vmlinuz-}
  depmod -b "$dir" "$kernel_version"
}
