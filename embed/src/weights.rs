//! Weight files: names and shapes in, `f32` numbers out.
//!
//! Two formats: safetensors, in one file or several, and the zip pickles of PyTorch, through candle's reader, which builds no Python objects and so can
//! execute nothing, after [`crate::pickle`] has looked at them. A tensor that is packed into another
//! layout is read straight into place; one that is used as it lies in the file is mapped. Every
//! tensor is checked against the shape its place in the model demands before a byte of it is
//! allocated.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::pickle::PthTensors;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::Error;
use crate::cpu::{Panels, QuantMatrix};
use crate::mapped::{FileMap, Mapped};
use crate::pickle::check_archive;
use crate::table::{Kind, Table};

/// The header lists names and shapes; the format itself allows no more than this.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The open weight files of a model.
pub(crate) struct Weights {
    path: PathBuf,
    source: Source,
    /// What stands before `embeddings.…` in the names of this file, e.g. `bert.`.
    prefix: String,
}

enum Source {
    Safetensors { files: Vec<SafeFile>, tensors: HashMap<String, Place> },
    Pickle { tensors: PthTensors, file_bytes: u64 },
}

/// An open safetensors file.
struct SafeFile {
    file: fs_err::File,
    data_start: u64,
    map: Option<FileMap>,
}

/// Where a tensor is: number of its file, and its entry there.
struct Place {
    file: usize,
    info: TensorInfo,
}

impl Weights {
    /// Opens a file by its name: safetensors, an index of several of them, or a pickle. Reads
    /// names and shapes only.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let load = |detail: String| Error::Load { path: path.to_owned(), detail };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = if name.ends_with(".safetensors.index.json") {
            let mut source = Source::Safetensors { files: Vec::new(), tensors: HashMap::new() };
            for shard in shards(path).map_err(load)? {
                let load = |detail: String| Error::Load { path: shard.clone(), detail };
                source.add(&shard).map_err(load)?;
            }
            source
        } else if name.ends_with(".safetensors") {
            let mut source = Source::Safetensors { files: Vec::new(), tensors: HashMap::new() };
            source.add(path).map_err(load)?;
            source
        } else {
            open_pickle(path).map_err(load)?
        };
        const WORDS: &str = "embeddings.word_embeddings.weight";
        let prefix = source.names().find_map(|name| name.strip_suffix(WORDS));
        let prefix = prefix.unwrap_or_default().to_owned();
        Ok(Self { path: path.to_owned(), source, prefix })
    }

    /// Adds the tensors of another safetensors file.
    pub(crate) fn add(&mut self, path: &Path) -> Result<(), Error> {
        self.source.add(path).map_err(|detail| Error::Load { path: path.to_owned(), detail })
    }

    /// Whether tensors of a safetensors file can be added.
    pub(crate) fn can_add(&self) -> bool {
        matches!(self.source, Source::Safetensors { .. })
    }

    /// Whether the encoder's tensor `name` is in the file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// Names and shapes of all tensors, sorted by name.
    pub(crate) fn list(&self) -> Vec<(String, Vec<usize>)> {
        let shape = |name: &str| self.source.shape(name).unwrap_or_default();
        let mut list: Vec<_> =
            self.source.names().map(|name| (name.to_owned(), shape(name))).collect();
        list.sort();
        list
    }

    /// What stands before the encoder's own names.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn load(&self, detail: String) -> Error {
        Error::Load { path: self.path.clone(), detail }
    }

    fn check_shape(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let found = self.source.shape(name);
        let found = found.ok_or_else(|| self.load(format!("it has no tensor `{name}`")))?;
        if found == shape {
            return Ok(());
        }
        Err(self.load(format!(
            "tensor `{name}` has shape {found:?}, the model's config.json demands {shape:?}"
        )))
    }

    /// Reads the tensor `name`, row-major, converted to `f32`.
    ///
    /// # Errors
    /// [`Error::Load`] if it is missing, has another shape or cannot be read.
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.check_shape(name, shape)?;
        let values = match &mut self.source {
            Source::Safetensors { files, tensors } => {
                let Place { file, info } = &tensors[name];
                let SafeFile { file, data_start, .. } = &mut files[*file];
                read_safetensor(file, *data_start, info)
            }
            Source::Pickle { tensors, file_bytes } => read_pickled(tensors, name, *file_bytes),
        };
        let values = values.map_err(|detail| self.load(format!("tensor `{name}`: {detail}")))?;
        self.check_finite(name, &values)?;
        Ok(values)
    }

    /// The tensor `name` as `f32`: as it lies in the file where it can be mapped, and read otherwise.
    /// For what is large and needed once: nothing is copied, and the pages are the cache's.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub(crate) fn values(&mut self, name: &str, shape: &[usize]) -> Result<Values, Error> {
        self.check_shape(name, shape)?;
        if let Source::Safetensors { files, tensors } = &self.source {
            let Place { file, info } = &tensors[name];
            let SafeFile { file, data_start, .. } = &files[*file];
            let (from, to) = info.data_offsets;
            let range = data_start + from as u64..data_start + to as u64;
            if cfg!(target_endian = "little") && info.dtype == Dtype::F32 && from < to {
                let mapped = Mapped::alone(file, range);
                let mapped = mapped.map_err(|e| self.load(format!("tensor `{name}`: {e}")))?;
                // Files of others may have them at any byte.
                if bytemuck::try_cast_slice::<u8, f32>(mapped.bytes()).is_ok() {
                    let values = Values::Mapped(mapped);
                    self.check_finite(name, &values)?;
                    return Ok(values);
                }
            }
        }
        self.read(name, shape).map(Values::Read)
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<(), Error> {
        // Looked at in groups, for the sake of vector instructions.
        let finite =
            |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
        if values.par_chunks(1 << 16).all(|part| part.chunks(4096).all(finite)) {
            return Ok(());
        }
        Err(self.load(format!("tensor `{name}` holds values that are not finite")))
    }

    /// The rows of the tensor `name`, as they lie in the file where it can be mapped.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub(crate) fn table(&mut self, name: &str, shape: [usize; 2]) -> Result<Table, Error> {
        self.check_shape(name, &shape)?;
        let kind = match &self.source {
            Source::Safetensors { tensors, .. } => {
                let dtype = tensors[name].info.dtype;
                let kinds =
                    [(Dtype::F32, Kind::F32), (Dtype::F16, Kind::F16), (Dtype::BF16, Kind::Bf16)];
                kinds.into_iter().find(|(of, _)| *of == dtype).map(|(_, kind)| kind)
            }
            Source::Pickle { .. } => None,
        };
        Ok(match kind {
            Some(kind) => Table::mapped(self.map(name)?, kind, shape),
            None => Table::owned(self.read(name, &shape)?, shape),
        })
    }

    /// The matrix of eight-bit weights `name`, if the files have it.
    ///
    /// # Errors
    /// [`Error::Load`] if it has another shape or cannot be read.
    pub(crate) fn int8(
        &mut self,
        name: &str,
        bias: &[f32],
        inputs: usize,
    ) -> Result<Option<QuantMatrix>, Error> {
        let names = Int8Names::new(name);
        if !self.has(&names.panels) {
            return Ok(None);
        }
        self.check_shape(&names.panels, &[QuantMatrix::panel_bytes(inputs, bias.len())])?;
        self.check_shape(&names.sums, &[bias.len()])?;
        let scales = self.read(&names.scales, &[bias.len()])?;
        let panels = self.map(&names.panels)?;
        let sums = self.map(&names.sums)?;
        let sums: Vec<i32> =
            sums.bytes().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        if panels.bytes().len() != QuantMatrix::panel_bytes(inputs, bias.len())
            || sums.len() != bias.len()
        {
            return Err(self.load(format!("the eight-bit tensors of `{name}` have other types")));
        }
        let panels = Panels::Mapped(panels);
        Ok(Some(QuantMatrix::from_parts(panels, scales, sums, bias.to_vec(), inputs)))
    }

    /// Maps a tensor of a safetensors file.
    fn map(&mut self, name: &str) -> Result<Mapped, Error> {
        let mapped = match &mut self.source {
            Source::Safetensors { files, tensors } => {
                let Place { file, info } = &tensors[name];
                files[*file].map(info)
            }
            Source::Pickle { .. } => Err("a pickle cannot be mapped".to_owned()),
        };
        mapped.map_err(|detail| self.load(format!("tensor `{name}`: {detail}")))
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

/// The numbers of a tensor.
pub(crate) enum Values {
    /// In memory.
    Read(Vec<f32>),
    /// In the file.
    Mapped(Mapped),
}

impl std::ops::Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Read(values) => values,
            Self::Mapped(mapped) => bytemuck::cast_slice(mapped.bytes()),
        }
    }
}

/// What the tensors of a matrix of eight-bit weights are called.
pub(crate) struct Int8Names {
    pub(crate) panels: String,
    pub(crate) scales: String,
    pub(crate) sums: String,
}

impl Int8Names {
    /// The names for the layer `name`.
    pub(crate) fn new(name: &str) -> Self {
        let part = |part: &str| format!("{name}.int8.{part}");
        Self { panels: part("panels"), scales: part("scales"), sums: part("sums") }
    }
}

impl SafeFile {
    fn map(&mut self, info: &TensorInfo) -> Result<Mapped, String> {
        let map = match &self.map {
            Some(map) => map.clone(),
            None => FileMap::new(&self.file).map_err(|error| error.to_string())?,
        };
        self.map = Some(map.clone());
        let start = usize::try_from(self.data_start).map_err(|error| error.to_string())?;
        let (from, to) = info.data_offsets;
        map.part(start + from..start + to).ok_or_else(|| "the file is shorter now".to_owned())
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
            Self::Safetensors { tensors, .. } => tensors.get(name).map(|t| t.info.shape.clone()),
            Self::Pickle { tensors, .. } => {
                tensors.tensor_infos().get(name).map(|t| t.layout.dims().to_vec())
            }
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), String> {
        let Self::Safetensors { files, tensors } = self else {
            return Err("tensors cannot be added to a pickle".to_owned());
        };
        let (file, data_start, metadata) = open_safetensors(path)?;
        let number = files.len();
        files.push(SafeFile { file, data_start, map: None });
        for (name, info) in metadata.tensors() {
            tensors.insert(name, Place { file: number, info: info.clone() });
        }
        Ok(())
    }
}

/// The files that an index lists; they lie beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>, String> {
    /// An index names every tensor once; large models have some thousand.
    const MAX_INDEX_BYTES: u64 = 16 << 20;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let file = fs_err::File::open(index).map_err(|error| error.to_string())?;
    let index_file: Index = serde_json::from_reader(BufReader::new(file).take(MAX_INDEX_BYTES))
        .map_err(|error| format!("it is not an index of safetensors files: {error}"))?;
    let mut names: Vec<String> = index_file.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match names.iter().find(|name| !name.ends_with(".safetensors") || !name.chars().all(plain)) {
        Some(name) => Err(format!("it names the file `{}`", name.escape_debug())),
        None => Ok(names.iter().map(|name| index.with_file_name(name)).collect()),
    }
}

/// Opens a safetensors file: where its data begin, and what they are.
pub(crate) fn open_safetensors(path: &Path) -> Result<(fs_err::File, u64, Metadata), String> {
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
    Ok((file, 8 + header_bytes, metadata))
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
