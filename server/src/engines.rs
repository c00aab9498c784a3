//! Whoever makes vectors and scores of texts: a model inside the node, or a provider elsewhere.

use std::fmt;

use elanus_embed::{
    EmbedRequest, Embeddings, LateRequest, LateWeights, Mode, ModelStore, RerankRequest,
};
use elanus_remote::{Embedding, Providers, Purpose, Rerank};

use crate::status::Failure;

/// What a function's vectors come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A model of the model store, by name.
    Model(String),
    /// A provider.
    Provider(Box<Embedding>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model(name) => name,
            Self::Provider(embedding) => embedding.model(),
        })
    }
}

/// What a re-ranker's scores come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    /// A cross-encoder of the model store, by name.
    Model {
        /// Its name.
        name: String,
        /// Scores through a sigmoid instead of raw logits.
        normalize: bool,
    },
    /// A model of the model store, by the vectors of tokens.
    TokenVectors {
        /// Its name.
        name: String,
        /// What its scores count.
        weights: LateWeights,
    },
    /// A provider.
    Provider(Box<Rerank>),
}

/// The model store and the providers of a node.
#[derive(Clone, Copy, Debug)]
pub struct Engines<'a> {
    /// Models inside the node.
    pub models: &'a ModelStore,
    /// Services elsewhere.
    pub providers: &'a Providers,
}

impl Engines<'_> {
    /// Embeds texts.
    ///
    /// # Errors
    /// Code 2400 when the model or the provider fails, and what else either says.
    pub async fn embed(
        self,
        source: &Source,
        request: EmbedRequest,
    ) -> Result<Embeddings, Failure> {
        match source {
            Source::Model(name) => Ok(self.models.embed(name, request).await?),
            Source::Provider(embedding) => {
                let purpose = match request.mode {
                    Mode::Insert | Mode::Rerank => Purpose::Insert,
                    Mode::Search => Purpose::Search,
                };
                let texts = request.texts;
                let dense = self.providers.embed(embedding, &texts, purpose).await?;
                let dim = dense.len().checked_div(texts.len()).unwrap_or(0);
                Ok(Embeddings { dense: Some(dense), dim, ..Embeddings::default() })
            }
        }
    }

    /// Scores texts for a query, in their order; higher is better.
    ///
    /// # Errors
    /// As [`Engines::embed`].
    pub async fn rerank(
        self,
        judge: &Judge,
        query: String,
        docs: Vec<String>,
    ) -> Result<Vec<f32>, Failure> {
        match judge {
            Judge::Model { name, normalize } => {
                let request = RerankRequest {
                    query,
                    docs,
                    normalize: *normalize,
                    ..RerankRequest::default()
                };
                Ok(self.models.rerank(name, request).await?)
            }
            Judge::TokenVectors { name, weights } => {
                let request = LateRequest { query, docs, weights: *weights, max_length: None };
                Ok(self.models.late_interaction(name, request).await?)
            }
            Judge::Provider(rerank) => Ok(self.providers.rerank(rerank, &query, &docs).await?),
        }
    }
}
