#!/bin/sh
# Installs the AID Edge agent of device @DEVICE@ from this bundle. Needs no network.
# Running it again is harmless: state, releases and what serves now are kept.
set -eu

DEVICE='@DEVICE@'
FLEET='@FLEET@'
BUNDLE='@BUNDLE@'
ARCH='@ARCH@'
PYTHON_VERSION='@PYTHON@'
GLIBC='@GLIBC@'
DEFAULT_PREFIX='/opt/aid-agent'

prefix=$DEFAULT_PREFIX
python=${PYTHON:-}
service=auto
force=no

say() { printf '%s\n' "$*"; }
fail() {
  printf 'install.sh: error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}
usage() {
  cat <<EOF
Usage: sh install.sh [--prefix DIR] [--python PROGRAM] [--service | --no-service] [--force]

Installs the agent of device $DEVICE (fleet $FLEET): linux $ARCH, Python $PYTHON_VERSION.
  --prefix DIR      where to [$DEFAULT_PREFIX]
  --python PROGRAM  the Python $PYTHON_VERSION to use [the first found]
  --service         install and start the systemd service (the default for root with systemd,
                    where the prefix is $DEFAULT_PREFIX)
  --no-service      do not
  --force           replace the agent of another device in DIR
EOF
}

while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --python)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      if [ "$1" = --prefix ]; then prefix=$2; else python=$2; fi
      shift
      ;;
    --prefix=*) prefix=${1#--prefix=} ;;
    --python=*) python=${1#--python=} ;;
    --service) service=yes ;;
    --no-service) service=no ;;
    --force) force=yes ;;
    -h | --help) usage; exit 0 ;;
    *) printf 'install.sh: unknown option %s\n' "$1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# --- is this the machine that the bundle was made for? ---------------------------------------

[ "$(uname -s)" = Linux ] || fail "this bundle is for Linux; this is $(uname -s)"
machine=$(uname -m)
[ "$machine" = "$ARCH" ] || fail "this bundle is for $ARCH; this machine is $machine" \
  "Make one with a profile of this architecture: aid-edge profiles list"

facts() {
  "$1" -I -c 'import platform, struct, sys
name, version = platform.libc_ver()
print("%d.%d" % sys.version_info[:2], platform.python_implementation(), struct.calcsize("P") * 8,
      name or "other", version or "0.0")' 2>/dev/null
}

found=
if [ -n "$python" ]; then
  candidates=$python
else
  candidates="python$PYTHON_VERSION python3 python"
fi
for candidate in $candidates; do
  command -v "$candidate" >/dev/null 2>&1 || continue
  answer=$(facts "$candidate") || continue
  found="$found $candidate=${answer%% *}"
  case $answer in
    "$PYTHON_VERSION CPython "*) python=$(command -v "$candidate"); break ;;
    *) answer= ;;
  esac
done
[ -n "${answer:-}" ] || fail "no CPython $PYTHON_VERSION here (found:${found:- none})" \
  "Install it, name it with --python, or make a bundle from a profile with another platform.python."

# shellcheck disable=SC2086 # five words, on purpose
set -- $answer
bits=$3 libc=$4 libc_version=$5
case $ARCH in
  x86_64 | aarch64) need_bits=64 ;;
  *) need_bits=32 ;;
esac
[ "$bits" = "$need_bits" ] || fail "$python is a $bits-bit program; the bundle's wheels are $need_bits-bit" \
  "Use the $need_bits-bit edition of the operating system."
if [ "$GLIBC" != 0.0 ]; then
  [ "$libc" = glibc ] || fail "the bundle's wheels need glibc; this system has another C library"
  "$python" -I -c 'import sys
have, need = (tuple(map(int, v.split(".")[:2])) for v in sys.argv[1:])
sys.exit(have < need)' "$libc_version" "$GLIBC" \
    || fail "the bundle's wheels need glibc $GLIBC; this system has $libc_version" \
      "Use a newer release of the operating system, or older wheel_tags in the profile."
fi

# --- is the bundle whole? ---------------------------------------------------------------------

command -v sha256sum >/dev/null 2>&1 || fail "sha256sum is missing" "Install coreutils."
if ! wrong=$(cd "$here" && sha256sum -c SHA256SUMS 2>/dev/null); then
  wrong=$(printf '%s\n' "$wrong" | grep -v ': OK$' | head -n 3 | tr '\n' ' ')
  fail "the bundle is damaged or was altered: ${wrong:-SHA256SUMS is missing}" "Copy it again."
fi

# --- whose prefix is this? --------------------------------------------------------------------

umask 022
mkdir -p -- "$prefix" 2>/dev/null || fail "$prefix cannot be made" "Choose another with --prefix, or be root."
prefix=$(CDPATH='' cd -- "$prefix" && pwd)
[ -w "$prefix" ] || fail "$prefix is not writable" "Choose another with --prefix, or be root."
config=$prefix/home/config.toml
if [ -f "$config" ] && ! grep -qxF "device = \"$DEVICE\"" "$config"; then
  [ "$force" = yes ] || fail "$prefix already holds the agent of another device: $(grep '^device = ' "$config")" \
    "Choose another --prefix, or replace it with --force."
  # Another device's state would be refused by the hub: it belongs to another identity.
  rm -rf -- "$prefix/home"
fi

# --- the environment: built aside, whole, then switched to ------------------------------------

environment=$prefix/envs/$BUNDLE
if [ ! -f "$environment/.complete" ]; then
  say "installing the agent into $environment"
  rm -rf -- "$environment"
  mkdir -p -- "$prefix/envs"
  "$python" -I -m venv --without-pip "$environment" \
    || fail "$python cannot make a virtual environment" "On Debian: apt install python3-venv"
  pip=
  for file in "$here"/wheels/pip-*.whl; do pip=$file/pip; done
  "$environment/bin/python" -I "$pip" --isolated --disable-pip-version-check --no-cache-dir \
    install --quiet --no-index --no-deps --require-hashes \
    --find-links "$here/wheels" --requirement "$here/requirements.txt" \
    || fail "pip could not install the bundle's wheels (see above)"
  "$environment/bin/aid-agent" --help >/dev/null \
    || fail "the installed agent does not start (see above)"
  : >"$environment/.complete"
fi

# --- the agent's home -------------------------------------------------------------------------

place() { # FROM TO MODE: whole or not at all
  cp -- "$1" "$2.new" && chmod "$3" "$2.new" && mv -f -- "$2.new" "$2"
}
home=$prefix/home
(umask 077 && mkdir -p -- "$home/identity" "$home/state" "$home/run")
mkdir -p -- "$home/trust" "$home/releases" "$home/incoming" "$home/slots"
chmod 700 "$home/identity"
for name in identity/ca.pem identity/device.pem trust/root.json trust/director.json profile.toml config.toml; do
  place "$here/home/$name" "$home/$name" 644
done
(umask 077 && place "$here/home/identity/device.key" "$home/identity/device.key" 600)

previous=$(readlink "$prefix/venv" 2>/dev/null || true)
"$python" -I -c 'import os, sys
target, link = sys.argv[1:]
try:
    os.unlink(link + ".new")
except FileNotFoundError:
    pass
os.symlink(target, link + ".new")
os.replace(link + ".new", link)' "envs/$BUNDLE" "$prefix/venv"
# An agent that still runs from the previous environment keeps it until it is started anew.
for old in "$prefix"/envs/*; do
  [ "$old" = "$environment" ] || [ "$old" = "$prefix/$previous" ] || rm -rf -- "$old"
done

# --- the service ------------------------------------------------------------------------------

agent=$prefix/venv/bin/aid-agent
if [ "$service" = auto ]; then
  service=no
  [ "$(id -u)" != 0 ] || [ ! -d /run/systemd/system ] || [ "$prefix" != "$DEFAULT_PREFIX" ] || service=yes
fi
if [ "$service" = yes ]; then
  [ "$(id -u)" = 0 ] || fail "installing a service needs root" "Run with sudo, or with --no-service."
  [ -d /run/systemd/system ] || fail "systemd does not run here" "Use --no-service and start: $agent run --home $home"
  id aid-agent >/dev/null 2>&1 \
    || useradd --system --home-dir "$home" --no-create-home --shell /usr/sbin/nologin aid-agent
  chown -R aid-agent: "$home"
  sed "s|@PREFIX@|$prefix|g" "$here/aid-agent.service" >/etc/systemd/system/aid-agent.service.new
  mv -f /etc/systemd/system/aid-agent.service.new /etc/systemd/system/aid-agent.service
  systemctl daemon-reload
  systemctl enable --quiet aid-agent.service
  systemctl restart aid-agent.service
  say "the agent of $DEVICE runs as aid-agent.service (systemctl status aid-agent)"
else
  say "the agent of $DEVICE is installed; start it with:"
  say "  $agent run --home $home"
fi
