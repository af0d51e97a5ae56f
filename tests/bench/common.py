"""What the benches share: the release binary, ports, a system in a directory of its own, and honest ratios."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "tests" / "peers"


def binary():
    path = Path(os.environ.get("MESHCTL_BIN", REPOSITORY / "target" / "release" / "meshctl"))
    if not path.is_file():
        sys.exit(f"{path} is not there: build it with `cargo build --release -p meshctl`, or name another in MESHCTL_BIN")
    return str(path)


def free_ports(count):
    """Ports that are free now, below those that the kernel gives to clients: a connection to one of these may meet itself."""
    ports, held = iter(random.sample(range(10_000, 20_000), 10_000)), []
    while len(held) < count:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", next(ports)))
            held.append(one)
        except OSError:
            one.close()
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def raise_descriptors():
    """As many open files as the machine allows; thousands of connections need thousands."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class System:
    """meshctl in a temporary state directory; leaving the `with` block ends all of it."""

    def __enter__(self):
        self.binary = binary()
        self.folder = Path(tempfile.mkdtemp(prefix="meshctl-bench-"))
        self.state = self.folder / "state"
        self.state.mkdir()
        self.environment = {**os.environ, "MESHCTL_STATE_DIR": str(self.state)}
        return self

    def __exit__(self, *_):
        self.run("down", "--yes", check=False)
        label = f"MESHCTL_STATE_DIR={self.state}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and label in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass  # It ended by itself, or is somebody else's.
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *args, check=True):
        done = subprocess.run([self.binary, *args], env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            sys.exit(f"meshctl {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def apply(self, topology):
        """Applies a topology, given as the value that the file holds; returns the seconds until all was ready."""
        file = self.folder / "topology.yaml"
        file.write_text(json.dumps(topology))  # JSON is YAML.
        began = time.monotonic()
        self.run("apply", str(file), "--yes")
        return time.monotonic() - began

    def status(self):
        return json.loads(self.run("status", "-o", "json"))


def spread(values):
    """`1.23 (1.10 to 1.31)`: the median with the least and the greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def machine():
    """One line that says where the numbers were made."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{os.cpu_count()} cores, {model}, Linux {os.uname().release}, meshctl {revision}"
