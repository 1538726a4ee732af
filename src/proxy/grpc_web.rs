//! gRPC-web for browsers, translated into gRPC by Pingora's bridge. The bridge is called from our own phases and not as a
//! module of Pingora: modules are built for every request of an `HttpProxy`, this is a byte in those that do not need it.

use http::{HeaderMap, HeaderValue, Version, header};
use pingora_core::{Result, protocols::http::bridge::grpc_web::GrpcWebCtx};
use pingora_http::RequestHeader;

/// The bridge knows the binary form only; the other, `-text`, is base64 of the same, and goes on as it came, as does any other type.
const BINARY: &[u8] = b"application/grpc-web";

/// Makes gRPC of the head of a gRPC-web call; others are left as they are.
pub(super) fn request(request: &mut RequestHeader, state: &mut GrpcWebCtx) {
    if is_binary(&request.headers) {
        state.init();
        state.request_header_filter(request);
    }
}

/// `te: trailers` is a hop's own, so Pingora has taken out what the bridge had put in; gRPC asks for it.
pub(super) fn upstream_request(upstream: &mut RequestHeader, state: &GrpcWebCtx) -> Result<()> {
    if *state == GrpcWebCtx::Upgrade && upstream.version == Version::HTTP_2 {
        upstream.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
    }
    Ok(())
}

fn is_binary(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let (named, rest) = kind.split_at(kind.len().min(BINARY.len()));
    named.eq_ignore_ascii_case(BINARY) && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}
