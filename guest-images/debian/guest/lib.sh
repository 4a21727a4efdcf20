# What init and the jobs share (sourced, first of all). The console is standard output.
set -fu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

# param NAME [DEFAULT]: sets $value to that of ckvmm.NAME= on the kernel's command line; the last one counts.
read -r cmdline </proc/cmdline
param() {
  value=${2-}
  for word in $cmdline; do
    case $word in "ckvmm.$1="*) value=${word#*=} ;; esac
  done
}

# say WORDS: one line for whoever watches the console, in one write, so that lines of several jobs do not mix.
say() {
  echo "CKVMM $*"
}

fail() {
  say "error $job: $*"
  exit 1
}

# uptime: sets $uptime to the seconds of CLOCK_BOOTTIME since boot.
uptime() {
  read -r uptime word </proc/uptime
}

# random BYTES: hexadecimal
random() {
  head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

# bytes_from SEED BYTES: a stream that depends on nothing else: the decimal numbers from SEED on, a line each. The host
# can make the same to compare.
bytes_from() {
  seq "$1" 999999999999 | head -c "$2"
}
