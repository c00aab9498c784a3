//! What a function with a provider declares, with the parameters that Milvus gives it, and how each
//! provider is spoken to.
//!
//! [`Embedding`] and [`Rerank`] are read and checked here; no network, no keys: [`crate::Providers`]
//! has those. Which providers there are, what they are called with and what they answer stands in
//! one `match` each.

use http::Uri;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::http::parse;

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
pub(crate) enum Service {
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
    pub(crate) fn key_name(self) -> &'static str {
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
    pub(crate) fn embedding_url(self) -> Option<&'static str> {
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
    pub(crate) fn rerank_url(self) -> Option<&'static str> {
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
pub(crate) struct Target {
    pub(crate) service: Service,
    pub(crate) model: String,
    /// The address that the function names.
    pub(crate) address: Option<Uri>,
    /// The operator's key that the function names.
    pub(crate) credential: Option<String>,
    /// Texts in one call.
    pub(crate) batch: usize,
    /// What goes into every request's body beside texts and model.
    fixed: Map<String, Value>,
}

/// A function that makes vectors by a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    pub(crate) target: Target,
    /// Width of the field.
    pub(crate) dim: usize,
    insert_prompt: String,
    search_prompt: String,
}

/// A re-ranker that asks a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerank {
    pub(crate) target: Target,
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

    /// What is sent for the vectors of texts.
    pub(crate) fn body(&self, texts: &[String], purpose: Purpose) -> Value {
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

    /// The numbers in an answer, `texts × dim`, in the order of the texts.
    pub(crate) fn numbers(&self, answer: &[u8], texts: usize) -> Result<Vec<f32>, String> {
        let vectors = self.vectors(answer)?;
        self.check(&vectors, texts)?;
        Ok(vectors.concat())
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

    /// What is sent for the scores of texts.
    pub(crate) fn body(&self, query: &str, texts: &[String]) -> Value {
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
    pub(crate) fn scores(&self, answer: &[u8], texts: usize) -> Result<Vec<f32>, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
