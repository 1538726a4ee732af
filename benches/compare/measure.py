"""Processes and what they cost: starting and ending them, CPU time, memory, and one measured round of load."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from peers import Place

TICK = os.sysconf("SC_CLK_TCK")
PORTS = range(17000, 30000, 100)  # where ports are looked for: below those that the kernel gives to clients
REQUEST = b"GET /13 HTTP/1.1\r\nHost: www.example.com\r\n\r\n"


def heed_interrupts():
    """Whoever started this run in the background may have had interrupts ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_ports(count):
    """The first of `count` ports in a row that nobody has."""
    for first in PORTS:
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    one = stack.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", port))
                return first
            except OSError:
                continue
    raise SystemExit(f"no {count} free ports in a row between {PORTS.start} and {PORTS.stop}")


class Failed(Exception):
    """What one proxy could not do; the run goes on without it."""


def family(pid):
    """A process and all that descend from it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid):
    """User and system time of a process and its descendants, ended threads included, to 10 ms each."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def thread_seconds(pid):
    """The same for each living thread, to the nanosecond, where the kernel counts it."""
    found = {}
    for one in family(pid):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found[task] = int(Path(f"/proc/{one}/task/{task}/schedstat").read_text().split()[0]) / 1e9
    return found


class Clock:
    """CPU time of a process from here on. To the nanosecond; to ticks where a thread has ended meanwhile."""

    def __init__(self, pid):
        self.pid, self.ticks, self.threads = pid, cpu_seconds(pid), thread_seconds(pid)

    def used(self):
        now, ticks = thread_seconds(self.pid), cpu_seconds(self.pid) - self.ticks
        if not now or not set(self.threads) <= set(now):
            return ticks
        return sum(value - self.threads.get(task, 0) for task, value in now.items())


def rss(pid):
    """Resident bytes of a process and its descendants, counted exactly (VmRSS is a rounded sum of per-thread counts)."""
    total = 0
    for one in family(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


def busy_seconds():
    """CPU time of the whole machine."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def wait_until_served(port, child=None, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if child is not None and child.poll() is not None:
            raise Failed(f"ended at its start with {child.returncode}")
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", port), timeout=2) as stream:
                stream.sendall(REQUEST)
                if stream.recv(4096).startswith(b"HTTP/1.1 200"):
                    return
        time.sleep(0.05)
    raise Failed(f"nothing serves on port {port}")


@dataclass
class Running:
    """A started proxy."""

    peer: object
    child: subprocess.Popen
    place: object

    @property
    def pid(self):
        return self.child.pid


class Machine:
    """All processes of one run, and which cores they have; closing it ends them."""

    def __init__(self, tools):
        self.tools = Path(tools)
        self.folder = Path(tempfile.mkdtemp(prefix="rrlb-compare-"))
        self.children = []
        self.cores = sorted(os.sched_getaffinity(0))
        self.ports = free_ports(1200)  # origins, and from the thousandth on the proxies, ten apart
        self.origin = None
        self.backends = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(list(self.children))
        shutil.rmtree(self.folder, ignore_errors=True)

    def proxy_cores(self, workers):
        """Cores for the proxies, where as many are left for load and origins; else none are pinned."""
        return self.cores[:workers] if shutil.which("taskset") and len(self.cores) >= 2 * workers else None

    def pinned(self, command, cores):
        return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command

    def spawn(self, command, cores=None, env=None, out=None, **more):
        with open(self.folder / "stderr.log", "ab") as log:
            child = subprocess.Popen(
                self.pinned([str(word) for word in command], cores),
                stdin=more.pop("stdin", subprocess.DEVNULL),
                stdout=out or subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **(env or {})},
                preexec_fn=heed_interrupts,
                **more,
            )
        self.children.append(child)
        return child

    def stop(self, children):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)  # all of them leave at once
        for child in children:
            below = [pid for pid in family(child.pid) if pid != child.pid]
            try:
                child.wait(4)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                for pid in below:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
        self.children = [child for child in self.children if child not in children]

    def others(self, workers):
        mine = self.proxy_cores(workers)
        return [core for core in self.cores if core not in mine] if mine else None

    def start_origins(self, backends, workers):
        if self.origin:
            self.stop([self.origin])
        self.origin = self.spawn([self.tools / "origin", self.ports, backends], self.others(workers))
        self.backends = backends
        wait_until_served(self.ports, self.origin)

    def start_proxy(self, peer, number, setup, certificate):
        folder = self.folder / f"{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        port = self.ports + 1000 + 10 * number
        backends = [f"127.0.0.1:{self.ports + n}" for n in range(setup.backends)]
        place = Place(folder, port, port + 1, port + 2, backends, *certificate)
        command, env = peer.start(setup, place)
        # HAProxy logs to its standard output; opened to append, so that emptying it leaves no hole.
        out = open(folder / "access.log", "ab") if setup.log else None
        child = self.spawn(command, self.proxy_cores(setup.workers), env, out, cwd=folder)
        running = Running(peer, child, place)
        try:
            wait_until_served(port, child)
        except Failed as error:
            self.stop([child])
            raise Failed(f"{error}: {self.last_error()}") from None
        return running

    def load(self, running, workers, mode, options, seconds):
        """One round. Gives CPU microseconds per request, requests a second, latencies and the noise."""
        tls = mode == "h2" or options.get("tls")
        words = {**options, "address": f"127.0.0.1:{running.place.tls if tls else running.place.plain}", "seconds": seconds}
        words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in words.items()]
        child = self.spawn([self.tools / "load", mode, *words], self.others(workers),
                           out=subprocess.PIPE, stdin=subprocess.PIPE)
        try:
            self.line(child, 30)
            ours = (child.pid, self.origin.pid, running.pid)
            clocks, began = [Clock(pid) for pid in ours], (busy_seconds(), time.monotonic())
            child.stdin.write(b"\n")
            child.stdin.flush()
            result = json.loads(self.line(child, seconds * 3 + 45))
            used = [clock.used() for clock in clocks]
            busy, elapsed = busy_seconds() - began[0], time.monotonic() - began[1]
            child.stdin.close()
        finally:
            self.stop([child])
        if running.child.poll() is not None:
            raise Failed("the proxy has ended")
        requests = result["requests"] - result["unfinished"]
        if result["errors"] > requests / 1000 or not requests:
            raise Failed(f"{result['errors']} errors in {requests} requests: {result['error']}")
        if options.get("resume") and result["resumed"] < requests * 0.9:
            raise Failed(f"only {result['resumed']} of {requests} sessions were resumed")
        with contextlib.suppress(OSError):
            os.truncate(running.place.folder / "access.log", 0)
        return {
            "cpu": used[2] * 1e6 / requests,
            "rate": requests / result["seconds"],
            "foreign": max(0.0, (busy - sum(used)) / elapsed),
            **{key: result[key] for key in ("requests", "errors", "reconnects", "unfinished", "p50", "p90", "p99", "p999", "max")},
        }

    def idle(self, running, options, counts):
        """Bytes of resident memory per connection at each of `counts` that have done one request and now wait."""
        tls = options.get("tls") or options.get("streams")
        words = {**options, "address": f"127.0.0.1:{running.place.tls if tls else running.place.plain}",
                 "counts": ",".join(map(str, counts))}
        words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in words.items()]
        child = self.spawn([self.tools / "load", "idle", *words], out=subprocess.PIPE, stdin=subprocess.PIPE)
        results, before = {}, None
        try:
            for count in (0, *counts):
                self.line(child, 60 + count / 200)
                time.sleep(0.5)
                now = rss(running.pid)
                if before is None:
                    before = now
                else:
                    results[count] = (now - before) / count
                child.stdin.write(b"\n")
                child.stdin.flush()
        finally:
            self.stop([child])
        return results

    def line(self, child, seconds):
        """The next line a child says."""
        if not select.select([child.stdout], [], [], seconds)[0]:
            raise Failed(f"the load said nothing for {seconds:.0f} s")
        line = child.stdout.readline().decode().strip()
        if not line:
            child.wait(5)
            raise Failed(f"the load ended: {self.last_error()}")
        return line

    def last_error(self):
        """The last line that any process wrote to its standard error."""
        return (self.folder / "stderr.log").read_text(errors="replace").strip().rsplit("\n", 1)[-1]
