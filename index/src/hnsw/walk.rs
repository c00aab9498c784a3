//! Walking a graph towards a query: the beam, the rows already seen, the ways to look around.

use super::graph::Graph;
use super::space::{Space, Target};
use crate::kernel;
use crate::{Cancel, Error, Row, RowMask};

/// Cache lines of a row's links: all of them up to M = 16.
pub(super) const LINES_OF_LINKS: usize = 2;
/// 256 expansions between looks at the clock: well below a millisecond.
pub(super) const EXPANSIONS_PER_CHECK: usize = 256;
/// Rows expanded together: those around them are waited for once, not one lot after the other. What
/// the second shows that the first would have kept from being expanded costs little, and is seen.
const EXPANDED_AT_ONCE: usize = 2;

/// A row of the beam.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) score: f32,
    pub(super) row: Row,
    expanded: bool,
}

/// The best rows met, best first, at most `width` of them.
#[derive(Debug, Default)]
struct Beam {
    candidates: Vec<Candidate>,
    width: usize,
    /// All before it are expanded.
    next: usize,
}

impl Beam {
    fn clear(&mut self, width: usize) {
        self.candidates.clear();
        self.width = width;
        self.next = 0;
    }

    /// Takes a row if it is among the best; tells whether it is the next to be expanded.
    #[inline]
    fn offer(&mut self, row: Row, score: f32) -> bool {
        if self.candidates.len() >= self.width {
            match self.candidates.last() {
                Some(worst) if score > worst.score => self.candidates.pop(),
                Some(_) | None => return false,
            };
        }
        let at = self.candidates.partition_point(|other| other.score >= score);
        self.candidates.insert(at, Candidate { score, row, expanded: false });
        let next = at <= self.next;
        self.next = self.next.min(at);
        next
    }

    /// The best row not yet expanded.
    fn upcoming(&self) -> Option<Row> {
        let ahead = self.candidates.get(self.next..)?.iter();
        ahead.skip_while(|one| one.expanded).map(|one| one.row).next()
    }

    /// The best row not yet expanded, which then is.
    fn expand(&mut self) -> Option<Row> {
        let ahead = self.candidates[self.next..].iter().position(|one| !one.expanded)?;
        self.next += ahead;
        let candidate = &mut self.candidates[self.next];
        candidate.expanded = true;
        Some(candidate.row)
    }
}

/// Rows already seen: a bit each.
#[derive(Debug, Default)]
pub(super) struct Seen {
    words: Vec<u64>,
}

impl Seen {
    /// Forgets all; 125 kB for a million rows, a small part of a walk over so many.
    pub(super) fn clear(&mut self, rows: usize) {
        self.words.clear();
        self.words.resize(rows.div_ceil(64), 0);
        // Rows that there are not count as seen, so that a link needs no check besides.
        if let (Some(last), used @ 1..) = (self.words.last_mut(), rows % 64) {
            *last = u64::MAX << used;
        }
    }

    /// Whether `row` was not seen before.
    #[inline]
    pub(super) fn insert(&mut self, row: Row) -> bool {
        let word = &mut self.words[row as usize / 64];
        let bit = 1 << (row % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Adds those of `links` to `fresh` that were not seen before. Ends at a link that leads out of
    /// the rows. Half of them were seen, which no branch predictor could tell.
    #[inline]
    fn insert_all(&mut self, links: &[Row], fresh: &mut Vec<Row>) {
        let mut count = fresh.len();
        fresh.resize(count + links.len(), 0);
        for &row in links {
            let Some(word) = self.words.get_mut(row as usize / 64) else { break };
            let bit = 1 << (row % 64);
            fresh[count] = row;
            count += usize::from(*word & bit == 0);
            *word |= bit;
        }
        fresh.truncate(count);
    }

    /// Bytes of heap.
    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

/// What one walk needs and the next can use again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    beam: Beam,
    seen: Seen,
    pub(super) fresh: Vec<Row>,
    pub(super) scores: Vec<f32>,
    pub(super) target: Target,
}

impl Scratch {
    /// What the last walk found, best first.
    pub(super) fn found(&self) -> &[Candidate] {
        &self.beam.candidates
    }
}

/// How to look around from a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Around<'a> {
    /// All its links.
    Links,
    /// Its allowed links, and through the others the allowed ones behind them (ACORN-1, Patel
    /// et al. 2024): walks on allowed rows only, as on a graph of just those.
    AllowedWithinTwo(&'a RowMask),
}

impl Around<'_> {
    /// Adds the rows around `here` to `fresh` that were not `seen` before, which then are; `list`
    /// gives the links of each of the `rows`.
    #[inline]
    pub(super) fn look<'g>(
        self,
        rows: usize,
        list: impl Fn(Row) -> &'g [Row],
        here: Row,
        seen: &mut Seen,
        fresh: &mut Vec<Row>,
    ) {
        let Self::AllowedWithinTwo(allowed) = self else {
            return seen.insert_all(list(here), fresh);
        };
        let links = |row: Row| valid(list(row), rows);
        let enough = fresh.len() + list(here).len();
        let is_allowed = |row: &Row| allowed.contains(*row);
        fresh.extend(links(here).filter(is_allowed).filter(|row| seen.insert(*row)));
        for through in links(here).filter(|row| !allowed.contains(*row)) {
            if fresh.len() >= enough {
                break;
            }
            // A row that only leads on is looked through once.
            if !seen.insert(through) {
                continue;
            }
            let behind = links(through).filter(is_allowed);
            fresh.extend(behind.filter(|row| seen.insert(*row)));
        }
    }
}

/// A list of links up to its end, or to a link that leads out of the rows.
pub(super) fn valid(links: &[Row], rows: usize) -> impl Iterator<Item = Row> + '_ {
    links.iter().copied().take_while(move |row| (*row as usize) < rows)
}

/// From the entry down to just above layer `until` (0 is the lowest), always to the row closest to
/// `scratch.target`.
pub(super) fn descend(
    graph: &impl Graph,
    space: &Space,
    until: usize,
    scratch: &mut Scratch,
) -> Option<Row> {
    let Scratch { target, scores, .. } = scratch;
    let mut here = graph.entry()?;
    let mut best = space.score(target, here);
    for layer in (until..graph.layers()).rev() {
        loop {
            let links = graph.upper(layer, here);
            let links = &links[..valid(links, space.rows()).count()];
            let before = here;
            for (row, score) in links.iter().zip(space.score_all(target, links, scores)) {
                if *score > best {
                    (here, best) = (*row, *score);
                }
            }
            if here == before {
                break;
            }
        }
    }
    Some(here)
}

/// Beam search on one layer (0 is the lowest) from `starts`, for `scratch.target` (Malkov &
/// Yashunin 2016, algorithm 2, but for a few rows that are expanded together). The beam is left in
/// `scratch`.
///
/// # Errors
/// [`Error::Cancelled`].
#[expect(clippy::too_many_arguments, reason = "the graph, where on it, how, and for whom")]
pub(super) fn walk(
    graph: &impl Graph,
    space: &Space,
    layer: usize,
    starts: &[Row],
    width: usize,
    around: Around<'_>,
    scratch: &mut Scratch,
    cancel: &Cancel,
) -> Result<(), Error> {
    let Scratch { beam, seen, fresh, scores, target } = scratch;
    let rows = space.rows();
    beam.clear(width);
    seen.clear(rows);
    for &row in starts {
        if seen.insert(row) {
            beam.offer(row, space.score(target, row));
        }
    }
    let list = |row: Row| match layer.checked_sub(1) {
        None => graph.base(row),
        Some(upper) => graph.upper(upper, row),
    };
    for round in 1usize.. {
        if round.is_multiple_of(EXPANSIONS_PER_CHECK / EXPANDED_AT_ONCE) {
            cancel.check()?;
        }
        fresh.clear();
        let mut is_over = true;
        for _ in 0..EXPANDED_AT_ONCE {
            let Some(here) = beam.expand() else { break };
            // Most often the next one to be expanded.
            if let (0, Some(row)) = (layer, beam.upcoming()) {
                kernel::prefetch(graph.base(row), LINES_OF_LINKS);
            }
            around.look(rows, list, here, seen, fresh);
            is_over = false;
        }
        if is_over {
            break;
        }
        for (row, score) in fresh.iter().zip(space.score_all(target, fresh, scores)) {
            if beam.offer(*row, *score) && layer == 0 {
                kernel::prefetch(graph.base(*row), LINES_OF_LINKS);
            }
        }
    }
    Ok(())
}
