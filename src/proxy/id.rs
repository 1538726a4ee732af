//! The id of a request, in both directions and in the log.

use http::HeaderValue;

use crate::policy::headers::RequestId;

/// Under which name a request is known everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Id {
    Ours(RequestId),
    Theirs(HeaderValue),
}

impl Id {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Ours(id) => id.as_bytes(),
            Self::Theirs(id) => id.as_bytes(),
        }
    }

    pub(super) fn to_value(&self) -> HeaderValue {
        let mut value = match self {
            Self::Ours(id) => HeaderValue::from_bytes(id.as_bytes()).expect("hexadecimal digits are a value"),
            Self::Theirs(id) => id.clone(),
        };
        // See `policy/rewrite.rs`.
        value.set_sensitive(true);
        value
    }
}
