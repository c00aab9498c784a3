//! Calling providers of embeddings and of re-ranking.
//!
//! [`Providers`] has the operator's keys and runs what [`Embedding`] and [`Rerank`] declare. Their
//! parameters come from clients, who are not trusted: an address among them is used only if it is the
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
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::function::{Embedding, Purpose, Rerank, Service, Target};
use crate::http::{Client, origin, parse, refusal, shown, whole};
use crate::{Error, Patience, Secret};

/// Calls of one request on their way at once.
const PARALLEL: usize = 4;

/// Bytes of an answer that are neither numbers nor scores.
const OVERHEAD_BYTES: usize = 1 << 20;

/// The largest answer that is read, however many vectors it should hold.
const ANSWER_BYTES: usize = 256 << 20;

/// The most bytes that a number takes in JSON, with what stands around it.
const NUMBER_BYTES: usize = 32;

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
            let (embedding, count) = (embedding.clone(), texts.len());
            read(there, move || embedding.numbers(&answer, count)).await
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
            let (rerank, count) = (rerank.clone(), texts.len());
            read(there, move || rerank.scores(&answer, count)).await
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
        let limit = limit.min(ANSWER_BYTES);
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

/// Reads an answer, which may be megabytes of digits, off the threads of the network.
async fn read<T: Send + 'static>(
    there: &Destination,
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Error> {
    let outcome = tokio::task::spawn_blocking(read).await;
    let outcome = outcome.unwrap_or_else(|error| Err(error.to_string()));
    outcome.map_err(|detail| Error::Garbage { url: shown(&there.url), detail })
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
    fn a_deployment_is_a_plain_name() {
        let base = parse("https://ours.openai.azure.com").expect("a constant");
        for bad in ["../x", "a/b", "a?b", "a b", "a#b"] {
            assert!(azure(&base, bad).is_err(), "{bad}");
        }
    }
}
