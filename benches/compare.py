#!/usr/bin/env python3
"""rrlb beside a bare Pingora proxy: CPU time per request and memory per idle connection, in one run.

Needs Rust, a C compiler, Linux, Python 3.8 or newer and wrk (Debian: apt-get install wrk). Uses 127.0.0.1 only, ends by
itself, and leaves no process behind. What the figures mean is in README.md beside this file.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TICK = os.sysconf("SC_CLK_TCK")
REQUEST = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"
ORIGINS = [19101, 19102, 19103]
RRLB, RRLB_TLS, RRLB_METRICS, BARE = 19110, 19111, 19112, 19120

CONFIG = """\
version: 1
threads: {threads}
upgrade_sock: {folder}/up/upgrade.sock
certificates:
  demo: {{ cert: {root}/conf/tls/demo.pem, key: {root}/conf/tls/demo.key }}
listeners:
  - address: 127.0.0.1:{port}
    limits: {{ idle_timeout: 10m }}
  - address: 127.0.0.1:{tls}
    tls: {{ certificates: [demo] }}
    limits: {{ idle_timeout: 10m }}
upstreams:
  app:
    backends: [{backends}]
    health_check: {{ type: tcp, interval: 1s }}
routes:
  - upstream: app
access_log: {{ path: {folder}/access.log, format: json }}
metrics: {{ address: 127.0.0.1:{metrics} }}
"""


def build():
    """Builds both packages and returns the paths of rrlb, bare and origin."""
    found = {}
    for folder in (ROOT, HERE / "bare"):
        command = ["cargo", "build", "--release", "--locked", "--bins", "--message-format=json-render-diagnostics"]
        print("building", folder, file=sys.stderr)
        out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
        for line in out.splitlines():
            message = json.loads(line)
            if message.get("executable"):
                found[message["target"]["name"]] = message["executable"]
    return found["rrlb"], found["bare"], found["origin"]


def cpu_seconds(pid):
    """User and system time of all threads, the ended ones included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(pid):
    """Resident bytes, counted exactly (VmRSS is a rounded sum of per-thread counts)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Rss")


def one_request(stream):
    stream.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\nHello, world!" not in answer:
        part = stream.recv(4096)
        if not part:
            raise RuntimeError(f"the connection ended: {answer[:200]!r}")
        answer += part
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not a 200: {answer[:200]!r}")


def wait_until_served(port):
    for _ in range(200):
        with contextlib.suppress(OSError, RuntimeError):
            with socket.create_connection(("127.0.0.1", port), timeout=2) as stream:
                return one_request(stream)
        time.sleep(0.05)
    sys.exit(f"nothing serves on port {port}")


class Bench:
    """The processes of one run; all are ended when it is closed."""

    def __init__(self, binaries, pin, keep_log):
        self.rrlb, self.bare, self.origin = binaries
        self.pin = pin
        self.folder = Path(tempfile.mkdtemp(prefix="rrlb-bench-"))
        (self.folder / "up").mkdir(mode=0o700)
        self.children = []
        self.keep_log = keep_log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(self.children)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, command, core=None):
        if core is not None and self.pin:
            command = ["taskset", "-c", str(core), *command]
        log = open(self.folder / "stderr.log", "ab")
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        log.close()
        self.children.append(child)
        return child

    def stop(self, children):
        for child in list(children):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)  # rrlb and Pingora leave at once
        for child in list(children):
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.children = [child for child in self.children if child.poll() is None]

    def start_origin(self):
        origin = self.start([self.origin, *(f"127.0.0.1:{port}" for port in ORIGINS)], core=1)
        for port in ORIGINS:
            wait_until_served(port)
        return origin

    def start_proxies(self, threads, only=None):
        backends = [f"127.0.0.1:{port}" for port in ORIGINS]
        config = CONFIG.format(
            threads=threads,
            folder=self.folder,
            root=ROOT,
            port=RRLB,
            tls=RRLB_TLS,
            metrics=RRLB_METRICS,
            backends=", ".join(backends),
        )
        file = self.folder / "rrlb.yaml"
        file.write_text(config)
        proxies = {
            "rrlb": lambda: (self.start([self.rrlb, "-c", str(file)], core=0), RRLB),
            "bare": lambda: (self.start([self.bare, f"127.0.0.1:{BARE}", str(threads), *backends], core=0), BARE),
        }
        started = {name: start() for name, start in proxies.items() if only in (None, name)}
        for _, port in started.values():
            wait_until_served(port)
        return started

    def load(self, pid, port, seconds, connections):
        """One round of wrk. Returns CPU microseconds per request and requests per second."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]
        if self.pin:
            command = ["taskset", "-c", "1", *command]
        before = cpu_seconds(pid)
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds + 30)
        used = cpu_seconds(pid) - before
        requests = re.search(r"(\d+) requests in ([\d.]+)s", run.stdout)
        if run.returncode != 0 or not requests or "Non-2xx" in run.stdout or "Socket errors" in run.stdout:
            sys.exit(f"wrk failed or saw errors:\n{run.stdout}")
        count = int(requests[1])
        log = self.folder / "access.log"
        if log.exists() and not self.keep_log:
            os.truncate(log, 0)
        return used * 1e6 / count, count / float(requests[2])


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def compare_cpu(bench, threads, rounds, seconds, connections):
    proxies = bench.start_proxies(threads)
    for child, port in proxies.values():  # warm: pools filled, memory touched
        bench.load(child.pid, port, 1, connections)
    figures = {name: [] for name in proxies}
    print(f"\n{threads} worker(s), {connections} connections, {rounds} rounds of {seconds} s, "
          f"{'proxy on core 0, wrk and origin on core 1' if bench.pin else 'not pinned'}")
    print(f"{'round':>5}  {'rrlb us/req':>11} {'req/s':>8}  {'bare us/req':>11} {'req/s':>8}  {'ratio':>6}")
    for number in range(rounds):
        order = list(proxies) if number % 2 == 0 else list(reversed(proxies))
        for name in order:
            child, port = proxies[name]
            figures[name].append(bench.load(child.pid, port, seconds, connections))
        (rrlb_cpu, rrlb_rate), (bare_cpu, bare_rate) = figures["rrlb"][-1], figures["bare"][-1]
        print(f"{number + 1:>5}  {rrlb_cpu:>11.2f} {rrlb_rate:>8.0f}  {bare_cpu:>11.2f} {bare_rate:>8.0f}  "
              f"{rrlb_cpu / bare_cpu:>6.3f}", flush=True)
    for name, values in figures.items():
        print(f"{name}: {spread([cpu for cpu, _ in values])} us/req, {spread([rate for _, rate in values], 0)} req/s")
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(figures["rrlb"], figures["bare"])]
    print(f"ratio rrlb/bare, CPU per request: {spread(ratios, 3)}")
    bench.stop([child for child, _ in proxies.values()])


def idle_bytes(pid, connect, counts):
    """Bytes per connection at each of `counts` (ascending) connections that have done one request and now wait."""
    results, streams = [], []
    with contextlib.ExitStack() as stack:
        # The first ones pay for pools and for tables that grow once.
        for _ in range(50):
            stream = stack.enter_context(connect())
            one_request(stream)
        time.sleep(0.5)
        before = rss(pid)
        for count in counts:
            while len(streams) < count:
                stream = stack.enter_context(connect())
                one_request(stream)
                streams.append(stream)
            time.sleep(1)
            results.append((count, (rss(pid) - before) / count))
    return results


def compare_idle(bench, counts, tls_count):
    plain = lambda port: lambda: socket.create_connection(("127.0.0.1", port), timeout=10)
    print("\nbytes of resident memory per idle keep-alive connection that has done one request, 1 worker")
    figures = {}
    for name in ("rrlb", "bare"):
        ((child, port),) = bench.start_proxies(1, only=name).values()
        figures[name] = idle_bytes(child.pid, plain(port), counts)
        bench.stop([child])
    for (count, ours), (_, theirs) in zip(figures["rrlb"], figures["bare"]):
        print(f"{count:>6} plain connections: rrlb {ours:,.0f}, bare {theirs:,.0f}, ratio 1/{theirs / ours:.0f}")
    if tls_count:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        ((child, _),) = bench.start_proxies(1, only="rrlb").values()
        connect = lambda: context.wrap_socket(plain(RRLB_TLS)(), server_hostname="bench.test")
        ((count, ours),) = idle_bytes(child.pid, connect, [tls_count])
        print(f"{count:>6} TLS connections:   rrlb {ours:,.0f}")
        bench.stop([child])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of each proxy, per number of workers (default 6)")
    parser.add_argument("--seconds", type=int, default=4, help="per round (default 4)")
    parser.add_argument("--connections", type=int, default=16, help="of wrk (default 16)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="numbers of workers (default 1 2)")
    parser.add_argument("--idle", type=int, nargs="*", default=[2000, 10000], help="idle connections (default 2000 10000)")
    parser.add_argument("--tls-idle", type=int, default=2000, help="idle TLS connections, 0 for none (default 2000)")
    parser.add_argument("--keep-log", action="store_true", help="do not empty the access log between rounds")
    parser.add_argument("--binaries", nargs=3, metavar=("RRLB", "BARE", "ORIGIN"), help="measure these, build nothing")
    arguments = parser.parse_args()

    if not shutil.which("wrk"):
        sys.exit("wrk is missing; on Debian: apt-get install wrk")
    most = max([*arguments.idle, arguments.tls_idle, 0]) + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most:
        sys.exit(f"{most} open files are needed, and the limit is {hard}; try --idle 2000, or raise it (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    cores = len(os.sched_getaffinity(0))
    binaries = arguments.binaries or build()
    print(f"{cores} cores, load {os.getloadavg()[0]:.2f}, {os.uname().release}")

    for threads in arguments.workers:
        pin = threads == 1 and cores >= 2 and shutil.which("taskset") is not None
        with Bench(binaries, pin, arguments.keep_log) as bench:
            bench.start_origin()
            compare_cpu(bench, threads, arguments.rounds, arguments.seconds, arguments.connections)
    if arguments.idle or arguments.tls_idle:
        with Bench(binaries, False, arguments.keep_log) as bench:
            bench.start_origin()
            compare_idle(bench, sorted(arguments.idle), arguments.tls_idle)


if __name__ == "__main__":
    main()
