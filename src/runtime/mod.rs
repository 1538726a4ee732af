//! The running configuration: an immutable snapshot, and the state of backends that outlives it.

pub mod backend;
pub mod connect;
pub mod connections;
pub mod deadlines;
pub mod descriptors;
pub mod guards;
pub mod http2;
pub mod journal;
pub mod line;
pub mod lull;
pub mod membership;
pub mod outlier;
pub mod patch;
pub mod peer;
pub mod ramp;
pub mod selection;
pub mod signal;
pub mod snapshot;
pub mod store;
pub mod tls;
pub mod upstream;
