//! From hidden states to what a caller asked for.
//!
//! Each head follows its reference exactly: sentence-transformers' pooling, FlagEmbedding's
//! three BGE-M3 outputs, SPLADE's `max log(1 + relu)`, transformers' classification heads. All
//! sums run in f32 or wider.

use candle_core::{IndexOp, Result as CandleResult, Tensor};

use crate::cpu::{Activation, l2_normalize};
use crate::encoder::{Encoder, inference, layer_norm, linear};
use crate::folder::{Classifier, Folder, HeadConfig, Pooling};
use crate::layers::{LayerNorm, Linear, LinearMax};
use crate::tokenizer::Specials;
use crate::weights::Weights;
use crate::{Error, Outputs};

/// What one text (or pair) gave; a part is there if it was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Encoded {
    pub(crate) dense: Option<Vec<f32>>,
    pub(crate) sparse: Option<Vec<(u32, f32)>>,
    pub(crate) colbert: Option<Vec<f32>>,
    /// A cross-encoder's logit.
    pub(crate) score: Option<f32>,
}

/// The head of one model.
pub(crate) enum Head {
    Pooled { pooling: Pooling, normalize: bool },
    M3 { sparse: Linear, colbert: Linear, dropped: Vec<u32> },
    Splade { transform: Linear, norm: LayerNorm, decoder: LinearMax },
    Classifier { dense: Linear, output: Linear },
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
        match folder.head {
            HeadConfig::Pooled { pooling, normalize } => Ok(Self::Pooled { pooling, normalize }),
            HeadConfig::M3 => {
                let dir = &folder.spec.dir;
                let read = |file: &str, outputs: usize| {
                    let mut weights = Weights::open(&dir.join(file))?;
                    let matrix = weights.read("weight", &[outputs, hidden])?;
                    let bias = weights.read("bias", &[outputs])?;
                    Ok::<_, Error>(Linear::new(&matrix, Some(&bias), hidden))
                };
                Ok(Self::M3 {
                    sparse: read("sparse_linear.pt", 1)?,
                    colbert: read("colbert_linear.pt", hidden)?,
                    dropped: specials.without_weight.clone(),
                })
            }
            HeadConfig::Splade => {
                let vocabulary = folder.encoder.vocabulary;
                let name = "cls.predictions.transform";
                let transform = linear(weights, &format!("{name}.dense"), hidden, hidden)?;
                let norm = layer_norm(weights, &format!("{name}.LayerNorm"), &folder.encoder)?;
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
                let decoder = LinearMax::new(&matrix, Some(&bias), hidden);
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
                    dense: linear(weights, &dense, hidden, hidden)?,
                    output: linear(weights, &output, hidden, 1)?,
                })
            }
        }
    }

    /// The outputs of every text of a batch. `ids[i]` are the tokens of text `i`, which begin at
    /// row `bounds[i]` of `hidden`, and `wanted[i]` what was asked of it.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        bounds: &[usize],
        ids: &[&[u32]],
        wanted: &[Outputs],
    ) -> CandleResult<Vec<Encoded>> {
        let mut encoded = vec![Encoded::default(); ids.len()];
        match self {
            Self::Pooled { pooling, normalize } => {
                let width = hidden.dim(1)?;
                let rows = flat(hidden)?;
                for (encoded, bounds) in encoded.iter_mut().zip(bounds.windows(2)) {
                    let rows = &rows[bounds[0] * width..bounds[1] * width];
                    let mut dense = match pooling {
                        Pooling::First => rows[..width].to_vec(),
                        Pooling::Mean => mean(rows, width),
                    };
                    if *normalize {
                        l2_normalize(&mut dense);
                    }
                    encoded.dense = Some(dense);
                }
            }
            Self::M3 { sparse, colbert, dropped } => {
                let width = hidden.dim(1)?;
                let weights = flat(&sparse.forward(hidden, Activation::None)?)?;
                for (index, encoded) in encoded.iter_mut().enumerate() {
                    let (from, to) = (bounds[index], bounds[index + 1]);
                    if wanted[index].dense {
                        let mut dense = flat(&hidden.i(from..from + 1)?)?;
                        l2_normalize(&mut dense);
                        encoded.dense = Some(dense);
                    }
                    if wanted[index].sparse {
                        encoded.sparse =
                            Some(term_weights(ids[index], &weights[from..to], dropped));
                    }
                    if wanted[index].colbert {
                        // <s> has no vector of its own, </s> does.
                        let rows = hidden.i(from + 1..to)?;
                        let mut vectors = flat(&colbert.forward(&rows, Activation::None)?)?;
                        vectors.chunks_exact_mut(width).for_each(l2_normalize);
                        encoded.colbert = Some(vectors);
                    }
                }
            }
            Self::Splade { transform, norm, decoder } => {
                let transformed = norm.forward(&transform.forward(hidden, Activation::Gelu)?)?;
                let largest = decoder.forward(&transformed, bounds)?;
                let vocabulary = largest.dim(1)?;
                for (encoded, row) in encoded.iter_mut().zip(flat(&largest)?.chunks(vocabulary)) {
                    // log(1 + relu(x)) grows with x, so the maximum may be taken first.
                    let terms = (0_u32..).zip(row).filter(|(_, logit)| **logit > 0.0);
                    encoded.sparse = Some(terms.map(|(id, logit)| (id, logit.ln_1p())).collect());
                }
            }
            Self::Classifier { dense, output } => {
                let first: Vec<u32> =
                    bounds[..ids.len()].iter().map(|&bound| bound as u32).collect();
                let first = hidden.index_select(&Tensor::new(first, hidden.device())?, 0)?;
                let pooled = dense.forward(&first, Activation::Tanh)?;
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
            Self::Pooled { .. } => 0,
            Self::M3 { sparse, colbert, .. } => sparse.bytes() + colbert.bytes(),
            Self::Splade { transform, decoder, .. } => transform.bytes() + decoder.bytes(),
            Self::Classifier { dense, output } => dense.bytes() + output.bytes(),
        }
    }
}

fn flat(tensor: &Tensor) -> CandleResult<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    let count = (rows.len() / width) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
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

    #[test]
    fn the_mean_is_over_the_rows() {
        assert_eq!(mean(&[1.0, 2.0, 3.0, 6.0], 2), [2.0, 4.0]);
    }
}
