# What the scripts of real servers have in common. Each is `tests/peers/NAME.sh VERB`:
#   install           makes the program available (as root, through apt); does nothing where it is there already
#   start FOLDER …    starts a server whose files are in FOLDER and returns at once; its pid is in FOLDER/pid
#   ready FOLDER      returns when the server answers, or fails after 30 s with its log
#   stop FOLDER       ends it by its pid
# Servers listen on 127.0.0.1 only. Nothing is written into the checkout.
set -euo pipefail

need() { # PROGRAM PACKAGE: installs PACKAGE where PROGRAM is missing
  if command -v "$1" >/dev/null; then return; fi
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "$1 is missing, and installing $2 needs root" >&2; return 1; }
    as_root=(sudo)
  fi
  # Debian starts what it installs; here every server is started by whoever uses it.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod +x "$policy"
    made=1
  fi
  local status=0
  { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 ||
    { "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null; }; } || status=$?
  if [ -n "$made" ]; then "${as_root[@]}" rm -f "$policy"; fi
  return "$status"
}

ready_on() { # FOLDER PORT: returns when the port accepts connections
  local tries=0
  until (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$(cat "$1/pid")" 2>/dev/null; then
      echo "no answer on 127.0.0.1:$2; the log says:" >&2
      tail -n 20 "$1/log" >&2 || true
      return 1
    fi
    sleep 0.05
  done
}

stop_by_pid() { # FOLDER: asks the server to end and returns when it has
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
}
