#!/usr/bin/env python3
"""rrlb beside other proxies on the same work: CPU time per request, latency, throughput and memory, in one run.

Builds what is its own, takes what of the others is installed, and lists the rest as not found. What the figures mean is
in README.md beside this file. Uses 127.0.0.1 only, ends by itself, and leaves no process behind.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers  # noqa: E402
import report  # noqa: E402
from measure import Failed, Machine  # noqa: E402
from rows import IDLE, NAMES, ROWS  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OVERHEAD = 0.1  # seconds that a round takes beside its load


def cargo(folder):
    """Builds a package for release and gives its programs by name."""
    command = ["cargo", "build", "--release", "--locked", "--bins", "--message-format=json-render-diagnostics"]
    print("building", folder.relative_to(ROOT.parent), file=sys.stderr)
    out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {message["target"]["name"]: message["executable"] for message in messages if message.get("executable")}


def wanted(arguments, name):
    text = name.lower()
    return not arguments.peers or any(word.lower() in text.split() or word.lower() == text for word in arguments.peers)


def find_peers(arguments, given, folder):
    """The peers that can take part, and why the others cannot."""
    there, missing = [], {}

    def offer(name, make):
        if not wanted(arguments, name):
            return
        try:
            peer = make()
            if peer is None:
                missing[name] = "not found"
            else:
                peer.name = name
                there.append(peer)
        except (OSError, subprocess.CalledProcessError, Failed) as error:
            missing[name] = str(error)

    rrlb = {}
    for engine in ("lane", "exchange", "pingora"):
        def make(engine=engine):
            rrlb["path"] = rrlb.get("path") or given.get("rrlb") or cargo(ROOT)["rrlb"]
            peer = peers.Rrlb(rrlb["path"], engine)
            place = peers.Place(folder, 1, 2, 3, ["127.0.0.1:4"], *certificate())
            done = subprocess.run([rrlb["path"], "check", "-c", str(peer.config(peers.Setup(), place))],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0 and f"engine: {engine}" in done.stdout:
                raise Failed("this build has no such engine")
            if done.returncode != 0:
                raise Failed(done.stdout.strip())
            return peer
        offer(f"rrlb {engine}", make)
    offer("bare Pingora", lambda: peers.Bare(given.get("bare") or cargo(HERE.parent / "bare")["bare"]))
    for kind, program in ((peers.Nginx, "nginx"), (peers.Haproxy, "haproxy"), (peers.Caddy, "caddy"), (peers.Envoy, "envoy")):
        path = peers.which(program, given)
        offer(kind.name, lambda kind=kind, path=path: kind(path) if path else None)

    def balancer():
        if not shutil.which("go"):
            return None
        binary = folder / "balancer"
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=HERE / "go", check=True, env={
            **os.environ, "GOCACHE": str(folder / "go")})
        return peers.Go(str(binary))

    offer(peers.Go.name, balancer)
    offer(peers.Floor.name, lambda: peers.Floor(str(Path(given["tools"]) / "floor")))
    return there, missing


def certificate():
    return ROOT / "conf/tls/demo.pem", ROOT / "conf/tls/demo.key"


class Run:
    """One run of all rows that were chosen."""

    def __init__(self, machine, there, arguments, deadline):
        self.machine, self.there, self.arguments, self.deadline = machine, there, arguments, deadline
        self.rows, self.idle, self.failures, self.left = {}, {}, {}, []

    def fail(self, row, name, error):
        self.failures.setdefault(row, {})[name] = str(error)
        print(f"  {name}: {error}", file=sys.stderr)

    def start(self, setup, only=None):
        started = {}
        for number, peer in enumerate(self.there):
            if only in (None, peer.name) and (not setup.log or "log" in peer.features):
                try:
                    started[peer.name] = self.machine.start_proxy(peer, number, setup, certificate())
                except Failed as error:
                    self.fail("start", peer.name, error)
        return started

    def all_rows(self, rows, seconds, rounds):
        for setup in dict.fromkeys(row.setup for row in rows):
            mine = [row for row in rows if row.setup == setup]
            if time.monotonic() > self.deadline:
                self.left += [row.name for row in mine]
                continue
            self.machine.start_origins(setup.backends, setup.workers)
            started = self.start(setup)
            for row in mine:
                if time.monotonic() > self.deadline:
                    self.left.append(row.name)
                else:
                    self.row(row, started, seconds, rounds)
            self.machine.stop([running.child for running in started.values()])

    def row(self, row, started, seconds, rounds):
        """Rounds of all proxies, one after the other, another one first each time."""
        names = [name for name, running in started.items() if row.needs in running.peer.features]
        figures = {name: [] for name in names}
        options = dict(row.options)
        if row.name == "latency":
            options["rate"] = self.arguments.rate
        print(f"{row.title}", file=sys.stderr, flush=True)
        for number in range(-1, rounds):
            turn = max(number, 0) % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                if name in self.failures.get(row.name, {}):
                    continue
                try:  # the first round is to warm up: pools filled, memory touched
                    length = 0.2 if number < 0 else seconds
                    figures[name].append(self.machine.load(started[name], row.setup.workers, row.mode, options, length))
                    if number < 0:
                        figures[name].clear()
                except (Failed, ValueError, OSError) as error:
                    self.fail(row.name, name, error)
                    figures[name].clear()
        self.rows[row.name] = {name: rounds for name, rounds in figures.items() if rounds}
        for name, values in self.rows[row.name].items():
            cpu, rate = report.spread([one["cpu"] for one in values]), report.middle([one["rate"] for one in values])
            print(f"  {name:16} {cpu:>22} us CPU  {rate:>8.0f}/s", file=sys.stderr, flush=True)

    def all_idle(self, chosen):
        for name, title, options, needs in chosen:
            self.machine.start_origins(3, 1)
            for peer in self.there:
                if needs not in peer.features:
                    continue
                if time.monotonic() > self.deadline:
                    self.left.append(f"{name} of {peer.name}")
                    continue
                started = self.start(peers.Setup(), only=peer.name)
                for running in started.values():
                    try:
                        found = self.machine.idle(running, options, self.arguments.idle)
                        self.idle.setdefault(name, {})[peer.name] = found
                        told = ", ".join(f"{count}: {value:,.0f}" for count, value in found.items())
                        print(f"{name} {peer.name}: {told} bytes", file=sys.stderr, flush=True)
                    except (Failed, OSError) as error:
                        self.fail(name, peer.name, error)
                self.machine.stop([running.child for running in started.values()])


def fit(seconds, rounds, minutes, cells, fixed):
    """Shortens rounds until the whole fits; no round under 0.4 s, not fewer than 3."""
    room = minutes * 60 - fixed
    while cells and cells * rounds * (seconds + OVERHEAD) > room:
        if seconds > 0.4:
            seconds = max(0.4, seconds - 0.1)
        elif rounds > 3:
            rounds -= 1
        else:
            break
    return round(seconds, 2), rounds


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", metavar="ROW", help=f"only these: {' '.join(NAMES)}")
    parser.add_argument("--peers", nargs="*", metavar="WORD", help="only those whose name has one of these words, such as rrlb nginx go")
    parser.add_argument("--bin", action="append", default=[], metavar="NAME=PATH",
                        help="take this program: rrlb, bare, tools (a folder), nginx, haproxy, caddy, envoy")
    parser.add_argument("--rounds", type=int, default=7, help="of each proxy in each row (default 7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="per round (default 3)")
    parser.add_argument("--rate", type=int, default=5000, help="requests a second in the open loop (default 5000)")
    parser.add_argument("--idle", type=int, nargs="*", default=[1000, 10000], help="idle connections (default 1000 10000)")
    parser.add_argument("--minutes", type=float, default=60, help="rounds get shorter to fit in it; no row begins after it (default 60)")
    parser.add_argument("--quick", action="store_true", help="three rounds of 0.4 s, 1,000 idle connections: about five minutes")
    parser.add_argument("--out", type=Path, default=Path("compare-results"), help="folder of the results (default compare-results)")
    arguments = parser.parse_args()
    for name in arguments.rows or []:
        if name not in NAMES:
            parser.error(f"--rows: {name} is none of {' '.join(NAMES)}")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.idle = 3, 0.4, [1000]
    return arguments


def allow_files(most):
    """Raises the limit of open files, or says what would help."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most:
        sys.exit(f"{most} open files are needed, and the limit is {hard}; try --idle 1000, or raise it (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    given = dict(word.split("=", 1) for word in arguments.bin)
    allow_files(max([*arguments.idle, 1000]) + 4000)
    given["tools"] = given.get("tools") or str(Path(cargo(HERE / "tools")["load"]).parent)
    with Machine(given["tools"]) as machine:
        scratch = machine.folder / "build"
        scratch.mkdir()
        there, missing = find_peers(arguments, given, scratch)
        for name, reason in missing.items():
            print(f"not in this run: {name}: {reason}", file=sys.stderr)
        if not there:
            sys.exit("no proxy to measure")
        rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
        idle = [row for row in IDLE if not arguments.rows or row[0] in arguments.rows]
        idle = idle if arguments.idle else []
        cells = sum(len([peer for peer in there if row.needs in peer.features]) for row in rows)
        fixed = len(idle) * len(there) * (2 + sum(arguments.idle) / 1500) + cells * 0.4 + len({row.setup for row in rows}) * 8
        seconds, rounds = fit(arguments.seconds, arguments.rounds, arguments.minutes, cells, fixed)
        print(f"{len(there)} proxies, {rounds} rounds of {seconds} s, about "
              f"{(cells * rounds * (seconds + OVERHEAD) + fixed) / 60:.0f} minutes", file=sys.stderr)
        began = time.monotonic()
        run = Run(machine, there, arguments, began + arguments.minutes * 60)
        try:
            run.all_rows(rows, seconds, rounds)
            run.all_idle(idle)
        except KeyboardInterrupt:
            print("interrupted; what is there is written", file=sys.stderr)
        result = {
            "command": "benches/compare/run.py " + shlex.join(
                word for word in sys.argv[1:] if "=/" not in word and word != "--bin"),
            "machine": report.machine(machine.cores),
            "versions": {peer.name: peer.version() for peer in there},
            "missing": missing,
            "rounds": rounds,
            "seconds": seconds,
            "rate": arguments.rate,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "pinned": bool(machine.proxy_cores(1)),
            "rows": run.rows,
            "idle": run.idle,
            "failures": run.failures,
            "not run": run.left,
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = report.markdown(result)
    (arguments.out / "results.md").write_text(text)
    print(text)
    print(f"written: {arguments.out}/results.json, {arguments.out}/results.md", file=sys.stderr)


if __name__ == "__main__":
    main()
