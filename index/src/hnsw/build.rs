//! Making the graph: rows are inserted one after another, each linked to the best of those that
//! a beam search finds (Malkov & Yashunin 2016, algorithms 1 and 4). Distances are those of the
//! codes, so that building, too, reads a byte per dimension.

use super::codes::{Codes, Prepared, numbers};
use super::graph::{Graph, Growing};
use super::params::HnswParams;
use super::walk::{Around, Scratch, descend, valid, walk};
use crate::{Cancel, Error, Metric, Row, Vectors};

/// A row that may become a link, and its score for the row that would have it.
type Scored = (Row, f32);

/// Builds the sections of an index over `vectors`.
pub(super) fn build(
    vectors: &Vectors,
    metric: Metric,
    params: &HnswParams,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    params.check()?;
    let mut builder = Builder {
        params: *params,
        codes: Codes::encode(vectors, metric, cancel)?,
        graph: Growing::new(vectors.rows(), params),
        chooser: Chooser::default(),
    };
    let mut scratch = Scratch::default();
    for row in 0..vectors.rows() as Row {
        cancel.check()?;
        numbers(metric, vectors.elem(), vectors.row(row), &mut scratch.numbers);
        builder.insert(row, &mut scratch, cancel)?;
    }
    let mut sections = builder.graph.sections(vectors, metric, params.m);
    sections.extend(builder.codes.sections());
    Ok(sections)
}

struct Builder {
    params: HnswParams,
    codes: Codes,
    graph: Growing,
    chooser: Chooser,
}

impl Builder {
    /// Inserts the row whose numbers are in `scratch`.
    fn insert(&mut self, row: Row, scratch: &mut Scratch, cancel: &Cancel) -> Result<(), Error> {
        let Scratch { numbers, query, .. } = scratch;
        self.codes.prepare(numbers, query);
        let level = self.params.level(row);
        let Some(start) = descend(&self.graph, &self.codes, query, level) else {
            self.graph.add(row, level);
            return Ok(());
        };
        let mut starts = vec![start];
        let mut chosen: Vec<(usize, Vec<Row>)> = Vec::new();
        for layer in (0..=level.min(self.graph.layers())).rev() {
            let width = self.params.ef_construction;
            let Self { graph, codes, .. } = self;
            walk(graph, codes, layer, &starts, width, Around::Links, scratch, cancel)?;
            let found = scratch.found().iter().map(|one| (one.row, one.score));
            let found: Vec<Scored> = found.collect();
            starts.clear();
            starts.extend(found.iter().map(|(row, _)| *row));
            chosen.push((layer, self.chooser.choose(&self.codes, &found, self.params.m)));
        }
        self.graph.add(row, level);
        for (layer, links) in chosen {
            self.graph.set(layer, row, &links);
            for other in links {
                self.link_back(layer, other, row);
            }
        }
        Ok(())
    }

    /// Adds `row` to the links of `other`, which keeps the best ones when there are too many.
    fn link_back(&mut self, layer: usize, other: Row, row: Row) {
        let (links, most) = match layer.checked_sub(1) {
            None => (self.graph.base(other), self.params.base_links()),
            Some(upper) => (self.graph.upper(upper, other), self.params.m),
        };
        let mut links: Vec<Row> = valid(links, self.codes.rows()).collect();
        links.push(row);
        if links.len() > most {
            links = self.chooser.choose_again(&self.codes, other, &links, most);
        }
        self.graph.set(layer, other, &links);
    }
}

/// Chooses links that lead in different directions.
#[derive(Default)]
struct Chooser {
    /// The links chosen so far, as queries.
    chosen: Vec<Prepared>,
    /// The row that has the links, as a query.
    owner: Prepared,
    numbers: Vec<f32>,
}

impl Chooser {
    /// At most `most` of `candidates`, which are best first: each is closer to the row itself
    /// than to any link chosen before it.
    fn choose(&mut self, codes: &Codes, candidates: &[Scored], most: usize) -> Vec<Row> {
        let mut links = Vec::with_capacity(most);
        for &(row, score) in candidates {
            if links.len() == most {
                break;
            }
            let chosen = &self.chosen[..links.len()];
            if chosen.iter().any(|link| codes.score(link, row) > score) {
                continue;
            }
            if self.chosen.len() == links.len() {
                self.chosen.push(Prepared::default());
            }
            codes.prepare_row(row, &mut self.numbers, &mut self.chosen[links.len()]);
            links.push(row);
        }
        links
    }

    /// As [`Chooser::choose`], for `owner` among its `links`.
    fn choose_again(&mut self, codes: &Codes, owner: Row, links: &[Row], most: usize) -> Vec<Row> {
        codes.prepare_row(owner, &mut self.numbers, &mut self.owner);
        let score = |row: &Row| (*row, codes.score(&self.owner, *row));
        let mut scored: Vec<Scored> = links.iter().map(score).collect();
        scored.sort_by(|(a, a_score), (b, b_score)| b_score.total_cmp(a_score).then(a.cmp(b)));
        self.choose(codes, &scored, most)
    }
}
