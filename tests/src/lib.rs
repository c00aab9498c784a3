//! Tests that need two crates or a process, and what they share.
//!
//! [`TestNode`] runs the real binary on a directory of its own; [`wire`] builds the requests that
//! the tests in `tests/` send to it; a [`ledger`] knows what was acknowledged; [`Random`] is the
//! one source of chance, so that a failing run can be repeated from its seed. Tests of a single crate sit beside its code; the suite that
//! drives the node with unmodified clients is in `tests/python`.
#![forbid(unsafe_code)]

pub mod ledger;
mod node;
mod random;
pub mod wire;

pub use node::TestNode;
pub use random::{Random, from_env};
