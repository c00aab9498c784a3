//! The layers of the encoder as operations on candle tensors.
//!
//! The encoder is written in these words only, so that it stays one page whatever the device:
//! each is a kernel of [`crate::cpu`] behind candle's custom operations or, in a build with the
//! feature `cuda` and for weights that lie there, one of `gpu`.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail,
};

use crate::cpu::{self, Activation, Heads, Matrix, QuantMatrix, Turns};
#[cfg(feature = "cuda")]
use crate::gpu;

/// A linear layer with its activation: `tokens × inputs` in, `tokens × outputs` out.
#[derive(Debug)]
pub(crate) enum Linear {
    /// Weights of 32 bits.
    F32(Matrix),
    /// Weights of eight bits.
    Int8(QuantMatrix),
    /// Weights of 16 bits, on a GPU.
    #[cfg(feature = "cuda")]
    Gpu(gpu::Linear),
}

impl Linear {
    /// From PyTorch's layout: the `parts`, one below the other, are `outputs × inputs`, row-major.
    pub(crate) fn new(
        device: &Device,
        parts: &[&[f32]],
        bias: Option<&[f32]>,
        inputs: usize,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return gpu::Linear::new(device, &parts.concat(), bias, inputs).map(Self::Gpu);
        }
        on_cpu(device)?;
        Ok(Self::F32(Matrix::new(parts, bias, inputs)?))
    }

    /// Runs every row through the layer.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Self::Gpu(linear) = self {
            return linear.forward(x, activation);
        }
        x.apply_op1_no_bwd(&LinearOp { linear: self, activation })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(matrix) => matrix.bytes(),
            Self::Int8(matrix) => matrix.bytes(),
            #[cfg(feature = "cuda")]
            Self::Gpu(linear) => linear.bytes(),
        }
    }
}

/// Nothing here runs anywhere else in a build without the feature `cuda`.
fn on_cpu(device: &Device) -> Result<()> {
    if device.is_cpu() { Ok(()) } else { bail!("this build runs models on the CPU") }
}

/// A linear layer of which only the largest output per text is wanted.
#[derive(Debug)]
pub(crate) struct LinearMax(Matrix);

impl LinearMax {
    /// From PyTorch's layout: `weights` is `outputs × inputs`, row-major.
    pub(crate) fn new(weights: &[f32], bias: Option<&[f32]>, inputs: usize) -> Result<Self> {
        Ok(Self(Matrix::new(&[weights], bias, inputs)?))
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
    gamma: Vec<f32>,
    beta: Vec<f32>,
    eps: f32,
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::Norm>,
}

impl LayerNorm {
    /// From its weights and biases.
    pub(crate) fn new(device: &Device, gamma: Vec<f32>, beta: Vec<f32>, eps: f32) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let on_gpu = device.is_cuda().then(|| gpu::Norm::new(device, &gamma, &beta)).transpose()?;
        #[cfg(not(feature = "cuda"))]
        on_cpu(device)?;
        Ok(Self {
            gamma,
            beta,
            eps,
            #[cfg(feature = "cuda")]
            gpu: on_gpu,
        })
    }

    /// Normalises every row.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(norm) = &self.gpu {
            return norm.forward(x, None, self.eps);
        }
        x.apply_op1_no_bwd(self)
    }

    /// Normalises every row of `x + residual`.
    pub(crate) fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(norm) = &self.gpu {
            return norm.forward(x, Some(residual), self.eps);
        }
        x.apply_op2_no_bwd(residual, self)
    }
}

/// Where the texts of a batch are, and where their tokens.
pub(crate) struct Packing<'a> {
    bounds: &'a [usize],
    positions: &'a [u32],
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::Packing>,
}

impl<'a> Packing<'a> {
    /// Texts begin at the rows `bounds`, which end with the end; one position per row.
    pub(crate) fn new(device: &Device, bounds: &'a [usize], positions: &'a [u32]) -> Result<Self> {
        check_bounds(bounds, positions.len())?;
        #[cfg(feature = "cuda")]
        let on_gpu =
            device.is_cuda().then(|| gpu::Packing::new(device, bounds, positions)).transpose()?;
        #[cfg(not(feature = "cuda"))]
        on_cpu(device)?;
        Ok(Self {
            bounds,
            positions,
            #[cfg(feature = "cuda")]
            gpu: on_gpu,
        })
    }

    /// Rows where texts begin, and the end.
    pub(crate) fn bounds(&self) -> &'a [usize] {
        self.bounds
    }
}

/// Multi-head self-attention of each text; see [`cpu::attention`] for the layout of `qkv`.
pub(crate) fn attention(qkv: &Tensor, heads: Heads, packing: &Packing<'_>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(packing) = &packing.gpu {
        return gpu::attention(qkv, heads, packing);
    }
    qkv.apply_op1_no_bwd(&AttentionOp { heads, bounds: packing.bounds })
}

/// Positions that turn queries and keys.
pub(crate) struct Rotation {
    turns: Turns,
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::Angles>,
}

impl Rotation {
    /// With these angles.
    pub(crate) fn new(device: &Device, turns: Turns) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let on_gpu = device.is_cuda().then(|| gpu::Angles::new(device, &turns)).transpose()?;
        #[cfg(not(feature = "cuda"))]
        on_cpu(device)?;
        Ok(Self {
            turns,
            #[cfg(feature = "cuda")]
            gpu: on_gpu,
        })
    }

    /// Turns queries and keys to their positions; `qkv` as for [`attention`].
    pub(crate) fn forward(
        &self,
        qkv: &Tensor,
        heads: Heads,
        packing: &Packing<'_>,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(angles), Some(on_gpu)) = (&self.gpu, &packing.gpu) {
            return angles.rotate(qkv, heads, on_gpu, packing.positions);
        }
        qkv.apply_op1_no_bwd(&RotateOp { heads, positions: packing.positions, turns: &self.turns })
    }
}

/// One row per text, in f32: its first one, or the mean of all.
pub(crate) fn pool(hidden: &Tensor, packing: &Packing<'_>, mean: bool) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(packing) = &packing.gpu {
        return gpu::pool(hidden, packing, mean);
    }
    let bounds = packing.bounds;
    if !mean {
        let first: Vec<u32> = bounds[..bounds.len() - 1].iter().map(|&at| at as u32).collect();
        return hidden.index_select(&Tensor::new(first, hidden.device())?, 0);
    }
    let width = hidden.dim(1)?;
    let rows = flat(hidden)?;
    let texts = bounds.windows(2).map(|pair| &rows[pair[0] * width..pair[1] * width]);
    let means: Vec<f32> = texts.flat_map(|rows| mean_of(rows, width)).collect();
    Tensor::from_vec(means, (bounds.len() - 1, width), hidden.device())
}

/// The numbers of a tensor, wherever it is.
pub(crate) fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn mean_of(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    let count = (rows.len() / width) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// The left half of every row times GELU of the right one.
pub(crate) fn gate(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return gpu::gate(x);
    }
    x.apply_op1_no_bwd(&GateOp)
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
            #[cfg(feature = "cuda")]
            Linear::Gpu(_) => bail!("its weights are on the GPU"),
        };
        let (x, rows) = rows(storage, layout, inputs)?;
        let out = match self.linear {
            Linear::F32(matrix) => cpu::matmul(x, matrix, self.activation),
            Linear::Int8(matrix) => cpu::matmul_int8(x, matrix, self.activation),
            #[cfg(feature = "cuda")]
            Linear::Gpu(_) => bail!("its weights are on the GPU"),
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

struct RotateOp<'a> {
    heads: Heads,
    positions: &'a [u32],
    turns: &'a Turns,
}

impl CustomOp1 for RotateOp<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = 3 * self.heads.count * self.heads.width;
        let (qkv, rows) = rows(storage, layout, width)?;
        let most = self.turns.positions();
        if self.positions.len() != rows
            || self.positions.iter().any(|&position| position as usize >= most)
        {
            bail!("expected one position below {most} for each of {rows} rows");
        }
        let out = cpu::rotate(qkv, self.heads, self.positions, self.turns);
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }
}

struct GateOp;

impl CustomOp1 for GateOp {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        if columns == 0 || !columns.is_multiple_of(2) {
            bail!("expected rows of two halves, got {columns} numbers");
        }
        let (x, rows) = rows(storage, layout, columns)?;
        let out = cpu::gate(x, columns / 2);
        Ok((CpuStorage::F32(out), (rows, columns / 2).into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_the_rows() {
        assert_eq!(mean_of(&[1.0, 2.0, 3.0, 6.0], 2), [2.0, 4.0]);
    }
}
