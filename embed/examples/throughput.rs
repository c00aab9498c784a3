//! Tokens per second of a model on one's own texts.
//!
//! ```text
//! cargo run --release -p elanus-embed --example throughput -- MODEL_DIR MODEL f32|int8 [TEXTS.json]
//! ```
//!
//! `TEXTS.json` is a JSON array of strings; without it, texts of 60 to 150 words are made up.
//! `THREADS` in the environment sets the threads of a forward pass, `LENGTH` the tokens of a text.
//! Prints the first call (which loads the model), the rate of inserts in batches of 256 texts,
//! and the latency of single short queries.

#![expect(clippy::print_stdout, reason = "an example reports to whoever runs it")]

use std::error::Error;
use std::time::{Duration, Instant};

use elanus_embed::{EmbedRequest, Mode, ModelStore, Options, Precision};

/// Texts of one call.
const BATCH: usize = 256;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(model), Some(precision)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: throughput MODEL_DIR MODEL f32|int8 [TEXTS.json]".into());
    };
    let precision = match precision.as_str() {
        "f32" => Precision::F32,
        "int8" => Precision::Int8,
        other => return Err(format!("{other} is neither f32 nor int8").into()),
    };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (threads, max_length) = (number("THREADS").unwrap_or(0), number("LENGTH"));
    let texts: Vec<String> = match arguments.next() {
        Some(path) => serde_json::from_slice(&fs_err::read(path)?)?,
        None => (0..2000).map(made_up).collect(),
    };
    let store = ModelStore::new(Options {
        dirs: vec![dir.into()],
        precision,
        threads,
        ..Options::default()
    });
    let outputs = store.resolve(&model)?.outputs();
    let request = |texts: &[String], mode| EmbedRequest {
        max_length,
        ..EmbedRequest::new(texts.to_vec(), outputs, mode)
    };

    let started = Instant::now();
    store.embed(&model, request(&texts[..1], Mode::Search)).await?;
    println!("first vector after {:.2} s", started.elapsed().as_secs_f64());

    let (started, cpu) = (Instant::now(), cpu_seconds()?);
    let mut tokens = 0;
    for batch in texts.chunks(BATCH) {
        tokens += store.embed(&model, request(batch, Mode::Insert)).await?.tokens;
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    println!(
        "{} texts, {tokens} tokens in {seconds:.1} s: {:.0} tokens/s, {:.0} texts/s, {:.0} tokens \
         per second of one core",
        texts.len(),
        tokens as f64 / seconds,
        texts.len() as f64 / seconds,
        tokens as f64 / cpu
    );

    let status = fs_err::read_to_string("/proc/self/status")?;
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));

    let mut times = Vec::new();
    for index in 0..200 {
        let query = vec![format!("how to make a temporary directory number {index}")];
        let started = Instant::now();
        store.embed(&model, request(&query, Mode::Search)).await?;
        times.push(started.elapsed());
    }
    times.sort();
    let micros = |time: Duration| time.as_micros();
    println!("query: median {} us, p99 {} us", micros(times[100]), micros(times[197]));
    Ok(())
}

/// Seconds that this process has computed so far, on Linux: on a machine that does other work as
/// well, this is what can be compared.
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

/// A text of 60 to 150 words.
fn made_up(index: usize) -> String {
    const WORDS: [&str; 12] = [
        "return",
        "the",
        "list",
        "of",
        "open",
        "files",
        "and",
        "close",
        "every",
        "temporary",
        "directory",
        "again",
    ];
    let count = 60 + index * 37 % 91;
    let words: Vec<&str> =
        (0..count).map(|word| WORDS[(index * 31 + word * word * 7) % WORDS.len()]).collect();
    words.join(" ")
}
