//! Names, addresses and units: the words every other floor speaks. No I/O, no configuration, no Pingora.

mod address;
mod name;
mod reason;
mod refusal;
mod state;
mod unit;

pub use address::{BackendAddress, HostPort, ListenAddress, write_address};
pub use name::Name;
pub use reason::{AttemptFailure, Reason};
pub use refusal::Refusal;
pub use state::{AdminState, Source, UnknownWord};
pub use unit::{ByteSize, Percent, UnitError, Weight, parse_duration};
