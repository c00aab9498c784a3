//! BERT, XLM-RoBERTa and GTE without padding.
//!
//! A batch is one flat run of tokens with the rows where texts begin; no row is ever computed
//! that is not a token. BERT and XLM-R differ only in where positions start (0, or one behind the
//! padding index as fairseq counted them). GTE has no table of positions but turns queries and keys, a gate
//! in place of the first half of the feed-forward layers, and names of its own.
//!
//! This module ends at the last hidden state; what becomes of it is [`crate::heads`].

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::cpu::{Activation, Heads, MAX_INT8_INPUTS, QuantMatrix, Turns};
use crate::folder::{EncoderConfig, Form, Rotary};
#[cfg(feature = "cuda")]
use crate::gpu;
use crate::layers::{LayerNorm, Linear, Packing, Rotation, attention, gate};
use crate::table::Table;
use crate::weights::{Values, Weights};
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

    /// Where its texts are, for the layers that run on `device`.
    pub(crate) fn packing(&self, device: &Device) -> CandleResult<Packing<'_>> {
        Packing::new(device, &self.bounds, &self.positions)
    }
}

/// Where and in which numbers the layers of a model run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) device: Device,
    /// Not `Auto`.
    pub(crate) precision: Precision,
}

/// The encoder of one model.
pub(crate) struct Encoder {
    config: EncoderConfig,
    place: Place,
    words: Table,
    positions: Positions,
    types: Option<Table>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    #[cfg(feature = "cuda")]
    tables: Option<gpu::Tables>,
}

/// How tokens know where they are.
enum Positions {
    Table(Table),
    Turns(Rotation),
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
    /// Reads all weights and packs them for the device, those of the layers as `place` says.
    ///
    /// # Errors
    /// [`Error::Load`] for a tensor that is missing, of another shape, or damaged.
    pub(crate) fn load(
        weights: &mut Weights,
        config: &EncoderConfig,
        place: &Place,
    ) -> Result<Self, Error> {
        let prefix = weights.prefix().to_owned();
        let mut table = |name: &str, rows: usize| {
            weights.table(&format!("{prefix}embeddings.{name}.weight"), [rows, config.hidden])
        };
        let words = table("word_embeddings", config.vocabulary)?;
        let positions = match config.form {
            Form::Bert { positions, .. } => {
                Positions::Table(table("position_embeddings", positions)?)
            }
            Form::Gte { positions, rotary, .. } => {
                let speeds = speeds(rotary, config.hidden / config.heads);
                let turns = Turns::new(positions, &speeds);
                let rotation = Rotation::new(&place.device, turns);
                Positions::Turns(rotation.map_err(|error| inference(&error))?)
            }
        };
        let types = match config.types {
            0 => None,
            types => Some(table("token_type_embeddings", types)?),
        };
        let norm = layer_norm(weights, place, &format!("{prefix}embeddings.LayerNorm"), config)?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(weights, &layer_name(&prefix, index), config, place))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            config: config.clone(),
            place: place.clone(),
            #[cfg(feature = "cuda")]
            tables: tables(place, &words, &positions, types.as_ref())
                .map_err(|error| inference(&error))?,
            words,
            positions,
            types,
            norm,
            layers,
        })
    }

    /// Where it runs.
    pub(crate) fn place(&self) -> &Place {
        &self.place
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
    pub(crate) fn forward(
        &self,
        batch: &PackedBatch,
        packing: &Packing<'_>,
    ) -> CandleResult<Tensor> {
        let heads =
            Heads { count: self.config.heads, width: self.config.hidden / self.config.heads };
        let mut x = self.norm.forward(&self.embed(batch)?)?;
        for layer in &self.layers {
            let attended = {
                let context = self.context(layer, &x, heads, packing)?;
                let attended = layer.attention_output.forward(&context, Activation::None)?;
                layer.attention_norm.forward_residual(&attended, &x)?
            };
            let inner = if self.config.is_gated() {
                gate(&layer.up.forward(&attended, Activation::None)?)?
            } else {
                layer.up.forward(&attended, Activation::Gelu)?
            };
            let output = layer.down.forward(&inner, Activation::None)?;
            x = layer.output_norm.forward_residual(&output, &attended)?;
        }
        Ok(x)
    }

    /// What attention makes of `x`. Queries, keys and values end here: for a long text they are the
    /// largest of a layer beside what lies inside the feed-forward part.
    fn context(
        &self,
        layer: &Layer,
        x: &Tensor,
        heads: Heads,
        packing: &Packing<'_>,
    ) -> CandleResult<Tensor> {
        let mut qkv = layer.query_key_value.forward(x, Activation::None)?;
        if let Positions::Turns(turns) = &self.positions {
            qkv = turns.forward(&qkv, heads, packing)?;
        }
        attention(&qkv, heads, packing)
    }

    fn embed(&self, batch: &PackedBatch) -> CandleResult<Tensor> {
        let rows = batch.ids.len();
        #[cfg(feature = "cuda")]
        if let Some(tables) = &self.tables {
            // XLM-R has one type, whatever the pair.
            let first = vec![0; rows];
            let types = if self.config.types > 1 { &batch.types } else { &first };
            return tables.rows(&batch.ids, &batch.positions, types);
        }
        let mut sums = vec![0.0; rows * self.config.hidden];
        self.words.add(&batch.ids, &mut sums)?;
        if let Some(types) = &self.types {
            // XLM-R has one type, whatever the pair.
            let first = vec![0; if self.config.types == 1 { rows } else { 0 }];
            types.add(if first.is_empty() { &batch.types } else { &first }, &mut sums)?;
        }
        if let Positions::Table(positions) = &self.positions {
            positions.add(&batch.positions, &mut sums)?;
        }
        Tensor::from_vec(sums, (rows, self.config.hidden), &Device::Cpu)
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        let positions = match &self.positions {
            Positions::Table(table) => Some(table),
            Positions::Turns(_) => None,
        };
        let tables = [Some(&self.words), positions, self.types.as_ref()];
        let tables: usize = tables.into_iter().flatten().map(Table::bytes).sum();
        #[cfg(feature = "cuda")]
        let tables = self.tables.as_ref().map_or(tables, gpu::Tables::bytes);
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        tables + layers
    }
}

impl Layer {
    fn load(
        weights: &mut Weights,
        name: &str,
        config: &EncoderConfig,
        place: &Place,
    ) -> Result<Self, Error> {
        let [query_key_value, attention_output, up, down] = layer_shapes(name, config);
        let norm = |weights: &mut Weights, part: &str| {
            layer_norm(weights, place, &format!("{name}.{part}"), config)
        };
        let [attention_norm, output_norm] = match config.form {
            Form::Bert { .. } => ["attention.output.LayerNorm", "output.LayerNorm"],
            Form::Gte { .. } => ["attn_ln", "mlp_ln"],
        };
        Ok(Self {
            query_key_value: query_key_value.load(weights, place)?,
            attention_output: attention_output.load(weights, place)?,
            attention_norm: norm(weights, attention_norm)?,
            up: up.load(weights, place)?,
            down: down.load(weights, place)?,
            output_norm: norm(weights, output_norm)?,
        })
    }

    fn bytes(&self) -> usize {
        let linear = [&self.query_key_value, &self.attention_output, &self.up, &self.down];
        linear.map(Linear::bytes).iter().sum()
    }
}

/// The tables on the GPU, if that is the place.
#[cfg(feature = "cuda")]
fn tables(
    place: &Place,
    words: &Table,
    positions: &Positions,
    types: Option<&Table>,
) -> CandleResult<Option<gpu::Tables>> {
    if !place.device.is_cuda() {
        return Ok(None);
    }
    let positions = match positions {
        Positions::Table(table) => Some(table.tensor()?),
        Positions::Turns(_) => None,
    };
    let types = types.map(Table::tensor).transpose()?;
    let words = words.tensor()?;
    gpu::Tables::new(&place.device, &words, positions.as_ref(), types.as_ref()).map(Some)
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
    bias: bool,
}

/// The four linear layers of a layer: query, key and value; the rest of attention; up; down.
fn layer_shapes(name: &str, config: &EncoderConfig) -> [LinearShape; 4] {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let shape = |own: &str, parts: &[&str], inputs, outputs| LinearShape {
        name: format!("{name}.{own}"),
        parts: parts.iter().map(|part| format!("{name}.{part}")).collect(),
        inputs,
        outputs,
        bias: true,
    };
    let one = |own: &str, inputs, outputs| shape(own, &[own], inputs, outputs);
    match config.form {
        Form::Bert { .. } => {
            let qkv = ["attention.self.query", "attention.self.key", "attention.self.value"];
            [
                shape("attention.self", &qkv, hidden, hidden),
                one("attention.output.dense", hidden, hidden),
                one("intermediate.dense", hidden, intermediate),
                one("output.dense", intermediate, hidden),
            ]
        }
        Form::Gte { packed, .. } => {
            let qkv = ["attention.q_proj", "attention.k_proj", "attention.v_proj"];
            [
                match packed {
                    true => one("attention.qkv_proj", hidden, 3 * hidden),
                    false => shape("attention.qkv_proj", &qkv, hidden, hidden),
                },
                one("attention.o_proj", hidden, hidden),
                LinearShape { bias: false, ..one("mlp.up_gate_proj", hidden, 2 * intermediate) },
                one("mlp.down_proj", intermediate, hidden),
            ]
        }
    }
}

/// Radians per position of each pair of a head of `width` numbers. A stretched model turns more
/// slowly: "NTK-aware" scaling with the fixed form of Su (kexue.fm/archives/9706).
fn speeds(rotary: Rotary, width: usize) -> Vec<f32> {
    let Rotary { base, stretch } = rotary;
    let slower = stretch.powf(2.0 / width as f64);
    let speed = |pair: usize| (base * stretch).powf(-2.0 * pair as f64 / width as f64) / slower;
    (0..width / 2).map(|pair| speed(pair) as f32).collect()
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

    fn load(&self, weights: &mut Weights, place: &Place) -> Result<Linear, Error> {
        let bias = self.bias(weights)?;
        if place.precision == Precision::Int8 && self.is_quantized() {
            let ready = weights.int8(&self.name, &bias, self.inputs)?;
            let matrix = match ready {
                Some(matrix) => matrix,
                None => self.quantize(weights)?,
            };
            return Ok(Linear::Int8(matrix));
        }
        let matrix = self.matrix(weights)?;
        let parts: Vec<&[f32]> = matrix.iter().map(|part| &**part).collect();
        Linear::new(&place.device, &parts, Some(&bias), self.inputs)
            .map_err(|error| inference(&error))
    }

    /// Whether the layer is narrow enough for eight bits.
    pub(crate) fn is_quantized(&self) -> bool {
        self.inputs <= MAX_INT8_INPUTS
    }

    /// Reads and quantizes the layer.
    pub(crate) fn quantize(&self, weights: &mut Weights) -> Result<QuantMatrix, Error> {
        let bias = self.bias(weights)?;
        let matrix = self.matrix(weights)?;
        let parts: Vec<&[f32]> = matrix.iter().map(|part| &**part).collect();
        Ok(QuantMatrix::new(&parts.concat(), &bias, self.inputs))
    }

    /// The parts, one below the other.
    fn matrix(&self, weights: &mut Weights) -> Result<Vec<Values>, Error> {
        let shape = [self.outputs, self.inputs];
        let part = |part: &String| weights.values(&format!("{part}.weight"), &shape);
        self.parts.iter().map(part).collect()
    }

    fn bias(&self, weights: &mut Weights) -> Result<Vec<f32>, Error> {
        if !self.bias {
            return Ok(vec![0.0; self.parts.len() * self.outputs]);
        }
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
    place: &Place,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> Result<Linear, Error> {
    let matrix = weights.values(&format!("{name}.weight"), &[outputs, inputs])?;
    let bias = weights.read(&format!("{name}.bias"), &[outputs])?;
    Linear::new(&place.device, &[&matrix], Some(&bias), inputs).map_err(|error| inference(&error))
}

/// Reads a layer norm under its full name.
pub(crate) fn layer_norm(
    weights: &mut Weights,
    place: &Place,
    name: &str,
    config: &EncoderConfig,
) -> Result<LayerNorm, Error> {
    let names = |new: &str, old: &str| [format!("{name}.{new}"), format!("{name}.{old}")];
    let mut read =
        |names: [String; 2]| weights.read_either([&names[0], &names[1]], &[config.hidden]);
    let gamma = read(names("weight", "gamma"))?;
    let beta = read(names("bias", "beta"))?;
    LayerNorm::new(&place.device, gamma, beta, config.norm_eps).map_err(|error| inference(&error))
}

/// A failure of a tensor operation.
pub(crate) fn inference(error: &candle_core::Error) -> Error {
    /// What the driver calls it, and what cuBLAS does.
    const OUT_OF_MEMORY: [&str; 3] = ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"];
    let text = error.to_string();
    if OUT_OF_MEMORY.iter().any(|name| text.contains(name)) {
        return Error::DeviceMemory(text);
    }
    Error::Inference(text)
}
