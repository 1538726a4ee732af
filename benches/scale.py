#!/usr/bin/env python3
"""How rrlb does with 10,000 backends in 1,000 upstreams and 10,000 routes, beside one of each.

Measures: the time from start to ready, a reload (by the admin API), a change of a backend (by the admin API, until the
answer is there), CPU time and latency of a request, at rest and while changes and reloads go on. Needs `wrk`. Then, with
9,900 overrides in the state file: a change, what a reader of the API waits meanwhile, and what the disk alone needs for a
file of that size.
Usage: scale.py [--binaries RRLB ORIGIN] [--seconds N] [--changes RRLB …: only the latter, of these binaries]
"""

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "compare"))
import measure  # noqa: E402
import run  # noqa: E402

UPSTREAMS, EACH, ROUTES = 1000, 10, 10_000
OVERRIDES = 9_900
PORT, METRICS = 15_310, 15_390


def config(folder, upstreams, each, routes, origin):
    """The last route, a prefix of /, goes to the first upstream, whose first backends are the origin's."""
    lines = [
        "version: 1",
        "threads: 1",
        f"upgrade_sock: {folder}/up/upgrade.sock",
        f"state_file: {folder}/state.json",
        f"admin: {{ socket: {folder}/admin.sock }}",
        f"listeners: [{{ address: 127.0.0.1:{PORT} }}]",
        f"metrics: {{ address: 127.0.0.1:{METRICS} }}",
        "upstreams:",
    ]
    for number in range(upstreams):
        first = number == 0
        backends = []
        for index in range(each):
            port = origin + index if first and index < 3 else 20_000 + (number * each + index) % 40_000
            host = "127.0.0.1" if first and index < 3 else f"127.{1 + number // 250}.{number % 250}.{1 + index}"
            backends.append(f"{{ id: b{index}, address: '{host}:{port}', weight: {1 if index < 3 or not first else 0} }}")
        lines.append(f"  u{number}: {{ backends: [{', '.join(backends)}] }}")
    lines.append("routes:")
    for number in range(routes - 1):
        lines.append(f"  - {{ match: {{ host: h{number % 2000}.test, path: /p{number}/ }}, upstream: u{number % upstreams} }}")
    lines.append("  - { upstream: u0 }")
    file = folder / "rrlb.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


class Unix(socket.socket):
    """A connection to the admin API."""

    def __init__(self, path):
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connect(str(path))
        self.rest = b""

    def ask(self, method, target, body=None):
        text = json.dumps(body).encode() if body is not None else b""
        kind = "Content-Type: application/json\r\n" if text else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: rrlb\r\n{kind}Content-Length: {len(text)}\r\n\r\n"
        self.sendall(head.encode() + text)
        while b"\r\n\r\n" not in self.rest:
            self.more()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        length = int(length[1]) if length else 0
        while len(self.rest) < length:
            self.more()
        body, self.rest = self.rest[:length], self.rest[length:]
        status = int(head.split(b" ", 2)[1])
        if not 200 <= status < 300:
            sys.exit(f"{method} {target}: {status} {body.decode()}")
        return body

    def more(self):
        part = self.recv(65536)
        if not part:
            sys.exit("the admin API closed the connection")
        self.rest += part


def ready(child):
    for _ in range(3000):
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", METRICS), timeout=1) as stream:
                stream.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if stream.recv(100).startswith(b"HTTP/1.1 200"):
                    return
        if child.poll() is not None:
            sys.exit("rrlb ended at its start")
        time.sleep(0.002)
    sys.exit("not ready")


def wrk(child, seconds):
    """CPU microseconds per request, p50 and p99 in milliseconds."""
    command = ["wrk", "-t1", "-c8", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{PORT}/"]
    before = measure.cpu_seconds(child.pid)
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    cpu = measure.cpu_seconds(child.pid) - before
    requests = int(re.search(r"(\d+) requests in", out)[1])
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    at = {}
    for share in ("50", "99"):
        found = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", out)
        at[share] = float(found[1]) * scale[found[2]]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    if failed:
        print(f"  {failed[1]} answers were no success", file=sys.stderr)
    return cpu / requests * 1e6, at["50"], at["99"]


def scale(machine, rrlb, name, upstreams, each, routes, seconds):
    folder = Path(tempfile.mkdtemp(dir=machine.folder))
    (folder / "up").mkdir(mode=0o700)
    file = config(folder, upstreams, each, routes, machine.ports)
    began = time.monotonic()
    child = machine.spawn([rrlb, "-c", str(file)])
    ready(child)
    start = time.monotonic() - began
    api = Unix(folder / "admin.sock")
    reloads, changes = [], []
    for _ in range(5):
        began = time.monotonic()
        api.ask("POST", "/v1/config/reload")
        reloads.append(time.monotonic() - began)
    for turn in range(50):
        began = time.monotonic()
        api.ask("PATCH", f"/v1/upstreams/u{upstreams - 1}/backends/b0", {"weight": 2 + turn % 3})
        changes.append((time.monotonic() - began) * 1e3)
    rest = wrk(child, seconds)
    going = threading.Event()

    def churn():
        other, turn = Unix(folder / "admin.sock"), 0
        while not going.is_set():
            other.ask("PATCH", f"/v1/upstreams/u{turn % upstreams}/backends/b0", {"weight": 1 + turn % 3})
            turn += 1
            going.wait(0.02)

    thread = threading.Thread(target=churn)
    thread.start()
    busy = wrk(child, seconds)
    going.set()
    thread.join()
    print(
        f"{name:28} start {start:5.2f} s  reload {statistics.median(reloads):5.2f} s (most {max(reloads):.2f})  "
        f"change {statistics.median(changes):5.2f} ms (most {max(changes):.2f})\n"
        f"{'':28} request at rest {rest[0]:5.1f} us CPU, p50 {rest[1]:.2f} ms, p99 {rest[2]:.2f} ms; "
        f"with 50 changes a second {busy[0]:5.1f} us CPU, p50 {busy[1]:.2f} ms, p99 {busy[2]:.2f} ms; "
        f"{measure.rss(child.pid) >> 20} MiB"
    )
    machine.stop([child])
    return rest[0]


def backend(number, index):
    return f"127.{1 + number // 250}.{number % 250}.{1 + index % 250}:{20_000 + (number * EACH + index) % 40_000}"


def state(upstreams, each):
    """A state file with an override of every backend's weight, or of as many backends that only it knows."""
    said = {"weight": 7, "who": "uid 1000", "why": "rolled back for the night", "at": 1_700_000_000}
    all = {}
    for number in range(upstreams):
        for index in range(each):
            base = {"address": backend(number, index), "weight": 1, "source": "file"}
            one = {"address": backend(number, index), **said}
            all.setdefault(f"u{number}", {})[f"b{index}"] = {**one, "base": base} if upstreams > 1 else one
    return {"format": "rrlb-state", "version": 1, "upstreams": all}


def timed(work):
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1e3


def disk(file, size):
    """What the state file's way to the disk takes at least, in milliseconds."""
    text = b"x" * size
    other = file.with_name("bare.tmp")

    def write():
        with open(other, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(other, file.with_name("bare"))
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    return statistics.median(timed(write) for _ in range(30))


def changes(machine, binary, name, upstreams, each):
    """A change with so many overrides there, and what a reader waits at rest and meanwhile."""
    folder = Path(tempfile.mkdtemp(dir=machine.folder))
    (folder / "up").mkdir(mode=0o700)
    file = folder / "rrlb.yaml"
    one_only = upstreams == 1
    backends = lambda number: ", ".join(
        f"{{ id: b{index}, address: '{backend(number, index)}' }}" for index in range(1 if one_only else each)
    )
    file.write_text(
        f"version: 1\nthreads: 1\nupgrade_sock: {folder}/up/upgrade.sock\nstate_file: {folder}/state.json\n"
        f"admin: {{ socket: {folder}/admin.sock }}\nlisteners: [{{ address: 127.0.0.1:{PORT} }}]\n"
        f"metrics: {{ address: 127.0.0.1:{METRICS} }}\nupstreams:\n"
        + "".join(f"  u{number}: {{ backends: [{backends(number)}] }}\n" for number in range(upstreams))
        + "routes: [{ upstream: u0 }]\n"
    )
    (folder / "state.json").write_text(json.dumps(state(upstreams, each)))
    child = machine.spawn([binary, "-c", str(file)])
    ready(child)
    api = Unix(folder / "admin.sock")
    last = f"/v1/upstreams/u{upstreams - 1}/backends"
    change = lambda turn: api.ask("PATCH", f"{last}/b5", {"weight": 2 + turn % 3})
    read = lambda: reader.ask("GET", f"{last}/b1")
    for turn in range(10):
        change(turn)
    before = measure.cpu_seconds(child.pid)
    took = sorted(timed(lambda: change(turn)) for turn in range(100))
    cpu = (measure.cpu_seconds(child.pid) - before) * 1000 / len(took)
    reader = Unix(folder / "admin.sock")
    rest = sorted(timed(read) for _ in range(300))
    going, reads = threading.Event(), []

    def look():
        while not going.is_set():
            reads.append(timed(read))

    thread = threading.Thread(target=look)
    thread.start()
    for turn in range(50):
        change(turn)
    going.set()
    thread.join()
    reads.sort()
    size = (folder / "state.json").stat().st_size
    at = lambda times, share: times[min(len(times) - 1, int(len(times) * share))]
    print(
        f"{name:34} change {at(took, 0.5):6.2f} ms (p90 {at(took, 0.9):.2f}, most {took[-1]:.2f}; {cpu:.1f} ms of CPU); "
        f"a read at rest {at(rest, 0.5):.2f} ms (p99 {at(rest, 0.99):.2f}), "
        f"meanwhile {at(reads, 0.5):.2f} ms (p99 {at(reads, 0.99):.2f}); "
        f"state file {size / 1e6:.2f} MB, {disk(folder / 'state.json', size):.2f} ms for the disk alone"
    )
    machine.stop([child])
    return at(took, 0.5)


def all_changes(machine, binary):
    changes(machine, binary, f"{OVERRIDES} overrides, {OVERRIDES // EACH} upstreams", OVERRIDES // EACH, EACH)
    changes(machine, binary, f"{OVERRIDES} overrides, 1 upstream", 1, OVERRIDES)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", nargs=2, metavar=("RRLB", "ORIGIN"), help="measure these, build nothing")
    parser.add_argument("--seconds", type=int, default=4, help="per load (default 4)")
    parser.add_argument("--changes", nargs="+", metavar="RRLB", help="measure only changes with many overrides, of these")
    arguments = parser.parse_args()
    if arguments.changes:
        with measure.Machine(Path(arguments.changes[0]).parent) as machine:
            for binary in arguments.changes:
                print(binary)
                all_changes(machine, binary)
        return
    rrlb, origin = arguments.binaries or (run.cargo(run.ROOT)["rrlb"], run.cargo(run.HERE / "tools")["origin"])
    with measure.Machine(Path(origin).parent) as machine:
        machine.start_origins(3, len(machine.cores))
        few = scale(machine, rrlb, "1 upstream, 3 backends", 1, 3, 1, arguments.seconds)
        many = scale(machine, rrlb, f"{UPSTREAMS} x {EACH}, {ROUTES} routes", UPSTREAMS, EACH, ROUTES, arguments.seconds)
        print(f"ratio of CPU per request, many over few: {many / few:.3f}")
        all_changes(machine, rrlb)


if __name__ == "__main__":
    main()
