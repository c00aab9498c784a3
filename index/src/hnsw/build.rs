//! Making the graph: rows are inserted batch after batch, each row linked to the best of those
//! that a beam search finds (Malkov & Yashunin 2016, algorithms 1 and 4). Distances are those of
//! the space, so that building, too, reads a byte per dimension where codes will do.
//!
//! The rows of a batch are searched for in parallel on the graph as it was before the batch, and
//! the links back to them are worked out in parallel, target by target (prefix doubling, after
//! ParlayANN, Dobson et al. 2024). No list is read while it is written, so there are no locks,
//! and the graph is the same on any number of threads. Work runs in the rayon pool of the
//! caller.

use std::cell::RefCell;

use rayon::prelude::*;

use super::graph::{Graph, Growing};
use super::params::HnswParams;
use super::seed::{Linked, Seed, Sown};
use super::space::{Space, Target};
use super::walk::{Around, Scratch, descend, valid, walk};
use crate::{Cancel, Error, Metric, Progress, Row, Vectors};

/// A batch has at most one row for so many that are linked already: with few enough rows that
/// do not see each other, the graph is as good as one made row by row.
const LINKED_PER_INSERTED: usize = 50;
/// 1,024 rows: enough for many threads, and what bounds the memory of a batch.
const MOST_INSERTED: usize = 1024;
/// Rows that take over their links together.
const TAKEN_AT_ONCE: usize = 4096;

thread_local! {
    /// What this thread's last insertion used: a bit per row, and some lists.
    static WORK: RefCell<(Scratch, Chooser)> = RefCell::default();
}

/// A row that may become a link, and its score for the row that would have it.
type Scored = (Row, f32);

/// A layer (0 is the lowest) and a row's links on it.
type Links = (usize, Vec<Row>);

/// A row that links to another and wants to be linked back: layer, the other, itself.
type Back = (usize, Row, Row);

/// Builds the sections of an index over `vectors`, from the links of a `seed` where there is one.
///
/// Holds the sections, the links once more, and on each thread a bit per row and some lists.
pub(super) fn build(
    vectors: &Vectors,
    metric: Metric,
    params: &HnswParams,
    seed: Option<&Seed<'_>>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    params.check()?;
    progress.begin(vectors.rows());
    build_in(Space::fit(vectors, metric, cancel)?, metric, params, seed, progress, cancel)
}

/// As [`build()`], without codes.
#[cfg(test)]
pub(super) fn build_plain(
    vectors: &Vectors,
    metric: Metric,
    params: &HnswParams,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let space = Space::plain(vectors, metric)?;
    build_in(space, metric, params, None, &Progress::default(), &Cancel::never())
}

fn build_in(
    space: Space,
    metric: Metric,
    params: &HnswParams,
    seed: Option<&Seed<'_>>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let rows = space.rows();
    let sown = seed.map(|seed| seed.sow(rows, params.m)).transpose()?.flatten();
    let level = |row: Row| sown.as_ref().and_then(|sown| sown.level(row));
    let levels: Vec<u8> =
        (0..rows as Row).map(|row| level(row).unwrap_or_else(|| params.level(row))).collect();
    let graph = Growing::new(&levels, params);
    let mut builder = Builder { params: *params, space, levels: &levels, graph };
    if let Some(sown) = &sown {
        builder.take_over(sown, progress, cancel)?;
    }
    for batch in Batches::new(&levels, sown.as_ref(), builder.graph.layers()) {
        cancel.check()?;
        builder.insert(&batch, cancel)?;
        progress.add(batch.len());
    }
    let mut sections = builder.graph.sections(builder.space.vectors(), metric, params.m);
    sections.extend(builder.space.into_sections());
    Ok(sections)
}

/// All rows that have no links yet in the order of insertion, in batches.
///
/// The order jumps over the segment, so that rows written one after another, which are often
/// alike, are not in one batch. A row on a new topmost layer is a batch of its own.
struct Batches<'a> {
    levels: &'a [u8],
    sown: Option<&'a Sown<'a>>,
    stride: usize,
    /// Rows that had their turn.
    done: usize,
    /// Rows that are linked, or are in a batch.
    linked: usize,
    layers: usize,
}

impl<'a> Batches<'a> {
    fn new(levels: &'a [u8], sown: Option<&'a Sown<'a>>, layers: usize) -> Self {
        // Near the golden section of the rows, where jumps fill most evenly, and without a
        // common divisor, so that each row has its turn.
        let near = (levels.len() as f64 * 0.618_034) as usize;
        let stride = (near.max(1)..).find(|stride| coprime(*stride, levels.len())).unwrap_or(1);
        Self { levels, sown, stride, done: 0, linked: sown.map_or(0, Sown::rows), layers }
    }
}

fn coprime(mut a: usize, mut b: usize) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

impl Iterator for Batches<'_> {
    type Item = Vec<Row>;

    fn next(&mut self) -> Option<Vec<Row>> {
        let (rows, sown) = (self.levels.len(), self.sown);
        let most = (self.linked / LINKED_PER_INSERTED).clamp(1, MOST_INSERTED);
        let mut batch = Vec::new();
        while self.done < rows && batch.len() < most {
            let row = (self.done as u128 * self.stride as u128 % rows as u128) as Row;
            if sown.is_some_and(|sown| sown.level(row).is_some()) {
                self.done += 1;
                continue;
            }
            let level = usize::from(self.levels[row as usize]);
            let tops = level > self.layers;
            if tops && !batch.is_empty() {
                break;
            }
            self.done += 1;
            batch.push(row);
            if tops {
                self.layers = level;
                break;
            }
        }
        self.linked += batch.len();
        (!batch.is_empty()).then_some(batch)
    }
}

struct Builder<'a> {
    params: HnswParams,
    space: Space,
    /// The highest layer of each row.
    levels: &'a [u8],
    graph: Growing,
}

impl Builder<'_> {
    fn level(&self, row: Row) -> usize {
        usize::from(self.levels[row as usize])
    }

    /// Links of a row on a layer at most.
    fn most_links(&self, layer: usize) -> usize {
        if layer == 0 { self.params.base_links() } else { self.params.m }
    }

    /// Takes over the links that rows have in another graph, and mends those of rows whose neighbours
    /// are gone.
    fn take_over(
        &mut self,
        sown: &Sown<'_>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let rows: Vec<Row> = sown.all().collect();
        for &row in sown.first().iter().chain(&rows) {
            self.graph.add(row, self.level(row));
        }
        for rows in rows.chunks(TAKEN_AT_ONCE) {
            cancel.check()?;
            let mend = |row: &Row| -> Vec<Links> {
                let layers = 0..=self.level(*row);
                WORK.with_borrow_mut(|(_, chooser)| {
                    layers.map(|layer| (layer, self.mended(sown, layer, *row, chooser))).collect()
                })
            };
            let mended: Vec<Vec<Links>> = rows.par_iter().map(mend).collect();
            for (row, mended) in rows.iter().zip(mended) {
                mended.iter().for_each(|(layer, links)| self.graph.set(*layer, *row, links));
            }
            progress.add(rows.len());
        }
        Ok(())
    }

    /// The links that a row had, and in the place of each to a row that is gone one to a row behind it.
    fn mended(&self, sown: &Sown<'_>, layer: usize, row: Row, chooser: &mut Chooser) -> Vec<Row> {
        let Linked { kept, gone, behind } = sown.links(layer, row);
        if behind.is_empty() { kept } else { chooser.fill(&self.space, row, kept, &behind, gone) }
    }

    fn insert(&mut self, batch: &[Row], cancel: &Cancel) -> Result<(), Error> {
        let place = |row: &Row| WORK.with_borrow_mut(|work| self.place(*row, work, cancel));
        let placed: Vec<Vec<Links>> = batch.par_iter().map(place).collect::<Result<_, _>>()?;
        let mut back: Vec<Back> = Vec::new();
        for (&row, placed) in batch.iter().zip(placed) {
            self.graph.add(row, self.level(row));
            for (layer, links) in placed {
                self.graph.set(layer, row, &links);
                back.extend(links.into_iter().map(|other| (layer, other, row)));
            }
        }
        back.sort_unstable();
        let of_one: Vec<&[Back]> = back.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)).collect();
        let link_back =
            |back: &&[Back]| WORK.with_borrow_mut(|(_, chooser)| self.link_back(back, chooser));
        let linked: Vec<Vec<Row>> = of_one.par_iter().map(link_back).collect();
        for (back, links) in of_one.iter().zip(linked) {
            let (layer, row, _) = back[0];
            self.graph.set(layer, row, &links);
        }
        Ok(())
    }

    /// The links that `row` is to have on each of its layers.
    fn place(
        &self,
        row: Row,
        (scratch, chooser): &mut (Scratch, Chooser),
        cancel: &Cancel,
    ) -> Result<Vec<Links>, Error> {
        self.space.prepare(self.space.vectors().row(row), &mut scratch.target);
        let level = self.level(row);
        let Some(start) = descend(&self.graph, &self.space, level, scratch) else {
            return Ok(Vec::new());
        };
        let mut starts = vec![start];
        let mut placed = Vec::with_capacity(level + 1);
        for layer in (0..=level.min(self.graph.layers())).rev() {
            let width = self.params.ef_construction;
            walk(&self.graph, &self.space, layer, &starts, width, Around::Links, scratch, cancel)?;
            let found = scratch.found().iter().map(|one| (one.row, one.score));
            let found: Vec<Scored> = found.collect();
            starts.clear();
            starts.extend(found.iter().map(|(row, _)| *row));
            placed.push((layer, chooser.choose(&self.space, &found, self.params.m)));
        }
        Ok(placed)
    }

    /// The links of a row with those back to new rows, the best of them when there are too many.
    /// `back` is not empty and about one layer of one row.
    fn link_back(&self, back: &[Back], chooser: &mut Chooser) -> Vec<Row> {
        let (layer, row, _) = back[0];
        let links = match layer.checked_sub(1) {
            None => self.graph.base(row),
            Some(upper) => self.graph.upper(upper, row),
        };
        let most = self.most_links(layer);
        let mut links: Vec<Row> = valid(links, self.space.rows()).collect();
        links.extend(back.iter().map(|(_, _, new)| *new));
        if links.len() > most {
            links = chooser.choose_again(&self.space, row, &links, most);
        }
        links
    }
}

/// Chooses links that lead in different directions.
#[derive(Default)]
struct Chooser {
    /// The links chosen so far.
    chosen: Vec<Target>,
    /// The row that has the links.
    owner: Target,
}

impl Chooser {
    /// At most `most` of `candidates`, which are best first: each is closer to the row itself
    /// than to any link chosen before it.
    fn choose(&mut self, space: &Space, candidates: &[Scored], most: usize) -> Vec<Row> {
        let mut links = Vec::with_capacity(most);
        for &(row, score) in candidates {
            if links.len() == most {
                break;
            }
            let chosen = &self.chosen[..links.len()];
            if chosen.iter().any(|link| space.score(link, row) > score) {
                continue;
            }
            self.take(space, links.len(), row);
            links.push(row);
        }
        links
    }

    /// As [`Chooser::choose`], for `owner` among its `links`.
    fn choose_again(&mut self, space: &Space, owner: Row, links: &[Row], most: usize) -> Vec<Row> {
        let scored = self.score(space, owner, links);
        self.choose(space, &scored, most)
    }

    /// Adds to the links of `owner` as many of `others`, those that lead in other directions first.
    fn fill(
        &mut self,
        space: &Space,
        owner: Row,
        mut links: Vec<Row>,
        others: &[Row],
        wanted: usize,
    ) -> Vec<Row> {
        let most = links.len() + wanted;
        let scored = self.score(space, owner, others);
        for (at, link) in links.iter().enumerate() {
            self.take(space, at, *link);
        }
        let mut left = Vec::new();
        for (row, score) in scored {
            if links.len() == most {
                break;
            }
            let chosen = &self.chosen[..links.len()];
            if chosen.iter().any(|link| space.score(link, row) > score) {
                left.push(row);
                continue;
            }
            self.take(space, links.len(), row);
            links.push(row);
        }
        let more = most - links.len();
        links.extend(left.into_iter().take(more));
        links
    }

    /// Scores `rows` for `owner`, best first.
    fn score(&mut self, space: &Space, owner: Row, rows: &[Row]) -> Vec<Scored> {
        space.prepare_row(owner, &mut self.owner);
        let score = |row: &Row| (*row, space.score(&self.owner, *row));
        let mut scored: Vec<Scored> = rows.iter().map(score).collect();
        scored.sort_by(|(a, a_score), (b, b_score)| b_score.total_cmp(a_score).then(a.cmp(b)));
        scored
    }

    /// Makes `row` the link at place `at`, which is at most one past the last.
    fn take(&mut self, space: &Space, at: usize, row: Row) {
        if self.chosen.len() == at {
            self.chosen.push(Target::default());
        }
        space.prepare_row(row, &mut self.chosen[at]);
    }
}
