#!/usr/bin/env bash
# Sets up a development machine: a virtual environment with exactly the pinned versions, and the
# two programs that pip cannot bring: Mosquitto (the broker) and Chromium (for the browser tests).
# Usage: scripts/setup.sh VENV
set -euo pipefail
venv=${1:?usage: scripts/setup.sh VENV}
cd "$(dirname "$0")/.."

system_packages() {
  local missing=()
  command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
  command -v chromium >/dev/null || missing+=(chromium)
  [ ${#missing[@]} -eq 0 ] && return 0
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "setup: not root: please install yourself: ${missing[*]} (the hub falls back to its embedded broker)" >&2
      return 0
    fi
    sudo=sudo
  fi
  if ! command -v apt-get >/dev/null; then
    echo "setup: no apt-get here: please install yourself: ${missing[*]}" >&2
    return 0
  fi
  $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null \
    && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || { echo "setup: needs Python 3.11 or newer" >&2; exit 6; }

mkdir -p build
system_packages >build/setup-system.log 2>&1 &
system=$!

echo "setup: installing the pinned packages into $venv (several minutes the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable '.[dev]' 2> >(grep -v -e 'is ignored: it is neither' >&2)

if ! wait "$system"; then
  echo "setup: system packages could not be installed:" >&2
  tail -5 build/setup-system.log >&2
  exit 6
fi
grep '^setup:' build/setup-system.log >&2 || true
echo "setup: done"
