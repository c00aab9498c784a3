//! The commands that run models without a node: `embed`, `rerank`, `tokenize` and `model`.
//!
//! Answers are JSON, one line each, on standard output.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use elanus::config::{Config, Sources};
use elanus::pull::{self, Source, Wanted};
use elanus_embed::{
    EmbedRequest, Mode, ModelInfo, ModelSpec, ModelStore, Options, Outputs, RerankRequest,
};
use elanus_remote::Progress;
use serde_json::{Value, json};

/// Where models are, and how they run; settings as for `elanus serve`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Store {
    /// A folder with models; may be repeated [default: DATA_DIR/models]
    #[arg(long = "model-dir", value_name = "DIR")]
    model_dirs: Vec<PathBuf>,
    /// The data directory of a node [default: ./elanus-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A settings file
    #[arg(long, value_name = "FILE", env = "ELANUS_CONFIG")]
    config: Option<PathBuf>,
    /// Where the model runs: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE")]
    device: Option<elanus_embed::Device>,
    /// The numbers in which the model runs
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Precision {
    F32,
    F16,
    Int8,
}

impl Store {
    fn config(self) -> anyhow::Result<Config> {
        let text = |path: PathBuf| toml::Value::String(path.to_string_lossy().into_owned());
        let mut flags = Vec::new();
        flags.extend(self.data_dir.map(|dir| ("data_dir".to_owned(), text(dir))));
        if !self.model_dirs.is_empty() {
            let dirs = self.model_dirs.into_iter().map(text).collect();
            flags.push(("model_dirs".to_owned(), toml::Value::Array(dirs)));
        }
        if let Some(device) = self.device {
            flags.push(("models.device".to_owned(), toml::Value::String(device.to_string())));
        }
        if let Some(precision) = self.precision {
            let name = match precision {
                Precision::F32 => "f32",
                Precision::F16 => "f16",
                Precision::Int8 => "int8",
            };
            flags.push(("models.precision".to_owned(), toml::Value::String(name.to_owned())));
        }
        let environment = super::environment();
        Ok(Config::load(Sources { file: self.config, environment, flags })?)
    }

    fn options(self) -> anyhow::Result<Options> {
        Ok(self.config()?.model_options())
    }

    pub(super) fn open(self) -> anyhow::Result<ModelStore> {
        Ok(ModelStore::new(self.options()?))
    }
}

/// Turn texts into vectors.
#[derive(Debug, ClapArgs)]
pub(crate) struct Embed {
    /// The model's name
    #[arg(long)]
    model: String,
    /// A text; may be repeated
    #[arg(long = "text", required = true)]
    texts: Vec<String>,
    /// The dense vector; all that the model gives if nothing is said
    #[arg(long)]
    dense: bool,
    /// The sparse vector
    #[arg(long)]
    sparse: bool,
    /// One vector per token
    #[arg(long)]
    colbert: bool,
    /// The texts are questions, not documents
    #[arg(long)]
    query: bool,
    /// Width of the dense vectors
    #[arg(long)]
    dim: Option<usize>,
    /// Tokens after which a text is cut
    #[arg(long)]
    max_length: Option<usize>,
    #[command(flatten)]
    store: Store,
}

/// Score documents against a question.
#[derive(Debug, ClapArgs)]
pub(crate) struct Rerank {
    /// The model's name
    #[arg(long)]
    model: String,
    /// The question
    #[arg(long)]
    query: String,
    /// A document; may be repeated
    #[arg(long = "text", required = true)]
    texts: Vec<String>,
    /// Logits instead of scores between 0 and 1
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    store: Store,
}

/// Show the tokens of texts.
#[derive(Debug, ClapArgs)]
pub(crate) struct Tokenize {
    /// The model's name
    #[arg(long)]
    model: String,
    /// A text; may be repeated
    #[arg(long = "text", required = true)]
    texts: Vec<String>,
    #[command(flatten)]
    store: Store,
}

/// Look after installed models.
#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// List the installed models, and what is wrong with folders that are not understood
    List {
        #[command(flatten)]
        store: Store,
    },
    /// Say what a model can do
    Info(Named),
    /// Read all weights, compare files with the hub's checksums where they are known, embed a text
    Verify(Named),
    /// Convert the weights once, so that the node's first call need not
    Warm(Named),
    /// Fetch a model from a hub into the first model directory; what broke off is gone on with
    ///
    /// The hub is that of the setting `models.hub`, else of the environment variable HF_ENDPOINT,
    /// else https://huggingface.co. The token in HF_TOKEN is sent to it.
    Pull {
        /// The model: ORG/NAME
        name: String,
        /// A branch, a tag or, to get the same files for ever, a commit
        #[arg(long, default_value = "main")]
        revision: String,
        /// The hub's address
        #[arg(long, value_name = "URL")]
        endpoint: Option<String>,
        #[command(flatten)]
        store: Store,
    },
    /// Copy a folder in Hugging Face layout into the first model directory
    Add {
        /// The folder
        folder: PathBuf,
        /// What the model is called: ORG/NAME
        name: String,
        #[command(flatten)]
        store: Store,
    },
    /// Delete a model's folder
    Remove(Named),
    /// Measure tokens per second, and the latency of a short question
    Bench(Named),
}

/// One model.
#[derive(Debug, ClapArgs)]
pub(crate) struct Named {
    /// The model's name
    name: String,
    #[command(flatten)]
    store: Store,
}

pub(super) fn print(value: &Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{value}").context("cannot write the answer")
}

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the threads")?;
    Ok(runtime.block_on(work))
}

/// `elanus embed`.
pub(crate) fn embed(args: Embed) -> anyhow::Result<()> {
    let store = args.store.open()?;
    let spec = store.resolve(&args.model)?;
    let asked = Outputs { dense: args.dense, sparse: args.sparse, colbert: args.colbert };
    let outputs = if asked.is_empty() { spec.outputs() } else { asked };
    let mode = if args.query { Mode::Search } else { Mode::Insert };
    let request = EmbedRequest {
        dim: args.dim,
        max_length: args.max_length,
        ..EmbedRequest::new(args.texts.clone(), outputs, mode)
    };
    let found = block_on(store.embed(&args.model, request))??;
    for (index, text) in args.texts.iter().enumerate() {
        let mut line = json!({ "text": text });
        if let Some(dense) = &found.dense {
            line["dense"] = json!(dense[index * found.dim..][..found.dim]);
        }
        if let Some(sparse) = &found.sparse {
            let (indices, values): (Vec<u32>, Vec<f32>) = sparse[index].iter().copied().unzip();
            line["sparse"] = json!({ "indices": indices, "values": values });
        }
        if let Some(colbert) = &found.colbert {
            let width = spec.dense_dim.unwrap_or(1);
            line["colbert"] = colbert[index].chunks(width).map(|row| json!(row)).collect();
        }
        print(&line)?;
    }
    Ok(())
}

/// `elanus rerank`.
pub(crate) fn rerank(args: Rerank) -> anyhow::Result<()> {
    let store = args.store.open()?;
    let request = RerankRequest {
        query: args.query,
        docs: args.texts.clone(),
        normalize: !args.raw,
        ..RerankRequest::default()
    };
    let scores = block_on(store.rerank(&args.model, request))??;
    let mut ranked: Vec<(f32, String)> = scores.into_iter().zip(args.texts).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (score, text) in ranked {
        print(&json!({ "score": score, "text": text }))?;
    }
    Ok(())
}

/// `elanus tokenize`.
pub(crate) fn tokenize(args: Tokenize) -> anyhow::Result<()> {
    let store = args.store.open()?;
    for text in args.texts {
        let (ids, tokens): (Vec<u32>, Vec<String>) =
            store.tokenize(&args.model, &text)?.into_iter().unzip();
        print(&json!({ "text": text, "ids": ids, "tokens": tokens }))?;
    }
    Ok(())
}

/// `elanus model`.
pub(crate) fn model(command: Model) -> anyhow::Result<()> {
    match command {
        Model::List { store } => {
            for (name, found) in store.open()?.folders() {
                print(&match found {
                    Ok(spec) => describe(&spec),
                    Err(error) => json!({ "name": name, "error": error.to_string() }),
                })?;
            }
            Ok(())
        }
        Model::Info(Named { name, store }) => print(&describe(&store.open()?.resolve(&name)?)),
        Model::Warm(Named { name, store }) => {
            let began = Instant::now();
            print(&loaded(&store.open()?.warm(&name)?, began))
        }
        Model::Verify(Named { name, store }) => verify(&name, &store.open()?),
        Model::Bench(Named { name, store }) => {
            // What is measured is the model, not the memory of what was asked before.
            bench(&name, &ModelStore::new(Options { cache_bytes: 0, ..store.options()? }))
        }
        Model::Pull { name, revision, endpoint, store } => {
            let mut config = store.config()?;
            if let Some(endpoint) = endpoint {
                config.models.hub = endpoint;
            }
            fetch(&Wanted { name, revision }, &config)
        }
        Model::Add { folder, name, store } => {
            let options = store.options()?;
            let dir = options.dirs.first().context("no model directory is configured")?.clone();
            let spec = ModelStore::new(options).add(&folder, &name)?;
            print(&json!({ "added": spec.name, "to": dir }))
        }
        Model::Remove(Named { name, store }) => {
            let spec = store.open()?.remove(&name)?;
            print(&json!({ "removed": spec.name, "from": spec.dir }))
        }
    }
}

fn fetch(wanted: &Wanted, config: &Config) -> anyhow::Result<()> {
    let models = ModelStore::new(config.model_options());
    let hub = config.hub()?;
    let progress = Progress::default();
    let stderr = std::io::stderr();
    let rewrite = stderr.is_terminal();
    let work = || pull::pull(&models, &hub, wanted, &progress);
    let (spec, source) = pull::shown(stderr, rewrite, &wanted.name, &progress, work)?;
    print(&json!({
        "fetched": spec.name,
        "from": source.hub,
        "commit": source.commit,
        "folder": spec.dir,
        "files": source.files.len(),
    }))
}

fn describe(spec: &ModelSpec) -> Value {
    json!({
        "name": spec.name,
        "folder": spec.dir,
        "architecture": spec.architecture,
        "dense": spec.dense_dim,
        "normalized": spec.normalized,
        "sparse": spec.sparse_dim,
        "colbert": spec.colbert,
        "reranker": spec.reranker,
        "max_length": spec.max_length,
        "max_length_limit": spec.max_length_limit,
        "insert_prompt": spec.insert_prompt,
        "search_prompt": spec.search_prompt,
        "commit": Source::of(spec).map(|source| source.commit),
    })
}

fn loaded(info: &ModelInfo, began: Instant) -> Value {
    json!({
        "name": info.spec.name,
        "device": info.device.to_string(),
        "precision": info.precision.name(),
        "bytes": info.bytes,
        "seconds": began.elapsed().as_secs_f64(),
    })
}

/// Runs one call: vectors, or a score where the model is a re-ranker.
async fn call(store: &ModelStore, spec: &ModelSpec, texts: Vec<String>) -> anyhow::Result<usize> {
    if spec.reranker {
        let count = texts.len();
        let request =
            RerankRequest { query: "a question".to_owned(), docs: texts, ..Default::default() };
        let scores = store.rerank(&spec.name, request).await?;
        if !scores.iter().all(|score| score.is_finite()) {
            bail!("model {} gives scores that are not finite", spec.name);
        }
        return Ok(count);
    }
    let found =
        store.embed(&spec.name, EmbedRequest::new(texts, spec.outputs(), Mode::Search)).await?;
    let dense = found.dense.iter().flatten();
    let sparse = found.sparse.iter().flatten().flatten().map(|(_, weight)| weight);
    let colbert = found.colbert.iter().flatten().flatten();
    if !dense.chain(sparse).chain(colbert).all(|value| value.is_finite()) {
        bail!("model {} gives vectors that are not finite", spec.name);
    }
    Ok(found.tokens)
}

fn verify(name: &str, store: &ModelStore) -> anyhow::Result<()> {
    let began = Instant::now();
    let spec = store.resolve(name)?;
    let info = store.warm(name)?;
    block_on(call(store, &spec, vec!["a text to check the model with".to_owned()]))??;
    let mut line = loaded(&info, began);
    if let Some(source) = Source::of(&spec) {
        line["checksums"] = source.verify(&spec.dir)?.into();
    }
    line["verified"] = true.into();
    print(&line)
}

/// Texts of one kind of call: how many, and words of each.
const SHAPES: [(usize, usize); 4] = [(1, 12), (1, 400), (8, 100), (32, 100)];

fn bench(name: &str, store: &ModelStore) -> anyhow::Result<()> {
    let spec = store.resolve(name)?;
    store.warm(name)?;
    block_on(async {
        for (texts, words) in SHAPES {
            /// Runs of one kind: enough for a median, and over in seconds with a large model.
            const RUNS: usize = 5;
            let mut times = Vec::new();
            let mut tokens = 0;
            for run in 0..RUNS {
                let text = |index: usize| {
                    let word = |word: usize| format!("word{} ", (word * 31 + index + run) % 97);
                    (0..words).map(word).collect::<String>()
                };
                let began = Instant::now();
                tokens = call(store, &spec, (0..texts).map(text).collect()).await?;
                times.push(began.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let median = times[RUNS / 2];
            let unit = if spec.reranker { "pairs" } else { "tokens" };
            print(&json!({
                "texts": texts,
                "words": words,
                unit: tokens,
                "median_ms": median * 1e3,
                "per_second": tokens as f64 / median,
            }))?;
        }
        Ok(())
    })?
}
