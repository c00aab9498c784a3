//! Links of another graph, over many of the same rows, that a new one begins with.
//!
//! Segments are merged, and the largest of them often has a graph. Its rows have other numbers in the
//! merged segment, and some are gone; the rest keep their layers and their links, and what lay behind a
//! row that is gone is put in its place. Only the rows of the other segments are searched for and inserted.

use super::graph::{Graph, Opened};
use super::layout::NONE;
use super::search::HnswIndex;
use super::walk::valid;
use crate::{Error, Row};

/// A seed with less than one in so many rows of the new graph is left alone.
const ROWS_PER_KEPT: usize = 4;
/// A seed that lost one in so many of its rows is left alone: tests hold recall up to there.
const OLD_PER_GONE: usize = 4;

/// A graph over rows of which some or all are among the rows of a new one.
#[derive(Debug, Clone, Copy)]
pub struct Seed<'a> {
    /// The graph; the parameters it was built with are those of the new one.
    pub graph: &'a HnswIndex,
    /// For each of its rows the row's number in the new graph; [`Row::MAX`] if it is gone.
    pub places: &'a [Row],
}

/// A seed that pays.
#[derive(Debug)]
pub(super) struct Sown<'a> {
    graph: &'a Opened,
    places: &'a [Row],
    /// For each row of the new graph its number in the seed, or [`NONE`].
    origins: Vec<Row>,
    /// The highest layers of the seed's rows.
    levels: Vec<u8>,
    /// Rows of the new graph that are in the seed.
    rows: usize,
}

impl<'a> Seed<'a> {
    /// For a graph over so many rows with `m`; `None` if the seed does not fit or does not pay.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the places are no places.
    pub(super) fn sow(&self, rows: usize, m: usize) -> Result<Option<Sown<'a>>, Error> {
        let (graph, places) = (&self.graph.graph, self.places);
        let old_rows = self.graph.space.rows();
        let refused = |what: &str| Err(Error::Unsupported(format!("a seed of a graph: {what}")));
        if places.len() != old_rows {
            return refused("expected a place for each of its rows");
        }
        let mut origins = vec![NONE; rows];
        let mut kept = 0;
        for (old, place) in (0..).zip(places).filter(|(_, place)| **place != NONE) {
            match origins.get_mut(*place as usize) {
                Some(origin) if *origin == NONE => *origin = old,
                Some(_) => return refused("two of its rows have one place"),
                None => return refused("a place is past the last row"),
            }
            kept += 1;
        }
        if graph.m != m
            || kept * ROWS_PER_KEPT < rows
            || (old_rows - kept) * OLD_PER_GONE > old_rows
        {
            return Ok(None);
        }
        let mut levels = vec![0_u8; old_rows];
        for layer in 0..graph.layers() {
            // Layers are checked to be of rows that there are; no graph has that many.
            let level = u8::try_from(layer + 1).unwrap_or(u8::MAX);
            graph.rows_of(layer).iter().for_each(|row| levels[*row as usize] = level);
        }
        Ok(Some(Sown { graph, places, origins, levels, rows: kept }))
    }
}

impl Sown<'_> {
    /// Rows of the new graph that are in the seed.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Those rows, ascending.
    pub(super) fn all(&self) -> impl Iterator<Item = Row> + '_ {
        (0..).zip(&self.origins).filter(|(_, origin)| **origin != NONE).map(|(row, _)| row)
    }

    /// Where walks over the seed began, if the row is still there.
    pub(super) fn first(&self) -> Option<Row> {
        self.graph.entry().map(|old| self.places[old as usize]).filter(|row| *row != NONE)
    }

    /// The highest layer of a row of the new graph that is in the seed.
    pub(super) fn level(&self, row: Row) -> Option<u8> {
        let origin = self.origins[row as usize];
        (origin != NONE).then(|| self.levels[origin as usize])
    }

    /// What a row of the seed is linked to on a layer.
    pub(super) fn links(&self, layer: usize, row: Row) -> Linked {
        let links = |old: Row| {
            let list = match layer.checked_sub(1) {
                None => self.graph.base(old),
                Some(upper) => self.graph.upper(upper, old),
            };
            valid(list, self.places.len())
        };
        let mut linked = Linked::default();
        for old in links(self.origins[row as usize]) {
            match self.places[old as usize] {
                NONE => {
                    linked.gone += 1;
                    linked.behind.extend(links(old).map(|behind| self.places[behind as usize]));
                }
                place => linked.kept.push(place),
            }
        }
        let Linked { kept, behind, .. } = &mut linked;
        behind.sort_unstable();
        behind.dedup();
        behind.retain(|other| *other != row && *other != NONE && !kept.contains(other));
        linked
    }
}

/// The links of a row of the seed.
#[derive(Debug, Default)]
pub(super) struct Linked {
    /// Those to rows that are still there.
    pub(super) kept: Vec<Row>,
    /// How many are gone.
    pub(super) gone: usize,
    /// What those led to, ascending, without `kept`.
    pub(super) behind: Vec<Row>,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use arrow_buffer::Buffer;

    use super::*;
    use crate::hnsw::HnswParams;
    use crate::hnsw::tests::{Shape, params, recall, vectors};
    use crate::testing::Random;
    use crate::{Cancel, Elem, InMemory, Metric, Progress, RowMask, Vectors};

    const ROWS: usize = 6000;
    const DIM: usize = 32;
    const PARAMS: HnswParams = HnswParams { m: 8, ef_construction: 80, seed: 1 };

    type Sections = Vec<(&'static str, Vec<u8>)>;

    /// Rows shuffled, of which the first `old` have a graph; `dead` percent of those are gone.
    struct Merge {
        merged: Vectors,
        graph: HnswIndex,
        places: Vec<Row>,
    }

    fn open(built: Sections, vectors: &Vectors) -> HnswIndex {
        let sections = InMemory::new(built, vectors.rows());
        HnswIndex::open(&sections, vectors.clone(), Metric::L2).expect("as built")
    }

    fn anew(vectors: &Vectors) -> Sections {
        let (progress, never) = (Progress::default(), Cancel::never());
        HnswIndex::build(vectors, Metric::L2, &PARAMS, &progress, &never).expect("a build")
    }

    fn merge(old: usize, dead: usize) -> Merge {
        let all = vectors(Shape::Clustered, Elem::F32, ROWS, DIM, 1);
        let take = |rows: &[Row]| {
            let bytes: Vec<u8> = rows.iter().flat_map(|row| all.row(*row).to_vec()).collect();
            Vectors::new(Buffer::from_vec(bytes), Elem::F32, DIM).expect("whole rows")
        };
        let random = &mut Random(7);
        let of_seed: Vec<Row> = (0..old as Row).collect();
        let mut kept: Vec<Row> = (0..ROWS as Row).collect();
        kept.retain(|row| *row as usize >= old || random.below(100) >= dead);
        for at in (1..kept.len()).rev() {
            kept.swap(at, random.below(at + 1));
        }
        let mut places = vec![NONE; old];
        for (new, old) in (0..).zip(&kept) {
            if let Some(place) = places.get_mut(*old as usize) {
                *place = new;
            }
        }
        let seed = take(&of_seed);
        Merge { merged: take(&kept), graph: open(anew(&seed), &seed), places }
    }

    impl Merge {
        fn build(&self, progress: &Progress, cancel: &Cancel) -> Result<Sections, Error> {
            let seed = Seed { graph: &self.graph, places: &self.places };
            HnswIndex::build_on(&seed, &self.merged, &PARAMS, progress, cancel)
        }
    }

    #[test]
    fn a_graph_that_began_with_another_finds_as_much_as_one_built_anew() {
        let queries = vectors(Shape::Clustered, Elem::F32, 300, DIM, 2);
        for (old, dead) in [(4500, 0), (4500, 20), (5900, 23)] {
            let merge = merge(old, dead);
            let (progress, rows) = (Progress::default(), merge.merged.rows());
            let built = merge.build(&progress, &Cancel::never()).expect("a build");
            assert_eq!((progress.done(), progress.total()), (rows, rows));
            let anew = anew(&merge.merged);
            assert_ne!(built, anew);
            let of = |index: HnswIndex| {
                let all = RowMask::all(rows);
                let at =
                    |ef| recall(&index, &merge.merged, Metric::L2, &queries, &params(10, ef), &all);
                (at(16) + at(32) + at(64)) / 3.0
            };
            let (found, wanted) = (of(open(built, &merge.merged)), of(open(anew, &merge.merged)));
            assert!(found >= wanted - 0.003, "{old} rows, {dead} % dead: {found} of {wanted}");
        }
    }

    #[test]
    fn what_began_with_another_is_the_same_on_any_number_of_threads_and_can_be_stopped() {
        let merge = merge(4500, 20);
        let build = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let build = || merge.build(&Progress::default(), &Cancel::never());
            pool.expect("threads").install(build).expect("a build")
        };
        assert_eq!(build(1), build(3));
        let raised = Cancel::never();
        raised.flag().store(true, Ordering::Relaxed);
        assert_eq!(merge.build(&Progress::default(), &raised), Err(Error::Cancelled));
    }

    #[test]
    fn a_seed_that_does_not_pay_is_left_alone_and_one_with_wrong_places_refused() {
        let build = |merge: &Merge| merge.build(&Progress::default(), &Cancel::never());
        for few in [merge(1000, 0), merge(4500, 70)] {
            assert_eq!(build(&few), Ok(anew(&few.merged)));
        }
        let right = merge(4500, 0);
        let wrong = |change: &dyn Fn(&mut Vec<Row>)| {
            let mut merge = merge(4500, 0);
            change(&mut merge.places);
            let refused = build(&merge);
            assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        };
        assert_eq!(right.places.len(), 4500);
        wrong(&|places| places.truncate(4499));
        wrong(&|places| places[3] = places[4]);
        wrong(&|places| places[3] = 6000);
    }
}
