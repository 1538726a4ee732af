//! Reads header blocks of HTTP/2 (RFC 7541), for those who see frames: enough of it to know what an answer says.

/// Bits of each byte's code in Appendix B, which is canonical: codes of one length are counted up in the order of bytes.
const BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

/// What a connection's header blocks have said so far. Nothing is ever forgotten: a test says little.
#[derive(Default)]
pub struct Blocks(Vec<(String, String)>);

impl Blocks {
    /// The fields of the next block. Names and values of the static table are its numbers.
    pub fn read(&mut self, mut block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some(first) = block.first().copied() {
            let (prefix, indexed) = match first {
                0x80.. => (7, false),
                0x40.. => (6, true),
                0x20.. => {
                    number(&mut block, 5);
                    continue;
                }
                _ => (4, false),
            };
            let index = number(&mut block, prefix);
            if prefix == 7 {
                fields.push(self.entry(index));
                continue;
            }
            let name = if index == 0 { text(&mut block) } else { self.entry(index).0 };
            let field = (name, text(&mut block));
            if indexed {
                self.0.push(field.clone());
            }
            fields.push(field);
        }
        fields
    }

    fn entry(&self, index: usize) -> (String, String) {
        match index.checked_sub(62) {
            None => (format!("static {index}"), format!("static {index}")),
            Some(back) => self.0[self.0.len() - 1 - back].clone(),
        }
    }
}

fn number(block: &mut &[u8], prefix: u32) -> usize {
    let most = (1 << prefix) - 1;
    let mut value = usize::from(take(block)) & most;
    if value == most {
        for shift in (0..).step_by(7) {
            let byte = usize::from(take(block));
            value += (byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
    }
    value
}

fn text(block: &mut &[u8]) -> String {
    let huffman = block[0] & 0x80 != 0;
    let length = number(block, 7);
    let (text, rest) = block.split_at(length);
    *block = rest;
    String::from_utf8(if huffman { unpacked(text) } else { text.to_vec() }).expect("text")
}

fn take(block: &mut &[u8]) -> u8 {
    let (first, rest) = block.split_first().expect("no end within a field");
    *block = rest;
    *first
}

fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut order: Vec<u8> = (0..=255).collect();
    order.sort_by_key(|byte| BITS[usize::from(*byte)]);
    let bits = packed.iter().flat_map(|byte| (0..8).rev().map(move |place| u32::from(byte >> place) & 1));
    let (mut out, mut code, mut length) = (Vec::new(), 0, 0);
    for bit in bits {
        (code, length) = (code << 1 | bit, length + 1);
        // Codes of each length follow those of the shorter ones.
        let (mut next, mut before) = (0, 0);
        for byte in &order {
            let bits = BITS[usize::from(*byte)];
            next <<= bits - before;
            before = bits;
            if bits > length {
                break;
            }
            if bits == length && next == code {
                out.push(*byte);
                (code, length) = (0, 0);
                break;
            }
            next += 1;
        }
    }
    out
}
