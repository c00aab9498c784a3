//! BGE-M3 and its relatives: text in, dense and sparse vectors out; pairs in, scores out.
//!
//! A [`ModelStore`] finds model folders in Hugging Face layout by name, loads each on first use
//! and answers [`ModelStore::embed`] and [`ModelStore::rerank`]. One forward pass gives all
//! outputs of a text; texts of all calls share batches, and nothing is ever padded.
//!
//! ```text
//! store      names, folders, one model in memory per folder, the public calls
//! late       a question's token vectors against those of texts
//! folder     config.json and its companions, understood or refused
//! install    folders that come and go: copied, fetched, published whole, removed
//! tokenizer  text -> framed token ids            weights   safetensors and (pickle) PyTorch files
//! scheduler  one thread, two lanes, token-budget batches       answers   questions asked before
//! model      tokenizer + encoder + head          encoder   BERT and XLM-R, packed
//! heads      pooling, BGE-M3, SPLADE, classifier layers    tensor operations -> kernels
//! cpu        the kernels                         cache     weights converted once
//! gpu        the same on NVIDIA GPUs (feature `cuda`)
//! ```
//!
//! The engine knows texts and models. It knows no collections, fields or requests of a protocol;
//! what an empty string means to a schema is decided by its caller.

#![deny(unsafe_code)]

mod answers;
mod api;
mod cache;
mod cpu;
mod encoder;
mod error;
mod folder;
#[cfg(feature = "cuda")]
mod gpu;
mod heads;
mod install;
mod late;
mod layers;
mod mapped;
mod model;
mod pickle;
mod scheduler;
mod store;
mod table;
mod tokenizer;
mod weights;

pub use api::{
    Device, EmbedRequest, Embeddings, Load, Mode, ModelInfo, ModelSpec, Options, Outputs,
    Precision, RerankRequest,
};
pub use error::Error;
pub use install::{Draft, needed};
pub use late::{LateRequest, Weights as LateWeights};
pub use store::{ModelStore, shorten};
