//! With how little room in its client's windows a part of an answer over HTTP/2 is cut (RFC 9293 §3.8.6.2.1): a client that gives back
//! each frame as it came would else be sent ever smaller ones, as each rest of a window cuts the part that comes next.

use std::time::Duration;

/// In bytes; less is a crumb, for a window to be opened by too.
pub const CRUMB: usize = 256;
/// Room that is less is waited for as long; some clients give nothing back before they were sent all that fits.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// The least room that a part is cut for, where there was once room for `largest`: a client with small windows opens half of them.
pub fn least(largest: usize) -> usize {
    (largest / 2).clamp(1, CRUMB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_windows_need_not_open_by_more_than_their_half() {
        for (largest, room) in [(0, 1), (1, 1), (3, 1), (100, 50), (511, 255), (512, 256), (65_535, 256)] {
            assert_eq!(least(largest), room, "of {largest}");
        }
    }
}
