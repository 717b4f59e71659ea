//! The command line: a file a subcommand.

pub mod app;
pub mod output;
pub mod proxy;
pub mod validate;
