//! Searching a view.
