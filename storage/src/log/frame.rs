//! How a record lies in a log file.
//!
//! ```text
//! file   = header frame*
//! header = magic [8] | format u32 | crc32c u32 of the rest | first lsn u64 | 0 u64
//! frame  = len u32 | crc32c u32 | lsn u64 | ts u64 | synced u64 | collection i64
//!        | schema version u32 | kind u8 | 0 [3] | body [len] | 0 up to a multiple of 8
//! ```
//! All numbers are little-endian. A frame's checksum covers its body and then its header from
//! `lsn` on and `len`. `synced` is the lsn below which every frame was on disk when this one was
//! written; it is what tells a torn write from damage.

use super::Lsn;
use crate::clock::Ts;

pub(crate) const MAGIC: [u8; 8] = *b"ELANLOG\0";

/// The format this node writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

pub(crate) const FILE_HEADER: usize = 32;
pub(crate) const FRAME_HEADER: usize = 48;

/// Frames begin at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// Largest body: more than any sensible request, small enough to be read into memory whole.
pub(crate) const MAX_BODY: usize = 256 << 20;

/// The header of a file that begins with `first`.
pub(crate) fn file_header(first: Lsn) -> [u8; FILE_HEADER] {
    let mut bytes = [0; FILE_HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = file_header_crc(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether the bytes are those of some file's header, whatever it says.
pub(crate) fn is_file_header(bytes: &[u8; FILE_HEADER]) -> bool {
    bytes[..8] == MAGIC && u32_at(bytes, 12) == file_header_crc(bytes)
}

/// Checks a file's header. The error says what was expected and what was found.
pub(crate) fn check_file_header(bytes: &[u8; FILE_HEADER], first: Lsn) -> Result<(), String> {
    if !is_file_header(bytes) {
        return Err("offset 0: the header of the log file is damaged".into());
    }
    let format = u32_at(bytes, 8);
    if format > FORMAT {
        return Err(format!(
            "format {format} is newer than this node reads ({FORMAT}); use a newer release"
        ));
    }
    let found = u64_at(bytes, 16);
    if found != first {
        return Err(format!("the file begins with lsn {found}, its name says {first}"));
    }
    Ok(())
}

fn file_header_crc(bytes: &[u8; FILE_HEADER]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) crc: u32,
    pub(crate) lsn: Lsn,
    pub(crate) ts: Ts,
    pub(crate) synced: Lsn,
    pub(crate) collection: i64,
    pub(crate) schema_version: u32,
    pub(crate) kind: u8,
}

impl Header {
    /// The header's bytes, given the checksum of the body; `self.crc` is not used.
    pub(crate) fn encode(&self, body_crc: u32) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.ts.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.synced.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.collection.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.schema_version.to_le_bytes());
        bytes[44] = self.kind;
        let crc = frame_crc(body_crc, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER]) -> Self {
        Self {
            len: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
            lsn: u64_at(bytes, 8),
            ts: Ts(u64_at(bytes, 16)),
            synced: u64_at(bytes, 24),
            collection: u64_at(bytes, 32).cast_signed(),
            schema_version: u32_at(bytes, 40),
            kind: bytes[44],
        }
    }

    /// Whether the checksum of these header bytes fits the body.
    pub(crate) fn fits(bytes: &[u8; FRAME_HEADER], body: &[u8]) -> bool {
        frame_crc(crc32c::crc32c(body), bytes) == u32_at(bytes, 4)
    }
}

/// Bytes from the end of a body to the next frame.
pub(crate) fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGN) - len
}

fn frame_crc(body_crc: u32, header: &[u8; FRAME_HEADER]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(body_crc, &header[8..]), &header[..4])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
