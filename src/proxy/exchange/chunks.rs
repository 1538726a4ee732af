//! Chunks as we write them (RFC 9112 §7.1).

use bytes::{BufMut as _, BytesMut};

/// Writes data as one chunk; none writes nothing.
pub(super) fn chunk(data: &[u8], out: &mut BytesMut) {
    if data.is_empty() {
        return;
    }
    out.reserve(data.len() + 20);
    hexadecimal(data.len(), out);
    out.put_slice(b"\r\n");
    out.put_slice(data);
    out.put_slice(b"\r\n");
}

/// A size in front of a chunk.
pub(super) fn hexadecimal(size: usize, out: &mut BytesMut) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (size >> (4 * place)) as u8 & 0xf;
        out.put_u8(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}
