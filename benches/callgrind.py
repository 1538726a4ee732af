"""Reads what callgrind has counted, and says how much of it each part of the proxy has cost.

What is our own counts for the part that its file belongs to, also where it was inlined elsewhere. The code of other crates and of
the standard library counts for the part that calls it: where several do, for each by its share. Reading, writing and waiting on
sockets are a part of their own (tokio's, and libc's below it). What nobody of us calls is the event loop's."""

import collections
import pathlib
import re

# The first that fits a file below `src/` has it.
PARTS = [
    ("front", r"listener/|policy/(framing|fields)\.rs"),
    ("route", r"policy/(route|path)|proxy/(admit|exchange/asked)\.rs|runtime/snapshot\.rs|types/address\.rs"),
    ("select", r"proxy/(select|exchange/connect)\.rs|runtime/(selection|backend|upstream|line)\.rs|policy/balance"),
    ("head rewrite", r"policy/(rewrite|headers|forwarded|trailers)|proxy/(exchange/heads|edit|date|id)\.rs"),
    ("log line", r"telemetry/(access_log|log_writer)"),
    ("metrics", r"telemetry/"),
    ("exchange", r""),
]
LOOP = "event loop"
SOCKETS = "sockets"


def part(path):
    """The part that a file belongs to; None for a file that is not ours, nor of sockets."""
    if re.search(r"/(tokio-[^/]*/src/(net|io|runtime/io|task/coop)|mio-[^/]*/src|socket2-[^/]*/src)/", path):
        return SOCKETS
    if ".cargo/" in path or "rustc/" in path:
        return None
    own = re.search(r"(?:^|/)src/((?:listener|policy|proxy|runtime|telemetry|types|server|service)/.*\.rs)$", path)
    return own and next(name for name, pattern in PARTS if re.match(pattern, own[1]))


class Profile:
    """Costs by function and file, and who called whom from which file at what inclusive cost."""

    def __init__(self, path):
        self.own = collections.defaultdict(collections.Counter)
        self.calls = collections.defaultdict(collections.Counter)
        self.home = {}
        self.read(pathlib.Path(path).read_text(errors="replace").splitlines())

    def read(self, lines):
        files, functions = {}, {}
        file = function = called = None
        calling = False
        for line in lines:
            key, _, value = line.partition("=")
            if key in ("fl", "fi", "fe"):
                file = named(files, value)
            elif key in ("cfl", "cfi"):
                named(files, value)
            elif key == "fn":
                function = named(functions, value)
                self.home.setdefault(function, file)
            elif key == "cfn":
                called = named(functions, value)
            elif key == "calls":
                calling = True
            elif cost := re.match(r"[+*\d-]\S* (\d+)$", line):
                if calling:
                    self.calls[called][function, file] += int(cost[1])
                else:
                    self.own[function][file] += int(cost[1])
                calling = False

    def part(self, function, file):
        return part(file) or part(self.home[function])

    def parts(self):
        """What each part has cost; together it is all of it."""
        cost, foreign = collections.Counter(), collections.Counter()
        for function, files in self.own.items():
            for file, own in files.items():
                if found := self.part(function, file):
                    cost[found] += own
                else:
                    foreign[function] += own
        # From callee to caller, until it is one of ours. Circles among others get smaller with each round.
        for _ in range(200):
            further = collections.Counter()
            for function, own in foreign.items():
                callers = {caller: share for caller, share in self.calls[function].items() if caller[0] != function}
                if not callers:
                    cost[LOOP] += own
                for caller, share in callers.items():
                    at = self.part(*caller)
                    target, key = (cost, at) if at else (further, caller[0])
                    target[key] += own * share / sum(callers.values())
            foreign = further
        cost[LOOP] += sum(foreign.values())
        return cost


def named(names, value):
    """callgrind writes a name once, and its number from then on."""
    number, name = re.match(r"\((\d+)\)(?: (.*))?$", value).groups()
    return names.setdefault(number, name)
