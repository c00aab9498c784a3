//! BERT and XLM-RoBERTa without padding.
//!
//! A batch is one flat run of tokens with the rows where texts begin; no row is ever computed
//! that is not a token. The two families differ in two places only: where positions start
//! (0, or padding index + 1 as fairseq counted them) and the names in their files, which
//! transformers made equal below a prefix.
//!
//! This module ends at the last hidden state; what becomes of it is [`crate::heads`].

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::cpu::{Activation, Heads, MAX_INT8_INPUTS, QuantMatrix};
use crate::folder::EncoderConfig;
use crate::layers::{LayerNorm, Linear, attention};
use crate::table::Table;
use crate::weights::Weights;
use crate::{Error, Precision};

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
    words: Table,
    positions: Table,
    types: Table,
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
    /// Reads all weights and packs them for the device, those of the layers as `precision` says.
    ///
    /// # Errors
    /// [`Error::Load`] for a tensor that is missing, of another shape, or damaged.
    pub(crate) fn load(
        weights: &mut Weights,
        config: &EncoderConfig,
        precision: Precision,
    ) -> Result<Self, Error> {
        let prefix = weights.prefix().to_owned();
        let mut table = |name: &str, rows: usize| {
            weights.table(&format!("{prefix}embeddings.{name}.weight"), [rows, config.hidden])
        };
        let words = table("word_embeddings", config.vocabulary)?;
        let positions = table("position_embeddings", config.positions)?;
        let types = table("token_type_embeddings", config.types)?;
        let norm = layer_norm(weights, &format!("{prefix}embeddings.LayerNorm"), config)?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(weights, &layer_name(&prefix, index), config, precision))
            .collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), words, positions, types, norm, layers })
    }

    /// The encoder's sizes.
    pub(crate) fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The word table, `vocabulary × hidden`; masked-language heads share it.
    pub(crate) fn words(&self) -> &Table {
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
        let rows = batch.ids.len();
        let mut sums = vec![0.0; rows * self.config.hidden];
        self.words.add(&batch.ids, &mut sums)?;
        // XLM-R has one type, whatever the pair.
        if self.config.types == 1 {
            self.types.add(&vec![0; rows], &mut sums)?;
        } else {
            self.types.add(&batch.types, &mut sums)?;
        }
        self.positions.add(&batch.positions, &mut sums)?;
        Tensor::from_vec(sums, (rows, self.config.hidden), &Device::Cpu)
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        let tables = [&self.words, &self.positions, &self.types];
        let tables: usize = tables.map(Table::bytes).iter().sum();
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        tables + layers
    }
}

impl Layer {
    fn load(
        weights: &mut Weights,
        name: &str,
        config: &EncoderConfig,
        precision: Precision,
    ) -> Result<Self, Error> {
        let [query_key_value, attention_output, up, down] = layer_shapes(name, config);
        let norm = |weights: &mut Weights, part: &str| {
            layer_norm(weights, &format!("{name}.{part}.LayerNorm"), config)
        };
        Ok(Self {
            query_key_value: query_key_value.load(weights, precision)?,
            attention_output: attention_output.load(weights, precision)?,
            attention_norm: norm(weights, "attention.output")?,
            up: up.load(weights, precision)?,
            down: down.load(weights, precision)?,
            output_norm: norm(weights, "output")?,
        })
    }

    fn bytes(&self) -> usize {
        let linear = [&self.query_key_value, &self.attention_output, &self.up, &self.down];
        linear.map(Linear::bytes).iter().sum()
    }
}

fn layer_name(prefix: &str, index: usize) -> String {
    format!("{prefix}encoder.layer.{index}")
}

/// A linear layer of the encoder before its weights are read.
pub(crate) struct LinearShape {
    name: String,
    /// What the file calls the parts whose outputs lie side by side; each has as many outputs.
    parts: Vec<String>,
    inputs: usize,
    outputs: usize,
}

/// The four linear layers of a layer: query, key and value; the rest of attention; up; down.
fn layer_shapes(name: &str, config: &EncoderConfig) -> [LinearShape; 4] {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let shape = |own: &str, parts: &[&str], inputs, outputs| LinearShape {
        name: format!("{name}.{own}"),
        parts: parts.iter().map(|part| format!("{name}.{part}")).collect(),
        inputs,
        outputs,
    };
    let qkv = ["attention.self.query", "attention.self.key", "attention.self.value"];
    let one = |own: &str, inputs, outputs| shape(own, &[own], inputs, outputs);
    [
        shape("attention.self", &qkv, hidden, hidden),
        one("attention.output.dense", hidden, hidden),
        one("intermediate.dense", hidden, intermediate),
        one("output.dense", intermediate, hidden),
    ]
}

/// All linear layers of an encoder.
pub(crate) fn linear_shapes(prefix: &str, config: &EncoderConfig) -> Vec<LinearShape> {
    (0..config.layers).flat_map(|index| layer_shapes(&layer_name(prefix, index), config)).collect()
}

impl LinearShape {
    /// What it is called among the eight-bit weights.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Width of a row that goes in, and of one that comes out.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.inputs, self.parts.len() * self.outputs)
    }

    fn load(&self, weights: &mut Weights, precision: Precision) -> Result<Linear, Error> {
        let bias = self.bias(weights)?;
        if precision == Precision::Int8 && self.is_quantized() {
            let ready = weights.int8(&self.name, &bias, self.inputs)?;
            let matrix = match ready {
                Some(matrix) => matrix,
                None => QuantMatrix::new(&self.matrix(weights)?, &bias, self.inputs),
            };
            return Ok(Linear::Int8(matrix));
        }
        Ok(Linear::new(&self.matrix(weights)?, Some(&bias), self.inputs))
    }

    /// Whether the layer is narrow enough for eight bits.
    pub(crate) fn is_quantized(&self) -> bool {
        self.inputs <= MAX_INT8_INPUTS
    }

    /// Reads and quantizes the layer.
    pub(crate) fn quantize(&self, weights: &mut Weights) -> Result<QuantMatrix, Error> {
        let bias = self.bias(weights)?;
        Ok(QuantMatrix::new(&self.matrix(weights)?, &bias, self.inputs))
    }

    fn matrix(&self, weights: &mut Weights) -> Result<Vec<f32>, Error> {
        let shape = [self.outputs, self.inputs];
        if let [part] = self.parts.as_slice() {
            return weights.read(&format!("{part}.weight"), &shape);
        }
        let mut matrix = Vec::with_capacity(self.parts.len() * self.outputs * self.inputs);
        for part in &self.parts {
            matrix.extend(weights.read(&format!("{part}.weight"), &shape)?);
        }
        Ok(matrix)
    }

    fn bias(&self, weights: &mut Weights) -> Result<Vec<f32>, Error> {
        let mut bias = Vec::with_capacity(self.parts.len() * self.outputs);
        for part in &self.parts {
            bias.extend(weights.read(&format!("{part}.bias"), &[self.outputs])?);
        }
        Ok(bias)
    }
}

/// Reads a linear layer of a head, with bias, under its full name.
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
