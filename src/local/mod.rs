//! `weft up`: the playground, a mesh on one machine.

pub mod cluster;
