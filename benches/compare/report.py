"""Results as Markdown tables."""

import os
import statistics
from pathlib import Path

from rows import IDLE, ROWS

middle = statistics.median


def number(value):
    """Three figures, more where the number has them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    return f"{number(middle(values))} ({number(min(values))}–{number(max(values))})"


def machine(cores):
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    flags = "virtual machine" if "hypervisor" in Path("/proc/cpuinfo").read_text() else "hardware"
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return {"cpu": model, "kind": flags, "cores": len(cores), "memory": f"{memory} GiB",
            "kernel": f"{os.uname().sysname} {os.uname().release}", "congestion": congestion(), "load": round(os.getloadavg()[0], 2)}


def congestion():
    """The TCP congestion control that all proxies use."""
    file = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return file.read_text().strip() if file.exists() else "unknown"


def best(figures):
    """The better of nginx and HAProxy in a row, by its median."""
    there = [name for name in ("nginx", "HAProxy") if figures.get(name)]
    return min(there, key=lambda name: middle([one["cpu"] for one in figures[name]]), default=None)


def ratios(figures, name, other):
    """Ratios of CPU time per request in the same round."""
    return [mine["cpu"] / theirs["cpu"] for mine, theirs in zip(figures[name], figures[other]) if theirs["cpu"]]


def table(head, lines):
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def by_row(result, names, cell, rows=None):
    lines = []
    for row in rows or ROWS:
        figures = result["rows"].get(row.name)
        if figures:
            lines.append([row.title, *(cell(figures, name) if figures.get(name) else "–" for name in names)])
    return table(["", *names], lines)


def ratio_cell(figures, name):
    other = best(figures)
    if other is None:
        return "–"
    values = ratios(figures, name, other)
    text = f"{middle(values):.2f} ({min(values):.2f}–{max(values):.2f})"
    return f"**{text}**" if name.startswith("rrlb") and middle(values) > 0.9 else text


def latency_table(result, names):
    figures = result["rows"]["latency"]
    lines = []
    for name in names:
        if figures.get(name):
            values = [[one[key] for one in figures[name]] for key in ("p50", "p90", "p99", "p999", "max", "cpu")]
            late = sum(one["unfinished"] for one in figures[name])
            lines.append([name, *(spread(value) for value in values), str(late)])
    return table(["", "p50", "p90", "p99", "p99.9", "longest", "CPU per request", "not answered"], lines)


def idle_table(result, names):
    lines = []
    for row, title, *_ in IDLE:
        found = result["idle"].get(row, {})
        for count in sorted({count for one in found.values() for count in one}, key=int):
            cells = [f"{found[name][count]:,.0f}" if count in found.get(name, {}) else "–" for name in names]
            lines.append([f"{title}, {int(count):,}", *cells])
    return table(["", *names], lines)


def markdown(result):
    names = list(result["versions"])
    rounds = [one for figures in result["rows"].values() for values in figures.values() for one in values]
    foreign = [one["foreign"] for one in rounds]
    host = result["machine"]
    versions = "; ".join(f"{name} {version}".strip() for name, version in result["versions"].items() if version)
    parts = [
        f"`{result['command'].strip()}`, {result['minutes']} minutes: {result['rounds']} rounds of {result['seconds']} s of "
        f"each proxy in each row.\n",
        f"Machine: {host['cpu']} ({host['kind']}), {host['cores']} cores, {host['memory']}, {host['kernel']}, TCP {host['congestion']}. {versions}.\n",
    ]
    if foreign:
        parts.append(f"Noise: other processes used {number(middle(foreign))} cores in the median round and "
                     f"{number(max(foreign))} in the worst; load average {host['load']} when it began.\n")
    for name, reason in result["missing"].items():
        parts.append(f"Not in this run: {name} ({reason}).\n")
    closed = [row for row in ROWS if row.name != "latency"]
    if any(row.name in result["rows"] for row in closed):
        cpu = lambda figures, name: spread([one["cpu"] for one in figures[name]])
        rate = lambda figures, name: f"{middle([one['rate'] for one in figures[name]]):,.0f}"
        parts += [
            "### CPU time per request\n",
            "Microseconds, user and system, of all processes of the proxy: median (lowest–highest).\n",
            by_row(result, names, cpu, closed),
            "### Against the better of nginx and HAProxy\n",
            "CPU time per request over that of the one of the two with the lower median in that row, in the same round: median "
            "(lowest–highest). Bold: rrlb above 0.90.\n",
            by_row(result, names, ratio_cell, closed),
            "### Requests a second\n",
            "Medians, as fast as answers come. Load and origins share the other core and often are the limit.\n",
            by_row(result, names, rate, closed),
        ]
        shakes = [row for row in ROWS if row.name in ("tls-full", "tls-resumed") and row.name in result["rows"]]
        if shakes:
            per = lambda figures, name: f"{1e6 / middle([one['cpu'] for one in figures[name]]):,.0f}"
            parts += ["### New TLS connections per CPU second\n", "Each with one GET of 13 B.\n",
                      by_row(result, names, per, shakes)]
    if result["rows"].get("latency"):
        parts += [
            "### Latency in the open loop\n",
            f"{result['rate']:,} requests a second on 64 connections, in microseconds from the moment each was due: median of the "
            "rounds (lowest–highest).\n",
            latency_table(result, names),
        ]
    if result["idle"]:
        parts += ["### Bytes per idle connection\n", "Resident memory of the proxy, one worker.\n", idle_table(result, names)]
    failed = [f"{name} in {row}: {error}" for row, one in result["failures"].items() for name, error in one.items()]
    if failed:
        parts.append("Failed: " + "; ".join(failed) + ".\n")
    if result["not run"]:
        parts.append("Not run, since the time was over: " + ", ".join(result["not run"]) + ".\n")
    return "\n".join(parts)
