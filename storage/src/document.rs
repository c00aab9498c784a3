//! Versioned documents: what is true now, as one small JSON file per version.
//!
//! The catalog and each collection's manifest are such documents. A version is published with
//! put-if-absent under `<prefix>/<version>.json` and never changed; the newest one is the truth
//! and all older ones are removed right after. Removing them at once is a safety: if the newest
//! file gets lost, recovery finds none instead of taking an old state for the truth.
//!
//! A document is one JSON object whose last member is `"crc32c"`, eight hexadecimal digits over
//! all bytes before the comma of that member. Its `"format"` says how to read it.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::blobs::Blobs;

/// The format this node writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 2;

/// Digits of a version in a file name, so that names sort like numbers.
const DIGITS: usize = 20;

const CHECKSUM: &str = ",\"crc32c\":\"";

/// The one place that commits versions of one document.
#[derive(Debug)]
pub(crate) struct Document {
    blobs: Blobs,
    /// Directory of the versions.
    prefix: String,
    /// Of the newest version; 0 before the first.
    version: u64,
    /// A commit failed in a way that may have published the next version all the same.
    uncertain: bool,
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    format: u32,
    version: u64,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(serde::Deserialize)]
struct Stamp {
    format: u32,
    version: u64,
}

impl Document {
    /// A document without any version yet.
    pub(crate) fn new(blobs: &Blobs, prefix: &str) -> Self {
        Self { blobs: blobs.clone(), prefix: prefix.to_owned(), version: 0, uncertain: false }
    }

    /// The newest version, or `None` where there is none, and the means to commit the next one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the newest version is damaged or of a newer format.
    pub(crate) fn open<T: DeserializeOwned>(
        blobs: &Blobs,
        prefix: &str,
    ) -> Result<(Self, Option<T>), Error> {
        let mut document = Self::new(blobs, prefix);
        let Some((version, content)) = Self::peek(blobs, prefix)? else {
            return Ok((document, None));
        };
        document.version = version;
        // A process that was killed may have left it pending; what is done from here on, older
        // versions and what only they refer to removed, relies on it.
        blobs.sync_dir(prefix)?;
        document.prune();
        Ok((document, Some(content)))
    }

    /// The newest version with its number, or `None` where there is none. Changes nothing.
    ///
    /// # Errors
    /// As [`Document::open`].
    pub(crate) fn peek<T: DeserializeOwned>(
        blobs: &Blobs,
        prefix: &str,
    ) -> Result<Option<(u64, T)>, Error> {
        let document = Self::new(blobs, prefix);
        let Some(&newest) = document.versions()?.last() else { return Ok(None) };
        let key = document.key(newest);
        let content = decode(&blobs.read(&key)?, newest)
            .map_err(|detail| Error::corrupt(&blobs.path(&key), detail))?;
        Ok(Some((newest, content)))
    }

    /// Where the newest version lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.blobs.path(&self.key(self.version))
    }

    /// Of the newest version; 0 before the first.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Publishes the next version, durably, and removes older ones.
    ///
    /// # Errors
    /// What prevented it. The node goes on with the version it had; files that the new version
    /// refers to must stay until the next start, because it may turn up there after a crash.
    pub(crate) fn commit<T: Serialize>(&mut self, content: &T) -> Result<u64, Error> {
        let next = self.version + 1;
        let key = self.key(next);
        let bytes = encode(content, next)?;
        self.settle()?;
        if let Err(error) = self.blobs.publish(&key, &bytes) {
            self.uncertain = true;
            return Err(error);
        }
        self.version = next;
        self.prune();
        Ok(next)
    }

    /// Makes sure that a version whose commit failed will not turn up. Whoever is about to take
    /// back what that version refers to calls this first.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        if self.uncertain {
            self.blobs.delete(&self.key(self.version + 1))?;
            self.blobs.sync_dir(&self.prefix)?;
            self.uncertain = false;
        }
        Ok(())
    }

    fn key(&self, version: u64) -> String {
        format!("{}/{version:0DIGITS$}.json", self.prefix)
    }

    fn versions(&self) -> Result<Vec<u64>, Error> {
        let entries = self.blobs.list(&self.prefix)?;
        Ok(entries
            .iter()
            .filter_map(|found| found.name.strip_suffix(".json")?.parse().ok())
            .collect())
    }

    /// Removes all but the newest version. What stays behind does no harm.
    fn prune(&self) {
        let Ok(entries) = self.blobs.list(&self.prefix) else { return };
        let newest = self.key(self.version);
        for entry in entries {
            let key = format!("{}/{}", self.prefix, entry.name);
            if key != newest
                && let Err(error) = self.blobs.delete(&key)
            {
                tracing::warn!(%error, "an old version stays until the next commit");
            }
        }
    }
}

/// The bytes of a version, checksum included.
fn encode<T: Serialize>(content: &T, version: u64) -> Result<Vec<u8>, Error> {
    let stamped = Stamped { format: FORMAT, version, content };
    let mut bytes = serde_json::to_vec(&stamped)
        .map_err(|error| Error::Internal(format!("cannot write a document: {error}")))?;
    bytes.pop();
    Ok(stamp(bytes))
}

/// The length of what [`stamp`] appends.
pub(crate) const STAMP: usize = CHECKSUM.len() + 8 + 3;

/// Closes an object with the checksum of what is before it.
pub(crate) fn stamp(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(format!("{CHECKSUM}{crc:08x}\"}}\n").as_bytes());
    bytes
}

/// Reads a version back. The error says what was expected and what was found.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], version: u64) -> Result<T, String> {
    let (body, end) =
        bytes.split_at_checked(bytes.len().saturating_sub(STAMP)).ok_or("the file is empty")?;
    let crc = crc32c::crc32c(body);
    if end != format!("{CHECKSUM}{crc:08x}\"}}\n").as_bytes() {
        return Err(format!(
            "the content has checksum {crc:08x}, the file ends with {:?}",
            String::from_utf8_lossy(end)
        ));
    }
    let stamp: Stamp = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if stamp.format > FORMAT {
        return Err(format!(
            "format {} is newer than this node reads ({FORMAT}); use a newer release",
            stamp.format
        ));
    }
    if stamp.version != version {
        return Err(format!("the content is version {}, the name says {version}", stamp.version));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::disk::LocalDisk;

    type Content = BTreeMap<String, serde_json::Value>;

    fn content(n: i64) -> Content {
        [("n".to_owned(), n.into())].into()
    }

    #[test]
    fn the_newest_version_is_found_again_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
        let (mut document, none) = Document::open::<Content>(&blobs, "doc").unwrap();
        assert!(none.is_none());
        for n in 1..=11 {
            assert_eq!(document.commit(&content(n)).unwrap(), n.cast_unsigned());
        }
        assert_eq!(blobs.list("doc").unwrap().len(), 1);
        let (mut document, found) = Document::open::<Content>(&blobs, "doc").unwrap();
        assert_eq!(found.unwrap()["n"], 11);
        assert_eq!(document.commit(&content(12)).unwrap(), 12);
    }

    #[test]
    fn a_commit_against_another_writer_fails_and_the_next_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
        let mut document = Document::new(&blobs, "doc");
        blobs.publish("doc/00000000000000000001.json", b"left behind").unwrap();
        document.commit(&content(1)).unwrap_err();
        assert_eq!(document.version(), 0);
        assert_eq!(document.commit(&content(2)).unwrap(), 1);
        let (_, found) = Document::open::<Content>(&blobs, "doc").unwrap();
        assert_eq!(found.unwrap()["n"], 2);
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let bytes = encode(&content(7), 3).unwrap();
        assert_eq!(decode::<Content>(&bytes, 3).unwrap()["n"], 7);
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(decode::<Content>(&damaged, 3).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(decode::<Content>(&bytes[..len], 3).is_err(), "length {len}");
        }
        assert!(decode::<Content>(&bytes, 4).unwrap_err().contains("name says 4"));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut body = br#"{"format":3,"version":1"#.to_vec();
        let crc = crc32c::crc32c(&body);
        body.extend_from_slice(format!("{CHECKSUM}{crc:08x}\"}}\n").as_bytes());
        let error = decode::<Content>(&body, 1).unwrap_err();
        assert!(error.contains("format 3 is newer"), "{error}");
    }
}
