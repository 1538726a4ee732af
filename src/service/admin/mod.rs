//! The admin API: what people and programs see and change while the process runs, on addresses and a thread of its own.

pub mod operator;
