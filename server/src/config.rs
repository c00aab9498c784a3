//! The settings of a node: where they come from, and which wins.
//!
//! `deploy/elanus.toml` is built in and is the list of all settings with their defaults. A file,
//! the environment and the flags are laid over it key by key, in that order; the result is read
//! once into a [`Config`]. A setting that the node does not honour does not exist.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use elanus_remote::{Hub, Patience, Secret};
use serde::Deserialize;
use toml::{Table, Value};

use crate::limits::Limits;

/// All settings with their defaults, as text.
pub const DEFAULTS: &str = include_str!("../../deploy/elanus.toml");

/// The table whose keys are the operator's own names.
const CREDENTIALS: &str = "credentials.";

/// The hub that is asked if nobody names another.
const HUB: &str = "https://huggingface.co";

/// Attempts for one file of a hub, after the last one that brought something.
const HUB_ATTEMPTS: u32 = 5;

/// What environment variables of settings begin with.
const ENV_PREFIX: &str = "ELANUS_";

/// Every setting of a node, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory that holds everything.
    pub data_dir: PathBuf,
    /// The address of the gRPC port.
    pub listen: SocketAddr,
    /// The address of the ops port.
    pub ops_listen: SocketAddr,
    /// Whether the node may be reached without authorization from beyond this machine.
    pub auth: Auth,
    /// Folders with models; empty means `data_dir/models`.
    pub model_dirs: Vec<PathBuf>,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Seconds for which deleted and replaced rows can be seen by iterators that began before.
    pub retention_seconds: u32,
    /// Bytes of memory the node may use; 0 means what its cgroup or the machine has.
    pub memory_limit_bytes: usize,
    /// Bytes of the disk kept back for what frees space; 0 means 256 MiB, or a twentieth of a
    /// smaller disk.
    pub disk_reserve_bytes: u64,
    /// Threads that search; 0 means one per core.
    pub search_threads: usize,
    /// Threads that build indexes and segments; 0 means half of the cores.
    pub build_threads: usize,
    /// What is logged, and how.
    pub log: Log,
    /// Sizes and counts on the gRPC port.
    pub grpc: Grpc,
    /// How models run.
    pub models: Models,
    /// Who may be called for vectors and scores.
    pub providers: Providers,
    /// The operator's keys by the names that functions use.
    #[serde(default)]
    pub credentials: BTreeMap<String, Secret>,
    /// Bounds on requests and collections.
    pub limits: Limits,
    /// What others agreed on calling so, taken from the environment as it is.
    #[serde(skip)]
    pub common: Common,
}

/// Variables that are not ours, and that tools around models share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Common {
    /// `HF_ENDPOINT`: the address of a hub.
    pub hub: Option<String>,
    /// `HF_TOKEN`: the right to read from it.
    pub hub_token: Option<Secret>,
    /// `MILVUS_OPENAI_API_KEY` and the like: keys by provider, in lower case.
    pub provider_keys: BTreeMap<String, Secret>,
    /// `MILVUS_AZURE_OPENAI_RESOURCE_NAME`.
    pub azure_resource: Option<String>,
}

impl Common {
    fn lay(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        match name {
            "HF_ENDPOINT" => self.hub = Some(text.to_owned()),
            "HF_TOKEN" => self.hub_token = Some(Secret::new(text)),
            "MILVUS_AZURE_OPENAI_RESOURCE_NAME" => self.azure_resource = Some(text.to_owned()),
            _ => {
                // The second is how Milvus called them before; the first wins.
                for (prefix, wins) in [("MILVUS_", true), ("MILVUSAI_", false)] {
                    let provider = name.strip_prefix(prefix);
                    if let Some(provider) = provider.and_then(|name| name.strip_suffix("_API_KEY"))
                    {
                        let provider = provider.to_ascii_lowercase();
                        if wins || !self.provider_keys.contains_key(&provider) {
                            self.provider_keys.insert(provider, Secret::new(text));
                        }
                    }
                }
            }
        }
    }
}

/// Who may use the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Auth {
    /// Nobody is asked, and only this machine can reach the node.
    #[serde(rename = "")]
    LoopbackOnly,
    /// Nobody is asked, on whatever address.
    #[serde(rename = "off")]
    Off,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After `fdatasync`.
    Sync,
    /// After `write`.
    Async,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A level or a list of directives.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object.
    Json,
}

/// Sizes and counts on the gRPC port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    /// Bytes of the largest request.
    pub max_receive_bytes: usize,
    /// Bytes of the largest answer.
    pub max_send_bytes: usize,
    /// Connections open at once.
    pub max_connections: usize,
}

/// Who may be called for vectors and scores.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Providers {
    /// Addresses that functions may name beside the providers' own.
    pub allow: Vec<String>,
    /// Calls on their way at once.
    pub concurrency: usize,
    /// Seconds of one call with its repetitions.
    pub timeout_seconds: u32,
}

/// How models run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Threads of one inference; 0 means one per core.
    pub threads: usize,
    /// Where they run.
    pub device: elanus_embed::Device,
    /// The numbers in which they run.
    pub precision: Precision,
    /// Tokens in one forward pass; 0 lets the engine choose.
    pub max_batch_tokens: usize,
    /// Bytes of text that may wait for a model.
    pub queue_bytes: usize,
    /// Bytes of recent questions with their vectors; 0 keeps none.
    pub cache_bytes: usize,
    /// Models to fetch where they are missing: `ORG/NAME` or `ORG/NAME@REVISION`.
    pub download: Vec<String>,
    /// The hub's address; empty takes that of the environment or Hugging Face's.
    pub hub: String,
}

/// The numbers in which models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The engine chooses.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, on a GPU.
    F16,
    /// Eight bits.
    Int8,
}

impl From<Precision> for elanus_embed::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Auto => Self::Auto,
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Int8 => Self::Int8,
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A key that no setting has.
    #[error("unknown setting `{key}` in {origin}{hint}")]
    UnknownKey {
        /// The key with its table.
        key: String,
        /// Where it was given.
        origin: String,
        /// The nearest known key, if one is near.
        hint: String,
    },
    /// A value of another type, or out of range.
    #[error("setting `{key}` from {origin}: {message}")]
    Value {
        /// The key with its table.
        key: String,
        /// Where it was given.
        origin: String,
        /// What was expected and what came.
        message: String,
    },
    /// An address beyond this machine without a word about authorization.
    #[error(
        "`{key}` is {address}, which other machines can reach, and authorization is not \
         available yet: listen on 127.0.0.1, or say `--auth off` to serve everyone who can reach it"
    )]
    Exposed {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
}

/// The layers of settings that lie over the defaults.
#[derive(Debug, Default)]
pub struct Sources {
    /// A settings file.
    pub file: Option<PathBuf>,
    /// The environment of the process.
    pub environment: Vec<(String, String)>,
    /// Values given as flags: key with its table, value as in the file.
    pub flags: Vec<(String, Value)>,
}

impl Config {
    /// Lays file, environment and flags over the defaults and checks the outcome.
    ///
    /// # Errors
    /// Unknown keys, values of a wrong type, and addresses that would expose the node.
    pub fn load(sources: Sources) -> Result<Self, Error> {
        let mut settings = Settings::defaults();
        if let Some(path) = &sources.file {
            settings.lay_file(path)?;
        }
        let mut common = Common::default();
        for (name, text) in sources.environment {
            common.lay(&name, &text);
            settings.lay_variable(&name, &text)?;
        }
        for (key, value) in sources.flags {
            settings.lay(&key, value, "the command line")?;
        }
        let mut config = settings.read()?;
        config.common = common;
        Ok(config)
    }

    /// The hub to fetch models from.
    ///
    /// # Errors
    /// When its address is none.
    pub fn hub(&self) -> Result<Hub, elanus_remote::Error> {
        let own = Some(self.models.hub.as_str()).filter(|hub| !hub.is_empty());
        let endpoint = own.or(self.common.hub.as_deref()).unwrap_or(HUB);
        let patience = Patience { attempts: HUB_ATTEMPTS, ..Patience::default() };
        Hub::new(endpoint, self.common.hub_token.clone(), patience)
    }

    /// What providers are called with.
    pub fn provider_options(&self) -> elanus_remote::ProviderOptions {
        let answer = Duration::from_secs(self.providers.timeout_seconds.into());
        elanus_remote::ProviderOptions {
            keys: self.credentials.clone(),
            default_keys: self.common.provider_keys.clone(),
            allow: self.providers.allow.clone(),
            azure_resource: self.common.azure_resource.clone(),
            concurrency: self.providers.concurrency,
            patience: Patience { answer, ..Patience::default() },
        }
    }

    /// The folders in which models are looked for, in order.
    pub fn model_dirs(&self) -> Vec<PathBuf> {
        if self.model_dirs.is_empty() {
            vec![self.data_dir.join("models")]
        } else {
            self.model_dirs.clone()
        }
    }

    /// What the storage engine is opened with.
    pub fn engine_options(&self) -> elanus_storage::Options {
        elanus_storage::Options {
            dir: self.data_dir.clone(),
            durability: match self.durability {
                Durability::Sync => elanus_storage::Durability::Sync,
                Durability::Async => elanus_storage::Durability::Async,
            },
            retention_ms: u64::from(self.retention_seconds) * 1_000,
            memory_limit_bytes: self.memory_limit_bytes,
            disk_reserve_bytes: self.disk_reserve_bytes,
            search_threads: threads_or(self.search_threads, cores()),
            build_threads: threads_or(self.build_threads, cores().div_ceil(2)),
            ..Default::default()
        }
    }

    /// What the model store is opened with.
    pub fn model_options(&self) -> elanus_embed::Options {
        elanus_embed::Options {
            dirs: self.model_dirs(),
            threads: self.models.threads,
            device: self.models.device,
            precision: self.models.precision.into(),
            max_batch_tokens: self.models.max_batch_tokens,
            queue_bytes: self.models.queue_bytes,
            cache_bytes: self.models.cache_bytes,
        }
    }

    fn check(self) -> Result<Self, Error> {
        for (key, address) in [("listen", self.listen), ("ops_listen", self.ops_listen)] {
            if self.auth == Auth::LoopbackOnly && !address.ip().is_loopback() {
                return Err(Error::Exposed { key, address });
            }
        }
        let positive = [
            ("retention_seconds", self.retention_seconds as usize),
            ("grpc.max_receive_bytes", self.grpc.max_receive_bytes),
            ("grpc.max_send_bytes", self.grpc.max_send_bytes),
            ("grpc.max_connections", self.grpc.max_connections),
            ("models.queue_bytes", self.models.queue_bytes),
            ("providers.concurrency", self.providers.concurrency),
            ("providers.timeout_seconds", self.providers.timeout_seconds as usize),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Value {
                key: key.to_owned(),
                origin: "the settings".to_owned(),
                message: "expected a number above 0, got 0".to_owned(),
            });
        }
        Ok(self)
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn threads_or(setting: usize, default: usize) -> usize {
    if setting == 0 { default } else { setting }
}

/// The settings while layers are put on them: dotted key to value and where it came from.
struct Settings {
    values: BTreeMap<String, (Value, String)>,
}

impl Settings {
    fn defaults() -> Self {
        let table: Table = toml::from_str(DEFAULTS).expect("a test parses the built-in defaults");
        let values = flatten(&table)
            .into_iter()
            .map(|(key, value)| (key, (value, "the defaults".to_owned())))
            .collect();
        Self { values }
    }

    fn lay_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let table: Table = toml::from_str(&text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source })?;
        for (key, value) in flatten(&table) {
            self.lay(&key, value, &path.display().to_string())?;
        }
        Ok(())
    }

    /// A variable that names no setting is not an error, unlike a key in a file: an orchestrator
    /// puts its own `ELANUS_…` variables into the environment of a service of that name.
    fn lay_variable(&mut self, name: &str, text: &str) -> Result<(), Error> {
        if let Some(credential) = name.strip_prefix(&variable(CREDENTIALS)) {
            let key = format!("{CREDENTIALS}{}", credential.to_ascii_lowercase());
            let origin = format!("the environment variable {name}");
            return self.lay(&key, Value::String(text.to_owned()), &origin);
        }
        let Some(key) = self.values.keys().find(|key| variable(key) == name).cloned() else {
            return Ok(());
        };
        let origin = format!("the environment variable {name}");
        let (default, _) = &self.values[&key];
        let value = parse(&key, text, default).map_err(|message| Error::Value {
            key: key.clone(),
            origin: origin.clone(),
            message,
        })?;
        self.lay(&key, value, &origin)
    }

    fn lay(&mut self, key: &str, value: Value, origin: &str) -> Result<(), Error> {
        if key.starts_with(CREDENTIALS) {
            if !value.is_str() {
                // Not shown, whatever it is.
                let message = format!("expected a text, got a value of type {}", value.type_str());
                let (key, origin) = (key.to_owned(), origin.to_owned());
                return Err(Error::Value { key, origin, message });
            }
            self.values.insert(key.to_owned(), (value, origin.to_owned()));
            return Ok(());
        }
        let Some(slot) = self.values.get_mut(key) else {
            return Err(self.unknown(key, origin));
        };
        if slot.0.type_str() != value.type_str() {
            return Err(Error::Value {
                key: key.to_owned(),
                origin: origin.to_owned(),
                message: format!(
                    "expected a value of type {}, got the {} {}",
                    slot.0.type_str(),
                    value.type_str(),
                    shown(&value)
                ),
            });
        }
        *slot = (value, origin.to_owned());
        Ok(())
    }

    fn unknown(&self, key: &str, origin: &str) -> Error {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let near = self.values.keys().find(|known| last(known) == last(key));
        Error::UnknownKey {
            key: key.to_owned(),
            origin: origin.to_owned(),
            hint: near.map(|known| format!(", did you mean `{known}`?")).unwrap_or_default(),
        }
    }

    /// Reads setting by setting, so that an error names the one it is about.
    fn read(self) -> Result<Config, Error> {
        let mut table = Table::new();
        for (key, (value, _)) in &self.values {
            insert(&mut table, key, value.clone());
        }
        match Config::deserialize(Value::Table(table)) {
            Ok(config) => config.check(),
            Err(error) => Err(self.blame(error.message())),
        }
    }

    /// Finds the setting an error is about: the one with which the defaults fail alone.
    fn blame(&self, message: &str) -> Error {
        for (key, (value, origin)) in &self.values {
            let mut table: Table =
                toml::from_str(DEFAULTS).expect("a test parses the built-in defaults");
            insert(&mut table, key, value.clone());
            if let Err(error) = Config::deserialize(Value::Table(table)) {
                return Error::Value {
                    key: key.clone(),
                    origin: origin.clone(),
                    message: format!("{} (got {})", error.message(), shown(value)),
                };
            }
        }
        Error::Value {
            key: "all".to_owned(),
            origin: "the settings".to_owned(),
            message: message.to_owned(),
        }
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// A text from the environment as a value of the same type as the default.
fn parse(key: &str, text: &str, default: &Value) -> Result<Value, String> {
    let wrong = |expected: &str| format!("expected {expected}, got `{text}`");
    match default {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Integer(_) => {
            let digits = text.replace('_', "");
            digits.parse().map(Value::Integer).map_err(|_| wrong("a whole number"))
        }
        Value::Float(_) => text.parse().map(Value::Float).map_err(|_| wrong("a number")),
        Value::Boolean(_) => {
            text.parse().map(Value::Boolean).map_err(|_| wrong("`true` or `false`"))
        }
        // Folders are separated as in PATH, everything else by commas.
        Value::Array(_) if key.ends_with("_dirs") => Ok(Value::Array(
            std::env::split_paths(text)
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| Value::String(path.to_string_lossy().into_owned()))
                .collect(),
        )),
        Value::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
        }
        Value::Datetime(_) | Value::Table(_) => Err(wrong("no such type of setting")),
    }
}

/// The values of a table with dotted keys; tables are one level deep.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                flat.extend(
                    inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone())),
                );
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => flat.push((key.clone(), value.clone())),
        }
    }
    flat
}

/// A value as a person would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{text}\""),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(date) => date.to_string(),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        Value::Table(_) => "a table".to_owned(),
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((outer, inner)) => {
            let entry = table.entry(outer).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(nested) = entry {
                nested.insert(inner.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        file: Option<&str>,
        environment: &[(&str, &str)],
        flags: &[(&str, Value)],
    ) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = file.map(|text| {
            let path = dir.path().join("elanus.toml");
            std::fs::write(&path, text).unwrap();
            path
        });
        Config::load(Sources {
            file,
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            flags: flags.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        })
    }

    #[test]
    fn the_built_in_file_is_the_defaults() {
        let config = load(None, &[], &[]).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.listen.to_string(), "127.0.0.1:19530");
        assert_eq!(config.ops_listen.to_string(), "127.0.0.1:9091");
        assert_eq!(config.data_dir, PathBuf::from("./elanus-data"));
        assert_eq!(config.model_dirs(), [PathBuf::from("./elanus-data/models")]);
        assert_eq!(config.durability, Durability::Sync);
        let storage = elanus_storage::Options::default();
        assert_eq!(config.engine_options().retention_ms, storage.retention_ms);
        assert_eq!(config.auth, Auth::LoopbackOnly);
        assert_eq!(load(Some(DEFAULTS), &[], &[]).unwrap(), config);
    }

    #[test]
    fn a_flag_wins_over_the_environment_that_over_a_file_that_over_the_defaults() {
        let file = "listen = \"127.0.0.1:1\"\ndata_dir = \"file\"\n[limits]\ntop_k = 3\n";
        let environment = [("ELANUS_LISTEN", "127.0.0.1:2"), ("ELANUS_DATA_DIR", "environment")];
        let flags = [("listen", Value::String("127.0.0.1:4".to_owned()))];
        let config = load(Some(file), &environment, &flags).unwrap();
        assert_eq!(config.listen.port(), 4);
        assert_eq!(config.data_dir, PathBuf::from("environment"));
        assert_eq!(config.limits.top_k, 3);
        assert_eq!(config.ops_listen.port(), 9091);
    }

    #[test]
    fn the_environment_sets_numbers_and_lists() {
        let config = load(
            None,
            &[
                ("ELANUS_LIMITS_TOP_K", "20_000"),
                ("ELANUS_MODEL_DIRS", "/a:/b"),
                ("ELANUS_MODELS_DOWNLOAD", "a/b@1, c/d"),
                ("HF_TOKEN", "hf_secret"),
                ("HF_ENDPOINT", "https://mirror.example"),
                ("ELANUS_PORT", "tcp://x"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(config.limits.top_k, 20_000);
        assert_eq!(config.model_dirs(), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.models.download, ["a/b@1", "c/d"]);
        assert_eq!(config.hub().unwrap().endpoint(), "https://mirror.example");
        assert!(!format!("{config:?}").contains("hf_secret"));
    }

    #[test]
    fn keys_have_names_of_the_operators_own_and_are_not_shown() {
        let environment = [
            ("ELANUS_CREDENTIALS_OTHER", "sk-2"),
            ("MILVUS_OPENAI_API_KEY", "sk-3"),
            ("MILVUSAI_OPENAI_API_KEY", "sk-4"),
            ("MILVUSAI_COHERE_API_KEY", "sk-5"),
            ("ELANUS_PROVIDERS_ALLOW", "http://a:1, https://b"),
        ];
        let config = load(Some("[credentials]\nmine = \"sk-1\"\n"), &environment, &[]).unwrap();
        let options = config.provider_options();
        assert_eq!(options.keys["mine"], Secret::new("sk-1"));
        assert_eq!(options.keys["other"], Secret::new("sk-2"));
        assert_eq!(options.default_keys["openai"], Secret::new("sk-3"));
        assert_eq!(options.default_keys["cohere"], Secret::new("sk-5"));
        assert_eq!(options.allow, ["http://a:1", "https://b"]);
        assert!(!format!("{config:?}").contains("sk-"));
        let text = load(Some("[credentials]\nmine = 42717\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("credentials.mine") && !text.contains("42717"), "{text}");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = load(Some("[limits]\ntop_j = 3\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`limits.top_j`"), "{text}");
        let text = load(Some("top_k = 3\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("did you mean `limits.top_k`?"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_the_key_and_its_origin() {
        let text = load(None, &[("ELANUS_LISTEN", "nowhere")], &[]).unwrap_err().to_string();
        assert!(text.contains("`listen`") && text.contains("ELANUS_LISTEN"), "{text}");
        let text = load(Some("durability = \"maybe\"\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`durability`") && text.contains("maybe"), "{text}");
        let text = load(Some("listen = 3\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("expected a value of type string"), "{text}");
        let text = load(Some("retention_seconds = 0\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`retention_seconds`") && text.contains("above 0"), "{text}");
        let text = load(Some("[limits]\ntop_k = -3\n"), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`limits.top_k`"), "{text}");
    }

    #[test]
    fn an_address_beyond_this_machine_needs_auth_off() {
        let open = ("listen", Value::String("0.0.0.0:19530".to_owned()));
        let text = load(None, &[], std::slice::from_ref(&open)).unwrap_err().to_string();
        assert!(text.contains("--auth off"), "{text}");
        let config = load(None, &[("ELANUS_AUTH", "off")], &[open]).unwrap();
        assert_eq!(config.auth, Auth::Off);
        let ops = ("ops_listen", Value::String("[::]:9091".to_owned()));
        assert!(load(None, &[], &[ops]).is_err());
    }
}
