//! A node from start to end: it ends quickly, guards its directory, and comes back as it was.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use elanus_proto::common::{ConsistencyLevel, LoadState};
use elanus_proto::milvus::{
    AllocTimestampRequest, CreateAliasRequest, CreateCollectionRequest, CreateDatabaseRequest,
    CreatePartitionRequest, DescribeCollectionRequest, DescribeCollectionResponse,
    DescribeIndexRequest, DescribeIndexResponse, GetLoadStateRequest, InsertRequest,
    ListDatabasesRequest, ShowPartitionsRequest,
};
use elanus_proto::schema::DataType;
use elanus_tests::wire::{self, Client, pair};
use elanus_tests::{Random, TestNode};
use prost::Message;

/// What the node promises about SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_busy_node_within_two_seconds_and_loses_nothing() {
    let mut node = TestNode::start().unwrap();
    let mut client = node.client().await.unwrap();
    wire::create_and_load(&mut client, &wire::counting_schema("busy", &[], 2)).await.unwrap();
    let writer = tokio::spawn({
        let client = node.client().await.unwrap();
        insert_until_refused(client, 0)
    });
    let idle = node.client().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let (took, status) = tokio::task::block_in_place(|| node.terminate()).unwrap();
    assert!(took < ENDS_WITHIN, "SIGTERM took {took:?}");
    assert!(status.success(), "the node ended with {status}");
    assert!(!node.data_dir().join("endpoint.json").exists(), "endpoint.json was left behind");
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged > 0);
    drop(idle);

    node.reopen().unwrap();
    let mut client = node.client().await.unwrap();
    let rows = count(&mut client, "busy").await;
    // The last call may have been cut off after it was done.
    assert!(
        (acknowledged..=acknowledged + 10).contains(&rows),
        "{acknowledged} rows, {rows} found"
    );
    assert!(!node.log_text().contains("panicked"), "a clean end panics nowhere");
}

#[test]
fn a_second_node_on_the_same_directory_is_refused_and_told_who_holds_it() {
    let node = TestNode::start().unwrap();
    let began = Instant::now();
    let output = node
        .command()
        .unwrap()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(!output.status.success(), "two nodes run on one directory");
    assert!(began.elapsed() < Duration::from_secs(10));
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let pid = node.pid().unwrap().to_string();
    assert!(said.contains(&pid), "the message does not name process {pid}: {said}");
    let (healthy, _) = node.ops_page("/healthz").unwrap();
    assert!(healthy, "the first node suffered from the second");
}

#[tokio::test]
async fn a_restart_brings_back_everything_that_was_defined() {
    let mut node = TestNode::start().unwrap();
    let mut client = node.client().await.unwrap();
    define_a_bit_of_everything(&mut client).await;
    let before = Definitions::read(&mut client).await;
    assert_eq!(before.databases, ["default", "second"]);
    assert_eq!(before.partitions, ["_default", "odd"]);
    assert_eq!(before.load, LoadState::Loaded);
    assert_eq!(before.load_of_other, LoadState::NotLoad);

    for end in ["kill -9", "SIGTERM"] {
        if end == "SIGTERM" {
            node.terminate().unwrap();
        } else {
            node.kill9().unwrap();
        }
        node.reopen().unwrap();
        let mut client = node.client().await.unwrap();
        let after = Definitions::read(&mut client).await;
        assert_eq!(after, before, "after {end}");
        // Loaded means: it can be searched at once.
        let found = client
            .search(wire::search("things", "vector", &[3.0, 0.0], 1))
            .await
            .unwrap()
            .into_inner();
        wire::check(found.status.as_ref()).unwrap();
        let results = found.results.unwrap();
        assert_eq!(wire::int_ids(results.ids.as_ref()), [3], "after {end}");
    }
}

#[tokio::test]
async fn timestamps_rise_over_restarts() {
    let mut node = TestNode::start().unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let mut client = node.client().await.unwrap();
        for _ in 0..100 {
            let answer = client
                .alloc_timestamp(AllocTimestampRequest::default())
                .await
                .unwrap()
                .into_inner();
            wire::check(answer.status.as_ref()).unwrap();
            assert!(answer.timestamp > last, "{} after {last}", answer.timestamp);
            last = answer.timestamp;
        }
        node.kill9().unwrap();
        node.reopen().unwrap();
    }
}

#[test]
fn the_ops_port_tells_health_and_metrics() {
    let node = TestNode::start().unwrap();
    for path in ["/healthz", "/livez", "/readyz"] {
        let (ok, body) = node.ops_page(path).unwrap();
        assert!(ok, "{path}: {body}");
    }
    let (ok, metrics) = node.ops_page("/metrics").unwrap();
    assert!(ok);
    assert!(
        metrics.lines().any(|line| line.starts_with("# TYPE elanus_")),
        "no metric of ours: {metrics}"
    );
    let (ok, _) = node.ops_page("/nothing-here").unwrap();
    assert!(!ok);
}

/// What clients can read of the definitions.
#[derive(Debug, PartialEq)]
struct Definitions {
    databases: Vec<String>,
    collection: DescribeCollectionResponse,
    indexes: DescribeIndexResponse,
    partitions: Vec<String>,
    load: LoadState,
    load_of_other: LoadState,
}

impl Definitions {
    async fn read(client: &mut Client) -> Self {
        let databases =
            client.list_databases(ListDatabasesRequest::default()).await.unwrap().into_inner();
        // By its alias: that has to survive as well.
        let request = DescribeCollectionRequest {
            collection_name: "other_name".to_owned(),
            ..DescribeCollectionRequest::default()
        };
        let mut collection = client.describe_collection(request).await.unwrap().into_inner();
        wire::check(collection.status.as_ref()).unwrap();
        collection.request_time = 0;
        let request = DescribeIndexRequest {
            collection_name: "things".to_owned(),
            ..DescribeIndexRequest::default()
        };
        let indexes = client.describe_index(request).await.unwrap().into_inner();
        let request = ShowPartitionsRequest {
            collection_name: "things".to_owned(),
            ..ShowPartitionsRequest::default()
        };
        let partitions = client.show_partitions(request).await.unwrap().into_inner();
        Self {
            databases: sorted(databases.db_names),
            collection,
            indexes,
            partitions: sorted(partitions.partition_names),
            load: load_state(client, "things").await,
            load_of_other: load_state(client, "not_loaded").await,
        }
    }
}

async fn define_a_bit_of_everything(client: &mut Client) {
    let request =
        CreateDatabaseRequest { db_name: "second".to_owned(), ..CreateDatabaseRequest::default() };
    wire::check(Some(client.create_database(request).await.unwrap().get_ref())).unwrap();

    let mut schema = wire::counting_schema("things", &["number"], 2);
    schema.description = "of all sorts".to_owned();
    schema.enable_dynamic_field = true;
    let mut text = wire::field("text", DataType::VarChar, &[("max_length", "77")]);
    text.nullable = true;
    schema.fields.push(text);
    wire::create_and_load(client, &schema).await.unwrap();

    let other = wire::counting_schema("not_loaded", &[], 2);
    let request = CreateCollectionRequest {
        collection_name: other.name.clone(),
        schema: other.encode_to_vec().into(),
        consistency_level: ConsistencyLevel::Eventually.into(),
        properties: vec![pair("some.property", "kept")],
        ..CreateCollectionRequest::default()
    };
    wire::check(Some(client.create_collection(request).await.unwrap().get_ref())).unwrap();

    let request = CreatePartitionRequest {
        collection_name: "things".to_owned(),
        partition_name: "odd".to_owned(),
        ..CreatePartitionRequest::default()
    };
    wire::check(Some(client.create_partition(request).await.unwrap().get_ref())).unwrap();
    let request = CreateAliasRequest {
        collection_name: "things".to_owned(),
        alias: "other_name".to_owned(),
        ..CreateAliasRequest::default()
    };
    wire::check(Some(client.create_alias(request).await.unwrap().get_ref())).unwrap();

    let keys = vec![1, 2, 3];
    let request = InsertRequest {
        collection_name: "things".to_owned(),
        fields_data: vec![
            wire::longs("id", keys.clone()),
            wire::longs("number", keys),
            wire::floats("vector", 2, vec![1.0, 0.0, 2.0, 0.0, 3.0, 0.0]),
        ],
        num_rows: 3,
        ..InsertRequest::default()
    };
    let answer = client.insert(request).await.unwrap().into_inner();
    wire::check(answer.status.as_ref()).unwrap();
}

async fn load_state(client: &mut Client, collection: &str) -> LoadState {
    let request = GetLoadStateRequest {
        collection_name: collection.to_owned(),
        ..GetLoadStateRequest::default()
    };
    let answer = client.get_load_state(request).await.unwrap().into_inner();
    wire::check(answer.status.as_ref()).unwrap();
    answer.state()
}

/// Inserts ten rows at a time until the node refuses; returns how many rows it acknowledged.
async fn insert_until_refused(mut client: Client, first: i64) -> i64 {
    let mut random = Random::new(1);
    let mut next = first;
    loop {
        let keys: Vec<i64> = (next..next + 10).collect();
        let vectors = (0..20).map(|_| random.below(1000) as f32).collect();
        let request = InsertRequest {
            collection_name: "busy".to_owned(),
            fields_data: vec![wire::longs("id", keys), wire::floats("vector", 2, vectors)],
            num_rows: 10,
            ..InsertRequest::default()
        };
        match client.insert(request).await {
            Ok(answer) if wire::check(answer.get_ref().status.as_ref()).is_ok() => next += 10,
            _ => return next - first,
        }
    }
}

async fn count(client: &mut Client, collection: &str) -> i64 {
    let answer = client.query(wire::query(collection, "", &["count(*)"])).await.unwrap();
    wire::check(answer.get_ref().status.as_ref()).unwrap();
    wire::longs_of(&answer.get_ref().fields_data, "count(*)")[0]
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
