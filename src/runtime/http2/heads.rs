//! Heads between HTTP/1.1, as we have it of clients and backends, and HTTP/2 (RFC 9113 §8.2, §8.3).

use std::io;

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, response, uri::Scheme};

use super::fault::bad;
use crate::policy::{
    framing::{self, Border},
    trailers,
};

/// The request of this head, and where its body ends.
pub(super) fn request(head: &[u8], https: bool) -> io::Result<(Request<()>, Border)> {
    let wrong = |what: &'static str| move || io::Error::new(io::ErrorKind::InvalidInput, what);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).take_while(|line| !line.is_empty());
    let mut first = lines.next().unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let method = first.next().and_then(|method| Method::from_bytes(method).ok()).ok_or_else(wrong("a method"))?;
    let target = first.next().unwrap_or_default();
    let mut authority = None;
    let mut fields = HeaderMap::new();
    let mut border = Border::END;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(wrong("a field without a colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let name = HeaderName::from_bytes(name).map_err(io::Error::other)?;
        match name {
            header::HOST => {
                authority = Some(value);
                continue;
            }
            header::TRANSFER_ENCODING => {
                border = Border::CHUNKED;
                continue;
            }
            // We ask for the body ourselves; see `edit::asks_for_body`.
            header::CONNECTION | header::EXPECT | header::UPGRADE => continue,
            header::CONTENT_LENGTH => {
                border = Border::Counted(framing::length(value).ok_or_else(wrong("a length"))?);
            }
            _ => {}
        }
        fields.append(name, HeaderValue::from_bytes(value).map_err(io::Error::other)?);
    }
    let scheme = if https { Scheme::HTTPS } else { Scheme::HTTP };
    let authority = authority.ok_or_else(wrong("no host"))?;
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build();
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    *request.headers_mut() = fields;
    Ok((request, border))
}

/// All of a head but the empty line.
pub(super) fn write_head(head: &response::Parts, out: &mut BytesMut) -> io::Result<()> {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(head.status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in &head.headers {
        if framing::is_padded(value.as_bytes()) {
            return Err(bad("white space around a field's value"));
        }
        write_field(name, value, out);
    }
    Ok(())
}

/// Of the trailers those that may go on: the others would only be dropped later.
pub(super) fn write_trailers(fields: &HeaderMap, out: &mut BytesMut) {
    for (name, value) in fields {
        if !framing::is_padded(value.as_bytes()) && trailers::goes_on(name.as_str().as_bytes()) {
            write_field(name, value, out);
        }
    }
    out.put_slice(b"\r\n");
}

fn write_field(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}
