#!/usr/bin/env bash
# Apache Kafka, one node in KRaft mode, with its own tools.   kafka.sh start FOLDER PORT [PROPERTY=VALUE…]
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KAFKA=4.3.1
LIB=${XDG_CACHE_HOME:-$HOME/.cache}/meshctl-peers/kafka-$KAFKA

run() { exec java "${@:1:1}" -XX:TieredStopAtLevel=4 -cp "$LIB/*" "${@:2}"; }

case ${1:-} in
  install)
    if [ ! -e "$LIB/kafka_2.13-$KAFKA.jar" ]; then
      mkdir -p "$LIB"
      cat >"$LIB/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>it</groupId><artifactId>kafka-dist</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$KAFKA</version>
      <exclusions><exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId></exclusion></exclusions>
    </dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version></dependency>
  </dependencies>
</project>
POM
      mvn -q -B -f "$LIB/pom.xml" dependency:copy-dependencies -DoutputDirectory="$LIB" -DincludeScope=runtime
    fi
    ;;
  start)
    folder=$2 port=$3
    mkdir -p "$folder/data"
    echo "$port" >"$folder/port"
    {
      cat <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$folder/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=8388608
CONF
      printf '%s\n' "${@:4}"
    } >"$folder/kafka.properties"
    (run -Xmx256m kafka.tools.StorageTool format --ignore-formatted -t 4L6g3nShT-eMCtK--X86sw -c "$folder/kafka.properties") >"$folder/log" 2>&1
    (run -Xmx512m -Dlog4j2.level=WARN kafka.Kafka "$folder/kafka.properties") >>"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    ;;
  ready) ready_on "$2" "$(cat "$2/port")" ;;
  stop) kill -9 "$(cat "$2/pid")" 2>/dev/null || true ;;
  tool) # FOLDER CLASS ARGUMENT…: one of Kafka's own tools against the node
    port=$(cat "$2/port")
    run -Xmx256m "$3" --bootstrap-server "127.0.0.1:$port" "${@:4}"
    ;;
  *) echo "usage: kafka.sh install | start FOLDER PORT [PROPERTY=VALUE…] | ready FOLDER | stop FOLDER | tool FOLDER CLASS ARGUMENT…" >&2; exit 2 ;;
esac
