//! Model folders by name; each model is loaded once and shared by all calls.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::oneshot;

use crate::cpu::{l2_normalize, sigmoid};
use crate::folder::Folder;
use crate::heads::Encoded;
use crate::model::Model;
use crate::scheduler::{Permit, Scheduler};
use crate::tokenizer::{Sequence, TextTokenizer};
use crate::{
    EmbedRequest, Embeddings, Error, Load, Mode, ModelInfo, ModelSpec, Options, Outputs,
    RerankRequest,
};

/// Shortest length a request may ask for: room for the frame and something in it.
const LEAST_TEXT: usize = 4;
const LEAST_PAIR: usize = 8;

/// Most bytes of vectors that one call may give; larger requests belong in several calls.
const MAX_OUTPUT_BYTES: usize = 1 << 30;

/// Longest text. A tokenizer needs some fifty bytes of memory for each, to find out that a few
/// hundred tokens of it are used.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// What a text counts in the queue beside its bytes.
const TEXT_OVERHEAD_BYTES: usize = 64;

/// Finds, loads and runs the models of some directories. Clones share everything.
#[derive(Clone)]
pub struct ModelStore {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    /// Started with the first call that runs a model.
    scheduler: OnceLock<Result<Scheduler, Error>>,
    /// By the name asked for.
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// What is done about models that are expected, by name.
    expected: Mutex<HashMap<String, String>>,
}

struct Slot {
    folder: Folder,
    /// Empty until first use, and after a load that failed: the files may have been mended.
    model: Mutex<Option<Arc<Model>>>,
}

impl std::fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelStore").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl ModelStore {
    /// A store over the directories of `options`. Nothing is read and no thread is started yet.
    pub fn new(options: Options) -> Self {
        let inner = Inner {
            options,
            scheduler: OnceLock::new(),
            slots: Mutex::default(),
            expected: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Finds a model and says what it can do; reads its small configuration files only.
    ///
    /// `name` is `<org>/<name>` or `<name>`; each directory is searched for the folder
    /// `<org>/<name>`, then `<name>`, and failing that for one folder that differs in upper and
    /// lower case only or has an organisation that was left out.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::ModelNotFound`], [`Error::Pending`] for one that is being
    /// fetched, [`Error::Load`] for a damaged folder and
    /// [`Error::Unsupported`] for an architecture that is not understood.
    pub fn resolve(&self, name: &str) -> Result<ModelSpec, Error> {
        Ok(self.inner.folder(name)?.spec)
    }

    /// What a model can do that was used before under this name, without a look at its files.
    pub fn known(&self, name: &str) -> Option<ModelSpec> {
        lock(&self.inner.slots).get(name).map(|slot| slot.folder.spec.clone())
    }

    /// Embeds texts. The model is loaded on first use; texts of concurrent calls share batches.
    /// Must be called within a tokio runtime. Dropping the future drops the work that has not
    /// begun.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`]; [`Error::Unsupported`] for outputs the model does not have,
    /// [`Error::Invalid`] for a length out of range or a request too large, [`Error::Overloaded`]
    /// when too much is waiting, and [`Error::Tokenize`], [`Error::Inference`] or
    /// [`Error::Closed`] when the run itself fails.
    pub async fn embed(&self, model: &str, request: EmbedRequest) -> Result<Embeddings, Error> {
        let EmbedRequest {
            texts,
            outputs,
            mode,
            max_length,
            prompt,
            dim,
            refuse_longer,
            unnormalized,
        } = request;
        // Each text gets the prompt; those that models declare are short.
        let prompts = texts.len().saturating_mul(prompt.as_ref().map_or(0, String::len));
        let bytes = queued_bytes(&texts)?.saturating_add(prompts);
        let count = texts.len();
        let name = model.to_owned();
        let prepare = move |slot: &Slot, model: &Model| {
            let spec = &slot.folder.spec;
            let max_length = length(spec, max_length, LEAST_TEXT)?;
            let declared = match mode {
                Mode::Insert | Mode::Rerank => &spec.insert_prompt,
                Mode::Search => &spec.search_prompt,
            };
            let prompt = prompt.as_deref().unwrap_or(declared);
            let tokenize = |text: &String| {
                if !refuse_longer {
                    return model.tokenizer().text(prompt, text, max_length);
                }
                fits(model.tokenizer().whole(prompt, text)?, max_length)
            };
            let sequences: Vec<Sequence> = texts.iter().map(tokenize).collect::<Result<_, _>>()?;
            check_output_size(spec, outputs, &sequences)?;
            Ok(sequences)
        };
        let check = move |spec: &ModelSpec| {
            check_outputs(spec, outputs)?;
            check_dim(spec, outputs, dim)
        };
        let job = self.run(name, bytes, mode, outputs, check, prepare).await?;
        let Ran { spec, tokens, encoded } = job;
        let normalize = spec.normalized && !unnormalized;
        let mut found = collect(&spec, outputs, tokens, encoded, count);
        if let (Some(dense), Some(cut)) = (&mut found.dense, dim.filter(|dim| *dim < found.dim)) {
            // A vector that was cut is made one long again, whatever its model does.
            *dense = if unnormalized {
                dense.chunks_exact(found.dim).flat_map(|row| &row[..cut]).copied().collect()
            } else {
                shorten(dense, found.dim, cut)
            };
            found.dim = cut;
        } else if let (Some(dense), true) = (&mut found.dense, normalize) {
            dense.chunks_exact_mut(found.dim.max(1)).for_each(l2_normalize);
        }
        Ok(found)
    }

    /// Scores documents against a query with a cross-encoder, in the order given: higher is
    /// better, raw logits or 0 to 1 as the request says.
    ///
    /// Pairs are cut as FlagEmbedding cuts them: the query to three quarters of the length, then
    /// the document to what is left.
    ///
    /// # Errors
    /// As [`ModelStore::embed`]; [`Error::Unsupported`] if the model is no re-ranker.
    pub async fn rerank(&self, model: &str, request: RerankRequest) -> Result<Vec<f32>, Error> {
        let RerankRequest { query, docs, normalize, max_length, refuse_longer } = request;
        let bytes = queued_bytes(std::slice::from_ref(&query))? + queued_bytes(&docs)?;
        let name = model.to_owned();
        let prepare = move |slot: &Slot, model: &Model| {
            let max_length = length(&slot.folder.spec, max_length, LEAST_PAIR)?;
            let tokenizer = model.tokenizer();
            if refuse_longer {
                let query = tokenizer.query(&query, usize::MAX)?;
                let pair = |doc: &String| {
                    let pair = tokenizer.pair(&query, doc, usize::MAX)?;
                    fits(pair, max_length)
                };
                return docs.iter().map(pair).collect();
            }
            let query = tokenizer.query(&query, max_length)?;
            let pair = |doc: &String| tokenizer.pair(&query, doc, max_length);
            docs.iter().map(pair).collect()
        };
        let check = |spec: &ModelSpec| match spec.reranker {
            true => Ok(()),
            false => Err(Error::Unsupported(format!(
                "model `{}` is no re-ranker; it gives {}",
                spec.name,
                abilities(spec)
            ))),
        };
        let outputs = Outputs::default();
        let ran = self.run(name, bytes, Mode::Search, outputs, check, prepare).await?;
        let scores = ran.encoded.into_iter().map(|encoded| encoded.score.unwrap_or_default());
        Ok(scores.map(|score| if normalize { sigmoid(score) } else { score }).collect())
    }

    /// The models of the directories that are understood, as [`ModelStore::resolve`] describes
    /// them; the first directory that has a name decides.
    pub fn installed(&self) -> Vec<ModelSpec> {
        self.folders().into_iter().filter_map(|(_, folder)| folder.ok()).collect()
    }

    /// All model folders with their names, in order, and why one is not understood.
    pub fn folders(&self) -> Vec<(String, Result<ModelSpec, Error>)> {
        let mut seen = HashSet::new();
        let all = self.inner.options.dirs.iter().flat_map(|dir| list(dir));
        let mut found: Vec<_> = all
            .filter(|(name, _)| seen.insert(name.clone()))
            .map(|(name, dir)| {
                let spec = Folder::read(&name, &dir).map(|folder| folder.spec);
                (name, spec)
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Says what is done about a model that is not there yet: until it is there, calls for it get
    /// [`Error::Pending`] with that text. `None` forgets it.
    pub fn announce(&self, name: &str, state: Option<String>) {
        let mut expected = lock(&self.inner.expected);
        match state {
            Some(state) => expected.insert(name.to_owned(), state),
            None => expected.remove(name),
        };
    }

    /// The directories of the options, in order.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.inner.options.dirs
    }

    /// Loads a model before it is used; does nothing for one that is in memory.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`], and [`Error::Load`] for damaged weights.
    pub fn warm(&self, name: &str) -> Result<ModelInfo, Error> {
        Ok(self.inner.slot(name)?.load(&self.inner.options)?.info())
    }

    /// The token ids of a text as the model would see it, uncut and with its specials, and the
    /// pieces of text they stand for.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`]; [`Error::Load`] and [`Error::Tokenize`] of the tokenizer.
    pub fn tokenize(&self, name: &str, text: &str) -> Result<Vec<(u32, String)>, Error> {
        let folder = self.inner.folder(name)?;
        let tokenizer = TextTokenizer::load(
            &folder.spec.name,
            &folder.spec.dir,
            folder.encoder.vocabulary,
            folder.lowercase,
        )?;
        let ids = tokenizer.whole("", text)?.ids;
        Ok(ids.into_iter().map(|id| (id, tokenizer.piece(id))).collect())
    }

    /// The models in memory.
    pub fn loaded(&self) -> Vec<ModelInfo> {
        let slots: Vec<Arc<Slot>> = lock(&self.inner.slots).values().cloned().collect();
        let mut infos: Vec<ModelInfo> = slots
            .iter()
            // A model that is being loaded is not in memory yet.
            .filter_map(|slot| slot.model.try_lock().ok()?.as_ref().map(|model| model.info()))
            .collect();
        infos.sort_by(|a, b| a.spec.dir.cmp(&b.spec.dir));
        infos.dedup_by(|a, b| a.spec.dir == b.spec.dir);
        infos
    }

    /// How busy the models are; zeros before the first call.
    pub fn load(&self) -> Load {
        match self.inner.scheduler.get() {
            Some(Ok(scheduler)) => scheduler.load(),
            Some(Err(_)) | None => Load::default(),
        }
    }

    /// What `embed` and `rerank` share: admit, load, tokenize, queue, wait. Off the async threads,
    /// unless it is a question to a model in memory: that is tokenized sooner than a thread wakes.
    async fn run(
        &self,
        name: String,
        bytes: usize,
        mode: Mode,
        outputs: Outputs,
        check: impl Fn(&ModelSpec) -> Result<(), Error> + Send + 'static,
        prepare: impl Fn(&Slot, &Model) -> Result<Vec<Sequence>, Error> + Send + 'static,
    ) -> Result<Ran, Error> {
        /// Longer texts are tokenized elsewhere.
        const QUESTION_BYTES: usize = 1024;
        let permit = self.inner.scheduler()?.reserve(bytes)?;
        let at_once = bytes <= QUESTION_BYTES && self.inner.is_loaded(&name);
        let inner = Arc::clone(&self.inner);
        let started = move || -> Result<Started, Error> {
            let slot = inner.slot(&name)?;
            check(&slot.folder.spec)?;
            let model = slot.load(&inner.options)?;
            let sequences = prepare(&slot, &model)?;
            inner.submit(&slot, model, mode, outputs, sequences, permit)
        };
        let started = if at_once {
            started()?
        } else {
            tokio::task::spawn_blocking(started).await.map_err(|error| {
                Error::Inference(format!("preparing the texts failed: {error}"))
            })??
        };
        let encoded = started.reply.await.map_err(|_| Error::Closed)??;
        Ok(Ran { spec: started.spec, tokens: started.tokens, encoded })
    }
}

struct Started {
    spec: ModelSpec,
    tokens: usize,
    reply: oneshot::Receiver<Result<Vec<Encoded>, Error>>,
}

struct Ran {
    spec: ModelSpec,
    tokens: usize,
    encoded: Vec<Encoded>,
}

impl Inner {
    fn scheduler(&self) -> Result<&Scheduler, Error> {
        let started = self.scheduler.get_or_init(|| Scheduler::start(&self.options));
        started.as_ref().map_err(Error::clone)
    }

    fn submit(
        &self,
        slot: &Slot,
        model: Arc<Model>,
        mode: Mode,
        outputs: Outputs,
        sequences: Vec<Sequence>,
        permit: Permit,
    ) -> Result<Started, Error> {
        let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let reply = if sequences.is_empty() {
            let (sender, reply) = oneshot::channel();
            // The receiver is at hand, so this cannot fail.
            let _ = sender.send(Ok(Vec::new()));
            reply
        } else {
            self.scheduler()?.submit(model, mode, outputs, sequences, permit)?
        };
        Ok(Started { spec: slot.folder.spec.clone(), tokens, reply })
    }

    /// Whether nobody need wait for the model; none that was loaded is given up.
    fn is_loaded(&self, name: &str) -> bool {
        let slot = lock(&self.slots).get(name).cloned();
        slot.is_some_and(|slot| slot.model.try_lock().is_ok_and(|model| model.is_some()))
    }

    /// The slot of a name, made on first use; two names of one folder share it.
    fn slot(&self, name: &str) -> Result<Arc<Slot>, Error> {
        if let Some(slot) = lock(&self.slots).get(name) {
            return Ok(Arc::clone(slot));
        }
        let folder = self.folder(name)?;
        let mut slots = lock(&self.slots);
        let same = slots.values().find(|slot| slot.folder.spec.dir == folder.spec.dir).cloned();
        let slot = same.unwrap_or_else(|| Arc::new(Slot { folder, model: Mutex::default() }));
        slots.insert(name.to_owned(), Arc::clone(&slot));
        Ok(slot)
    }

    fn folder(&self, name: &str) -> Result<Folder, Error> {
        let parts = parts(name)?;
        let (found, dir) = find(&self.options.dirs, name, &parts).map_err(|error| {
            match lock(&self.expected).get(name) {
                Some(state) => Error::Pending { name: name.to_owned(), state: state.clone() },
                None => error,
            }
        })?;
        Folder::read(&found, &dir)
    }
}

impl Slot {
    /// The model, loaded if it is not. Callers wait for a load that is under way.
    fn load(&self, options: &Options) -> Result<Arc<Model>, Error> {
        let mut model = lock(&self.model);
        if let Some(model) = &*model {
            return Ok(Arc::clone(model));
        }
        let started = std::time::Instant::now();
        let loaded = Arc::new(Model::load(&self.folder, options)?);
        let name = &self.folder.spec.name;
        let millis = started.elapsed().as_millis();
        tracing::info!(model = name, bytes = loaded.info().bytes, millis, "model loaded");
        *model = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// A panic while a lock was held left no half-made state behind: every write is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits a model name; nothing that could leave the model directories gets through.
pub(crate) fn parts(name: &str) -> Result<Vec<&str>, Error> {
    let invalid = |reason: &str| Error::InvalidName {
        name: name.escape_debug().to_string(),
        reason: reason.to_owned(),
    };
    if name.is_empty() || name.len() > 256 {
        return Err(invalid("it must have 1 to 256 bytes"));
    }
    if name.chars().any(|c| c.is_control() || matches!(c, '\\' | ':')) {
        return Err(invalid("it must not contain control characters, `\\` or `:`"));
    }
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return Err(invalid("it must be `<name>` or `<organisation>/<name>`"));
    }
    if parts.iter().any(|part| part.is_empty() || part.starts_with('.')) {
        return Err(invalid("no part of it may be empty or start with a dot"));
    }
    Ok(parts)
}

/// The folder of a name, and the name as the folder spells it.
fn find(dirs: &[PathBuf], name: &str, parts: &[&str]) -> Result<(String, PathBuf), Error> {
    let last = parts.last().copied().unwrap_or(name);
    let mut searched = Vec::new();
    for dir in dirs {
        let candidates = if name == last { &[name][..] } else { &[name, last] };
        for candidate in candidates {
            let path = dir.join(candidate);
            if is_model(&path) {
                return Ok((name.to_owned(), path));
            }
            searched.push(path);
        }
    }
    let installed: Vec<(String, PathBuf)> = dirs.iter().flat_map(|dir| list(dir)).collect();
    let alike = |found: &str| {
        let found = found.to_lowercase();
        let tail = found.rsplit('/').next().unwrap_or(&found);
        found == name.to_lowercase() || (parts.len() == 1 && tail == name.to_lowercase())
    };
    let mut matches: Vec<&(String, PathBuf)> =
        installed.iter().filter(|(found, _)| alike(found)).collect();
    matches.dedup_by(|a, b| a.0 == b.0);
    match matches.as_slice() {
        [(found, path)] => Ok((found.clone(), path.clone())),
        [] => {
            let names: Vec<&str> = installed.iter().map(|(n, _)| n.as_str()).take(20).collect();
            let hint = match names.is_empty() {
                true => "no model is installed there".to_owned(),
                false => format!("installed are {}", names.join(", ")),
            };
            let hint = format!(
                "{hint}. Put its folder there, or run `elanus model pull {name}` where a hub can be \
                 reached"
            );
            Err(Error::ModelNotFound { name: name.to_owned(), searched, hint })
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(n, _)| n.as_str()).collect();
            Err(Error::InvalidName {
                name: name.to_owned(),
                reason: format!("it could be each of {}; say which", names.join(", ")),
            })
        }
    }
}

fn is_model(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// The models of a directory, `<name>` and `<org>/<name>`, sorted.
fn list(dir: &Path) -> Vec<(String, PathBuf)> {
    /// A directory of models has a few; a home directory by mistake has many.
    const MOST: usize = 1000;
    let children = |dir: &Path| {
        let entries = fs_err::read_dir(dir).into_iter().flatten().flatten().take(MOST);
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            (!name.starts_with('.')).then(|| (name, entry.path()))
        });
        let mut named: Vec<(String, PathBuf)> = named.collect();
        named.sort();
        named
    };
    let mut models = Vec::new();
    for (name, path) in children(dir) {
        if is_model(&path) {
            models.push((name, path));
        } else if path.is_dir() {
            let within = children(&path).into_iter().filter(|(_, path)| is_model(path));
            models.extend(within.map(|(model, path)| (format!("{name}/{model}"), path)));
        }
    }
    models
}

/// What texts count in the queue.
fn queued_bytes(texts: &[String]) -> Result<usize, Error> {
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    if longest > MAX_TEXT_BYTES {
        return Err(Error::Invalid(format!(
            "a text has {longest} bytes, {MAX_TEXT_BYTES} are allowed; models read the first few \
             thousand, so split it into passages"
        )));
    }
    Ok(texts.iter().map(|text| text.len() + TEXT_OVERHEAD_BYTES).sum())
}

/// The sequence, if it is not longer than the length.
fn fits(sequence: Sequence, max_length: usize) -> Result<Sequence, Error> {
    if sequence.ids.len() <= max_length {
        return Ok(sequence);
    }
    Err(Error::Invalid(format!(
        "a text has {} tokens, {max_length} are allowed",
        sequence.ids.len()
    )))
}

/// The length of a request, or the model's own.
fn length(spec: &ModelSpec, asked: Option<usize>, least: usize) -> Result<usize, Error> {
    let length = asked.unwrap_or(spec.max_length);
    if (least..=spec.max_length_limit).contains(&length) {
        return Ok(length);
    }
    Err(Error::Invalid(format!(
        "max_length is {length}, model `{}` takes {least} to {}",
        spec.name, spec.max_length_limit
    )))
}

fn check_outputs(spec: &ModelSpec, outputs: Outputs) -> Result<(), Error> {
    if outputs.is_empty() {
        return Err(Error::Invalid("the request asks for no output".to_owned()));
    }
    if outputs.is_subset_of(spec.outputs()) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "model `{}` gives no {}; it gives {}",
        spec.name,
        listed(outputs).join(" and "),
        abilities(spec)
    )))
}

fn check_dim(spec: &ModelSpec, outputs: Outputs, dim: Option<usize>) -> Result<(), Error> {
    let (Some(dim), Some(whole), true) = (dim, spec.dense_dim, outputs.dense) else {
        return Ok(());
    };
    if (1..=whole).contains(&dim) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{dim} dimensions are asked for, the vectors of model `{}` have {whole}",
        spec.name
    )))
}

/// What a model can do, in words.
fn abilities(spec: &ModelSpec) -> String {
    if spec.reranker {
        return "scores of query-document pairs (it is a re-ranker)".to_owned();
    }
    listed(spec.outputs()).join(", ")
}

fn listed(outputs: Outputs) -> Vec<&'static str> {
    let all = [
        (outputs.dense, "dense vectors"),
        (outputs.sparse, "sparse vectors"),
        (outputs.colbert, "token vectors (ColBERT)"),
    ];
    all.iter().filter(|(wanted, _)| *wanted).map(|(_, name)| *name).collect()
}

fn check_output_size(
    spec: &ModelSpec,
    outputs: Outputs,
    sequences: &[Sequence],
) -> Result<(), Error> {
    let width = spec.dense_dim.unwrap_or(0);
    let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    let rows = usize::from(outputs.dense) * sequences.len() + usize::from(outputs.colbert) * tokens;
    let bytes = rows.saturating_mul(width * size_of::<f32>());
    if bytes <= MAX_OUTPUT_BYTES {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the vectors of this request take {bytes} bytes, {MAX_OUTPUT_BYTES} are allowed; send \
         smaller batches"
    )))
}

/// The first `dim` numbers of each row of `width`, made one long again: what models that were
/// trained for it (Matryoshka representation learning, Kusupati et al. 2022) allow.
pub fn shorten(rows: &[f32], width: usize, dim: usize) -> Vec<f32> {
    let mut short = Vec::with_capacity(rows.len() / width.max(1) * dim);
    for row in rows.chunks_exact(width.max(1)) {
        let from = short.len();
        short.extend_from_slice(&row[..dim.min(width)]);
        l2_normalize(&mut short[from..]);
    }
    short
}

fn collect(
    spec: &ModelSpec,
    outputs: Outputs,
    tokens: usize,
    encoded: Vec<Encoded>,
    count: usize,
) -> Embeddings {
    let whole = spec.dense_dim.unwrap_or(0);
    let dim = if outputs.dense { whole } else { 0 };
    let mut dense = outputs.dense.then(|| Vec::with_capacity(count * dim));
    let mut sparse = outputs.sparse.then(|| Vec::with_capacity(count));
    let mut colbert = outputs.colbert.then(|| Vec::with_capacity(count));
    for one in encoded {
        if let Some(dense) = &mut dense {
            dense.extend(one.dense.unwrap_or_default());
        }
        if let Some(sparse) = &mut sparse {
            sparse.push(one.sparse.unwrap_or_default());
        }
        if let Some(colbert) = &mut colbert {
            colbert.push(one.colbert.unwrap_or_default());
        }
    }
    let colbert_dim = if outputs.colbert { whole } else { 0 };
    Embeddings { dense, dim, colbert_dim, sparse, colbert, tokens }
}
