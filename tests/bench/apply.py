#!/usr/bin/env python3
"""Apply beside a bare fork/exec loop of the same program, and an apply that changes nothing.

    cargo build --release -p meshctl && tests/bench/apply.py

The first part starts N `hello` services, each with a port of its own: once by `meshctl apply` (daemon and gateway included,
until it returns), once by starting all the processes at once and waiting until each accepts a connection. Both in every
round, by turns first. The second part applies a file of many services again without a change.
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import time

import common


def with_meshctl(count):
    with common.System() as system:
        (gateway,) = common.free_ports(1)
        return system.apply({
            "providers": {"gateway": {"embedded": {"listen": f"127.0.0.1:{gateway}"}}},
            "services": {f"hello-{number}": {"builtin": "hello"} for number in range(count)},
        })


def bare(count):
    """Seconds until each of `count` processes, all started at once, accepts a connection."""
    program, ports = common.binary(), common.free_ports(count)
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.monotonic()
    pids = [
        os.posix_spawn(program, [program, "service", "hello"], {**os.environ, "PORT": str(port)}, file_actions=quiet)
        for port in ports
    ]
    try:
        waiting = ports
        while waiting:
            waiting = [port for port in waiting if not accepts(port)]
            if time.monotonic() - began > 60:
                sys.exit(f"{len(waiting)} of {count} processes do not listen after a minute")
            time.sleep(0.001)
        return time.monotonic() - began
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def accepts(port):
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def unchanged(count, times):
    with common.System() as system:
        (gateway,) = common.free_ports(1)
        topology = {
            "providers": {"gateway": {"embedded": {"listen": f"127.0.0.1:{gateway}"}}},
            "services": {
                f"sleep-{number}": {"command": ["sleep", "infinity"], "port": "none", "health": {"tcp": False}}
                for number in range(count)
            },
        }
        first = system.apply(topology)
        revision = system.status()["revision"]
        again = [system.apply(topology) for _ in range(times)]
        if system.status()["revision"] != revision:
            sys.exit("the applies that should change nothing made a new revision")
        return first, again


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--services", type=int, default=100, help="of the comparison with the bare loop")
    parser.add_argument("--unchanged", type=int, default=1000, help="services of the apply that changes nothing; 0 leaves it out")
    args = parser.parse_args()
    common.raise_descriptors()
    print(common.machine())

    measured = {with_meshctl: [], bare: []}
    for number in range(args.rounds):
        for way in sorted(measured, key=lambda way: way is bare, reverse=bool(number % 2)):
            measured[way].append(way(args.services))
    ratios = [mine / theirs for mine, theirs in zip(measured[with_meshctl], measured[bare])]
    mine, theirs = (statistics.median(measured[way]) for way in (with_meshctl, bare))
    print(
        f"{args.services} services ready: meshctl apply {mine:.2f} s, bare loop {theirs:.2f} s, "
        f"ratio {common.spread(ratios)} over {args.rounds} rounds"
    )
    if args.unchanged:
        first, again = unchanged(args.unchanged, args.rounds)
        print(f"{args.unchanged} services: first apply {first:.2f} s; applied again without a change {common.spread(again)} s")


main()
