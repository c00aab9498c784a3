//! Tokens per second of a model on one's own texts.
//!
//! ```text
//! cargo run --release -p elanus-embed --example throughput -- MODEL_DIR MODEL [TEXTS.json]
//! ```
//!
//! `TEXTS.json` is a JSON array of strings; without it, texts of 60 to 150 words are made up.
//! Prints the first call (which loads the model), the rate of inserts in batches of 256 texts,
//! and the latency of single short queries.

#![expect(clippy::print_stdout, reason = "an example reports to whoever runs it")]

use std::error::Error;
use std::time::{Duration, Instant};

use elanus_embed::{EmbedRequest, Mode, ModelStore, Options};

/// Texts of one call.
const BATCH: usize = 256;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(model)) = (arguments.next(), arguments.next()) else {
        return Err("usage: throughput MODEL_DIR MODEL [TEXTS.json]".into());
    };
    let texts: Vec<String> = match arguments.next() {
        Some(path) => serde_json::from_slice(&fs_err::read(path)?)?,
        None => (0..2000).map(made_up).collect(),
    };
    let store = ModelStore::new(Options { dirs: vec![dir.into()], ..Options::default() });
    let outputs = store.resolve(&model)?.outputs();
    let request = |texts: &[String], mode| EmbedRequest::new(texts.to_vec(), outputs, mode);

    let started = Instant::now();
    store.embed(&model, request(&texts[..1], Mode::Search)).await?;
    println!("first vector after {:.2} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut tokens = 0;
    for batch in texts.chunks(BATCH) {
        tokens += store.embed(&model, request(batch, Mode::Insert)).await?.tokens;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} texts, {tokens} tokens in {seconds:.1} s: {:.0} tokens/s, {:.0} texts/s",
        texts.len(),
        tokens as f64 / seconds,
        texts.len() as f64 / seconds
    );

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
