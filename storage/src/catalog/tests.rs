//! Changes of the catalog: what they do, what they refuse, and what comes back from disk.

use super::store::CatalogStore;
use super::*;
use crate::blobs::Blobs;
use crate::schema::{DataType, Value};
use crate::segment::testing::{field, schema};

fn new(name: &str) -> NewCollection {
    let mut key = field("id", DataType::Int64);
    (key.primary_key, key.nullable) = (true, false);
    let mut schema = schema(vec![key, field("text", DataType::VarChar { max_length: 10 })]);
    schema.fields.iter_mut().for_each(|field| field.id = 0);
    NewCollection {
        name: name.into(),
        schema,
        shards: 1,
        consistency: 1,
        properties: vec![("a".into(), "1".into())],
        partitions: vec!["p".into()],
        num_partitions: 0,
    }
}

fn fresh() -> CatalogView {
    let mut view = CatalogView::fresh(Ts(1));
    view.create_collection("default", new("c"), Ts(5)).unwrap();
    reindexed(view)
}

/// As committing does.
fn reindexed(view: CatalogView) -> CatalogView {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(std::sync::Arc::new(crate::disk::LocalDisk), dir.path()).unwrap();
    let (mut store, none) = CatalogStore::open(&blobs).unwrap();
    assert!(none.is_none());
    let committed = store.commit(view).unwrap();
    let (_, opened) = CatalogStore::open(&blobs).unwrap();
    assert_eq!(opened.as_ref(), Some(&committed), "what was committed comes back");
    committed
}

#[test]
fn a_collection_gets_ids_and_the_default_partition() {
    let view = fresh();
    let info = view.resolve("default", "c").unwrap();
    assert_eq!(info.schema.fields.iter().map(|f| f.id).collect::<Vec<_>>(), vec![100, 101]);
    let names: Vec<_> = info.partitions.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, vec![DEFAULT_PARTITION, "p"]);
    assert_eq!((info.created, info.updated, info.loaded), (Ts(5), Ts(5), false));
    assert_eq!(view.by_id(info.id).unwrap().name, "c");
    assert_eq!(view.collections("default").count(), 1);
    assert_eq!(view.collections("elsewhere").count(), 0);
}

#[test]
fn ids_are_never_given_twice() {
    let mut view = fresh();
    let first = view.resolve("default", "c").unwrap().id;
    view.drop_collection("default", "c").unwrap();
    let mut view = reindexed(view);
    let second = view.create_collection("default", new("c"), Ts(6)).unwrap().id;
    assert!(second > first + 2, "partitions have ids as well: {first}, {second}");
}

#[test]
fn names_are_unique_with_aliases() {
    let mut view = fresh();
    assert!(matches!(
        view.create_collection("default", new("c"), Ts(6)),
        Err(Error::CollectionExists { .. })
    ));
    assert!(matches!(
        view.create_collection("nowhere", new("d"), Ts(6)),
        Err(Error::DatabaseNotFound(_))
    ));
    view.create_alias("default", "other", "c").unwrap();
    assert!(matches!(view.create_alias("default", "other", "c"), Err(Error::AliasExists(_))));
    assert!(matches!(view.create_alias("default", "c", "c"), Err(Error::AliasNameConflict(_))));
    assert!(matches!(
        view.create_alias("default", "x", "missing"),
        Err(Error::CollectionNotFound { .. })
    ));
    assert!(matches!(
        view.create_collection("default", new("other"), Ts(6)),
        Err(Error::AliasNameConflict(_))
    ));
    assert_eq!(view.resolve("default", "other").unwrap().name, "c");
    assert_eq!(view.aliases("default").map(|(alias, _)| alias).collect::<Vec<_>>(), vec!["other"]);

    // Dropped or renamed is the collection itself, never what an alias points to.
    assert!(matches!(view.drop_collection("default", "other"), Err(Error::AliasNameConflict(_))));
    view.create_collection("default", new("d"), Ts(7)).unwrap();
    let mut view = reindexed(view);
    view.alter_alias("default", "other", "d").unwrap();
    assert_eq!(view.resolve("default", "other").unwrap().name, "d");
    assert!(matches!(view.alter_alias("default", "x", "d"), Err(Error::AliasNotFound(_))));
    view.drop_collection("default", "d").unwrap();
    assert!(view.resolve("default", "other").is_none());
    assert!(matches!(view.drop_alias("default", "other"), Err(Error::AliasNotFound(_))));
}

#[test]
fn databases_are_dropped_only_when_empty() {
    let mut view = fresh();
    view.create_database("db", vec![("k".into(), "v".into())], Ts(9)).unwrap();
    assert!(matches!(view.create_database("db", vec![], Ts(9)), Err(Error::DatabaseExists(_))));
    view.rename_collection("default", "c", "db", "moved").unwrap();
    let mut view = reindexed(view);
    assert!(view.resolve("default", "c").is_none());
    assert_eq!(view.resolve("db", "moved").unwrap().db, "db");
    assert!(matches!(view.drop_database("db"), Err(Error::DatabaseNotEmpty(_))));
    assert!(matches!(view.drop_database("default"), Err(Error::Invalid(_))));
    assert!(matches!(view.drop_database("nope"), Err(Error::DatabaseNotFound(_))));
    view.drop_collection("db", "moved").unwrap();
    view.alter_database("db", vec![("l".into(), "w".into())], &["k".into()]).unwrap();
    assert_eq!(view.database("db").unwrap().properties, vec![("l".into(), "w".into())]);
    view.drop_database("db").unwrap();
    assert_eq!(view.databases().count(), 1);
}

#[test]
fn only_schema_changes_move_the_schema_timestamp() {
    let mut view = fresh();
    let mut alter = |change| view.alter_collection("default", "c", change, Ts(50));
    let set = vec![("a".into(), "2".into()), ("b".into(), "3".into())];
    let info = alter(CollectionChange::Properties { set, delete: vec!["zzz".into()] }).unwrap();
    assert_eq!(info.properties, vec![("a".into(), "2".into()), ("b".into(), "3".into())]);
    alter(CollectionChange::Consistency(3)).unwrap();
    alter(CollectionChange::Description("d".into())).unwrap();
    let info = alter(CollectionChange::Load(None)).unwrap();
    assert!(info.loaded && info.partitions.iter().all(|p| p.loaded));
    let info = alter(CollectionChange::Release(Some(vec!["p".into()]))).unwrap();
    assert!(info.loaded && !info.partition("p").unwrap().loaded);
    assert!(matches!(
        alter(CollectionChange::Load(Some(vec!["q".into()]))),
        Err(Error::PartitionNotFound(_))
    ));
    assert_eq!((info.updated, info.schema.version), (Ts(5), 1));

    let set = vec![("max_length".into(), "20".into())];
    let info =
        alter(CollectionChange::FieldParams { field: "text".into(), set, delete: vec![] }).unwrap();
    assert_eq!(info.schema.field("text").unwrap().data_type, DataType::VarChar { max_length: 20 });
    assert_eq!((info.updated, info.schema.version), (Ts(50), 2));
    let info = alter(CollectionChange::AddField(Box::new(Field {
        id: 0,
        default: Some(Value::Int(4)),
        ..field("n", DataType::Int64)
    })))
    .unwrap();
    assert_eq!(info.schema.field("n").unwrap().id, 102);
    let refused = alter(CollectionChange::AddField(Box::new(Field {
        nullable: false,
        ..field("m", DataType::Int64)
    })));
    assert!(refused.unwrap_err().to_string().contains("nullable or have a default"));
}

#[test]
fn partitions_follow_the_collections_load_state() {
    let mut view = fresh();
    view.alter_collection("default", "c", CollectionChange::Load(None), Ts(6)).unwrap();
    let (info, created) = view.create_partition("default", "c", "q", Ts(7)).unwrap();
    assert!(created.loaded && info.partitions.len() == 3);
    assert!(matches!(
        view.create_partition("default", "c", "q", Ts(7)),
        Err(Error::PartitionExists(_))
    ));
    view.drop_partition("default", "c", "q").unwrap();
    assert!(matches!(view.drop_partition("default", "c", "q"), Err(Error::PartitionNotFound(_))));
    assert!(matches!(
        view.drop_partition("default", "c", DEFAULT_PARTITION),
        Err(Error::Invalid(_))
    ));
}

#[test]
fn a_field_has_one_index() {
    let mut view = fresh();
    let index = |name: &str, field: &str, kind: &str| NewIndex {
        name: name.into(),
        field: field.into(),
        params: vec![("index_type".into(), kind.into()), ("x".into(), "1".into())],
        ..NewIndex::default()
    };
    let (_, first) = view.create_index("default", "c", index("", "text", "TRIE")).unwrap();
    assert_eq!(first.name, "text");
    let (_, again) = view.create_index("default", "c", index("", "text", "TRIE")).unwrap();
    assert_eq!(first, again);
    for other in [index("", "text", "OTHER"), index("y", "text", "TRIE")] {
        assert!(matches!(view.create_index("default", "c", other), Err(Error::IndexExists(_))));
    }
    assert!(matches!(
        view.create_index("default", "c", index("", "none", "TRIE")),
        Err(Error::Invalid(_))
    ));
    let set = vec![("x".into(), "2".into())];
    let info = view.alter_index("default", "c", "text", set, &["index_type".into()]).unwrap();
    assert_eq!(info.index("text").unwrap().params, vec![("x".into(), "2".into())]);
    assert!(info.index_of_field("text").is_some());
    view.drop_index("default", "c", "text").unwrap();
    assert!(matches!(view.drop_index("default", "c", "text"), Err(Error::IndexNotFound(_))));
}

#[test]
fn partition_keys_bring_their_own_partitions() {
    let mut view = fresh();
    let mut hashed = new("h");
    hashed.partitions = (0..4).map(|i| format!("_default_{i}")).collect();
    hashed.num_partitions = 4;
    let info = view.create_collection("default", hashed.clone(), Ts(9)).unwrap();
    assert_eq!(info.partitions.len(), 4);
    let mut view = reindexed(view);
    assert!(matches!(view.drop_partition("default", "h", "_default_1"), Err(Error::Invalid(_))));
    hashed.name = "i".into();
    hashed.partitions.push("_default_0".into());
    assert!(matches!(
        view.create_collection("default", hashed, Ts(9)),
        Err(Error::PartitionExists(_))
    ));
}
