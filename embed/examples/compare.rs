//! The engine's side of `embed/benches/compare.py`: CPU time of calls with given texts.
//!
//! ```text
//! cargo run --release -p elanus-embed --example compare -- MODEL_DIR MODEL f32|int8 CASES.json
//! ```
//!
//! `CASES.json` is a list of `{"name", "batches": [[text, …], …], "sparse": bool, "runs": n}`; every
//! batch is one call. Prints a line of JSON per case: tokens of a run, and CPU and wall seconds of
//! the best run, on one thread; then the first vectors, to be compared with those of others.

#![expect(clippy::print_stdout, reason = "an example reports to whoever runs it")]

use std::error::Error;
use std::time::Instant;

use elanus_embed::{Device, EmbedRequest, Mode, ModelStore, Options, Outputs, Precision};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Case {
    name: String,
    batches: Vec<Vec<String>>,
    sparse: bool,
    runs: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, model, precision, cases] = arguments.as_slice() else {
        return Err("usage: compare MODEL_DIR MODEL f32|int8 CASES.json".into());
    };
    let precision = match precision.as_str() {
        "f32" => Precision::F32,
        "int8" => Precision::Int8,
        other => return Err(format!("{other} is neither f32 nor int8").into()),
    };
    let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(cases)?)?;
    let store = ModelStore::new(Options {
        dirs: vec![dir.into()],
        device: Device::Cpu,
        precision,
        threads: 1,
        cache_bytes: 0,
        ..Options::default()
    });
    let limit = store.resolve(model)?.max_length_limit;
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    let question = EmbedRequest::new(vec!["word".to_owned()], Outputs::DENSE, Mode::Search);
    store.embed(model, question).await?;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    println!("{}", json!({ "name": "first vector", "wall": wall, "cpu": cpu }));
    for Case { name, batches, sparse, runs } in cases {
        let outputs = Outputs { dense: true, sparse, colbert: false };
        let (mut best_cpu, mut best_wall, mut tokens) = (f64::MAX, f64::MAX, 0);
        let mut first = Vec::new();
        for _ in 0..runs {
            let (began, cpu) = (Instant::now(), cpu_seconds()?);
            tokens = 0;
            for batch in &batches {
                let request = EmbedRequest {
                    max_length: Some(limit),
                    ..EmbedRequest::new(batch.clone(), outputs, Mode::Insert)
                };
                let found = store.embed(model, request).await?;
                tokens += found.tokens;
                if first.is_empty() {
                    first = found.dense.unwrap_or_default()[..found.dim].to_vec();
                }
            }
            best_cpu = best_cpu.min(cpu_seconds()? - cpu);
            best_wall = best_wall.min(began.elapsed().as_secs_f64());
        }
        let line = json!({
            "name": name, "tokens": tokens, "cpu": best_cpu, "wall": best_wall, "first": first,
        });
        println!("{line}");
    }
    let status = fs_err::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("{}", json!({ "name": "peak memory", "VmHWM": peak.map(str::trim) }));
    Ok(())
}

/// Seconds that this process has computed so far, on Linux, its ended threads included.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    /// Clock ticks are hundredths of a second for every architecture that Linux shows them on.
    const TICKS: f64 = 100.0;
    let stat = fs_err::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
    let ticks = ticks(11).zip(ticks(12)).ok_or("/proc/self/stat is not understood")?;
    Ok((ticks.0 + ticks.1) / TICKS)
}
