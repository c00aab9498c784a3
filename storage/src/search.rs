//! Selecting rows of a view, and finding the best of them.
//!
//! [`ReadView::select`] turns time, partitions and filter into one mask per chunk of rows; any
//! number of searches then share it. A search visits every piece of every segment in parallel
//! on the current rayon pool and merges the pieces' best hits. How rows are fetched once they
//! are found stands in `query`.

use std::ops::Bound;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef};
use elanus_index::{
    Bounds, Cancel, FlatCodes, FlatIndex, Hit, Metric, Query, Row, RowMask, SearchParams, TopK,
    VectorIndex,
};

use crate::Error;
use crate::catalog::TermsDef;
use crate::filter::{Columns, Predicate, Terms};
use crate::keys::{Key, KeyColumn, Keys};
use crate::pools::share_out;
use crate::schema::{DataType, Field};
use crate::segment::Segment;
use crate::segment::index::{sparse_rows, vectors};
use crate::view::{ReadView, RowAddr};

/// 32,768 rows: the piece of a sealed segment that one thread scans at a time. Large enough that
/// handing it out costs nothing, small enough that one query keeps every core busy to the end.
const PIECE_ROWS: usize = 32_768;

/// 8 MiB: what one thread reads at a time where pieces are small, in about a third of a
/// millisecond. Waking another has a price, and a piece is searched quicker if the best hits of
/// those before are known.
const RUN_BYTES: usize = 8 << 20;

/// What searching an index counts as.
const INDEX_BYTES: usize = RUN_BYTES / 2;

/// About the bytes that one could read in the time that a sparse row takes, 200 ns.
const SPARSE_ROW_BYTES: usize = 4096;

/// A key set is looked up by binary search while it has fewer keys than one in this many rows;
/// with more keys, one pass over the key column is cheaper.
const ROWS_PER_LOOKUP: usize = 16;

/// 16 Mi hits, 128 MiB: as many as pieces may hand in at a time before they are merged. Many
/// queries with many results each are answered in blocks.
const MAX_HITS: usize = 1 << 24;

/// A row that was found, and how good it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Where it is in the view that was searched.
    pub addr: RowAddr,
    /// Larger is better, whatever the metric.
    pub score: f32,
}

/// Which rows of a view a read is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Only these partitions; `None` means all.
    pub partitions: Option<&'a [i64]>,
    /// Only rows for which this is true.
    pub filter: Option<&'a Predicate>,
    /// Leave out rows that are not in a sealed segment yet.
    pub ignore_growing: bool,
}

/// Queries over one vector field.
#[derive(Clone, Copy, Debug)]
pub struct AnnQuery<'a> {
    /// Name of the vector field.
    pub field: &'a str,
    /// How nearness is measured; sparse fields know only [`Metric::Ip`].
    pub metric: Metric,
    /// In the field's own element type and dimension.
    pub queries: &'a [Query<'a>],
    /// How many rows are wanted, and within which scores.
    pub params: SearchParams,
    /// Look at every selected row, even where a graph would do: what pages one after another
    /// make up a ranking without gaps.
    pub exact: bool,
}

/// The rows of a [`Scope`] in one view; of no use with another view.
#[derive(Debug)]
pub struct Selection {
    /// By position of the segment; within it, by chunk. `None`: nothing of the segment.
    pub(crate) segments: Vec<Option<Vec<RowMask>>>,
    rows: usize,
}

impl Selection {
    /// How many rows are selected.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl ReadView {
    /// Works out which rows a read may see: visible at the view's time, not deleted, in the
    /// wanted partitions, and true under the filter.
    ///
    /// # Errors
    /// [`Error::Filter`] if the filter cannot be evaluated, [`Error::Search`] once `cancel` is
    /// set, [`Error::Corrupt`] if a file that is needed is damaged.
    pub fn select(&self, scope: &Scope<'_>, cancel: &Cancel) -> Result<Selection, Error> {
        let filter = scope.filter.filter(|filter| !filter.is_always_true());
        let keys = filter.and_then(Predicate::key_set);
        let range = filter.map(Predicate::key_range);
        let segments = self.segments()?;
        let masks = |at: usize| {
            let segment = &segments[at];
            cancel.check()?;
            let wanted = scope.partitions.is_none_or(|ids| ids.contains(&segment.partition));
            if !wanted || (scope.ignore_growing && segment.is_growing()) {
                return Ok(None);
            }
            if range.as_ref().is_some_and(|range| !may_reach(segment, range)) {
                return Ok(None);
            }
            let masks = match (&keys, filter) {
                (Some(keys), _) if !may_hold(segment, keys) => return Ok(None),
                (Some(keys), _) if lookup_is_cheaper(segment, keys) => {
                    vec![self.mask_of_keys(segment, keys)?]
                }
                (_, None) => self.visible_by_chunk(segment)?,
                (_, Some(filter)) => self.mask_of_filter(segment, filter, cancel)?,
            };
            Ok::<_, Error>(masks.iter().any(|mask| !mask.is_none()).then_some(masks))
        };
        let segments = share_out(segments.len(), masks)?;
        let rows = segments.iter().flatten().flatten().map(RowMask::count).sum();
        Ok(Selection { segments, rows })
    }

    /// How many rows are selected: `count(*)`.
    pub fn count(&self, selection: &Selection) -> usize {
        selection.rows
    }

    /// The best rows for each query, best first; equal scores by ascending primary key.
    ///
    /// Fewer than `params.k` rows come back where fewer are selected, share a term with a sparse
    /// query, or lie within the bounds. Rows without a vector are never found.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such vector field, [`Error::Search`] if a query does not
    /// fit the field or `cancel` is set, [`Error::Corrupt`] if a file that is needed is damaged.
    pub fn search(
        &self,
        selection: &Selection,
        ann: &AnnQuery<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<Found>>, Error> {
        let field = self.known_field(ann.field)?;
        let segments = self.segments()?;
        let mut pieces = Vec::new();
        for (position, segment) in segments.iter().enumerate() {
            let Some(masks) = selection.segments.get(position).and_then(Option::as_ref) else {
                continue;
            };
            pieces.extend(Piece::of(position, segment, masks, field, ann));
        }
        let k = ann.params.k.min(selection.rows);
        let params = SearchParams { k, ..ann.params };
        let block = (MAX_HITS / pieces.len().max(1) / (k + 1)).max(1);
        let mut found = Vec::with_capacity(ann.queries.len());
        for queries in ann.queries.chunks(block) {
            let ann = AnnQuery { queries, params, ..*ann };
            let runs = runs(&pieces, segments, field, &ann);
            let search = |at: usize| search_run(runs[at], segments, field, &ann, cancel);
            let hits = share_out(runs.len(), search)?;
            let mut block_found = vec![Vec::new(); queries.len()];
            for (piece, lists) in pieces.iter().zip(hits.into_iter().flatten()) {
                for (found, hits) in block_found.iter_mut().zip(lists) {
                    found.extend(hits.into_iter().map(|hit| piece.found(hit)));
                }
            }
            for mut best in block_found {
                cancel.check()?;
                self.best_first(&mut best)?;
                best.truncate(k);
                best.shrink_to_fit();
                found.push(best);
            }
        }
        Ok(found)
    }

    /// Sorts by descending score, equal scores by ascending primary key.
    pub(crate) fn best_first(&self, found: &mut [Found]) -> Result<(), Error> {
        found.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.addr.cmp(&b.addr)));
        for run in found.chunk_by_mut(|a, b| a.score == b.score) {
            if run.len() > 1 {
                let mut keyed = run
                    .iter()
                    .map(|found| Ok((self.key_of(found.addr)?, *found)))
                    .collect::<Result<Vec<(Key, Found)>, Error>>()?;
                keyed.sort_by(|a, b| a.0.cmp(&b.0));
                for (slot, (_, found)) in run.iter_mut().zip(keyed) {
                    *slot = found;
                }
            }
        }
        Ok(())
    }

    fn visible_by_chunk(&self, segment: &Segment) -> Result<Vec<RowMask>, Error> {
        let visible = self.visible(segment)?;
        if segment.chunks().len() == 1 {
            return Ok(vec![visible]);
        }
        Ok(segment.chunks().map(|(start, rows)| visible.slice(start as usize, rows)).collect())
    }

    fn mask_of_filter(
        &self,
        segment: &Segment,
        filter: &Predicate,
        cancel: &Cancel,
    ) -> Result<Vec<RowMask>, Error> {
        let mut masks = self.visible_by_chunk(segment)?;
        for (chunk, ((_, rows), mask)) in segment.chunks().zip(&mut masks).enumerate() {
            cancel.check()?;
            if mask.is_none() {
                continue;
            }
            let columns = ChunkColumns { segment, chunk, rows };
            *mask = filter.eval_within(&columns, mask, cancel)?;
        }
        Ok(masks)
    }

    fn mask_of_keys(&self, segment: &Segment, keys: &Keys) -> Result<RowMask, Error> {
        let visible = self.visible(segment)?;
        let column = KeyColumn::new(&segment.column(0, self.schema.primary())?)?;
        let mut mask = RowMask::none(visible.len());
        for key in keys.iter() {
            for row in column.equal_range(key, 0) {
                if visible.contains(row as Row) {
                    mask.insert(row as Row);
                }
            }
        }
        Ok(mask)
    }

    pub(crate) fn known_field(&self, name: &str) -> Result<&Field, Error> {
        self.schema.field(name).ok_or_else(|| Error::Invalid(format!("field {name} not exist")))
    }
}

/// Whether a key of the set may be in the segment, as far as its smallest and largest key tell.
pub(crate) fn may_hold(segment: &Segment, keys: &Keys) -> bool {
    segment.key_range().is_none_or(|(low, high)| keys.iter().any(|key| (low..=high).contains(&key)))
}

/// Whether a key within the bounds may be in the segment.
fn may_reach(segment: &Segment, (low, high): &(Bound<Key>, Bound<Key>)) -> bool {
    let Some((first, last)) = segment.key_range() else { return true };
    let reaches_low = match low {
        Bound::Unbounded => true,
        Bound::Included(low) => last >= low.as_ref(),
        Bound::Excluded(low) => last > low.as_ref(),
    };
    let reaches_high = match high {
        Bound::Unbounded => true,
        Bound::Included(high) => first <= high.as_ref(),
        Bound::Excluded(high) => first < high.as_ref(),
    };
    reaches_low && reaches_high
}

pub(crate) fn lookup_is_cheaper(segment: &Segment, keys: &Keys) -> bool {
    segment.is_sorted_by_key()
        && segment.chunks().len() == 1
        && keys.len() < segment.rows() / ROWS_PER_LOOKUP
}

/// The columns of one chunk, as a filter sees them.
struct ChunkColumns<'a> {
    segment: &'a Segment,
    chunk: usize,
    rows: usize,
}

impl Columns for ChunkColumns<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
        self.segment.column(self.chunk, field)
    }

    fn terms(&self, field: &Field, wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
        self.segment.terms(field, wanted)
    }
}

/// A run of rows that one thread searches.
pub(crate) struct Piece<'a> {
    segment: u32,
    chunk: usize,
    chunk_start: Row,
    /// First row within the chunk.
    from: usize,
    len: usize,
    /// Of the whole chunk.
    mask: &'a RowMask,
    /// Over the whole chunk, if there is one.
    index: Option<Arc<dyn VectorIndex>>,
}

impl<'a> Piece<'a> {
    /// The pieces of a segment, of whose chunks `masks` are the rows that may be found.
    pub(crate) fn of(
        position: usize,
        segment: &Segment,
        masks: &'a [RowMask],
        field: &Field,
        ann: &AnnQuery<'_>,
    ) -> Vec<Self> {
        let mut pieces = Vec::new();
        for (chunk, ((start, rows), mask)) in segment.chunks().zip(masks).enumerate() {
            if mask.is_none() {
                continue;
            }
            let index = segment.index(field, ann.metric, ann.exact);
            // Only scans can be split: an index covers its whole segment.
            let size = if index.is_some() { rows } else { PIECE_ROWS };
            pieces.extend((0..rows).step_by(size.max(1)).map(|from| Piece {
                segment: position as u32,
                chunk,
                chunk_start: start,
                from,
                len: size.min(rows - from),
                mask,
                index: index.clone(),
            }));
        }
        pieces
    }

    pub(crate) fn search(
        &self,
        segment: &Segment,
        field: &Field,
        ann: &AnnQuery<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        let whole = self.from == 0 && self.len == self.mask.len();
        let mut allowed =
            if whole { self.mask.clone() } else { self.mask.slice(self.from, self.len) };
        if allowed.is_none() {
            return Ok(vec![Vec::new(); ann.queries.len()]);
        }
        let column = segment.column(self.chunk, field)?.slice(self.from, self.len);
        if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
            allowed.and_with(&RowMask::from_boolean_buffer(nulls.inner()));
        }
        if let Some(index) = &self.index {
            let search =
                |at: usize| Ok(index.search(&ann.queries[at], &ann.params, &allowed, cancel)?);
            return share_out(ann.queries.len(), search);
        }
        let codes = segment.codes(self.chunk, field);
        let codes = codes.map(|codes| codes.slice(self.from, self.len));
        let index = scan(field, &column, ann.metric, codes)?;
        if segment.is_sorted_by_key() {
            return Ok(index.search_many(ann.queries, &ann.params, &allowed, cancel)?);
        }
        // An index prefers smaller rows among equal scores, which here does not mean smaller
        // keys. So ask for one more, and where it is as good as the last one wanted, for all
        // that are.
        let mut params = SearchParams { k: ann.params.k + 1, ..ann.params };
        let mut lists = index.search_many(ann.queries, &params, &allowed, cancel)?;
        for (query, hits) in ann.queries.iter().zip(&mut lists) {
            params.k = ann.params.k + 1;
            while hits.len() == params.k
                && params.k >= 2
                && hits[params.k - 1].score == hits[ann.params.k - 1].score
            {
                params.k *= 2;
                *hits = index.search(query, &params, &allowed, cancel)?;
            }
        }
        Ok(lists)
    }

    /// About how many bytes are read for each query; `None` if an index tells where to look.
    fn bytes(&self, segment: &Segment, field: &Field) -> Option<usize> {
        if self.index.is_some() {
            return None;
        }
        let chunk = segment.codes(self.chunk, field);
        let of_codes = chunk.map(|codes| codes.scanned_bytes() / codes.rows().max(1));
        let of_row = of_codes.or_else(|| field.data_type.bytes_per_row());
        Some(self.len.saturating_mul(of_row.unwrap_or(SPARSE_ROW_BYTES)))
    }

    /// A hit of the piece as a row of the view.
    pub(crate) fn found(&self, hit: Hit) -> Found {
        let row = self.chunk_start + self.from as Row + hit.row;
        Found { addr: RowAddr { segment: self.segment, row }, score: hit.score }
    }
}

/// Cuts pieces into runs, each for one thread: pieces without an index go together as long as
/// that takes little, after at most one with an index.
fn runs<'a, 'b>(
    pieces: &'b [Piece<'a>],
    segments: &[Arc<Segment>],
    field: &Field,
    ann: &AnnQuery<'_>,
) -> Vec<&'b [Piece<'a>]> {
    let (mut runs, mut from, mut bytes) = (Vec::new(), 0, 0_usize);
    for (at, piece) in pieces.iter().enumerate() {
        let scanned = piece.bytes(&segments[piece.segment as usize], field);
        let more = scanned.unwrap_or(INDEX_BYTES).saturating_mul(ann.queries.len());
        if at > from && (scanned.is_none() || bytes.saturating_add(more) > RUN_BYTES) {
            runs.push(&pieces[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes = bytes.saturating_add(more);
    }
    if from < pieces.len() {
        runs.push(&pieces[from..]);
    }
    runs
}

/// Searches pieces one after another: for each, the hits of each query. What is worse than as
/// many hits as are wanted, of the pieces before, need not be among those of a piece.
fn search_run(
    run: &[Piece<'_>],
    segments: &[Arc<Segment>],
    field: &Field,
    ann: &AnnQuery<'_>,
    cancel: &Cancel,
) -> Result<Vec<Vec<Vec<Hit>>>, Error> {
    let mut best = TopK::new(ann.params.k, Bounds::default());
    let mut lists = Vec::with_capacity(run.len());
    for piece in run {
        let mut params = ann.params;
        // An index would take a bound for one that the client set, and look beyond it. Equal
        // scores stay in: their keys decide.
        if piece.index.is_none()
            && let Some(floor) = best.floor().filter(|floor| floor.is_finite())
        {
            let below = floor.next_down();
            params.bounds.above = Some(params.bounds.above.map_or(below, |above| above.max(below)));
        }
        let ann = AnnQuery { params, ..*ann };
        let hits = piece.search(&segments[piece.segment as usize], field, &ann, cancel)?;
        if let [of_one] = &hits[..] {
            of_one.iter().for_each(|hit| best.push(hit.row, hit.score));
        }
        lists.push(hits);
    }
    Ok(lists)
}

/// Looks at every row of a column, or at its codes, if there are some.
fn scan(
    field: &Field,
    column: &ArrayRef,
    metric: Metric,
    codes: Option<FlatCodes>,
) -> Result<Box<dyn VectorIndex>, Error> {
    if field.data_type == DataType::SparseFloatVector {
        if metric != Metric::Ip {
            return Err(Error::Invalid(format!(
                "field `{}` holds sparse vectors, which are compared by IP, not {metric:?}",
                field.name
            )));
        }
        return Ok(Box::new(sparse_rows(column)?));
    }
    let index = FlatIndex::new(vectors(field, column)?, metric);
    Ok(Box::new(match codes {
        Some(codes) => index.with_codes(codes)?,
        None => index,
    }))
}

#[cfg(test)]
mod tests;
