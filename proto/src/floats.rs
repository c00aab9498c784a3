//! The message that carries vectors, decoded as fast as memory goes.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// `data`, the only field.
const DATA: u32 = 1;

/// A column of floats, or vectors one behind the other (`milvus.proto.schema.FloatArray`).
///
/// Prost reads and writes packed floats one at a time, which took a third of the CPU time of an
/// insert; this implementation moves them in one piece. The bytes on the wire are the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FloatArray {
    /// The floats, in the order of rows.
    pub data: Vec<f32>,
}

impl Message for FloatArray {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if self.data.is_empty() {
            return;
        }
        encoding::encode_key(DATA, WireType::LengthDelimited, buf);
        encoding::encode_varint(size_of_val(self.data.as_slice()) as u64, buf);
        for values in self.data.chunks(1024) {
            let mut block = [[0; 4]; 1024];
            for (bytes, value) in block.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
            buf.put_slice(block[..values.len()].as_flattened());
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != DATA {
            return encoding::skip_field(wire_type, tag, buf, context);
        }
        if wire_type != WireType::LengthDelimited {
            // One float that is not packed: nobody sends it, and a reader must take it all the same.
            return encoding::float::merge_repeated(wire_type, &mut self.data, buf, context);
        }
        let mut packed = prost::bytes::Bytes::new();
        encoding::bytes::merge(wire_type, &mut packed, buf, context.clone())?;
        let (values, mut rest) = packed.as_chunks();
        self.data.extend(values.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        if !rest.is_empty() {
            // A float that is cut short, which prost has the error for.
            let mut cut = 0.0;
            encoding::float::merge(WireType::ThirtyTwoBit, &mut cut, &mut rest, context)?;
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        encoding::float::encoded_len_packed(DATA, &self.data)
    }

    fn clear(&mut self) {
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What prost makes of the declaration.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Declared {
        #[prost(float, repeated, tag = "1")]
        data: Vec<f32>,
    }

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 - 7.5) * 1.25e-3).collect()
    }

    #[test]
    fn bytes_are_those_of_the_declaration() {
        for count in [0, 1, 2, 384, 1_023, 1_024, 1_025, 5_000] {
            let data = values(count);
            let (ours, declared) = (FloatArray { data: data.clone() }, Declared { data });
            let bytes = declared.encode_to_vec();
            assert_eq!(ours.encode_to_vec(), bytes, "{count} floats");
            assert_eq!(ours.encoded_len(), bytes.len());
            assert_eq!(FloatArray::decode(bytes.as_slice()).unwrap(), ours);
        }
    }

    #[test]
    fn special_values_keep_their_bits() {
        let data = vec![f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 2.0];
        let back = FloatArray::decode(FloatArray { data: data.clone() }.encode_to_vec().as_slice())
            .unwrap();
        let bits = |floats: &[f32]| floats.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back.data), bits(&data));
    }

    #[test]
    fn pieces_unpacked_floats_and_unknown_fields_are_read() {
        let mut bytes = FloatArray { data: values(3) }.encode_to_vec();
        // Field 9, a varint that nobody knows.
        bytes.extend([9 << 3, 1]);
        encoding::encode_key(DATA, WireType::ThirtyTwoBit, &mut bytes);
        bytes.extend(4.5_f32.to_le_bytes());
        bytes.extend(FloatArray { data: vec![5.5] }.encode_to_vec());
        let expected = [values(3), vec![4.5, 5.5]].concat();
        assert_eq!(FloatArray::decode(bytes.as_slice()).unwrap().data, expected);
        // In parts, as a body arrives.
        let (head, tail) = bytes.split_at(5);
        assert_eq!(FloatArray::decode(head.chain(tail)).unwrap().data, expected);
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let bytes = FloatArray { data: values(3) }.encode_to_vec();
        for end in 1..bytes.len() {
            FloatArray::decode(&bytes[..end]).unwrap_err();
        }
        // No whole number of floats.
        FloatArray::decode([10, 7, 0, 0, 0, 0, 0, 0, 0].as_slice()).unwrap_err();
        // A length far beyond the bytes.
        FloatArray::decode([10, 0xff, 0xff, 0xff, 0xff, 0x0f].as_slice()).unwrap_err();
    }
}
