//! Why a client's HTTP/2 connection was ended: the closed set behind `rrlb_h2_abuse_total`.

/// What an HTTP/2 client did that ended its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum H2Abuse {
    /// A header block in too many CONTINUATION frames (CVE-2024-27316).
    Continuation,
    /// Too many empty or tiny DATA frames.
    Data,
    /// The window for an answer, opened by a few bytes again and again.
    Dribble,
    /// Streams opened again and again after GOAWAY.
    GoawayIgnored,
    /// A header list far beyond the limit, as a small block may unpack to.
    HeaderList,
    /// The first SETTINGS, a header block or another frame that was begun and not finished in time.
    HeaderTimeout,
    /// Too many requests that are none.
    Malformed,
    /// Too many PING frames.
    Ping,
    /// Too many PRIORITY frames, or frames of kinds unknown.
    Priority,
    /// Frames that the protocol does not allow.
    Protocol,
    /// Too many streams opened and reset (CVE-2023-44487).
    Reset,
    /// Too many streams that had to be reset for an error of the client's (CVE-2025-8671).
    ServerReset,
    /// Too many SETTINGS frames.
    Settings,
    /// SETTINGS of ours that were not acknowledged in time.
    SettingsTimeout,
    /// Answers that wait for a client who takes nothing.
    Stall,
    /// Too many WINDOW_UPDATE frames.
    WindowUpdate,
}

impl H2Abuse {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Continuation,
        Self::Data,
        Self::Dribble,
        Self::GoawayIgnored,
        Self::HeaderList,
        Self::HeaderTimeout,
        Self::Malformed,
        Self::Ping,
        Self::Priority,
        Self::Protocol,
        Self::Reset,
        Self::ServerReset,
        Self::Settings,
        Self::SettingsTimeout,
        Self::Stall,
        Self::WindowUpdate,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Continuation => "continuation",
            Self::Data => "data",
            Self::Dribble => "dribble",
            Self::GoawayIgnored => "goaway_ignored",
            Self::HeaderList => "header_list",
            Self::HeaderTimeout => "header_timeout",
            Self::Malformed => "malformed",
            Self::Ping => "ping",
            Self::Priority => "priority",
            Self::Protocol => "protocol",
            Self::Reset => "reset",
            Self::ServerReset => "server_reset",
            Self::Settings => "settings",
            Self::SettingsTimeout => "settings_timeout",
            Self::Stall => "stall",
            Self::WindowUpdate => "window_update",
        }
    }
}
