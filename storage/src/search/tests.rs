//! Views made of random segments against the plain meaning of each read, row by row.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use elanus_index::{Bounds, SparseRow};
use proptest::prelude::*;

use super::*;
use crate::blobs::Blobs;
use crate::clock::Ts;
use crate::disk::LocalDisk;
use crate::filter::{Templates, compile};
use crate::iterate::Iteration;
use crate::schema::Schema;
use crate::segment::delete::DeleteMask;
use crate::segment::growing::GrowingBuilder;
use crate::segment::seal::Outdated;
use crate::segment::sealed::{Repair, SealedSegment};
use crate::segment::testing::{NoScratch, every_type, rows};
use crate::segment::{Body, seal};
use crate::view::Version;

const DENSE: &str = "f11";
const BINARY: &str = "f15";
const SPARSE: &str = "f16";

/// One version of a row, as the model knows it.
#[derive(Clone, Debug)]
struct ModelRow {
    key: i64,
    /// Which row of the source batch it copies.
    source: u32,
    written: u64,
    died: Option<u64>,
    partition: i64,
    growing: bool,
}

/// A view and what it should show.
struct Fixture {
    view: ReadView,
    model: Vec<ModelRow>,
    source: RecordBatch,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
struct NoRepair;

impl Repair for NoRepair {
    fn index_is_damaged(&self) {
        panic!("a fresh index is sound");
    }
}

/// How one segment is made: sealed or not, its partition, the sizes of its batches.
type Shape = (bool, i64, Vec<usize>);

/// Builds segments of the given shapes. Keys come in the order of `keys`, wrapping around: a key
/// that comes again replaces its older row. `deleted` keys die at the end. The view is at the
/// newest time less `back`.
fn fixture(shapes: &[Shape], keys: &[i64], deleted: &[i64], back: u64) -> Fixture {
    let schema = Arc::new(every_type());
    let source = rows(&schema, keys.len(), 0);
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
    fs_err::create_dir_all(blobs.path("data/7")).unwrap();
    let published = Arc::new(blobs.published("data/7"));

    let mut model: Vec<Vec<ModelRow>> = Vec::new();
    let mut growing: Vec<(GrowingBuilder, DeleteMask)> = Vec::new();
    let mut newest: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    let mut next = 0;
    let mut ts = 0;
    for (number, (sealed, partition, sizes)) in shapes.iter().enumerate() {
        model.push(Vec::new());
        growing.push((GrowingBuilder::default(), DeleteMask::default()));
        for &size in sizes {
            ts += 1;
            let mut picks = Vec::new();
            // A key comes once in a batch; repeats across batches replace.
            for _ in 0..size.min(keys.len()) {
                let key = keys[next % keys.len()];
                next += 1;
                picks.push(key as u32);
                if let Some((segment, row)) = newest.get(&key).copied() {
                    growing[segment].1.insert(row as Row, Ts(ts));
                    model[segment][row].died = Some(ts);
                }
                newest.insert(key, (number, model[number].len()));
                model[number].push(ModelRow {
                    key,
                    source: key as u32,
                    written: ts,
                    died: None,
                    partition: *partition,
                    growing: !sealed,
                });
            }
            let batch = take_record_batch(&source, &UInt32Array::from(picks)).unwrap();
            growing[number].0.push(batch, Ts(ts), 1);
        }
    }
    ts += 1;
    for key in deleted {
        if let Some((segment, row)) = newest.remove(key) {
            growing[segment].1.insert(row as Row, Ts(ts));
            model[segment][row].died = Some(ts);
        }
    }
    let mut segments = Vec::new();
    for (number, ((mut builder, deletes), (sealed, partition, _))) in
        growing.into_iter().zip(shapes).enumerate()
    {
        let id = number as i64 + 1;
        let body = Body::Growing(builder.snapshot().unwrap());
        let deletes = Arc::new(deletes);
        let segment = Arc::new(Segment { id, partition: *partition, body, deletes });
        if !sealed {
            segments.push(segment);
            continue;
        }
        // A segment without rows is never sealed.
        let parts = std::slice::from_ref(&segment);
        let sorted = seal::sort(&schema, parts, Outdated::default(), &NoScratch).unwrap();
        let Some(sorted) = sorted else { continue };
        let entry = seal::write(&blobs, 7, &schema, id, *partition, &sorted, &NoScratch).unwrap();
        let deletes = sorted.deletes(&[Arc::clone(&segment.deletes)]);
        let file = SealedSegment::open(&published, &schema, &entry, Arc::new(NoRepair)).unwrap();
        segments.push(Arc::new(Segment {
            id,
            partition: *partition,
            body: Body::Sealed(Arc::new(file)),
            deletes: Arc::new(deletes),
        }));
    }
    let version = Arc::new(Version { ts: Ts(ts), segments, damage: None });
    let at = ts.saturating_sub(back);
    let budget = crate::budget::Budget::new(1 << 30);
    let view = ReadView { version, schema, ts: Ts(at), expired: Ts::ZERO, budget };
    let model = model.into_iter().flatten().collect();
    Fixture { view, model, source, _dir: dir }
}

impl Fixture {
    fn schema(&self) -> &Schema {
        self.view.schema()
    }

    /// Source rows that should be selected, by key.
    fn expected(&self, scope: &Scope<'_>) -> BTreeMap<i64, u32> {
        let passes = scope.filter.map(|filter| filter.eval(&self.source).unwrap());
        self.model
            .iter()
            .filter(|row| {
                row.written <= self.view.ts.0 && row.died.is_none_or(|t| t > self.view.ts.0)
            })
            .filter(|row| scope.partitions.is_none_or(|ids| ids.contains(&row.partition)))
            .filter(|row| !(scope.ignore_growing && row.growing))
            .filter(|row| passes.as_ref().is_none_or(|mask| mask.contains(row.source)))
            .map(|row| (row.key, row.source))
            .collect()
    }

    fn keys_of(&self, rows: &[RowAddr]) -> Vec<i64> {
        let batch = self.view.take(rows, &["id"]).unwrap();
        batch.column(0).as_primitive::<Int64Type>().values().to_vec()
    }

    /// Scores of the expected rows by the definition, best first, ties by key.
    fn scored(&self, scope: &Scope<'_>, score: impl Fn(usize) -> Option<f32>) -> Vec<(i64, f32)> {
        let mut scored: Vec<_> = self
            .expected(scope)
            .into_iter()
            .filter_map(|(key, row)| Some((key, score(row as usize)?)))
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored
    }
}

fn dense(batch: &RecordBatch, row: usize) -> Option<Vec<f32>> {
    let column = batch.column_by_name(DENSE).unwrap().as_fixed_size_list();
    column.is_valid(row).then(|| column.value(row).as_primitive::<Float32Type>().values().to_vec())
}

fn sparse(batch: &RecordBatch, row: usize) -> Option<BTreeMap<u32, f32>> {
    let column = batch.column_by_name(SPARSE).unwrap().as_binary::<i64>();
    column.is_valid(row).then(|| SparseRow::parse(column.value(row)).unwrap().iter().collect())
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let sizes = proptest::collection::vec(1_usize..30, 0..4);
    proptest::collection::vec((any::<bool>(), 1_i64..3, sizes), 0..5)
}

fn fixtures() -> impl Strategy<Value = Fixture> {
    let keys = Just((0..50_i64).collect::<Vec<_>>()).prop_shuffle();
    let deleted = proptest::collection::vec(0_i64..50, 0..10);
    (shapes(), keys, deleted, prop_oneof![3 => Just(0_u64), 1 => 0_u64..8])
        .prop_map(|(shapes, keys, deleted, back)| fixture(&shapes, &keys, &deleted, back))
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {:?}: {:?}", self.view.ts, self.model)
    }
}

/// Filters that take every way through `select`.
const FILTERS: [&str; 12] = [
    "",
    "id in [1, 7, 7, 30, 99]",
    "id == 12",
    "id in []",
    "id > 20",
    "10 <= id < 15 and f0",
    "id > 1000",
    "f4 > 20 or f7 like '%3'",
    "f8['a'] % 2 == 0",
    "f9[0] == 0 and not (f3 < 10)",
    "f10 is null or id < 0",
    "nothing == 1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn selecting_counting_and_paging_mean_what_they_say(
        fixture in fixtures(),
        filter in proptest::sample::select(&FILTERS[..10]),
        partition in proptest::option::of(0_i64..4),
        ignore_growing: bool,
        offset in 0_usize..40,
        limit in proptest::option::of(0_usize..20),
    ) {
        let predicate = compile(filter, fixture.schema(), &Templates::new()).unwrap();
        let partitions = partition.map(|id| vec![id]);
        let scope = Scope {
            partitions: partitions.as_deref(),
            filter: Some(&predicate),
            ignore_growing,
        };
        let view = &fixture.view;
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        let expected: Vec<i64> = fixture.expected(&scope).into_keys().collect();
        prop_assert_eq!(view.count(&selection), expected.len());
        let all = view.rows_by_key(&selection, 0, None).unwrap();
        prop_assert_eq!(&fixture.keys_of(&all), &expected);
        let page = view.rows_by_key(&selection, offset, limit).unwrap();
        let paged: Vec<i64> = expected.into_iter().skip(offset).take(limit.unwrap_or(usize::MAX)).collect();
        prop_assert_eq!(fixture.keys_of(&page), paged);
    }

    #[test]
    fn rows_come_back_whole_and_in_the_order_asked(fixture in fixtures(), picks in proptest::collection::vec(0_usize..1000, 0..30)) {
        let view = &fixture.view;
        let selection = view.select(&Scope::default(), &Cancel::never()).unwrap();
        let all = view.rows_by_key(&selection, 0, None).unwrap();
        let expected: Vec<u32> = fixture.expected(&Scope::default()).into_values().collect();
        let picks: Vec<usize> = if all.is_empty() { vec![] } else { picks.iter().map(|p| p % all.len()).collect() };
        let addrs: Vec<RowAddr> = picks.iter().map(|p| all[*p]).collect();
        let wanted: UInt32Array = picks.iter().map(|p| expected[*p]).collect();
        let names: Vec<&str> = fixture.schema().fields.iter().map(|f| f.name.as_str()).collect();
        let taken = view.take(&addrs, &names).unwrap();
        let source = take_record_batch(&fixture.source, &wanted).unwrap();
        prop_assert_eq!(taken.num_rows(), picks.len());
        for (name, (taken, source)) in names.iter().zip(taken.columns().iter().zip(source.columns())) {
            prop_assert_eq!(taken, source, "{}", name);
        }
        prop_assert_eq!(view.take(&addrs, &[]).unwrap().num_rows(), picks.len());
    }

    #[test]
    fn keys_are_located_where_they_live(fixture in fixtures(), wanted in proptest::collection::vec(-3_i64..55, 0..80)) {
        let found = fixture.view.locate(&Keys::Int(wanted.clone())).unwrap();
        let expected = fixture.expected(&Scope::default());
        prop_assert_eq!(found.len(), wanted.len());
        for (key, addr) in wanted.iter().zip(found) {
            prop_assert_eq!(addr.is_some(), expected.contains_key(key), "{}", key);
            if let Some(addr) = addr {
                prop_assert_eq!(fixture.keys_of(&[addr]), vec![*key]);
            }
        }
    }

    #[test]
    fn searches_find_what_the_definition_finds(
        fixture in fixtures(),
        filter in proptest::sample::select(&FILTERS[..]),
        ignore_growing: bool,
        k in 0_usize..30,
        near in proptest::collection::vec(0_usize..50, 1..4),
        above in proptest::option::of(-2000_f32..10.0),
    ) {
        let predicate = compile(filter, fixture.schema(), &Templates::new()).unwrap();
        let scope = Scope { partitions: None, filter: Some(&predicate), ignore_growing };
        let view = &fixture.view;
        let cancel = Cancel::never();
        let selection = view.select(&scope, &cancel).unwrap();
        let source = &fixture.source;
        let bounds = Bounds { above, at_most: None };
        let params = SearchParams { k, bounds, ..SearchParams::default() };
        let check = |field, metric, queries: &[Query<'_>], score: &dyn Fn(usize, usize) -> Option<f32>| {
            let ann = AnnQuery { field, metric, queries, params, exact: false };
            let lists = view.search(&selection, &ann, &cancel).unwrap();
            assert_eq!(lists.len(), queries.len());
            for (number, list) in lists.iter().enumerate() {
                let addrs: Vec<RowAddr> = list.iter().map(|found| found.addr).collect();
                let found: Vec<(i64, f32)> =
                    fixture.keys_of(&addrs).into_iter().zip(list.iter().map(|f| f.score)).collect();
                let mut expected = fixture.scored(&scope, |row| score(number, row));
                expected.retain(|(_, score)| above.is_none_or(|above| *score > above));
                let pages = pages(&fixture, &selection, &AnnQuery { queries: &queries[number..=number], ..ann });
                assert_eq!(
                    pages.iter().map(|row| row.1).collect::<Vec<_>>(),
                    expected.iter().map(|row| row.1).collect::<Vec<_>>(),
                    "{field} {metric:?} query {number}, in pages"
                );
                let keys = |rows: &[(i64, f32)]| rows.iter().map(|row| row.0).collect::<BTreeSet<_>>();
                assert_eq!(keys(&pages), keys(&expected), "every row once");
                expected.truncate(k);
                assert_eq!(found, expected, "{field} {metric:?} query {number}");
            }
        };

        // Small whole numbers, so that sums are exact whatever their order.
        let queries: Vec<Vec<f32>> = near.iter().map(|n| vec![*n as f32, 1.0, 2.0, 0.0]).collect();
        let bytes: Vec<Vec<u8>> =
            queries.iter().map(|q| q.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let dense_queries: Vec<Query<'_>> = bytes.iter().map(|bytes| Query::Dense(bytes)).collect();
        check(DENSE, Metric::L2, &dense_queries, &|number, row| {
            let row = dense(source, row)?;
            Some(-queries[number].iter().zip(&row).map(|(a, b)| (a - b) * (a - b)).sum::<f32>())
        });
        check(DENSE, Metric::Ip, &dense_queries, &|number, row| {
            let row = dense(source, row)?;
            Some(queries[number].iter().zip(&row).map(|(a, b)| a * b).sum::<f32>())
        });

        let codes: Vec<[u8; 2]> = near.iter().map(|n| [*n as u8, 0xf0]).collect();
        let code_queries: Vec<Query<'_>> = codes.iter().map(|code| Query::Dense(code)).collect();
        check(BINARY, Metric::Hamming, &code_queries, &|number, row| {
            let column = source.column_by_name(BINARY).unwrap().as_fixed_size_binary();
            let differing = |(a, b): (&u8, &u8)| (a ^ b).count_ones();
            let distance = || codes[number].iter().zip(column.value(row)).map(differing).sum::<u32>();
            // Minus zero and zero are one score.
            column.is_valid(row).then(|| 0.0 - distance() as f32)
        });

        let terms: Vec<Vec<u8>> = near
            .iter()
            .map(|n| {
                let pairs = [(*n as u32, 2.0_f32), (*n as u32 + 60, 4.0), (*n as u32 + 61, 1.0)];
                pairs.iter().flat_map(|(id, w)| [id.to_le_bytes(), w.to_le_bytes()].concat()).collect()
            })
            .collect();
        let sparse_queries: Vec<Query<'_>> =
            terms.iter().map(|terms| Query::Sparse(SparseRow::parse(terms).unwrap())).collect();
        check(SPARSE, Metric::Ip, &sparse_queries, &|number, row| {
            let row = sparse(source, row)?;
            let terms: Vec<_> = SparseRow::parse(&terms[number]).unwrap().iter().collect();
            let shared = || terms.iter().filter_map(|(id, w)| Some(w * row.get(id)?));
            (shared().count() > 0).then(|| shared().sum())
        });
    }
}

/// The rows of an iteration that goes to its end, some more in each page than in the one before.
fn pages(fixture: &Fixture, selection: &Selection, ann: &AnnQuery<'_>) -> Vec<(i64, f32)> {
    let mut iteration = Iteration::default();
    let mut rows = Vec::new();
    for k in 1.. {
        let ann = AnnQuery { params: SearchParams { k, ..ann.params }, ..*ann };
        let view = &fixture.view;
        let page = view.next_page(&mut iteration, selection, &ann, &Cancel::never()).unwrap();
        let addrs: Vec<RowAddr> = page.iter().map(|found| found.addr).collect();
        rows.extend(fixture.keys_of(&addrs).into_iter().zip(page.iter().map(|found| found.score)));
        if page.is_empty() {
            break;
        }
    }
    rows
}

fn small() -> Fixture {
    let keys: Vec<i64> = (0..40).rev().collect();
    fixture(&[(true, 1, vec![20]), (false, 2, vec![5, 15])], &keys, &[3], 0)
}

#[test]
fn equal_scores_are_ordered_by_key_even_at_the_last_place() {
    let fixture = small();
    let zeros = [0_u8; 2];
    // Against no bits at all, the score is the number of bits, of which many rows share one.
    let selection = fixture.view.select(&Scope::default(), &Cancel::never()).unwrap();
    for k in 1..40 {
        let ann = AnnQuery {
            field: BINARY,
            metric: Metric::Hamming,
            queries: &[Query::Dense(&zeros)],
            params: SearchParams { k, ..SearchParams::default() },
            exact: false,
        };
        let found = &fixture.view.search(&selection, &ann, &Cancel::never()).unwrap()[0];
        let addrs: Vec<_> = found.iter().map(|found| found.addr).collect();
        let column = fixture.source.column_by_name(BINARY).unwrap().as_fixed_size_binary();
        let expected = fixture.scored(&Scope::default(), |row| {
            let bits = || column.value(row).iter().map(|byte| byte.count_ones()).sum::<u32>();
            column.is_valid(row).then(|| 0.0 - bits() as f32)
        });
        let expected: Vec<i64> = expected.into_iter().map(|(key, _)| key).take(k).collect();
        assert_eq!(fixture.keys_of(&addrs), expected, "k = {k}");
    }
}

#[test]
fn a_search_is_of_another_kind_once_what_it_reads_was_opened() {
    let keys: Vec<i64> = (0..3_000).collect();
    let fixture = fixture(&[(true, 1, vec![20]), (false, 2, vec![500, 600])], &keys, &[], 0);
    let kind = |words: &str| fixture.view.kind(&words).unwrap();
    let search = |field: &str| {
        let field = fixture.schema().field(field).unwrap();
        fixture.view.segments().unwrap().iter().for_each(|segment| {
            segment.column(0, field).unwrap();
        });
    };
    let cold = kind("dense");
    assert_eq!(cold, kind("dense"));
    assert_ne!(cold, kind("sparse"));
    search(BINARY);
    let warm = kind("dense");
    assert_ne!(cold, warm);
    search(BINARY);
    assert_eq!(warm, kind("dense"));
    // Many more rows in memory, which are looked at one by one.
    let mut larger = fixture.view.clone();
    let mut segments = fixture.view.segments().unwrap().to_vec();
    segments.push(Arc::new(Segment { id: 9, ..segments[1].as_ref().clone() }));
    larger.version = Arc::new(Version { ts: larger.ts, segments: segments.clone(), damage: None });
    assert_ne!(warm, larger.kind(&"dense").unwrap());
    // So many that nobody asks.
    let many = segments.iter().cycle().take(17).cloned().collect();
    larger.version = Arc::new(Version { ts: larger.ts, segments: many, damage: None });
    assert_eq!(larger.kind(&"dense"), None);
}

#[test]
fn mistakes_of_the_caller_are_errors() {
    let fixture = small();
    let view = &fixture.view;
    let cancel = Cancel::never();
    let selection = view.select(&Scope::default(), &cancel).unwrap();
    let search = |field, metric, query| {
        let params = SearchParams { k: 3, ..SearchParams::default() };
        let ann = AnnQuery { field, metric, queries: &[query], params, exact: false };
        view.search(&selection, &ann, &cancel).unwrap_err().to_string()
    };
    let short = [0_u8; 8];
    let row = [0_u8; 16];
    assert!(search("nope", Metric::L2, Query::Dense(&row)).contains("nope"));
    assert!(search("f4", Metric::L2, Query::Dense(&row)).contains("f4"));
    assert!(!search(DENSE, Metric::L2, Query::Dense(&short)).is_empty());
    assert!(!search(DENSE, Metric::Hamming, Query::Dense(&row)).is_empty());
    assert!(
        search(SPARSE, Metric::L2, Query::Sparse(SparseRow::parse(&[]).unwrap())).contains(SPARSE)
    );
    assert!(!search(SPARSE, Metric::Ip, Query::Dense(&row)).is_empty());
    assert!(view.take(&[], &["nope"]).unwrap_err().to_string().contains("nope"));
    for addr in [RowAddr { segment: 9, row: 0 }, RowAddr { segment: 0, row: 99 }] {
        assert!(matches!(view.take(&[addr], &["id"]), Err(Error::Internal(_))));
    }
    let stopped = Cancel::never();
    stopped.flag().store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(view.select(&Scope::default(), &stopped), Err(Error::Search(_))));
    let damaged = Version {
        ts: view.ts,
        segments: vec![],
        damage: Some(Arc::new(Error::corrupt(std::path::Path::new("9.arrow"), "torn"))),
    };
    let damaged = ReadView { version: Arc::new(damaged), ..view.clone() };
    assert!(matches!(damaged.select(&Scope::default(), &cancel), Err(Error::Corrupt { .. })));
    assert!(matches!(damaged.locate(&Keys::Int(vec![1])), Err(Error::Corrupt { .. })));
}
