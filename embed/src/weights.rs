//! Weight files: names and shapes in, `f32` numbers out.
//!
//! Two formats: safetensors, read tensor by tensor straight into place (the numbers end up on the
//! heap in another layout anyway, so a mapping of the file would only be a second copy), and the
//! zip pickles of PyTorch, through candle's reader, which builds no Python objects and so can
//! execute nothing, after [`crate::pickle`] has looked at them. Every tensor is checked against the shape its place in the model demands
//! before a byte of it is allocated.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::pickle::PthTensors;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::Error;
use crate::pickle::check_archive;

/// The header lists names and shapes; the format itself allows no more than this.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open weight file.
pub(crate) struct Weights {
    path: PathBuf,
    source: Source,
    /// What stands before `embeddings.…` in the names of this file, e.g. `bert.`.
    prefix: String,
}

enum Source {
    Safetensors { file: fs_err::File, data_start: u64, tensors: HashMap<String, TensorInfo> },
    Pickle { tensors: PthTensors, file_bytes: u64 },
}

impl Weights {
    /// Opens a file by its extension; reads names and shapes only.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let load = |detail: String| Error::Load { path: path.to_owned(), detail };
        let source = if path.extension().is_some_and(|extension| extension == "safetensors") {
            open_safetensors(path).map_err(load)?
        } else {
            open_pickle(path).map_err(load)?
        };
        const WORDS: &str = "embeddings.word_embeddings.weight";
        let prefix = source.names().find_map(|name| name.strip_suffix(WORDS));
        let prefix = prefix.unwrap_or_default().to_owned();
        Ok(Self { path: path.to_owned(), source, prefix })
    }

    /// Whether the encoder's tensor `name` is in the file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// What stands before the encoder's own names.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Reads the tensor `name`, row-major, converted to `f32`.
    ///
    /// # Errors
    /// [`Error::Load`] if it is missing, has another shape or cannot be read.
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let load = |detail: String| Error::Load { path: self.path.clone(), detail };
        let found =
            self.source.shape(name).ok_or_else(|| load(format!("it has no tensor `{name}`")))?;
        if found != shape {
            return Err(load(format!(
                "tensor `{name}` has shape {found:?}, the model's config.json demands {shape:?}"
            )));
        }
        let values = match &mut self.source {
            Source::Safetensors { file, data_start, tensors } => {
                read_safetensor(file, *data_start, &tensors[name])
            }
            Source::Pickle { tensors, file_bytes } => read_pickled(tensors, name, *file_bytes),
        };
        let values = values.map_err(|detail| Error::Load {
            path: self.path.clone(),
            detail: format!("tensor `{name}`: {detail}"),
        })?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(Error::Load {
            path: self.path.clone(),
            detail: format!("tensor `{name}` holds values that are not finite"),
        })
    }

    /// Reads a tensor under the first of two names that is there (older files call the weight of
    /// a layer norm `gamma`).
    pub(crate) fn read_either(
        &mut self,
        names: [&str; 2],
        shape: &[usize],
    ) -> Result<Vec<f32>, Error> {
        let name = if self.has(names[0]) || !self.has(names[1]) { names[0] } else { names[1] };
        self.read(name, shape)
    }
}

impl Source {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Safetensors { tensors, .. } => Box::new(tensors.keys().map(String::as_str)),
            Self::Pickle { tensors, .. } => {
                Box::new(tensors.tensor_infos().keys().map(String::as_str))
            }
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Safetensors { tensors, .. } => tensors.get(name).map(|t| t.shape.clone()),
            Self::Pickle { tensors, .. } => {
                tensors.tensor_infos().get(name).map(|t| t.layout.dims().to_vec())
            }
        }
    }
}

fn open_safetensors(path: &Path) -> Result<Source, String> {
    let mut file = fs_err::File::open(path).map_err(|error| error.to_string())?;
    let file_bytes = file.metadata().map_err(|error| error.to_string())?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "it is too short for safetensors".to_owned())?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes.saturating_sub(8) {
        return Err(format!(
            "its header claims {header_bytes} bytes of a file of {file_bytes}; it is not \
             safetensors, or was cut short"
        ));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(|error| error.to_string())?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| format!("its header is not understood: {error}"))?;
    let expected = 8 + header_bytes + metadata.data_len() as u64;
    if expected != file_bytes {
        return Err(format!(
            "its header describes {expected} bytes, the file has {file_bytes}; it was cut short \
             or overwritten, fetch it again"
        ));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok(Source::Safetensors { file, data_start: 8 + header_bytes, tensors })
}

fn read_safetensor(
    file: &mut fs_err::File,
    data_start: u64,
    info: &TensorInfo,
) -> Result<Vec<f32>, String> {
    let (from, to) = info.data_offsets;
    let io = |error: std::io::Error| error.to_string();
    file.seek(SeekFrom::Start(data_start + from as u64)).map_err(io)?;
    if info.dtype == Dtype::F32 {
        let mut values = vec![0.0_f32; (to - from) / size_of::<f32>()];
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(io)?;
        if cfg!(target_endian = "big") {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        return Ok(values);
    }
    if info.dtype == Dtype::F16 || info.dtype == Dtype::BF16 {
        let mut bits = vec![0_u16; (to - from) / size_of::<u16>()];
        file.read_exact(bytemuck::cast_slice_mut(&mut bits)).map_err(io)?;
        for half in &mut bits {
            *half = u16::from_le(*half);
        }
        let mut values = vec![0.0; bits.len()];
        if info.dtype == Dtype::F16 {
            bytemuck::cast_slice::<u16, half::f16>(&bits).convert_to_f32_slice(&mut values);
        } else {
            bytemuck::cast_slice::<u16, half::bf16>(&bits).convert_to_f32_slice(&mut values);
        }
        return Ok(values);
    }
    Err(format!("its numbers are {:?}; F32, F16 and BF16 are supported", info.dtype))
}

fn open_pickle(path: &Path) -> Result<Source, String> {
    let file_bytes = fs_err::metadata(path).map_err(|error| error.to_string())?.len();
    let open = || {
        let file = fs_err::File::open(path).map_err(|error| error.to_string())?;
        check_archive(BufReader::new(file))?;
        PthTensors::new(path, None).map_err(|error| error.to_string())
    };
    let tensors = guarded(open)
        .map_err(|error| format!("it is not a PyTorch file (zip, 1.6 or later): {error}"))?;
    Ok(Source::Pickle { tensors, file_bytes })
}

fn read_pickled(tensors: &PthTensors, name: &str, file_bytes: u64) -> Result<Vec<f32>, String> {
    let info = tensors.tensor_infos().get(name).ok_or("it is missing")?;
    if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
        return Err(format!("its numbers are {:?}", info.dtype));
    }
    // The archive stores tensors uncompressed, so none is larger than the file.
    let bytes = info.layout.shape().elem_count() as u64 * info.dtype.size_in_bytes() as u64;
    if bytes > file_bytes {
        return Err(format!("it claims {bytes} bytes of a file of {file_bytes}"));
    }
    guarded(|| {
        let tensor = tensors.get(name).map_err(|error| error.to_string())?;
        let tensor = tensor.ok_or("it is missing")?;
        tensor
            .to_dtype(DType::F32)
            .and_then(|tensor| tensor.flatten_all())
            .and_then(|tensor| tensor.to_vec1())
            .map_err(|error| error.to_string())
    })
}

/// Candle's reader trusts its input in places; a panic there is an unreadable file.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err("its structure is not understood".to_owned()))
}
