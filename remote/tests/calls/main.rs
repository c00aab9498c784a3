//! Calls to servers that behave, and misbehave, as those out there.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod fake;
mod hub;
mod provider;
