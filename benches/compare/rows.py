"""The rows of the comparison: what is asked of every proxy."""

from dataclasses import dataclass, field

from peers import Setup

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One kind of load. `needs` is what a proxy must be able to do; `unit` is what a request is here."""

    name: str
    title: str
    mode: str = "h1"
    options: dict = field(default_factory=dict)
    setup: Setup = Setup()
    needs: str = "plain"
    unit: str = "request"


def get(size, title, **more):
    return {"mode": "h1", "options": {"path": f"/{size}", **more}, "title": title}


ONE = Setup()
ROWS = [
    Row("get-13", **get(13, "GET of 13 B")),
    Row("get-1k", **get(1024, "GET of 1 KiB")),
    Row("get-64k", **get(65536, "GET of 64 KiB")),
    Row("get-10m", **get(10 * MIB, "GET of 10 MiB", connections=4)),
    Row("post-1m", "POST of 1 MiB", options={"post": MIB, "connections": 4}),
    Row("close", "a connection per request", options={"close": True}),
    Row("tls", "TLS, GET of 13 B", options={"tls": True}, needs="tls"),
    Row("tls-full", "new TLS connection, full handshake", options={"tls": True, "close": True, "connections": 8},
        needs="tls", unit="connection"),
    Row("tls-resumed", "new TLS connection, resumed", options={"tls": True, "close": True, "connections": 8, "resume": True},
        needs="tls", unit="connection"),
    Row("h2-1", "HTTP/2, 1 stream on each of 4", mode="h2", options={"connections": 4, "streams": 1}, needs="h2"),
    Row("h2-10", "HTTP/2, 10 streams on each of 4", mode="h2", options={"connections": 4, "streams": 10}, needs="h2"),
    Row("h2-100", "HTTP/2, 100 streams on each of 2", mode="h2", options={"connections": 2, "streams": 100}, needs="h2"),
    Row("websocket", "WebSocket echo of 125 B", mode="ws", needs="ws", unit="message"),
    Row("log", "GET of 13 B, access log on", setup=Setup(log=True), needs="log"),
    Row("workers-2", "GET of 13 B, two workers", options={"connections": 64}, setup=Setup(workers=2)),
    Row("backends-1", "GET of 13 B, 1 backend", setup=Setup(backends=1)),
    Row("backends-10", "GET of 13 B, 10 backends", setup=Setup(backends=10)),
    Row("backends-1000", "GET of 13 B, 1,000 backends", setup=Setup(backends=1000)),
    Row("latency", "open loop", options={"connections": 64}),
]
IDLE = [
    ("idle-plain", "plain", {}, "idle"),
    ("idle-tls", "TLS", {"tls": True}, "tls"),
    ("idle-h2", "HTTP/2", {"streams": 2}, "h2"),
]
NAMES = [row.name for row in ROWS] + [name for name, *_ in IDLE]
