//! Whatever arrives, the node answers it and lives on.
//!
//! Requests from the network are untrusted. These tests send what no client would: random bytes
//! where messages are expected, columns that contradict each other, numbers at the edges, text
//! built to exhaust a parser, and thousands of valid requests with a few bits turned over. A
//! request may be refused in any honest way; a handler must not panic, and memory and time stay
//! bounded.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::time::{Duration, Instant};

use elanus_proto::codes::Code;
use elanus_proto::common::{PlaceholderGroup, PlaceholderValue, Status};
use elanus_proto::milvus::search_request::SearchInput;
use elanus_proto::milvus::{
    CreateCollectionRequest, DeleteRequest, HybridSearchRequest, InsertRequest, QueryRequest,
    SearchRequest,
};
use elanus_proto::schema::field_data::Field;
use elanus_proto::schema::scalar_field::Data as Scalars;
use elanus_proto::schema::vector_field::Data as Vectors;
use elanus_proto::schema::{
    ArrayArray, BoolArray, DataType, FieldData, IntArray, JsonArray, LongArray, ScalarField,
    SparseFloatArray, StringArray, VectorField,
};
use elanus_tests::wire::{self, Client, pair};
use elanus_tests::{Random, TestNode};
use prost::Message;
use prost::bytes::Bytes;
use tonic::Response;

const COLLECTION: &str = "target";
const DIM: usize = 4;
const ROWS: i64 = 50;

/// No single hostile request may keep the node busy for longer.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start() -> (TestNode, Client) {
    let node = TestNode::start().unwrap();
    let mut client = node.client().await.unwrap();
    let mut schema = wire::counting_schema(COLLECTION, &["number"], DIM);
    schema.enable_dynamic_field = true;
    schema.fields.push(wire::field("text", DataType::VarChar, &[("max_length", "100")]));
    schema.fields.push(wire::field("json", DataType::Json, &[]));
    for field in schema.fields.iter_mut().skip(3) {
        field.nullable = true;
    }
    wire::create_and_load(&mut client, &schema).await.unwrap();
    let answer = client.insert(insert()).await.unwrap().into_inner();
    wire::check(answer.status.as_ref()).unwrap();
    (node, client)
}

/// The node answers an honest request as ever, and nothing panicked on the way.
async fn assert_unharmed(node: &TestNode, client: &mut Client) {
    let answer = client.search(search()).await.unwrap().into_inner();
    wire::check(answer.status.as_ref()).unwrap();
    assert_eq!(wire::int_ids(answer.results.unwrap().ids.as_ref()).len(), 3);
    let log = node.log_text();
    let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "a handler panicked: {panics:#?}");
}

#[tokio::test]
async fn contradictory_columns_are_refused_and_the_rows_stay_as_they_were() {
    let (node, mut client) = start().await;
    for (what, columns, num_rows) in contradictory_columns() {
        let request = InsertRequest { fields_data: columns, num_rows, ..insert() };
        let refusal = status_of(client.insert(request).await, |answer| answer.status);
        assert_ne!(refusal.code, 0, "accepted: {what}");
        assert_ne!(refusal.error_code, 0, "{what}: no legacy code");
        assert_ne!(refusal.code, Code::ServiceInternal.number(), "{what}: {}", refusal.reason);
    }
    let answer = client.query(wire::query(COLLECTION, "", &["count(*)"])).await.unwrap();
    assert_eq!(wire::longs_of(&answer.get_ref().fields_data, "count(*)"), [ROWS]);
    assert_unharmed(&node, &mut client).await;
}

#[tokio::test]
async fn placeholders_that_are_no_query_vectors_are_refused() {
    let (node, mut client) = start().await;
    let group = |kind: i32, values: Vec<Vec<u8>>| {
        let value = PlaceholderValue {
            tag: "$0".to_owned(),
            r#type: kind,
            values: values.into_iter().map(Bytes::from).collect(),
            element_level: false,
        };
        PlaceholderGroup { placeholders: vec![value] }.encode_to_vec()
    };
    let mut groups = vec![
        Vec::new(),
        vec![0xff; 64],
        PlaceholderGroup::default().encode_to_vec(),
        group(101, vec![]),
        group(101, vec![vec![]]),
        group(101, vec![vec![0; 15]]),
        group(101, vec![vec![0; 17]]),
        group(101, vec![vec![0; 16], vec![0; 12]]),
        group(101, vec![[0, 0, 0xc0, 0x7f].repeat(4)]),
        group(104, vec![vec![0xff; 8]]),
        group(100, vec![vec![1]]),
        group(21, vec![b"text".to_vec()]),
        group(21, vec![vec![0xff, 0xfe]]),
        group(301, vec![vec![0; 32]]),
        group(-7, vec![vec![0; 16]]),
        group(101, vec![vec![0; 16]; 16_385]),
    ];
    let mut random = Random::new(7);
    groups.extend((0..300).map(|_| bytes(&mut random, 60)));
    for group in groups {
        let shown = format!("{:02x?}", &group[..group.len().min(40)]);
        let request = SearchRequest {
            search_input: Some(SearchInput::PlaceholderGroup(group.into())),
            ..search()
        };
        let refusal = status_of(client.search(request).await, |answer| answer.status);
        assert_ne!(refusal.code, 0, "accepted: {shown}");
        assert_ne!(refusal.code, Code::ServiceInternal.number(), "{shown}: {}", refusal.reason);
    }
    assert_unharmed(&node, &mut client).await;
}

#[tokio::test]
async fn numbers_at_the_edges_are_refused() {
    let (node, mut client) = start().await;
    let edges = [
        "0",
        "-1",
        "16385",
        "9223372036854775807",
        "-9223372036854775808",
        "1e308",
        "NaN",
        "99999999999999999999999",
        "",
        "x",
        "\u{0}",
    ];
    for edge in edges {
        for (key, may_be_empty) in [("topk", false), ("offset", true), ("round_decimal", true)] {
            let mut request = search();
            request.search_params.retain(|p| p.key != key);
            request.search_params.push(pair(key, edge));
            let answer = status_of(client.search(request).await, |answer| answer.status);
            let harmless = match (key, edge) {
                ("offset", "0") | ("round_decimal", "0" | "-1") => true,
                (_, "") => may_be_empty,
                _ => false,
            };
            if !harmless {
                assert_ne!(answer.code, 0, "{key}={edge} was accepted");
            }
        }
        let mut request = wire::query(COLLECTION, "id >= 0", &["id"]);
        request.query_params = vec![pair("limit", edge), pair("offset", edge)];
        let _ = status_of(client.query(request).await, |answer| answer.status);
    }
    for dim in ["0", "1", "32769", "2147483647", "9223372036854775807", "-4", "four", "4.5"] {
        let schema = wire::counting_schema("edges", &[], DIM);
        let mut schema = schema;
        schema.fields[1].type_params = vec![pair("dim", dim)];
        let answer = create(&mut client, &schema.encode_to_vec()).await;
        assert_ne!(answer.code, 0, "dim {dim} was accepted");
    }
    assert_unharmed(&node, &mut client).await;
}

#[tokio::test]
async fn filters_built_to_exhaust_the_parser_are_answered_in_time() {
    let (node, mut client) = start().await;
    let deep = 200_000;
    let many = 100_000;
    let list = (0..many).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let bad = [
        format!("{}id > 0{}", "(".repeat(deep), ")".repeat(deep)),
        "(".repeat(deep),
        format!("{}id > 0", "not ".repeat(deep)),
        format!("{}flag", "!".repeat(deep)),
        format!("id > {}1", "-".repeat(deep)),
        format!("json{} == 1", "[\"a\"]".repeat(deep)),
        format!("id == {}1{}", "[".repeat(deep), "]".repeat(deep)),
        "id > 99999999999999999999999999".to_owned(),
        "id == 1e999999999".to_owned(),
        "id % 0 == 1".to_owned(),
        "id / 0 == 1".to_owned(),
        "text like \"\\".to_owned(),
        "text == \"\\u12\"".to_owned(),
        "id in [".to_owned(),
        "{missing} == id".to_owned(),
        "\u{202e}id\u{0} == 'x".to_owned(),
        "id > > 1".to_owned(),
    ];
    for filter in &bad {
        let shown: String = filter.chars().take(60).collect();
        let (answer, took) = query(&mut client, filter).await;
        assert_ne!(answer.code, 0, "accepted: {shown}");
        assert_ne!(answer.code, Code::ServiceInternal.number(), "{shown}: {}", answer.reason);
        assert!(took < PATIENCE, "{shown} took {took:?}");
        let echo = answer.reason.len();
        assert!(echo < 20_000, "the refusal of {shown} is {echo} bytes long");
    }
    let good = [
        format!("id in [{list}]"),
        format!("id not in [{list}]"),
        vec!["id == 7"; 2_000].join(" or "),
        format!("text like \"{}\"", "%a".repeat(40)),
        format!("text == \"{}\"", "x".repeat(100_000)),
    ];
    for filter in &good {
        let shown: String = filter.chars().take(60).collect();
        let (answer, took) = query(&mut client, filter).await;
        assert_eq!(answer.code, 0, "refused: {shown}: {}", answer.reason);
        assert!(took < PATIENCE, "{shown} took {took:?}");
    }
    let refusal = client
        .delete(DeleteRequest {
            collection_name: COLLECTION.to_owned(),
            expr: bad[0].clone(),
            ..DeleteRequest::default()
        })
        .await;
    assert_ne!(status_of(refusal, |answer| answer.status).code, 0);
    assert_unharmed(&node, &mut client).await;
}

#[tokio::test]
async fn schemas_of_random_bytes_are_refused() {
    let (node, mut client) = start().await;
    let mut random = Random::new(11);
    let valid = wire::counting_schema("random", &["a", "b"], DIM).encode_to_vec();
    for i in 0..400 {
        let schema =
            if i % 2 == 0 { bytes(&mut random, 80) } else { turn_bits(&mut random, &valid) };
        // A schema with a harmless bit turned over may be a schema still.
        let answer = create(&mut client, &schema).await;
        assert_ne!(answer.code, Code::ServiceInternal.number(), "{schema:02x?}: {}", answer.reason);
    }
    assert_unharmed(&node, &mut client).await;
}

#[tokio::test]
async fn valid_requests_with_bits_turned_over_are_answered() {
    let seed = Random::seed_from_env(20_261_122);
    let mut random = Random::new(seed);
    let (node, mut client) = start().await;
    let seeds = (insert().encode_to_vec(), search().encode_to_vec());
    let hybrid = HybridSearchRequest {
        collection_name: COLLECTION.to_owned(),
        requests: vec![search(), search()],
        rank_params: vec![
            pair("strategy", "weighted"),
            pair("params", "{\"weights\":[0.5,0.5],\"norm_score\":true}"),
            pair("limit", "3"),
        ],
        output_fields: vec!["*".to_owned()],
        ..HybridSearchRequest::default()
    }
    .encode_to_vec();
    let query =
        wire::query(COLLECTION, "number > 3 and json[\"a\"] < 5 or text like \"a%\"", &["*"])
            .encode_to_vec();
    let mut sent = 0;
    for _ in 0..1_500 {
        if let Ok(request) = InsertRequest::decode(&*turn_bits(&mut random, &seeds.0)) {
            inspect(client.insert(request).await, |answer| answer.status);
            sent += 1;
        }
        if let Ok(request) = SearchRequest::decode(&*turn_bits(&mut random, &seeds.1)) {
            inspect(client.search(request).await, |answer| answer.status);
            sent += 1;
        }
        if let Ok(request) = HybridSearchRequest::decode(&*turn_bits(&mut random, &hybrid)) {
            inspect(client.hybrid_search(request).await, |answer| answer.status);
            sent += 1;
        }
        if let Ok(request) = QueryRequest::decode(&*turn_bits(&mut random, &query)) {
            inspect(client.query(request).await, |answer| answer.status);
            sent += 1;
        }
    }
    assert!(sent > 1_000, "only {sent} requests could be sent: the test proves little");
    assert_unharmed(&node, &mut client).await;
}

/// An answer must not be a caught panic.
fn inspect<T>(answer: Result<Response<T>, tonic::Status>, status: impl Fn(T) -> Option<Status>) {
    let status = status_of(answer, status);
    assert_ne!(status.code, Code::ServiceInternal.number(), "{}", status.reason);
}

/// The in-band status; a refusal by gRPC itself counts as one, but a dead connection does not.
fn status_of<T>(
    answer: Result<Response<T>, tonic::Status>,
    status: impl Fn(T) -> Option<Status>,
) -> Status {
    match answer {
        Ok(answer) => status(answer.into_inner()).unwrap_or_default(),
        Err(refusal) => {
            let honest = [
                tonic::Code::InvalidArgument,
                tonic::Code::OutOfRange,
                tonic::Code::ResourceExhausted,
                tonic::Code::Unimplemented,
            ];
            assert!(honest.contains(&refusal.code()), "the call failed: {refusal}");
            Status { code: -1, error_code: 1, ..Status::default() }
        }
    }
}

async fn query(client: &mut Client, filter: &str) -> (Status, Duration) {
    let began = Instant::now();
    let answer = client.query(wire::query(COLLECTION, filter, &["id"])).await;
    (status_of(answer, |answer| answer.status), began.elapsed())
}

async fn create(client: &mut Client, schema: &[u8]) -> Status {
    let request = CreateCollectionRequest {
        collection_name: "random".to_owned(),
        schema: schema.to_vec().into(),
        ..CreateCollectionRequest::default()
    };
    status_of(client.create_collection(request).await, Some)
}

fn search() -> SearchRequest {
    wire::search(COLLECTION, "vector", &[1.0; DIM], 3)
}

fn insert() -> InsertRequest {
    InsertRequest {
        collection_name: COLLECTION.to_owned(),
        fields_data: columns(),
        num_rows: ROWS as u32,
        ..InsertRequest::default()
    }
}

fn columns() -> Vec<FieldData> {
    let keys: Vec<i64> = (0..ROWS).collect();
    let vectors = (0..ROWS as usize * DIM).map(|i| i as f32).collect();
    vec![
        wire::longs("id", keys.clone()),
        wire::longs("number", keys),
        wire::floats("vector", DIM, vectors),
        scalars("text", DataType::VarChar, texts(ROWS as usize)),
        scalars("json", DataType::Json, jsons(&vec![b"{\"a\":1}"; ROWS as usize])),
    ]
}

/// What is wrong, the columns, and the number of rows they claim.
fn contradictory_columns() -> Vec<(&'static str, Vec<FieldData>, u32)> {
    let with = |at: usize, column: FieldData| {
        let mut columns = columns();
        columns[at] = column;
        columns
    };
    let all = ROWS as usize;
    let rows = ROWS as u32;
    let unset = FieldData {
        r#type: DataType::Int64.into(),
        field_name: "number".to_owned(),
        ..FieldData::default()
    };
    let mut wrong_mask = wire::longs("number", vec![1; all]);
    wrong_mask.valid_data = vec![true; 3];
    let mut null_key = wire::longs("id", (0..ROWS).collect());
    null_key.valid_data = (0..all).map(|i| i > 0).collect();
    let mut huge_dim = wire::floats("vector", DIM, vec![0.0; all * DIM]);
    if let Some(Field::Vectors(vectors)) = &mut huge_dim.field {
        vectors.dim = i64::MAX;
    }
    let sparse = SparseFloatArray { contents: vec![Bytes::from_static(&[1; 7]); all], dim: 9 };
    let nested = ScalarField {
        data: Some(Scalars::ArrayData(ArrayArray { data: Vec::new(), element_type: 22 })),
        valid_data: Vec::new(),
    };
    vec![
        ("no rows", columns(), 0),
        ("fewer rows than the columns hold", columns(), 3),
        ("more rows than memory could hold", columns(), u32::MAX),
        ("no columns", Vec::new(), rows),
        ("a column twice", [columns(), vec![wire::longs("number", vec![1; all])]].concat(), rows),
        ("a column without a name", with(1, wire::longs("", vec![1; all])), rows),
        (
            "a column of no field",
            [columns(), vec![wire::longs("nobody", vec![1; all])]].concat(),
            rows,
        ),
        ("a missing column", columns()[..1].to_vec(), rows),
        ("a column without data", with(1, unset), rows),
        ("a short column", with(1, wire::longs("number", vec![1; all - 1])), rows),
        ("a mask of another length", with(1, wrong_mask), rows),
        ("a null key", with(0, null_key), rows),
        ("the wrong type", with(1, scalars("number", DataType::VarChar, texts(all))), rows),
        (
            "the declared type with other data",
            with(1, scalars("number", DataType::Int64, texts(all))),
            rows,
        ),
        (
            "a vector where a number belongs",
            with(1, wire::floats("number", 1, vec![0.0; all])),
            rows,
        ),
        ("another dimension", with(2, wire::floats("vector", 5, vec![0.0; all * 5])), rows),
        ("a dimension of zero", with(2, wire::floats("vector", 0, Vec::new())), rows),
        ("a dimension beyond all bounds", with(2, huge_dim), rows),
        ("half a vector", with(2, wire::floats("vector", DIM, vec![0.0; all * DIM - 2])), rows),
        ("not a number", with(2, wire::floats("vector", DIM, vec![f32::NAN; all * DIM])), rows),
        ("infinity", with(2, wire::floats("vector", DIM, vec![f32::INFINITY; all * DIM])), rows),
        ("a sparse row of seven bytes", with(2, vectors(Vectors::SparseFloatVector(sparse))), rows),
        (
            "bytes where floats belong",
            with(2, vectors(Vectors::BinaryVector(Bytes::from_static(&[0; 9])))),
            rows,
        ),
        ("text beyond its bound", with(3, scalars("text", DataType::VarChar, long_texts())), rows),
        ("text that is JSON by name", with(4, scalars("json", DataType::Json, texts(all))), rows),
        (
            "broken JSON",
            with(4, scalars("json", DataType::Json, jsons(&vec![b"{\"a\":"; all]))),
            rows,
        ),
        (
            "JSON that is not UTF-8",
            with(4, scalars("json", DataType::Json, jsons(&vec![b"\"\xff\""; all]))),
            rows,
        ),
        (
            "an array of nothing",
            with(1, {
                let mut column = wire::longs("number", Vec::new());
                column.field = Some(Field::Scalars(nested));
                column
            }),
            rows,
        ),
        (
            "JSON nested without end",
            with(4, {
                let deep = [b"[".repeat(30_000), b"]".repeat(30_000)].concat();
                scalars("json", DataType::Json, jsons(&vec![deep.as_slice(); all]))
            }),
            rows,
        ),
        (
            "numbers as booleans",
            with(
                1,
                scalars(
                    "number",
                    DataType::Bool,
                    Scalars::BoolData(BoolArray { data: vec![true; all] }),
                ),
            ),
            rows,
        ),
        (
            "32-bit data in a 64-bit field",
            with(
                1,
                scalars(
                    "number",
                    DataType::Int32,
                    Scalars::IntData(IntArray { data: vec![1; all] }),
                ),
            ),
            rows,
        ),
        (
            "a key that is no number",
            with(
                0,
                scalars(
                    "id",
                    DataType::Double,
                    Scalars::LongData(LongArray { data: vec![1; all - 1] }),
                ),
            ),
            rows,
        ),
    ]
}

fn scalars(name: &str, data_type: DataType, data: Scalars) -> FieldData {
    FieldData {
        r#type: data_type.into(),
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField { data: Some(data), valid_data: Vec::new() })),
        ..FieldData::default()
    }
}

fn vectors(data: Vectors) -> FieldData {
    let mut column = wire::floats("vector", DIM, Vec::new());
    column.field = Some(Field::Vectors(VectorField {
        dim: DIM as i64,
        data: Some(data),
        valid_data: Vec::new(),
    }));
    column
}

fn texts(count: usize) -> Scalars {
    Scalars::StringData(StringArray { data: vec!["a text".to_owned(); count] })
}

fn long_texts() -> Scalars {
    Scalars::StringData(StringArray { data: vec!["x".repeat(101); ROWS as usize] })
}

fn jsons<T: AsRef<[u8]>>(values: &[T]) -> Scalars {
    let data = values.iter().map(|value| Bytes::copy_from_slice(value.as_ref())).collect();
    Scalars::JsonData(JsonArray { data })
}

/// Up to `most` random bytes.
fn bytes(random: &mut Random, most: usize) -> Vec<u8> {
    (0..random.below(most)).map(|_| random.bits() as u8).collect()
}

/// A copy with one to four bits turned over, or with its tail cut off.
fn turn_bits(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    if random.chance(10) {
        bytes.truncate(random.below(bytes.len()));
    }
    bytes
}
