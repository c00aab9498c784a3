//! What can go wrong between a text and its vector, typed by what the caller can do about it.

use std::path::PathBuf;

/// An error of the embedding engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No folder of that name in any model directory: install the model or correct the name.
    #[error("model `{name}` was not found: looked for {}; {hint}", searched_list(.searched))]
    ModelNotFound {
        /// The name as it was asked for.
        name: String,
        /// Every folder that was looked for.
        searched: Vec<PathBuf>,
        /// What to do, with the nearest installed names where there are any.
        hint: String,
    },
    /// The model is expected and not there yet.
    #[error("model `{name}` is not here yet: {state}")]
    Pending {
        /// The name as it was asked for.
        name: String,
        /// What is done about it.
        state: String,
    },
    /// The name could not be a folder of ours (empty, absolute, `..`, control characters).
    #[error("`{name}` is not a model name: {reason}")]
    InvalidName {
        /// The name as it was asked for.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// The model exists but cannot do what was asked; the text says what it can do.
    #[error("{0}")]
    Unsupported(String),
    /// A parameter of the request is out of range.
    #[error("{0}")]
    Invalid(String),
    /// A file of the model folder is missing, damaged or not understood.
    #[error("cannot load {}: {detail}", path.display())]
    Load {
        /// The file, or the folder where a file is missing.
        path: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// Too much text is waiting already; nothing was done, the same call may be sent again later.
    #[error(
        "the embedding queue is full: {queued_bytes} bytes are waiting and {request_bytes} more \
         would pass the limit of {limit_bytes}; send smaller batches or retry later"
    )]
    Overloaded {
        /// Bytes of text accepted and not answered yet.
        queued_bytes: usize,
        /// Bytes of this request.
        request_bytes: usize,
        /// The limit, [`crate::Options::queue_bytes`].
        limit_bytes: usize,
    },
    /// The tokenizer refused the text.
    #[error("cannot tokenize a text for model `{model}`: {detail}")]
    Tokenize {
        /// The model.
        model: String,
        /// The tokenizer's own words.
        detail: String,
    },
    /// The forward pass failed; other calls are not affected.
    #[error("inference failed: {0}")]
    Inference(String),
    /// The device has no memory for a text; shorter ones may still fit.
    #[error("the device has not enough memory: {0}")]
    DeviceMemory(String),
    /// The store was closed while the call was waiting.
    #[error("the embedding engine is shut down")]
    Closed,
}

impl Error {
    /// Whether the same call can succeed later without anything being changed.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::Pending { .. })
    }
}

fn searched_list(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "nothing, for no model directory is configured".to_owned();
    }
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}
