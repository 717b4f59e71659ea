//! The xDS server: what a proxy subscribes to, in what order it is answered, what it acknowledged.

pub mod status;
