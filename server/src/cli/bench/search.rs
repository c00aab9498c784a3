//! `elanus bench search`: many searches at a time, how quick they are, and what they find.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use elanus_proto::common::{
    ConsistencyLevel, DslType, PlaceholderGroup, PlaceholderType, PlaceholderValue,
};
use elanus_proto::milvus::search_request::SearchInput;
use elanus_proto::milvus::{HybridSearchRequest, SearchRequest};
use elanus_proto::schema::SearchResultData;
use prost::Message;
use serde_json::{Value, json};

use super::data::{Rows, Truth};
use super::process;
use super::wire::{Client, Target, check, ids, pair};
use super::{percentile, round, say};

/// Rows that each leg of a hybrid search hands in.
const LEG_LIMIT: usize = 50;
/// The constant of reciprocal rank fusion.
const RRF_K: usize = 60;

/// Drive a collection that `load` made, for some seconds at each beam and concurrency
///
/// Each connection sends one request after another. Prints a line for each combination: queries a
/// second, times, recall, and with `--pid` what the server used.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory with the queries
    dir: PathBuf,
    #[command(flatten)]
    target: Target,
    /// What is searched
    #[arg(long, value_enum, default_value_t = Leg::Dense)]
    leg: Leg,
    /// The sparse queries, by the name of their arrays
    #[arg(long, value_name = "NAME", default_value = "bm25")]
    sparse: String,
    /// Beam widths of the dense search
    #[arg(long, value_delimiter = ',', default_value = "64")]
    ef: Vec<usize>,
    /// Share of a sparse query to leave out
    #[arg(long, default_value_t = 0.0)]
    drop_ratio: f64,
    /// A filter expression
    #[arg(long, default_value = "")]
    filter: String,
    /// Results wanted
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Queries of one request
    #[arg(long, default_value_t = 1)]
    nq: usize,
    /// Connections at a time, one request in flight on each
    #[arg(long, value_delimiter = ',', default_value = "1,4,8")]
    concurrency: Vec<usize>,
    /// Seconds for each combination
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// The file of the true results in DIR; recall is told of the queries that were sent
    #[arg(long, value_name = "FILE")]
    truth: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Leg {
    Dense,
    Sparse,
    Hybrid,
}

impl Leg {
    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
            Self::Hybrid => "hybrid",
        }
    }
}

#[derive(Debug, Clone)]
enum Request {
    Search(Box<SearchRequest>),
    Hybrid(Box<HybridSearchRequest>),
}

impl Request {
    /// Sends it and waits for the answer.
    async fn send(&self, client: &mut Client) -> Result<SearchResultData> {
        let answer = match self {
            Self::Search(request) => client.search(*request.clone()).await?,
            Self::Hybrid(request) => client.hybrid_search(*request.clone()).await?,
        };
        let answer = answer.into_inner();
        check("search", answer.status.as_ref())?;
        Ok(answer.results.unwrap_or_default())
    }
}

/// Builds the requests of one run.
struct Plan<'a> {
    args: &'a Args,
    ef: usize,
    dense: Option<&'a Rows>,
    sparse: Option<&'a Rows>,
}

impl Plan<'_> {
    /// All queries, `nq` in a request.
    fn requests(&self) -> Vec<Request> {
        let count = self.dense.or(self.sparse).map_or(0, Rows::len);
        let starts = (0..count).step_by(self.args.nq.max(1));
        starts.map(|from| self.request(from, (from + self.args.nq).min(count))).collect()
    }

    fn request(&self, from: usize, to: usize) -> Request {
        let Args { target, leg, limit, drop_ratio, .. } = self.args;
        let k = if *leg == Leg::Hybrid { LEG_LIMIT.max(*limit) } else { *limit };
        let dense = self.dense.map(|rows| {
            let params = json!({ "ef": self.ef });
            self.leg("dense", PlaceholderType::FloatVector, rows, (from, to), k, &params)
        });
        let sparse = self.sparse.map(|rows| {
            // milvus-lite refuses any ratio but none.
            let params = if *drop_ratio > 0.0 {
                json!({ "drop_ratio_search": drop_ratio })
            } else {
                json!({})
            };
            self.leg("sparse", PlaceholderType::SparseFloatVector, rows, (from, to), k, &params)
        });
        let mut legs: Vec<SearchRequest> = dense.into_iter().chain(sparse).collect();
        match (*leg, legs.pop()) {
            (Leg::Dense | Leg::Sparse, Some(search)) => Request::Search(Box::new(search)),
            (Leg::Hybrid | Leg::Dense | Leg::Sparse, last) => {
                legs.extend(last);
                Request::Hybrid(Box::new(HybridSearchRequest {
                    collection_name: target.collection.clone(),
                    requests: legs,
                    rank_params: vec![
                        pair("strategy", "rrf"),
                        pair("params", &json!({ "k": RRF_K })),
                        pair("limit", limit),
                        pair("round_decimal", "-1"),
                    ],
                    guarantee_timestamp: 1,
                    consistency_level: ConsistencyLevel::Eventually.into(),
                    ..HybridSearchRequest::default()
                }))
            }
        }
    }

    fn leg(
        &self,
        field: &str,
        kind: PlaceholderType,
        rows: &Rows,
        (from, to): (usize, usize),
        k: usize,
        params: &Value,
    ) -> SearchRequest {
        let value = PlaceholderValue {
            tag: "$0".to_owned(),
            r#type: kind.into(),
            values: (from..to).map(|row| Bytes::copy_from_slice(rows.bytes(row))).collect(),
            element_level: false,
        };
        let group = PlaceholderGroup { placeholders: vec![value] }.encode_to_vec();
        SearchRequest {
            collection_name: self.args.target.collection.clone(),
            dsl: self.args.filter.clone(),
            dsl_type: DslType::BoolExprV1.into(),
            search_input: Some(SearchInput::PlaceholderGroup(group.into())),
            nq: (to - from) as i64,
            search_params: vec![
                pair("anns_field", field),
                pair("topk", &k),
                pair("metric_type", "IP"),
                pair("params", params),
                pair("round_decimal", "-1"),
            ],
            // Eventually consistent: as the peers are measured, without a wait for the log.
            guarantee_timestamp: 1,
            consistency_level: ConsistencyLevel::Eventually.into(),
            ..SearchRequest::default()
        }
    }
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    millis: Vec<f64>,
    /// The first answer to each request.
    found: HashMap<usize, Vec<Vec<usize>>>,
}

/// Prints a line for each beam and concurrency.
pub(super) fn run(args: &Args) -> Result<()> {
    ensure!(args.nq > 0 && args.limit > 0, "expected a query and a result at least");
    ensure!(args.concurrency.iter().all(|count| *count > 0), "expected a connection at least");
    ensure!((0.01..=3600.0).contains(&args.seconds), "expected 0.01 to 3600 seconds");
    let dense = (args.leg != Leg::Sparse).then(|| Rows::read_queries(&args.dir, "dense"));
    let sparse = (args.leg != Leg::Dense).then(|| Rows::read_queries(&args.dir, &args.sparse));
    let (dense, sparse) = (dense.transpose()?, sparse.transpose()?);
    let truth = args.truth.as_ref().map(|file| Truth::read(&args.dir.join(file))).transpose()?;
    // Equal scores of one leg are judged by the rows themselves; fused ones by their keys.
    let rows = match (args.leg, &truth) {
        (Leg::Dense, Some(_)) => Some(Rows::read(&args.dir, "dense")?),
        (Leg::Sparse, Some(_)) => Some(Rows::read(&args.dir, &args.sparse)?),
        (Leg::Hybrid, _) | (_, None) => None,
    };
    let queries = dense.as_ref().or(sparse.as_ref());
    let judge = |query: usize, found: &[usize]| match (&truth, &rows, queries) {
        (Some(truth), Some(rows), Some(queries)) => {
            truth.found_by_score((rows, queries), query, args.limit, found)
        }
        (Some(truth), ..) => truth.found(query, args.limit, found),
        (None, ..) => (0, 0),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let beams = if args.leg == Leg::Sparse { &[0][..] } else { &args.ef };
    for &ef in beams {
        let plan = Plan { args, ef, dense: dense.as_ref(), sparse: sparse.as_ref() };
        let requests: Arc<[Request]> = plan.requests().into();
        ensure!(!requests.is_empty(), "there are no queries");
        for &concurrency in &args.concurrency {
            let mut line = runtime.block_on(drive(args, &requests, concurrency, &judge))?;
            line["leg"] = args.leg.name().into();
            if args.leg != Leg::Sparse {
                line["ef"] = ef.into();
            }
            if !args.filter.is_empty() {
                line["filter"] = args.filter.clone().into();
            }
            say(&line)?;
        }
    }
    Ok(())
}

async fn drive(
    args: &Args,
    requests: &Arc<[Request]>,
    concurrency: usize,
    judge: &impl Fn(usize, &[usize]) -> (usize, usize),
) -> Result<Value> {
    let mut clients = Vec::with_capacity(concurrency);
    let mut first = None;
    for _ in 0..concurrency {
        let mut client = args.target.connect().await?;
        let began = Instant::now();
        requests[0].send(&mut client).await?;
        first.get_or_insert(began.elapsed().as_secs_f64() * 1e3);
        clients.push(client);
    }
    let server = args.target.pid.and_then(process::cpu_seconds);
    let own = process::cpu_seconds(std::process::id());
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(args.seconds);
    let mut workers = tokio::task::JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        // Each begins elsewhere, so that no two send the same query at the same time.
        let start = number * requests.len() / concurrency;
        workers.spawn(work(client, Arc::clone(requests), start, until));
    }
    let (mut millis, mut found) = (Vec::new(), HashMap::new());
    while let Some(done) = workers.join_next().await {
        let seen = done??;
        millis.extend(seen.millis);
        found.extend(seen.found);
    }
    let wall = began.elapsed().as_secs_f64();
    let spent =
        |pid: Option<u32>, before: Option<f64>| Some(pid.and_then(process::cpu_seconds)? - before?);
    let queries = (millis.len() * args.nq) as f64;
    let server = spent(args.target.pid, server);
    let own = spent(Some(std::process::id()), own);
    millis.sort_by(f64::total_cmp);
    let mut line = json!({
        "kind": "search", "concurrency": concurrency, "nq": args.nq, "limit": args.limit,
        "qps": round(queries / wall, 1), "p50_ms": round(percentile(&millis, 0.5), 3),
        "p99_ms": round(percentile(&millis, 0.99), 3),
        "first_ms": first.map(|first| round(first, 3)),
        "client_cpu_ms": own.map(|own| round(own * 1e3 / queries, 3)),
        "server_cpu_ms": server.map(|server| round(server * 1e3 / queries, 3)),
        "qps_per_server_cpu_s":
            server.filter(|server| *server > 0.0).map(|server| round(queries / server, 0)),
    });
    if let Some(pid) = args.target.pid {
        line["memory"] = process::memory(pid);
    }
    if args.truth.is_some() {
        let (mut hits, mut wanted, mut judged) = (0, 0, 0);
        for (request, lists) in &found {
            for (at, list) in lists.iter().enumerate() {
                let (hit, all) = judge(request * args.nq + at, list);
                hits += hit;
                wanted += all;
                judged += 1;
            }
        }
        line["recall"] = round(hits as f64 / wanted.max(1) as f64, 4).into();
        line["recall_of_queries"] = judged.into();
    }
    Ok(line)
}

async fn work(
    mut client: Client,
    requests: Arc<[Request]>,
    start: usize,
    until: Instant,
) -> Result<Seen> {
    let mut seen = Seen::default();
    for at in (0..requests.len()).cycle().skip(start) {
        let began = Instant::now();
        if began >= until {
            break;
        }
        let answer = requests[at].send(&mut client).await?;
        seen.millis.push(began.elapsed().as_secs_f64() * 1e3);
        if let Entry::Vacant(place) = seen.found.entry(at) {
            let row = |id: &i64| usize::try_from(*id).unwrap_or(usize::MAX);
            let lists = ids(&answer)?.into_iter().map(|ids| ids.iter().map(row).collect());
            place.insert(lists.collect());
        }
    }
    Ok(seen)
}
