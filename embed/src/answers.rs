//! Answers to questions that were asked before.
//!
//! A question is often asked again: the next page, another field, another user. Its vectors are
//! the same to the last bit whatever batch they come from, so a small store of recent ones saves
//! the pass without anybody noticing. Only searches are kept; documents are seen once.

use std::collections::{HashMap, VecDeque};

use crate::Outputs;
use crate::heads::Encoded;
use crate::tokenizer::Sequence;

/// Recent answers of one model, within a bound of bytes.
#[derive(Debug)]
pub(crate) struct Answers {
    limit_bytes: usize,
    bytes: usize,
    entries: HashMap<Sequence, Entry>,
    /// In the order in which they came; one that was used again gets another turn.
    order: VecDeque<Sequence>,
    hits: u64,
}

#[derive(Debug)]
struct Entry {
    outputs: Outputs,
    encoded: Encoded,
    bytes: usize,
    used: bool,
}

impl Answers {
    /// None yet; at most `limit_bytes` of tokens and vectors later.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, bytes: 0, entries: HashMap::new(), order: VecDeque::new(), hits: 0 }
    }

    /// The answer to `sequence`, if it has all of `outputs`.
    pub(crate) fn get(&mut self, sequence: &Sequence, outputs: Outputs) -> Option<Encoded> {
        let entry = self.entries.get_mut(sequence)?;
        if !outputs.is_subset_of(entry.outputs) {
            return None;
        }
        entry.used = true;
        self.hits += 1;
        Some(entry.encoded.clone())
    }

    /// Keeps an answer; older ones that nobody asked for again make room.
    pub(crate) fn put(&mut self, sequence: &Sequence, outputs: Outputs, encoded: &Encoded) {
        /// No more than this share of the bound for one of them: a token vector per token is
        /// large, and seldom asked for twice.
        const SHARE: usize = 16;
        let bytes = size(sequence, encoded);
        if bytes > self.limit_bytes / SHARE {
            return;
        }
        let entry = Entry { outputs, encoded: encoded.clone(), bytes, used: false };
        match self.entries.insert(sequence.clone(), entry) {
            Some(old) => self.bytes -= old.bytes,
            None => self.order.push_back(sequence.clone()),
        }
        self.bytes += bytes;
        while self.bytes > self.limit_bytes {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.entries.get_mut(&oldest) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.order.push_back(oldest);
                }
                Some(entry) => {
                    self.bytes -= entry.bytes;
                    self.entries.remove(&oldest);
                }
                None => {}
            }
        }
    }

    /// How often an answer was there.
    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }
}

/// Bytes of a question, twice, and of its answer.
fn size(sequence: &Sequence, encoded: &Encoded) -> usize {
    /// Map, queue and allocations beside the numbers.
    const ENTRY_BYTES: usize = 256;
    let floats = |row: &Option<Vec<f32>>| row.as_ref().map_or(0, |row| 4 * row.len());
    let sparse = encoded.sparse.as_ref().map_or(0, |row| 8 * row.len());
    ENTRY_BYTES
        + 8 * sequence.ids.len()
        + floats(&encoded.dense)
        + floats(&encoded.colbert)
        + sparse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(id: u32) -> Sequence {
        Sequence { ids: vec![id; 4], second: 4 }
    }

    fn answer(value: f32) -> Encoded {
        Encoded { dense: Some(vec![value; 16]), ..Encoded::default() }
    }

    #[test]
    fn an_answer_serves_what_it_has_and_no_more() {
        let mut answers = Answers::new(1 << 20);
        answers.put(&sequence(1), Outputs::DENSE, &answer(1.0));
        assert_eq!(answers.get(&sequence(1), Outputs::DENSE), Some(answer(1.0)));
        assert_eq!(answers.get(&sequence(1), Outputs::SPARSE), None);
        assert_eq!(answers.get(&sequence(2), Outputs::DENSE), None);
        assert_eq!(answers.hits(), 1);
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let limit = 20 * size(&sequence(0), &answer(0.0));
        let mut answers = Answers::new(limit);
        answers.put(&sequence(0), Outputs::DENSE, &answer(0.0));
        for id in 1..1000 {
            answers.put(&sequence(id), Outputs::DENSE, &answer(1.0));
            assert!(answers.get(&sequence(0), Outputs::DENSE).is_some(), "asked for all the time");
            assert!(answers.bytes <= limit && answers.entries.len() == answers.order.len());
        }
        assert!(answers.get(&sequence(1), Outputs::DENSE).is_none());
        assert_eq!(answers.entries.len(), 20);
        answers.put(
            &sequence(1),
            Outputs::DENSE,
            &Encoded { colbert: Some(vec![0.0; limit]), ..Encoded::default() },
        );
        assert_eq!(answers.entries.len(), 20, "what is too large is not kept");
    }
}
