//! `verify`, `repair` and `inspect` on sound and on damaged directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::offline::{self, Kind, Repaired, Report, Severity};
use elanus_storage::{Engine, Error, Keys};

use crate::common::{content, copy_dir, files, find, items, open, partition, rows};

/// Two collections: `items` with two sealed segments, deletes on both and records in the log, and
/// `others` with one segment. Returns what `items` holds.
async fn sample(dir: &Path) -> BTreeMap<i64, i64> {
    let engine = open(dir).await;
    for name in ["items", "others"] {
        let info = engine.create_collection(DEFAULT_DB, items(name)).await.unwrap();
        let collection = engine.collection(info.id).unwrap();
        let p = partition(&collection, "_default");
        let all: Vec<(i64, i64)> = (0..200).map(|id| (id, id)).collect();
        collection.insert(p, rows(&all)).await.unwrap();
        engine.flush(info.id).await.unwrap();
    }
    let collection = find(&engine, "items");
    let p = partition(&collection, "_default");
    let again: Vec<(i64, i64)> = (100..150).map(|id| (id, -id)).collect();
    collection.insert(p, rows(&again)).await.unwrap();
    collection.delete(None, Keys::Int((0..10).collect())).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(p, rows(&[(1_000, 1), (1_001, 2)])).await.unwrap();
    collection.delete(None, Keys::Int(vec![120])).await.unwrap();
    let rows = content(&collection);
    engine.shutdown().await;
    rows
}

/// The tools block, which a thread of a runtime must not.
fn blocking<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn verify(dir: &Path, deep: bool) -> Result<Report, Error> {
    blocking(|| offline::verify(dir, deep))
}

fn repair(dir: &Path, act: bool) -> Result<Repaired, Error> {
    blocking(|| offline::repair(dir, act))
}

fn deep(dir: &Path) -> Report {
    verify(dir, true).unwrap()
}

/// The only file of `items`' directory, or of the log, that fits; the oldest if there are more.
fn file(dir: &Path, below: &str, ending: &str) -> PathBuf {
    let fits = |path: &PathBuf| {
        path.strip_prefix(dir).unwrap().to_string_lossy().starts_with(below)
            && path.to_string_lossy().ends_with(ending)
    };
    files(dir).into_iter().find(fits).unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs_err::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs_err::write(path, bytes).unwrap();
}

fn inspected(kind: Kind, path: &Path) -> Result<String, Error> {
    let mut out = Vec::new();
    offline::inspect(kind, path, &mut out).map(|()| String::from_utf8(out).unwrap())
}

async fn items_id(dir: &Path) -> i64 {
    let engine = open(dir).await;
    let id = find(&engine, "items").id();
    engine.shutdown().await;
    id
}

#[tokio::test]
async fn a_sound_directory_is_sound_and_looking_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = sample(dir.path()).await;
    let before: Vec<_> =
        files(dir.path()).into_iter().map(|f| (fs_err::read(&f).unwrap(), f)).collect();
    let report = deep(dir.path());
    assert_eq!(report.findings, []);
    assert_eq!((report.collections, report.segments, report.rows), (2, 3, 450));
    assert!(report.records >= 2, "{report:?}");
    assert_eq!(repair(dir.path(), true).unwrap().dropped, Vec::<String>::new());
    let after: Vec<_> =
        files(dir.path()).into_iter().map(|f| (fs_err::read(&f).unwrap(), f)).collect();
    assert!(before == after);
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), expected);
    assert!(matches!(verify(dir.path(), false), Err(Error::Locked { .. })));
    assert!(matches!(repair(dir.path(), false), Err(Error::Locked { .. })));
}

#[tokio::test]
async fn a_changed_byte_anywhere_is_found_and_named_or_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let expected = sample(dir.path()).await;
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if ["LOCK", "RESERVE"].contains(&name.as_str()) {
            continue;
        }
        let sound = fs_err::read(&path).unwrap();
        for at in [0, sound.len() / 3, sound.len() / 2, sound.len() - 1] {
            flip(&path, at);
            let report = deep(dir.path());
            let named = |path: &Path| report.findings.iter().all(|f| path.starts_with(&f.path));
            assert!(named(&path), "byte {at} of {name}: {report:?}");
            for finding in report.findings.iter().filter(|f| f.problem.contains(": column `")) {
                let from = finding.problem.trim_start_matches("offset ").split(':').next();
                let from: usize = from.unwrap().parse().unwrap();
                // The longest column of 200 rows.
                assert!((from..from + 4_096).contains(&at), "byte {at}: {}", finding.problem);
            }
            if report.findings.is_empty() {
                let copy = tempfile::tempdir().unwrap();
                copy_dir(dir.path(), copy.path());
                let engine = open(copy.path()).await;
                assert_eq!(content(&find(&engine, "items")), expected, "byte {at} of {name}");
            }
            fs_err::write(&path, &sound).unwrap();
        }
        fs_err::remove_file(&path).unwrap();
        assert!(!deep(dir.path()).findings.is_empty(), "{name} was removed");
        fs_err::write(&path, &sound).unwrap();
    }
    assert!(deep(dir.path()).findings.is_empty());
}

#[tokio::test]
async fn what_a_crash_left_and_what_is_rebuilt_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path()).await;
    let id = items_id(dir.path()).await;
    fs_err::write(dir.path().join(format!("data/{id}/99.arrow")), b"never published").unwrap();
    fs_err::create_dir(dir.path().join("data/4711")).unwrap();
    let index = file(dir.path(), &format!("data/{id}/"), ".idx");
    fs_err::remove_file(&index).unwrap();
    let report = deep(dir.path());
    let severities: Vec<_> = report.findings.iter().map(|found| found.severity).collect();
    assert_eq!(severities, [Severity::Index, Severity::Leftover, Severity::Leftover]);
    assert!(report.is_sound());
    assert!(repair(dir.path(), true).unwrap().dropped.is_empty());
}

/// Repairs a copy of a damaged directory, and opens it.
async fn repaired(dir: &Path, says: &[&str]) -> (tempfile::TempDir, Engine) {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    assert!(!deep(copy.path()).is_sound());
    let plan = repair(copy.path(), false).unwrap().dropped;
    assert!(!deep(copy.path()).is_sound(), "a plan changes nothing");
    let text = plan.join("\n");
    assert!(says.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(repair(copy.path(), true).unwrap().dropped, plan);
    let report = deep(copy.path());
    assert!(report.is_sound(), "{report:?}");
    assert!(repair(copy.path(), true).unwrap().dropped.is_empty());
    assert!(copy.path().join("damaged").is_dir());
    let engine = open(copy.path()).await;
    assert_eq!(engine.health().damaged, []);
    assert_eq!(content(&find(&engine, "others")).len(), 200);
    (copy, engine)
}

#[tokio::test]
async fn a_damaged_segment_is_dropped_with_its_rows_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let expected = sample(dir.path()).await;
    let id = items_id(dir.path()).await;
    let data = file(dir.path(), &format!("data/{id}/"), ".arrow");
    let len = fs_err::metadata(&data).unwrap().len();
    fs_err::File::options().write(true).open(&data).unwrap().set_len(len - 1).unwrap();
    let (_copy, engine) = repaired(dir.path(), &["`items`", "with 200 rows"]).await;
    let newer = |(id, value): (&i64, &i64)| *id >= 1_000 || *value < 0;
    let mut kept = expected;
    kept.retain(|id, value| newer((id, value)));
    assert_eq!(kept.len(), 51);
    assert_eq!(content(&find(&engine, "items")), kept);
}

#[tokio::test]
async fn damaged_deletes_bring_back_deleted_rows_and_never_replaced_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = sample(dir.path()).await;
    let id = items_id(dir.path()).await;
    let deletes = file(dir.path(), &format!("data/{id}/"), ".del");
    flip(&deletes, 20);
    let says = ["50 of its 200 rows stay replaced", "comes back"];
    let (_copy, engine) = repaired(dir.path(), &says).await;
    expected.extend((0..10).map(|id| (id, id)));
    assert_eq!(content(&find(&engine, "items")), expected);
}

#[tokio::test]
async fn without_a_manifest_the_log_is_what_stays() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path()).await;
    let id = items_id(dir.path()).await;
    let manifest = file(dir.path(), &format!("data/{id}/manifest"), ".json");
    fs_err::write(&manifest, b"{}").unwrap();
    let (_copy, engine) = repaired(dir.path(), &["all sealed rows"]).await;
    let rows = content(&find(&engine, "items"));
    assert_eq!((rows.get(&1_000), rows.get(&0)), (Some(&1), None));
    let collection = find(&engine, "items");
    let p = partition(&collection, "_default");
    collection.insert(p, crate::common::rows(&[(7, 7)])).await.unwrap();
    engine.flush(id).await.unwrap();
}

#[tokio::test]
async fn a_damaged_log_ends_before_the_damage_and_takes_writes_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    for name in ["items", "others"] {
        engine.create_collection(DEFAULT_DB, items(name)).await.unwrap();
    }
    let other = find(&engine, "others");
    let p = partition(&other, "_default");
    let all: Vec<(i64, i64)> = (0..200).map(|id| (id, id)).collect();
    other.insert(p, rows(&all)).await.unwrap();
    let collection = find(&engine, "items");
    let p = partition(&collection, "_default");
    let log = file(dir.path(), "log", ".log");
    let mut offsets = Vec::new();
    for i in 0..10 {
        offsets.push(fs_err::metadata(&log).unwrap().len());
        collection.insert(p, rows(&[(i, i)])).await.unwrap();
    }
    // Sealed later than the damage: its rows must survive the cut, and its floor be kept.
    engine.flush(other.id()).await.unwrap();
    engine.shutdown().await;
    let sixth = usize::try_from(offsets[6]).unwrap();
    flip(&log, sixth + 60);
    let report = deep(dir.path());
    let problem = &report.findings[0];
    assert_eq!(problem.path, log);
    assert!(problem.problem.contains(&format!("offset {sixth}")), "{problem:?}");
    let (copy, engine) = repaired(dir.path(), &["the log: all records from lsn 8 on"]).await;
    let collection = find(&engine, "items");
    let kept: BTreeMap<i64, i64> = (0..6).map(|i| (i, i)).collect();
    assert_eq!(content(&collection), kept);
    collection.insert(p, rows(&[(77, 7)])).await.unwrap();
    engine.shutdown().await;
    let engine = open(copy.path()).await;
    assert_eq!(content(&find(&engine, "items")).get(&77), Some(&7));
    assert_eq!(content(&find(&engine, "others")).len(), 200);
}

#[tokio::test]
async fn a_lost_catalog_cannot_be_repaired_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path()).await;
    let catalog = file(dir.path(), "catalog", ".json");
    fs_err::remove_file(&catalog).unwrap();
    let report = deep(dir.path());
    assert!(report.findings[0].problem.contains("the catalog is missing"), "{report:?}");
    assert!(matches!(repair(dir.path(), true), Err(Error::Corrupt { .. })));
}

#[tokio::test]
async fn every_kind_of_file_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path()).await;
    let id = items_id(dir.path()).await;
    let below = format!("data/{id}/");
    let catalog = inspected(Kind::Catalog, &dir.path().join("catalog")).unwrap();
    assert!(catalog.contains("\"others\""), "{catalog}");
    let manifest = inspected(Kind::Manifest, &file(dir.path(), &below, ".json")).unwrap();
    assert!(manifest.contains("\"log_floor\""), "{manifest}");
    let log = inspected(Kind::Log, &dir.path().join("log")).unwrap();
    assert!(log.contains("\"insert\":[{\"partition\":") && log.contains("\"delete\":1"), "{log}");
    for (ending, word) in [(".arrow", "\"terms\""), (".idx", "\"sections\""), (".del", "\"dead\"")]
    {
        let path = file(dir.path(), &below, ending);
        let shown = inspected(Kind::Segment, &path).unwrap();
        assert!(shown.contains(word) && shown.contains("\"sound\""), "{shown}");
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = inspected(Kind::Segment, &path).unwrap_err().to_string();
        assert!(error.contains(ending), "{error}");
    }
    fs_err::write(dir.path().join("catalog/7.json"), b"{}").unwrap();
    inspected(Kind::Catalog, &dir.path().join("catalog/7.json")).unwrap_err();
    inspected(Kind::Catalog, &dir.path().join("nowhere")).unwrap_err();
}
