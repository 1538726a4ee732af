#!/usr/bin/env python3
"""User instructions of a plain request (GET of 13 bytes, keep-alive, one worker) and of each part of its way, counted by callgrind:
numbers that do not depend on what else the machine does. Fails above a ceiling, which is 5 % over what holds today, for parts 10 % and more. "Over
streams" is all of it but the event loop and the sockets: what it would cost over streams in memory, of which at most 14,000 are the aim.

    benches/instructions.py [--engine lane] [--h2] [--out FILE] [BINARY]

With `--h2` the clients speak HTTP/2, one request at a time on each connection.

Needs valgrind (Debian: apt-get install valgrind) and a release build."""

import argparse
import pathlib
import random
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

import callgrind

REQUEST = (
    b"GET /hello HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 13\r\n\r\nHello, world!"
)
CONNECTIONS, WARM, COUNTED = 16, 400, 2000
# What may be counted at most, by engine: in all, and of the parts (see callgrind.py). It differs by some 20 from run to run.
# Lower them with what you save.
CEILINGS = {
    "lane": {
        "in all": 18_520,
        "over streams": 14_000,
        "front": 3_680,
        "route": 1_090,
        "select": 780,
        "head rewrite": 1_860,
        "log line": 1_450,
        "metrics": 140,
        "exchange": 6_020,
        callgrind.LOOP: 2_260,
        callgrind.SOCKETS: 2_140,
    },
    "lane, HTTP/2": {"in all": 43_000, "over streams": 38_850, "front": 22_630, "exchange": 10_310},
    "exchange": {"in all": 46_830},
    "pingora": {"in all": 86_610},
}


class Origin(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held = b""
        while part := self.request.recv(4096):
            held += part
            while b"\r\n\r\n" in held:
                held = held.split(b"\r\n\r\n", 1)[1]
                self.request.sendall(ANSWER)


class Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def ask(client):
    client.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"Hello, world!"):
        part = client.recv(4096)
        if not part:
            sys.exit(f"the connection ended: {answer!r}")
        answer += part


class Http2:
    """A client of HTTP/2 by prior knowledge: the least that is one."""

    DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
    END_STREAM, ACK, END_HEADERS = 1, 1, 4
    FIELDS = [(0x44, b"/hello"), (0x41, b"example.com"), (0x7A, b"bench/1.0"), (0x53, b"*/*")]

    def __init__(self, stream):
        self.stream, self.held, self.next = stream, b"", 1
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(self.SETTINGS, 0, 0))

    def frame(self, kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def read(self):
        while len(self.held) < 9 or len(self.held) < 9 + int.from_bytes(self.held[:3], "big"):
            part = self.stream.recv(65536)
            if not part:
                sys.exit("the connection ended")
            self.held += part
        length = int.from_bytes(self.held[:3], "big")
        head, payload, self.held = self.held[:9], self.held[9 : 9 + length], self.held[9 + length :]
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    def ask(self):
        block = b"\x82\x86"
        if self.next == 1:
            for prefix, value in self.FIELDS:
                block += bytes([prefix, len(value)]) + value
        else:
            # From the table, where they are now, as clients do.
            block += bytes([0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62])
        stream, self.next = self.next, self.next + 2
        self.stream.sendall(self.frame(self.HEADERS, self.END_STREAM | self.END_HEADERS, stream, block))
        while True:
            kind, flags, which, payload = self.read()
            if kind == self.SETTINGS and not flags & self.ACK:
                self.stream.sendall(self.frame(self.SETTINGS, self.ACK, 0))
            elif kind == self.PING and not flags & self.ACK:
                self.stream.sendall(self.frame(self.PING, self.ACK, 0, payload))
            elif kind == self.GOAWAY:
                sys.exit(f"the connection was ended: {payload!r}")
            elif which == stream and kind in (self.DATA, self.HEADERS) and flags & self.END_STREAM:
                return


class Http1:
    def __init__(self, stream):
        self.stream = stream

    def ask(self):
        ask(self.stream)


def free_port():
    """None of those that connections get for their own end: who asks for it before it listens could meet itself there, and take it."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def connect(port, child):
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if child.poll() is not None:
                sys.exit("the proxy has ended")
            time.sleep(0.1)
    sys.exit("the proxy does not listen")


def control(what, child):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["callgrind_control", what, str(child.pid)], check=True, **quiet)


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("binary", nargs="?", default="target/release/rrlb")
    options.add_argument("--engine", default="lane", choices=("lane", "exchange", "pingora"))
    options.add_argument("--h2", action="store_true", help="clients of HTTP/2")
    options.add_argument("--out", help="keep callgrind's file here, for callgrind_annotate")
    options = options.parse_args()
    origin = Threads(("127.0.0.1", 0), Origin)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "rrlb.yaml"
        config.write_text(
            f"listeners: [{{ address: '127.0.0.1:{port}', h2c: true }}]\nthreads: 1\nengine: {options.engine}\n"
            f"metrics: {{ address: '127.0.0.1:{free_port()}' }}\n"
            f"access_log: {{ path: '{folder}/access.log' }}\n"
            f"upstreams: {{ app: {{ backends: ['127.0.0.1:{origin.server_address[1]}'] }} }}\n"
        )
        out = pathlib.Path(options.out or f"{folder}/callgrind").resolve()
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", options.binary, "-c", str(config)]
        with open(f"{folder}/messages", "wb") as messages:
            child = subprocess.Popen(command, stdout=messages, stderr=messages)
        try:
            speak = Http2 if options.h2 else Http1
            clients = [speak(connect(port, child)) for _ in range(CONNECTIONS)]
            for n in range(WARM):
                clients[n % CONNECTIONS].ask()
            control("-z", child)
            for n in range(COUNTED):
                clients[n % CONNECTIONS].ask()
            control("-d", child)
            for _ in range(100):
                if pathlib.Path(f"{out}.1").exists():
                    break
                time.sleep(0.1)
            time.sleep(0.5)
            parts = callgrind.Profile(f"{out}.1").parts()
        finally:
            child.terminate()
            child.wait()
    whole = sum(parts.values())
    streams = whole - parts[callgrind.LOOP] - parts[callgrind.SOCKETS]
    found = {"in all": whole, "over streams": streams, **dict(parts.most_common())}
    above = False
    way = options.engine + ", HTTP/2" * options.h2
    print(f"instructions a request, engine {way}:")
    for name, count in found.items():
        count, ceiling = round(count / COUNTED), CEILINGS.get(way, {}).get(name)
        above |= ceiling is not None and count > ceiling
        told = "" if ceiling is None else f"  at most {ceiling:>7,}{'  TOO MANY' * (count > ceiling)}"
        print(f"{count:>9,}  {name:<13}{told}")
    sys.exit(above)


main()
