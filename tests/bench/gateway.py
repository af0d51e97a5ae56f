#!/usr/bin/env python3
"""The gateway beside nginx and HAProxy: one origin (nginx), reached directly and through each proxy in alternation.

    cargo build --release -p meshctl && tests/peers/install && tests/bench/gateway.py

Every round measures all four at every number of connections, in an order that rotates; what is printed is the median over
the rounds, and for the comparisons the median of the ratios of each round. The generator is wrk, so this is a closed loop:
the percentiles are those of a saturated machine. A measurement in which the origin counts other requests than the client,
or in which a request failed, is told as such.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import urllib.request
from pathlib import Path

import common

TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")
UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}


def processes(root):
    """`root` and all its descendants."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def ticks(roots):
    """User and system time of all processes beneath `roots`."""
    total = 0
    for pid in {pid for root in roots for pid in processes(root)}:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total


def busy():
    """Time that the machine's processors spent on anything."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


def served(origin):
    """The requests that the origin has seen, this one included."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{origin}/counters", timeout=10).read().decode()
    return int(text.splitlines()[2].split()[2])


def measure(port, origin, roots, connections, seconds):
    seen, cpu, machine = served(origin), ticks(roots), busy()
    command = ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    output = subprocess.run([*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True).stdout
    cpu, machine, seen = ticks(roots) - cpu, busy() - machine, served(origin) - seen - 1
    completed = int(re.search(r"(\d+) requests in", output)[1])
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", output).groups()
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = (int(bad[1]) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    # When wrk stops, each of its connections may have one request under way that the origin has counted already.
    honest = completed - failed <= seen <= completed + connections
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        "p99": float(value) * UNITS[unit],
        "cpu": cpu * TICK_US / completed,
        "machine": machine * TICK_US / completed,
        "failed": failed,
        "note": "" if honest else f"the origin counted {seen} requests, the client {completed}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    parser.add_argument("--connections", type=lambda text: [int(part) for part in text.split(",")], default=[64, 1000, 8000])
    args = parser.parse_args()
    descriptors = common.raise_descriptors()
    if max(args.connections) * 2 + 1000 > descriptors:
        sys.exit(f"{max(args.connections)} connections need more than the {descriptors} open files that a process may have")
    print(common.machine())
    print(f"{args.rounds} rounds of {args.seconds} s, rotating; wrk -t2, closed loop")

    origin, gateway, nginx, haproxy = common.free_ports(4)
    with common.System() as system:
        folder = system.folder / "origin"
        folder.mkdir()
        conf = subprocess.run([peer("nginx"), "conf", folder, str(origin), "origin"], capture_output=True, text=True, check=True)
        (folder / "nginx.conf").write_text(conf.stdout)
        system.apply({
            "providers": {"gateway": {"embedded": {"listen": f"127.0.0.1:{gateway}"}}},
            "services": {
                "origin": {
                    "command": ["nginx", "-e", f"{folder}/log", "-p", f"{folder}", "-c", f"{folder}/nginx.conf"],
                    "port": origin,
                }
            },
            "routes": [{"path": "/", "to": "origin"}],
            # 8,000 connections are 8,000 requests at once, which the default bulkhead of 1024 and 256 waiting would refuse; and
            # the peers wait for as long as it takes.
            "defaults": {"bulkhead": {"concurrency": 20000}, "deadline": "10s", "attemptTimeout": "10s"},
        })
        peers = {"nginx": (nginx, ["proxy"]), "haproxy": (haproxy, [])}
        started = []
        try:
            for name, (port, role) in peers.items():
                started.append(name)
                subprocess.run([peer(name), "start", system.folder / name, str(port), *role, str(origin)], check=True)
                subprocess.run([peer(name), "ready", system.folder / name], check=True)
            pid = {name: int((system.folder / name / "pid").read_text()) for name in peers}
            targets = {
                "direct": (origin, []),
                "meshctl": (gateway, [one["pid"] for one in system.status()["gateways"]]),
                "nginx": (nginx, [pid["nginx"]]),
                "haproxy": (haproxy, [pid["haproxy"]]),
            }
            report(compare(targets, origin, args))
        finally:
            for name in started:
                subprocess.run([peer(name), "stop", system.folder / name], check=False)


def peer(name):
    return str(common.PEERS / f"{name}.sh")


def compare(targets, origin, args):
    """Measurements by number of connections and target, one for each round."""
    results = {count: {name: [] for name in targets} for count in args.connections}
    names = list(targets)
    for number in range(args.rounds):
        turn = number % len(names)
        for count in args.connections:
            for name in names[turn:] + names[:turn]:
                port, roots = targets[name]
                results[count][name].append(measure(port, origin, roots, count, args.seconds))
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)
    return results


def report(results):
    for count, by_name in results.items():
        print(f"\n{count} connections: medians")
        print(f"{'':10}{'requests/s':>12}{'p99 ms':>10}{'proxy CPU us':>14}{'added CPU us':>14}{'failed':>8}")
        direct = by_name["direct"]
        for name, rounds in by_name.items():
            middle = {key: statistics.median(one[key] for one in rounds) for key in ("rate", "p99", "cpu")}
            added = statistics.median(one["machine"] - base["machine"] for one, base in zip(rounds, direct))
            failed = sum(one["failed"] for one in rounds)
            cpu = ["", ""] if name == "direct" else [f"{middle['cpu']:.1f}", f"{added:.1f}"]
            print(f"{name:10}{middle['rate']:>12.0f}{middle['p99']:>10.1f}{cpu[0]:>14}{cpu[1]:>14}{failed:>8}")
            for note in filter(None, (one["note"] for one in rounds)):
                print(f"  INVALID {name}: {note}")
        for peer in ("nginx", "haproxy"):
            pairs = list(zip(by_name["meshctl"], by_name[peer]))
            ratio = {key: [mine[key] / max(theirs[key], 1e-9) for mine, theirs in pairs] for key in ("rate", "p99", "cpu")}
            print(
                f"meshctl / {peer}: throughput {common.spread(ratio['rate'])}, p99 {common.spread(ratio['p99'])}, "
                f"CPU per request {common.spread(ratio['cpu'])}"
            )


main()
