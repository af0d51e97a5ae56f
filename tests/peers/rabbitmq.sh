#!/usr/bin/env bash
# RabbitMQ, one node, and PerfTest, its load generator.   rabbitmq.sh start FOLDER PORT
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/meshctl-peers/rabbitmq
PERF_TEST=2.22.1

# Every node has a folder, a cookie and a port mapper of its own; all of it listens on the loopback address only.
in_node() { # FOLDER COMMAND…
  local folder=$1 port
  port=$(cat "$folder/port")
  shift
  env HOME="$folder" ERL_EPMD_PORT=$((port + 1)) ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_NODENAME="meshctl$port@localhost" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$port" \
    RABBITMQ_DIST_PORT=$((port + 2)) RABBITMQ_CTL_DIST_PORT_MIN=$((port + 3)) RABBITMQ_CTL_DIST_PORT_MAX=$((port + 9)) \
    RABBITMQ_BASE="$folder" RABBITMQ_MNESIA_BASE="$folder/mnesia" RABBITMQ_LOG_BASE="$folder/logs" \
    RABBITMQ_PID_FILE="$folder/node.pid" RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE="$folder/rabbitmq.conf" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$folder/enabled_plugins" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none" \
    "$@"
}

case ${1:-} in
  install)
    need rabbitmqctl rabbitmq-server
    if [ ! -e "$CACHE/perf-test-$PERF_TEST/perf-test-$PERF_TEST.jar" ]; then
      mkdir -p "$CACHE/perf-test-$PERF_TEST"
      cat >"$CACHE/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>it</groupId><artifactId>perf</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency><groupId>com.rabbitmq</groupId><artifactId>perf-test</artifactId><version>$PERF_TEST</version></dependency></dependencies>
</project>
POM
      mvn -q -B -f "$CACHE/pom.xml" dependency:copy-dependencies -DoutputDirectory="$CACHE/perf-test-$PERF_TEST" -DincludeScope=runtime
    fi
    ;;
  start)
    folder=$2
    mkdir -p "$folder/logs"
    echo "$3" >"$folder/port"
    printf MESHCTLTEST >"$folder/.erlang.cookie"
    chmod 400 "$folder/.erlang.cookie"
    echo '[].' >"$folder/enabled_plugins"
    echo 'listeners.tcp.local = 127.0.0.1:'"$3" >"$folder/rabbitmq.conf"
    in_node "$folder" setsid /usr/lib/rabbitmq/bin/rabbitmq-server >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    ;;
  ready)
    ready_on "$2" "$(cat "$2/port")"
    in_node "$2" /usr/lib/rabbitmq/bin/rabbitmqctl await_startup --timeout 90 >>"$2/log" 2>&1 || { tail -n 20 "$2/log" >&2; exit 1; }
    ;;
  stop)
    # The launcher, the runtime and the port mapper: whatever has this folder in its environment.
    for entry in /proc/[0-9]*; do
      { tr '\0' '\n' <"$entry/environ" | grep -qx "RABBITMQ_BASE=$2" && kill -9 "${entry#/proc/}"; } 2>/dev/null || true
    done
    ;;
  perf) # FOLDER ARGUMENT…: PerfTest against the node
    port=$(cat "$2/port")
    exec java -Xmx256m -cp "$CACHE/perf-test-$PERF_TEST/*" com.rabbitmq.perf.PerfTest --uri "amqp://127.0.0.1:$port" "${@:3}"
    ;;
  *) echo "usage: rabbitmq.sh install | start FOLDER PORT | ready FOLDER | stop FOLDER | perf FOLDER ARGUMENT…" >&2; exit 2 ;;
esac
