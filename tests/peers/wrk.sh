#!/usr/bin/env bash
# wrk, the load generator of the benches. It is no server: there is nothing to start.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  install) need wrk wrk ;;
  *) echo "usage: wrk.sh install" >&2; exit 2 ;;
esac
