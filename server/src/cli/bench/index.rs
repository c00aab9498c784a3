//! `elanus bench index`: an index without a server, which answers commands so that a driver can
//! let it take turns with the libraries of others.

use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use elanus_index::{
    Cancel, Elem, FlatIndex, Hit, HnswIndex, HnswParams, InMemory, Metric, Progress, Query,
    RowMask, SearchParams, SparseIndex, SparseRow, SparseScan, VectorIndex,
};
use elanus_storage::in_huge_pages;
use serde_json::{Value, json};

use super::data::{self, Rows, Truth};
use super::process;
use super::{percentile, round, say};

/// Queries of a pass before the clock runs: caches are then as they stay.
const WARM: usize = 20;

/// Build an index of the rows in DIR and search it in this process, by commands on standard input
///
/// A command is a line `search WIDTH TRUTH MASK THREADS`: all queries on each of so many threads,
/// with the beam WIDTH (for sparse rows, the percentage of a query to leave out), judged by the
/// file TRUTH, among the rows of the file MASK, or `-`. Each answer is a line of JSON.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory with the arrays
    dir: PathBuf,
    /// The rows: `dense`, or the name of sparse ones
    #[arg(long, default_value = "dense")]
    field: String,
    /// Look at every row instead of building a graph
    #[arg(long)]
    flat: bool,
    /// Results wanted
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Threads that build
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, default_value_t = 16)]
    m: usize,
    #[arg(long, default_value_t = 200)]
    ef_construction: usize,
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Builds, then answers commands until there are no more.
pub(super) fn run(args: &Args) -> Result<()> {
    let rows = Rows::read(&args.dir, &args.field)?;
    let queries = Rows::read_queries(&args.dir, &args.field)?;
    let index = build(args, &rows)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let &["search", width, truth, mask, threads] = &*words else {
            bail!("expected `search WIDTH TRUTH MASK THREADS`, got `{line}`");
        };
        let allowed = match mask {
            "-" => RowMask::all(rows.len()),
            mask => {
                let bytes = data::mask(&args.dir.join(mask))?;
                ensure!(bytes.len() == rows.len(), "{mask} has {} rows", bytes.len());
                RowMask::from_fn(rows.len(), |row| bytes[row as usize] != 0)
            }
        };
        let width: usize = width.parse()?;
        let params = SearchParams {
            k: args.limit,
            ef: Some(width),
            drop_ratio: if args.field == "dense" { 0.0 } else { width as f32 / 100.0 },
            ..SearchParams::default()
        };
        let truth = Truth::read(&args.dir.join(truth))?;
        let search = Search { index: &*index, queries: &queries, params, allowed };
        say(&search.measure(&rows, &truth, threads.parse()?)?)?;
    }
    Ok(())
}

/// Builds, and prints what it took.
fn build(args: &Args, rows: &Rows) -> Result<Box<dyn VectorIndex>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let (began, cpu) = (Instant::now(), process::cpu_seconds(std::process::id()));
    let params = HnswParams { m: args.m, ef_construction: args.ef_construction, seed: args.seed };
    let mut bytes = 0;
    let mut in_memory = |built: Vec<(&'static str, Vec<u8>)>| {
        // As a node serves them.
        let built = built.into_iter().map(|(name, bytes)| Ok((name, in_huge_pages(&bytes)?)));
        let sections = InMemory::of(built.collect::<io::Result<Vec<_>>>()?, rows.len());
        bytes = sections.bytes();
        io::Result::Ok(sections)
    };
    let index: Box<dyn VectorIndex> = match rows {
        Rows::Dense(vectors) if args.flat => Box::new(FlatIndex::new(vectors.clone(), Metric::Ip)),
        Rows::Dense(vectors) => {
            ensure!(vectors.elem() == Elem::F32, "expected float32 rows");
            let sections = in_memory(pool.install(|| {
                let (progress, never) = (Progress::default(), Cancel::never());
                HnswIndex::build(vectors, Metric::Ip, &params, &progress, &never)
            })?)?;
            Box::new(HnswIndex::open(&sections, vectors.clone(), Metric::Ip)?)
        }
        Rows::Sparse { offsets, bytes } => {
            let column = SparseScan::new(offsets.clone(), bytes.clone());
            let rows = (0..rows.len()).map(|row| SparseRow::trusted(rows.bytes(row)));
            let sections = in_memory(pool.install(|| SparseIndex::build(rows)))?;
            Box::new(SparseIndex::open(&sections, column)?)
        }
    };
    let spent = process::cpu_seconds(std::process::id());
    say(&json!({
        "build_cpu_s": spent.zip(cpu).map(|(after, before)| round(after - before, 2)),
        "build_wall_s": round(began.elapsed().as_secs_f64(), 2),
        "threads": args.threads,
        "index_mb": round(bytes as f64 / 1e6, 1),
    }))?;
    Ok(index)
}

struct Search<'a> {
    index: &'a dyn VectorIndex,
    queries: &'a Rows,
    params: SearchParams,
    allowed: RowMask,
}

impl Search<'_> {
    fn one(&self, query: usize) -> Result<Vec<Hit>> {
        let bytes = self.queries.bytes(query);
        let query = match self.queries {
            Rows::Dense(_) => Query::Dense(bytes),
            Rows::Sparse { .. } => Query::Sparse(SparseRow::trusted(bytes)),
        };
        Ok(self.index.search(&query, &self.params, &self.allowed, &Cancel::never())?)
    }

    /// All queries, one after another; microseconds of each, CPU seconds of this thread.
    fn pass(&self) -> Result<(Vec<f64>, f64)> {
        for query in 0..WARM.min(self.queries.len()) {
            self.one(query)?;
        }
        let mut micros = Vec::with_capacity(self.queries.len());
        let cpu = process::thread_cpu_seconds();
        for query in 0..self.queries.len() {
            let began = Instant::now();
            self.one(query)?;
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        let wall = micros.iter().sum::<f64>() / 1e6;
        let cpu = process::thread_cpu_seconds().zip(cpu).map_or(wall, |(after, cpu)| after - cpu);
        Ok((micros, cpu))
    }

    fn measure(&self, rows: &Rows, truth: &Truth, threads: usize) -> Result<Value> {
        ensure!((1..=1024).contains(&threads), "expected 1 to 1024 threads, got {threads}");
        let (mut hits, mut wanted) = (0, 0);
        for query in 0..self.queries.len() {
            let found: Vec<usize> = self.one(query)?.iter().map(|hit| hit.row as usize).collect();
            let k = self.params.k;
            let (hit, all) = truth.found_by_score((rows, self.queries), query, k, &found);
            hits += hit;
            wanted += all;
        }
        let began = Instant::now();
        let passes: Vec<(Vec<f64>, f64)> = std::thread::scope(|scope| {
            let passes: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.pass())).collect();
            let joined =
                passes.into_iter().map(|pass| pass.join().ok().context("a pass panicked")?);
            joined.collect::<Result<_>>()
        })?;
        let wall = began.elapsed().as_secs_f64();
        let count = (self.queries.len() * threads) as f64;
        let cpu: f64 = passes.iter().map(|(_, cpu)| cpu).sum();
        let mut micros: Vec<f64> = passes.into_iter().flat_map(|(micros, _)| micros).collect();
        micros.sort_by(f64::total_cmp);
        Ok(json!({
            "recall": round(hits as f64 / wanted.max(1) as f64, 4),
            "qps_cpu": round(count / cpu, 0),
            "qps": round(count / wall, 0),
            "p50_us": round(percentile(&micros, 0.5), 1),
            "p99_us": round(percentile(&micros, 0.99), 1),
        }))
    }
}
