#!/usr/bin/env python3
"""The embedded broker and the courier beside RabbitMQ (quorum queue, publisher confirms) and Kafka (acks=all), one node each.

    cargo build --release -p meshctl && cargo build --release -p meshctl-drivers --example broker_load
    tests/peers/rabbitmq.sh install && tests/peers/kafka.sh install && tests/bench/messages.py

Every peer is measured by its own generator: PerfTest, ProducerPerformance and EndToEndLatency. Messages have 100 bytes. meshctl and
RabbitMQ confirm a message when it is on the disk (fsync); Kafka as it comes confirms when it is in the page cache, and is
measured a second time with a flush for every batch; where its messages go one at a time its p99 is the queue inside its generator. What has no name of a peer beside it is meshctl alone: peers have no
courier. The order of the three rotates; what is printed is the median over the rounds.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common

LOAD = Path(os.environ.get("BROKER_LOAD", common.REPOSITORY / "target/release/examples/broker_load"))
SINK = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} location = /counters {{ stub_status; }} }}
}}
"""
POST = """wrk.method = "POST"
wrk.headers["content-type"] = "text/plain"
wrk.body = string.rep("x", 100)
"""


def output(*command, check=True, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=180, **more)
    if check and done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


class Peer:
    """A real server in a folder of its own, by its script in tests/peers."""

    def __init__(self, script, folder, *more):
        self.script, self.folder = common.PEERS / f"{script}.sh", folder
        folder.mkdir()
        (port,) = common.free_ports(1)
        output(self.script, "start", folder, port, *more, stdin=subprocess.DEVNULL)
        output(self.script, "ready", folder)

    def __call__(self, *arguments):
        return output(self.script, *arguments[:1], self.folder, *arguments[1:])

    def stop(self):
        output(self.script, "stop", self.folder, check=False)


class Broker:
    """`meshctl broker` by itself."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (port,) = common.free_ports(1)
        environment = {**os.environ, "MESHCTL_STATE_DIR": str(folder), "PORT": str(port)}
        self.process = subprocess.Popen([common.binary(), "broker"], env=environment, stderr=subprocess.DEVNULL)
        while True:
            try:
                probe = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
                probe.request("GET", "/healthz")
                if probe.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)

    def publish(self, messages, batch, in_flight):
        """Confirmed messages per second, and the 99th percentile of one publish in ms."""
        text = output(LOAD, self.folder, messages, batch, in_flight)
        rate = float(re.search(r"published (\d+)/s", text)[1])
        value, unit = re.search(r"p99 ([\d.]+)(µs|ms|s)", text).groups()
        consumed = float(re.search(r"consumed and settled (\d+)/s", text)[1])
        return rate, float(value) * {"µs": 0.001, "ms": 1, "s": 1000}[unit], consumed

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


def rabbit(peer, queue, confirm, seconds):
    text = peer("perf", "-x", 1, "-y", 0, "--quorum-queue", "--queue", queue, "--confirm", confirm, "--size", 100, "-z", seconds)
    rate = float(re.search(r"sending rate avg: (\d+) msg/s", text)[1])
    p99 = float(re.search(r"confirm latency min/median/75th/95th/99th [\d/]*?/(\d+) µs", text)[1]) / 1000
    return rate, p99


def kafka(peer, topic, records, *properties):
    text = peer("tool", "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", records, "--record-size",
                100, "--throughput", -1, "--command-property", "acks=all", *properties)
    last = [line for line in text.splitlines() if "records sent" in line and "99th" in line][-1]
    return float(re.search(r"([\d.]+) records/sec", last)[1]), float(re.search(r"(\d+) ms 99th", last)[1])


def brokers(folder, rounds, seconds):
    rabbitmq = Peer("rabbitmq", folder / "rabbitmq")
    cached = Peer("kafka", folder / "kafka")
    flushed = Peer("kafka", folder / "kafka-flush", "log.flush.interval.messages=1")
    ours = Broker(folder / "meshctl")
    batches = ["linger.ms=5", "batch.size=16384"]
    single = ["linger.ms=0", "batch.size=1", "max.in.flight.requests.per.connection=1"]
    seen = {}

    def note(what, who, values):
        seen.setdefault(what, {}).setdefault(who, []).append(values)

    try:
        for peer in (cached, flushed):
            peer("tool", "org.apache.kafka.tools.TopicCommand", "--create", "--topic", "load", "--partitions", 8)
        for turn in range(rounds):
            steps = [
                lambda: note("one at a time", "meshctl", ours.publish(2000, 1, 1)[:2]),
                lambda: note("one at a time", "RabbitMQ", rabbit(rabbitmq, f"one-{turn}", 1, seconds)),
                lambda: note("one at a time", "Kafka", kafka(cached, "load", 5000, *single)),
                lambda: note("one at a time", "Kafka, flushed", kafka(flushed, "load", 2000, *single)),
                lambda: note("singly, 100 under way", "meshctl", ours.publish(100_000, 1, 100)[:2]),
                lambda: note("singly, 100 under way", "RabbitMQ", rabbit(rabbitmq, f"hundred-{turn}", 100, seconds)),
                lambda: note("batches of 100", "meshctl", ours.publish(500_000, 100, 32)[:2]),
                lambda: note("batches of 100", "Kafka", kafka(cached, "load", 500_000, *batches)),
                lambda: note("batches of 100", "Kafka, flushed", kafka(flushed, "load", 200_000, *batches)),
                lambda: note("consumed and settled", "meshctl", (ours.publish(500_000, 100, 32)[2], float("nan"))),
            ]
            shift = turn * 3 % len(steps)
            for step in steps[shift:] + steps[:shift]:
                step()
        print("\ndurable publishes                     msg/s      p99 ms   meshctl/peer")
        for what, whos in seen.items():
            for who, values in whos.items():
                ratios = [a[0] / b[0] for a, b in zip(whos["meshctl"], values)]
                ratio = "" if who == "meshctl" else common.spread(ratios)
                rate, p99 = (statistics.median(column) for column in zip(*values))
                print(f"{what:24}{who:16}{rate:9.0f}{p99:10.2f}   {ratio}", flush=True)
        print("\nend to end at 500/s, median of p99 in ms")
        latencies = {"RabbitMQ": [], "Kafka": []}
        for turn in range(rounds):
            text = rabbitmq("perf", "-x", 1, "-y", 1, "--quorum-queue", "--queue", f"e2e-{turn}", "--confirm", 100, "--size", 100,
                            "--rate", 500, "-z", seconds)
            latencies["RabbitMQ"].append(float(re.search(r"consumer latency min/median/75th/95th/99th [\d/]*?/(\d+) µs", text)[1]) / 1000)
            text = cached("tool", "org.apache.kafka.tools.EndToEndLatency", "--topic", f"e2e-{turn}", "--num-records", 2000,
                          "--producer-acks", "all", "--record-size", 100)
            latencies["Kafka"].append(float(re.search(r"99th = (\d+)", text)[1]))
        for who, values in latencies.items():
            print(f"{who:40}{statistics.median(values):9.2f}", flush=True)
    finally:
        for peer in (rabbitmq, cached, flushed, ours):
            peer.stop()


def couriers(rounds, seconds, backlog):
    """Publishes by HTTP, deliveries by HTTP, all of meshctl in between: gateway, courier, broker, courier, gateway, nginx."""
    gateway, sink = common.free_ports(2)
    published, p99s, delivered, ends = [], [], [], []
    with common.System() as system:
        folder = system.folder / "sink"
        (folder / "tmp").mkdir(parents=True)
        (folder / "nginx.conf").write_text(SINK.format(folder=folder, port=sink))
        system.apply({
            "providers": {"gateway": {"embedded": {"listen": f"127.0.0.1:{gateway}"}}},
            "services": {
                "app": {"builtin": "hello", "publishes": ["jobs"]},
                "sink": {"command": ["nginx", "-e", f"{folder}/log", "-p", f"{folder}", "-c", f"{folder}/nginx.conf"], "port": sink},
            },
            "channels": {"jobs": {"subscriptions": {"sink": {"deliver": "/", "concurrency": 256}}}},
        })
        edges = json.loads(system.run("get", "edges", "-o", "json"))["items"]
        address = urllib.parse.urlsplit(next(edge["url"] for edge in edges if edge["name"] == "app:courier")).netloc
        path = "/channels/jobs/messages"
        script = system.folder / "post.lua"
        script.write_text(POST)

        def row():
            text = subprocess.run([system.binary, "ledger", "-o", "json"], env=system.environment, capture_output=True, text=True, check=False).stdout
            return json.loads(text)["items"][0]

        def settled():
            while (now := row())["inFlight"] or now["retrying"]:
                time.sleep(0.1)
            if not now["balanced"] or now["dead"]:
                sys.exit(f"the ledger is not balanced: {now}")
            return now

        def batch(_):
            connection = http.client.HTTPConnection(address, timeout=30)
            connection.request("POST", path, ('"' + "x" * 98 + '"\n') * 500, {"content-type": "application/x-ndjson"})
            answer = connection.getresponse()
            if answer.status != 202:
                sys.exit(f"a batch was answered {answer.status}: {answer.read()}")
            answer.read()
            connection.close()

        def paced(worker, until, pause):
            connection = http.client.HTTPConnection(address, timeout=30)
            while time.monotonic() < until:
                connection.request("POST", path, "x" * 100, {"content-type": "text/plain"})
                if connection.getresponse().read() is None:
                    return
                time.sleep(pause)

        for _ in range(rounds):
            system.run("channel", "pause", "jobs/sink", "--yes", "--reason", "bench")
            text = output("wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", "-s", script, f"http://{address}{path}")
            if "Non-2xx" in text:
                sys.exit(f"publishes were refused:\n{text}")
            published.append(float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]))
            value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
            p99s.append(float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit])
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(batch, range(backlog // 500)))
            before = row()
            began = time.monotonic()
            system.run("channel", "resume", "jobs/sink", "--yes", "--reason", "bench")
            after = settled()
            delivered.append((after["processed"] - before["processed"]) / (time.monotonic() - began))
            # A minute of quiet would be needed for the courier's percentiles to forget the backlog; its age says so.
            time.sleep(62)
            until = time.monotonic() + seconds
            with ThreadPoolExecutor(10) as pool:
                list(pool.map(lambda worker: paced(worker, until, 0.02), range(10)))
            settled()
            shown = json.loads(system.run("channel", "describe", "jobs", "-o", "json"))
            ends.append(shown["subscriptions"][0]["latencyP99Ms"])
    print("\nmeshctl from HTTP to HTTP (gateway, courier, broker, courier, gateway, nginx)")
    print(f"published, 64 connections, msg/s        {common.spread(published)}")
    print(f"  p99 ms                                {common.spread(p99s)}")
    print(f"delivered from a backlog, msg/s         {common.spread(delivered)}")
    print(f"end to end at about 450/s, p99 ms       {common.spread(ends)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement that is bounded by time")
    parser.add_argument("--backlog", type=int, default=100_000, help="messages that wait when delivery begins")
    parser.add_argument("--only", choices=["brokers", "couriers"])
    args = parser.parse_args()
    print(common.machine())
    print(f"{args.rounds} rounds, rotating; 100-byte messages", flush=True)
    if args.only != "couriers":
        if not LOAD.is_file():
            sys.exit(f"{LOAD} is not there: cargo build --release -p meshctl-drivers --example broker_load")
        with tempfile.TemporaryDirectory(prefix="meshctl-bench-") as folder:
            brokers(Path(folder), args.rounds, args.seconds)
    if args.only != "brokers":
        couriers(args.rounds, args.seconds, args.backlog)


main()
