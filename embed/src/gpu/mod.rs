//! The forward pass on a GPU, behind the feature `cuda`.
//!
//! Weights and activations are float16 on the device, matrix products cuBLAS's with sums in
//! float32, and everything between them the kernels of `kernels.cu`, compiled to PTX with the
//! crate. Nothing is padded: attention works on the packed texts, a block per part of a text.
//!
//! Every function checks the shapes that its kernel counts on.

#![expect(unsafe_code, reason = "a kernel is launched by an unsafe call")]

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig,
    PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use half::f16;

use crate::cpu::{Activation, Heads, Turns};

/// The kernels, as nvcc made them.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Threads of a block of the kernels that work row by row.
const THREADS: u32 = 256;

/// Query rows of a block of the attention kernel, as `kernels.cu` has it.
const QUERIES: usize = 128;

/// Widths of heads that the attention kernel is compiled for.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// Whether the attention kernel knows heads of this width.
pub(crate) fn has_width(width: usize) -> bool {
    WIDTHS.contains(&width)
}

/// Where texts and positions of a batch are, on the device.
pub(crate) struct Packing {
    /// Per tile of the attention: first row, begin and end of its text.
    tiles: Tensor,
    tile_count: u32,
    /// Rows where texts begin, and the end.
    bounds: Tensor,
    positions: Tensor,
}

impl Packing {
    /// Uploads the texts that begin at `bounds`, with one position per row.
    pub(crate) fn new(device: &Device, bounds: &[usize], positions: &[u32]) -> Result<Self> {
        let mut tiles = Vec::new();
        for text in bounds.windows(2) {
            let of_text = (text[0]..text[1]).step_by(QUERIES);
            tiles.extend(of_text.flat_map(|first| [first, text[0], text[1]].map(|at| at as u32)));
        }
        let rows: Vec<u32> = bounds.iter().map(|bound| *bound as u32).collect();
        Ok(Self {
            tile_count: (tiles.len() / 3) as u32,
            tiles: Tensor::new(tiles, device)?,
            bounds: Tensor::new(rows, device)?,
            positions: Tensor::new(positions, device)?,
        })
    }
}

/// The word, position and type tables of an encoder.
pub(crate) struct Tables {
    words: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
}

impl Tables {
    /// Uploads tables of `rows × hidden`.
    pub(crate) fn new(
        device: &Device,
        words: &Tensor,
        positions: Option<&Tensor>,
        types: Option<&Tensor>,
    ) -> Result<Self> {
        let upload = |table: &Tensor| half(table)?.to_device(device);
        Ok(Self {
            words: upload(words)?,
            positions: positions.map(upload).transpose()?,
            types: types.map(upload).transpose()?,
        })
    }

    /// The sum of the rows of each token: `tokens × hidden`.
    pub(crate) fn rows(&self, ids: &[u32], positions: &[u32], types: &[u32]) -> Result<Tensor> {
        let device = self.words.device();
        let (words, hidden) = self.words.dims2()?;
        let most = |table: &Option<Tensor>| table.as_ref().map_or(Ok(usize::MAX), |t| t.dim(0));
        let within = |ids: &[u32], rows: usize| ids.iter().all(|id| (*id as usize) < rows);
        if positions.len() != ids.len()
            || types.len() != ids.len()
            || !within(ids, words)
            || !within(positions, most(&self.positions)?)
            || !within(types, most(&self.types)?)
        {
            bail!("a token, a position or a type that the tables do not have");
        }
        let gpu = gpu(device)?;
        let mut out = alloc::<f16>(gpu, ids.len() * hidden)?;
        let [ids_on, at, kinds] = [
            Tensor::new(ids, device)?,
            Tensor::new(positions, device)?,
            Tensor::new(types, device)?,
        ];
        let (ids_on, at, kinds) = (Input::u32(&ids_on)?, Input::u32(&at)?, Input::u32(&kinds)?);
        let words = Input::f16(&self.words)?;
        let positions = self.positions.as_ref().map(Input::f16).transpose()?;
        let types = self.types.as_ref().map(Input::f16).transpose()?;
        let function = kernel(gpu, "embed")?;
        let mut launch = function.builder();
        let width = hidden as u32;
        let (words, ids_on, at, kinds) = (words.view()?, ids_on.view()?, at.view()?, kinds.view()?);
        let positions = positions.as_ref().map(Input::view).transpose()?;
        let types = types.as_ref().map(Input::view).transpose()?;
        launch.arg(&mut out).arg(&words);
        optional(&mut launch, positions.as_ref());
        optional(&mut launch, types.as_ref());
        launch.arg(&ids_on).arg(&at).arg(&kinds).arg(&width);
        // SAFETY: a block per token; every id, position and type is below the rows of its table
        // (checked above), the tables are `hidden` wide, and `out` has `tokens × hidden` elements.
        unsafe { launch.launch(by_rows(ids.len(), 0)) }.w()?;
        wrap(gpu, out, (ids.len(), hidden))
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        let tables = [Some(&self.words), self.positions.as_ref(), self.types.as_ref()];
        tables.into_iter().flatten().map(bytes).sum()
    }
}

/// A linear layer: float16 weights, float32 bias.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `outputs × inputs`.
    weights: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From PyTorch's layout: `weights` is `outputs × inputs`, row-major.
    pub(crate) fn new(
        device: &Device,
        weights: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
    ) -> Result<Self> {
        let shape = (weights.len() / inputs.max(1), inputs);
        let weights =
            half(&Tensor::from_slice(weights, shape, &Device::Cpu)?)?.to_device(device)?;
        let bias = bias.map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self { weights, bias })
    }

    /// `activation(x weightsᵀ + bias)`.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        // Pooled vectors come in float32.
        let x = half(x)?;
        let product = x.matmul(&self.weights.t()?)?;
        let (rows, width) = product.dims2()?;
        if self.bias.is_none() && activation == Activation::None {
            return Ok(product);
        }
        let gpu = gpu(product.device())?;
        let product = Input::f16(&product)?;
        // The product is nobody else's, but candle lends it out for reading only.
        let mut out = gpu.cuda_stream().clone_dtod(&product.view()?).w()?;
        let bias = self.bias.as_ref().map(Input::f32).transpose()?;
        let bias = bias.as_ref().map(Input::view).transpose()?;
        let function = kernel(gpu, "bias_activation")?;
        let kind: u32 = match activation {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::Tanh => 2,
        };
        let (count, columns) = (rows * width, width as u32);
        let mut launch = function.builder();
        launch.arg(&mut out);
        optional(&mut launch, bias.as_ref());
        launch.arg(&columns).arg(&kind).arg(&count);
        // SAFETY: a thread per element, those beyond `count` return; the bias has `width` elements.
        unsafe { launch.launch(by_elements(count)) }.w()?;
        wrap(gpu, out, (rows, width))
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        bytes(&self.weights) + self.bias.as_ref().map_or(0, bytes)
    }
}

/// A layer norm's numbers.
#[derive(Debug)]
pub(crate) struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    /// Uploads them.
    pub(crate) fn new(device: &Device, gamma: &[f32], beta: &[f32]) -> Result<Self> {
        Ok(Self { gamma: Tensor::new(gamma, device)?, beta: Tensor::new(beta, device)? })
    }

    /// Normalises every row of `x`, or of `x + residual`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        eps: f32,
    ) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        if self.gamma.elem_count() != width
            || self.beta.elem_count() != width
            || residual.is_some_and(|residual| residual.dims() != x.dims())
        {
            bail!("a norm of {} numbers over {:?}", self.gamma.elem_count(), x.dims());
        }
        let gpu = gpu(x.device())?;
        let mut out = alloc::<f16>(gpu, rows * width)?;
        let (x, gamma, beta) = (Input::f16(x)?, Input::f32(&self.gamma)?, Input::f32(&self.beta)?);
        let residual = residual.map(Input::f16).transpose()?;
        let (x, gamma, beta) = (x.view()?, gamma.view()?, beta.view()?);
        let residual = residual.as_ref().map(Input::view).transpose()?;
        let function = kernel(gpu, "add_layer_norm")?;
        let columns = width as u32;
        let mut launch = function.builder();
        launch.arg(&mut out).arg(&x);
        optional(&mut launch, residual.as_ref());
        launch.arg(&gamma).arg(&beta).arg(&eps).arg(&columns);
        // SAFETY: a block per row with room for it in shared memory; all rows are `width` wide
        // (checked above).
        unsafe { launch.launch(by_rows(rows, width * size_of::<f32>())) }.w()?;
        wrap(gpu, out, (rows, width))
    }
}

/// Multi-head self-attention of each text; `qkv` is `tokens × 3 hidden`.
pub(crate) fn attention(qkv: &Tensor, heads: Heads, packing: &Packing) -> Result<Tensor> {
    let hidden = heads.count * heads.width;
    let (rows, width) = qkv.dims2()?;
    if width != 3 * hidden || rows != packing.positions.elem_count() || !has_width(heads.width) {
        bail!("attention of {} heads of {} over {:?}", heads.count, heads.width, qkv.dims());
    }
    let gpu = gpu(qkv.device())?;
    let mut out = alloc::<f16>(gpu, rows * hidden)?;
    let (qkv, tiles) = (Input::f16(qkv)?, Input::u32(&packing.tiles)?);
    let (qkv, tiles) = (qkv.view()?, tiles.view()?);
    let function = kernel(gpu, &format!("attention_{}", heads.width))?;
    let (count, scale) = (heads.count as u32, 1.0 / (heads.width as f32).sqrt());
    let config = LaunchConfig {
        grid_dim: (packing.tile_count, count, 1),
        block_dim: (QUERIES as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    let mut launch = function.builder();
    launch.arg(&mut out).arg(&qkv).arg(&tiles).arg(&count).arg(&scale);
    // SAFETY: a block per tile and head; the tiles lie within the rows of the batch, which
    // `qkv` has (checked above), and `out` has `rows × hidden` elements.
    unsafe { launch.launch(config) }.w()?;
    wrap(gpu, out, (rows, hidden))
}

/// Cosines and sines of all positions.
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
    positions: usize,
}

impl Angles {
    /// Uploads them.
    pub(crate) fn new(device: &Device, turns: &Turns) -> Result<Self> {
        let (cos, sin) = turns.tables();
        let positions = turns.positions();
        Ok(Self { cos: Tensor::new(cos, device)?, sin: Tensor::new(sin, device)?, positions })
    }

    /// Turns queries and keys to their positions.
    pub(crate) fn rotate(
        &self,
        qkv: &Tensor,
        heads: Heads,
        packing: &Packing,
        positions: &[u32],
    ) -> Result<Tensor> {
        let (rows, width) = qkv.dims2()?;
        if width != 3 * heads.count * heads.width
            || rows != packing.positions.elem_count()
            || self.cos.elem_count() != self.positions * (heads.width / 2)
            || positions.iter().any(|position| *position as usize >= self.positions)
        {
            bail!("positions of {} rows over {:?}", packing.positions.elem_count(), qkv.dims());
        }
        let gpu = gpu(qkv.device())?;
        let mut out = alloc::<f16>(gpu, rows * width)?;
        let (qkv, at) = (Input::f16(qkv)?, Input::u32(&packing.positions)?);
        let (cos, sin) = (Input::f32(&self.cos)?, Input::f32(&self.sin)?);
        let (qkv, at, cos, sin) = (qkv.view()?, at.view()?, cos.view()?, sin.view()?);
        let function = kernel(gpu, "rotate")?;
        let (count, wide) = (heads.count as u32, heads.width as u32);
        let mut launch = function.builder();
        launch.arg(&mut out).arg(&qkv).arg(&at).arg(&cos).arg(&sin).arg(&count).arg(&wide);
        // SAFETY: a block per row, all rows `3 × heads × width` wide, and every position in the
        // tables (checked above).
        unsafe { launch.launch(by_rows(rows, 0)) }.w()?;
        wrap(gpu, out, (rows, width))
    }
}

/// The left half of every row times GELU of the right one.
pub(crate) fn gate(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    if !columns.is_multiple_of(2) {
        bail!("expected rows of two halves, got {columns} numbers");
    }
    let gpu = gpu(x.device())?;
    let (count, width) = (rows * columns / 2, (columns / 2) as u32);
    let mut out = alloc::<f16>(gpu, count)?;
    let x = Input::f16(x)?;
    let x = x.view()?;
    let function = kernel(gpu, "gate")?;
    let mut launch = function.builder();
    launch.arg(&mut out).arg(&x).arg(&width).arg(&count);
    // SAFETY: a thread per element of the result, those beyond `count` return; `x` has twice as
    // many elements.
    unsafe { launch.launch(by_elements(count)) }.w()?;
    wrap(gpu, out, (rows, columns / 2))
}

/// The first row of each text, or the mean of all, in float32.
pub(crate) fn pool(hidden: &Tensor, packing: &Packing, mean: bool) -> Result<Tensor> {
    let (rows, width) = hidden.dims2()?;
    let texts = packing.bounds.elem_count() - 1;
    if rows != packing.positions.elem_count() {
        bail!("{rows} rows of a batch of {}", packing.positions.elem_count());
    }
    let gpu = gpu(hidden.device())?;
    let mut out = alloc::<f32>(gpu, texts * width)?;
    let (hidden, bounds) = (Input::f16(hidden)?, Input::u32(&packing.bounds)?);
    let (hidden, bounds) = (hidden.view()?, bounds.view()?);
    let function = kernel(gpu, "pool")?;
    let (columns, mean) = (width as u32, u32::from(mean));
    let mut launch = function.builder();
    launch.arg(&mut out).arg(&hidden).arg(&bounds).arg(&columns).arg(&mean);
    // SAFETY: a block per text; the bounds lie within the rows (checked above) and no text is
    // empty, as the batch promises.
    unsafe { launch.launch(by_rows(texts, 0)) }.w()?;
    wrap(gpu, out, (texts, width))
}

/// The tensor in float16.
fn half(tensor: &Tensor) -> Result<Tensor> {
    if tensor.dtype() == DType::F16 { Ok(tensor.clone()) } else { tensor.to_dtype(DType::F16) }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

fn gpu(device: &Device) -> Result<&CudaDevice> {
    device.as_cuda_device()
}

/// A kernel, and the stream that it is to run on.
struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

fn kernel(gpu: &CudaDevice, name: &str) -> Result<Kernel> {
    let function = gpu.get_or_load_custom_func(name, "elanus", PTX)?.into_cuda_function();
    Ok(Kernel { function, stream: gpu.cuda_stream() })
}

/// Elements whose values are not set yet; every kernel here writes all of its output.
fn alloc<T: DeviceRepr>(gpu: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: nothing reads the elements before the kernel that the caller launches wrote them.
    unsafe { gpu.alloc::<T>(count) }
}

fn wrap<T: CudaDType>(
    gpu: &CudaDevice,
    slice: CudaSlice<T>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, gpu.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// One block per row.
fn by_rows(rows: usize, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (rows as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shared_bytes as u32,
    }
}

/// One thread per element.
fn by_elements(count: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count.div_ceil(THREADS as usize) as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// A tensor that a kernel reads.
struct Input<'a, T> {
    storage: StorageRef<'a>,
    range: std::ops::Range<usize>,
    kind: PhantomData<T>,
}

impl<'a> Input<'a, f16> {
    fn f16(tensor: &'a Tensor) -> Result<Self> {
        Self::new(tensor)
    }
}

impl<'a> Input<'a, f32> {
    fn f32(tensor: &'a Tensor) -> Result<Self> {
        Self::new(tensor)
    }
}

impl<'a> Input<'a, u32> {
    fn u32(tensor: &'a Tensor) -> Result<Self> {
        Self::new(tensor)
    }
}

impl<'a, T: CudaDType> Input<'a, T> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor");
        };
        Ok(Self { storage, range: from..to, kind: PhantomData })
    }

    fn view(&self) -> Result<CudaView<'_, T>> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<T>()?.slice(self.range.clone())),
            Storage::Cpu(_) | Storage::Metal(_) => bail!("expected a tensor on the GPU"),
        }
    }
}

/// Passes a tensor, or a null pointer where there is none.
fn optional<'a, T>(launch: &mut LaunchArgs<'a>, view: Option<&'a CudaView<'a, T>>) {
    const NULL: &u64 = &0;
    match view {
        Some(view) => launch.arg(view),
        None => launch.arg(NULL),
    };
}
