//! What people want of a backend, and who says that it exists.

use std::{fmt, str::FromStr};

/// What people want of a backend, whatever its health. Every state but `Ready` gets no new requests; what is under way
/// is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdminState {
    /// No new requests; probed as before.
    Drain,
    /// No new requests, and no probes: its health is unknown until it is ready again.
    Maint,
    /// New requests, where it is up.
    #[default]
    Ready,
}

impl AdminState {
    /// Every state, by name.
    pub const ALL: [Self; 3] = [Self::Drain, Self::Maint, Self::Ready];

    /// The word in the API, the CLI and the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Ready => "ready",
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AdminState {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownWord)
    }
}

/// Who says that a backend exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Somebody added it by the API; kept in the journal.
    Api,
    /// A name in DNS.
    Dns,
    /// The configuration file.
    File,
    /// A registration with a time to live.
    Lease,
    /// A watched list of backends.
    List,
}

impl Source {
    /// Every source, by name.
    pub const ALL: [Self; 5] = [Self::Api, Self::Dns, Self::File, Self::Lease, Self::List];

    /// The word in the API, the CLI and the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Dns => "dns",
            Self::File => "file",
            Self::Lease => "lease",
            Self::List => "list",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Source {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|source| source.as_str() == text).ok_or(UnknownWord)
    }
}

/// A word that is none of a closed choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one of the words that are possible here")]
pub struct UnknownWord;
