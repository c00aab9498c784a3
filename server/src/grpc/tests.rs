//! The service on a node in this process: what each family of rpcs promises.

use elanus_proto::common::{IndexState, KeyValuePair, LoadState};
use elanus_proto::milvus::milvus_service_server::MilvusService;
use elanus_proto::schema::{CollectionSchema, DataType, FieldSchema};
use prost::Message;
use tonic::Request;

use super::*;
use crate::config::{Config, Sources};

struct Rig {
    service: Service,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data").to_string_lossy().into_owned();
        let config = Config::load(Sources {
            flags: vec![
                ("data_dir".to_owned(), toml::Value::String(data_dir)),
                ("durability".to_owned(), toml::Value::String("async".to_owned())),
            ],
            ..Default::default()
        })
        .unwrap();
        let node = Node::open(config).await.unwrap();
        Self { service: Service::new(node), _dir: dir }
    }

    async fn with_books() -> Self {
        let rig = Self::new().await;
        ok(&rig.create("books", &schema()).await);
        rig
    }

    async fn create(&self, name: &str, schema: &CollectionSchema) -> Status {
        let request = CreateCollectionRequest {
            collection_name: name.to_owned(),
            schema: schema.encode_to_vec().into(),
            consistency_level: 2,
            ..Default::default()
        };
        self.service.create_collection(Request::new(request)).await.unwrap().into_inner()
    }

    async fn describe(&self, name: &str) -> DescribeCollectionResponse {
        let request =
            DescribeCollectionRequest { collection_name: name.to_owned(), ..Default::default() };
        self.service.describe_collection(Request::new(request)).await.unwrap().into_inner()
    }

    async fn create_index(&self, field: &str, name: &str, params: &[(&str, &str)]) -> Status {
        let request = CreateIndexRequest {
            collection_name: "books".to_owned(),
            field_name: field.to_owned(),
            index_name: name.to_owned(),
            extra_params: params.iter().map(|(k, v)| kv(k, v)).collect(),
            ..Default::default()
        };
        self.service.create_index(Request::new(request)).await.unwrap().into_inner()
    }

    async fn describe_index(&self, name: &str) -> DescribeIndexResponse {
        let request = DescribeIndexRequest {
            collection_name: "books".to_owned(),
            index_name: name.to_owned(),
            ..Default::default()
        };
        self.service.describe_index(Request::new(request)).await.unwrap().into_inner()
    }

    async fn load(&self, name: &str) -> Status {
        let request =
            LoadCollectionRequest { collection_name: name.to_owned(), ..Default::default() };
        self.service.load_collection(Request::new(request)).await.unwrap().into_inner()
    }

    async fn load_state(&self, name: &str) -> GetLoadStateResponse {
        let request =
            GetLoadStateRequest { collection_name: name.to_owned(), ..Default::default() };
        self.service.get_load_state(Request::new(request)).await.unwrap().into_inner()
    }
}

fn kv(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_owned() }
}

fn schema() -> CollectionSchema {
    CollectionSchema {
        name: "books".to_owned(),
        description: "about books".to_owned(),
        enable_dynamic_field: true,
        fields: vec![
            FieldSchema {
                name: "id".to_owned(),
                is_primary_key: true,
                data_type: DataType::Int64.into(),
                ..Default::default()
            },
            FieldSchema {
                name: "vec".to_owned(),
                data_type: DataType::FloatVector.into(),
                type_params: vec![kv("dim", "4")],
                ..Default::default()
            },
        ],
        ..Default::default()
    }
}

#[track_caller]
fn ok(status: &Status) {
    assert_eq!((status.code, status.error_code), (0, 0), "{}", status.reason);
    assert!(status.extra_info.is_empty());
}

#[track_caller]
fn failed(status: &Status, code: i32, legacy: i32, text: &str) {
    assert_eq!((status.code, status.error_code), (code, legacy), "{}", status.reason);
    assert!(status.reason.contains(text), "{}", status.reason);
}

fn status<T: InBand>(mut response: T) -> Status {
    response.status_mut().take().expect("every response carries a status")
}

#[tokio::test]
async fn a_created_collection_is_described_as_it_was_sent() {
    let rig = Rig::with_books().await;
    let books = rig.describe("books").await;
    let described = books.schema.clone().unwrap();
    assert_eq!(described.description, "about books");
    assert!(described.enable_dynamic_field);
    let names: Vec<&str> = described.fields.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["id", "vec"], "the hidden field is not listed");
    assert_eq!(described.fields[0].field_id, 100);
    assert_eq!(described.fields[1].type_params, [kv("dim", "4")]);
    assert_ne!(books.collection_id, 0);
    assert_eq!((books.consistency_level, books.shards_num, books.num_partitions), (2, 1, 1));
    assert_eq!(books.update_timestamp_str, books.update_timestamp.to_string());
    assert_eq!(books.created_utc_timestamp, books.created_timestamp >> 18);
    assert_eq!((books.db_name.as_str(), books.virtual_channel_names.len()), ("default", 1));
    ok(&status(books));
}

#[tokio::test]
async fn creating_twice_succeeds_only_with_the_same_schema() {
    let rig = Rig::with_books().await;
    ok(&rig.create("books", &schema()).await);
    let other = CollectionSchema { enable_dynamic_field: false, ..schema() };
    failed(
        &rig.create("books", &other).await,
        1100,
        5,
        "create duplicate collection with different parameters, collection: books",
    );
}

#[tokio::test]
async fn a_missing_collection_has_its_code_and_its_text() {
    let rig = Rig::new().await;
    let text = "can't find collection[database=default][collection=nope]";
    failed(&status(rig.describe("nope").await), 100, 4, text);
    failed(&rig.load("nope").await, 100, 4, "collection not found");
    let state = rig.load_state("nope").await;
    assert_eq!(state.state(), LoadState::NotExist);
    ok(&status(state));
    let request =
        DropCollectionRequest { collection_name: "nope".to_owned(), ..Default::default() };
    ok(&rig.service.drop_collection(Request::new(request)).await.unwrap().into_inner());
}

#[tokio::test]
async fn the_database_comes_from_the_request_or_else_from_the_metadata() {
    let rig = Rig::with_books().await;
    let describe = |db_name: &str, metadata: &str| {
        let mut request = Request::new(DescribeCollectionRequest {
            collection_name: "books".to_owned(),
            db_name: db_name.to_owned(),
            ..Default::default()
        });
        request.metadata_mut().insert("dbname", metadata.parse().unwrap());
        rig.service.describe_collection(request)
    };
    ok(&status(describe("", "").await.unwrap().into_inner()));
    let missing = status(describe("", "nope").await.unwrap().into_inner());
    failed(&missing, 800, 1, "database not found[database=nope]");
    ok(&status(describe("default", "nope").await.unwrap().into_inner()));
}

#[tokio::test]
async fn an_index_is_named_like_its_field_and_finished_at_once() {
    let rig = Rig::with_books().await;
    failed(&status(rig.describe_index("").await), 700, 25, "index not found");
    ok(&rig.create_index("vec", "", &[("metric_type", "L2")]).await);
    let found = rig.describe_index("vec").await;
    let [index] = found.index_descriptions.as_slice() else { panic!("one index expected") };
    assert_eq!((index.index_name.as_str(), index.field_name.as_str()), ("vec", "vec"));
    assert_eq!(index.state(), IndexState::Finished);
    assert_eq!(index.pending_index_rows, 0);
    assert_eq!(index.params, [kv("index_type", "AUTOINDEX"), kv("metric_type", "L2")]);
    ok(&rig.create_index("vec", "", &[("metric_type", "L2")]).await);
    failed(
        &rig.create_index("vec", "", &[("metric_type", "IP")]).await,
        1100,
        5,
        "at most one distinct index is allowed per field",
    );
    failed(
        &rig.create_index("nope", "", &[]).await,
        1100,
        5,
        "cannot create index on non-exist field: nope",
    );
}

#[tokio::test]
async fn loading_needs_an_index_and_lasts_until_release() {
    let rig = Rig::with_books().await;
    failed(&rig.load("books").await, 700, 25, "index not found[collection=books]");
    let progress = || {
        rig.service.get_loading_progress(Request::new(GetLoadingProgressRequest {
            collection_name: "books".to_owned(),
            ..Default::default()
        }))
    };
    let text = "collection not loaded[collection=books]";
    failed(&status(progress().await.unwrap().into_inner()), 101, 1, text);
    ok(&rig.create_index("vec", "", &[]).await);
    let before = rig.describe("books").await.update_timestamp;
    ok(&rig.load("books").await);
    ok(&rig.load("books").await);
    let loaded = progress().await.unwrap().into_inner();
    assert_eq!((loaded.progress, loaded.refresh_progress), (100, 100));
    assert_eq!(rig.load_state("books").await.state(), LoadState::Loaded);
    assert_eq!(rig.describe("books").await.update_timestamp, before, "the schema did not change");
    let request =
        ReleaseCollectionRequest { collection_name: "books".to_owned(), ..Default::default() };
    ok(&rig.service.release_collection(Request::new(request)).await.unwrap().into_inner());
    assert_eq!(rig.load_state("books").await.state(), LoadState::NotLoad);
}

#[tokio::test]
async fn an_added_field_moves_the_schema_timestamp() {
    let rig = Rig::with_books().await;
    let before = rig.describe("books").await.update_timestamp;
    let add = |field: FieldSchema| {
        rig.service.add_collection_field(Request::new(AddCollectionFieldRequest {
            collection_name: "books".to_owned(),
            schema: field.encode_to_vec().into(),
            ..Default::default()
        }))
    };
    let field = FieldSchema {
        name: "year".to_owned(),
        data_type: DataType::Int32.into(),
        ..Default::default()
    };
    let refused = add(field.clone()).await.unwrap().into_inner();
    failed(&refused, 1100, 5, "added field must be nullable, please check it, field name = year");
    ok(&add(FieldSchema { nullable: true, ..field.clone() }).await.unwrap().into_inner());
    let after = rig.describe("books").await;
    assert!(after.update_timestamp > before);
    let names: Vec<String> = after.schema.unwrap().fields.into_iter().map(|f| f.name).collect();
    assert_eq!(names, ["id", "vec", "year"]);
    let again = add(FieldSchema { nullable: true, ..field }).await.unwrap().into_inner();
    failed(&again, 1100, 5, "duplicated field name: year");
}

#[tokio::test]
async fn aliases_find_their_collection_and_protect_it() {
    let rig = Rig::with_books().await;
    let create = |alias: &str, collection: &str| {
        rig.service.create_alias(Request::new(CreateAliasRequest {
            alias: alias.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        }))
    };
    ok(&create("b", "books").await.unwrap().into_inner());
    ok(&create("b", "books").await.unwrap().into_inner());
    failed(&create("books", "books").await.unwrap().into_inner(), 1601, 1, "conflicts");
    ok(&rig.create("other", &schema()).await);
    failed(
        &create("b", "other").await.unwrap().into_inner(),
        1602,
        1,
        "b is alias to another collection: books",
    );
    let described = rig.describe("b").await;
    assert_eq!(
        (described.collection_name.as_str(), described.aliases.as_slice()),
        ("books", &["b".to_owned()][..])
    );
    failed(&rig.create("b", &schema()).await, 1601, 1, "conflicts with an existing alias");
    let request =
        DropCollectionRequest { collection_name: "books".to_owned(), ..Default::default() };
    let refused = rig.service.drop_collection(Request::new(request)).await.unwrap().into_inner();
    failed(
        &refused,
        1100,
        5,
        "unable to drop the collection [books] because it has associated aliases [b]",
    );
}

#[tokio::test]
async fn a_partition_key_makes_partitions_that_nobody_names() {
    let rig = Rig::new().await;
    let mut schema = schema();
    schema.fields.push(FieldSchema {
        name: "tenant".to_owned(),
        data_type: DataType::Int64.into(),
        is_partition_key: true,
        ..Default::default()
    });
    ok(&rig.create("books", &schema).await);
    assert_eq!(rig.describe("books").await.num_partitions, 16);
    let request =
        ShowPartitionsRequest { collection_name: "books".to_owned(), ..Default::default() };
    let shown = rig.service.show_partitions(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(shown.partition_names.len(), 16);
    assert_eq!(shown.partition_names[0], "_default_0");
    let request = CreatePartitionRequest {
        collection_name: "books".to_owned(),
        partition_name: "p".to_owned(),
        ..Default::default()
    };
    let refused = rig.service.create_partition(Request::new(request)).await.unwrap().into_inner();
    failed(&refused, 1100, 5, "partition key mode");
}

#[tokio::test]
async fn a_partition_created_while_the_collection_is_loaded_is_loaded() {
    let rig = Rig::with_books().await;
    ok(&rig.create_index("vec", "", &[]).await);
    ok(&rig.load("books").await);
    let request = CreatePartitionRequest {
        collection_name: "books".to_owned(),
        partition_name: "p".to_owned(),
        ..Default::default()
    };
    ok(&rig.service.create_partition(Request::new(request)).await.unwrap().into_inner());
    let request = DropPartitionRequest {
        collection_name: "books".to_owned(),
        partition_name: "p".to_owned(),
        ..Default::default()
    };
    let refused = rig.service.drop_partition(Request::new(request)).await.unwrap().into_inner();
    failed(&refused, 1100, 5, "partition is loaded");
}

#[tokio::test]
async fn a_client_gets_a_version_and_an_identifier_that_is_not_zero() {
    let rig = Rig::new().await;
    let connect = || rig.service.connect(Request::new(ConnectRequest::default()));
    let first = connect().await.unwrap().into_inner();
    let second = connect().await.unwrap().into_inner();
    assert!(first.identifier > 0 && second.identifier > first.identifier);
    assert!(first.server_info.unwrap().build_tags.starts_with("2.6."));
    let request = Request::new(GetMetricsRequest::default());
    let metrics = rig.service.get_metrics(request).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&metrics.response).unwrap();
    assert_eq!(json["nodes_info"].as_array().map(Vec::len), Some(1));
    let health = rig.service.check_health(Request::new(CheckHealthRequest {})).await.unwrap();
    assert!(health.into_inner().is_healthy);
}

#[tokio::test]
async fn what_is_not_done_says_so_in_band_or_as_unimplemented() {
    let rig = Rig::new().await;
    let request = Request::new(CreateRoleRequest::default());
    let refused = rig.service.create_role(request).await.unwrap().into_inner();
    failed(&refused, 10, 1, "authorization off");
    let request = Request::new(CreateSnapshotRequest::default());
    let refused = rig.service.create_snapshot(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}

#[tokio::test]
async fn a_panic_fails_only_its_own_call() {
    let rig = Rig::new().await;
    let ctx = Context::new(DEFAULT_DATABASE);
    for run in [Run::Detached, Run::WithCaller] {
        let work = async { panic!("a defect") };
        let answer: Response<BoolResponse> =
            rig.service.call("has_collection").answer(run, &ctx, work).await;
        failed(&status(answer.into_inner()), 5, 1, "a defect");
    }
    ok(&rig.create("books", &schema()).await);
    let text = rig.service.node.metrics.render(&rig.service.node);
    assert!(text.contains("elanus_rpcs_total{rpc=\"has_collection\",code=\"5\"} 2"), "{text}");
}
