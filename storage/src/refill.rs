//! Columns that are made anew: the outputs of functions that are to make others.
//!
//! A pending function ([`crate::schema::Refill`]) has fields of its own. New rows come with values
//! for them, beside those that are seen; for the rows that were there, the server takes the inputs
//! ([`Engine::next_unfilled`]), and gives back what it made of them ([`Engine::fill`]), a run of
//! rows at a time. Each is published beside the segment by one commit of its manifest, so that a
//! restart goes on where it stopped. Once no row lacks a value, one commit of the catalog puts
//! the new fields in the places of the old ([`Engine::end_refill`]).
//!
//! This is sound because of an order. The catalog says first that a column is pending. From then
//! on no row is logged without it, and what lacked it before is sealed first; segments that
//! lack it are not merged, and a merge that would lose it is thrown away. So rows that lack a
//! column only ever become fewer, and when there are none there will be none.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::Schema as ArrowSchema;

use crate::Error;
use crate::apply::Control;
use crate::catalog::CollectionInfo;
use crate::checkpoint::{ask, checkpoint, open_manifests, remove_files};
use crate::collection::Collection;
use crate::compact::{Rewriting, outdated};
use crate::ddl::show;
use crate::engine::{Core, Engine};
use crate::manifest::Edit;
use crate::schema::{DataType, Field};
use crate::segment::seal;
use crate::segment::sealed::SealedSegment;
use crate::segment::{Body, Segment};
use crate::upkeep;

/// A run of rows that lack values of pending fields.
#[derive(Debug)]
pub struct Unfilled {
    collection: i64,
    segment: i64,
    first: u32,
    /// The pending fields that lack values, called as their columns are.
    pub fields: Vec<Field>,
    /// What their functions read, a column for each field.
    pub inputs: RecordBatch,
    /// Which rows some view may still show; for others any value will do.
    pub wanted: BooleanArray,
}

/// How far the pending functions of a collection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefillProgress {
    /// Rows, deleted ones included that are on the disk still.
    pub rows: usize,
    /// Those of them that have all values.
    pub filled: usize,
    /// Rows in sealed segments that have values, and not the index over them that a definition
    /// asks for; beyond those that lack it over the values that are seen.
    pub unindexed: usize,
    /// Why an index over them could not be built, if that is so; there will be another attempt.
    pub failure: Option<String>,
}

impl Collection {
    /// How far the pending functions are; `None` if there are none.
    pub fn refill_progress(&self) -> Option<RefillProgress> {
        let (info, version) = (self.info(), self.version());
        let fields: Vec<&Field> = info.schema.pending_fields().collect();
        if fields.is_empty() {
            return None;
        }
        let lacking = |field: &Field| upkeep::pending_rows(self.core(), self, field);
        let unindexed = |field: &Field| {
            let seen = info.schema.field(&field.name).map_or(0, lacking);
            lacking(field).saturating_sub(seen)
        };
        let filled = |segment: &Arc<Segment>| fields.iter().map(|f| filled(segment, f)).min();
        Some(RefillProgress {
            rows: version.segments.iter().map(|segment| segment.rows()).sum(),
            filled: version.segments.iter().filter_map(filled).sum(),
            unindexed: fields.iter().map(|field| unindexed(field)).sum(),
            failure: fields.iter().find_map(|field| self.upkeep().failure(field.id)),
        })
    }

    /// Whether every row has a value of every pending field.
    fn is_filled(&self) -> bool {
        let (info, version) = (self.info(), self.version());
        let has = |segment: &Arc<Segment>| {
            info.schema.pending_fields().all(|field| filled(segment, field) == segment.rows())
        };
        version.segments.iter().all(has)
    }
}

/// How many of the rows of a segment have a value of a pending field.
fn filled(segment: &Segment, field: &Field) -> usize {
    match &segment.body {
        Body::Sealed(sealed) => sealed.filled(field),
        Body::Growing(growing) => {
            let have = growing.chunks().iter().filter(|chunk| chunk.has_column(field));
            have.map(|chunk| chunk.rows()).sum()
        }
    }
}

impl Engine {
    /// The next rows of a collection that lack values of pending fields, `most` at most; `None` if
    /// there are none.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::Corrupt`], and what prevents sealing.
    pub async fn next_unfilled(
        &self,
        collection: i64,
        most: usize,
    ) -> Result<Option<Unfilled>, Error> {
        let core = Arc::clone(self.core());
        let collection = core.require(collection)?;
        let work = move || {
            if let Some(damage) = collection.damage() {
                return Err(damage.duplicate());
            }
            let growing = collection.version().segments.iter().any(|segment| {
                let pending = collection.info();
                let lacks = |field: &Field| filled(segment, field) < segment.rows();
                segment.is_growing() && pending.schema.pending_fields().any(lacks)
            });
            if growing {
                checkpoint(&core, &collection)?;
            }
            next(&core, &collection, most)
        };
        self.core().jobs.maintenance(work).await
    }

    /// Stores values of the fields of a run of rows, in their order; durable on return. Where
    /// the rows or the fields are gone meanwhile, nothing is stored.
    ///
    /// # Errors
    /// [`Error::Invalid`] for values that do not fit, [`Error::CollectionNotFound`],
    /// [`Error::DiskFull`], [`Error::Corrupt`].
    pub async fn fill(&self, rows: Unfilled, values: Vec<ArrayRef>) -> Result<(), Error> {
        let core = Arc::clone(self.core());
        let collection = core.require(rows.collection)?;
        self.core().jobs.maintenance(move || fill(&core, &collection, &rows, values)).await
    }

    /// Puts the pending functions of a collection in place, and the columns that they filled; false
    /// if a row lacks them, or nothing is pending. Views that were taken before go on as they are.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], and what prevents the commit.
    pub async fn end_refill(&self, collection: i64) -> Result<bool, Error> {
        let core = Arc::clone(self.core());
        self.core().jobs.ddl(move || end_refill(&core, collection)).await
    }
}

fn next(core: &Core, collection: &Collection, most: usize) -> Result<Option<Unfilled>, Error> {
    let (info, version) = (collection.info(), collection.version());
    for segment in &version.segments {
        let Body::Sealed(sealed) = &segment.body else { continue };
        let lacking: Vec<(&Field, usize)> = (info.schema.pending_fields())
            .map(|field| (field, sealed.filled(field)))
            .filter(|(_, filled)| *filled < sealed.rows())
            .collect();
        let Some(first) = lacking.iter().map(|(_, filled)| *filled).min() else { continue };
        // Fields that are equally far go on together: one run of a model may serve them all.
        let further = lacking.iter().map(|(_, filled)| *filled).filter(|filled| *filled > first);
        let end = further.min().unwrap_or(sealed.rows());
        let rows = most.max(1).min(end - first);
        let here = lacking.into_iter().filter(|(_, filled)| *filled == first);
        let fields =
            here.map(|(field, _)| Field { name: field.column().to_owned(), ..field.clone() });
        let first_row = u32::try_from(first).expect("segments have 32-bit rows");
        let gone = segment.deletes.dead_before(outdated(core, collection).dead_before);
        let wanted: Vec<bool> = (first_row..).take(rows).map(|row| !gone.contains(row)).collect();
        return Ok(Some(Unfilled {
            collection: collection.id(),
            segment: segment.id,
            first: first_row,
            fields: fields.collect(),
            inputs: inputs(&info, sealed, first, rows)?,
            wanted: wanted.into(),
        }));
    }
    Ok(None)
}

/// What the pending functions of a collection read of some rows.
fn inputs(
    info: &CollectionInfo,
    sealed: &SealedSegment,
    first: usize,
    rows: usize,
) -> Result<RecordBatch, Error> {
    let read = |name: &String| info.schema.pending.iter().any(|r| r.function.inputs.contains(name));
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for field in info.schema.fields.iter().filter(|field| read(&field.name)) {
        fields.push(field.to_arrow().with_name(&field.name));
        columns.push(sealed.column(field)?.slice(first, rows));
    }
    Ok(RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns)?)
}

fn fill(
    core: &Arc<Core>,
    collection: &Arc<Collection>,
    rows: &Unfilled,
    values: Vec<ArrayRef>,
) -> Result<(), Error> {
    if values.len() != rows.fields.len() {
        return Err(Error::Internal("not every field that lacks values got some".to_owned()));
    }
    for (field, values) in rows.fields.iter().zip(values) {
        let (wanted, found) = (field.data_type.to_arrow(), values.data_type());
        if values.len() != rows.wanted.len() || *found != wanted {
            return Err(Error::Invalid(format!(
                "field `{}` expects {} values of type {wanted}, got {} of type {found}",
                field.name,
                rows.wanted.len(),
                values.len()
            )));
        }
        if fill_field(core, collection, (rows.segment, rows.first), field, values)? {
            // It may have an index now.
            upkeep::ask(core, collection);
        }
    }
    Ok(())
}

/// Whether the column is complete now.
fn fill_field(
    core: &Arc<Core>,
    collection: &Collection,
    (id, first): (i64, u32),
    field: &Field,
    values: ArrayRef,
) -> Result<bool, Error> {
    let version = collection.version();
    let segment = version.segments.iter().find(|segment| segment.id == id);
    let Some(Body::Sealed(sealed)) = segment.map(|segment| &segment.body) else { return Ok(false) };
    let Ok(mut runs) = sealed.filled_runs(field) else {
        drop_damaged(core, collection)?;
        return Ok(false);
    };
    let next = runs.iter().map(|run| run.len()).sum::<usize>();
    if next != first as usize || sealed.has_column(field) {
        return Ok(false);
    }
    let work = Rewriting { core, collection, segment: id };
    let complete = next + values.len() == sealed.rows();
    runs.push(values);
    let joined = if complete { 0 } else { first_to_join(&runs) };
    let first = runs[..joined].iter().map(|run| run.len()).sum::<usize>();
    let first = u32::try_from(first).expect("segments have 32-bit rows");
    let runs = &runs[joined..];
    let bytes: usize = runs.iter().map(|run| run.get_array_memory_size()).sum();
    let mut _scratch = None;
    let values = if let [run] = runs {
        core.space.admit(bytes)?;
        Arc::clone(run)
    } else {
        core.space.admit(bytes.saturating_mul(2))?;
        // Dense vectors are joined in a file.
        let sparse = field.data_type == DataType::SparseFloatVector;
        _scratch = sparse.then(|| core.budget.hold_for_build(bytes));
        seal::join(field, runs, &work)?
    };
    let number = open_manifests(collection, &mut collection.manifests())?.next_version();
    let place = (id, number);
    let (blobs, of) = (&core.blobs, collection.id());
    let written = seal::write_column(blobs, of, place, field, first, values, &work)?;
    let file = written.data.file.clone();
    let publish = || {
        let mut guard = collection.manifests();
        let manifests = open_manifests(collection, &mut guard)?;
        let is_pending = collection.info().schema.pending_fields().any(|f| f.id == field.id);
        let entry = manifests.current().segment(id).filter(|_| is_pending);
        let Some(entry) = entry else { return Ok(false) };
        let mut edit = Edit { columns: vec![(id, written.clone())], ..Edit::default() };
        // The first rows take the place of all that there was, which may be damaged.
        if first == 0 {
            edit.clear_column(entry, field.id);
        }
        let cleared = edit.clone();
        // Opened before the commit: what was committed must not fail to take its place.
        let column = sealed.open_column(written)?;
        manifests.commit(edit, core.clock.now())?;
        clear(sealed, &cleared);
        sealed.put_column(column);
        Ok(true)
    };
    match publish() {
        Ok(true) => Ok(complete),
        Ok(false) => {
            remove_files(core, collection, &[file]);
            Ok(false)
        }
        // Should the commit have failed, it may be on disk all the same, and needs the file.
        Err(error) => Err(error),
    }
}

/// From which run on runs become one: the last one with all before it that are no longer than what
/// follows them. So there are few, however few rows a model makes at a time, and a row is written
/// again as often as its run doubles.
fn first_to_join(runs: &[ArrayRef]) -> usize {
    let mut first = runs.len() - 1;
    let mut rows = runs[first].len();
    while first > 0 && runs[first - 1].len() <= rows {
        first -= 1;
        rows += runs[first].len();
    }
    first
}

/// Takes away what an edit takes away of one segment.
fn clear(sealed: &SealedSegment, edit: &Edit) {
    edit.drop_indexes.iter().for_each(|(_, index)| sealed.drop_index(index));
    edit.drop_columns.iter().for_each(|(_, field)| sealed.drop_column(*field));
}

/// Takes columns away that nobody sees yet and that are damaged, so that they are made again.
/// Whether there were any. Reads all of them, once.
fn drop_damaged(core: &Core, collection: &Collection) -> Result<bool, Error> {
    let (info, version) = (collection.info(), collection.version());
    let mut damaged = Vec::new();
    for segment in &version.segments {
        let Body::Sealed(sealed) = &segment.body else { continue };
        for field in info.schema.pending_fields() {
            if let Err(error) = sealed.filled_runs(field) {
                tracing::warn!(
                    %error, segment = segment.id, field = field.id,
                    "a column that nobody sees yet is damaged; it is made again"
                );
                damaged.push((segment.id, field.id, sealed));
            }
        }
    }
    if damaged.is_empty() {
        return Ok(false);
    }
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    for (id, field, sealed) in &damaged {
        // Merged or dropped meanwhile, it is gone with its segment.
        let Some(entry) = manifests.current().segment(*id) else { continue };
        let mut edit = Edit::default();
        edit.clear_column(entry, *field);
        manifests.commit(edit.clone(), core.clock.now())?;
        clear(sealed, &edit);
    }
    Ok(true)
}

fn end_refill(core: &Arc<Core>, id: i64) -> Result<bool, Error> {
    let collection = core.require(id)?;
    // What was let in before the columns were pending is applied, and seen below, when the log
    // thread answers.
    let live = collection.info().partitions.iter().map(|partition| partition.id).collect();
    ask(core, |reply| Control::Partitions { collection: id, live, reply })?;
    if let Some(damage) = collection.damage() {
        return Err(damage.duplicate());
    }
    if collection.info().schema.pending.is_empty() || !collection.is_filled() {
        return Ok(false);
    }
    // What is seen from now on was read whole.
    if drop_damaged(core, &collection)? {
        return Ok(false);
    }
    let info = core.commit_catalog(|catalog, ts| catalog.end_refill(id, ts))?;
    show(core, &info)?;
    Ok(true)
}
