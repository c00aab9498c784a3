//! What an operator sees of a node: its log, and its counters for Prometheus.
//!
//! Labels take values from short fixed lists (names of rpcs, error codes), never from a request.

use std::io::IsTerminal;
use std::sync::atomic::AtomicU64;

use elanus_storage::SegmentState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::config::{Durability, Log, LogFormat};
use crate::node::Node;

/// Starts the log of this process, on standard error.
///
/// # Errors
/// When the level is not a list of directives, or a log was started before.
pub fn init_logging(log: &Log) -> anyhow::Result<()> {
    // A bare level is about this node; what its libraries say below `info` drowns the rest.
    let directives = if log.level.contains(['=', ',']) {
        log.level.clone()
    } else {
        format!("{},h2=info,hyper_util=info,tower=info", log.level)
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|error| anyhow::anyhow!("setting `log.level` is `{}`: {error}", log.level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc: &'static str,
    code: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcName {
    rpc: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelName {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemoryUser {
    user: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SegmentKind {
    state: &'static str,
}

/// Seconds, from half a millisecond to half a minute in steps of about three.
const LATENCY_BUCKETS: [f64; 11] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0];

fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// The counters of a node.
pub struct Metrics {
    registry: Registry,
    rpcs: Family<RpcLabels, Counter>,
    latency: Family<RpcName, Histogram>,
    connections: Gauge,
    refused_connections: Counter,
    collections: Gauge,
    rows: Gauge,
    segments: Family<SegmentKind, Gauge>,
    segment_bytes: Gauge,
    memory_bytes: Family<MemoryUser, Gauge>,
    memory_limit_bytes: Gauge,
    disk_free_bytes: Gauge,
    disk_reserve_bytes: Gauge,
    refusing_rows: Gauge,
    damaged_collections: Gauge,
    reembed_rows_left: Gauge,
    log_files_bytes: Gauge,
    synced_writes: Gauge,
    log_syncs: Gauge<u64, AtomicU64>,
    log_records: Gauge<u64, AtomicU64>,
    log_bytes: Gauge<u64, AtomicU64>,
    writable: Gauge,
    model_tokens: Family<ModelName, Gauge<u64, AtomicU64>>,
    model_run_seconds: Family<ModelName, Gauge<f64, AtomicU64>>,
    model_bytes: Family<ModelName, Gauge<u64, AtomicU64>>,
    model_cache_hits: Family<ModelName, Gauge<u64, AtomicU64>>,
    embed_queue_bytes: Gauge,
    embed_queued_calls: Gauge,
    embed_batch_tokens: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("elanus");
        let rpcs = Family::default();
        let latency = Family::new_with_constructor(latency_histogram as fn() -> Histogram);
        let connections = Gauge::default();
        let refused_connections = Counter::default();
        let collections = Gauge::default();
        let rows = Gauge::default();
        let segments = Family::default();
        let segment_bytes = Gauge::default();
        let memory_bytes = Family::default();
        let memory_limit_bytes = Gauge::default();
        let disk_free_bytes = Gauge::default();
        let disk_reserve_bytes = Gauge::default();
        let refusing_rows = Gauge::default();
        let damaged_collections = Gauge::default();
        let reembed_rows_left = Gauge::default();
        let log_files_bytes = Gauge::default();
        let synced_writes = Gauge::default();
        let log_syncs = Gauge::default();
        let log_records = Gauge::default();
        let log_bytes = Gauge::default();
        let writable = Gauge::default();
        let model_tokens = Family::default();
        let model_run_seconds = Family::default();
        let model_bytes = Family::default();
        let model_cache_hits = Family::default();
        let embed_queue_bytes = Gauge::default();
        let embed_queued_calls = Gauge::default();
        let embed_batch_tokens = Gauge::default();
        registry.register(
            "build",
            "What is running",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("rpcs", "Calls that ended, by code (0: success)", rpcs.clone());
        registry.register("rpc_seconds", "Time from request to answer", latency.clone());
        registry.register("connections", "Client connections open now", connections.clone());
        registry.register(
            "connections_refused",
            "Connections refused at grpc.max_connections",
            refused_connections.clone(),
        );
        registry.register("collections", "Collections of all databases", collections.clone());
        registry.register("rows", "Rows of all collections", rows.clone());
        registry.register("segments", "Segments, growing and sealed", segments.clone());
        registry.register("segment_bytes", "Bytes of all segments", segment_bytes.clone());
        for (name, help, gauge) in [
            ("memory_limit_bytes", "Memory the node may use", &memory_limit_bytes),
            ("disk_free_bytes", "Free space on the data disk", &disk_free_bytes),
            ("disk_reserve_bytes", "Disk space kept back from rows", &disk_reserve_bytes),
            ("refusing_rows", "1 while rows are refused for lack of room", &refusing_rows),
            ("damaged_collections", "Collections that are quarantined", &damaged_collections),
            ("reembed_rows_left", "Rows whose texts are to be embedded anew", &reembed_rows_left),
            ("log_files_bytes", "Bytes of the log files that are there", &log_files_bytes),
            ("synced_writes", "1 if a write is synced before it is acknowledged", &synced_writes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("memory_bytes", "Memory in use, by whom", memory_bytes.clone());
        registry.register("log_syncs", "Syncs of the log since the start", log_syncs.clone());
        registry.register(
            "log_records",
            "Records written to the log since the start",
            log_records.clone(),
        );
        registry.register(
            "log_bytes",
            "Bytes written to the log since the start",
            log_bytes.clone(),
        );
        registry.register("writable", "1 while writes are accepted", writable.clone());
        registry.register(
            "model_tokens",
            "Tokens a model has run since it was loaded",
            model_tokens.clone(),
        );
        registry.register(
            "model_run_seconds",
            "Seconds in which batches of a model ran since it was loaded",
            model_run_seconds.clone(),
        );
        registry.register("model_bytes", "Bytes of a model's weights", model_bytes.clone());
        registry.register(
            "model_cache_hits",
            "Questions that a model answered from memory since it was loaded",
            model_cache_hits.clone(),
        );
        registry.register(
            "embed_queue_bytes",
            "Bytes of text that wait for a model (models.queue_bytes is the limit)",
            embed_queue_bytes.clone(),
        );
        registry.register(
            "embed_queued_calls",
            "Calls that wait for a model",
            embed_queued_calls.clone(),
        );
        registry.register(
            "embed_batch_tokens",
            "Tokens that the last batch could have had",
            embed_batch_tokens.clone(),
        );
        Self {
            registry,
            rpcs,
            latency,
            connections,
            refused_connections,
            collections,
            rows,
            segments,
            segment_bytes,
            memory_bytes,
            memory_limit_bytes,
            disk_free_bytes,
            disk_reserve_bytes,
            refusing_rows,
            damaged_collections,
            reembed_rows_left,
            log_files_bytes,
            synced_writes,
            log_syncs,
            log_records,
            log_bytes,
            writable,
            model_tokens,
            model_run_seconds,
            model_bytes,
            model_cache_hits,
            embed_queue_bytes,
            embed_queued_calls,
            embed_batch_tokens,
        }
    }

    /// Counts a call that ended; `code` is 0 for success.
    pub fn rpc_ended(&self, rpc: &'static str, code: i32, seconds: f64) {
        self.rpcs.get_or_create(&RpcLabels { rpc, code }).inc();
        self.latency.get_or_create(&RpcName { rpc }).observe(seconds);
    }

    /// Counts a connection until the guard is dropped.
    pub fn connection(&self) -> ConnectionGuard {
        self.connections.inc();
        ConnectionGuard(self.connections.clone())
    }

    /// Counts a connection that was refused.
    pub fn connection_refused(&self) {
        self.refused_connections.inc();
    }

    /// All counters in the text form of OpenMetrics; what the engine and the model store know
    /// is read now.
    pub fn render(&self, node: &Node) -> String {
        self.read_engine(node);
        for model in node.models.loaded() {
            let label = ModelName { model: model.spec.name };
            self.model_tokens.get_or_create(&label).set(model.tokens);
            let seconds = model.run_time.as_secs_f64();
            self.model_run_seconds.get_or_create(&label).set(seconds);
            self.model_bytes.get_or_create(&label).set(model.bytes as u64);
            self.model_cache_hits.get_or_create(&label).set(model.cache_hits);
        }
        let load = node.models.load();
        let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.embed_queue_bytes.set(signed(load.queued_bytes));
        self.embed_queued_calls.set(signed(load.queued_calls));
        self.embed_batch_tokens.set(signed(load.batch_tokens));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }

    fn read_engine(&self, node: &Node) {
        let (mut collections, mut rows, mut growing, mut sealed, mut bytes) = (0, 0, 0, 0, 0_u64);
        for stats in node.all_stats() {
            collections += 1;
            rows += stats.rows;
            for segment in &stats.segments {
                bytes += segment.bytes;
                match segment.state {
                    SegmentState::Growing => growing += 1,
                    SegmentState::Sealed => sealed += 1,
                }
            }
        }
        let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.collections.set(collections);
        self.rows.set(signed(rows));
        self.segments.get_or_create(&SegmentKind { state: "growing" }).set(growing);
        self.segments.get_or_create(&SegmentKind { state: "sealed" }).set(sealed);
        self.segment_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let log = node.engine.log_counters();
        self.log_syncs.set(log.syncs);
        self.log_records.set(log.records);
        self.log_bytes.set(log.bytes);
        self.log_files_bytes.set(i64::try_from(log.len).unwrap_or(i64::MAX));
        let memory = node.engine.memory();
        for (user, bytes) in [
            ("requests", memory.requests),
            ("growing", memory.growing),
            ("writes", memory.writes),
            ("results", memory.results),
            ("builds", memory.builds),
            ("indexes", memory.indexes),
            ("models", memory.other),
        ] {
            self.memory_bytes.get_or_create(&MemoryUser { user }).set(signed(bytes));
        }
        self.memory_limit_bytes.set(signed(memory.limit));
        if let Ok(disk) = node.engine.disk_space() {
            self.disk_free_bytes.set(i64::try_from(disk.free).unwrap_or(i64::MAX));
            self.disk_reserve_bytes.set(i64::try_from(disk.reserve).unwrap_or(i64::MAX));
        }
        let health = node.engine.health();
        self.writable.set(i64::from(health.writable));
        self.refusing_rows.set(i64::from(health.refusing_rows.is_some()));
        self.damaged_collections.set(signed(health.damaged.len()));
        self.reembed_rows_left.set(signed(node.rows_to_reembed()));
        let synced = node.config.durability == Durability::Sync;
        self.synced_writes.set(i64::from(synced));
    }
}

/// Counts one open connection for as long as it lives.
pub struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
