//! Calls to other machines: model hubs, providers of embeddings and of re-ranking.
//!
//! ```text
//! hub        a repository's files, by revision, verified, resumed where they broke off
//! function   what a function with a provider declares, and how each provider is spoken to
//! provider   texts to vectors and to scores: who may be called, with which key, how often
//! http       one client: TLS, time limits, bodies with a bound, errors without secrets
//! ```
//!
//! No other crate opens a connection. Nothing here is called unless an operator asked for it, by a
//! command or a setting. What a server answers is not trusted: lengths, names and numbers are
//! checked, and what it says goes into errors shortened and without the caller's key.

#![forbid(unsafe_code)]

mod error;
mod function;
mod http;
mod hub;
mod patience;
mod provider;
mod secret;

pub use error::Error;
pub use function::{Embedding, Purpose, Rerank};
pub use hub::{Checksum, Hub, Progress, RemoteFile, Snapshot};
pub use patience::Patience;
pub use provider::{Options as ProviderOptions, Providers};
pub use secret::Secret;
