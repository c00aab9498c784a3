//! Links between rows, while they are made and once they are read from sections.

use std::ops::Range;

use arrow_buffer::ScalarBuffer;

use super::layout::{BASE, FORMAT, META, NONE, UPPER_ENDS, UPPER_LINKS, UPPER_ROWS, metric_number};
use super::params::HnswParams;
use crate::sections::typed;
use crate::{Error, Metric, Row, Sections, Vectors};

/// A layered graph to walk on. Lists end at the first [`NONE`].
pub(super) trait Graph {
    /// A row's links on the lowest layer.
    fn base(&self, row: Row) -> &[Row];
    /// A row's links on upper layer `layer`, counted from 0; empty if it is not on it.
    fn upper(&self, layer: usize, row: Row) -> &[Row];
    /// Where every walk begins, on the topmost layer; `None` without rows.
    fn entry(&self) -> Option<Row>;
    /// Number of upper layers.
    fn layers(&self) -> usize;
}

/// A graph that grows. Which rows are on which layer is decided beforehand, so each list has its
/// place from the start.
#[derive(Debug)]
pub(super) struct Growing {
    base_links: usize,
    base: Vec<Row>,
    /// The layers that rows were added to are the first `layers` of them.
    upper: Vec<Layer>,
    layers: usize,
    entry: Option<Row>,
}

/// An upper layer: its rows, ascending, and a list of links for each.
#[derive(Debug, Default)]
struct Layer {
    rows: Vec<Row>,
    links: Vec<Row>,
}

impl Growing {
    /// Without links; `levels` are the highest layers that the rows are on.
    pub(super) fn new(levels: &[u8], params: &HnswParams) -> Self {
        let mut upper: Vec<Layer> = Vec::new();
        let rows = levels.len();
        for (row, level) in (0..).zip(levels) {
            let level = usize::from(*level);
            if level > upper.len() {
                upper.resize_with(level, Layer::default);
            }
            upper[..level].iter_mut().for_each(|layer| layer.rows.push(row));
        }
        for layer in &mut upper {
            layer.links = vec![NONE; layer.rows.len() * params.m];
        }
        let base_links = params.base_links();
        Self { base_links, base: vec![NONE; rows * base_links], upper, layers: 0, entry: None }
    }

    /// Makes a row on `level` upper layers the entry if it is the topmost so far.
    pub(super) fn add(&mut self, row: Row, level: usize) {
        if self.entry.is_none() || level > self.layers {
            self.layers = level;
            self.entry = Some(row);
        }
    }

    /// Replaces a row's links; layer 0 is the lowest, 1 the first upper one. Does nothing on a
    /// layer that the row is not on.
    pub(super) fn set(&mut self, layer: usize, row: Row, links: &[Row]) {
        let list = match layer.checked_sub(1) {
            None => {
                let start = row as usize * self.base_links;
                &mut self.base[start..start + self.base_links]
            }
            Some(upper) => {
                let m = self.base_links / 2;
                let Layer { rows, links } = &mut self.upper[upper];
                let Ok(at) = rows.binary_search(&row) else { return };
                &mut links[at * m..(at + 1) * m]
            }
        };
        list.fill(NONE);
        list[..links.len()].copy_from_slice(links);
    }

    pub(super) fn sections(
        &self,
        vectors: &Vectors,
        metric: Metric,
        m: usize,
    ) -> Vec<(&'static str, Vec<u8>)> {
        let (mut ends, mut rows, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &self.upper {
            rows.extend(&layer.rows);
            links.extend(&layer.links);
            ends.push(rows.len() as u32);
        }
        let meta = [
            FORMAT,
            vectors.rows() as u64,
            vectors.dim() as u64,
            metric_number(metric),
            m as u64,
            self.entry.unwrap_or(NONE).into(),
            self.upper.len() as u64,
        ];
        let bytes = |numbers: &[u32]| bytemuck::cast_slice(numbers).to_vec();
        vec![
            (META, bytemuck::cast_slice(&meta).to_vec()),
            (BASE, bytes(&self.base)),
            (UPPER_ENDS, bytes(&ends)),
            (UPPER_ROWS, bytes(&rows)),
            (UPPER_LINKS, bytes(&links)),
        ]
    }
}

impl Graph for Growing {
    fn base(&self, row: Row) -> &[Row] {
        let start = row as usize * self.base_links;
        &self.base[start..start + self.base_links]
    }

    fn upper(&self, layer: usize, row: Row) -> &[Row] {
        let m = self.base_links / 2;
        let Layer { rows, links } = &self.upper[layer];
        rows.binary_search(&row).map_or(&[], |at| &links[at * m..(at + 1) * m])
    }

    fn entry(&self) -> Option<Row> {
        self.entry
    }

    fn layers(&self) -> usize {
        self.layers
    }
}

/// A graph in its sections.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) m: usize,
    base: ScalarBuffer<u32>,
    upper_rows: ScalarBuffer<u32>,
    upper_links: ScalarBuffer<u32>,
    upper: Vec<Range<usize>>,
    entry: Option<Row>,
}

impl Opened {
    /// Reads the sections in place. Sizes and the small upper layers are checked here; a link of
    /// the lowest layer that leads outside ends its list like [`NONE`] when it is met.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if something does not fit.
    pub(super) fn open(
        sections: &dyn Sections,
        vectors: &Vectors,
        metric: Metric,
    ) -> Result<Self, Error> {
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(Error::Corrupt(format!("HNSW index: {what}"))) }
        };
        let meta = typed::<u64>(sections, META)?;
        let &[format, rows, dim, of_metric, m, entry, layers] = &*meta else {
            return Err(Error::Corrupt(format!("`{META}` has {} numbers, expected 7", meta.len())));
        };
        if format != FORMAT {
            return Err(Error::Format { found: format, read: FORMAT });
        }
        require(rows == vectors.rows() as u64, "as many rows as the segment")?;
        require(rows == sections.rows() as u64, "as many rows as the segment")?;
        require(dim == vectors.dim() as u64, "as many dimensions as the field")?;
        require(of_metric == metric_number(metric), "built for the metric asked for")?;
        require((2..=HnswParams::MAX_M as u64).contains(&m), "M within its limits")?;
        let (rows, m) = (vectors.rows(), m as usize);
        let base = typed::<u32>(sections, BASE)?;
        require(base.len() == rows * m * 2, "links for each row")?;
        let ends = typed::<u32>(sections, UPPER_ENDS)?;
        let upper_rows = typed::<u32>(sections, UPPER_ROWS)?;
        let upper_links = typed::<u32>(sections, UPPER_LINKS)?;
        require(ends.len() as u64 == layers, "an end for each layer")?;
        require(ends.is_sorted(), "layers one after another")?;
        let all = ends.last().map_or(0, |end| *end as usize);
        require(upper_rows.len() == all, "rows for each layer")?;
        require(upper_links.len() == all * m, "links for each row of a layer")?;
        let starts = std::iter::once(0).chain(ends.iter().map(|end| *end as usize));
        let upper: Vec<_> = starts.zip(&*ends).map(|(start, end)| start..*end as usize).collect();
        for layer in &upper {
            let ascending = upper_rows[layer.clone()].is_sorted_by(|a, b| a < b);
            require(ascending, "rows of a layer strictly ascend")?;
        }
        require(upper_rows.iter().all(|row| (*row as usize) < rows), "no row past the last")?;
        let entry = Row::try_from(entry).ok().filter(|row| (*row as usize) < rows);
        require(entry.is_some() == (rows > 0), "an entry among the rows")?;
        Ok(Self { m, base, upper_rows, upper_links, upper, entry })
    }
}

impl Opened {
    /// The rows of an upper layer, counted from 0, ascending.
    pub(super) fn rows_of(&self, layer: usize) -> &[Row] {
        &self.upper_rows[self.upper[layer].clone()]
    }
}

impl Graph for Opened {
    #[inline]
    fn base(&self, row: Row) -> &[Row] {
        let start = row as usize * self.m * 2;
        &self.base[start..start + self.m * 2]
    }

    fn upper(&self, layer: usize, row: Row) -> &[Row] {
        let range = self.upper[layer].clone();
        match self.upper_rows[range.clone()].binary_search(&row) {
            Ok(at) => {
                let start = (range.start + at) * self.m;
                &self.upper_links[start..start + self.m]
            }
            Err(_) => &[],
        }
    }

    fn entry(&self) -> Option<Row> {
        self.entry
    }

    fn layers(&self) -> usize {
        self.upper.len()
    }
}
