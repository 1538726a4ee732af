//! What must hold of any input that decisions are made of.

mod forwarded;
mod htpasswd;
mod ocsp;
mod proxy_protocol;
mod route;

pub use forwarded::forwarded;
pub use htpasswd::htpasswd;
use http::{HeaderMap, HeaderName, HeaderValue};
pub use ocsp::ocsp;
pub use proxy_protocol::proxy_protocol;
pub use route::route;

/// Fields of lines such as `Name: value`; what cannot be a field is left out.
pub fn fields(input: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(64) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}
