# rrlb in a container: built on Debian 12 with Rust, run on Debian 12 with nothing but root certificates.
#
#   docker build -t rrlb .
#   docker run --rm -p 8080:8080 -v "$PWD/my.yaml:/etc/rrlb/pingora.yaml:ro" rrlb

FROM rust:1-bookworm AS build
WORKDIR /build

# Dependencies in a layer of their own: it is built again only when one of these files changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY shims ./shims
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin rrlb \
    && rm -r src

COPY conf ./conf
COPY src ./src
# Cargo goes by times, and those of the sources may be older than the placeholders' were.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin rrlb \
    && strip --strip-debug target/release/rrlb

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /nonexistent --shell /usr/sbin/nologin rrlb
COPY --from=build /build/target/release/rrlb /usr/local/bin/rrlb
# The key in conf/tls is public, for trying out; the user must be able to read it, and nobody else.
COPY --chown=rrlb:rrlb conf /etc/rrlb
RUN chmod 600 /etc/rrlb/tls/*.key

USER rrlb
EXPOSE 8080 8443 9145
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["rrlb", "healthcheck", "-c", "/etc/rrlb/pingora.yaml"]
ENTRYPOINT ["rrlb"]
CMD ["-c", "/etc/rrlb/pingora.yaml"]
