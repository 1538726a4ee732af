//! Text that is put together of pieces, as the lines of a head are.

use bytes::{Buf as _, BytesMut};

/// Appends `pieces`, with one look at the room for all of them: most are shorter than what looking for each would cost. Inlined, as
/// those whose length is known then need no call to be copied.
#[inline(always)]
pub fn put<const COUNT: usize>(pieces: [&[u8]; COUNT], out: &mut BytesMut) {
    let length = pieces.iter().map(|piece| piece.len()).sum();
    out.reserve(length);
    let mut room = &mut out.spare_capacity_mut()[..length];
    for piece in pieces {
        let (place, rest) = room.split_at_mut(piece.len());
        place.write_copy_of_slice(piece);
        room = rest;
    }
    // SAFETY: the pieces were written behind the end, and are so many bytes.
    unsafe { out.set_len(out.len() + length) };
}

/// Takes so many bytes off the front. Where that is all of them, their room stays where it is: whoever writes next has it wholly.
#[inline]
pub fn take_off(count: usize, bytes: &mut BytesMut) {
    if count == bytes.len() {
        bytes.clear();
    } else {
        bytes.advance(count);
    }
}
