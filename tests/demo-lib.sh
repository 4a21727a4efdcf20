# shellcheck shell=bash
# What the demonstrations share (source it): a directory that goes with them, and how they tell what they do.
#
# Sets $guest, where the guests are, and $home, the directory. Whoever sources it defines `leave`, which ends what runs.

guest=${CKVMM_BUILD:-$top/build}/guest
home=$(mktemp -d "${TMPDIR:-/tmp}/ckvmm-demo.XXXXXX")
export XDG_RUNTIME_DIR=$home
limit=180

finish() {
  trap - EXIT INT TERM
  leave
  wait 2>/dev/null || true
  rm -rf "$home"
}
trap finish EXIT
trap 'finish; exit 130' INT TERM

bold='' plain=''
[ ! -t 1 ] || bold=$'\033[1m' plain=$'\033[0m'
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
tell() { printf '  %s\n' "$@"; }
show() { sed 's/^/    | /'; }
give_up() {
  printf '\n%s: %s\n' "${0##*/}" "$*" >&2
  find "$home" \( -name '*.out' -o -name '*.err' -o -name output -o -name console.log \) -exec tail -v -n 20 {} + >&2 || true
  exit 1
}

# await PID FILE PATTERN WHAT: until a line of FILE matches, while the process lives.
await() {
  local ends=$((SECONDS + limit))
  until grep -qaE "$3" "$2" 2>/dev/null; do
    kill -0 "$1" 2>/dev/null || give_up "ckvmm ended while waiting for $4"
    [ "$SECONDS" -lt "$ends" ] || give_up "no $4 within $limit s"
    sleep 0.1
  done
}
