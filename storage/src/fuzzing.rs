//! What reads bytes from disk, on any bytes: the entry points of the fuzz targets, and no part of
//! the API.
//!
//! Checksums do not stop anything here, or what lies behind them would never be reached. Whatever
//! the bytes, the answer is a value or an error: never a panic, and never an allocation that the
//! bytes do not pay for.

use std::io::{Cursor, Read};
use std::path::PathBuf;

use arrow_buffer::Buffer;
use elanus_index::{
    Elem, HnswIndex, Metric, Sections, SparseIndex, SparseScan, TermIndex, Vectors,
};

use crate::Error;
use crate::catalog::store;
use crate::document;
use crate::log::Lsn;
use crate::log::files::{LogDir, LogFile};
use crate::log::frame::{FILE_HEADER, FRAME_HEADER};
use crate::log::reader::replay;
use crate::log::record::Change;
use crate::manifest::Manifest;
use crate::segment::delete::DeleteMask;
use crate::segment::sealed;
use crate::segment::section_file::SectionFile;

/// A segment of the graphs has at most as many rows.
const MOST_ROWS: usize = 1 << 16;

/// A target's name, and what reads its bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("log", log),
    ("record", record),
    ("segment", segment),
    ("sections", sections),
    ("manifest", manifest),
    ("catalog", catalog),
];

/// Recovery of a directory with one log file.
pub fn log(bytes: &[u8]) {
    // What a file says of its first record is told by its name as well.
    let first = bytes.get(16..24).and_then(|lsn| lsn.try_into().ok()).map_or(1, u64::from_le_bytes);
    let file = OneFile { first, bytes };
    let _ = replay(&file, first, 0, &mut |frame| {
        let _ = frame.record();
        Ok(())
    });
}

/// The bodies of frames, of any kind: what is behind the header of a log file and of its first
/// frame.
pub fn record(bytes: &[u8]) {
    let body = bytes.get(FILE_HEADER + FRAME_HEADER..).unwrap_or_default();
    for kind in 0..5 {
        let _ = Change::decode(kind, body);
    }
}

/// A data file, all columns of it.
pub fn segment(bytes: &[u8]) {
    let _ = sealed::inspect_bytes(Buffer::from(bytes));
}

/// A file of sections, as an index and as deletes.
pub fn sections(bytes: &[u8]) {
    let Ok(file) = SectionFile::forged(Buffer::from(bytes)) else { return };
    let _ = DeleteMask::from_file(&file);
    let Ok(sections) = file.verified() else { return };
    // The header may claim any number of rows; those of the segment are at hand.
    if sections.rows() <= MOST_ROWS {
        if let Ok(terms) = TermIndex::open(&sections) {
            let mut rows = terms.present();
            terms.add(0..terms.len(), &mut rows);
        }
        let _ = SparseIndex::open(&sections, no_entries(sections.rows()));
        let rows = Buffer::from(vec![0_u8; sections.rows() * 16]);
        if let Ok(vectors) = Vectors::new(rows, Elem::F32, 4) {
            let _ = HnswIndex::open(&sections, vectors, Metric::L2);
        }
    }
}

/// A sparse column of so many rows without an entry.
fn no_entries(rows: usize) -> SparseScan {
    SparseScan::new(vec![0_i64; rows + 1].into(), Buffer::from(&[]))
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    let (bytes, version) = stamped(bytes);
    let _ = document::decode::<Manifest>(&bytes, version);
}

/// A catalog.
pub fn catalog(bytes: &[u8]) {
    let (bytes, version) = stamped(bytes);
    let _ = store::decode(&bytes, version);
}

/// A document with the right checksum, and the version that it says it has.
fn stamped(bytes: &[u8]) -> (Vec<u8>, u64) {
    let body = &bytes[..bytes.len().saturating_sub(document::STAMP)];
    let text = String::from_utf8_lossy(body);
    let digits = text.split_once("\"version\":").map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    (document::stamp(body.to_vec()), digits[..end].parse().unwrap_or(0))
}

/// A log directory with one file, which is not written to.
struct OneFile<'a> {
    first: Lsn,
    bytes: &'a [u8],
}

impl LogDir for OneFile<'_> {
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error> {
        Ok(vec![(self.first, self.bytes.len() as u64)])
    }

    fn read(&self, _: Lsn) -> Result<Box<dyn Read>, Error> {
        Ok(Box::new(Cursor::new(self.bytes.to_vec())))
    }

    fn create(&self, _: Lsn) -> Result<Box<dyn LogFile>, Error> {
        Err(Error::Closed)
    }

    fn truncate(&self, _: Lsn, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn settle(&self, _: Lsn, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn remove(&self, _: Lsn) -> Result<(), Error> {
        Ok(())
    }

    fn path(&self, first: Lsn) -> PathBuf {
        PathBuf::from(format!("{first}.log"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The corpora of the fuzzer, and seeded mutations of them. `ELANUS_FUZZ_ROUNDS` mutates each
    /// file more often.
    #[test]
    fn mutated_files_are_read_or_refused() {
        let rounds = std::env::var("ELANUS_FUZZ_ROUNDS");
        let rounds: u64 = rounds.ok().and_then(|text| text.parse().ok()).unwrap_or(400);
        for (target, read) in TARGETS {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
            let mut paths: Vec<PathBuf> =
                fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            let corpus: Vec<Vec<u8>> =
                paths.iter().map(|path| fs_err::read(path).unwrap()).collect();
            assert!(!corpus.is_empty(), "{target}");
            for (i, bytes) in corpus.iter().enumerate() {
                read(bytes);
                for round in 0..rounds {
                    read(&mutated(bytes, &corpus, round * 1_000 + i as u64));
                }
            }
        }
    }

    /// Sound files of every target are read by it, so that the mutations begin behind the checks
    /// that all bytes fail.
    #[test]
    fn the_corpora_hold_files_that_are_understood() {
        let corpus = |target: &str| {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
            let mut paths: Vec<PathBuf> =
                fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths.into_iter().map(|path| fs_err::read(path).unwrap())
        };
        assert!(corpus("segment").any(|b| sealed::inspect_bytes(Buffer::from(b)).is_ok()));
        assert!(corpus("sections").any(|b| {
            DeleteMask::from_file(&SectionFile::forged(Buffer::from(b)).unwrap()).is_ok()
        }));
        assert!(corpus("manifest").any(|b| {
            let (bytes, version) = stamped(&b);
            document::decode::<Manifest>(&bytes, version).is_ok()
        }));
        assert!(corpus("catalog").any(|b| {
            let (bytes, version) = stamped(&b);
            store::decode(&bytes, version).is_ok()
        }));
        for kind in [1, 2, 3] {
            assert!(
                corpus("record")
                    .any(|b| Change::decode(kind, &b[FILE_HEADER + FRAME_HEADER..]).is_ok()),
                "no record of kind {kind}"
            );
        }
    }

    /// A few changes of the kinds that fuzzers make.
    fn mutated(bytes: &[u8], corpus: &[Vec<u8>], seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut below = |n: usize| {
            // Xorshift64* (Vigna 2016).
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
        };
        let mut bytes = bytes.to_vec();
        for _ in 0..=below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = below(bytes.len());
            match below(7) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..(at + 1 + below(16)).min(bytes.len()))),
                4 => {
                    let number = [0, u64::MAX, 1 << 63, 1 << 31, 1 << 32][below(5)].to_le_bytes();
                    let end = (at + 1 + below(8)).min(bytes.len());
                    bytes[at..end].copy_from_slice(&number[..end - at]);
                }
                5 => {
                    let piece = bytes[at..(at + 1 + below(32)).min(bytes.len())].to_vec();
                    let to = below(bytes.len());
                    drop(bytes.splice(to..to, piece));
                }
                _ => {
                    let other = &corpus[below(corpus.len())];
                    let from = below(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
        }
        bytes
    }
}
