//! The words of the engine's public interface: what is asked and what comes back.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// How a [`crate::ModelStore`] finds and runs models.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directories that hold model folders, searched in this order: `DIR/<org>/<name>` or
    /// `DIR/<name>`, each in Hugging Face layout.
    pub dirs: Vec<PathBuf>,
    /// Threads of the forward pass; 0 takes one per core.
    pub threads: usize,
    /// Where models run.
    pub device: Device,
    /// The numbers in which models run.
    pub precision: Precision,
    /// Most tokens in one forward pass (a single longer text still runs, alone); 0 lets the
    /// engine choose by model size so that a query never waits long behind a batch of inserts.
    pub max_batch_tokens: usize,
    /// Most bytes of text accepted and not answered yet; beyond it calls get
    /// [`crate::Error::Overloaded`].
    pub queue_bytes: usize,
    /// Bytes of recent questions with their vectors that each model keeps, so that a question
    /// that is asked again costs no pass; 0 keeps none.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dirs: Vec::new(),
            threads: 0,
            device: Device::Auto,
            precision: Precision::Auto,
            max_batch_tokens: 0,
            queue_bytes: 64 << 20,
            cache_bytes: 16 << 20,
        }
    }
}

/// Where the layers of a model run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// The first GPU, if the binary was built for GPUs and there is one that can run the model;
    /// otherwise the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl std::str::FromStr for Device {
    type Err = String;

    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().map(Self::Cuda);
        let device = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        device.ok_or_else(|| format!("unknown device `{text}`, expected auto, cpu or cuda:N"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// The numbers in which the layers of an encoder run. Softmax, norms, pooling and heads are
/// always in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    /// The engine chooses: f32 on a CPU, f16 on a GPU.
    #[default]
    Auto,
    /// 32 bits, as the reference libraries.
    F32,
    /// 16 bits with sums in 32; on a GPU only.
    F16,
    /// Weights and activations of eight bits; on a CPU only: faster and smaller, and not quite as exact.
    Int8,
}

impl Precision {
    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// Which vectors a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Outputs {
    /// One vector per text.
    pub dense: bool,
    /// Learned term weights per text.
    pub sparse: bool,
    /// One vector per token (late interaction).
    pub colbert: bool,
}

impl Outputs {
    /// Only the dense vector.
    pub const DENSE: Self = Self { dense: true, sparse: false, colbert: false };
    /// Only the sparse vector.
    pub const SPARSE: Self = Self { dense: false, sparse: true, colbert: false };

    /// What either asks for.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            dense: self.dense || other.dense,
            sparse: self.sparse || other.sparse,
            colbert: self.colbert || other.colbert,
        }
    }

    /// Whether everything asked for here is in `other`.
    pub fn is_subset_of(self, other: Self) -> bool {
        self.union(other) == other
    }

    /// Whether nothing is asked for.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What the texts are for. Models that were trained with prompts (E5's `query: ` and
/// `passage: `) get the prompt that belongs to it; others ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Mode {
    /// Documents to be stored. Waits behind searches.
    #[default]
    Insert,
    /// Documents that a search waits for.
    Rerank,
    /// Questions. Served before inserts.
    Search,
}

/// Texts to embed.
#[derive(Debug, Clone, Default)]
pub struct EmbedRequest {
    /// The texts; one result each, in this order.
    pub texts: Vec<String>,
    /// The vectors wanted.
    pub outputs: Outputs,
    /// What the texts are for.
    pub mode: Mode,
    /// Most tokens of a text, specials included; longer texts are cut. `None` takes the model's
    /// own length ([`ModelSpec::max_length`]); at most [`ModelSpec::max_length_limit`].
    pub max_length: Option<usize>,
    /// Put before every text, instead of the prompt the model declares for `mode`.
    pub prompt: Option<String>,
    /// Width of the dense vectors: their first numbers, normalised again, which is what models
    /// trained for it (Matryoshka) allow. `None` takes all.
    pub dim: Option<usize>,
    /// Refuses a text that is longer than the length instead of cutting it.
    pub refuse_longer: bool,
    /// Leaves the dense vectors as long as they come, also where the model normalises them.
    pub unnormalized: bool,
}

impl EmbedRequest {
    /// A request with the model's own length and prompts.
    pub fn new(texts: Vec<String>, outputs: Outputs, mode: Mode) -> Self {
        Self { texts, outputs, mode, ..Self::default() }
    }
}

/// The vectors of one call; each part is there if it was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// `texts × dim`, row-major, L2-normalised where the model says so.
    pub dense: Option<Vec<f32>>,
    /// Width of a dense row (0 if not asked for).
    pub dim: usize,
    /// Width of a token vector (0 if not asked for).
    pub colbert_dim: usize,
    /// Per text: token id and weight, ascending ids, weights > 0.
    pub sparse: Option<Vec<Vec<(u32, f32)>>>,
    /// Per text: `(tokens - 1) × colbert_dim`, row-major, each row L2-normalised.
    pub colbert: Option<Vec<Vec<f32>>>,
    /// Tokens that were run for this call, specials included.
    pub tokens: usize,
}

/// One query and the documents to score against it.
#[derive(Debug, Clone, Default)]
pub struct RerankRequest {
    /// The query.
    pub query: String,
    /// The documents; one score each, in this order.
    pub docs: Vec<String>,
    /// Scores through a sigmoid (0 to 1) instead of the model's raw logits.
    pub normalize: bool,
    /// Most tokens of a query-document pair, specials included; `None` takes the model's own.
    pub max_length: Option<usize>,
    /// Refuses a pair that is longer than the length instead of cutting it.
    pub refuse_longer: bool,
}

/// What a model folder holds, read from its small files only.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `<org>/<name>` (or `<name>`) as the folder spells it.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// The architecture that `config.json` names, e.g. `XLMRobertaModel`.
    pub architecture: String,
    /// Width of the dense vector, if the model gives one.
    pub dense_dim: Option<usize>,
    /// Whether its dense vectors are one long.
    pub normalized: bool,
    /// Bound of the sparse ids (vocabulary size), if the model gives sparse vectors.
    pub sparse_dim: Option<u32>,
    /// Whether the model gives one vector per token.
    pub colbert: bool,
    /// Whether the model scores pairs (cross-encoder).
    pub reranker: bool,
    /// Tokens of a text by default, specials included.
    pub max_length: usize,
    /// Most tokens a request may ask for.
    pub max_length_limit: usize,
    /// Put before a text that is stored.
    pub insert_prompt: String,
    /// Put before a text that is searched for.
    pub search_prompt: String,
}

impl ModelSpec {
    /// Everything the model can give.
    pub fn outputs(&self) -> Outputs {
        Outputs {
            dense: self.dense_dim.is_some(),
            sparse: self.sparse_dim.is_some(),
            colbert: self.colbert,
        }
    }
}

/// A model that is in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// What it is.
    pub spec: ModelSpec,
    /// Where it runs.
    pub device: Device,
    /// The numbers it runs in.
    pub precision: Precision,
    /// Bytes of its weights in memory.
    pub bytes: usize,
    /// Tokens run since it was loaded.
    pub tokens: u64,
    /// How long batches of it ran since it was loaded.
    pub run_time: Duration,
    /// Questions answered without a run since it was loaded.
    pub cache_hits: u64,
}

/// How busy a [`crate::ModelStore`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Bytes of text accepted and not answered yet.
    pub queued_bytes: usize,
    /// Calls that wait for the next batches; those in the batch that runs are not counted.
    pub queued_calls: usize,
    /// Most tokens of the batch that ran last.
    pub batch_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert!(text.parse::<Device>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }
}
