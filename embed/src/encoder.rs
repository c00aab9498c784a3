//! BERT and XLM-RoBERTa without padding.
//!
//! A batch is one flat run of tokens with the rows where texts begin; no row is ever computed
//! that is not a token. The two families differ in two places only: where positions start
//! (0, or padding index + 1 as fairseq counted them) and the names in their files, which
//! transformers made equal below a prefix.
//!
//! This module ends at the last hidden state; what becomes of it is [`crate::heads`].

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::Error;
use crate::cpu::{Activation, Heads};
use crate::folder::EncoderConfig;
use crate::layers::{LayerNorm, Linear, attention};
use crate::weights::Weights;

/// Texts of one forward pass, one after the other.
#[derive(Debug, Default)]
pub(crate) struct PackedBatch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    types: Vec<u32>,
    /// Rows where texts begin, and the end.
    bounds: Vec<usize>,
}

impl PackedBatch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self { bounds: vec![0], ..Self::default() }
    }

    /// Adds a text. Tokens from `second` on belong to the second text of a pair; positions count
    /// from `first_position`.
    pub(crate) fn push(&mut self, ids: &[u32], second: usize, first_position: usize) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((0..ids.len()).map(|n| (first_position + n) as u32));
        self.types.extend((0..ids.len()).map(|n| u32::from(n >= second)));
        self.bounds.push(self.ids.len());
    }

    /// Rows where texts begin, and the end.
    pub(crate) fn bounds(&self) -> &[usize] {
        &self.bounds
    }
}

/// The encoder of one model.
pub(crate) struct Encoder {
    config: EncoderConfig,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

impl Encoder {
    /// Reads all weights and packs them for the device.
    ///
    /// # Errors
    /// [`Error::Load`] for a tensor that is missing, of another shape, or damaged.
    pub(crate) fn load(weights: &mut Weights, config: &EncoderConfig) -> Result<Self, Error> {
        let hidden = config.hidden;
        let prefix = weights.prefix().to_owned();
        let mut table = |name: &str, rows: usize| {
            let values =
                weights.read(&format!("{prefix}embeddings.{name}.weight"), &[rows, hidden]);
            values.and_then(|values| {
                Tensor::from_vec(values, (rows, hidden), &Device::Cpu)
                    .map_err(|error| inference(&error))
            })
        };
        let words = table("word_embeddings", config.vocabulary)?;
        let positions = table("position_embeddings", config.positions)?;
        let types = table("token_type_embeddings", config.types)?;
        let norm = layer_norm(weights, &format!("{prefix}embeddings.LayerNorm"), config)?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(weights, &format!("{prefix}encoder.layer.{index}"), config))
            .collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), words, positions, types, norm, layers })
    }

    /// The encoder's sizes.
    pub(crate) fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The word table, `vocabulary × hidden`; masked-language heads share it.
    pub(crate) fn words(&self) -> &Tensor {
        &self.words
    }

    /// Hidden states after the last layer, `tokens × hidden`.
    pub(crate) fn forward(&self, batch: &PackedBatch) -> CandleResult<Tensor> {
        let bounds = batch.bounds();
        let heads =
            Heads { count: self.config.heads, width: self.config.hidden / self.config.heads };
        let mut x = self.norm.forward(&self.embed(batch)?)?;
        for layer in &self.layers {
            let qkv = layer.query_key_value.forward(&x, Activation::None)?;
            let context = attention(&qkv, heads, bounds)?;
            let attended = layer.attention_output.forward(&context, Activation::None)?;
            let attended = layer.attention_norm.forward_residual(&attended, &x)?;
            let inner = layer.up.forward(&attended, Activation::Gelu)?;
            let output = layer.down.forward(&inner, Activation::None)?;
            x = layer.output_norm.forward_residual(&output, &attended)?;
        }
        Ok(x)
    }

    fn embed(&self, batch: &PackedBatch) -> CandleResult<Tensor> {
        let row =
            |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0);
        let words = row(&self.words, &batch.ids)?;
        let positions = row(&self.positions, &batch.positions)?;
        // XLM-R has one type, whatever the pair.
        let types = if self.config.types == 1 {
            (words + self.types.broadcast_as((batch.ids.len(), self.config.hidden))?)?
        } else {
            (words + row(&self.types, &batch.types)?)?
        };
        types + positions
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        let tables = [&self.words, &self.positions, &self.types];
        let tables: usize = tables.map(|table| 4 * table.elem_count()).iter().sum();
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        tables + layers
    }
}

impl Layer {
    fn load(weights: &mut Weights, name: &str, config: &EncoderConfig) -> Result<Self, Error> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let mut query_key_value = Vec::with_capacity(3 * hidden * hidden);
        let mut bias = Vec::with_capacity(3 * hidden);
        for part in ["query", "key", "value"] {
            let part = format!("{name}.attention.self.{part}");
            query_key_value.extend(weights.read(&format!("{part}.weight"), &[hidden, hidden])?);
            bias.extend(weights.read(&format!("{part}.bias"), &[hidden])?);
        }
        Ok(Self {
            query_key_value: Linear::new(&query_key_value, Some(&bias), hidden),
            attention_output: linear(
                weights,
                &format!("{name}.attention.output.dense"),
                hidden,
                hidden,
            )?,
            attention_norm: layer_norm(
                weights,
                &format!("{name}.attention.output.LayerNorm"),
                config,
            )?,
            up: linear(weights, &format!("{name}.intermediate.dense"), hidden, intermediate)?,
            down: linear(weights, &format!("{name}.output.dense"), intermediate, hidden)?,
            output_norm: layer_norm(weights, &format!("{name}.output.LayerNorm"), config)?,
        })
    }

    fn bytes(&self) -> usize {
        let linear = [&self.query_key_value, &self.attention_output, &self.up, &self.down];
        linear.map(Linear::bytes).iter().sum()
    }
}

/// Reads a linear layer with bias under its full name.
pub(crate) fn linear(
    weights: &mut Weights,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> Result<Linear, Error> {
    let matrix = weights.read(&format!("{name}.weight"), &[outputs, inputs])?;
    let bias = weights.read(&format!("{name}.bias"), &[outputs])?;
    Ok(Linear::new(&matrix, Some(&bias), inputs))
}

/// Reads a layer norm under its full name.
pub(crate) fn layer_norm(
    weights: &mut Weights,
    name: &str,
    config: &EncoderConfig,
) -> Result<LayerNorm, Error> {
    let names = |new: &str, old: &str| [format!("{name}.{new}"), format!("{name}.{old}")];
    let mut read =
        |names: [String; 2]| weights.read_either([&names[0], &names[1]], &[config.hidden]);
    let gamma = read(names("weight", "gamma"))?;
    let beta = read(names("bias", "beta"))?;
    Ok(LayerNorm { gamma, beta, eps: config.norm_eps })
}

/// A failure of a tensor operation.
pub(crate) fn inference(error: &candle_core::Error) -> Error {
    Error::Inference(error.to_string())
}
