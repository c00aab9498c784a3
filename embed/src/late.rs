//! Late interaction: texts scored against a question by the vectors of their tokens (ColBERT,
//! Khattab & Zaharia 2020), together with the dense and sparse scores of the same pass, as BGE-M3
//! adds them up.
//!
//! Token vectors are made when they are needed and thrown away: kept, they would take a thousand
//! times the room of the dense vectors. A text costs a pass of the model, as with a cross-encoder,
//! but equal texts of a batch cost one, and questions of several rankings meet no pair twice.

use std::sync::Arc;

use crate::{EmbedRequest, Embeddings, Error, Mode, ModelStore, Outputs};

/// A question and the documents to score against it.
#[derive(Debug, Clone, Default)]
pub struct LateRequest {
    /// The question.
    pub query: String,
    /// The documents; one score each, in this order.
    pub docs: Vec<String>,
    /// What the three scores count.
    pub weights: Weights,
    /// Most tokens of a text, specials included; `None` takes the model's own.
    pub max_length: Option<usize>,
}

/// What the scores of BGE-M3 count in their sum. Not negative, and not all zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// The product of the dense vectors.
    pub dense: f32,
    /// The product of the term weights.
    pub sparse: f32,
    /// The mean over the question's tokens of the best match among the document's.
    pub colbert: f32,
}

impl Default for Weights {
    /// As the authors of BGE-M3 weigh them.
    fn default() -> Self {
        Self { dense: 0.4, sparse: 0.2, colbert: 0.4 }
    }
}

impl Weights {
    fn outputs(self) -> Outputs {
        Outputs { dense: self.dense > 0.0, sparse: self.sparse > 0.0, colbert: self.colbert > 0.0 }
    }

    /// Whether they can weigh anything.
    pub fn are_valid(self) -> bool {
        let all = [self.dense, self.sparse, self.colbert];
        all.iter().all(|weight| weight.is_finite() && *weight >= 0.0)
            && all.iter().sum::<f32>().is_finite()
            && all.iter().any(|weight| *weight > 0.0)
    }
}

/// Documents of one call of the model: their token vectors are in memory at once.
const DOCS: usize = 16;

impl ModelStore {
    /// Scores documents against a question by dense, sparse and token vectors: the weighted mean
    /// of the three, higher is better.
    ///
    /// # Errors
    /// As [`ModelStore::embed`]; [`Error::Unsupported`] if the model does not give what has a
    /// weight, [`Error::Invalid`] for weights that weigh nothing.
    pub async fn late_interaction(
        &self,
        model: &str,
        request: LateRequest,
    ) -> Result<Vec<f32>, Error> {
        let LateRequest { query, docs, weights, max_length } = request;
        if !weights.are_valid() {
            return Err(Error::Invalid(
                "the weights of dense, sparse and token vectors must not be negative, and not \
                 all zero"
                    .to_owned(),
            ));
        }
        let outputs = weights.outputs();
        let texts = |texts: Vec<String>, mode| EmbedRequest {
            max_length,
            ..EmbedRequest::new(texts, outputs, mode)
        };
        let question = Arc::new(self.embed(model, texts(vec![query], Mode::Search)).await?);
        let mut scores = Vec::with_capacity(docs.len());
        let mut docs = docs.into_iter();
        loop {
            let group: Vec<String> = docs.by_ref().take(DOCS).collect();
            if group.is_empty() {
                return Ok(scores);
            }
            let count = group.len();
            let found = self.embed(model, texts(group, Mode::Rerank)).await?;
            let question = Arc::clone(&question);
            // Every token against every token is billions of products for long texts: nothing for
            // the threads of the network.
            let group = tokio::task::spawn_blocking(move || {
                (0..count).map(|doc| score(&question, &found, doc, weights)).collect::<Vec<_>>()
            });
            scores.extend(group.await.map_err(|error| Error::Inference(error.to_string()))?);
        }
    }
}

/// The weighted mean for the document number `doc`.
fn score(question: &Embeddings, found: &Embeddings, doc: usize, weights: Weights) -> f32 {
    let mut sum = 0.0;
    if let (Some(q), Some(p)) = (&question.dense, &found.dense) {
        sum += weights.dense * dot(q, &p[doc * found.dim..][..found.dim]);
    }
    if let (Some(q), Some(p)) = (&question.sparse, &found.sparse) {
        sum += weights.sparse * sparse_dot(&q[0], &p[doc]);
    }
    if let (Some(q), Some(p)) = (&question.colbert, &found.colbert) {
        sum += weights.colbert * max_sim(&q[0], &p[doc], question.colbert_dim);
    }
    sum / (weights.dense + weights.sparse + weights.colbert)
}

/// The mean over the rows of `query` of the largest product with a row of `doc`.
fn max_sim(query: &[f32], doc: &[f32], width: usize) -> f32 {
    let rows = query.chunks_exact(width.max(1));
    let count = rows.len().max(1);
    let best = |row: &[f32]| {
        let products = doc.chunks_exact(width.max(1)).map(|other| dot(row, other));
        products.fold(f32::NEG_INFINITY, f32::max)
    };
    rows.map(best).filter(|best| best.is_finite()).sum::<f32>() / count as f32
}

/// In sixteen sums side by side, which is what the compiler needs to use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

/// Over the ids that both have; ids ascend.
fn sparse_dot(a: &[(u32, f32)], b: &[(u32, f32)]) -> f32 {
    let (mut at, mut sum) = (0, 0.0);
    for (id, weight) in a {
        while at < b.len() && b[at].0 < *id {
            at += 1;
        }
        if let Some((_, other)) = b.get(at).filter(|(other, _)| other == id) {
            sum += weight * other;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_their_definitions() {
        let numbers = |seed: usize, count: usize| -> Vec<f32> {
            (0..count).map(|i| (((i + seed) * 7919) % 101) as f32 / 50.0 - 1.0).collect()
        };
        for count in [0, 1, 16, 37] {
            let (a, b) = (numbers(1, count), numbers(2, count));
            let exact: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - exact).abs() < 1e-5);
        }
        let a = [(1, 2.0), (5, 3.0), (9, 1.0)];
        let b = [(0, 7.0), (5, 2.0), (8, 4.0), (9, 0.5)];
        assert_eq!(sparse_dot(&a, &b), 6.5);
        assert_eq!(sparse_dot(&a, &[]), 0.0);
        // Best matches 1 and 0.5: the mean is 0.75.
        assert_eq!(max_sim(&[1.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 0.0, 0.5], 2), 0.75);
    }

    #[test]
    fn weights_must_weigh_something() {
        let with = |dense, sparse, colbert| Weights { dense, sparse, colbert }.are_valid();
        assert!(with(0.4, 0.2, 0.4) && with(0.0, 0.0, 1.0));
        assert!(!with(0.0, 0.0, 0.0) && !with(-1.0, 2.0, 1.0) && !with(f32::NAN, 1.0, 1.0));
        assert!(!with(f32::MAX, f32::MAX, 0.0));
    }
}
