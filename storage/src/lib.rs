//! Durable collections of which one can take a consistent view.
