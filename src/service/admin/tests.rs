//! The real service over real sockets, with a double of the process and a real store. Every answer is checked against the
//! OpenAPI document on its way to the test.

mod changes;
mod documents;
mod explaining;
mod limits;
mod process;
mod streams;
mod support;
