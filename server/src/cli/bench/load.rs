//! `elanus bench load`: makes a collection, fills it, builds its indexes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arrow_buffer::ScalarBuffer;
use bytes::Bytes;
use elanus_proto::common::{ConsistencyLevel, IndexState};
use elanus_proto::milvus::{
    CreateCollectionRequest, CreateIndexRequest, DescribeIndexRequest, DropCollectionRequest,
    FlushRequest, GetLoadingProgressRequest, InsertRequest, LoadCollectionRequest,
};
use elanus_proto::schema::field_data::Field;
use elanus_proto::schema::scalar_field::Data as Scalars;
use elanus_proto::schema::vector_field::Data as Vectors;
use elanus_proto::schema::{
    CollectionSchema, DataType, FieldData, FloatArray, LongArray, ScalarField, SparseFloatArray,
    VectorField,
};
use prost::Message;
use serde_json::json;

use super::data::{self, Rows};
use super::process;
use super::wire::{Client, Target, check, field, pair};
use super::{percentile, round, say};

/// Between two looks whether an index is built.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Make a collection of the rows in DIR: insert, flush, index, load
///
/// Its fields are `id`, `dense`, `price` where DIR has a `price.npy`, and `sparse` with `--sparse`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory with the arrays
    dir: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Sparse rows to insert besides, by the name of their arrays
    #[arg(long, value_name = "NAME")]
    sparse: Option<String>,
    /// Only so many rows
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Rows of one request
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Connections that insert at a time
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// The type of the dense index
    #[arg(long, default_value = "HNSW")]
    index: String,
    /// The dense index's M
    #[arg(long, default_value_t = 16)]
    m: usize,
    /// The dense index's efConstruction
    #[arg(long, default_value_t = 200)]
    ef_construction: usize,
    /// Drop a collection of that name first
    #[arg(long)]
    replace: bool,
    /// Only insert, from that row on, into a collection that has those before it
    #[arg(long, value_name = "ROW", conflicts_with = "replace")]
    append: Option<usize>,
    /// Rows a second to insert at most
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Keep the indexes mapped: `mmap.enabled` of the collection
    #[arg(long)]
    mapped: bool,
    /// Seconds to wait for the indexes
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
}

/// What is inserted.
struct Columns {
    rows: usize,
    dense: Rows,
    sparse: Option<Rows>,
    prices: Option<ScalarBuffer<i64>>,
}

impl Columns {
    fn read(args: &Args) -> Result<Self> {
        let dense = Rows::read(&args.dir, "dense")?;
        let sparse = args.sparse.as_ref().map(|name| Rows::read(&args.dir, name)).transpose()?;
        let prices = data::prices(&args.dir)?;
        let rows = args.rows.unwrap_or(dense.len()).min(dense.len());
        ensure!(sparse.as_ref().is_none_or(|s| s.len() >= rows), "too few sparse rows");
        ensure!(prices.as_ref().is_none_or(|prices| prices.len() >= rows), "too few prices");
        Ok(Self { rows, dense, sparse, prices })
    }

    fn schema(&self, name: &str) -> CollectionSchema {
        let mut fields = vec![field(100, "id", DataType::Int64, None)];
        fields.push(field(101, "dense", DataType::FloatVector, Some(self.dense.dim())));
        if self.prices.is_some() {
            fields.push(field(102, "price", DataType::Int64, None));
        }
        if self.sparse.is_some() {
            fields.push(field(103, "sparse", DataType::SparseFloatVector, None));
        }
        CollectionSchema { name: name.to_owned(), fields, ..CollectionSchema::default() }
    }

    fn batch(&self, collection: &str, from: usize, to: usize) -> InsertRequest {
        let mut columns = vec![longs("id", (from as i64..to as i64).collect())];
        let bytes = (from..to).flat_map(|row| self.dense.bytes(row).as_chunks::<4>().0);
        let data = bytes.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let data = Vectors::FloatVector(FloatArray { data });
        columns.push(vectors("dense", DataType::FloatVector, self.dense.dim(), data));
        if let Some(prices) = &self.prices {
            columns.push(longs("price", prices[from..to].to_vec()));
        }
        if let Some(sparse) = &self.sparse {
            let contents =
                (from..to).map(|row| Bytes::copy_from_slice(sparse.bytes(row))).collect();
            let dim = sparse.dim();
            let data = SparseFloatArray { contents, dim: dim as i64 };
            let data = Vectors::SparseFloatVector(data);
            columns.push(vectors("sparse", DataType::SparseFloatVector, dim, data));
        }
        InsertRequest {
            collection_name: collection.to_owned(),
            fields_data: columns,
            num_rows: (to - from) as u32,
            // Milvus asks for one each and ignores what it says.
            hash_keys: (0..(to - from) as u32).collect(),
            ..InsertRequest::default()
        }
    }
}

fn longs(name: &str, data: Vec<i64>) -> FieldData {
    let data = Some(Scalars::LongData(LongArray { data }));
    FieldData {
        r#type: DataType::Int64.into(),
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField { data, valid_data: Vec::new() })),
        ..FieldData::default()
    }
}

fn vectors(name: &str, kind: DataType, dim: usize, data: Vectors) -> FieldData {
    let data = VectorField { dim: dim as i64, data: Some(data), valid_data: Vec::new() };
    FieldData {
        r#type: kind.into(),
        field_name: name.to_owned(),
        field: Some(Field::Vectors(data)),
        ..FieldData::default()
    }
}

/// Prints what inserting, flushing and building took.
pub(super) fn run(args: &Args) -> Result<()> {
    ensure!(args.batch > 0 && args.concurrency > 0, "expected a batch and a connection at least");
    let columns = Arc::new(Columns::read(args)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(load(args, &columns))
}

async fn load(args: &Args, columns: &Arc<Columns>) -> Result<()> {
    if args.append.is_some() {
        return insert(args, columns).await;
    }
    let name = &args.target.collection;
    let mut client = args.target.connect().await?;
    if args.replace {
        // Some servers call it an error that there is none.
        let request = DropCollectionRequest { collection_name: name.clone(), ..Default::default() };
        client.drop_collection(request).await?;
    }
    let request = CreateCollectionRequest {
        collection_name: name.clone(),
        schema: columns.schema(name).encode_to_vec().into(),
        shards_num: 1,
        consistency_level: ConsistencyLevel::Eventually.into(),
        properties: args.mapped.then(|| pair("mmap.enabled", "true")).into_iter().collect(),
        ..CreateCollectionRequest::default()
    };
    check("create the collection", Some(client.create_collection(request).await?.get_ref()))?;
    insert(args, columns).await?;
    let cpu = Cpu::now(args);
    let request = FlushRequest { collection_names: vec![name.clone()], ..FlushRequest::default() };
    check("flush", client.flush(request).await?.get_ref().status.as_ref())?;
    let flushed = cpu.wall.elapsed().as_secs_f64();
    build(args, columns, &mut client).await?;
    let mut line = json!({
        "kind": "index", "flush_s": round(flushed, 3), "wall_s": round(cpu.wall.elapsed().as_secs_f64(), 3),
        "cpu_s": cpu.spent(args).map(|s| round(s, 2)), "m": args.m, "ef_construction": args.ef_construction,
    });
    if let Some(pid) = args.target.pid {
        line["memory"] = process::memory(pid);
    }
    say(&line)
}

/// CPU time of the server, and the time on the wall.
struct Cpu {
    wall: Instant,
    server: Option<f64>,
}

impl Cpu {
    fn now(args: &Args) -> Self {
        let server = args.target.pid.and_then(process::cpu_seconds);
        Self { wall: Instant::now(), server }
    }

    fn spent(&self, args: &Args) -> Option<f64> {
        Some(args.target.pid.and_then(process::cpu_seconds)? - self.server?)
    }
}

async fn insert(args: &Args, columns: &Arc<Columns>) -> Result<()> {
    let first = args.append.unwrap_or(0);
    let (cpu, next) = (Cpu::now(args), Arc::new(AtomicUsize::new(0)));
    let per_row = args.rate.map(|rate| Duration::from_secs(1) / rate.max(1));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.concurrency {
        let mut client = args.target.connect().await?;
        let (columns, next) = (Arc::clone(columns), Arc::clone(&next));
        let (name, batch) = (args.target.collection.clone(), args.batch);
        let begun = cpu.wall;
        workers.spawn(async move {
            let (mut millis, mut sent) = (Vec::new(), 0);
            loop {
                let before = next.fetch_add(1, Ordering::Relaxed).saturating_mul(batch);
                let from = first.saturating_add(before);
                if from >= columns.rows {
                    return Ok::<_, anyhow::Error>((millis, sent));
                }
                let to = from.saturating_add(batch).min(columns.rows);
                let request = columns.batch(&name, from, to);
                sent += request.encoded_len();
                if let Some(per_row) = per_row {
                    let due = per_row.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX));
                    tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
                }
                let began = Instant::now();
                let answer = client.insert(request).await?;
                check("insert", answer.get_ref().status.as_ref())?;
                millis.push(began.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let (mut millis, mut sent) = (Vec::new(), 0);
    while let Some(done) = workers.join_next().await {
        let (times, bytes) = done??;
        millis.extend(times);
        sent += bytes;
    }
    let wall = cpu.wall.elapsed().as_secs_f64();
    let rows = columns.rows.saturating_sub(first);
    millis.sort_by(f64::total_cmp);
    let per_cpu = cpu.spent(args).filter(|spent| *spent > 0.0);
    say(&json!({
        "kind": "insert", "rows": rows, "rows_per_s": round(rows as f64 / wall, 0),
        "mb_per_s": round(sent as f64 / 1e6 / wall, 1), "batch": args.batch,
        "concurrency": args.concurrency,
        "p50_ms": round(percentile(&millis, 0.5), 2), "p99_ms": round(percentile(&millis, 0.99), 2),
        "rows_per_server_cpu_s": per_cpu.map(|spent| round(rows as f64 / spent, 0)),
    }))
}

/// Makes the indexes, waits until all rows are in them, and loads the collection.
async fn build(args: &Args, columns: &Columns, client: &mut Client) -> Result<()> {
    let name = &args.target.collection;
    let params = json!({ "M": args.m, "efConstruction": args.ef_construction });
    let mut indexes = vec![("dense", args.index.as_str(), params)];
    if columns.sparse.is_some() {
        indexes.push(("sparse", "SPARSE_INVERTED_INDEX", json!({})));
    }
    for (field, kind, params) in &indexes {
        let request = CreateIndexRequest {
            collection_name: name.clone(),
            field_name: (*field).to_owned(),
            index_name: (*field).to_owned(),
            extra_params: vec![
                pair("index_type", *kind),
                pair("metric_type", "IP"),
                pair("params", params),
            ],
            ..CreateIndexRequest::default()
        };
        check("create an index", Some(client.create_index(request).await?.get_ref()))?;
    }
    let until = Instant::now() + Duration::from_secs(args.timeout);
    for (field, ..) in &indexes {
        wait(columns.rows, name, field, until, client).await?;
    }
    let request = LoadCollectionRequest {
        collection_name: name.clone(),
        replica_number: 1,
        ..LoadCollectionRequest::default()
    };
    check("load", Some(client.load_collection(request).await?.get_ref()))?;
    loop {
        let request =
            GetLoadingProgressRequest { collection_name: name.clone(), ..Default::default() };
        let answer = client.get_loading_progress(request).await?.into_inner();
        check("load", answer.status.as_ref())?;
        if answer.progress >= 100 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the collection is not loaded in {} s", args.timeout);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn wait(
    rows: usize,
    collection: &str,
    field: &str,
    until: Instant,
    client: &mut Client,
) -> Result<()> {
    loop {
        let request = DescribeIndexRequest {
            collection_name: collection.to_owned(),
            field_name: field.to_owned(),
            index_name: field.to_owned(),
            ..DescribeIndexRequest::default()
        };
        let answer = client.describe_index(request).await?.into_inner();
        check("describe an index", answer.status.as_ref())?;
        let index = answer.index_descriptions.first().context("the server knows no index")?;
        ensure!(
            index.state() != IndexState::Failed,
            "the index on {field} failed: {}",
            index.index_state_fail_reason
        );
        let complete = index.total_rows >= rows as i64 && index.indexed_rows >= index.total_rows;
        if complete && index.state() == IndexState::Finished && index.pending_index_rows == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the index on {field} has {} of {rows} rows, and time is up",
            index.indexed_rows
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
