#!/bin/sh
# Runs h2spec (https://github.com/summerwind/h2spec) in strict mode against a build of rrlb: tools/h2spec.sh H2SPEC [RRLB]
# In plain text by prior knowledge and over TLS; ends with 0 where every case passed. How to get h2spec without Go's module
# proxy: fetch its sources into GOPATH and build with the libraries of Debian's golang-golang-x-net-dev,
# golang-github-spf13-cobra-dev and golang-github-fatih-color-dev (GO111MODULE=off, GOPATH=...:/usr/share/gocode).
set -eu
h2spec=${1:?which h2spec}
rrlb=${2:-target/debug/rrlb}
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d)
free() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
h2c=$(free) tls=$(free) metrics=$(free) origin_port=$(free)
cat > "$dir/rrlb.yaml" <<END
version: 1
threads: 2
upgrade_sock: $dir/upgrade.sock
certificates:
  demo: { cert: $root/conf/tls/demo.pem, key: $root/conf/tls/demo.key }
listeners:
  - { address: 127.0.0.1:$h2c, h2c: true }
  - { address: 127.0.0.1:$tls, tls: { certificates: [demo], alpn: [h2, http/1.1] } }
metrics: { address: 127.0.0.1:$metrics }
upstreams:
  app: { backends: ["127.0.0.1:$origin_port"] }
END
# An origin that takes every method and reads the whole body.
cat > "$dir/origin.py" <<'END'
import http.server, sys
class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        while self.headers.get("transfer-encoding"):
            size = int(self.rfile.readline(), 16)
            self.rfile.read(size + 2)
            if size == 0:
                break
        body = b"hello world " * 10
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = answer
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Origin).serve_forever()
END
python3 "$dir/origin.py" "$origin_port" 2> "$dir/origin.log" & origin=$!
RUST_LOG=info "$rrlb" -c "$dir/rrlb.yaml" 2> "$dir/rrlb.log" & proxy=$!
trap 'kill $proxy $origin; wait 2> /dev/null; rm -rf "$dir"' EXIT
tries=50
until grep -q "metrics on" "$dir/rrlb.log"; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { cat "$dir/rrlb.log"; exit 1; }
    sleep 0.1
done
# Before the origin listens every answer is a 502, which some cases take for the wrong end.
tries=50
until python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])))' "$origin_port" 2> /dev/null; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { cat "$dir/origin.log"; exit 1; }
    sleep 0.1
done
failed=0
"$h2spec" -S -h 127.0.0.1 -p "$h2c" > "$dir/h2c.txt" || failed=1
"$h2spec" -S -t -k -h 127.0.0.1 -p "$tls" > "$dir/tls.txt" || failed=1
for run in h2c tls; do
    echo "$run: $(tail -n 1 "$dir/$run.txt")"
    sed -n '/^Failures:/,$p' "$dir/$run.txt"
done
exit $failed
