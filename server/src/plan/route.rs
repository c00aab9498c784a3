//! Partition keys: which partition a row goes to, and which ones a filter can be answered from.
//!
//! A row's partition is a hash of its partition key modulo the number of partitions, which are
//! fixed when the collection is made. So a filter that lists values of the key needs only the
//! partitions of those values.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch, UInt32Array};
use elanus_storage::filter::Predicate;
use elanus_storage::{CollectionInfo, KeyRef, Keys};

use crate::status::Failure;

/// The partitions that a partition key is hashed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByKey {
    /// The field.
    field: String,
    /// Its partitions in their order of creation.
    partitions: Vec<i64>,
}

impl ByKey {
    /// The routing of a collection; `None` when it has no partition key.
    pub fn of(info: &CollectionInfo) -> Option<Self> {
        let field = info.schema.fields.iter().find(|field| field.partition_key)?;
        let partitions = info.partitions.iter().map(|partition| partition.id).collect();
        Some(Self { field: field.name.clone(), partitions })
    }

    /// The rows of each partition.
    ///
    /// # Errors
    /// Code 5 when the collection has no partitions or the batch no partition key.
    pub fn split(&self, batch: &RecordBatch) -> Result<Vec<(i64, RecordBatch)>, Failure> {
        let column = batch.column_by_name(&self.field).filter(|_| !self.partitions.is_empty());
        let Some(column) = column else {
            return Err(Failure::internal(format!(
                "no partitions for partition key {}",
                self.field
            )));
        };
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); self.partitions.len()];
        let numbers = (0_u32..).take(column.len());
        if let Some(keys) = column.as_primitive_opt::<Int64Type>() {
            for (row, key) in numbers.zip(keys.values()) {
                rows[self.place(KeyRef::Int(*key))].push(row);
            }
        } else {
            for (row, key) in numbers.zip(column.as_string::<i64>()) {
                rows[self.place(KeyRef::Str(key.unwrap_or_default()))].push(row);
            }
        }
        let part = |(partition, rows): (&i64, Vec<u32>)| {
            let part = arrow_select::take::take_record_batch(batch, &UInt32Array::from(rows));
            Ok((*partition, part.map_err(|error| Failure::internal(error.to_string()))?))
        };
        let filled = self.partitions.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
        filled.map(part).collect()
    }

    /// The partitions that can hold rows which a filter lets through; `None` for all.
    pub fn narrow(&self, filter: &Predicate) -> Option<Vec<i64>> {
        Some(self.of_keys(&filter.values_of(&self.field)?))
    }

    fn of_keys(&self, keys: &Keys) -> Vec<i64> {
        if self.partitions.is_empty() {
            return Vec::new();
        }
        let mut partitions: Vec<i64> =
            keys.iter().map(|key| self.partitions[self.place(key)]).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }

    fn place(&self, key: KeyRef<'_>) -> usize {
        let hash = match key {
            KeyRef::Int(key) => stable_hash(&key.to_le_bytes()),
            KeyRef::Str(key) => stable_hash(key.as_bytes()),
        };
        // The remainder is smaller than the number of partitions.
        (hash % self.partitions.len() as u64) as usize
    }
}

/// FNV-1a, 64 bit. Part of the data format: a row's partition is this hash of its partition key
/// (eight little-endian bytes, or UTF-8) modulo the number of partitions, and must never change.
fn stable_hash(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn the_partition_hash_is_fixed_for_ever() {
        // The published test vectors of FNV-1a, 64 bit.
        assert_eq!(stable_hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stable_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_row_goes_where_its_key_is_looked_for() {
        let route = ByKey { field: "tenant".into(), partitions: (100..116).collect() };
        let keys = Int64Array::from_iter_values(0..1_000);
        let batch = RecordBatch::try_from_iter([("tenant", Arc::new(keys) as ArrayRef)]).unwrap();
        let parts = route.split(&batch).unwrap();
        assert_eq!(parts.iter().map(|part| part.1.num_rows()).sum::<usize>(), 1_000);
        assert_eq!(parts.len(), 16, "a thousand keys spread over all partitions");
        for (partition, rows) in parts {
            for key in rows.column(0).as_primitive::<Int64Type>().values() {
                assert_eq!(route.of_keys(&Keys::Int(vec![*key])), [partition]);
            }
        }
    }
}
