//! gRPC-web for browsers, translated into gRPC by Pingora's bridge. The bridge is called from our own phases and not as a
//! module of Pingora: modules are built for every request of an `HttpProxy`, this is a byte in those that do not need it.

use http::{HeaderMap, HeaderValue, Version, header};
use pingora_core::{Result, protocols::http::bridge::grpc_web::GrpcWebCtx};
use pingora_http::RequestHeader;

/// The bridge knows the binary form only; the other is base64 of the same, and goes on as it came.
const TEXT: &[u8] = b"application/grpc-web-text";

/// Makes gRPC of the head of a gRPC-web call; others are left as they are.
pub(super) fn request(request: &mut RequestHeader, state: &mut GrpcWebCtx) {
    if !is_text(&request.headers) {
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

fn is_text(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.get(..TEXT.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(TEXT))
}
