//! The container of index and delete files: named, aligned, checksummed sections.
//!
//! ```text
//! header [64] = magic [8] | format u32 | crc32c u32 of the header from here on and the table
//!             | rows u64 | table offset u64 | table length u64 | 0 [24]
//! section*      each at a multiple of 64
//! table         JSON: [{"name", "offset", "len", "crc32c"}]
//! ```
//! Numbers are little-endian. The table is verified on opening, a section when it is asked for.

use std::io;
use std::path::{Path, PathBuf};

use arrow_buffer::Buffer;
use elanus_index::Sections;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::blobs::{Blobs, Published};
use crate::disk::{Disk, LocalDisk};
use crate::manifest::SectionsFile;

const MAGIC: [u8; 8] = *b"ELANSECT";

/// The format this node writes, and the newest that it reads.
const FORMAT: u32 = 1;

const HEADER: usize = 64;
const ALIGN: usize = 64;

/// A section to be written.
#[derive(Debug)]
pub(crate) struct Section {
    name: String,
    bytes: Vec<u8>,
}

impl Section {
    pub(crate) fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), bytes }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    offset: u64,
    len: u64,
    crc32c: u32,
}

/// Writes and publishes a container for a segment of that many rows, named `file` in `dir`.
pub(crate) fn write(
    blobs: &Blobs,
    dir: &str,
    file: &str,
    rows: usize,
    sections: &[Section],
) -> Result<SectionsFile, Error> {
    let key = format!("{dir}/{file}");
    let mut offset = HEADER as u64;
    let mut table = Vec::with_capacity(sections.len());
    for Section { name, bytes } in sections {
        let len = bytes.len() as u64;
        let crc32c = crc32c::crc32c(bytes);
        table.push(Entry { name: name.clone(), offset, len, crc32c });
        offset = (offset + len).next_multiple_of(ALIGN as u64);
    }
    let table = serde_json::to_vec(&table)
        .map_err(|error| Error::Internal(format!("cannot write a table of sections: {error}")))?;
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&(rows as u64).to_le_bytes());
    header[24..32].copy_from_slice(&offset.to_le_bytes());
    header[32..40].copy_from_slice(&(table.len() as u64).to_le_bytes());
    let crc = head_crc(&header, &table);
    header[12..16].copy_from_slice(&crc.to_le_bytes());

    let path = blobs.path(&key);
    let len = blobs.write_file(&key, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|error| Error::io(&path, error));
        put(&header)?;
        for Section { bytes, .. } in sections {
            put(bytes)?;
            put(&[0; ALIGN][..bytes.len().next_multiple_of(ALIGN) - bytes.len()])?;
        }
        put(&table)
    })?;
    Ok(SectionsFile { file: file.to_owned(), len, crc32c: crc })
}

fn head_crc(header: &[u8; HEADER], table: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[16..]), table)
}

/// An open container: the mapped file and its table.
#[derive(Debug)]
pub(crate) struct SectionFile {
    path: PathBuf,
    bytes: Buffer,
    rows: usize,
    table: Vec<Entry>,
}

impl SectionFile {
    /// Opens a container that a manifest names.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is missing or is not what the manifest says.
    pub(crate) fn open(file: &Published, entry: &SectionsFile) -> Result<Self, Error> {
        let bytes = file.map(entry.len)?;
        let (rows, table) = parse(&bytes, Some(entry.crc32c))
            .map_err(|detail| Error::corrupt(file.path(), detail))?;
        Ok(Self { path: file.path().to_owned(), bytes, rows, table })
    }

    /// A container whose checksums are right, whatever they are.
    pub(crate) fn forged(bytes: Buffer) -> Result<Self, String> {
        let (rows, table) = parse(&bytes, None)?;
        let mut file = Self { path: PathBuf::new(), bytes, rows, table };
        for at in 0..file.table.len() {
            file.table[at].crc32c = crc32c::crc32c(&file.slice(&file.table[at]));
        }
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Rows of the segment that the file belongs to.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// A section, verified; `None` if there is none of that name.
    pub(crate) fn section(&self, name: &str) -> Result<Option<Buffer>, Error> {
        self.table
            .iter()
            .find(|entry| entry.name == name)
            .map(|entry| self.check(entry))
            .transpose()
    }

    /// Verifies all sections.
    pub(crate) fn verified(self) -> Result<VerifiedSections, Error> {
        let sections = (self.table.iter())
            .map(|entry| Ok((entry.name.clone(), self.check(entry)?)))
            .collect::<Result<_, Error>>()?;
        Ok(VerifiedSections { rows: self.rows, sections })
    }

    fn check(&self, entry: &Entry) -> Result<Buffer, Error> {
        let section = self.slice(entry);
        let crc = crc32c::crc32c(&section);
        if crc == entry.crc32c {
            return Ok(section);
        }
        Err(Error::corrupt(
            &self.path,
            format!(
                "offset {}: section `{}` has checksum {crc:08x}, the table says {:08x}",
                entry.offset, entry.name, entry.crc32c
            ),
        ))
    }

    fn slice(&self, entry: &Entry) -> Buffer {
        let index = |n: u64| usize::try_from(n).expect("checked against the length on opening");
        self.bytes.slice_with_length(index(entry.offset), index(entry.len))
    }
}

/// All sections of a container, verified.
#[derive(Debug)]
pub(crate) struct VerifiedSections {
    rows: usize,
    sections: Vec<(String, Buffer)>,
}

impl VerifiedSections {
    /// Bytes of all sections.
    pub(crate) fn bytes(&self) -> usize {
        self.sections.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// The same, copied to memory with huge pages.
    ///
    /// # Errors
    /// When there is no such memory.
    pub(crate) fn in_memory(&self) -> io::Result<Self> {
        let copied =
            |(name, bytes): &(String, Buffer)| Ok((name.clone(), crate::in_huge_pages(bytes)?));
        Ok(Self {
            rows: self.rows,
            sections: self.sections.iter().map(copied).collect::<io::Result<_>>()?,
        })
    }
}

impl Sections for VerifiedSections {
    fn section(&self, name: &str) -> Option<Buffer> {
        self.sections.iter().find(|(found, _)| found == name).map(|(_, bytes)| bytes.clone())
    }

    fn rows(&self) -> usize {
        self.rows
    }
}

/// Rows and table of a container; without an expected checksum none is looked at.
fn parse(bytes: &[u8], expected_crc: Option<u32>) -> Result<(usize, Vec<Entry>), String> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or("the file is shorter than its header")?;
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(number)
    };
    if header[..8] != MAGIC {
        return Err("offset 0: the file does not begin like a section file".into());
    }
    let format = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if format > FORMAT {
        return Err(format!(
            "format {format} is newer than this node reads ({FORMAT}); use a newer release"
        ));
    }
    let rows = usize::try_from(number(16)).map_err(|error| error.to_string())?;
    let (offset, len) = (number(24), number(32));
    let range = |offset: u64, len: u64| {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        bytes.get(start..end)
    };
    let table = range(offset, len).ok_or("offset 24: the table lies beyond the end of the file")?;
    let read = || {
        let entries: Vec<Entry> =
            serde_json::from_slice(table).map_err(|error| error.to_string())?;
        match entries.iter().find(|entry| range(entry.offset, entry.len).is_none()) {
            Some(entry) => Err(format!("section `{}` lies beyond the end of the file", entry.name)),
            None => Ok(entries),
        }
    };
    let Some(expected_crc) = expected_crc else {
        return Ok((rows, read()?));
    };
    let stored = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    let crc = head_crc(header, table);
    if crc != stored || crc != expected_crc {
        return Err(format!(
            "offset 12: header and table have checksum {crc:08x}, the header says {stored:08x}, \
             the manifest {expected_crc:08x}"
        ));
    }
    Ok((rows, read()?))
}

/// What a container says of itself, and which of its sections are sound.
///
/// # Errors
/// [`Error::Corrupt`] if its header or its table is damaged.
pub(crate) fn inspect(path: &Path) -> Result<serde_json::Value, Error> {
    let bytes = LocalDisk.map(path).map_err(|error| Error::io(path, error))?;
    let len = bytes.len();
    let stored = bytes.get(12..16).and_then(|crc| crc.try_into().ok()).map(u32::from_le_bytes);
    let (rows, table) = parse(&bytes, Some(stored.unwrap_or_default()))
        .map_err(|detail| Error::corrupt(path, detail))?;
    let file = SectionFile { path: path.to_owned(), bytes, rows, table };
    let sections: Vec<serde_json::Value> = (file.table.iter())
        .map(|entry| {
            let state = file.check(entry).err().map_or("sound".to_owned(), |e| e.to_string());
            serde_json::json!({
                "name": entry.name,
                "offset": entry.offset,
                "len": entry.len,
                "crc32c": format!("{:08x}", entry.crc32c),
                "state": state,
            })
        })
        .collect();
    Ok(serde_json::json!({ "rows": rows, "len": len, "sections": sections }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn sample() -> (tempfile::TempDir, Published, SectionsFile) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
        let sections = [
            Section::new("a", vec![7; 100]),
            Section::new("b", vec![]),
            Section::new("c", vec![1]),
        ];
        let file = write(&blobs, ".", "x.idx", 9, &sections).unwrap();
        let published = blobs.published("x.idx");
        (dir, published, file)
    }

    #[test]
    fn sections_are_read_back_aligned() {
        let (_dir, published, entry) = sample();
        let file = SectionFile::open(&published, &entry).unwrap();
        assert_eq!(file.rows(), 9);
        assert_eq!(file.section("a").unwrap().unwrap().as_slice(), &[7; 100]);
        assert_eq!(file.section("c").unwrap().unwrap().as_ptr().addr() % ALIGN, 0);
        assert!(file.section("d").unwrap().is_none());
        let all = file.verified().unwrap();
        assert_eq!(Sections::rows(&all), 9);
        assert_eq!(Sections::section(&all, "b").unwrap().len(), 0);
    }

    #[test]
    fn any_damage_is_named_with_its_file_or_does_not_matter() {
        let (_dir, published, entry) = sample();
        let path = published.path().to_owned();
        let sound = fs_err::read(&path).unwrap();
        let content = |file: SectionFile| {
            file.verified()
                .map(|all| all.sections.iter().map(|(_, b)| b.to_vec()).collect::<Vec<_>>())
        };
        let expected = content(SectionFile::open(&published, &entry).unwrap()).unwrap();
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x40;
            fs_err::write(&path, &damaged).unwrap();
            match SectionFile::open(&published, &entry).and_then(content) {
                Ok(found) => assert_eq!(found, expected, "byte {at}"),
                Err(error) => assert!(error.to_string().contains("x.idx"), "{error}"),
            }
        }
        for len in 0..sound.len() {
            fs_err::write(&path, &sound[..len]).unwrap();
            let error = SectionFile::open(&published, &entry).unwrap_err().to_string();
            assert!(error.contains("x.idx"), "{error}");
        }
    }
}
