//! The subcommands of `weft`, a file each.

pub mod validate;
