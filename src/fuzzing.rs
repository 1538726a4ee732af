//! The door for fuzzers: each target is a function that takes any bytes and panics where a promise is broken. `fuzz/`
//! calls them with what a fuzzer makes up; the tests here with what fuzzers have found. In no binary that serves.

pub use crate::{
    config::fuzzing::config,
    listener::fuzzing::{framing, h2_frames, lane},
    policy::fuzzing::{forwarded, htpasswd, ocsp, proxy_protocol, route},
    proxy::fuzzing::{answer, cookies, h2_answer},
};

#[cfg(test)]
mod tests;
