//! What a model folder says about itself, read from its small JSON files.
//!
//! A folder in Hugging Face layout is either understood as a whole ([`Folder::read`]) or refused
//! with the file and the reason. Nothing is guessed where a guess could give wrong vectors; the
//! one default is that a bare encoder without a pooling configuration is mean-pooled and
//! normalised, as sentence-transformers pools it.
//!
//! This module reads no weights and no tokenizer.

mod modules;
mod prompts;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::modules::{Modules, modules};
pub(crate) use self::modules::{Pooled, Pooling, Projection};
use self::prompts::{Prompts, prompts};
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

/// The form and the sizes of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderConfig {
    pub(crate) form: Form,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    /// Rows of the token type table, if there is one.
    pub(crate) types: usize,
    pub(crate) norm_eps: f32,
}

/// What differs between the encoders beside their sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// BERT and XLM-RoBERTa: a table of positions.
    Bert {
        /// Rows of the table.
        positions: usize,
        /// Position of the first token: 0 for BERT, padding index + 1 for XLM-R.
        first_position: usize,
    },
    /// GTE (mGTE, Zhang et al. 2024): positions turn queries and keys, a gate within the layers.
    Gte {
        /// Most tokens of a text.
        positions: usize,
        rotary: Rotary,
        /// Queries, keys and values are one tensor in the file.
        packed: bool,
    },
}

/// How fast pairs of a query's numbers turn with the position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) base: f64,
    /// By how much the positions of the training were stretched ("NTK").
    pub(crate) stretch: f64,
}

impl EncoderConfig {
    /// Multiply-adds of one token in the linear layers, for the token budget.
    pub(crate) fn products_per_token(&self) -> usize {
        let matrices = if self.is_gated() { 3 } else { 2 };
        self.layers * self.hidden * (4 * self.hidden + matrices * self.intermediate)
    }

    /// Whether the layers have a gate.
    pub(crate) fn is_gated(&self) -> bool {
        matches!(self.form, Form::Gte { .. })
    }

    /// Position of the first token.
    pub(crate) fn first_position(&self) -> usize {
        match self.form {
            Form::Bert { first_position, .. } => first_position,
            Form::Gte { .. } => 0,
        }
    }

    /// Most tokens of a text, specials included.
    fn tokens(&self) -> usize {
        match self.form {
            Form::Bert { positions, first_position } => positions - first_position,
            Form::Gte { positions, .. } => positions,
        }
    }
}

/// What turns hidden states into vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeadConfig {
    /// One dense vector, and what the model has for single tokens.
    Vectors { dense: Pooled, tokens: TokenHeads },
    /// SPLADE over a BERT masked-language head.
    Splade,
    /// One score per pair; BERT has a pooler before its classifier, XLM-R a two-layer head.
    Classifier(Classifier),
}

/// Heads over single tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenHeads {
    None,
    /// BGE-M3's term weights and token vectors, each in a file of its own.
    M3,
    /// GTE's term weights, among the encoder's weights.
    Gte,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classifier {
    /// GTE's as well.
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
    // What only GTE's configuration says.
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRopeScaling>,
    layer_norm_type: Option<String>,
    pack_qkv: Option<bool>,
    #[serde(default)]
    logn_attention_scale: bool,
}

#[derive(Deserialize)]
struct RawRopeScaling {
    #[serde(rename = "type")]
    kind: String,
    factor: f64,
    mixed_b: Option<f64>,
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
        let head = head(&raw, dir, modules, refuse)?;

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
        let Prompts { insert: insert_prompt, search: search_prompt } = prompts(name, dir)?;
        let (dense_dim, tokens) = match &head {
            HeadConfig::Vectors { dense, tokens } => {
                let projected = dense.projection.as_ref().map(|projection| projection.outputs);
                (Some(projected.unwrap_or(encoder.hidden)), *tokens)
            }
            HeadConfig::Splade | HeadConfig::Classifier(_) => (None, TokenHeads::None),
        };
        let normalized = matches!(&head, HeadConfig::Vectors { dense, .. } if dense.normalize);
        let sparse = tokens != TokenHeads::None || head == HeadConfig::Splade;
        let vocabulary = u32::try_from(encoder.vocabulary)
            .map_err(|_| refuse("its vocabulary has more than 2^32 entries".to_owned()))?;
        let spec = ModelSpec {
            name: name.to_owned(),
            dir: dir.to_owned(),
            architecture: raw.architectures.into_iter().next().unwrap_or(raw.model_type),
            dense_dim,
            normalized,
            sparse_dim: sparse.then_some(vocabulary),
            colbert: tokens == TokenHeads::M3,
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
    if !matches!(raw.hidden_act.as_str(), "gelu" | "gelu_python") {
        return Err(refuse(format!(
            "config.json says hidden_act `{}`; only the exact `gelu` is supported",
            raw.hidden_act
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
        let without_types = key == "type_vocab_size" && raw.model_type == "new";
        if (value == 0 && !without_types) || value > most {
            return Err(load(format!("{key} is {value}, expected 1 to {most}")));
        }
    }
    if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
        return Err(load(format!(
            "hidden_size {} is not a multiple of num_attention_heads {}",
            raw.hidden_size, raw.num_attention_heads
        )));
    }
    if !(0.0..1.0).contains(&raw.layer_norm_eps) {
        return Err(load(format!("layer_norm_eps is {}, expected 0 to 1", raw.layer_norm_eps)));
    }
    Ok(EncoderConfig {
        form: form(raw, load, refuse)?,
        vocabulary: raw.vocab_size,
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads: raw.num_attention_heads,
        intermediate: raw.intermediate_size,
        types: raw.type_vocab_size,
        norm_eps: raw.layer_norm_eps as f32,
    })
}

/// How the encoder counts positions, and what goes with it.
fn form(
    raw: &RawConfig,
    load: impl Fn(String) -> Error,
    refuse: impl Fn(String) -> Error,
) -> Result<Form, Error> {
    /// Sixteen times what a text of 131,072 tokens needs with heads of 64.
    const MAX_TURNS: usize = 1 << 26;
    let (kind, own) = match raw.model_type.as_str() {
        "bert" | "xlm-roberta" => ("absolute", raw.position_embedding_type.as_deref()),
        "new" => ("rope", raw.position_embedding_type.as_deref()),
        other => {
            return Err(refuse(format!(
                "config.json says model_type `{other}`; `bert`, `xlm-roberta` and `new` (GTE) \
                 are supported"
            )));
        }
    };
    if let Some(own) = own.filter(|own| *own != kind) {
        return Err(refuse(format!(
            "config.json says position_embedding_type `{own}`; only `{kind}` is supported for \
             model_type `{}`",
            raw.model_type
        )));
    }
    let positions = raw.max_position_embeddings;
    if raw.model_type != "new" {
        let padded = || raw.pad_token_id.unwrap_or(1).saturating_add(1);
        let first_position = if raw.model_type == "bert" { 0 } else { padded() };
        if first_position >= positions {
            return Err(load(format!("pad_token_id leaves no position of {positions}")));
        }
        return Ok(Form::Bert { positions, first_position });
    }
    if let Some(norm) = raw.layer_norm_type.as_deref().filter(|norm| *norm != "layer_norm") {
        return Err(refuse(format!(
            "config.json says layer_norm_type `{norm}`; only `layer_norm` is supported"
        )));
    }
    if raw.logn_attention_scale {
        return Err(refuse(
            "config.json says logn_attention_scale, which is not supported".to_owned(),
        ));
    }
    if !(raw.hidden_size / raw.num_attention_heads).is_multiple_of(2) {
        return Err(load("a head has an odd number of values, so no pairs that turn".to_owned()));
    }
    let stretch = match &raw.rope_scaling {
        None => 1.0,
        Some(RawRopeScaling { kind, factor, mixed_b: None }) if kind == "ntk" => *factor,
        Some(RawRopeScaling { kind, .. }) => {
            return Err(refuse(format!(
                "config.json says rope_scaling `{kind}`; only `ntk` with a factor is supported"
            )));
        }
    };
    let base = raw.rope_theta.unwrap_or(10_000.0);
    if !(1.0..=1e9).contains(&base) || !(1.0..=1e4).contains(&stretch) {
        return Err(load(format!(
            "rope_theta is {base} and its factor {stretch}, expected 1 to 1e9 and 1 to 1e4"
        )));
    }
    let turns = positions.saturating_mul(raw.hidden_size / raw.num_attention_heads / 2);
    if turns > MAX_TURNS {
        return Err(load(format!(
            "its positions turn by {turns} angles in all, expected {MAX_TURNS} at most"
        )));
    }
    Ok(Form::Gte {
        positions,
        rotary: Rotary { base, stretch },
        packed: raw.pack_qkv.unwrap_or(true),
    })
}

fn head(
    raw: &RawConfig,
    dir: &Path,
    modules: Option<Modules>,
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
            "BertForSequenceClassification" | "NewForSequenceClassification" => {
                Ok(HeadConfig::Classifier(Classifier::Bert))
            }
            "XLMRobertaForSequenceClassification" => {
                Ok(HeadConfig::Classifier(Classifier::XlmRoberta))
            }
            other => Err(refuse(format!("the architecture `{other}` is not supported"))),
        };
    }
    let m3_files = ["sparse_linear.pt", "colbert_linear.pt"];
    match m3_files.map(|file| dir.join(file).is_file()) {
        [true, true] => {
            let dense = Pooled { pooling: Pooling::First, projection: None, normalize: true };
            return Ok(HeadConfig::Vectors { dense, tokens: TokenHeads::M3 });
        }
        [true, false] => return Err(missing(dir, m3_files[1])),
        [false, true] => return Err(missing(dir, m3_files[0])),
        [false, false] => {}
    }
    let labels = raw.num_labels.or(raw.id2label.as_ref().map(HashMap::len)).unwrap_or(2);
    let tokens = match architecture {
        "NewForTokenClassification" if labels == 1 => TokenHeads::Gte,
        _ => TokenHeads::None,
    };
    let pooled = match (architecture, modules) {
        ("BertForMaskedLM", None | Some(Modules::Splade)) => return Ok(HeadConfig::Splade),
        (_, Some(Modules::Splade)) => {
            return Err(refuse(format!(
                "modules.json makes it SPLADE over `{architecture}`; `BertForMaskedLM` is \
                 supported"
            )));
        }
        (
            "BertModel"
            | "XLMRobertaModel"
            | "BertForMaskedLM"
            | "XLMRobertaForMaskedLM"
            | "NewModel"
            | "NewForMaskedLM"
            | "NewForTokenClassification"
            | "",
            Some(Modules::Dense(Some(pooled))),
        ) => pooled,
        // As the model's own script does, which is all there is where nobody wrote modules.json.
        ("NewForTokenClassification", _) => {
            Pooled { pooling: Pooling::First, projection: None, normalize: true }
        }
        ("BertModel" | "XLMRobertaModel" | "NewModel" | "", _) => {
            Pooled { pooling: Pooling::Mean, projection: None, normalize: true }
        }
        (other, _) => {
            return Err(refuse(format!(
                "the architecture `{other}` is not supported; supported are BertModel, \
                 XLMRobertaModel (with BGE-M3's heads or pooled), NewModel and \
                 NewForTokenClassification (GTE), BertForMaskedLM (SPLADE), and \
                 BertForSequenceClassification, XLMRobertaForSequenceClassification and \
                 NewForSequenceClassification with one label"
            )));
        }
    };
    if let Some(projection) = &pooled.projection
        && projection.inputs != raw.hidden_size
    {
        return Err(refuse(format!(
            "its Dense module takes {} numbers, the encoder gives {}",
            projection.inputs, raw.hidden_size
        )));
    }
    Ok(HeadConfig::Vectors { dense: pooled, tokens })
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
    let mut limit = encoder.tokens();
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

    fn vectors(pooling: Pooling, normalize: bool) -> HeadConfig {
        let dense = Pooled { pooling, projection: None, normalize };
        HeadConfig::Vectors { dense, tokens: TokenHeads::None }
    }

    #[test]
    fn a_bare_encoder_is_mean_pooled_and_normalised() {
        let folder = read(&[]).unwrap();
        assert_eq!(folder.head, vectors(Pooling::Mean, true));
        assert_eq!(folder.spec.dense_dim, Some(8));
        assert_eq!((folder.spec.max_length, folder.spec.max_length_limit), (512, 512));
    }

    #[test]
    fn modules_decide_on_pooling_and_normalisation() {
        let modules = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]"#;
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let folder = read(&[("modules.json", modules), ("1_Pooling/config.json", cls)]).unwrap();
        assert_eq!(folder.head, vectors(Pooling::First, false));

        let newer = r#"{"pooling_mode": "mean", "include_prompt": true}"#;
        let folder = read(&[("1_Pooling/config.json", newer)]).unwrap();
        assert_eq!(folder.head, vectors(Pooling::Mean, true));

        assert!(reason(&[("modules.json", modules)]).contains("1_Pooling/config.json"));
        let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        assert!(reason(&[("1_Pooling/config.json", both)]).contains("1_Pooling"));
        let max = r#"{"pooling_mode_max_tokens": true}"#;
        assert!(reason(&[("1_Pooling/config.json", max)]).contains("cls and mean"));
        let dense = r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
        assert!(reason(&[("modules.json", dense)]).contains("`Dense`"));
        let lstm = r#"[{"type": "sentence_transformers.models.LSTM", "path": "1_LSTM"}]"#;
        assert!(reason(&[("modules.json", lstm)]).contains("`LSTM`"));
        let out = r#"[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]"#;
        assert!(reason(&[("modules.json", out)]).contains("../x"));
    }

    #[test]
    fn a_layer_behind_the_pooling_gives_the_width() {
        let module = |kind: &str, path: &str| {
            format!(r#"{{"type": "sentence_transformers.models.{kind}", "path": "{path}"}}"#)
        };
        let [transformer, pooling, dense] =
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
                .map(|(kind, path)| module(kind, path));
        let list = format!("[{transformer}, {pooling}, {dense}]");
        let mean = r#"{"pooling_mode_mean_tokens": true}"#;
        let with = |config: &str| {
            read(&[
                ("modules.json", &list),
                ("1_Pooling/config.json", mean),
                ("2_Dense/config.json", config),
                ("2_Dense/model.safetensors", ""),
            ])
        };
        let identity = r#"{"in_features": 8, "out_features": 20, "bias": true,
            "activation_function": "torch.nn.modules.linear.Identity"}"#;
        assert_eq!(with(identity).unwrap().spec.dense_dim, Some(20));
        let narrow = with(&identity.replace("\"in_features\": 8", "\"in_features\": 9"));
        assert!(narrow.unwrap_err().to_string().contains("takes 9"));
        let relu = with(&identity.replace("Identity", "ReLU")).unwrap_err().to_string();
        assert!(relu.contains("`ReLU`"), "{relu}");
    }

    #[test]
    fn gte_says_how_positions_turn_and_what_is_not_understood_of_it_is_refused() {
        let config = |more: &str| {
            format!(
                r#"{{"architectures": ["NewForTokenClassification"], "model_type": "new",
                "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 16, "type_vocab_size": 1,
                "max_position_embeddings": 8192, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
                "rope_theta": 20000, "id2label": {{"0": "LABEL_0"}}, {more}}}"#
            )
        };
        let with = |more: &str| read(&[("config.json", &config(more))]);
        let folder = with(r#""rope_scaling": {"factor": 8.0, "type": "ntk"}"#).unwrap();
        let rotary = Rotary { base: 20_000.0, stretch: 8.0 };
        let form = Form::Gte { positions: 8192, rotary, packed: true };
        assert_eq!(folder.encoder.form, form);
        let spec = folder.spec;
        assert_eq!((spec.dense_dim, spec.sparse_dim, spec.colbert), (Some(8), Some(30), false));
        assert_eq!((spec.max_length, spec.max_length_limit), (512, 8192));
        for (more, reason) in [
            (r#""rope_scaling": {"factor": 8.0, "type": "yarn"}"#, "yarn"),
            (r#""rope_scaling": {"factor": 8.0, "type": "ntk", "mixed_b": 0.6}"#, "ntk"),
            (r#""rope_scaling": {"factor": 0.0, "type": "ntk"}"#, "factor 0"),
            (r#""layer_norm_type": "rms_norm""#, "rms_norm"),
            (r#""logn_attention_scale": true"#, "logn_attention_scale"),
            (r#""position_embedding_type": "absolute""#, "absolute"),
        ] {
            let error = with(more).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
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
