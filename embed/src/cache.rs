//! What a model is turned into once, so that the next start need not do it again.
//!
//! Two files may lie in `.elanus/` of a model folder: `model.safetensors`, where the folder has
//! only a pickle, and `int8.safetensors`, the layers of the encoder in eight bits, ready to be
//! mapped. Each says of which file (name, length, time) it was made, and is made anew when that
//! has changed. They are written beside their place and renamed, so a reader sees whole files. A
//! folder that cannot be written to costs the conversion at every start, and nothing else.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::json;

use crate::encoder::linear_shapes;
use crate::folder::Folder;
use crate::weights::{Int8Names, Weights, open_safetensors};
use crate::{Error, Precision};

/// The folder within a model folder.
const DIR: &str = ".elanus";

/// The form of the eight-bit weights; another number makes old files void.
const FORM: &str = "1";

/// The key in a file's metadata that says what it was made of.
const MADE_OF: &str = "made_of";

/// Opens the weights of a folder for a precision, converted before if that is worth it.
///
/// # Errors
/// [`Error::Load`] if the weights are damaged or are not those of the folder's configuration.
pub(crate) fn open(folder: &Folder, precision: Precision) -> Result<Weights, Error> {
    let dir = folder.spec.dir.join(DIR);
    let origin = fingerprint(&folder.weights);
    let mut weights = if folder.weights.extension().is_some_and(|extension| extension == "bin") {
        let path = dir.join("model.safetensors");
        if is_of(&path, &origin) || written(&path, write_safetensors(folder, &path, &origin))? {
            Weights::open(&path)?
        } else {
            Weights::open(&folder.weights)?
        }
    } else {
        Weights::open(&folder.weights)?
    };
    if precision == Precision::Int8 && weights.can_add() {
        let path = dir.join("int8.safetensors");
        if is_of(&path, &origin)
            || written(&path, write_int8(folder, &mut weights, &path, &origin))?
        {
            weights.add(&path)?;
        }
    }
    Ok(weights)
}

/// Why a file could not be made.
enum Failed {
    /// Its place cannot be written to.
    Write(std::io::Error),
    /// What it is made of is damaged.
    Source(Error),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Source(error)
    }
}

/// Whether a file was made; that it could not be written is no error.
fn written(path: &Path, outcome: Result<(), Failed>) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Failed::Source(error)) => Err(error),
        Err(Failed::Write(error)) => {
            let path = path.display();
            tracing::info!(%path, %error, "converted weights are not kept for the next start");
            Ok(false)
        }
    }
}

/// What a file was made of: name, length and time of the weights, and the form.
fn fingerprint(weights: &Path) -> String {
    let name = weights.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let metadata = fs_err::metadata(weights).ok();
    let bytes = metadata.as_ref().map_or(0, std::fs::Metadata::len);
    let time = metadata.and_then(|metadata| metadata.modified().ok());
    let nanos = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_nanos());
    format!("{FORM}:{name}:{bytes}:{}", nanos.unwrap_or_default())
}

fn is_of(path: &Path, origin: &str) -> bool {
    let Ok((_, _, metadata)) = open_safetensors(path) else { return false };
    let made_of = metadata.metadata().as_ref().and_then(|metadata| metadata.get(MADE_OF));
    made_of.is_some_and(|made_of| made_of == origin)
}

/// A tensor that is about to be written.
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

fn write_safetensors(folder: &Folder, path: &Path, origin: &str) -> Result<(), Failed> {
    let mut weights = Weights::open(&folder.weights)?;
    // A training state may lie in the same file: what is no tensor of numbers is left out.
    let list: Vec<_> =
        weights.list().into_iter().filter(|(name, _)| !name.ends_with("position_ids")).collect();
    let entries = list.iter().map(|(name, shape)| Entry {
        name: name.clone(),
        dtype: "F32",
        shape: shape.clone(),
        bytes: shape.iter().product::<usize>() * size_of::<f32>(),
    });
    let entries: Vec<Entry> = entries.collect();
    write(path, origin, &entries, |to| {
        for (name, shape) in &list {
            numbers(to, &weights.read(name, shape)?)?;
        }
        Ok(())
    })
}

fn write_int8(
    folder: &Folder,
    weights: &mut Weights,
    path: &Path,
    origin: &str,
) -> Result<(), Failed> {
    let prefix = weights.prefix().to_owned();
    let mut shapes = linear_shapes(&prefix, &folder.encoder);
    shapes.retain(|shape| shape.is_quantized());
    let mut entries = Vec::with_capacity(3 * shapes.len());
    for shape in &shapes {
        let (inputs, outputs) = shape.size();
        let Int8Names { panels, scales, sums } = Int8Names::new(shape.name());
        let bytes = crate::cpu::QuantMatrix::panel_bytes(inputs, outputs);
        let mut entry = |name, dtype, length: usize, bytes| {
            entries.push(Entry { name, dtype, shape: vec![length], bytes });
        };
        entry(panels, "U8", bytes, bytes);
        entry(scales, "F32", outputs, outputs * size_of::<f32>());
        entry(sums, "I32", outputs, outputs * size_of::<i32>());
    }
    write(path, origin, &entries, |to| {
        for shape in &shapes {
            let matrix = shape.quantize(weights)?;
            let parts = matrix.parts();
            to.write_all(parts.panels)?;
            numbers(to, parts.scales)?;
            for sum in parts.sums {
                to.write_all(&sum.to_le_bytes())?;
            }
        }
        Ok(())
    })
}

fn numbers(to: &mut impl Write, values: &[f32]) -> Result<(), Failed> {
    for chunk in values.chunks(1 << 16) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        to.write_all(&bytes)?;
    }
    Ok(())
}

/// Writes a safetensors file whose data begin on a cache line.
fn write(
    path: &Path,
    origin: &str,
    entries: &[Entry],
    data: impl FnOnce(&mut BufWriter<fs_err::File>) -> Result<(), Failed>,
) -> Result<(), Failed> {
    const LINE: usize = 64;
    let mut header = BTreeMap::from([("__metadata__", json!({ MADE_OF: origin }))]);
    let mut offset = 0;
    for Entry { name, dtype, shape, bytes } in entries {
        let data_offsets = [offset, offset + bytes];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": data_offsets });
        header.insert(name, entry);
        offset += bytes;
    }
    let mut header = json!(header).to_string();
    let unpadded = size_of::<u64>() + header.len();
    header.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(LINE) - unpadded));

    let (dir, temporary) = temporary(path);
    fs_err::create_dir_all(dir)?;
    let outcome = (|| {
        let mut to = BufWriter::new(fs_err::File::create(&temporary)?);
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(header.as_bytes())?;
        data(&mut to)?;
        let file = to.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)?;
        Ok(())
    })();
    if outcome.is_err() {
        // What is left of it is of no use; that it cannot be removed changes nothing.
        let _ = fs_err::remove_file(&temporary);
    }
    outcome
}

/// The folder of a file and a name beside it that no other process uses.
fn temporary(path: &Path) -> (&Path, PathBuf) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!("{name}.{}.tmp", std::process::id()));
    (path.parent().unwrap_or(path), temporary)
}
