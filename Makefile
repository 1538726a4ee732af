# What a fresh machine needs for all of this: Rust (rustup.rs) and a C compiler. `make bench` also needs wrk and Python 3.

.PHONY: help demo test ci bench image

help:
	@echo "make demo   three small origins and the proxy in front of them, on 127.0.0.1 (cargo run --release -- demo)"
	@echo "make test   all tests; installs nothing: certificates and origins are made by the tests themselves"
	@echo "make ci     tests, formatting, lints, documentation, every file in conf/ (.ci/run)"
	@echo "make bench  CPU per request and bytes per idle connection, beside a bare Pingora proxy (benches/README.md)"
	@echo "make image  a container image (docker build)"

demo:
	cargo run --release --locked -- demo

# The tests need nothing but Rust and a C compiler, so there is nothing to install.
test:
	@command -v cargo >/dev/null || { echo "cargo is missing; install Rust from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing; on Debian: apt-get install gcc libc6-dev" >&2; exit 1; }
	cargo test --locked

ci:
	./.ci/run

bench:
	./benches/compare.py

image:
	docker build -t rrlb .
