//! From hidden states to what a caller asked for.
//!
//! Each head follows its reference exactly: sentence-transformers' pooling, FlagEmbedding's
//! three BGE-M3 outputs, GTE's term weights, SPLADE's `max log(1 + relu)`, transformers'
//! classification heads. All sums run in f32 or wider.

use candle_core::{IndexOp, Result as CandleResult, Tensor};

use crate::cpu::{Activation, l2_normalize};
use crate::encoder::{Encoder, Place, inference, layer_norm, linear};
use crate::folder::{Classifier, Folder, HeadConfig, Pooling, Projection, TokenHeads};
use crate::layers::{LayerNorm, Linear, LinearMax, Packing, flat, pool};
use crate::tokenizer::Specials;
use crate::weights::Weights;
use crate::{Error, Outputs};

/// What one text (or pair) gave; a part is there if it was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Encoded {
    /// As the model gives it: not normalised.
    pub(crate) dense: Option<Vec<f32>>,
    pub(crate) sparse: Option<Vec<(u32, f32)>>,
    pub(crate) colbert: Option<Vec<f32>>,
    /// A cross-encoder's logit.
    pub(crate) score: Option<f32>,
}

/// The head of one model.
pub(crate) enum Head {
    Vectors(Box<Vectors>),
    Splade { transform: Linear, norm: LayerNorm, decoder: LinearMax },
    Classifier { dense: Linear, output: Linear },
}

/// Makes one dense vector, and from single tokens what the model has heads for.
pub(crate) struct Vectors {
    pooling: Pooling,
    projection: Option<(Linear, Activation)>,
    sparse: Option<Linear>,
    colbert: Option<Linear>,
    /// Ids that have no term weight.
    dropped: Vec<u32>,
}

impl Head {
    /// Reads the head's weights: from the encoder's file, or BGE-M3's two small ones beside it.
    pub(crate) fn load(
        folder: &Folder,
        weights: &mut Weights,
        encoder: &Encoder,
        specials: &Specials,
    ) -> Result<Self, Error> {
        let hidden = folder.encoder.hidden;
        let place = encoder.place();
        match &folder.head {
            HeadConfig::Vectors { dense, tokens } => {
                let dir = &folder.spec.dir;
                let own = |file: &str, outputs: usize| {
                    let mut weights = Weights::open(&dir.join(file))?;
                    let matrix = weights.read("weight", &[outputs, hidden])?;
                    let bias = weights.read("bias", &[outputs])?;
                    Linear::new(&place.device, &[&matrix], Some(&bias), hidden)
                        .map_err(|error| inference(&error))
                };
                let (sparse, colbert) = match tokens {
                    TokenHeads::None => (None, None),
                    TokenHeads::M3 => {
                        (Some(own("sparse_linear.pt", 1)?), Some(own("colbert_linear.pt", hidden)?))
                    }
                    TokenHeads::Gte => {
                        (Some(linear(weights, place, "classifier", hidden, 1)?), None)
                    }
                };
                Ok(Self::Vectors(Box::new(Vectors {
                    pooling: dense.pooling,
                    projection: dense
                        .projection
                        .as_ref()
                        .map(|layer| project(layer, place))
                        .transpose()?,
                    sparse,
                    colbert,
                    dropped: specials.without_weight.clone(),
                })))
            }
            HeadConfig::Splade => {
                let vocabulary = folder.encoder.vocabulary;
                let name = "cls.predictions.transform";
                let transform = linear(weights, place, &format!("{name}.dense"), hidden, hidden)?;
                let norm =
                    layer_norm(weights, place, &format!("{name}.LayerNorm"), &folder.encoder)?;
                let bias = weights.read("cls.predictions.bias", &[vocabulary])?;
                let own = "cls.predictions.decoder.weight";
                let matrix = if weights.has(own) {
                    weights.read(own, &[vocabulary, hidden])?
                } else {
                    // Tied to the word table, and then not written a second time.
                    encoder
                        .words()
                        .tensor()
                        .and_then(|words| flat(&words))
                        .map_err(|error| inference(&error))?
                };
                let decoder = LinearMax::new(&matrix, Some(&bias), hidden)
                    .map_err(|error| inference(&error))?;
                Ok(Self::Splade { transform, norm, decoder })
            }
            HeadConfig::Classifier(kind) => {
                let (dense, output) = match kind {
                    Classifier::Bert => {
                        (format!("{}pooler.dense", weights.prefix()), "classifier".to_owned())
                    }
                    Classifier::XlmRoberta => {
                        ("classifier.dense".to_owned(), "classifier.out_proj".to_owned())
                    }
                };
                Ok(Self::Classifier {
                    dense: linear(weights, place, &dense, hidden, hidden)?,
                    output: linear(weights, place, &output, hidden, 1)?,
                })
            }
        }
    }

    /// The outputs of every text of a batch. `ids[i]` are the tokens of text `i`, and `wanted[i]`
    /// what was asked of it; `packing` says where its rows are in `hidden`.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        packing: &Packing<'_>,
        ids: &[&[u32]],
        wanted: &[Outputs],
    ) -> CandleResult<Vec<Encoded>> {
        let mut encoded = vec![Encoded::default(); ids.len()];
        match self {
            Self::Vectors(vectors) => {
                vectors.forward(hidden, packing, ids, wanted, &mut encoded)?;
            }
            Self::Splade { transform, norm, decoder } => {
                let transformed = norm.forward(&transform.forward(hidden, Activation::Gelu)?)?;
                let largest = decoder.forward(&transformed, packing.bounds())?;
                let vocabulary = largest.dim(1)?;
                for (encoded, row) in encoded.iter_mut().zip(flat(&largest)?.chunks(vocabulary)) {
                    // log(1 + relu(x)) grows with x, so the maximum may be taken first.
                    let terms = (0_u32..).zip(row).filter(|(_, logit)| **logit > 0.0);
                    encoded.sparse = Some(terms.map(|(id, logit)| (id, logit.ln_1p())).collect());
                }
            }
            Self::Classifier { dense, output } => {
                let pooled = dense.forward(&pool(hidden, packing, false)?, Activation::Tanh)?;
                let scores = flat(&output.forward(&pooled, Activation::None)?)?;
                for (encoded, score) in encoded.iter_mut().zip(scores) {
                    encoded.score = Some(score);
                }
            }
        }
        Ok(encoded)
    }

    /// Bytes of the head's own weights.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Vectors(vectors) => {
                let projection = vectors.projection.as_ref().map(|(linear, _)| linear);
                let parts = [projection, vectors.sparse.as_ref(), vectors.colbert.as_ref()];
                parts.into_iter().flatten().map(Linear::bytes).sum()
            }
            Self::Splade { transform, decoder, .. } => transform.bytes() + decoder.bytes(),
            Self::Classifier { dense, output } => dense.bytes() + output.bytes(),
        }
    }
}

impl Vectors {
    fn forward(
        &self,
        hidden: &Tensor,
        packing: &Packing<'_>,
        ids: &[&[u32]],
        wanted: &[Outputs],
        encoded: &mut [Encoded],
    ) -> CandleResult<()> {
        let bounds = packing.bounds();
        if wanted.iter().any(|wanted| wanted.dense) {
            let pooled = pool(hidden, packing, self.pooling == Pooling::Mean)?;
            let dense = match &self.projection {
                Some((linear, activation)) => linear.forward(&pooled, *activation)?,
                None => pooled,
            };
            let width = dense.dim(1)?;
            for (index, row) in flat(&dense)?.chunks_exact(width).enumerate() {
                if wanted[index].dense {
                    encoded[index].dense = Some(row.to_vec());
                }
            }
        }
        if let Some(sparse) = &self.sparse {
            let weights = flat(&sparse.forward(hidden, Activation::None)?)?;
            for (index, encoded) in encoded.iter_mut().enumerate() {
                if wanted[index].sparse {
                    let weights = &weights[bounds[index]..bounds[index + 1]];
                    encoded.sparse = Some(term_weights(ids[index], weights, &self.dropped));
                }
            }
        }
        if let Some(colbert) = &self.colbert {
            for (index, encoded) in encoded.iter_mut().enumerate() {
                if wanted[index].colbert {
                    // <s> has no vector of its own, </s> does.
                    let rows = hidden.i(bounds[index] + 1..bounds[index + 1])?;
                    let vectors = colbert.forward(&rows, Activation::None)?;
                    let width = vectors.dim(1)?;
                    let mut vectors = flat(&vectors)?;
                    vectors.chunks_exact_mut(width).for_each(l2_normalize);
                    encoded.colbert = Some(vectors);
                }
            }
        }
        Ok(())
    }
}

/// The layer behind the pooling.
fn project(projection: &Projection, place: &Place) -> Result<(Linear, Activation), Error> {
    let Projection { weights, inputs, outputs, bias, tanh } = projection;
    let mut weights = Weights::open(weights)?;
    let matrix = weights.read("linear.weight", &[*outputs, *inputs])?;
    let bias = if *bias { Some(weights.read("linear.bias", &[*outputs])?) } else { None };
    let activation = if *tanh { Activation::Tanh } else { Activation::None };
    let linear = Linear::new(&place.device, &[&matrix], bias.as_deref(), *inputs);
    Ok((linear.map_err(|error| inference(&error))?, activation))
}

/// BGE-M3's lexical weights: per token id the largest positive weight, without the ids that
/// stand for no word. Ascending ids.
fn term_weights(ids: &[u32], weights: &[f32], dropped: &[u32]) -> Vec<(u32, f32)> {
    let mut terms: Vec<(u32, f32)> = ids
        .iter()
        .zip(weights)
        .filter(|(id, weight)| **weight > 0.0 && !dropped.contains(id))
        .map(|(id, weight)| (*id, *weight))
        .collect();
    terms.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    terms.dedup_by_key(|(id, _)| *id);
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_keeps_its_largest_weight_and_specials_have_none() {
        let ids = [0, 9, 5, 9, 7, 2];
        let weights = [3.0, 0.5, 1.0, 0.75, -1.0, 2.0];
        assert_eq!(term_weights(&ids, &weights, &[0, 1, 2, 3]), [(5, 1.0), (9, 0.75)]);
    }
}
