//! Names, addresses and units: the words every other floor speaks. No I/O, no configuration, no Pingora.

mod address;
mod name;
mod reason;
mod refusal;
mod state;
mod unit;

pub use address::{AddressText, BackendAddress, HostPort, ListenAddress};
pub use name::Name;
pub use reason::{AttemptFailure, Reason};
pub use refusal::Refusal;
pub use state::{AdminState, Source, UnknownWord};
pub use unit::{ByteSize, Percent, UnitError, Weight, parse_duration};
