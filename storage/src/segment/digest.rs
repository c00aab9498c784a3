//! The checksum of a column: over its values, however they lie in memory.
//!
//! It is computed from the array that is sealed and again from the mapped file, so it must not
//! depend on slack in buffers, on bit offsets or on how offsets are based. Covered are, in this
//! order: the number of rows, the validity bits if any row is null, then what the type needs:
//! values, or offsets from zero and the bytes or elements between the first and the last.

use arrow_array::{Array, ArrayRef};
use arrow_buffer::BooleanBuffer;
use arrow_data::ArrayData;
use arrow_schema::DataType;

/// crc32c of a column.
///
/// # Panics
/// For types that no field has ([`crate::schema::DataType::to_arrow`] lists those there are).
pub(crate) fn column_crc(column: &ArrayRef) -> u32 {
    let mut crc = Crc(0);
    crc.array(&column.to_data());
    crc.0
}

struct Crc(u32);

impl Crc {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    fn bits(&mut self, bits: &BooleanBuffer) {
        let words: Vec<u8> = bits.bit_chunks().iter_padded().flat_map(u64::to_le_bytes).collect();
        self.bytes(&words);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "Arrow has many types, fields have few")]
    fn array(&mut self, array: &ArrayData) {
        self.bytes(&(array.len() as u64).to_le_bytes());
        if let Some(nulls) = array.nulls()
            && nulls.null_count() > 0
        {
            self.bits(nulls.inner());
        }
        let (offset, len) = (array.offset(), array.len());
        match array.data_type() {
            DataType::Boolean => {
                let bits = BooleanBuffer::new(array.buffers()[0].clone(), offset, len);
                self.bits(&bits);
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                let (first, last) = self.offsets(array);
                self.bytes(&array.buffers()[1][first..last]);
            }
            DataType::LargeList(_) => {
                let (first, last) = self.offsets(array);
                self.array(&array.child_data()[0].slice(first, last - first));
            }
            DataType::FixedSizeList(_, width) => {
                let width = usize::try_from(*width).unwrap_or(0);
                self.array(&array.child_data()[0].slice(offset * width, len * width));
            }
            DataType::FixedSizeBinary(width) => {
                let width = usize::try_from(*width).unwrap_or(0);
                self.bytes(&array.buffers()[0][offset * width..][..len * width]);
            }
            other => {
                let width = other.primitive_width().expect("fields have no other types");
                self.bytes(&array.buffers()[0][offset * width..][..len * width]);
            }
        }
    }

    /// Covers the offsets as if they began at zero; returns the first and the last.
    fn offsets(&mut self, array: &ArrayData) -> (usize, usize) {
        if array.is_empty() {
            return (0, 0);
        }
        let all = array.buffers()[0].typed_data::<i64>();
        let offsets = &all[array.offset()..=array.offset() + array.len()];
        let first = offsets[0];
        if first == 0 {
            self.bytes(bytemuck::cast_slice(offsets));
        } else {
            let rebased: Vec<i64> = offsets.iter().map(|offset| offset - first).collect();
            self.bytes(bytemuck::cast_slice(&rebased));
        }
        let index = |offset: i64| usize::try_from(offset).expect("Arrow checks offsets");
        (index(first), index(offsets[offsets.len() - 1]))
    }
}

#[cfg(test)]
mod tests {
    use arrow_select::concat::concat;

    use super::*;
    use crate::segment::testing::{every_type, rows};

    #[test]
    fn the_checksum_does_not_depend_on_the_layout() {
        let schema = every_type();
        let batch = rows(&schema, 100, 7);
        for (field, column) in schema.fields.iter().zip(batch.columns()) {
            let whole = column_crc(column);
            let sliced = column.slice(13, 50);
            let copied = concat(&[&column.slice(13, 20), &column.slice(33, 30)]).unwrap();
            assert_eq!(column_crc(&sliced), column_crc(&copied), "{}", field.name);
            assert_ne!(column_crc(&sliced), whole, "{}", field.name);
            assert_ne!(
                column_crc(&column.slice(1, 50)),
                column_crc(&column.slice(50, 50)),
                "{}",
                field.name
            );
        }
    }
}
