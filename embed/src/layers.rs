//! The layers of the encoder as operations on candle tensors.
//!
//! The encoder is written in these words only, so that it stays one page whatever the device:
//! today each is a kernel of [`crate::cpu`] behind candle's custom operations.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{self, Activation, Heads, Matrix, QuantMatrix};

/// A linear layer with its activation: `tokens × inputs` in, `tokens × outputs` out.
#[derive(Debug)]
pub(crate) enum Linear {
    /// Weights of 32 bits.
    F32(Matrix),
    /// Weights of eight bits.
    Int8(QuantMatrix),
}

impl Linear {
    /// From PyTorch's layout: `weights` is `outputs × inputs`, row-major.
    pub(crate) fn new(weights: &[f32], bias: Option<&[f32]>, inputs: usize) -> Self {
        Self::F32(Matrix::new(weights, bias, inputs))
    }

    /// Runs every row through the layer.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        x.apply_op1_no_bwd(&LinearOp { linear: self, activation })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(matrix) => matrix.bytes(),
            Self::Int8(matrix) => matrix.bytes(),
        }
    }
}

/// A linear layer of which only the largest output per text is wanted.
#[derive(Debug)]
pub(crate) struct LinearMax(Matrix);

impl LinearMax {
    /// From PyTorch's layout: `weights` is `outputs × inputs`, row-major.
    pub(crate) fn new(weights: &[f32], bias: Option<&[f32]>, inputs: usize) -> Self {
        Self(Matrix::new(weights, bias, inputs))
    }

    /// The largest output of the rows of each text: `texts × outputs`.
    pub(crate) fn forward(&self, x: &Tensor, bounds: &[usize]) -> Result<Tensor> {
        x.apply_op1_no_bwd(&LinearMaxOp { matrix: &self.0, bounds })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A layer norm over the last dimension.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) eps: f32,
}

impl LayerNorm {
    /// Normalises every row.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }

    /// Normalises every row of `x + residual`.
    pub(crate) fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(residual, self)
    }
}

/// Multi-head self-attention of each text; see [`cpu::attention`] for the layout of `qkv`.
pub(crate) fn attention(qkv: &Tensor, heads: Heads, bounds: &[usize]) -> Result<Tensor> {
    qkv.apply_op1_no_bwd(&AttentionOp { heads, bounds })
}

struct LinearOp<'a> {
    linear: &'a Linear,
    activation: Activation,
}

impl CustomOp1 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (inputs, outputs) = match self.linear {
            Linear::F32(matrix) => (matrix.inputs(), matrix.outputs()),
            Linear::Int8(matrix) => (matrix.inputs(), matrix.outputs()),
        };
        let (x, rows) = rows(storage, layout, inputs)?;
        let out = match self.linear {
            Linear::F32(matrix) => cpu::matmul(x, matrix, self.activation),
            Linear::Int8(matrix) => cpu::matmul_int8(x, matrix, self.activation),
        };
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }
}

struct LinearMaxOp<'a> {
    matrix: &'a Matrix,
    bounds: &'a [usize],
}

impl CustomOp1 for LinearMaxOp<'_> {
    fn name(&self) -> &'static str {
        "linear-max"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows) = rows(storage, layout, self.matrix.inputs())?;
        let texts = check_bounds(self.bounds, rows)?;
        let out = cpu::matmul_row_max(x, self.matrix, self.bounds);
        Ok((CpuStorage::F32(out), (texts, self.matrix.outputs()).into()))
    }
}

struct AttentionOp<'a> {
    heads: Heads,
    bounds: &'a [usize],
}

impl CustomOp1 for AttentionOp<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = self.heads.count * self.heads.width;
        let (qkv, rows) = rows(storage, layout, 3 * hidden)?;
        check_bounds(self.bounds, rows)?;
        let out = cpu::attention(qkv, self.heads, self.bounds);
        Ok((CpuStorage::F32(out), (rows, hidden).into()))
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows) = rows(storage, layout, self.gamma.len())?;
        let out = cpu::add_layer_norm(x, None, &self.gamma, &self.beta, self.eps);
        Ok((CpuStorage::F32(out), (rows, self.gamma.len()).into()))
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, x_rows) = rows(storage, layout, self.gamma.len())?;
        let (residual, residual_rows) = rows(residual, residual_layout, self.gamma.len())?;
        if x_rows != residual_rows {
            bail!("{x_rows} rows cannot be added to {residual_rows}");
        }
        let out = cpu::add_layer_norm(x, Some(residual), &self.gamma, &self.beta, self.eps);
        Ok((CpuStorage::F32(out), (x_rows, self.gamma.len()).into()))
    }
}

/// The numbers of a contiguous `rows × width` tensor.
fn rows<'a>(storage: &'a CpuStorage, layout: &Layout, width: usize) -> Result<(&'a [f32], usize)> {
    let (rows, columns) = layout.shape().dims2()?;
    if columns != width {
        bail!("expected rows of {width}, got {columns}");
    }
    let Some((from, to)) = layout.contiguous_offsets() else {
        bail!("expected contiguous rows");
    };
    Ok((&storage.as_slice::<f32>()?[from..to], rows))
}

/// Number of texts, if the bounds cover exactly these rows and no text is empty.
fn check_bounds(bounds: &[usize], rows: usize) -> Result<usize> {
    let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
    if bounds.first() != Some(&0) || bounds.last() != Some(&rows) || !ascending {
        bail!("the texts of the batch do not cover its {rows} rows");
    }
    Ok(bounds.len() - 1)
}
