//! What a frame says: rows inserted, keys deleted, or both at once.
//!
//! ```text
//! insert (kind 1) = parts u32 | { partition i64 | len u32 | Arrow IPC stream of one batch }*
//! delete (kind 2) = partitions u32 (all ones: every partition) | partition i64 *
//!                 | keys
//! replace (kind 3) = keys | as an insert
//! keys = key kind u8 (0 integer, 1 string) | keys u32 | { i64 } or { len u32 | UTF-8 }
//! ```

use std::io::Write;

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};

use super::frame::MAX_BODY;
use crate::Error;
use crate::keys::Keys;
use crate::untrusted::decoded;

const INSERT: u8 = 1;
const DELETE: u8 = 2;
const REPLACE: u8 = 3;
const EVERY_PARTITION: u32 = u32::MAX;

/// A change of one collection.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) collection: i64,
    /// Of the schema that the rows were made for.
    pub(crate) schema_version: u32,
    pub(crate) change: Change,
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Rows, each key at most once, by partition.
    Insert(Vec<(i64, RecordBatch)>),
    /// Keys whose rows go, in these partitions or in all.
    Delete { partitions: Option<Vec<i64>>, keys: Keys },
    /// Keys whose rows go, and rows that come in the same moment.
    Replace { keys: Keys, parts: Vec<(i64, RecordBatch)> },
}

/// A record's bytes, ready for the log.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
    pub(crate) crc: u32,
}

impl Change {
    /// The body of a frame.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it would be larger than a frame can be.
    pub(crate) fn encode(&self) -> Result<Encoded, Error> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Insert(parts) => {
                put_parts(&mut body, parts)?;
                INSERT
            }
            Self::Replace { keys, parts } => {
                put_keys(&mut body, keys)?;
                put_parts(&mut body, parts)?;
                REPLACE
            }
            Self::Delete { partitions, keys } => {
                match partitions {
                    None => body.extend_from_slice(&EVERY_PARTITION.to_le_bytes()),
                    Some(partitions) => {
                        put_len(&mut body, partitions.len())?;
                        partitions.iter().for_each(|id| body.extend_from_slice(&id.to_le_bytes()));
                    }
                }
                put_keys(&mut body, keys)?;
                DELETE
            }
        };
        if body.len() > MAX_BODY {
            return Err(too_large(body.len()));
        }
        let crc = crc32c::crc32c(&body);
        Ok(Encoded { kind, body, crc })
    }

    /// Reads a frame's body back. The error says what is wrong with it.
    pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Self, String> {
        let mut rest = Cursor(body);
        let change = match kind {
            INSERT => Self::Insert(rest.parts()?),
            REPLACE => Self::Replace { keys: rest.keys()?, parts: rest.parts()? },
            DELETE => {
                let partitions = match rest.u32()? {
                    EVERY_PARTITION => None,
                    count => Some((0..count).map(|_| rest.i64()).collect::<Result<_, _>>()?),
                };
                Self::Delete { partitions, keys: rest.keys()? }
            }
            other => return Err(format!("record kind {other} is unknown")),
        };
        if rest.0.is_empty() {
            Ok(change)
        } else {
            Err(format!("{} bytes are left over in a record", rest.0.len()))
        }
    }
}

fn too_large(bytes: usize) -> Error {
    Error::Invalid(format!(
        "the write is {bytes} bytes long, a log record holds at most {MAX_BODY}; split it"
    ))
}

fn put_len(body: &mut Vec<u8>, len: usize) -> Result<(), Error> {
    let len = u32::try_from(len).map_err(|_| too_large(len))?;
    body.write_all(&len.to_le_bytes()).map_err(|error| Error::Internal(error.to_string()))
}

fn put_parts(body: &mut Vec<u8>, parts: &[(i64, RecordBatch)]) -> Result<(), Error> {
    put_len(body, parts.len())?;
    for (partition, batch) in parts {
        body.extend_from_slice(&partition.to_le_bytes());
        let at = body.len();
        put_len(body, 0)?;
        write_batch(body, batch)?;
        let len = (body.len() - at - 4).try_into().map_err(|_| too_large(body.len()))?;
        body[at..at + 4].copy_from_slice(&u32::to_le_bytes(len));
    }
    Ok(())
}

fn put_keys(body: &mut Vec<u8>, keys: &Keys) -> Result<(), Error> {
    match keys {
        Keys::Int(keys) => {
            body.push(0);
            put_len(body, keys.len())?;
            keys.iter().for_each(|key| body.extend_from_slice(&key.to_le_bytes()));
        }
        Keys::Str(keys) => {
            body.push(1);
            put_len(body, keys.len())?;
            for key in keys {
                put_len(body, key.len())?;
                body.extend_from_slice(key.as_bytes());
            }
        }
    }
    Ok(())
}

fn write_batch(body: &mut Vec<u8>, batch: &RecordBatch) -> Result<(), Error> {
    // Log records are read by copying, so the least padding is the best.
    let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?;
    let mut writer = StreamWriter::try_new_with_options(body, &batch.schema(), options)?;
    writer.write(batch)?;
    writer.finish()?;
    Ok(())
}

fn read_batch(bytes: &[u8]) -> Result<RecordBatch, String> {
    decoded(|| {
        let mut reader =
            StreamReader::try_new(bytes, None).map_err(|error| format!("rows: {error}"))?;
        match reader.next() {
            Some(batch) => batch.map_err(|error| format!("rows: {error}")),
            None => Err("a record has no rows".into()),
        }
    })
}

/// Bounds-checked reading.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = (self.0.split_at_checked(len))
            .ok_or_else(|| format!("a record ends {} bytes early", len - self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, String> {
        self.array().map(i64::from_le_bytes)
    }

    fn parts(&mut self) -> Result<Vec<(i64, RecordBatch)>, String> {
        let count = self.u32()?;
        let mut parts = Vec::new();
        for _ in 0..count {
            let partition = self.i64()?;
            let len = self.u32()? as usize;
            parts.push((partition, read_batch(self.take(len)?)?));
        }
        Ok(parts)
    }

    fn keys(&mut self) -> Result<Keys, String> {
        let [kind] = self.array()?;
        let count = self.u32()?;
        match kind {
            0 => (0..count).map(|_| self.i64()).collect::<Result<_, _>>().map(Keys::Int),
            1 => (0..count)
                .map(|_| {
                    let len = self.u32()? as usize;
                    String::from_utf8(self.take(len)?.to_vec()).map_err(|error| error.to_string())
                })
                .collect::<Result<_, _>>()
                .map(Keys::Str),
            other => Err(format!("key kind {other} is unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, LargeStringArray};
    use proptest::prelude::*;

    use super::*;

    fn batch(ids: Vec<i64>, texts: Vec<Option<String>>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(ids)) as _, false),
            ("text", Arc::new(LargeStringArray::from(texts)) as _, true),
        ])
        .unwrap()
    }

    fn change() -> impl Strategy<Value = Change> {
        let rows = proptest::collection::vec((any::<i64>(), any::<Option<String>>()), 1..20)
            .prop_map(|rows| {
                let (ids, texts) = rows.into_iter().unzip();
                batch(ids, texts)
            });
        let keys = prop_oneof![
            proptest::collection::vec(any::<i64>(), 0..9).prop_map(Keys::Int),
            proptest::collection::vec(any::<String>(), 0..9).prop_map(Keys::Str),
        ];
        let parts = proptest::collection::vec((any::<i64>(), rows), 1..4);
        prop_oneof![
            parts.clone().prop_map(Change::Insert),
            (any::<Option<Vec<i64>>>(), keys.clone())
                .prop_map(|(partitions, keys)| Change::Delete { partitions, keys }),
            (keys, parts).prop_map(|(keys, parts)| Change::Replace { keys, parts }),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(
            change in change(),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            len in any::<proptest::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let Encoded { kind, mut body, .. } = change.encode().unwrap();
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if cut {
                body.truncate(len.index(body.len()));
            }
            // Neither a panic nor an allocation that the bytes do not pay for; what is decoded
            // from other bytes may differ.
            let _ = Change::decode(kind, &body);
        }

        #[test]
        fn records_survive_the_log(change in change()) {
            let Encoded { kind, body, .. } = change.encode().unwrap();
            match (change, Change::decode(kind, &body).unwrap()) {
                (Change::Insert(a), Change::Insert(b)) => prop_assert_eq!(a, b),
                (
                    Change::Delete { partitions: a, keys: b },
                    Change::Delete { partitions: c, keys: d },
                ) => prop_assert_eq!((a, b), (c, d)),
                (
                    Change::Replace { keys: a, parts: b },
                    Change::Replace { keys: c, parts: d },
                ) => prop_assert_eq!((a, b), (c, d)),
                (a, b) => prop_assert!(false, "{:?} became {:?}", a, b),
            }
        }

        #[test]
        fn shortened_records_are_refused(change in change(), cut in 1_usize..64) {
            let Encoded { kind, body, .. } = change.encode().unwrap();
            let cut = cut.min(body.len());
            if matches!(change, Change::Delete { .. }) {
                prop_assert!(Change::decode(kind, &body[..body.len() - cut]).is_err());
            }
            prop_assert!(Change::decode(9, &body).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_reason_to_panic(
            kind in 1_u8..4,
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = Change::decode(kind, &body);
        }
    }
}
