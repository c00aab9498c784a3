//! Damage to any file: the right answer, or an error that names the file; never a wrong answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::{Engine, Error, Keys, Scope};

use crate::common::*;

/// A directory with a file of every kind, and what the two collections hold.
async fn sample() -> (tempfile::TempDir, BTreeMap<i64, i64>) {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let many: Vec<(i64, i64)> = (0..300).map(|id| (id, id * 2)).collect();
    collection.insert(p, rows(&many)).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.delete(None, Keys::Int((0..50).collect())).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(p, rows(&[(5, 5), (1000, 1)])).await.unwrap();
    let other = engine.create_collection(DEFAULT_DB, items("other")).await.unwrap();
    let other = engine.collection(other.id).unwrap();
    other.insert(partition(&other, "_default"), rows(&[(1, 1)])).await.unwrap();
    let expected = content(&collection);
    assert_eq!(expected.len(), 252);
    engine.shutdown().await;
    (dir, expected)
}

enum Outcome {
    Right,
    Named,
}

/// Opens a damaged copy and reads everything.
async fn outcome(dir: &Path, damaged: &Path, expected: &BTreeMap<i64, i64>) -> Outcome {
    let name = damaged.file_name().unwrap().to_str().unwrap();
    let check = |error: &Error| {
        let text = error.to_string();
        // A missing manifest or catalog is named by its directory.
        let named = text.contains(name) || text.contains("missing");
        assert!(matches!(error, Error::Corrupt { .. }) && named, "{}: {text}", damaged.display());
    };
    let engine = match Engine::open(options(dir)).await {
        Ok(engine) => engine,
        Err(error) => {
            check(&error);
            return Outcome::Named;
        }
    };
    // Damage in one collection is no concern of the other one.
    assert!(engine.health().damaged.len() <= 1, "{:?}", engine.health().damaged);
    let mut outcome = Outcome::Right;
    for (name, expected) in [("items", expected), ("other", &map(&[(1, 1)]))] {
        let collection = find(&engine, name);
        let view = collection.view();
        let scope = Scope { partitions: None, filter: None, ignore_growing: false };
        let read = view.select(&scope, &Cancel::never()).and_then(|selection| {
            let found = view.rows_by_key(&selection, 0, None)?;
            view.take(&found, &["id", "value", "terms"])
        });
        match read {
            Ok(_) => assert_eq!(&content(&collection), expected, "{}", damaged.display()),
            Err(error) => {
                check(&error);
                assert!(matches!(outcome, Outcome::Right), "both collections are damaged");
                outcome = Outcome::Named;
                let p = partition(&collection, "_default");
                // A write into it either succeeds or says the same.
                if let Err(error) = collection.insert(p, rows(&[(1, 1)])).await {
                    check(&error);
                }
            }
        }
    }
    outcome
}

async fn damage(
    sound: &Path,
    file: &Path,
    expected: &BTreeMap<i64, i64>,
    change: impl FnOnce(&Path),
) -> Outcome {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(sound, copy.path());
    let target: PathBuf = copy.path().join(file.strip_prefix(sound).unwrap());
    change(&target);
    outcome(copy.path(), &target, expected).await
}

#[tokio::test]
async fn any_damage_is_named_or_repaired() {
    let (dir, expected) = sample().await;
    let mut random = Random::new(11);
    let (mut right, mut named) = (0, 0);
    let mut kinds = BTreeMap::new();
    let all: Vec<PathBuf> =
        files(dir.path()).into_iter().filter(|file| !file.ends_with("LOCK")).collect();
    for file in &all {
        let sound = fs_err::read(file).unwrap();
        let mut damages: Vec<Option<Vec<u8>>> = Vec::new();
        let mut changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound.clone();
            change(&mut bytes);
            damages.push(Some(bytes));
        };
        for _ in 0..16 {
            let bit = random.below(8 * sound.len() as u64);
            changed(&|bytes| bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8));
        }
        for _ in 0..4 {
            let at = usize::try_from(random.below(sound.len() as u64)).unwrap();
            changed(&|bytes| bytes.truncate(at));
            changed(&|bytes| bytes[at / 512 * 512..].iter_mut().take(512).for_each(|b| *b = 0));
        }
        for len in [0, 1, sound.len() / 2, sound.len() - 1] {
            changed(&|bytes| bytes.truncate(len));
        }
        changed(&|bytes| bytes.extend_from_slice(b"more"));
        // What was meant for another file of its kind.
        for other in all.iter().filter(|o| *o != file && o.extension() == file.extension()) {
            damages.push(Some(fs_err::read(other).unwrap()));
        }
        damages.push(None);
        *kinds.entry(file.extension().unwrap().to_owned()).or_insert(0) += damages.len();
        for content in damages {
            let is_gone = content.is_none();
            let outcome = damage(dir.path(), file, &expected, |path| match content {
                Some(bytes) => fs_err::write(path, bytes).unwrap(),
                None => fs_err::remove_file(path).unwrap(),
            });
            let outcome = outcome.await;
            let is_index = file.extension().is_some_and(|e| e == "idx");
            assert!(
                !is_gone || matches!(outcome, Outcome::Named) != is_index,
                "{}",
                file.display()
            );
            match outcome {
                Outcome::Right => right += 1,
                Outcome::Named => named += 1,
            }
        }
    }
    println!("{right} without effect or repaired, {named} named, damages by kind {kinds:?}");
    assert!(right + named >= 200 && named > 150, "{right} {named}");
    assert!(kinds.len() >= 5, "{kinds:?}");
}

#[tokio::test]
async fn a_lost_index_is_built_anew() {
    let (dir, expected) = sample().await;
    let is_index = |path: &PathBuf| path.extension().is_some_and(|e| e == "idx");
    let index = files(dir.path()).into_iter().find(is_index).unwrap();
    fs_err::remove_file(&index).unwrap();
    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(content(&collection), expected);
    let mut query = 7_u32.to_le_bytes().to_vec();
    query.extend_from_slice(&1.0_f32.to_le_bytes());
    let search = || {
        let view = collection.view();
        let scope = Scope { partitions: None, filter: None, ignore_growing: false };
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        let query = elanus_index::SparseRow::parse(&query).unwrap();
        let ann = elanus_storage::AnnQuery {
            field: "terms",
            metric: elanus_index::Metric::Ip,
            queries: &[elanus_index::Query::Sparse(query)],
            params: elanus_index::SearchParams {
                k: 10,
                ef: None,
                bounds: elanus_index::Bounds::default(),
                drop_ratio: 0.0,
            },
            exact: false,
        };
        let found = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
        let addresses: Vec<_> = found.iter().map(|found| found.addr).collect();
        view.take(&addresses, &["id"]).unwrap()
    };
    let without = search();
    assert!(without.num_rows() > 0);
    for _ in 0..200 {
        if files(dir.path()).iter().any(is_index) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(files(dir.path()).iter().any(is_index), "the index was not built anew");
    assert_eq!(search(), without);
    engine.shutdown().await;
    drop((engine, collection));
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), expected);
}

#[tokio::test]
async fn a_quarantined_collection_can_be_dropped() {
    let (dir, _) = sample().await;
    let is_data = |path: &PathBuf| path.extension().is_some_and(|e| e == "arrow");
    let data = files(dir.path()).into_iter().find(is_data).unwrap();
    fs_err::remove_file(&data).unwrap();
    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert!(collection.damage().is_some());
    assert!(matches!(engine.flush(collection.id()).await, Err(Error::Corrupt { .. })));
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    assert!(engine.health().damaged.is_empty());
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    assert!(engine.collection(info.id).unwrap().damage().is_none());
}
