//! BGE-M3 and its relatives: text in, dense and sparse vectors out.

#![forbid(unsafe_code)]

mod api;
mod error;
mod store;

pub use api::{
    Device, EmbedRequest, Embeddings, Mode, ModelInfo, ModelSpec, Options, Outputs, RerankRequest,
};
pub use error::Error;
pub use store::ModelStore;
