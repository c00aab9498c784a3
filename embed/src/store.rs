//! Model folders by name; each is loaded once and shared by all calls.

use crate::{EmbedRequest, Embeddings, Error, ModelInfo, ModelSpec, Options, RerankRequest};

/// Finds, loads and runs the models of some directories.
#[derive(Debug, Clone)]
pub struct ModelStore {
    options: Options,
}

impl ModelStore {
    /// A store over the directories of `options`. Nothing is read yet.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Finds a model and says what it can do; reads its small configuration files only.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::ModelNotFound`], [`Error::Load`] for a damaged folder and
    /// [`Error::Unsupported`] for an architecture that is not understood.
    pub fn resolve(&self, name: &str) -> Result<ModelSpec, Error> {
        Err(Error::ModelNotFound {
            name: name.to_owned(),
            searched: self.options.dirs.clone(),
            hint: "no model can be loaded yet".to_owned(),
        })
    }

    /// Embeds texts. The model is loaded on first use; texts of concurrent calls share batches.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`], and those of [`Error`] that speak of requests.
    pub async fn embed(&self, model: &str, request: EmbedRequest) -> Result<Embeddings, Error> {
        let spec = self.resolve(model)?;
        let _ = request;
        Err(Error::Unsupported(format!("model `{}` cannot be run", spec.name)))
    }

    /// Scores documents against a query with a cross-encoder, in the order given.
    ///
    /// # Errors
    /// As [`ModelStore::embed`].
    pub async fn rerank(&self, model: &str, request: RerankRequest) -> Result<Vec<f32>, Error> {
        let spec = self.resolve(model)?;
        let _ = request;
        Err(Error::Unsupported(format!("model `{}` cannot be run", spec.name)))
    }

    /// The models in memory.
    pub fn loaded(&self) -> Vec<ModelInfo> {
        Vec::new()
    }
}
