//! The command line.

pub mod exec;
pub mod internal;
pub mod up;
