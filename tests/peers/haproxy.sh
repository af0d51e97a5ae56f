#!/usr/bin/env bash
# HAProxy as a proxy.   haproxy.sh start FOLDER PORT UPSTREAM_PORT
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  install) need haproxy haproxy ;;
  start)
    folder=$2
    mkdir -p "$folder"
    # A connection of a client and one upstream each take a descriptor, and HAProxy refuses to start without enough.
    connections=$((($(ulimit -H -n) - 200) / 2))
    [ "$connections" -lt 20000 ] || connections=20000
    cat >"$folder/haproxy.cfg" <<CONF
global
  maxconn $connections
  nbthread $(nproc)
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend front
  bind 127.0.0.1:$3 backlog 16384
  default_backend origin
backend origin
  server origin 127.0.0.1:$4 maxconn $connections pool-max-conn 1024
CONF
    echo "$3" >"$folder/port"
    ulimit -n "$(ulimit -H -n)"
    haproxy -db -f "$folder/haproxy.cfg" >>"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    ;;
  ready) ready_on "$2" "$(cat "$2/port")" ;;
  stop) stop_by_pid "$2" ;;
  *) echo "usage: haproxy.sh install | start FOLDER PORT UPSTREAM_PORT | ready FOLDER | stop FOLDER" >&2; exit 2 ;;
esac
