//! Sealing and opening: what comes back, in which order, and what damage does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use elanus_index::{Metric, Query, SearchParams, SparseRow, TermIndex};

use super::delete::DeleteMask;
use super::growing::GrowingBuilder;
use super::seal::{Outdated, Work};
use super::sealed::{Repair, SealedSegment};
use super::testing::{NoScratch, every_type, field, rows, schema};
use super::*;
use crate::blobs::{Blobs, Published};
use crate::budget::{Budget, Held};
use crate::catalog::{GraphDef, TermsDef};
use crate::disk::LocalDisk;
use crate::manifest::{IndexKind, SegmentEntry};
use crate::schema::{DataType, Schema, Value};

/// Remembers what it was told.
#[derive(Debug, Default)]
struct Told(AtomicUsize);

impl Repair for Told {
    fn index_is_damaged(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Files {
    _dir: tempfile::TempDir,
    blobs: Blobs,
    dir: Arc<Published>,
    told: Arc<Told>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
        fs_err::create_dir_all(blobs.path("data/7")).unwrap();
        let data = Arc::new(blobs.published("data/7"));
        Self { _dir: dir, blobs, dir: data, told: Arc::default() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn open(&self, schema: &Schema, entry: &SegmentEntry) -> Result<SealedSegment, Error> {
        SealedSegment::open(&self.dir, schema, entry, Arc::clone(&self.told) as Arc<dyn Repair>)
    }

    fn seal(&self, schema: &Schema, segment: &Arc<Segment>, horizon: Ts) -> SegmentEntry {
        let outdated = dead_before(horizon);
        let segments = std::slice::from_ref(segment);
        let sorted = seal::sort(schema, segments, outdated, &NoScratch).unwrap().unwrap();
        seal::write(&self.blobs, 7, schema, 3, 1, &sorted, &NoScratch).unwrap()
    }
}

fn dead_before(horizon: Ts) -> Outdated {
    Outdated { dead_before: horizon, ..Outdated::default() }
}

fn growing(batches: Vec<RecordBatch>, deletes: DeleteMask) -> Arc<Segment> {
    let mut builder = GrowingBuilder::default();
    for (ts, batch) in (10..).zip(batches) {
        builder.push(batch, Ts(ts), 1);
    }
    let body = Body::Growing(builder.snapshot().unwrap());
    Arc::new(Segment { id: 2, partition: 1, body, deletes: Arc::new(deletes) })
}

/// Three batches whose keys interleave, and their rows in the order of keys.
fn shuffled(schema: &Schema) -> (Vec<RecordBatch>, RecordBatch) {
    let all = rows(schema, 90, 0);
    let pick = |start: u32| -> RecordBatch {
        let rows: Vec<u32> = (start..90).step_by(3).rev().collect();
        take_record_batch(&all, &arrow_array::UInt32Array::from(rows)).unwrap()
    };
    (vec![pick(1), pick(0), pick(2)], all)
}

fn columns(segment: &SealedSegment, schema: &Schema) -> Result<Vec<ArrayRef>, Error> {
    schema.fields.iter().map(|field| segment.column(field)).collect()
}

/// Another file under the same name; whoever mapped the old one keeps it.
fn replace(path: &Path, bytes: &[u8]) {
    fs_err::remove_file(path).unwrap();
    fs_err::write(path, bytes).unwrap();
}

#[test]
fn every_type_comes_back_sorted_by_key() {
    let (files, schema) = (Files::new(), every_type());
    let (batches, expected) = shuffled(&schema);
    let entry = files.seal(&schema, &growing(batches, DeleteMask::default()), Ts::ZERO);
    assert_eq!((entry.rows, entry.min_ts, entry.max_ts), (90, Ts(10), Ts(12)));
    let segment = files.open(&schema, &entry).unwrap();
    for (field, (found, expected)) in
        schema.fields.iter().zip(columns(&segment, &schema).unwrap().iter().zip(expected.columns()))
    {
        assert_eq!(found, expected, "{}", field.name);
        assert_eq!(found.null_count() > 0, field.nullable, "{}", field.name);
    }
    let times = segment.timestamps().unwrap();
    assert_eq!(&times[..6], &[11, 10, 12, 11, 10, 12]);
    assert_eq!(segment.written_by(Ts(10)).unwrap().count(), 30);
    assert_eq!(segment.written_by(Ts(9)).unwrap().count(), 0);
    assert_eq!(segment.written_by(Ts(12)).unwrap().count(), 90);
    assert_eq!(files.told.0.load(Ordering::Relaxed), 0);
}

#[test]
fn columns_lie_in_the_file_and_are_aligned() {
    let (files, schema) = (Files::new(), every_type());
    let (batches, _) = shuffled(&schema);
    let entry = files.seal(&schema, &growing(batches, DeleteMask::default()), Ts::ZERO);
    let segment = files.open(&schema, &entry).unwrap();
    for column in columns(&segment, &schema).unwrap() {
        let data = column.to_data();
        let leaf = data.child_data().first().cloned().unwrap_or(data);
        for buffer in leaf.buffers().iter().filter(|buffer| !buffer.is_empty()) {
            assert_eq!(buffer.as_ptr().addr() % 64, 0, "{}", column.data_type());
        }
    }
    // Whoever has the file can read it with any Arrow implementation.
    let file = fs_err::File::open(files.path(&entry.data.file)).unwrap();
    let reader = arrow_ipc::reader::FileReader::try_new(file, None).unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].num_rows(), 90);
}

#[test]
fn the_dead_are_kept_as_long_as_a_view_may_ask_for_them() {
    let (files, schema) = (Files::new(), every_type());
    let (batches, _) = shuffled(&schema);
    let mut deletes = DeleteMask::default();
    deletes.insert(0, Ts(20));
    deletes.insert(1, Ts(30));
    let segment = growing(batches, deletes);
    let outdated = dead_before(Ts(25));
    let segments = std::slice::from_ref(&segment);
    let sorted = seal::sort(&schema, segments, outdated, &NoScratch).unwrap().unwrap();
    assert_eq!(sorted.batch.num_rows(), 89);
    let mask = sorted.deletes(std::slice::from_ref(&segment.deletes));
    assert_eq!(mask.len(), 1);
    let mut visible = RowMask::all(89);
    mask.hide(&mut visible, Ts(29));
    assert!(visible.is_all());
    mask.hide(&mut visible, Ts(30));
    // Row 1 of the growing segment is the second of the first batch: key 85 of 0..90 without 88.
    assert_eq!(visible.not().iter().collect::<Vec<_>>(), vec![85]);
    assert_eq!(files.seal(&schema, &segment, Ts(31)).rows, 88);

    let mut all = DeleteMask::default();
    assert!((0..90).all(|row| all.insert(row, Ts(20))));
    let dead = Segment { deletes: Arc::new(all), ..segment.as_ref().clone() };
    assert!(
        seal::sort(&schema, &[Arc::new(dead)], dead_before(Ts(21)), &NoScratch).unwrap().is_none()
    );
}

#[test]
fn a_field_that_was_added_later_reads_null_or_its_default() {
    let (files, mut schema) = (Files::new(), every_type());
    let (batches, _) = shuffled(&schema);
    let old = growing(batches.clone(), DeleteMask::default());
    let entry = files.seal(&schema, &old, Ts::ZERO);
    schema.fields.push(Field { id: 200, ..field("later", DataType::Int64) });
    let default = Some(Value::String("x".into()));
    let text = DataType::VarChar { max_length: 9 };
    schema.fields.push(Field { id: 201, default, ..field("text", text) });
    let sealed = files.open(&schema, &entry).unwrap();
    let (later, text) = (schema.field("later").unwrap(), schema.field("text").unwrap());
    assert_eq!(sealed.column(later).unwrap().null_count(), 90);
    assert_eq!(sealed.column(text).unwrap().null_count(), 0);
    assert_eq!(old.column(0, later).unwrap().null_count(), 90);

    // Batches from before and after seal together.
    let mixed = growing([batches, vec![rows(&schema, 10, 1000)]].concat(), DeleteMask::default());
    let sorted = seal::sort(&schema, &[mixed], Outdated::default(), &NoScratch).unwrap().unwrap();
    let column = sorted.batch.column_by_name("later").unwrap();
    assert_eq!(column.slice(0, 90).null_count(), 90);
    assert!(column.slice(90, 10).null_count() < 10);
}

struct InDir<'a>(&'a Files);

impl Work for InDir<'_> {
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn scratch(&self, field: i64) -> Option<(&Blobs, String)> {
        Some((&self.0.blobs, format!("data/7/{field}.scratch")))
    }
}

#[test]
fn columns_are_the_same_whether_put_together_in_memory_or_in_a_file() {
    let (files, schema) = (Files::new(), every_type());
    let (batches, _) = shuffled(&schema);
    let segment = growing(batches, DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let sealed = Arc::new(Segment {
        id: 3,
        partition: 1,
        body: Body::Sealed(Arc::new(files.open(&schema, &entry).unwrap())),
        deletes: Arc::default(),
    });
    let segments = [segment, sealed];
    let scratch = InDir(&files);
    let sort = |work| seal::sort(&schema, &segments, Outdated::default(), work).unwrap().unwrap();
    let (in_memory, in_file) = (sort(&NoScratch as &dyn Work), sort(&scratch));
    assert_eq!(in_memory.batch, in_file.batch);
    assert_eq!(in_memory.order, in_file.order);
    let left: Vec<String> =
        files.blobs.list("data/7").unwrap().into_iter().map(|f| f.name).collect();
    assert!(!left.iter().any(|name| name.ends_with("scratch")), "{left:?}");
}

#[test]
fn expired_rows_are_left_out_and_counted() {
    let (files, schema) = (Files::new(), every_type());
    let mut builder = GrowingBuilder::default();
    for (ts, first) in [(10, 0), (20, 10), (30, 20)] {
        builder.push(rows(&schema, 10, first), Ts(ts), 1);
    }
    let mut deletes = DeleteMask::default();
    deletes.insert(3, Ts(40));
    deletes.insert(25, Ts(41));
    let body = Body::Growing(builder.snapshot().unwrap());
    let segment = Arc::new(Segment { id: 1, partition: 1, body, deletes: Arc::new(deletes) });
    let outdated = Outdated { dead_before: Ts(50), written_before: Ts(20) };
    assert_eq!(seal::outdated_rows(&segment, outdated).unwrap(), 11);
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let sealed = files.open(&schema, &entry).unwrap();
    for (ts, expected) in [(10, None), (11, Some(10)), (30, Some(20)), (31, Some(30))] {
        let count = |mask: Option<RowMask>| mask.map(|mask| mask.count());
        assert_eq!(count(segment.written_before(Ts(ts)).unwrap()), expected);
        assert_eq!(count(sealed.written_before(Ts(ts)).unwrap()), expected);
    }
    let segments = [segment];
    let sorted = seal::sort(&schema, &segments, outdated, &NoScratch).unwrap().unwrap();
    assert_eq!(sorted.batch.num_rows(), 19);
    let all = Outdated { written_before: Ts(31), ..outdated };
    assert!(seal::sort(&schema, &segments, all, &NoScratch).unwrap().is_none());
}

#[test]
fn the_sparse_index_answers_and_its_loss_is_reported_once() {
    let files = Files::new();
    let schema = schema(vec![
        Field { primary_key: true, nullable: false, ..field("id", DataType::Int64) },
        field("terms", DataType::SparseFloatVector),
    ]);
    let segment = growing(vec![rows(&schema, 200, 0)], DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let terms = schema.field("terms").unwrap();
    let sealed = files.open(&schema, &entry).unwrap();
    let index = sealed.index(terms, Metric::Ip, true).unwrap();
    let mut query = 7_u32.to_le_bytes().to_vec();
    query.extend_from_slice(&1.0_f32.to_le_bytes());
    let query = Query::Sparse(SparseRow::parse(&query).unwrap());
    let params =
        SearchParams { k: 9, ef: None, bounds: elanus_index::Bounds::default(), drop_ratio: 0.0 };
    let hits =
        index.search(&query, &params, &RowMask::all(200), &elanus_index::Cancel::never()).unwrap();
    // Rows 7, 57, 107 and 157, of which every fifth is null.
    assert!(!hits.is_empty() && hits.iter().all(|hit| hit.row % 50 == 7), "{hits:?}");
    assert!(sealed.index(terms, Metric::L2, true).is_none());
    assert!(sealed.index(schema.primary(), Metric::Ip, true).is_none());

    let path = files.path(&entry.indexes[0].sections.file);
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[70] ^= 1;
    replace(&path, &bytes);
    let sealed = files.open(&schema, &entry).unwrap();
    assert!(sealed.index(terms, Metric::Ip, true).is_none());
    assert!(sealed.index(terms, Metric::Ip, true).is_none());
    assert_eq!(files.told.0.load(Ordering::Relaxed), 1);

    // Built anew under another name, it answers again.
    let column = sealed.column(terms).unwrap();
    let kind = IndexKind::SparseInverted;
    let cancel = elanus_index::Cancel::never();
    let place = (&files.blobs, "data/7", "again.idx");
    let progress = elanus_index::Progress::default();
    let again = index::write(place, &kind, terms, &column, 0, None, (&progress, &cancel)).unwrap();
    sealed.put_index(sealed.open_index(again.clone(), terms).unwrap());
    assert!(!path.exists(), "nobody needs the damaged file any more");
    assert!(sealed.index(terms, Metric::Ip, true).is_some());
    sealed.drop_index(&again);
    assert!(sealed.index(terms, Metric::Ip, true).is_none());
    assert!(!files.path("again.idx").exists());
}

/// Has memory for indexes, and keeps what it is asked to do in the background.
struct Roomy {
    budget: Arc<Budget>,
    waiting: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Roomy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roomy").finish_non_exhaustive()
    }
}

impl Repair for Roomy {
    fn index_is_damaged(&self) {
        panic!("it is sound");
    }

    fn admit_index(&self, _field: &Field, bytes: usize) -> Option<Held> {
        self.budget.admit_index(bytes)
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        self.waiting.lock().unwrap().push(work);
    }
}

#[test]
fn a_graph_answers_from_its_file_until_its_copy_is_in_memory() {
    let files = Files::new();
    let schema = schema(vec![
        Field { primary_key: true, nullable: false, ..field("id", DataType::Int64) },
        Field { nullable: false, ..field("vector", DataType::FloatVector { dim: 4 }) },
    ]);
    let segment = growing(vec![rows(&schema, 300, 0)], DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let (vector, never) = (schema.field("vector").unwrap(), elanus_index::Cancel::never());
    for limit in [1 << 20, 1 << 10] {
        let owner = Arc::new(Roomy { budget: Budget::new(limit), waiting: Mutex::default() });
        let repair = Arc::clone(&owner) as Arc<dyn Repair>;
        let sealed = SealedSegment::open(&files.dir, &schema, &entry, repair).unwrap();
        let column = sealed.column(vector).unwrap();
        let graph = GraphDef { metric: Metric::L2, m: 8, ef_construction: 40 };
        let kind = IndexKind::Hnsw(graph);
        let progress = elanus_index::Progress::default();
        let place = (&files.blobs, "data/7", "graph.idx");
        let built = index::write(place, &kind, vector, &column, 0, None, (&progress, &never));
        sealed.put_index(sealed.open_index(built.unwrap(), vector).unwrap());
        let vectors = index::vectors(vector, &column).unwrap();
        let search = || {
            let index = sealed.index(vector, Metric::L2, false).unwrap();
            let query = Query::Dense(vectors.row(7));
            let params = SearchParams { k: 5, ..SearchParams::default() };
            index.search(&query, &params, &RowMask::all(300), &never).unwrap()
        };
        let graph = || sealed.graph(vector, &kind).unwrap();
        let (hits, mapped) = (search(), graph());
        assert_eq!((hits.len(), owner.budget.now().indexes), (5, 0));
        let waiting = std::mem::take(&mut *owner.waiting.lock().unwrap());
        assert_eq!(waiting.len(), 1, "asked once");
        waiting.into_iter().for_each(|work| work());
        let has_room = limit == 1 << 20;
        assert_eq!(Arc::ptr_eq(&mapped, &graph()), !has_room);
        assert_eq!(owner.budget.now().indexes > 300 * 64, has_room);
        assert_eq!(search(), hits);
        assert!(owner.waiting.lock().unwrap().is_empty());
        drop((mapped, sealed));
        assert_eq!(owner.budget.now().indexes, 0, "given back with the segment");
    }
}

#[test]
fn a_build_counts_the_values_of_a_mapped_column_once() {
    let (files, schema) = (Files::new(), every_type());
    let segment = growing(vec![rows(&schema, 200, 0)], DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let sealed = files.open(&schema, &entry).unwrap();
    let mut all = 0;
    for field in &schema.fields {
        let column = sealed.column(field).unwrap();
        let values = index::build_bytes(&IndexKind::SparseInverted, &column, usize::MAX);
        assert!(values > 0, "{}", field.name);
        all += values;
        // As many terms as rows, or as elements, but never more than they may take.
        let kind = IndexKind::Terms(TermsDef::default());
        let count = column.as_list_opt::<i64>().map_or(column.len(), |list| list.values().len());
        let terms = index::build_bytes(&kind, &column, usize::MAX) - values;
        assert_eq!(terms, TermIndex::build_bytes(count, count), "{}", field.name);
        assert_eq!(index::build_bytes(&kind, &column, 1_000), values + 1_000);
    }
    assert!(all <= entry.data.len as usize, "{all} bytes of values in {}", entry.data.len);
}

#[test]
fn any_damage_of_a_data_file_is_named_or_does_not_matter() {
    let files = Files::new();
    let schema = every_type();
    let segment = growing(vec![rows(&schema, 60, 0)], DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let path = files.path(&entry.data.file);
    let sound = fs_err::read(&path).unwrap();
    let read = || {
        let segment = files.open(&schema, &entry)?;
        let times = segment.timestamps()?;
        Ok::<_, Error>((columns(&segment, &schema)?, times))
    };
    let expected = read().unwrap();
    let mut harmless = 0;
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 8);
        replace(&path, &damaged);
        match read() {
            Ok(found) => {
                assert_eq!(found, expected, "byte {at} of {}", sound.len());
                harmless += 1;
            }
            Err(Error::Corrupt { path, .. }) => assert!(path.ends_with("data/7/3.arrow")),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(harmless < sound.len() / 2, "only padding may change: {harmless} of {}", sound.len());
    for len in (0..sound.len()).step_by(97) {
        replace(&path, &sound[..len]);
        assert!(matches!(read(), Err(Error::Corrupt { .. })), "length {len}");
    }
    fs_err::remove_file(&path).unwrap();
    assert!(read().unwrap_err().to_string().contains("the file is missing"));
}

#[test]
fn one_segments_file_is_not_taken_for_anothers() {
    let (files, schema) = (Files::new(), every_type());
    let segment = growing(vec![rows(&schema, 10, 0)], DeleteMask::default());
    let entry = files.seal(&schema, &segment, Ts::ZERO);
    let other = SegmentEntry { id: 4, ..entry };
    let error = files.open(&schema, &other).unwrap_err().to_string();
    assert!(error.contains("belongs to segment Some(3)"), "{error}");
}

#[test]
fn delete_masks_survive_their_file() {
    let files = Files::new();
    let mut mask = DeleteMask::default();
    for row in 0..40 {
        mask.insert(row * 2, Ts(u64::from(row)));
    }
    mask.forget_before(Ts(10));
    let sections = mask.to_sections().unwrap();
    let file = section_file::write(&files.blobs, "data/7", "3-1.del", 90, &sections).unwrap();
    let path = files.path("3-1.del");
    let open = || {
        DeleteMask::from_file(&section_file::SectionFile::open(&files.dir.file("3-1.del"), &file)?)
    };
    let opened = open().unwrap();
    for ts in [10, 20, 99] {
        let (mut a, mut b) = (RowMask::all(90), RowMask::all(90));
        mask.hide(&mut a, Ts(ts));
        opened.hide(&mut b, Ts(ts));
        assert!(a.iter().eq(b.iter()));
    }
    let sound = fs_err::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 4;
        replace(&path, &damaged);
        if let Ok(opened) = open() {
            assert_eq!(opened.len(), mask.len(), "byte {at}");
        }
    }
    // A mask of another, shorter segment.
    let sections = mask.to_sections().unwrap();
    let file = section_file::write(&files.blobs, "data/7", "4-1.del", 40, &sections).unwrap();
    let file = section_file::SectionFile::open(&files.dir.file("4-1.del"), &file).unwrap();
    let error = DeleteMask::from_file(&file).unwrap_err().to_string();
    assert!(error.contains("beyond the end"), "{error}");
}

#[test]
fn a_dropped_segment_frees_its_files_with_its_last_reader() {
    let (files, schema) = (Files::new(), every_type());
    let (batches, all) = shuffled(&schema);
    let entry = files.seal(&schema, &growing(batches, DeleteMask::default()), Ts::ZERO);
    let segment = Arc::new(files.open(&schema, &entry).unwrap());
    let reader = Arc::clone(&segment);
    segment.doom();
    drop(segment);
    let found = RecordBatch::try_new(schema.to_arrow(), columns(&reader, &schema).unwrap());
    assert_eq!(found.unwrap(), concat_batches(all.schema_ref(), [&all]).unwrap());
    assert!(files.path("3.arrow").exists());
    drop(reader);
    assert_eq!(files.blobs.list("data/7").unwrap(), vec![]);
}
