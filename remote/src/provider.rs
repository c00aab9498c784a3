//! Providers of embeddings and of re-ranking, with the parameters that Milvus gives its functions.
//!
//! [`Embedding`] and [`Rerank`] are what a function declares, read and checked; no network, no keys.
//! [`Providers`] has the keys and runs them. Which providers there are, what they are called with and
//! what they answer stands in one `match` each.
//!
//! Parameters come from clients, who are not trusted: an address among them is used only if it is the
//! provider's own or the operator allowed it ([`Options::allow`]), and the key that belongs to a
//! provider is sent to that provider's own address only. Another address gets a key only where the
//! function names one of the operator's ([`Options::keys`]) by `credential`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::http::{Client, origin, parse, refusal, shown, whole};
use crate::{Error, Patience, Secret};

/// Calls of one request on their way at once.
const PARALLEL: usize = 4;

/// Bytes of an answer that are neither numbers nor scores.
const OVERHEAD_BYTES: usize = 1 << 20;

/// The most bytes that a number takes in JSON, with what stands around it.
const NUMBER_BYTES: usize = 32;

/// What the texts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be stored.
    Insert,
    /// To be searched for.
    Search,
}

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    OpenAi,
    AzureOpenAi,
    Cohere,
    VoyageAi,
    SiliconFlow,
    DashScope,
    Tei,
    Vllm,
}

impl Service {
    const EMBEDDING: [(&'static str, Self); 8] = [
        ("openai", Self::OpenAi),
        ("azure_openai", Self::AzureOpenAi),
        ("cohere", Self::Cohere),
        ("voyageai", Self::VoyageAi),
        ("siliconflow", Self::SiliconFlow),
        ("dashscope", Self::DashScope),
        // Milvus' own name for DashScope.
        ("ali", Self::DashScope),
        ("tei", Self::Tei),
    ];

    const RERANK: [(&'static str, Self); 5] = [
        ("cohere", Self::Cohere),
        ("voyageai", Self::VoyageAi),
        ("siliconflow", Self::SiliconFlow),
        ("tei", Self::Tei),
        ("vllm", Self::Vllm),
    ];

    /// What its key is called, in [`Options::keys`].
    fn key_name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::AzureOpenAi => "azure_openai",
            Self::Cohere => "cohere",
            Self::VoyageAi => "voyageai",
            Self::SiliconFlow => "siliconflow",
            Self::DashScope => "dashscope",
            Self::Tei => "tei",
            Self::Vllm => "vllm",
        }
    }

    /// Its own address for embeddings.
    fn embedding_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1/embeddings"),
            Self::Cohere => Some("https://api.cohere.com/v2/embed"),
            Self::VoyageAi => Some("https://api.voyageai.com/v1/embeddings"),
            Self::SiliconFlow => Some("https://api.siliconflow.cn/v1/embeddings"),
            Self::DashScope => Some(
                "https://dashscope.aliyuncs.com/api/v1/services/embeddings/text-embedding/\
                 text-embedding",
            ),
            Self::AzureOpenAi | Self::Tei | Self::Vllm => None,
        }
    }

    /// Its own address for re-ranking.
    fn rerank_url(self) -> Option<&'static str> {
        match self {
            Self::Cohere => Some("https://api.cohere.com/v2/rerank"),
            Self::VoyageAi => Some("https://api.voyageai.com/v1/rerank"),
            Self::SiliconFlow => Some("https://api.siliconflow.cn/v1/rerank"),
            Self::OpenAi | Self::AzureOpenAi | Self::DashScope | Self::Tei | Self::Vllm => None,
        }
    }

    /// Texts in one call, as Milvus sends them.
    fn batch(self, model: &str) -> usize {
        match self {
            Self::OpenAi | Self::AzureOpenAi | Self::VoyageAi => 128,
            Self::Cohere => 96,
            Self::DashScope if model == "text-embedding-v3" => 6,
            Self::DashScope => 25,
            Self::SiliconFlow | Self::Tei | Self::Vllm => 32,
        }
    }
}

/// A function's parameters by their names in lower case.
struct Params<'a> {
    function: &'static str,
    pairs: Vec<(String, &'a str)>,
}

impl<'a> Params<'a> {
    fn new(
        function: &'static str,
        pairs: &'a [(String, String)],
        known: &[&[&str]],
    ) -> Result<Self, Error> {
        let pairs: Vec<(String, &str)> =
            pairs.iter().map(|(key, value)| (key.to_ascii_lowercase(), value.as_str())).collect();
        let known: Vec<&str> = known.concat();
        if let Some((key, _)) = pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            return Err(Error::Invalid(format!(
                "unknown parameter {key} for this provider of {function}, it takes [{}]",
                known.join(", ")
            )));
        }
        Ok(Self { function, pairs })
    }

    /// The value of `key`; an empty one counts as none.
    fn text(&self, key: &str) -> Option<&'a str> {
        let found = self.pairs.iter().find(|(name, _)| name == key)?.1.trim();
        (!found.is_empty()).then_some(found)
    }

    fn number(&self, key: &str) -> Result<Option<i64>, Error> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Error::Invalid(format!("[{key} param's value: {text}] is not a valid number"))
            })
        };
        self.text(key).map(parse).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        let parse = |text: &str| match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(Error::Invalid(format!("[{key} param's value: {text}] is not true or false"))),
        };
        self.text(key).map(parse).transpose()
    }

    fn one_of(&self, key: &str, allowed: &[&str]) -> Result<Option<&'a str>, Error> {
        let check = |text: &'a str| match allowed.contains(&text) {
            true => Ok(text),
            false => Err(Error::Invalid(format!(
                "[{key} param's value: {text}] is not valid, it takes [{}]",
                allowed.join(", ")
            ))),
        };
        self.text(key).map(check).transpose()
    }

    fn model(&self, optional: bool) -> Result<String, Error> {
        match self.text("model_name") {
            Some(name) => Ok(name.to_owned()),
            None if optional => Ok(String::new()),
            None => {
                Err(Error::Invalid(format!("the provider of {} needs a model_name", self.function)))
            }
        }
    }

    fn batch(&self, default: usize) -> Result<usize, Error> {
        /// What a provider would have to be asked for deliberately.
        const MOST: i64 = 4_096;
        match self.number("max_client_batch_size")? {
            None => Ok(default),
            Some(size @ 1..=MOST) => usize::try_from(size)
                .map_err(|_| Error::Invalid("max_client_batch_size is out of range".to_owned())),
            Some(size) => Err(Error::Invalid(format!(
                "max_client_batch_size must be in [1, {MOST}], got {size}"
            ))),
        }
    }

    /// The address it names: `url` as it is, `endpoint` with the path of the service.
    fn address(&self, path: &str) -> Result<Option<Uri>, Error> {
        if let Some(url) = self.text("url") {
            return parse(url).map(Some);
        }
        let Some(endpoint) = self.text("endpoint") else { return Ok(None) };
        parse(endpoint)?;
        parse(&format!("{}{path}", endpoint.trim_end_matches('/'))).map(Some)
    }
}

/// What every function with a provider has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    service: Service,
    model: String,
    /// The address that the function names.
    address: Option<Uri>,
    /// The operator's key that the function names.
    credential: Option<String>,
    batch: usize,
    /// What goes into every request's body beside texts and model.
    fixed: Map<String, Value>,
}

/// A function that makes vectors by a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    target: Target,
    /// Width of the field.
    dim: usize,
    insert_prompt: String,
    search_prompt: String,
}

/// A re-ranker that asks a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerank {
    target: Target,
}

const COMMON: &[&str] = &["provider", "model_name", "credential", "max_client_batch_size"];

impl Embedding {
    /// The names of the providers.
    pub fn providers() -> impl Iterator<Item = &'static str> {
        Service::EMBEDDING.iter().map(|(name, _)| *name)
    }

    /// Reads a function's parameters for a field of `dim` dimensions; `None` for a provider that is
    /// none of [`Embedding::providers`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for parameters that are unknown, missing or out of range.
    pub fn parse(
        provider: &str,
        pairs: &[(String, String)],
        dim: usize,
    ) -> Option<Result<Self, Error>> {
        let (_, service) = Service::EMBEDDING.iter().find(|(name, _)| *name == provider)?;
        Some(Self::read(*service, pairs, dim))
    }

    fn read(service: Service, pairs: &[(String, String)], dim: usize) -> Result<Self, Error> {
        let own: &[&str] = match service {
            Service::OpenAi | Service::AzureOpenAi => &["dim", "url", "user"],
            Service::Cohere => &["dim", "url", "truncate"],
            Service::VoyageAi => &["dim", "url", "truncation"],
            Service::SiliconFlow | Service::DashScope | Service::Vllm => &["dim", "url"],
            Service::Tei => &[
                "dim",
                "endpoint",
                "ingestion_prompt",
                "search_prompt",
                "truncate",
                "truncation_direction",
            ],
        };
        let params = Params::new("embeddings", pairs, &[COMMON, own])?;
        let asked = params.number("dim")?.filter(|asked| *asked != 0);
        if let Some(asked) = asked
            && usize::try_from(asked) != Ok(dim)
        {
            return Err(Error::Invalid(format!(
                "the output field has dimension [{dim}], which does not match the dimension \
                 [{asked}] provided in Function params"
            )));
        }
        let mut fixed = Map::new();
        let mut fix = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                fixed.insert(key.to_owned(), value);
            }
        };
        match service {
            Service::OpenAi | Service::AzureOpenAi => {
                fix("encoding_format", Some(json!("float")));
                fix("user", params.text("user").map(Value::from));
                fix("dimensions", asked.map(Value::from));
            }
            Service::Cohere => {
                let truncate = params.one_of("truncate", &["NONE", "START", "END"])?;
                fix("truncate", Some(truncate.unwrap_or("END").into()));
                fix("embedding_types", Some(json!(["float"])));
            }
            Service::VoyageAi => {
                fix("truncation", params.flag("truncation")?.map(Value::from));
                fix("output_dimension", asked.map(Value::from));
                fix("output_dtype", Some(json!("float")));
            }
            Service::SiliconFlow => fix("encoding_format", Some(json!("float"))),
            Service::DashScope => fix("dimension", asked.map(Value::from)),
            Service::Tei | Service::Vllm => {
                fix("truncate", params.flag("truncate")?.map(Value::from));
                let direction = params.one_of("truncation_direction", &["Left", "Right"])?;
                fix("truncation_direction", direction.map(Value::from));
            }
        }
        let model = params.model(service == Service::Tei)?;
        let target = Target {
            address: params.address("/embed")?,
            credential: params.text("credential").map(str::to_owned),
            batch: params.batch(service.batch(&model))?,
            service,
            model,
            fixed,
        };
        if service == Service::Tei && target.address.is_none() {
            return Err(Error::Invalid("the provider tei needs an endpoint".to_owned()));
        }
        // Prompts keep their blanks.
        let prompt = |key: &str| {
            let found = params.pairs.iter().find(|(name, _)| name == key);
            found.map_or("", |(_, text)| text).to_owned()
        };
        let (insert_prompt, search_prompt) = (prompt("ingestion_prompt"), prompt("search_prompt"));
        Ok(Self { target, dim, insert_prompt, search_prompt })
    }

    /// The model's name; empty where the provider has one model only.
    pub fn model(&self) -> &str {
        &self.target.model
    }

    /// Whether texts that are stored get the same vectors from another declaration. Address, key and
    /// batches do not count, nor does what belongs to searches.
    pub fn makes_the_vectors_of(&self, other: &Self) -> bool {
        fn stored(one: &Embedding) -> (Service, &str, usize, &str, Vec<(&String, &Value)>) {
            let fixed = one.target.fixed.iter().filter(|(key, _)| *key != "user");
            let Target { service, model, .. } = &one.target;
            (*service, model, one.dim, &one.insert_prompt, fixed.collect())
        }
        stored(self) == stored(other)
    }

    fn body(&self, texts: &[String], purpose: Purpose) -> Value {
        let prompt = match purpose {
            Purpose::Insert => &self.insert_prompt,
            Purpose::Search => &self.search_prompt,
        };
        let texts: Vec<String> = texts.iter().map(|text| format!("{prompt}{text}")).collect();
        let kind = |insert: &str, search: &str| match purpose {
            Purpose::Insert => Value::from(insert),
            Purpose::Search => Value::from(search),
        };
        let Target { service, model, fixed, .. } = &self.target;
        let mut body = fixed.clone();
        let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
        match service {
            Service::Tei => {
                put("inputs", texts.into());
            }
            Service::DashScope => {
                let mut parameters = fixed.clone();
                parameters.insert("text_type".to_owned(), kind("document", "query"));
                parameters.insert("output_type".to_owned(), json!("dense"));
                return json!({
                    "model": model,
                    "input": { "texts": texts },
                    "parameters": parameters,
                });
            }
            Service::Cohere => {
                put("model", model.as_str().into());
                put("texts", texts.into());
                // The models before version 3 do not know it.
                if !model.ends_with("v2.0") {
                    put("input_type", kind("search_document", "search_query"));
                }
            }
            Service::VoyageAi => {
                put("model", model.as_str().into());
                put("input", texts.into());
                put("input_type", kind("document", "query"));
            }
            Service::OpenAi | Service::AzureOpenAi | Service::SiliconFlow | Service::Vllm => {
                put("model", model.as_str().into());
                put("input", texts.into());
            }
        }
        body.into()
    }

    /// The vectors in an answer, in the order of the texts.
    fn vectors(&self, answer: &[u8]) -> Result<Vec<Vec<f32>>, String> {
        #[derive(Deserialize)]
        struct Listed {
            data: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            embedding: Vec<f32>,
            #[serde(alias = "text_index")]
            index: usize,
        }
        #[derive(Deserialize)]
        struct Typed {
            embeddings: Floats,
        }
        #[derive(Deserialize)]
        struct Floats {
            float: Vec<Vec<f32>>,
        }
        #[derive(Deserialize)]
        struct Output {
            output: Entries,
        }
        #[derive(Deserialize)]
        struct Entries {
            embeddings: Vec<Entry>,
        }
        let entries = match self.target.service {
            Service::Tei => return json_of(answer),
            Service::Cohere => return Ok(json_of::<Typed>(answer)?.embeddings.float),
            Service::DashScope => json_of::<Output>(answer)?.output.embeddings,
            Service::OpenAi
            | Service::AzureOpenAi
            | Service::VoyageAi
            | Service::SiliconFlow
            | Service::Vllm => json_of::<Listed>(answer)?.data,
        };
        let count = entries.len();
        in_order(entries.into_iter().map(|entry| (entry.index, entry.embedding)), count)
    }

    fn check(&self, vectors: &[Vec<f32>], texts: usize) -> Result<(), String> {
        if vectors.len() != texts {
            return Err(format!("{} vectors came for {texts} texts", vectors.len()));
        }
        if let Some(vector) = vectors.iter().find(|vector| vector.len() != self.dim) {
            return Err(format!(
                "The required embedding dim is [{}], but the embedding obtained from the model is \
                 [{}]",
                self.dim,
                vector.len()
            ));
        }
        match vectors.iter().flatten().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err("a vector has a number that is not finite".to_owned()),
        }
    }
}

impl Rerank {
    /// The names of the providers.
    pub fn providers() -> impl Iterator<Item = &'static str> {
        Service::RERANK.iter().map(|(name, _)| *name)
    }

    /// Reads a re-ranker's parameters; `None` for a provider that is none of
    /// [`Rerank::providers`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for parameters that are unknown, missing or out of range.
    pub fn parse(provider: &str, pairs: &[(String, String)]) -> Option<Result<Self, Error>> {
        let (_, service) = Service::RERANK.iter().find(|(name, _)| *name == provider)?;
        Some(Self::read(*service, pairs))
    }

    fn read(service: Service, pairs: &[(String, String)]) -> Result<Self, Error> {
        let own: &[&str] = match service {
            Service::Cohere => &["url", "max_tokens_per_doc"],
            Service::VoyageAi => &["url", "truncation"],
            Service::SiliconFlow => &["url", "max_chunks_per_doc", "overlap_tokens"],
            Service::Tei => &["endpoint", "truncate", "truncation_direction"],
            Service::Vllm => &["endpoint", "truncate_prompt_tokens"],
            Service::OpenAi | Service::AzureOpenAi | Service::DashScope => &[],
        };
        let params = Params::new("re-ranking", pairs, &[COMMON, &["reranker", "queries"], own])?;
        let mut fixed = Map::new();
        for key in
            ["max_tokens_per_doc", "max_chunks_per_doc", "overlap_tokens", "truncate_prompt_tokens"]
        {
            if let Some(number) = params.number(key)? {
                fixed.insert(key.to_owned(), number.into());
            }
        }
        for key in ["truncation", "truncate"] {
            if let Some(flag) = params.flag(key)? {
                fixed.insert(key.to_owned(), flag.into());
            }
        }
        if let Some(side) = params.one_of("truncation_direction", &["Left", "Right"])? {
            fixed.insert("truncation_direction".to_owned(), side.into());
        }
        let serving = matches!(service, Service::Tei | Service::Vllm);
        let model = params.model(serving)?;
        let target = Target {
            address: params.address("/rerank")?,
            credential: params.text("credential").map(str::to_owned),
            batch: params.batch(if serving { 32 } else { 128 })?,
            service,
            model,
            fixed,
        };
        if serving && target.address.is_none() {
            let name = service.key_name();
            return Err(Error::Invalid(format!("the provider {name} needs an endpoint")));
        }
        Ok(Self { target })
    }

    fn body(&self, query: &str, texts: &[String]) -> Value {
        let Target { service, model, fixed, .. } = &self.target;
        let mut body = fixed.clone();
        body.insert("query".to_owned(), query.into());
        let key = if *service == Service::Tei { "texts" } else { "documents" };
        body.insert(key.to_owned(), json!(texts));
        if !model.is_empty() && *service != Service::Tei {
            body.insert("model".to_owned(), model.as_str().into());
        }
        body.into()
    }

    /// The scores in an answer, in the order of the texts.
    fn scores(&self, answer: &[u8], texts: usize) -> Result<Vec<f32>, String> {
        #[derive(Deserialize)]
        struct Results {
            #[serde(alias = "data")]
            results: Vec<Score>,
        }
        #[derive(Deserialize)]
        struct Score {
            index: usize,
            #[serde(alias = "relevance_score")]
            score: f32,
        }
        let scores: Vec<Score> = match self.target.service {
            Service::Tei => json_of(answer)?,
            Service::OpenAi
            | Service::AzureOpenAi
            | Service::Cohere
            | Service::VoyageAi
            | Service::SiliconFlow
            | Service::DashScope
            | Service::Vllm => json_of::<Results>(answer)?.results,
        };
        let scores = in_order(scores.into_iter().map(|one| (one.index, one.score)), texts)?;
        match scores.iter().all(|score| score.is_finite()) {
            true => Ok(scores),
            false => Err("a score is not finite".to_owned()),
        }
    }
}

fn json_of<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(answer).map_err(|error| error.to_string())
}

/// The values of `count` indices, each of which must be there once.
fn in_order<T>(
    entries: impl ExactSizeIterator<Item = (usize, T)>,
    count: usize,
) -> Result<Vec<T>, String> {
    if entries.len() != count {
        return Err(format!("{} results came for {count} texts", entries.len()));
    }
    let mut slots: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for (index, value) in entries {
        match slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(value),
            Some(Some(_)) => return Err(format!("index {index} came twice")),
            None => return Err(format!("index {index} came for {count} texts")),
        }
    }
    Ok(slots.into_iter().flatten().collect())
}

/// What the operator of a node decides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keys by name: those of providers by the provider's, others as functions name them by
    /// `credential`.
    pub keys: BTreeMap<String, Secret>,
    /// The keys that belong to a provider and are used where a function names none.
    pub default_keys: BTreeMap<String, Secret>,
    /// Addresses that functions may name beside the providers' own; scheme, host and port count.
    pub allow: Vec<String>,
    /// The operator's resource at Azure OpenAI.
    pub azure_resource: Option<String>,
    /// Calls on their way at once.
    pub concurrency: usize,
    /// The whole time of a call, repetitions included, and how often it is made.
    pub patience: Patience,
}

/// Calls providers; clones share connections and limits.
#[derive(Clone)]
pub struct Providers {
    client: Client,
    options: Arc<Options>,
    allowed: Arc<HashSet<(bool, String, u16)>>,
    slots: Arc<Semaphore>,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Providers").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Providers {
    /// Checks the operator's addresses. Nothing is sent.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is none.
    pub fn new(options: Options) -> Result<Self, Error> {
        let allowed = options.allow.iter().map(|text| Ok(origin(&parse(text)?)));
        let allowed = allowed.collect::<Result<HashSet<_>, Error>>()?;
        Ok(Self {
            client: Client::new()?,
            slots: Arc::new(Semaphore::new(options.concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            options: Arc::new(options),
            allowed: Arc::new(allowed),
        })
    }

    /// The vectors of texts, `texts × dim`, in their order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is not allowed and a key that is not there; otherwise
    /// what the provider answered, after the last attempt.
    pub async fn embed(
        &self,
        embedding: &Embedding,
        texts: &[String],
        purpose: Purpose,
    ) -> Result<Vec<f32>, Error> {
        let target = &embedding.target;
        let there = self.destination(target, target.service.embedding_url())?;
        let there = &there;
        let calls = texts.chunks(target.batch).map(|texts| async move {
            let limit = texts.len() * embedding.dim * NUMBER_BYTES + OVERHEAD_BYTES;
            let answer = self.post(there, embedding.body(texts, purpose), limit).await?;
            let checked = embedding.vectors(&answer).and_then(|vectors| {
                embedding.check(&vectors, texts.len())?;
                Ok(vectors.concat())
            });
            checked.map_err(|detail| Error::Garbage { url: shown(&there.url), detail })
        });
        let calls: Vec<_> = calls.collect();
        let parts: Vec<Vec<f32>> = stream::iter(calls).buffered(PARALLEL).try_collect().await?;
        Ok(parts.concat())
    }

    /// The scores of texts for a query, in their order; higher is better.
    ///
    /// # Errors
    /// As [`Providers::embed`].
    pub async fn rerank(
        &self,
        rerank: &Rerank,
        query: &str,
        texts: &[String],
    ) -> Result<Vec<f32>, Error> {
        let target = &rerank.target;
        let there = self.destination(target, target.service.rerank_url())?;
        let there = &there;
        let calls = texts.chunks(target.batch).map(|texts| async move {
            // Some repeat the texts beside the scores.
            let bytes: usize = texts.iter().map(|text| 6 * text.len() + 200).sum();
            let answer =
                self.post(there, rerank.body(query, texts), bytes + OVERHEAD_BYTES).await?;
            let scores = rerank.scores(&answer, texts.len());
            scores.map_err(|detail| Error::Garbage { url: shown(&there.url), detail })
        });
        let calls: Vec<_> = calls.collect();
        let parts: Vec<Vec<f32>> = stream::iter(calls).buffered(PARALLEL).try_collect().await?;
        Ok(parts.concat())
    }

    /// Where a call goes, and with which key.
    fn destination(&self, target: &Target, own: Option<&str>) -> Result<Destination, Error> {
        let service = target.service;
        let name = service.key_name();
        let own = match (service, &self.options.azure_resource) {
            (Service::AzureOpenAi, Some(resource)) => {
                Some(parse(&format!("https://{resource}.openai.azure.com"))?)
            }
            _ => own.map(parse).transpose()?,
        };
        let (url, is_own) = match (&target.address, own) {
            (Some(url), Some(own)) if origin(url) == origin(&own) => (url.clone(), true),
            (Some(url), _) if self.allowed.contains(&origin(url)) => (url.clone(), false),
            (Some(url), _) => {
                return Err(Error::Invalid(format!(
                    "the address {} is not allowed: the node calls a provider's own addresses and \
                     those that its operator lists in the setting `providers.allow`",
                    shown(url)
                )));
            }
            (None, Some(own)) => (own, true),
            (None, None) => {
                return Err(Error::Invalid(format!(
                    "the provider {name} needs a url, or the environment variable \
                     MILVUS_AZURE_OPENAI_RESOURCE_NAME"
                )));
            }
        };
        let url = if service == Service::AzureOpenAi { azure(&url, &target.model)? } else { url };
        let key = match &target.credential {
            Some(credential) => Some(self.options.keys.get(credential).ok_or_else(|| {
                Error::Invalid(format!(
                    "can not find credential: {}, the operator lists them in the settings' table \
                     [credentials]",
                    credential.escape_debug()
                ))
            })?),
            None if is_own => self.options.default_keys.get(name),
            None => None,
        };
        if key.is_none() && is_own {
            return Err(Error::Invalid(format!(
                "there is no key for the provider {name}: the operator sets the environment variable \
                 MILVUS_{}_API_KEY, or the function names one by `credential`",
                name.to_uppercase()
            )));
        }
        let header = match service {
            Service::AzureOpenAi => (HeaderName::from_static("api-key"), ""),
            Service::OpenAi
            | Service::Cohere
            | Service::VoyageAi
            | Service::SiliconFlow
            | Service::DashScope
            | Service::Tei
            | Service::Vllm => (AUTHORIZATION, "Bearer "),
        };
        Ok(Destination { url, header, key: key.cloned() })
    }

    async fn post(&self, there: &Destination, body: Value, limit: usize) -> Result<Vec<u8>, Error> {
        let url = shown(&there.url);
        let slot = self.slots.acquire().await;
        let _slot = slot.map_err(|_| Error::Invalid("the node is shutting down".to_owned()))?;
        let patience = self.options.patience;
        let body = Bytes::from(body.to_string());
        let attempts = async {
            let mut attempt = 1;
            loop {
                match self.once(there, &url, body.clone(), limit).await {
                    Err(error) if error.is_transient() && attempt < patience.attempts => {
                        let pause = patience.pause(attempt, error.retry_after());
                        tracing::info!(%error, ms = pause.as_millis(), "calling a provider again");
                        tokio::time::sleep(pause).await;
                        attempt += 1;
                    }
                    other => return other,
                }
            }
        };
        let seconds = patience.answer.as_secs_f32();
        tokio::time::timeout(patience.answer, attempts).await.unwrap_or_else(|_| {
            let detail = format!("the call took longer than {seconds} s");
            Err(Error::Unreachable { url: url.clone(), detail })
        })
    }

    async fn once(
        &self,
        there: &Destination,
        url: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Vec<u8>, Error> {
        /// The whole call has a limit of its own; this one never comes first.
        const LATER: Duration = Duration::from_secs(3_600);
        let mut request = Request::post(there.url.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &there.key {
            let (name, before) = &there.header;
            let value = HeaderValue::from_str(&format!("{before}{}", key.expose()));
            let mut value = value
                .map_err(|_| Error::Invalid("the key cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| Error::Invalid(error.to_string()))?;
        let response = self.client.send(request, LATER).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response, url, there.key.as_ref(), None).await);
        }
        whole(response.into_body(), url, limit, LATER).await
    }
}

struct Destination {
    url: Uri,
    /// The header of the key, and what stands before it.
    header: (HeaderName, &'static str),
    key: Option<Secret>,
}

/// Azure's address of a deployment, which has the model's name.
fn azure(base: &Uri, model: &str) -> Result<Uri, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !model.chars().all(plain) || model.starts_with('.') {
        return Err(Error::Invalid(format!(
            "model_name `{}` is no name of a deployment",
            model.escape_debug()
        )));
    }
    let (secure, host, port) = origin(base);
    let scheme = if secure { "https" } else { "http" };
    parse(&format!(
        "{scheme}://{host}:{port}/openai/deployments/{model}/embeddings?api-version=2024-06-01"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, key: &str) -> BTreeMap<String, Secret> {
        BTreeMap::from([(name.to_owned(), Secret::new(key))])
    }

    /// Where a function of OpenAI's or Azure's goes, and with which key.
    fn goes(provider: &str, more: &[(&str, &str)]) -> Result<(String, Option<Secret>), Error> {
        let providers = Providers::new(Options {
            keys: secret("mine", "k-mine"),
            default_keys: [secret("openai", "k-open"), secret("azure_openai", "k-azure")]
                .into_iter()
                .flatten()
                .collect(),
            allow: vec!["http://10.0.0.7:8080/ignored".to_owned()],
            azure_resource: Some("ours".to_owned()),
            concurrency: 1,
            patience: Patience::default(),
        })?;
        let pairs: Vec<_> = [("provider", provider), ("model_name", "m")]
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let embedding = Embedding::parse(provider, &pairs, 2).expect("the provider is known")?;
        let target = &embedding.target;
        let there = providers.destination(target, target.service.embedding_url())?;
        Ok((there.url.to_string(), there.key))
    }

    #[test]
    fn a_providers_key_goes_to_its_own_address_only() {
        let key = |key: &str| Some(Secret::new(key));
        let own = "https://api.openai.com/v1/embeddings";
        assert_eq!(goes("openai", &[]).unwrap(), (own.to_owned(), key("k-open")));
        assert_eq!(goes("openai", &[("url", own)]).unwrap(), (own.to_owned(), key("k-open")));
        assert_eq!(goes("openai", &[("credential", "mine")]).unwrap().1, key("k-mine"));
        let other = "http://10.0.0.7:8080/v1/embeddings";
        assert_eq!(goes("openai", &[("url", other)]).unwrap(), (other.to_owned(), None));
        let azure = "https://ours.openai.azure.com:443/openai/deployments/m/embeddings\
                     ?api-version=2024-06-01";
        assert_eq!(goes("azure_openai", &[]).unwrap(), (azure.to_owned(), key("k-azure")));
        for url in ["https://theirs.openai.azure.com", "http://ours.openai.azure.com"] {
            let error = goes("azure_openai", &[("url", url)]).unwrap_err().to_string();
            assert!(error.contains("providers.allow"), "{error}");
        }
        let error = goes("cohere", &[]).unwrap_err().to_string();
        assert!(error.contains("MILVUS_COHERE_API_KEY"), "{error}");
        let error = goes("openai", &[("credential", "theirs")]).unwrap_err().to_string();
        assert!(error.contains("can not find credential: theirs"), "{error}");
    }

    #[test]
    fn what_changes_stored_vectors_is_told_from_what_does_not() {
        let read = |more: &[(&str, &str)]| {
            let pairs = [&[("provider", "openai"), ("model_name", "m")], more].concat();
            let pairs: Vec<_> =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Embedding::parse("openai", &pairs[1..], 2).expect("known").expect("sound")
        };
        let one = read(&[]);
        for more in [("url", "http://x"), ("user", "me"), ("credential", "c")] {
            assert!(one.makes_the_vectors_of(&read(&[more])), "{more:?}");
        }
        assert!(!one.makes_the_vectors_of(&read(&[("dim", "2")])));
    }

    #[test]
    fn a_deployment_is_a_plain_name() {
        let base = parse("https://ours.openai.azure.com").expect("a constant");
        for bad in ["../x", "a/b", "a?b", "a b", "a#b"] {
            assert!(azure(&base, bad).is_err(), "{bad}");
        }
    }
}
