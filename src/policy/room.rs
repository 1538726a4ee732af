//! With how little room a part of an answer over HTTP/2 is cut (RFC 9293 §3.8.6.2.1): a client that gives back
//! each frame as it came would else be sent ever smaller ones, as each rest of a window cuts the part that comes next.

use std::time::Duration;

/// In bytes; less is a crumb, for a window to be opened by too.
pub const CRUMB: usize = 256;
/// Room that is less is waited for as long; some clients give nothing back before they were sent all that fits.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// How much goes at once of a part with `left` bytes, where there is `room` for some of them: all of it, or a piece of which neither it nor what is
/// left is a crumb. `largest`: the most room that its answer has had; of small windows a half is enough. `None`: it waits for more.
pub fn piece(left: usize, room: usize, largest: usize) -> Option<usize> {
    if room >= left {
        return Some(left);
    }
    let least = (largest / 2).clamp(1, CRUMB);
    let piece = room.min(left.saturating_sub(least));
    (piece >= least).then_some(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_goes_and_what_does_not_is_cut_into_no_crumbs() {
        const WINDOW: usize = 65_535;
        for (left, room, piece) in [
            (1, 1, Some(1)),
            (300, 65_535, Some(300)),
            (1, 0, None),
            (5000, 255, None),
            (5000, 256, Some(256)),
            (5000, 4900, Some(4744)),
            (511, 510, None),
            (512, 300, Some(256)),
            (512, 511, Some(256)),
        ] {
            assert_eq!(super::piece(left, room, WINDOW), piece, "{left} with room for {room}");
        }
    }

    #[test]
    fn small_windows_need_not_open_by_more_than_their_half() {
        for (largest, room) in [(0, 1), (1, 1), (3, 1), (100, 50), (511, 255), (512, 256), (65_535, 256)] {
            assert_eq!(piece(100_000, room, largest), Some(room), "of {largest}");
            assert_eq!(piece(100_000, room - 1, largest), None, "of {largest}");
        }
    }
}
