//! Which way a plain request takes through the proxy.

/// Who moves the bytes of plain requests and of WebSockets. Others go through Pingora.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Pingora reads requests, our own client side exchanges them with the backend; WebSockets are Pingora's.
    Exchange,
    /// Our front reads requests of HTTP/1.1 and our own client side exchanges them; what else may come, as `Exchange`.
    #[default]
    Lane,
    /// Pingora, all the way.
    Pingora,
}

impl Engine {
    /// The word in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Lane => "lane",
            Self::Pingora => "pingora",
        }
    }

    /// All of them, with their words.
    pub const WORDS: [(&'static str, Self); 3] =
        [("exchange", Self::Exchange), ("lane", Self::Lane), ("pingora", Self::Pingora)];
}
