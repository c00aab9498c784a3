//! What one file says.

use std::io::Write;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use fs_err as fs;
use serde_json::{Value, json};

use super::ReadOnlyLog;
use crate::Error;
use crate::disk::{self, LocalDisk};
use crate::document;
use crate::log::Lsn;
use crate::log::reader::replay;
use crate::log::record::Change;
use crate::segment::{sealed, section_file};

/// The kinds of files there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A log file, or the directory of them.
    Log,
    /// A data, index or delete file of a segment.
    Segment,
    /// A version of a manifest, or the directory of them.
    Manifest,
    /// A version of the catalog, or the directory of them.
    Catalog,
}

/// Writes what a file says as JSON: one object, or for the log a line for each record. Takes no
/// lock and changes nothing.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged, after all that is sound; [`Error::Io`].
pub fn inspect(kind: Kind, path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    match kind {
        Kind::Log => log(path, out),
        Kind::Segment => {
            let is_data = path.extension().is_some_and(|ending| ending == "arrow");
            let shown = if is_data { sealed::inspect(path)? } else { section_file::inspect(path)? };
            put_pretty(out, &shown)
        }
        Kind::Manifest | Kind::Catalog => put_pretty(out, &read_document(path)?),
    }
}

fn put_pretty(out: &mut dyn Write, shown: &Value) -> Result<(), Error> {
    writeln!(out, "{shown:#}").map_err(|error| Error::io(Path::new("the output"), error))
}

/// The newest version in a directory, or the version that a file holds.
fn read_document(path: &Path) -> Result<Value, Error> {
    let failed = |error| Error::io(path, error);
    let mut file = path.to_owned();
    if path.is_dir() {
        let mut versions: Vec<PathBuf> = (fs::read_dir(path).map_err(failed)?)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .collect();
        versions.sort_unstable();
        let newest = versions.pop();
        file = newest.ok_or_else(|| Error::corrupt(path, "there is no version in it"))?;
    }
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let version = name.parse().map_err(|_| {
        Error::Invalid(format!("{} is not named by a version, such as 7.json", file.display()))
    })?;
    let bytes = fs::read(&file).map_err(failed)?;
    document::decode(&bytes, version).map_err(|detail| Error::corrupt(&file, detail))
}

fn rows_of(parts: &[(i64, RecordBatch)]) -> Vec<Value> {
    let part =
        |(id, batch): &(i64, RecordBatch)| json!({"partition": id, "rows": batch.num_rows()});
    parts.iter().map(part).collect()
}

fn log(path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let number = |path: &Path| -> Option<Lsn> {
        path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()
    };
    let (dir, start) = match number(path) {
        Some(first) if path.is_file() => (path.parent().unwrap_or(Path::new(".")), first),
        _ => {
            let names = disk::list(&LocalDisk, path)?;
            let first = names.iter().find_map(|found| number(Path::new(&found.name)));
            (path, first.ok_or_else(|| Error::corrupt(path, "there is no log file in it"))?)
        }
    };
    let only = path.is_file().then_some(path);
    let log = ReadOnlyLog::at(dir);
    replay(&log, start, 0, &mut |frame| {
        if only.is_some_and(|only| only.file_name() != frame.path.file_name()) {
            return Ok(());
        }
        let change = match frame.record().map(|record| record.change) {
            Ok(Change::Insert(parts)) => json!({"insert": rows_of(&parts)}),
            Ok(Change::Replace { keys, parts }) => {
                json!({"delete": keys.len(), "insert": rows_of(&parts)})
            }
            Ok(Change::Delete { partitions, keys }) => {
                json!({"delete": keys.len(), "partitions": partitions})
            }
            Err(error) => json!({"unreadable": error.to_string()}),
        };
        let line = json!({
            "file": frame.path.file_name().unwrap_or_default().to_string_lossy(),
            "offset": frame.offset,
            "lsn": frame.lsn,
            "ts": frame.ts.0,
            "collection": frame.collection,
            "bytes": frame.body.len(),
            "change": change,
        });
        writeln!(out, "{line}").map_err(|error| Error::io(Path::new("the output"), error))
    })?;
    Ok(())
}
