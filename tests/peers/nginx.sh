#!/usr/bin/env bash
# nginx as an origin or as a proxy.   nginx.sh start FOLDER PORT origin | nginx.sh start FOLDER PORT proxy UPSTREAM_PORT
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The origin answers a short text, and counts its requests at /counters; the proxy keeps its connections upstream, as a well-configured one does.
conf() { # FOLDER PORT ROLE [UPSTREAM_PORT]
  local folder=$1 port=$2 role=$3 upstream=${4:-}
  cat <<CONF
daemon off;
worker_processes auto;
pid $folder/nginx.pid;
error_log $folder/log;
events { worker_connections $(ulimit -H -n); }
http {
  access_log off;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  client_body_temp_path $folder/tmp; proxy_temp_path $folder/tmp; fastcgi_temp_path $folder/tmp;
  uwsgi_temp_path $folder/tmp; scgi_temp_path $folder/tmp;
CONF
  if [ "$role" = origin ]; then
    cat <<CONF
  server {
    listen 127.0.0.1:$port backlog=16384;
    location / { default_type text/plain; return 200 "hello from the origin\n"; }
    location = /counters { stub_status; }
  }
CONF
  else
    cat <<CONF
  upstream origin { server 127.0.0.1:$upstream; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 300s; }
  server {
    listen 127.0.0.1:$port backlog=16384;
    location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
CONF
  fi
  echo "}"
}

case ${1:-} in
  install) need nginx nginx-light ;;
  conf) # FOLDER PORT ROLE [UPSTREAM_PORT]: the configuration alone, for whoever starts nginx in another way
    mkdir -p "$2/tmp"
    conf "${@:2}"
    ;;
  start)
    folder=$2
    mkdir -p "$folder/tmp"
    conf "${@:2}" >"$folder/nginx.conf"
    echo "$3" >"$folder/port"
    ulimit -n "$(ulimit -H -n)"
    nginx -e "$folder/log" -p "$folder" -c "$folder/nginx.conf" >>"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    ;;
  ready) ready_on "$2" "$(cat "$2/port")" ;;
  stop) stop_by_pid "$2" ;;
  *) echo "usage: nginx.sh install | start FOLDER PORT origin | start FOLDER PORT proxy UPSTREAM_PORT | ready FOLDER | stop FOLDER" >&2; exit 2 ;;
esac
