"""The proxies of the comparison: how each is found, configured and started. One class each, all with the same features.

Everywhere: round robin over the same backends, kept connections to them, no health checks, no compression, no request
limits; X-Forwarded-For, -Proto, -Host, Forwarded, Via and X-Request-Id towards the backend; HTTP/1.1 without TLS on one
port, TLS with HTTP/2 and HTTP/1.1 on the next; bodies through buffers of 64 KiB where that can be set.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BUFFER = 64 << 10


@dataclass(frozen=True)
class Setup:
    """What all proxies are started with."""

    workers: int = 1
    backends: int = 3
    log: bool = False


@dataclass
class Place:
    """Where one proxy lives: a folder of its own, its ports, the backends and the certificate."""

    folder: Path
    plain: int
    tls: int
    spare: int
    backends: list
    cert: Path
    key: Path

    def log(self, setup):
        return str(self.folder / "access.log") if setup.log else "-"


class Peer:
    name = ""
    features = {"plain", "tls", "h2", "ws", "log", "idle"}

    def __init__(self, binary):
        self.binary = binary

    def version(self):
        return ""

    def start(self, setup, place):
        """The command, and what it needs in its environment."""
        raise NotImplementedError


def output(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20)
        return done.stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def found(pattern, text):
    match = re.search(pattern, text)
    return match[1] if match else "version unknown"


class Rrlb(Peer):
    def __init__(self, binary, engine):
        super().__init__(binary)
        self.engine = engine
        self.name = f"rrlb {engine}"

    def version(self):
        return found(r"rrlb (\S+)", output(self.binary, "--version"))

    def config(self, setup, place):
        backends = ", ".join(place.backends)
        lines = [
            "version: 1",
            f"threads: {setup.workers}",
            f"engine: {self.engine}",
            f"upgrade_sock: {place.folder}/up/upgrade.sock",
            "upstream_keepalive_pool_size: 1024",
            "certificates:",
            f"  test: {{ cert: {place.cert}, key: {place.key} }}",
            "listeners:",
            f"  - {{ address: 127.0.0.1:{place.plain}, limits: {{ idle_timeout: 10m, requests_per_connection: 1000000 }} }}",
            f"  - address: 127.0.0.1:{place.tls}",
            "    tls: { certificates: [test] }",
            "    limits: { idle_timeout: 10m, requests_per_connection: 1000000 }",
            f"upstreams: {{ app: {{ backends: [{backends}] }} }}",
            "routes: [{ upstream: app }]",
            f"metrics: {{ address: 127.0.0.1:{place.spare} }}",
        ]
        if setup.log:
            lines.append(f"access_log: {{ path: {place.log(setup)}, format: json }}")
        (place.folder / "up").mkdir(mode=0o700, exist_ok=True)
        file = place.folder / "rrlb.yaml"
        file.write_text("\n".join(lines) + "\n")
        return file

    def start(self, setup, place):
        return [self.binary, "-c", str(self.config(setup, place))], {}


class Bare(Peer):
    name = "bare Pingora"

    def version(self):
        return "0.9.1, rustls, mimalloc"

    def start(self, setup, place):
        listen = [f"127.0.0.1:{place.plain}", f"127.0.0.1:{place.tls}"]
        files = [str(place.cert), str(place.key), place.log(setup)]
        return [self.binary, str(setup.workers), *listen, *files, *place.backends], {}


class Nginx(Peer):
    name = "nginx"

    def version(self):
        return found(r"nginx/(\S+)", output(self.binary, "-v"))

    def start(self, setup, place):
        new = tuple(map(int, re.findall(r"\d+", self.version())[:2])) >= (1, 25)
        folder = place.folder
        temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n"
                            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        log = f"{folder}/access.log json buffer=64k" if setup.log else "off"
        servers = "".join(f"    server {address};\n" for address in place.backends)
        # proxy_buffer_size stays small: it is for heads, and is allocated for each request.
        (folder / "nginx.conf").write_text(f"""\
daemon off; worker_processes {setup.workers}; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 15000; }}
http {{
{temporary}\
  log_format json escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'
    '"path":"$request_uri","status":$status,"bytes":$bytes_sent,"seconds":$request_time,"host":"$host",'
    '"upstream":"$upstream_addr","upstream_seconds":"$upstream_response_time","id":"$request_id"}}';
  access_log {log};
  keepalive_timeout 600s; keepalive_requests 1000000; tcp_nodelay on;
  client_max_body_size 0; client_body_buffer_size 64k;
  map $http_upgrade $connection_of_upgrade {{ default upgrade; '' ''; }}
  upstream app {{
{servers}\
    keepalive 1024; keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{place.plain} backlog=4096;
    listen 127.0.0.1:{place.tls} ssl {'' if new else 'http2'} backlog=4096;
    {'http2 on;' if new else ''}
    ssl_certificate {place.cert}; ssl_certificate_key {place.key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_request_buffering off;
      proxy_buffers 4 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
      proxy_read_timeout 600s;
      proxy_set_header Connection $connection_of_upgrade; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;
      proxy_set_header Forwarded "for=$remote_addr;host=$host;proto=$scheme";
      proxy_set_header Via "1.1 nginx"; proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
""")
        return [self.binary, "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(folder / "nginx.conf")], {}


class Haproxy(Peer):
    name = "HAProxy"

    def version(self):
        return found(r"version (\S+)", output(self.binary, "-v"))

    def start(self, setup, place):
        folder = place.folder
        pem = folder / "both.pem"
        pem.write_text(place.cert.read_text() + place.key.read_text())
        servers = "".join(f"  server s{n} {address}\n" for n, address in enumerate(place.backends))
        log = "  log stdout format raw local0\n" if setup.log else ""
        (folder / "haproxy.cfg").write_text(f"""\
global
  nbthread {setup.workers}
  no strict-limits
  maxconn 15000
  tune.bufsize {BUFFER}
{log}\
defaults
  mode http
  {'option httplog' if setup.log else 'no log'}
  {'log global' if setup.log else ''}
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  timeout http-keep-alive 600s
  http-reuse always
frontend edge
  bind 127.0.0.1:{place.plain} backlog 4096
  bind 127.0.0.1:{place.tls} backlog 4096 ssl crt {pem} alpn h2,http/1.1 ssl-min-ver TLSv1.2
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header Forwarded for=%[src];host=%[req.hdr(host)];proto=%[ssl_fc,iif(https,http)]
  http-request set-header Via 1.1\\ haproxy
  http-request set-header X-Request-Id %[uuid()]
  default_backend app
backend app
  balance roundrobin
{servers}""")
        return [self.binary, "-db", "-f", str(folder / "haproxy.cfg")], {}


class Caddy(Peer):
    name = "Caddy"

    def version(self):
        return output(self.binary, "version").split(" ")[0].strip() or "version unknown"

    def start(self, setup, place):
        proxy = {
            "handler": "reverse_proxy",
            "upstreams": [{"dial": address} for address in place.backends],
            "load_balancing": {"selection_policy": {"policy": "round_robin"}},
            "transport": {
                "protocol": "http",
                "compression": False,
                "read_buffer_size": BUFFER,
                "write_buffer_size": BUFFER,
                "keep_alive": {"max_idle_conns_per_host": 1024},
            },
            "headers": {"request": {"set": {
                "Forwarded": ["for={http.request.remote.host};host={http.request.host};proto={http.request.scheme}"],
                "Via": ["1.1 caddy"],
                "X-Request-Id": ["{http.request.uuid}"],
            }}},
        }
        server = {"routes": [{"handle": [proxy]}], "automatic_https": {"disable": True}, "protocols": ["h1", "h2"]}
        if setup.log:
            server["logs"] = {}
        writer = {"output": "file", "filename": place.log(setup), "roll": False} if setup.log else {"output": "stderr"}
        config = {
            "admin": {"disabled": True},
            "logging": {"logs": {"default": {"writer": writer, "level": "INFO" if setup.log else "ERROR"}}},
            "apps": {
                "http": {"servers": {
                    "plain": {**server, "listen": [f"127.0.0.1:{place.plain}"]},
                    "tls": {**server, "listen": [f"127.0.0.1:{place.tls}"], "tls_connection_policies": [{}]},
                }},
                "tls": {"certificates": {"load_files": [{"certificate": str(place.cert), "key": str(place.key)}]}},
            },
        }
        file = place.folder / "caddy.json"
        file.write_text(json.dumps(config))
        home = {name: str(place.folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
        return [self.binary, "run", "--config", str(file)], {"GOMAXPROCS": str(setup.workers), **home}


class Envoy(Peer):
    name = "Envoy"

    def version(self):
        return found(r"/(\d+\.\d+\.\d+)/", output(self.binary, "--version"))

    def start(self, setup, place):
        v3 = "type.googleapis.com/envoy.extensions"
        header = lambda key, value: {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        manager = {
            "@type": f"{v3}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "edge",
            "use_remote_address": True,
            "stream_idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [{"name": "router", "typed_config": {"@type": f"{v3}.filters.http.router.v3.Router"}}],
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}],
                "request_headers_to_add": [
                    header("X-Forwarded-Host", "%REQ(:authority)%"),
                    header("Forwarded", "for=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;host=%REQ(:authority)%;"
                                        "proto=%REQ(x-forwarded-proto)%"),
                    header("Via", "1.1 envoy"),
                ],
            }]},
        }
        if setup.log:
            manager["access_log"] = [{"name": "file", "typed_config": {
                "@type": f"{v3}.access_loggers.file.v3.FileAccessLog", "path": place.log(setup)}}]
        file = {"certificate_chain": {"filename": str(place.cert)}, "private_key": {"filename": str(place.key)}}
        tls = {"name": "tls", "typed_config": {
            "@type": f"{v3}.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [file], "alpn_protocols": ["h2", "http/1.1"]}}}
        address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": int(port)}}
        chain = {"filters": [{"name": "http", "typed_config": manager}]}
        listener = lambda port, more: {"address": address(port), "per_connection_buffer_limit_bytes": BUFFER,
                                       "filter_chains": [{**chain, **more}]}
        most = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}
        backends = [{"endpoint": {"address": address(text.rsplit(":", 1)[1])}} for text in place.backends]
        config = {"static_resources": {
            "listeners": [listener(place.plain, {}), listener(place.tls, {"transport_socket": tls})],
            "clusters": [{
                "name": "app", "type": "STATIC", "connect_timeout": "5s", "lb_policy": "ROUND_ROBIN",
                "per_connection_buffer_limit_bytes": BUFFER,
                "circuit_breakers": {"thresholds": [most]},
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": backends}]},
            }],
        }}
        path = place.folder / "envoy.json"
        path.write_text(json.dumps(config))
        command = [self.binary, "-c", str(path), "--concurrency", str(setup.workers), "--disable-hot-restart",
                   "--log-level", "error", "--log-path", str(place.folder / "envoy.log")]
        return command, {}


class Go(Peer):
    name = "Go ReverseProxy"

    def version(self):
        return found(r"go version (go\S+)", output(shutil.which("go") or "/usr/bin/go", "version"))

    def start(self, setup, place):
        listen = [f"127.0.0.1:{place.plain}", f"127.0.0.1:{place.tls}"]
        files = [str(place.cert), str(place.key), place.log(setup)]
        return [self.binary, *listen, *files, *place.backends], {"GOMAXPROCS": str(setup.workers)}


class Floor(Peer):
    """Relays bytes and reads none of them. It has two connections for each idle one, so it says nothing there."""

    name = "floor"
    features = {"plain", "ws"}

    def start(self, setup, place):
        return [self.binary, str(setup.workers), f"127.0.0.1:{place.plain}", *place.backends], {}


def which(name, given):
    """A program by what was given for it, by the path, or where Debian puts servers."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/usr/local/bin"
    return shutil.which(given.get(name, name), path=path)
