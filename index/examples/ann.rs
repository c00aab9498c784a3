//! One peer of `make bench`: builds an HNSW index over vectors in `.npy` files, then answers
//! commands on its standard input, a line of JSON each, so that a driver can let it take turns
//! with others.
//!
//! `ann DIR [key=value…]` reads `DIR/dense.npy` and `DIR/dense_q.npy` (float32, C order). Keys:
//! `metric` (`ip`, `l2`, `cosine`), `m`, `efc`, `seed`, `threads`, and `index`, a directory to
//! keep the built sections in. Commands:
//!
//! | command | does |
//! |---|---|
//! | `search EF K TRUTH [MASK] [PASSES]` | all queries, one after another on one thread; `TRUTH` is an `.npy` of int32 ids (-1: no more), `MASK` one of bytes, not zero where a row is allowed, or `-` |
//!
//! Times are the CPU time of the one thread that works: other work on the same cores does not
//! count, though it may take cache and bandwidth.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use arrow_buffer::Buffer;
use elanus_index::{
    Cancel, Elem, HnswIndex, HnswParams, Metric, Progress, Query, RowMask, SearchParams, Sections,
    VectorIndex, Vectors,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One pass over all queries: CPU time of the whole, wall time of each.
struct Timing {
    cpu_s: f64,
    micros: Vec<f64>,
}

struct Setup {
    dir: PathBuf,
    keys: HashMap<String, String>,
}

impl Setup {
    fn from_args() -> Result<Self> {
        let mut args = env::args().skip(1);
        let dir = args.next().ok_or("usage: ann DIR [key=value…]")?.into();
        let keys = args
            .map(|arg| {
                let (key, value) = arg.split_once('=').ok_or("expected key=value")?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect::<Result<_>>()?;
        Ok(Self { dir, keys })
    }

    fn number(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.keys.get(key).map_or(Ok(default), |value| value.parse())?)
    }

    fn metric(&self) -> Result<Metric> {
        match self.keys.get("metric").map_or("ip", String::as_str) {
            "ip" => Ok(Metric::Ip),
            "l2" => Ok(Metric::L2),
            "cosine" => Ok(Metric::Cosine),
            other => Err(format!("metric {other}: expected ip, l2 or cosine").into()),
        }
    }
}

/// An array as it lies in an `.npy` file: its bytes behind the header, and its shape.
struct Npy {
    bytes: Buffer,
    shape: Vec<usize>,
}

fn read_npy(path: &Path, kind: &str) -> Result<Npy> {
    let file = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let bad = || format!("{}: not an .npy file of {kind} in C order", path.display());
    let (head, major) = (file.get(..12).ok_or_else(bad)?, *file.get(6).ok_or_else(bad)?);
    let (from, len) = match major {
        1 => (10, usize::from(u16::from_le_bytes([head[8], head[9]]))),
        _ => (12, u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize),
    };
    let header = std::str::from_utf8(file.get(from..from + len).ok_or_else(bad)?)?;
    if !header.contains(kind) || !header.contains("'fortran_order': False") {
        return Err(bad().into());
    }
    let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let (shape, _) = shape.ok_or_else(bad)?;
    let shape = shape.split(',').map(str::trim).filter(|part| !part.is_empty());
    let shape = shape.map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(Npy { bytes: Buffer::from_slice_ref(&file[from + len..]), shape })
}

fn read_vectors(path: &Path) -> Result<Vectors> {
    let Npy { bytes, shape } = read_npy(path, "<f4")?;
    Ok(Vectors::new(bytes, Elem::F32, *shape.get(1).ok_or("expected rows of vectors")?)?)
}

struct InMemory {
    sections: HashMap<String, Buffer>,
    rows: usize,
}

impl Sections for InMemory {
    fn section(&self, name: &str) -> Option<Buffer> {
        self.sections.get(name).cloned()
    }
    fn rows(&self) -> usize {
        self.rows
    }
}

fn main() -> Result<()> {
    let setup = Setup::from_args()?;
    let vectors = read_vectors(&setup.dir.join("dense.npy"))?;
    let queries = read_vectors(&setup.dir.join("dense_q.npy"))?;
    let metric = setup.metric()?;
    let sections = index_of(&setup, &vectors, metric)?;
    let index = HnswIndex::open(&sections, vectors.clone(), metric)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["search", ef, k, truth, rest @ ..] => {
                let params = SearchParams {
                    k: k.parse()?,
                    ef: Some(ef.parse()?),
                    ..SearchParams::default()
                };
                let truth = read_npy(&setup.dir.join(truth), "<i4")?;
                let allowed = match rest.first() {
                    None | Some(&"-") => RowMask::all(vectors.rows()),
                    Some(mask) => {
                        let mask = read_npy(&setup.dir.join(mask), "|u1")?.bytes;
                        RowMask::from_fn(vectors.rows(), |row| mask[row as usize] != 0)
                    }
                };
                let passes = rest.get(1).map_or(Ok(1), |passes| passes.parse())?;
                search(&index, &queries, &params, &truth, &allowed, passes)?
            }
            other => return Err(format!("unknown command {other:?}").into()),
        };
        println(&answer)?;
    }
    Ok(())
}

fn println(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The sections, built or as they were kept.
fn index_of(setup: &Setup, vectors: &Vectors, metric: Metric) -> Result<InMemory> {
    let kept = setup.keys.get("index").map(PathBuf::from);
    if let Some(kept) = kept.as_ref().filter(|kept| kept.is_dir()) {
        let mut sections = HashMap::new();
        for entry in fs::read_dir(kept)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            sections.insert(name, Buffer::from_slice_ref(fs::read(entry.path())?));
        }
        println("{\"kept\": true}")?;
        return Ok(InMemory { sections, rows: vectors.rows() });
    }
    let params = HnswParams {
        m: setup.number("m", 16)?,
        ef_construction: setup.number("efc", 200)?,
        seed: setup.number("seed", 42)? as u64,
    };
    let threads = setup.number("threads", 1)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (wall, cpu) = (Instant::now(), process_cpu()?);
    let built = pool.install(|| {
        HnswIndex::build(vectors, metric, &params, &Progress::default(), &Cancel::never())
    })?;
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), process_cpu()? - cpu);
    let bytes: usize = built.iter().map(|(_, bytes)| bytes.len()).sum();
    println(&format!(
        "{{\"build_cpu_s\": {cpu:.2}, \"build_wall_s\": {wall:.2}, \"threads\": {threads}, \
         \"index_bytes\": {bytes}}}"
    ))?;
    if let Some(kept) = kept {
        fs::create_dir_all(&kept)?;
        for (name, bytes) in &built {
            fs::write(kept.join(name), bytes)?;
        }
    }
    let sections =
        built.into_iter().map(|(name, bytes)| (name.to_owned(), Buffer::from_slice_ref(&bytes)));
    Ok(InMemory { sections: sections.collect(), rows: vectors.rows() })
}

fn search(
    index: &dyn VectorIndex,
    queries: &Vectors,
    params: &SearchParams,
    truth: &Npy,
    allowed: &RowMask,
    passes: usize,
) -> Result<String> {
    let cancel = Cancel::never();
    let truth_width = *truth.shape.get(1).ok_or("expected rows of ids")?;
    let truth: &[i32] = truth.bytes.typed_data();
    let (mut hit, mut all) = (0, 0);
    for (row, truth) in (0..queries.rows()).zip(truth.chunks_exact(truth_width)) {
        let found =
            index.search(&Query::Dense(queries.row(row as u32)), params, allowed, &cancel)?;
        let truth = truth.iter().take(params.k).filter(|id| **id >= 0);
        for id in truth {
            all += 1;
            hit += usize::from(found.iter().any(|hit| hit.row == id.cast_unsigned()));
        }
    }
    let mut best: Vec<Timing> = Vec::new();
    for _ in 0..passes.max(1) {
        let mut micros = Vec::with_capacity(queries.rows());
        let cpu = thread_cpu()?;
        for row in 0..queries.rows() {
            let started = Instant::now();
            index.search(&Query::Dense(queries.row(row as u32)), params, allowed, &cancel)?;
            micros.push(started.elapsed().as_secs_f64() * 1e6);
        }
        best.push(Timing { cpu_s: thread_cpu()? - cpu, micros });
    }
    best.sort_by(|a, b| a.cpu_s.total_cmp(&b.cpu_s));
    let Timing { cpu_s, mut micros } = best.swap_remove(best.len() / 2);
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    Ok(format!(
        "{{\"recall\": {:.4}, \"qps_cpu\": {:.0}, \"p50_us\": {:.1}, \"p99_us\": {:.1}}}",
        f64::from(hit as u32) / f64::from(all.max(1)),
        queries.rows() as f64 / cpu_s,
        at(0.5),
        at(0.99),
    ))
}

/// Seconds that this thread has run.
fn thread_cpu() -> Result<f64> {
    // The kernel brings the figure up to date when the thread offers its place.
    std::thread::yield_now();
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = stat.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
    Ok(nanos as f64 / 1e9)
}

/// Seconds that all threads of this process have run, ended ones included.
fn process_cpu() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("stat has no name")?;
    // User and system time are fields 14 and 15, the name being the second.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(str::parse::<u64>).sum::<std::result::Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}
