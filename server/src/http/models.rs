//! The models over HTTP, in the shapes that other servers have made common.
//!
//! `/v1/embeddings` is OpenAI's, with learned sparse and token vectors on request; `/embed`,
//! `/embed_sparse` and `/rerank` are those of text-embeddings-inference; `/v1/rerank` is Jina's and
//! vLLM's. They share the port, the limits, the queue and the batches of the gRPC service.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use elanus_embed::{EmbedRequest, Embeddings, Mode, ModelSpec, Outputs, RerankRequest};
use futures::FutureExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bodies;
use crate::node::Node;

/// The routes.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/embeddings", post(openai_embeddings))
        .route("/v1/models", get(openai_models))
        .route("/v1/rerank", post(v1_rerank))
        .route("/embed", post(tei_embed))
        .route("/embed_sparse", post(tei_embed_sparse))
        .route("/rerank", post(tei_rerank))
        .layer(DefaultBodyLimit::max(node.config.grpc.max_receive_bytes))
        .with_state(node)
}

type Body = Result<Bytes, BytesRejection>;

async fn openai_embeddings(State(node): State<Arc<Node>>, body: Body) -> Response {
    answer("/v1/embeddings", Errors::OpenAi, node, body, embeddings).await
}

async fn openai_models(State(node): State<Arc<Node>>) -> Response {
    answer("/v1/models", Errors::OpenAi, node, Ok(Bytes::from_static(b"{}")), models).await
}

async fn v1_rerank(State(node): State<Arc<Node>>, body: Body) -> Response {
    answer("/v1/rerank", Errors::OpenAi, node, body, rerank_documents).await
}

async fn tei_embed(State(node): State<Arc<Node>>, body: Body) -> Response {
    answer("/embed", Errors::Tei, node, body, embed).await
}

async fn tei_embed_sparse(State(node): State<Arc<Node>>, body: Body) -> Response {
    answer("/embed_sparse", Errors::Tei, node, body, embed_sparse).await
}

async fn tei_rerank(State(node): State<Arc<Node>>, body: Body) -> Response {
    answer("/rerank", Errors::Tei, node, body, rerank_texts).await
}

/// Why a request got no answer.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    fn invalid(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn too_large(message: impl Into<String>) -> Self {
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, message: message.into() }
    }

    fn internal(message: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.into() }
    }
}

impl From<elanus_embed::Error> for Refused {
    fn from(error: elanus_embed::Error) -> Self {
        use elanus_embed::Error;
        let status = match &error {
            Error::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Error::ModelNotFound { .. } => StatusCode::NOT_FOUND,
            Error::Pending { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Error::InvalidName { .. } | Error::Invalid(_) | Error::Unsupported(_) => {
                StatusCode::BAD_REQUEST
            }
            Error::Load { .. }
            | Error::Tokenize { .. }
            | Error::DeviceMemory(_)
            | Error::Inference(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, message: error.to_string() }
    }
}

/// The shape in which a client expects errors.
#[derive(Clone, Copy)]
enum Errors {
    OpenAi,
    Tei,
}

impl Errors {
    fn body(self, refused: &Refused) -> String {
        let Refused { status, message } = refused;
        match self {
            Self::OpenAi => {
                let kind = match *status {
                    StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
                    status if status.is_client_error() => "invalid_request_error",
                    _ => "server_error",
                };
                let code = status.as_u16();
                json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
            }
            Self::Tei => {
                let kind = match *status {
                    StatusCode::TOO_MANY_REQUESTS => "Overloaded",
                    status if status.is_client_error() => "Validation",
                    _ => "Backend",
                };
                json!({ "error": message, "error_type": kind })
            }
        }
        .to_string()
    }
}

/// Reads a request, does its work, and writes the answer; counts it as the gRPC calls are.
async fn answer<Q, A, F>(
    path: &'static str,
    errors: Errors,
    node: Arc<Node>,
    body: Body,
    work: impl FnOnce(Arc<Node>, Q) -> F,
) -> Response
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
    F: Future<Output = Result<A, Refused>>,
{
    let began = Instant::now();
    let work = async {
        let body = body.map_err(|rejection| match bodies::refusal(&rejection) {
            Some(full) => Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                message: full.message().to_owned(),
            },
            None => Refused { status: rejection.status(), message: rejection.body_text() },
        })?;
        let request = if body.len() <= SHORT_BYTES {
            serde_json::from_slice(&body)
        } else {
            in_background(move || serde_json::from_slice(&body)).await?
        };
        let request = request
            .map_err(|error| Refused::invalid(format!("the body is not understood: {error}")))?;
        let answer = work(node.clone(), request).await?;
        match short_json(&answer) {
            Some(body) => Ok(body),
            None => in_background(move || serde_json::to_vec(&answer))
                .await?
                .map_err(|error| Refused::internal(error.to_string())),
        }
    };
    let outcome = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(path, "a request handler panicked");
        Err(Refused::internal(format!("{path} panicked")))
    });
    let seconds = began.elapsed().as_secs_f64();
    let (status, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err(refused) => {
            let (status, reason) = (refused.status.as_u16(), &refused.message);
            if refused.status.is_client_error() {
                tracing::debug!(path, status, reason, "refused");
            } else {
                tracing::warn!(path, status, reason, "failed");
            }
            (refused.status, errors.body(&refused).into_bytes())
        }
    };
    let code = if status == StatusCode::OK { 0 } else { i32::from(status.as_u16()) };
    node.metrics.rpc_ended(path, code, seconds);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// JSON that is read and written sooner than a thread wakes to do it: a question, its vector.
const SHORT_BYTES: usize = 32 << 10;

/// The answer, unless it is longer than [`SHORT_BYTES`].
fn short_json(answer: &impl Serialize) -> Option<Vec<u8>> {
    struct Short(Vec<u8>);
    impl io::Write for Short {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() + bytes.len() > SHORT_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut short = Short(Vec::new());
    serde_json::to_writer(&mut short, answer).ok()?;
    Some(short.0)
}

/// Does what takes longer than the threads of the network have: megabytes of JSON, files.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refused::internal(error.to_string()))
}

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
    /// Token ids, and whatever else.
    Other(IgnoredAny),
}

impl Texts {
    fn into_texts(self, node: &Node, field: &str) -> Result<Vec<String>, Refused> {
        let texts = match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
            Self::Other(_) => {
                return Err(Refused::invalid(format!(
                    "`{field}` must be a text or a list of texts; token ids are not taken"
                )));
            }
        };
        check_count(node, texts.len(), field)?;
        Ok(texts)
    }
}

fn check_count(node: &Node, count: usize, field: &str) -> Result<(), Refused> {
    let most = node.limits.queries;
    match count as u64 {
        0 => Err(Refused::invalid(format!("`{field}` is empty"))),
        count if count > most => Err(Refused::too_large(format!(
            "`{field}` has {count} texts, {most} are allowed at once (limits.queries)"
        ))),
        _ => Ok(()),
    }
}

/// The model that is asked for, or the only one that can do what is asked.
async fn model(
    node: &Node,
    asked: Option<String>,
    what: &str,
    can: impl Fn(&ModelSpec) -> bool,
) -> Result<ModelSpec, Refused> {
    if let Some(spec) = asked.as_ref().and_then(|name| node.models.known(name)) {
        return Ok(spec);
    }
    let models = node.models.clone();
    let find = move || match asked {
        Some(name) => Ok((vec![models.resolve(&name)?], true)),
        None => Ok::<_, elanus_embed::Error>((models.installed(), false)),
    };
    let (mut specs, named) = in_background(find).await??;
    if !named {
        specs.retain(&can);
    }
    if specs.len() == 1 {
        return Ok(specs.remove(0));
    }
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    Err(Refused::invalid(if names.is_empty() {
        format!("no installed model {what}")
    } else {
        format!("several installed models {what}: say which as `model`: {}", names.join(", "))
    }))
}

async fn run(node: &Node, spec: &ModelSpec, request: EmbedRequest) -> Result<Embeddings, Refused> {
    let most = node.limits.output_bytes;
    let too_large = |bytes: usize| {
        Refused::too_large(format!(
            "the vectors of this request take {bytes} bytes, {most} are allowed \
             (limits.output_bytes); send fewer texts"
        ))
    };
    let dim = if request.outputs.dense { spec.dense_dim.unwrap_or(0) } else { 0 };
    let dense_bytes = request.texts.len().saturating_mul(dim * size_of::<f32>());
    if dense_bytes > most {
        return Err(too_large(dense_bytes));
    }
    let found = node.models.embed(&spec.name, request).await?;
    let sparse = found.sparse.iter().flatten().map(|row| size_of_val(row.as_slice()));
    let colbert = found.colbert.iter().flatten().map(|row| size_of_val(row.as_slice()));
    let bytes = dense_bytes + sparse.sum::<usize>() + colbert.sum::<usize>();
    if bytes > most {
        return Err(too_large(bytes));
    }
    Ok(found)
}

/// Whether the texts are questions or documents, by the words that clients have for it.
fn mode(input_type: Option<&str>) -> Result<Mode, Refused> {
    match input_type {
        None | Some("document" | "passage" | "search_document") => Ok(Mode::Insert),
        Some("query" | "search_query") => Ok(Mode::Search),
        Some(other) => Err(Refused::invalid(format!(
            "`input_type` is `{other}`, expected `query` or `document`"
        ))),
    }
}

// ---- OpenAI

#[derive(Deserialize)]
struct EmbeddingsRequest {
    input: Texts,
    model: Option<String>,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
    input_type: Option<String>,
    dense: Option<bool>,
    #[serde(default)]
    sparse: bool,
    #[serde(default)]
    colbert: bool,
}

#[derive(Serialize)]
struct EmbeddingsAnswer {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Dense>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparse: Option<Sparse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    colbert: Option<Vec<Vec<f32>>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Dense {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Sparse {
    indices: Vec<u32>,
    values: Vec<f32>,
}

async fn embeddings(
    node: Arc<Node>,
    request: EmbeddingsRequest,
) -> Result<EmbeddingsAnswer, Refused> {
    let texts = request.input.into_texts(&node, "input")?;
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Refused::invalid(format!(
                "`encoding_format` is `{other}`, expected `float` or `base64`"
            )));
        }
    };
    let outputs = Outputs {
        dense: request.dense.unwrap_or(true),
        sparse: request.sparse,
        colbert: request.colbert,
    };
    let can = |spec: &ModelSpec| outputs.is_subset_of(spec.outputs());
    let spec = model(&node, request.model, "gives these vectors", can).await?;
    let mode = mode(request.input_type.as_deref())?;
    let count = texts.len();
    let request =
        EmbedRequest { dim: request.dimensions, ..EmbedRequest::new(texts, outputs, mode) };
    let found = run(&node, &spec, request).await?;
    let rows = |dense: Vec<f32>| -> Vec<Vec<f32>> {
        dense.chunks_exact(found.dim.max(1)).map(<[f32]>::to_vec).collect()
    };
    let mut dense = found.dense.map(rows).into_iter().flatten();
    let mut sparse = found.sparse.into_iter().flatten();
    let mut colbert = found.colbert.into_iter().flatten();
    let width = spec.dense_dim.unwrap_or(1);
    let data = (0..count).map(|index| Embedding {
        object: "embedding",
        index,
        embedding: dense.next().map(|row| match base64 {
            false => Dense::Numbers(row),
            true => Dense::Base64(encode(&row)),
        }),
        sparse: sparse.next().map(|row| {
            let (indices, values) = row.into_iter().unzip();
            Sparse { indices, values }
        }),
        colbert: colbert.next().map(|rows| rows.chunks(width).map(<[f32]>::to_vec).collect()),
    });
    Ok(EmbeddingsAnswer {
        object: "list",
        data: data.collect(),
        model: spec.name,
        usage: Usage { prompt_tokens: found.tokens, total_tokens: found.tokens },
    })
}

/// Little-endian numbers in base64, as OpenAI's clients ask for by default.
fn encode(row: &[f32]) -> String {
    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn models(node: Arc<Node>, _: Value) -> Result<Value, Refused> {
    let models = node.models.clone();
    let specs = in_background(move || models.installed()).await?;
    let data: Vec<Value> = specs
        .iter()
        .map(|spec| json!({ "id": spec.name, "object": "model", "owned_by": "elanus" }))
        .collect();
    Ok(json!({ "object": "list", "data": data }))
}

// ---- text-embeddings-inference

#[derive(Deserialize)]
struct TeiRequest {
    inputs: Texts,
    model: Option<String>,
    normalize: Option<bool>,
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    prompt_name: Option<String>,
    dimensions: Option<usize>,
}

impl TeiRequest {
    async fn run(
        self,
        node: &Node,
        outputs: Outputs,
        what: &str,
    ) -> Result<(Embeddings, usize), Refused> {
        let texts = self.inputs.into_texts(node, "inputs")?;
        check_direction(self.truncation_direction.as_deref())?;
        let can = |spec: &ModelSpec| outputs.is_subset_of(spec.outputs());
        let spec = model(node, self.model, what, can).await?;
        let request = EmbedRequest {
            dim: self.dimensions,
            refuse_longer: self.truncate == Some(false),
            unnormalized: self.normalize == Some(false),
            ..EmbedRequest::new(texts, outputs, mode(self.prompt_name.as_deref())?)
        };
        let found = run(node, &spec, request).await?;
        let dim = found.dim.max(1);
        Ok((found, dim))
    }
}

fn check_direction(direction: Option<&str>) -> Result<(), Refused> {
    match direction {
        None | Some("Right" | "right") => Ok(()),
        Some(other) => Err(Refused::invalid(format!(
            "`truncation_direction` is `{other}`; texts are cut at their end, `Right`"
        ))),
    }
}

async fn embed(node: Arc<Node>, request: TeiRequest) -> Result<Vec<Vec<f32>>, Refused> {
    let (found, dim) = request.run(&node, Outputs::DENSE, "gives dense vectors").await?;
    Ok(found.dense.unwrap_or_default().chunks_exact(dim).map(<[f32]>::to_vec).collect())
}

#[derive(Serialize)]
struct Term {
    index: u32,
    value: f32,
}

async fn embed_sparse(node: Arc<Node>, request: TeiRequest) -> Result<Vec<Vec<Term>>, Refused> {
    let (found, _) = request.run(&node, Outputs::SPARSE, "gives sparse vectors").await?;
    let rows = found.sparse.unwrap_or_default().into_iter();
    let terms = |row: Vec<(u32, f32)>| {
        row.into_iter().map(|(index, value)| Term { index, value }).collect()
    };
    Ok(rows.map(terms).collect())
}

#[derive(Deserialize)]
struct TeiRerank {
    query: String,
    texts: Vec<String>,
    model: Option<String>,
    #[serde(default)]
    raw_scores: bool,
    #[serde(default)]
    return_text: bool,
    truncate: Option<bool>,
    truncation_direction: Option<String>,
}

#[derive(Serialize)]
struct TeiRank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

async fn rerank_texts(node: Arc<Node>, request: TeiRerank) -> Result<Vec<TeiRank>, Refused> {
    check_direction(request.truncation_direction.as_deref())?;
    let texts = if request.return_text { request.texts.clone() } else { Vec::new() };
    let pairs = RerankRequest {
        query: request.query,
        docs: request.texts,
        normalize: !request.raw_scores,
        refuse_longer: request.truncate == Some(false),
        ..RerankRequest::default()
    };
    let (_, ranked) = ranked(&node, request.model, "texts", pairs).await?;
    let rank =
        |(index, score): (usize, f32)| TeiRank { index, score, text: texts.get(index).cloned() };
    Ok(ranked.into_iter().map(rank).collect())
}

// ---- Jina and vLLM

#[derive(Deserialize)]
struct DocumentsRerank {
    query: String,
    documents: Vec<String>,
    model: Option<String>,
    top_n: Option<usize>,
    #[serde(default)]
    return_documents: bool,
}

async fn rerank_documents(node: Arc<Node>, request: DocumentsRerank) -> Result<Value, Refused> {
    let documents = if request.return_documents { request.documents.clone() } else { Vec::new() };
    let pairs = RerankRequest {
        query: request.query,
        docs: request.documents,
        normalize: true,
        ..RerankRequest::default()
    };
    let (model, ranked) = ranked(&node, request.model, "documents", pairs).await?;
    let most = request.top_n.unwrap_or(usize::MAX);
    let results: Vec<Value> = ranked
        .into_iter()
        .take(most)
        .map(|(index, score)| match documents.get(index) {
            Some(text) => {
                json!({ "index": index, "relevance_score": score, "document": { "text": text } })
            }
            None => json!({ "index": index, "relevance_score": score }),
        })
        .collect();
    Ok(json!({ "model": model, "results": results }))
}

/// Numbers and scores of documents, best first.
async fn ranked(
    node: &Node,
    asked: Option<String>,
    field: &str,
    request: RerankRequest,
) -> Result<(String, Vec<(usize, f32)>), Refused> {
    check_count(node, request.docs.len(), field)?;
    let spec = model(node, asked, "re-ranks", |spec| spec.reranker).await?;
    let scores = node.models.rerank(&spec.name, request).await?;
    let mut ranked: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok((spec.name, ranked))
}
