//! What a model folder says about itself, read from its small JSON files.
//!
//! A folder in Hugging Face layout is either understood as a whole ([`Folder::read`]) or refused
//! with the file and the reason. Nothing is guessed where a guess could give wrong vectors; the
//! one default is that a bare encoder without a pooling configuration is mean-pooled and
//! normalised, as sentence-transformers pools it.
//!
//! This module reads no weights and no tokenizer.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, ModelSpec};

/// FlagEmbedding, sentence-transformers' BGE folders and pymilvus-model all cut at 512 tokens
/// unless they are told otherwise, whatever the model could take.
const DEFAULT_MAX_LENGTH: usize = 512;

/// A configuration file is a few kilobytes; a larger one is not one.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// A model folder that was understood.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) spec: ModelSpec,
    pub(crate) encoder: EncoderConfig,
    pub(crate) head: HeadConfig,
    /// The file with the encoder's weights.
    pub(crate) weights: PathBuf,
    /// Texts are lowercased before the tokenizer sees them.
    pub(crate) lowercase: bool,
}

/// The sizes of a BERT-like encoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderConfig {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    /// Rows of the position table.
    pub(crate) positions: usize,
    /// Position of the first token: 0 for BERT, padding index + 1 for XLM-R.
    pub(crate) first_position: usize,
    /// Rows of the token type table.
    pub(crate) types: usize,
    pub(crate) norm_eps: f32,
}

impl EncoderConfig {
    /// Multiply-adds of one token in the linear layers, for the token budget.
    pub(crate) fn products_per_token(&self) -> usize {
        self.layers * self.hidden * (4 * self.hidden + 2 * self.intermediate)
    }
}

/// What turns hidden states into vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadConfig {
    /// One dense vector.
    Pooled { pooling: Pooling, normalize: bool },
    /// BGE-M3's three outputs.
    M3,
    /// SPLADE over a BERT masked-language head.
    Splade,
    /// One score per pair; BERT has a pooler before its classifier, XLM-R a two-layer head.
    Classifier(Classifier),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    First,
    Mean,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classifier {
    Bert,
    XlmRoberta,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    hidden_act: String,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    id2label: Option<HashMap<String, serde_json::Value>>,
    num_labels: Option<usize>,
}

#[derive(Deserialize)]
struct RawModule {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct RawPooling {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    pooling_mode: Option<serde_json::Value>,
    include_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct RawSpladePooling {
    pooling_strategy: Option<String>,
    activation_function: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawSentenceBert {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct RawTokenizerConfig {
    model_max_length: Option<f64>,
}

#[derive(Deserialize, Default)]
struct RawSentenceTransformers {
    #[serde(default)]
    prompts: HashMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// The modules of a sentence-transformers folder, in the order they are applied.
#[derive(Debug, Default, PartialEq)]
struct Modules {
    pooling: Option<Pooling>,
    normalize: bool,
    splade: bool,
}

impl Folder {
    /// Understands the folder `dir`, which is called `name`.
    ///
    /// # Errors
    /// [`Error::Load`] names the file that is missing or damaged, [`Error::Unsupported`] says
    /// what in it is not understood.
    pub(crate) fn read(name: &str, dir: &Path) -> Result<Self, Error> {
        Self::read_with(name, dir, |weights| weights.is_file())
    }

    /// As [`Folder::read`], for a folder of which `has_weights` says whether a weight file is there:
    /// one that is being fetched gets its small files first.
    ///
    /// # Errors
    /// As [`Folder::read`].
    pub(crate) fn read_with(
        name: &str,
        dir: &Path,
        has_weights: impl Fn(&Path) -> bool,
    ) -> Result<Self, Error> {
        let config_path = dir.join("config.json");
        let raw: RawConfig = read_json(&config_path)?.ok_or_else(|| missing(dir, "config.json"))?;
        let refuse = |reason: String| Error::Unsupported(format!("model `{name}`: {reason}"));
        let encoder = encoder_config(&raw, &config_path, refuse)?;
        let modules = modules(dir, refuse)?;
        let head = head(&raw, dir, modules.as_ref(), refuse)?;

        let weights = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
            .map(|file| dir.join(file))
            .into_iter()
            .find(|path| has_weights(path))
            .ok_or_else(|| missing(dir, "model.safetensors (or pytorch_model.bin)"))?;
        if !dir.join("tokenizer.json").is_file() {
            return Err(missing(dir, "tokenizer.json"));
        }

        let sentence_bert: RawSentenceBert =
            read_json(&dir.join("sentence_bert_config.json"))?.unwrap_or_default();
        let (max_length, max_length_limit) = lengths(dir, &encoder, &sentence_bert)?;
        let (insert_prompt, search_prompt) = prompts(dir)?;
        let dense = matches!(head, HeadConfig::Pooled { .. } | HeadConfig::M3);
        let sparse = matches!(head, HeadConfig::Splade | HeadConfig::M3);
        let vocabulary = u32::try_from(encoder.vocabulary)
            .map_err(|_| refuse("its vocabulary has more than 2^32 entries".to_owned()))?;
        let spec = ModelSpec {
            name: name.to_owned(),
            dir: dir.to_owned(),
            architecture: raw.architectures.into_iter().next().unwrap_or(raw.model_type),
            dense_dim: dense.then_some(encoder.hidden),
            sparse_dim: sparse.then_some(vocabulary),
            colbert: head == HeadConfig::M3,
            reranker: matches!(head, HeadConfig::Classifier(_)),
            max_length,
            max_length_limit,
            insert_prompt,
            search_prompt,
        };
        Ok(Self { spec, encoder, head, weights, lowercase: sentence_bert.do_lower_case })
    }
}

fn encoder_config(
    raw: &RawConfig,
    path: &Path,
    refuse: impl Fn(String) -> Error,
) -> Result<EncoderConfig, Error> {
    let first_position = match raw.model_type.as_str() {
        "bert" => 0,
        "xlm-roberta" => raw.pad_token_id.unwrap_or(1) + 1,
        other => {
            return Err(refuse(format!(
                "config.json says model_type `{other}`; `bert` and `xlm-roberta` are supported"
            )));
        }
    };
    if !matches!(raw.hidden_act.as_str(), "gelu" | "gelu_python") {
        return Err(refuse(format!(
            "config.json says hidden_act `{}`; only the exact `gelu` is supported",
            raw.hidden_act
        )));
    }
    if let Some(kind) = raw.position_embedding_type.as_deref()
        && kind != "absolute"
    {
        return Err(refuse(format!(
            "config.json says position_embedding_type `{kind}`; only `absolute` is supported"
        )));
    }
    if raw.is_decoder {
        return Err(refuse("config.json says is_decoder; only encoders are supported".to_owned()));
    }
    // Far above any encoder in use, far below where a product of two could overflow.
    let bounds = [
        ("vocab_size", raw.vocab_size, 10_000_000),
        ("hidden_size", raw.hidden_size, 16_384),
        ("num_hidden_layers", raw.num_hidden_layers, 512),
        ("num_attention_heads", raw.num_attention_heads, 1024),
        ("intermediate_size", raw.intermediate_size, 131_072),
        ("max_position_embeddings", raw.max_position_embeddings, 1_000_000),
        ("type_vocab_size", raw.type_vocab_size, 1024),
    ];
    let load = |detail: String| Error::Load { path: path.to_owned(), detail };
    for (key, value, most) in bounds {
        if value == 0 || value > most {
            return Err(load(format!("{key} is {value}, expected 1 to {most}")));
        }
    }
    if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
        return Err(load(format!(
            "hidden_size {} is not a multiple of num_attention_heads {}",
            raw.hidden_size, raw.num_attention_heads
        )));
    }
    if first_position >= raw.max_position_embeddings {
        return Err(load(format!(
            "pad_token_id leaves no position of {}",
            raw.max_position_embeddings
        )));
    }
    if !(0.0..1.0).contains(&raw.layer_norm_eps) {
        return Err(load(format!("layer_norm_eps is {}, expected 0 to 1", raw.layer_norm_eps)));
    }
    Ok(EncoderConfig {
        vocabulary: raw.vocab_size,
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads: raw.num_attention_heads,
        intermediate: raw.intermediate_size,
        positions: raw.max_position_embeddings,
        first_position,
        types: raw.type_vocab_size,
        norm_eps: raw.layer_norm_eps as f32,
    })
}

fn head(
    raw: &RawConfig,
    dir: &Path,
    modules: Option<&Modules>,
    refuse: impl Fn(String) -> Error,
) -> Result<HeadConfig, Error> {
    let architecture = raw.architectures.first().map_or("", String::as_str);
    if architecture.ends_with("ForSequenceClassification") {
        let labels = raw.num_labels.or(raw.id2label.as_ref().map(HashMap::len)).unwrap_or(2);
        if labels != 1 {
            return Err(refuse(format!(
                "it classifies into {labels} labels; a re-ranker has exactly one"
            )));
        }
        return match architecture {
            "BertForSequenceClassification" => Ok(HeadConfig::Classifier(Classifier::Bert)),
            "XLMRobertaForSequenceClassification" => {
                Ok(HeadConfig::Classifier(Classifier::XlmRoberta))
            }
            other => Err(refuse(format!("the architecture `{other}` is not supported"))),
        };
    }
    let m3_files = ["sparse_linear.pt", "colbert_linear.pt"];
    match m3_files.map(|file| dir.join(file).is_file()) {
        [true, true] => return Ok(HeadConfig::M3),
        [true, false] => return Err(missing(dir, m3_files[1])),
        [false, true] => return Err(missing(dir, m3_files[0])),
        [false, false] => {}
    }
    match (architecture, modules) {
        ("BertForMaskedLM", None) => Ok(HeadConfig::Splade),
        ("BertForMaskedLM", Some(modules)) if modules.splade => Ok(HeadConfig::Splade),
        (_, Some(modules)) if modules.splade => Err(refuse(format!(
            "modules.json makes it SPLADE over `{architecture}`; `BertForMaskedLM` is supported"
        ))),
        (
            "BertModel" | "XLMRobertaModel" | "BertForMaskedLM" | "XLMRobertaForMaskedLM" | "",
            Some(Modules { pooling: Some(pooling), normalize, .. }),
        ) => Ok(HeadConfig::Pooled { pooling: *pooling, normalize: *normalize }),
        ("BertModel" | "XLMRobertaModel" | "", _) => {
            Ok(HeadConfig::Pooled { pooling: Pooling::Mean, normalize: true })
        }
        (other, _) => Err(refuse(format!(
            "the architecture `{other}` is not supported; supported are BertModel, \
             XLMRobertaModel (with BGE-M3's heads or pooled), BertForMaskedLM (SPLADE), \
             BertForSequenceClassification and XLMRobertaForSequenceClassification"
        ))),
    }
}

/// `modules.json`, or the pooling folder where there is only that.
fn modules(dir: &Path, refuse: impl Fn(String) -> Error) -> Result<Option<Modules>, Error> {
    let Some(raw) = read_json::<Vec<RawModule>>(&dir.join("modules.json"))? else {
        let pooling = pooling(dir, "1_Pooling", &refuse)?;
        return Ok(pooling.map(|pooling| Modules {
            pooling: Some(pooling),
            normalize: true,
            splade: false,
        }));
    };
    let mut modules = Modules::default();
    for module in raw {
        // Older folders say `sentence_transformers.models.Pooling`, newer ones have longer paths.
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "MLMTransformer" => {}
            "Normalize" => modules.normalize = true,
            "Pooling" => {
                modules.pooling = pooling(dir, &module.path, &refuse)?;
                if modules.pooling.is_none() {
                    return Err(missing(dir, &format!("{}/config.json", module.path)));
                }
            }
            "SpladePooling" => {
                splade_pooling(dir, &module.path, &refuse)?;
                modules.splade = true;
            }
            other => {
                return Err(refuse(format!(
                    "modules.json adds the module `{other}`; Transformer, Pooling, Normalize and \
                     SpladePooling are supported"
                )));
            }
        }
    }
    Ok(Some(modules))
}

fn pooling(
    dir: &Path,
    path: &str,
    refuse: &impl Fn(String) -> Error,
) -> Result<Option<Pooling>, Error> {
    let file = dir.join(sub_folder(path, refuse)?).join("config.json");
    let Some(raw) = read_json::<RawPooling>(&file)? else { return Ok(None) };
    if raw.include_prompt == Some(false) {
        return Err(refuse(format!("{path} leaves the prompt out of the pooling")));
    }
    let named = match raw.pooling_mode.as_ref().map(|mode| mode.as_str().unwrap_or("several")) {
        Some("cls") => Some(Pooling::First),
        Some("mean") => Some(Pooling::Mean),
        Some(other) => {
            return Err(refuse(format!("{path} pools by `{other}`; cls and mean are supported")));
        }
        None => None,
    };
    let others = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || raw.pooling_mode_lasttoken;
    match (named, raw.pooling_mode_cls_token, raw.pooling_mode_mean_tokens, others) {
        (Some(pooling), false, false, false) => Ok(Some(pooling)),
        (None, true, false, false) => Ok(Some(Pooling::First)),
        (None, false, true, false) => Ok(Some(Pooling::Mean)),
        _ => Err(refuse(format!(
            "{path}/config.json asks for another pooling than one of cls and mean"
        ))),
    }
}

fn splade_pooling(dir: &Path, path: &str, refuse: &impl Fn(String) -> Error) -> Result<(), Error> {
    let file = dir.join(sub_folder(path, refuse)?).join("config.json");
    let Some(raw) = read_json::<RawSpladePooling>(&file)? else { return Ok(()) };
    let strategy = raw.pooling_strategy.as_deref().unwrap_or("max");
    let activation = raw.activation_function.as_deref().unwrap_or("relu");
    if (strategy, activation) == ("max", "relu") {
        return Ok(());
    }
    Err(refuse(format!(
        "{path} pools by `{strategy}` of `{activation}`; max of log(1 + relu) is supported"
    )))
}

/// A folder name from `modules.json`, which must not lead out of the model folder.
fn sub_folder<'a>(path: &'a str, refuse: &impl Fn(String) -> Error) -> Result<&'a str, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if path.chars().all(plain) {
        return Ok(path);
    }
    Err(refuse(format!("modules.json names the folder `{}`", path.escape_debug())))
}

/// Tokens of a text by default, and at most.
fn lengths(
    dir: &Path,
    encoder: &EncoderConfig,
    sentence_bert: &RawSentenceBert,
) -> Result<(usize, usize), Error> {
    /// Two specials and two tokens, so that even a pair has room for something.
    const LEAST: usize = 8;
    let path = dir.join("tokenizer_config.json");
    let tokenizer: RawTokenizerConfig = read_json(&path)?.unwrap_or_default();
    let mut limit = encoder.positions - encoder.first_position;
    // Models without a limit say 1e30 here.
    if let Some(length) = tokenizer.model_max_length.filter(|length| *length < 1e9) {
        limit = limit.min(length.max(0.0) as usize);
    }
    if limit < LEAST {
        return Err(Error::Load {
            path,
            detail: format!("the model takes {limit} tokens at most, expected {LEAST} or more"),
        });
    }
    let own = sentence_bert.max_seq_length.unwrap_or(limit);
    Ok((own.min(limit).clamp(LEAST, DEFAULT_MAX_LENGTH.min(limit)), limit))
}

/// The prompts for documents and for queries, as sentence-transformers chooses them.
fn prompts(dir: &Path) -> Result<(String, String), Error> {
    let raw: RawSentenceTransformers =
        read_json(&dir.join("config_sentence_transformers.json"))?.unwrap_or_default();
    let find = |names: &[&str]| {
        let default = raw.default_prompt_name.as_deref();
        let mut names = names.iter().copied().chain(default);
        names.find_map(|name| raw.prompts.get(name)).cloned().flatten().unwrap_or_default()
    };
    Ok((find(&["document", "passage", "corpus"]), find(&["query"])))
}

fn missing(dir: &Path, file: &str) -> Error {
    Error::Load {
        path: dir.to_owned(),
        detail: format!("the file {file} is missing; put the whole model folder there"),
    }
}

/// Reads a small JSON file; `None` if there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let load = |detail: String| Error::Load { path: path.to_owned(), detail };
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(load(error.to_string())),
    };
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| load(error.to_string()))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(load(format!("it is larger than {MAX_JSON_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| load(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files and, if they are not given, the least that is needed.
    fn read(files: &[(&str, &str)]) -> Result<Folder, Error> {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30,
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 512, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;
        let least = [("config.json", config), ("model.safetensors", ""), ("tokenizer.json", "{}")];
        for (name, text) in least.iter().chain(files) {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        Folder::read("org/name", dir.path())
    }

    fn reason(files: &[(&str, &str)]) -> String {
        read(files).unwrap_err().to_string()
    }

    #[test]
    fn a_bare_encoder_is_mean_pooled_and_normalised() {
        let folder = read(&[]).unwrap();
        let expected = HeadConfig::Pooled { pooling: Pooling::Mean, normalize: true };
        assert_eq!(folder.head, expected);
        assert_eq!(folder.spec.dense_dim, Some(8));
        assert_eq!((folder.spec.max_length, folder.spec.max_length_limit), (512, 512));
    }

    #[test]
    fn modules_decide_on_pooling_and_normalisation() {
        let modules = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]"#;
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let folder = read(&[("modules.json", modules), ("1_Pooling/config.json", cls)]).unwrap();
        let expected = HeadConfig::Pooled { pooling: Pooling::First, normalize: false };
        assert_eq!(folder.head, expected);

        let newer = r#"{"pooling_mode": "mean", "include_prompt": true}"#;
        let folder = read(&[("1_Pooling/config.json", newer)]).unwrap();
        let expected = HeadConfig::Pooled { pooling: Pooling::Mean, normalize: true };
        assert_eq!(folder.head, expected);

        assert!(reason(&[("modules.json", modules)]).contains("1_Pooling/config.json"));
        let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        assert!(reason(&[("1_Pooling/config.json", both)]).contains("1_Pooling"));
        let max = r#"{"pooling_mode_max_tokens": true}"#;
        assert!(reason(&[("1_Pooling/config.json", max)]).contains("cls and mean"));
        let dense = r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
        assert!(reason(&[("modules.json", dense)]).contains("`Dense`"));
        let out = r#"[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]"#;
        assert!(reason(&[("modules.json", out)]).contains("../x"));
    }

    #[test]
    fn lengths_come_from_the_model_and_are_512_at_most_by_default() {
        let tokenizer = ("tokenizer_config.json", r#"{"model_max_length": 1e30}"#);
        let own = ("sentence_bert_config.json", r#"{"max_seq_length": 256}"#);
        let spec = read(&[tokenizer, own]).unwrap().spec;
        assert_eq!((spec.max_length, spec.max_length_limit), (256, 512));
        let tokenizer = ("tokenizer_config.json", r#"{"model_max_length": 128}"#);
        let spec = read(&[tokenizer, own]).unwrap().spec;
        assert_eq!((spec.max_length, spec.max_length_limit), (128, 128));
        let xlm = r#"{"model_type": "xlm-roberta", "pad_token_id": 1, "vocab_size": 30,
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 8194, "type_vocab_size": 1,
            "layer_norm_eps": 1e-5, "hidden_act": "gelu"}"#;
        let spec = read(&[("config.json", xlm)]).unwrap().spec;
        assert_eq!((spec.max_length, spec.max_length_limit), (512, 8192));
        let none = ("tokenizer_config.json", r#"{"model_max_length": -5}"#);
        assert!(reason(&[none]).contains("0 tokens"));
    }

    #[test]
    fn declared_prompts_belong_to_documents_and_queries() {
        let prompts = r#"{"prompts": {"query": "query: ", "passage": "passage: "}}"#;
        let spec = read(&[("config_sentence_transformers.json", prompts)]).unwrap().spec;
        assert_eq!((&*spec.insert_prompt, &*spec.search_prompt), ("passage: ", "query: "));
        let default = r#"{"prompts": {"all": "text: "}, "default_prompt_name": "all"}"#;
        let spec = read(&[("config_sentence_transformers.json", default)]).unwrap().spec;
        assert_eq!((&*spec.insert_prompt, &*spec.search_prompt), ("text: ", "text: "));
        let none = r#"{"prompts": {}, "default_prompt_name": null}"#;
        let spec = read(&[("config_sentence_transformers.json", none)]).unwrap().spec;
        assert_eq!((&*spec.insert_prompt, &*spec.search_prompt), ("", ""));
    }

    #[test]
    fn architectures_decide_on_the_head() {
        let with = |architecture: &str, more: &str| {
            let text = format!(r#"{{{more} "architectures": ["{architecture}"], REST"#);
            let rest = r#""model_type": "bert", "vocab_size": 30, "hidden_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
                "hidden_act": "gelu"}"#;
            read(&[("config.json", &text.replace("REST", rest))])
        };
        assert_eq!(with("BertForMaskedLM", "").unwrap().head, HeadConfig::Splade);
        let one = r#""id2label": {"0": "LABEL_0"},"#;
        let head = with("BertForSequenceClassification", one).unwrap().head;
        assert_eq!(head, HeadConfig::Classifier(Classifier::Bert));
        let two = with("BertForSequenceClassification", r#""num_labels": 2,"#).unwrap_err();
        assert!(two.to_string().contains("2 labels"), "{two}");
        let other = with("BertForQuestionAnswering", "").unwrap_err();
        assert!(other.to_string().contains("BertForQuestionAnswering"), "{other}");
    }
}
