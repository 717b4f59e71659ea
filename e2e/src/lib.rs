//! End-to-end tests of Weft.
