# What a fresh machine needs for all of this: Rust (rustup.rs) and a C compiler. `make bench` also needs Python 3, and takes what is
# installed of nginx, HAProxy, Caddy, Envoy and Go.

# The tests of what an engine decides run on the others too (RRLB_TEST_ENGINE; docs/framing.md, "Which engine"). The exchange is what the
# lane shares with HTTP/2 clients and a front that is Pingora's: what differs is the client's side.
MOVES_BYTES = access_log:: admission:: balancing:: drain:: eject:: failures:: framing:: h2_slow:: headers:: informational:: \
  limits:: metrics:: normalisation:: protocols:: regressions responses:: routes:: streaming:: timeouts:: upstream
READS_CLIENTS = drain:: failures:: framing:: headers:: informational:: limits:: protocols:: responses:: timeouts::

.PHONY: help demo test ci bench scale image

help:
	@echo "make demo   three small origins and the proxy in front of them, on 127.0.0.1 (cargo run --release -- demo)"
	@echo "make test   all tests; as root on Debian it installs dnsmasq-base first, a real DNS server for some of them"
	@echo "make ci     tests, formatting, lints, documentation, every file in conf/, instructions a request (.ci/run)"
	@echo "make bench  CPU per request, latency and memory beside other proxies (benches/compare/README.md)"
	@echo "make scale  10,000 backends in 1,000 upstreams beside three in one (benches/README.md)"
	@echo "make image  a container image (docker build)"

demo:
	cargo run --release --locked -- demo

# The tests need nothing but Rust and a C compiler; certificates and origins are made by the tests themselves. Some ask a
# real DNS server: where it is missing and cannot be installed they say that they were skipped.
test:
	@command -v cargo >/dev/null || { echo "cargo is missing; install Rust from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing; on Debian: apt-get install gcc libc6-dev" >&2; exit 1; }
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; if command -v dnsmasq >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "dnsmasq, which some tests ask, is missing; installing dnsmasq-base"; \
	  (apt-get install -y dnsmasq-base || (apt-get update && apt-get install -y dnsmasq-base)) >/dev/null \
	    || echo "dnsmasq-base could not be installed; the tests that need it will be skipped" >&2; \
	else echo "dnsmasq is missing, the tests that need it will be skipped; on Debian: apt-get install dnsmasq-base" >&2; fi
	cargo test --locked
	RRLB_TEST_ENGINE=pingora cargo test --locked --test it -- $(MOVES_BYTES)
	RRLB_TEST_ENGINE=exchange cargo test --locked --test it -- $(READS_CLIENTS)

ci:
	./.ci/run

bench:
	./benches/compare/run.py --quick

scale:
	./benches/scale.py

image:
	docker build -t rrlb .
