//! A look at a pickle before candle reads it.
//!
//! Candle's reader executes nothing, but it copies what the pickle's memo repeats and drops what
//! it nests recursively, so a hundred bytes can ask for all memory and a megabyte of nested
//! tuples can end the process. This pass runs the same few operations on sizes and depths only
//! and refuses a pickle that no `state_dict` looks like.

use std::collections::HashMap;
use std::io::{Read, Seek};

use zip::ZipArchive;

/// The pickle of a model with a thousand tensors has some 200 kB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Objects of all stack entries and memo copies together.
const MAX_OBJECTS: u64 = 4_000_000;

/// A tensor inside a dictionary inside a dictionary nests about eight deep.
const MAX_DEPTH: u32 = 64;

/// Checks every pickle of a PyTorch archive.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_archive(file: impl Read + Seek) -> Result<(), String> {
    let mut archive = ZipArchive::new(file).map_err(|error| error.to_string())?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| error.to_string())?;
        if !entry.name().map_err(|error| error.to_string())?.ends_with("data.pkl") {
            continue;
        }
        let mut pickle = Vec::new();
        entry
            .take(MAX_PICKLE_BYTES + 1)
            .read_to_end(&mut pickle)
            .map_err(|error| error.to_string())?;
        if pickle.len() as u64 > MAX_PICKLE_BYTES {
            return Err(format!("its pickle has more than {MAX_PICKLE_BYTES} bytes"));
        }
        check(&pickle)?;
    }
    Ok(())
}

/// What matters of an object.
#[derive(Clone, Copy)]
struct Shape {
    /// Objects in it, itself included.
    objects: u64,
    depth: u32,
    mark: bool,
}

impl Shape {
    const LEAF: Self = Self { objects: 1, depth: 1, mark: false };
    const MARK: Self = Self { mark: true, ..Self::LEAF };

    /// With `part` put into it.
    fn with(self, part: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(part.objects),
            depth: self.depth.max(part.depth.saturating_add(1)),
            mark: false,
        }
    }
}

#[derive(Default)]
struct Machine {
    stack: Vec<Shape>,
    memo: HashMap<u32, Shape>,
    /// Objects made so far, copies included.
    made: u64,
}

impl Machine {
    fn push(&mut self, shape: Shape) -> Result<(), String> {
        if shape.depth > MAX_DEPTH {
            return Err(format!("its pickle nests deeper than {MAX_DEPTH}"));
        }
        self.count(shape.objects)?;
        self.stack.push(shape);
        Ok(())
    }

    fn count(&mut self, objects: u64) -> Result<(), String> {
        self.made = self.made.saturating_add(objects);
        if self.made > MAX_OBJECTS {
            return Err(format!("its pickle makes more than {MAX_OBJECTS} objects"));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Shape, String> {
        self.stack.pop().ok_or_else(|| "its pickle takes more than it has".to_owned())
    }

    /// Makes one object of the last `parts`.
    fn wrap(&mut self, parts: usize) -> Result<(), String> {
        let mut shape = Shape::LEAF;
        for _ in 0..parts {
            shape = shape.with(self.pop()?);
        }
        // The parts were counted when they were made.
        self.made = self.made.saturating_sub(shape.objects - 1);
        self.push(shape)
    }

    /// Puts the last `parts` into the object below them.
    fn put_into(&mut self, parts: usize) -> Result<(), String> {
        let mut inside = Vec::with_capacity(parts.min(self.stack.len()));
        for _ in 0..parts {
            inside.push(self.pop()?);
        }
        let below = self.pop()?;
        let shape = inside.into_iter().fold(below, Shape::with);
        self.made = self.made.saturating_sub(shape.objects);
        self.push(shape)
    }

    /// Entries above the last mark, which is taken away.
    fn since_mark(&mut self) -> Result<usize, String> {
        let mark = self.stack.iter().rposition(|shape| shape.mark);
        let mark = mark.ok_or("its pickle closes what it did not open")?;
        self.stack.remove(mark);
        Ok(self.stack.len() - mark)
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or("its pickle remembers nothing")?;
        self.count(top.objects)?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let shape = *self.memo.get(&slot).ok_or("its pickle recalls what it never had")?;
        self.push(shape)
    }
}

/// Runs a pickle on sizes and depths. The operations are those that PyTorch writes for a
/// dictionary of tensors (protocol 2, pickletools.py names them).
fn check(pickle: &[u8]) -> Result<(), String> {
    let mut machine = Machine::default();
    let mut bytes = pickle;
    loop {
        match take(&mut bytes, 1)?[0] {
            b'.' => return Ok(()),
            0x80 => {
                take(&mut bytes, 1)?;
            }
            b'c' => {
                for _ in 0..2 {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    take(&mut bytes, end.ok_or(CUT)? + 1)?;
                }
                machine.push(Shape::LEAF)?;
            }
            operation @ (b'K' | b'M' | b'J' | b'G') => {
                let width = match operation {
                    b'K' => 1,
                    b'M' => 2,
                    b'J' => 4,
                    _ => 8,
                };
                take(&mut bytes, width)?;
                machine.push(Shape::LEAF)?;
            }
            0x8a => {
                let width = take(&mut bytes, 1)?[0];
                take(&mut bytes, usize::from(width))?;
                machine.push(Shape::LEAF)?;
            }
            b'X' => {
                let length = number(&mut bytes)?;
                take(&mut bytes, length as usize)?;
                machine.push(Shape::LEAF)?;
            }
            b'(' => machine.push(Shape::MARK)?,
            0x88 | 0x89 | b'N' | b'}' | b']' | b')' => machine.push(Shape::LEAF)?,
            b'Q' | 0x85 => machine.wrap(1)?,
            b'R' | b'b' | 0x81 | 0x86 => machine.wrap(2)?,
            0x87 => machine.wrap(3)?,
            b't' | b'd' => {
                let parts = machine.since_mark()?;
                machine.wrap(parts)?;
            }
            b'a' => machine.put_into(1)?,
            b's' => machine.put_into(2)?,
            b'e' | b'u' => {
                let parts = machine.since_mark()?;
                machine.put_into(parts)?;
            }
            b'q' => {
                let slot = u32::from(take(&mut bytes, 1)?[0]);
                machine.remember(slot)?;
            }
            b'r' => {
                let slot = number(&mut bytes)?;
                machine.remember(slot)?;
            }
            b'h' => {
                let slot = u32::from(take(&mut bytes, 1)?[0]);
                machine.recall(slot)?;
            }
            b'j' => {
                let slot = number(&mut bytes)?;
                machine.recall(slot)?;
            }
            other => {
                return Err(format!(
                    "its pickle uses operation {other:#04x}, which no dictionary of tensors needs"
                ));
            }
        }
    }
}

const CUT: &str = "its pickle was cut short";

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(CUT)?;
    *bytes = rest;
    Ok(taken)
}

fn number(bytes: &mut &[u8]) -> Result<u32, String> {
    let taken = take(bytes, 4)?.first_chunk().ok_or(CUT)?;
    Ok(u32::from_le_bytes(*taken))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn real_archives_pass() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/data/embedding-golden/tiny-bge-m3");
        for file in ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"] {
            assert_eq!(check_archive(fs_err::File::open(dir.join(file)).unwrap()), Ok(()));
        }
    }

    #[test]
    fn a_pickle_that_doubles_itself_is_refused() {
        // A tuple of the memo's last tuple twice, fifty times over: 2^50 objects in 300 bytes.
        let mut pickle = vec![0x80, 2, b')', b'q', 0];
        for slot in 1..50 {
            pickle.extend([b'h', slot - 1, b'h', slot - 1, 0x86, b'q', slot]);
        }
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("objects"));
    }

    #[test]
    fn a_pickle_that_nests_without_end_is_refused() {
        let mut pickle = vec![0x80, 2, b')'];
        pickle.extend(vec![0x85; 1_000_000]);
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("deeper"));
        let mut pickle = vec![0x80, 2];
        pickle.extend(vec![b']'; 1000]);
        pickle.extend(vec![b'a'; 999]);
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("deeper"));
    }

    #[test]
    fn a_pickle_that_remembers_a_large_object_again_and_again_is_refused() {
        let mut pickle = vec![0x80, 2, b'('];
        pickle.extend(vec![b')'; 10_000]);
        pickle.push(b't');
        for slot in 0..1000_u32 {
            pickle.push(b'r');
            pickle.extend(slot.to_le_bytes());
        }
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("objects"));
    }

    #[test]
    fn nonsense_is_refused() {
        for pickle in [
            &b""[..],
            b"\x80",
            b"c",
            b"cos\nsystem",
            b"X\xff\xff\xff\xff",
            b"t",
            b"a",
            b"h\x01",
            b"q\x01",
            b"\xff",
            b"i",
        ] {
            assert!(check(pickle).is_err(), "{pickle:?}");
        }
    }
}
