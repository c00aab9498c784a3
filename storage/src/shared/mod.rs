//! What readers hold while others replace it.
//!
//! The cells are in [`cell`], in terms of the few things of [`sync`]. The tests in `model` compile
//! the same file with the ones of `loom`, and so run it in every order that threads can come in.

mod cell;
#[cfg(test)]
mod model;

pub(crate) use cell::{Doomable, Kept, Newest, Outside, Parts};

/// What the cells need of threads.
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};

    pub(super) use arc_swap::ArcSwap;
}
