//! Fetching rows of a view: by primary key, in key order, and whole.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array, new_empty_array};
use arrow_schema::Schema as ArrowSchema;
use arrow_select::interleave::interleave;
use arrow_select::take::take;
use elanus_index::{Row, RowMask};

use crate::Error;
use crate::keys::{Key, KeyColumn, KeyRef, Keys};
use crate::schema::Field;
use crate::search::{Selection, lookup_is_cheaper, may_hold};
use crate::segment::Segment;
use crate::view::{ReadView, RowAddr};

impl ReadView {
    /// The selected rows in ascending order of their primary key: `limit` of them (all where
    /// there is no limit) after the first `offset`.
    ///
    /// Sealed rows lie in that order already, so a page near the beginning costs little; rows
    /// that are still growing are sorted.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a key column is damaged.
    pub fn rows_by_key(
        &self,
        selection: &Selection,
        offset: usize,
        limit: Option<usize>,
    ) -> Result<Vec<RowAddr>, Error> {
        let wanted = limit.unwrap_or(usize::MAX);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let sources = self.key_sources(selection, offset.saturating_add(wanted))?;
        let mut cursors: Vec<_> = sources.iter().map(|source| source.rows()).collect();
        let mut heap = BinaryHeap::with_capacity(cursors.len());
        for (at, cursor) in cursors.iter_mut().enumerate() {
            if let Some((key, row)) = cursor.next() {
                heap.push(Reverse((key, at, row)));
            }
        }
        let mut rows = Vec::new();
        let mut skip = offset;
        while let Some(Reverse((_, at, row))) = heap.pop() {
            if let Some((key, row)) = cursors[at].next() {
                heap.push(Reverse((key, at, row)));
            }
            if skip > 0 {
                skip -= 1;
                continue;
            }
            rows.push(RowAddr { segment: sources[at].segment, row });
            if rows.len() == wanted {
                break;
            }
        }
        Ok(rows)
    }

    /// The selected rows by chunk. Of chunks that are not sorted, the `first` smallest keys.
    fn key_sources<'a>(
        &self,
        selection: &'a Selection,
        first: usize,
    ) -> Result<Vec<KeySource<'a>>, Error> {
        let mut sources = Vec::new();
        for (position, segment) in self.segments()?.iter().enumerate() {
            let Some(masks) = selection.segments.get(position).and_then(Option::as_ref) else {
                continue;
            };
            for (chunk, ((start, _), mask)) in segment.chunks().zip(masks).enumerate() {
                let keys = KeyColumn::new(&segment.column(chunk, self.schema.primary())?)?;
                let order = if segment.is_sorted_by_key() {
                    Order::AsStored(mask)
                } else {
                    let mut rows: Vec<Row> = mask.iter().collect();
                    let by_key = |&a: &Row, &b: &Row| {
                        keys.get(a as usize).cmp(&keys.get(b as usize)).then(a.cmp(&b))
                    };
                    if first < rows.len() {
                        rows.select_nth_unstable_by(first, by_key);
                        rows.truncate(first);
                    }
                    rows.sort_unstable_by(by_key);
                    Order::Sorted(rows)
                };
                sources.push(KeySource { segment: position as u32, start, keys, order });
            }
        }
        Ok(sources)
    }

    /// The given rows as one batch, in the order given and with one column per field name.
    ///
    /// Fields that a row's segment lacks read as the default or null.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a field that does not exist, [`Error::Internal`] for a row of
    /// another view, [`Error::Corrupt`] if a column is damaged.
    pub fn take(&self, rows: &[RowAddr], fields: &[&str]) -> Result<RecordBatch, Error> {
        let segments = self.segments()?;
        let mut sources: Vec<(usize, usize)> = Vec::new();
        let mut seen: HashMap<(usize, usize), usize> = HashMap::new();
        let mut places = Vec::with_capacity(rows.len());
        // Most rows are of the same chunk as the one before.
        let mut last: Option<(u32, Range<Row>, usize)> = None;
        for &addr in rows {
            if let Some((segment, rows, source)) = &last
                && *segment == addr.segment
                && rows.contains(&addr.row)
            {
                places.push((*source, (addr.row - rows.start) as usize));
                continue;
            }
            let segment = segments.get(addr.segment as usize).ok_or_else(|| foreign(addr))?;
            let (chunk, rows) = chunk_of(segment, addr)?;
            let source = *seen.entry((addr.segment as usize, chunk)).or_insert_with(|| {
                sources.push((addr.segment as usize, chunk));
                sources.len() - 1
            });
            places.push((source, (addr.row - rows.start) as usize));
            last = Some((addr.segment, rows, source));
        }
        let mut arrow_fields = Vec::with_capacity(fields.len());
        let mut columns = Vec::with_capacity(fields.len());
        for name in fields {
            let field = self.known_field(name)?;
            arrow_fields.push(field.to_arrow().with_name(&field.name));
            columns.push(gather(segments, field, &sources, &places)?);
        }
        let schema = Arc::new(ArrowSchema::new(arrow_fields));
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(schema, columns, &options)
            .map_err(|error| Error::Internal(format!("cannot assemble rows: {error}")))
    }

    /// Where the rows with these primary keys are, in the order of the keys; `None` for a key
    /// that the view does not hold.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a key column is damaged.
    pub fn locate(&self, keys: &Keys) -> Result<Vec<Option<RowAddr>>, Error> {
        let mut found = vec![None; keys.len()];
        let mut wanted: HashMap<KeyRef<'_>, Vec<usize>> = HashMap::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            wanted.entry(key).or_default().push(at);
        }
        for (position, segment) in self.segments()?.iter().enumerate() {
            if !may_hold(segment, keys) {
                continue;
            }
            let visible = self.visible(segment)?;
            let by_lookup = lookup_is_cheaper(segment, keys);
            let mut record = |key: KeyRef<'_>, row: Row| {
                if visible.contains(row)
                    && let Some(places) = wanted.get(&key)
                {
                    for &at in places {
                        found[at] = Some(RowAddr { segment: position as u32, row });
                    }
                }
            };
            for (chunk, (start, _)) in segment.chunks().enumerate() {
                let column = KeyColumn::new(&segment.column(chunk, self.schema.primary())?)?;
                if by_lookup {
                    for key in keys.iter() {
                        for row in column.equal_range(key, 0) {
                            record(key, start + row as Row);
                        }
                    }
                } else {
                    for (row, key) in (start..).zip(column.iter()) {
                        record(key, row);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The primary key of a row of this view.
    pub(crate) fn key_of(&self, addr: RowAddr) -> Result<Key, Error> {
        let segments = self.segments()?;
        let segment = segments.get(addr.segment as usize).ok_or_else(|| foreign(addr))?;
        let (chunk, rows) = chunk_of(segment, addr)?;
        let keys = KeyColumn::new(&segment.column(chunk, self.schema.primary())?)?;
        Ok(keys.get((addr.row - rows.start) as usize).to_key())
    }
}

/// The selected rows of one chunk, to be read in key order.
struct KeySource<'a> {
    segment: u32,
    /// The chunk's first row.
    start: Row,
    keys: KeyColumn,
    order: Order<'a>,
}

enum Order<'a> {
    /// The chunk is sorted by key.
    AsStored(&'a RowMask),
    /// Its selected rows, sorted.
    Sorted(Vec<Row>),
}

impl KeySource<'_> {
    /// Keys and rows of the segment, ascending by key.
    fn rows(&self) -> Box<dyn Iterator<Item = (KeyRef<'_>, Row)> + '_> {
        let keyed = |row: Row| (self.keys.get(row as usize), self.start + row);
        match &self.order {
            Order::AsStored(mask) => Box::new(mask.iter().map(keyed)),
            Order::Sorted(rows) => Box::new(rows.iter().copied().map(keyed)),
        }
    }
}

fn gather(
    segments: &[Arc<Segment>],
    field: &Field,
    sources: &[(usize, usize)],
    places: &[(usize, usize)],
) -> Result<ArrayRef, Error> {
    let columns = sources
        .iter()
        .map(|&(segment, chunk)| segments[segment].column(chunk, field))
        .collect::<Result<Vec<_>, Error>>()?;
    let gathered = match columns.as_slice() {
        [] => return Ok(new_empty_array(&field.data_type.to_arrow())),
        [column] => {
            let rows = UInt64Array::from_iter_values(places.iter().map(|&(_, row)| row as u64));
            take(column, &rows, None)
        }
        columns => {
            let columns: Vec<_> = columns.iter().map(AsRef::as_ref).collect();
            interleave(&columns, places)
        }
    };
    gathered.map_err(|error| Error::Internal(format!("field `{}`: {error}", field.name)))
}

/// The chunk that holds a row, and all rows of it.
fn chunk_of(segment: &Segment, addr: RowAddr) -> Result<(usize, Range<Row>), Error> {
    (segment.chunks().map(|(start, rows)| start..start + rows as Row).enumerate())
        .find(|(_, rows)| rows.contains(&addr.row))
        .ok_or_else(|| foreign(addr))
}

fn foreign(addr: RowAddr) -> Error {
    Error::Internal(format!("row {} of segment {} is of another view", addr.row, addr.segment))
}
