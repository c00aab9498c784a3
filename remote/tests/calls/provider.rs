use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use elanus_remote::{
    Embedding, Error, Patience, ProviderOptions, Providers, Purpose, Rerank, Secret,
};
use serde_json::{Value, json};

use crate::fake::{Answer, Asked, Fake};

const KEY: &str = "sk-not-to-be-seen";
const OWN_KEY: &str = "sk-of-the-provider";

fn providers(fake: &Fake) -> Providers {
    let keys = |name: &str, key| BTreeMap::from([(name.to_owned(), Secret::new(key))]);
    Providers::new(ProviderOptions {
        keys: keys("mine", KEY),
        default_keys: keys("openai", OWN_KEY),
        allow: vec![fake.url.clone()],
        azure_resource: None,
        concurrency: 3,
        patience: Patience {
            answer: Duration::from_secs(30),
            attempts: 3,
            pause: Duration::from_millis(1),
        },
    })
    .unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A provider, parameters, the path that is asked, and with what.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, Value);

/// A function of a provider that names the fake's address and the operator's key.
fn embedding(fake: &Fake, provider: &str, more: &[(&str, &str)]) -> Result<Embedding, Error> {
    let address = if provider == "tei" { "endpoint" } else { "url" };
    let path = if provider == "tei" { "" } else { "/there" };
    let mut all = pairs(&[
        ("provider", provider),
        ("model_name", "m"),
        ("credential", "mine"),
        (address, &format!("{}{path}", fake.url)),
    ]);
    all.extend(pairs(more));
    Embedding::parse(provider, &all, 2).unwrap()
}

fn rerank(fake: &Fake, provider: &str, more: &[(&str, &str)]) -> Rerank {
    let is_served = ["tei", "vllm"].contains(&provider);
    let address = if is_served { "endpoint" } else { "url" };
    let mut all = pairs(&[
        ("reranker", "model"),
        ("provider", provider),
        ("model_name", "m"),
        ("credential", "mine"),
        (address, &fake.url),
        ("queries", "[\"q\"]"),
    ]);
    all.extend(pairs(more));
    Rerank::parse(provider, &all).unwrap().unwrap()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text {n}")).collect()
}

/// The vector that every fake gives a text: the number in it, and one half.
fn vector(text: &Value) -> Value {
    let number: f32 = text.as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    json!([number, 0.5])
}

fn vectors(count: usize) -> Vec<f32> {
    (0..count).flat_map(|n| [n as f32, 0.5]).collect()
}

/// An answer in the provider's shape to what it was asked.
fn answer(provider: &str, asked: &Asked) -> Value {
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    let of =
        |texts: &Value| -> Vec<Value> { texts.as_array().unwrap().iter().map(vector).collect() };
    match provider {
        "tei" => of(&body["inputs"]).into(),
        "cohere" => json!({ "id": "1", "embeddings": { "float": of(&body["texts"]) } }),
        "dashscope" => {
            let rows = of(&body["input"]["texts"]).into_iter().enumerate();
            let rows = rows.map(|(n, row)| json!({ "text_index": n, "embedding": row }));
            json!({ "output": { "embeddings": rows.collect::<Vec<_>>() }, "request_id": "1" })
        }
        _ => {
            // Not in order, which the index mends.
            let rows = of(&body["input"]).into_iter().enumerate();
            let rows = rows.map(|(n, row)| json!({ "index": n, "embedding": row }));
            json!({ "data": rows.rev().collect::<Vec<_>>(), "model": "m" })
        }
    }
}

fn speaking(provider: &'static str) -> Fake {
    Fake::start(move |asked, _| Answer::new(200, answer(provider, asked).to_string()))
}

fn sent(fake: &Fake) -> Value {
    serde_json::from_slice(&fake.asked().last().unwrap().body).unwrap()
}

#[tokio::test]
async fn each_provider_is_asked_in_its_own_words() {
    let insert = json!(["text 0", "text 1"]);
    let cases: [Case<'_>; 7] = [
        (
            "openai",
            &[("dim", "2"), ("user", "me")],
            "/there",
            json!({"model": "m", "input": insert, "encoding_format": "float", "dimensions": 2,
                "user": "me"}),
        ),
        (
            "azure_openai",
            &[],
            "/openai/deployments/m/embeddings?api-version=2024-06-01",
            json!({"model": "m", "input": insert, "encoding_format": "float"}),
        ),
        (
            "cohere",
            &[("truncate", "START")],
            "/there",
            json!({"model": "m", "texts": insert, "input_type": "search_document",
                "embedding_types": ["float"], "truncate": "START"}),
        ),
        (
            "voyageai",
            &[("dim", "2"), ("truncation", "True")],
            "/there",
            json!({"model": "m", "input": insert, "input_type": "document", "truncation": true,
                "output_dimension": 2, "output_dtype": "float"}),
        ),
        (
            "siliconflow",
            &[],
            "/there",
            json!({"model": "m", "input": insert, "encoding_format": "float"}),
        ),
        (
            "dashscope",
            &[("dim", "2")],
            "/there",
            json!({"model": "m", "input": {"texts": insert},
                "parameters": {"dimension": 2, "text_type": "document", "output_type": "dense"}}),
        ),
        (
            "tei",
            &[("ingestion_prompt", "p: "), ("truncate", "true"), ("truncation_direction", "Left")],
            "/embed",
            json!({"inputs": ["p: text 0", "p: text 1"], "truncate": true,
                "truncation_direction": "Left"}),
        ),
    ];
    for (provider, params, path, body) in cases {
        let fake = speaking(provider);
        let embedding = embedding(&fake, provider, params).unwrap();
        let found = providers(&fake).embed(&embedding, &texts(2), Purpose::Insert).await.unwrap();
        assert_eq!(found, vectors(2), "{provider}");
        let asked = fake.asked().remove(0);
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", path));
        assert_eq!(sent(&fake), body, "{provider}");
        assert_eq!(asked.header("content-type"), Some("application/json"));
        let (name, value) = match provider {
            "azure_openai" => ("api-key", KEY.to_owned()),
            _ => ("authorization", format!("Bearer {KEY}")),
        };
        assert_eq!(asked.header(name), Some(&*value), "{provider}");
    }
}

#[tokio::test]
async fn questions_are_told_from_documents() {
    for (provider, pointer, expected) in [
        ("cohere", "/input_type", json!("search_query")),
        ("voyageai", "/input_type", json!("query")),
        ("dashscope", "/parameters/text_type", json!("query")),
        ("tei", "/inputs/0", json!("ask: text 0")),
    ] {
        let fake = speaking(provider);
        let prompt: &[_] = if provider == "tei" { &[("search_prompt", "ask: ")] } else { &[] };
        let embedding = embedding(&fake, provider, prompt).unwrap();
        providers(&fake).embed(&embedding, &texts(1), Purpose::Search).await.unwrap();
        assert_eq!(sent(&fake).pointer(pointer), Some(&expected), "{provider}");
    }
}

#[tokio::test]
async fn many_texts_go_in_batches_and_come_back_in_order() {
    let fake = speaking("openai");
    let embedding = embedding(&fake, "openai", &[("max_client_batch_size", "10")]).unwrap();
    let found = providers(&fake).embed(&embedding, &texts(95), Purpose::Insert).await.unwrap();
    assert_eq!(found, vectors(95));
    let sizes = fake.asked().into_iter().map(|asked| {
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        body["input"].as_array().unwrap().len()
    });
    let mut sizes: Vec<usize> = sizes.collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 10, 10, 10, 10, 10, 10, 10, 10, 10]);
}

#[tokio::test]
async fn each_reranker_is_asked_in_its_own_words() {
    let documents = json!(["text 0", "text 1", "text 2"]);
    let cases: [(Case<'_>, &str); 5] = [
        (
            (
                "cohere",
                &[("max_tokens_per_doc", "9")],
                "/",
                json!({"query": "q", "documents": documents, "model": "m", "max_tokens_per_doc": 9}),
            ),
            "relevance_score",
        ),
        (
            (
                "voyageai",
                &[("truncation", "false")],
                "/",
                json!({"query": "q", "documents": documents, "model": "m", "truncation": false}),
            ),
            "relevance_score",
        ),
        (
            (
                "siliconflow",
                &[("max_chunks_per_doc", "4"), ("overlap_tokens", "5")],
                "/",
                json!({"query": "q", "documents": documents, "model": "m", "max_chunks_per_doc": 4,
                "overlap_tokens": 5}),
            ),
            "relevance_score",
        ),
        (
            (
                "tei",
                &[("truncate", "true")],
                "/rerank",
                json!({"query": "q", "texts": documents, "truncate": true}),
            ),
            "score",
        ),
        (
            (
                "vllm",
                &[("truncate_prompt_tokens", "7")],
                "/rerank",
                json!({"query": "q", "documents": documents, "model": "m",
                "truncate_prompt_tokens": 7}),
            ),
            "relevance_score",
        ),
    ];
    for ((provider, params, path, body), score) in cases {
        let fake = Fake::start(move |_, _| {
            // Best first, as they all do.
            let rows = [(2, 0.9), (0, 0.5), (1, -0.25)];
            let rows = rows.map(|(index, value)| json!({ "index": index, score: value }));
            let answer = match provider {
                "tei" => json!(rows),
                "voyageai" => json!({ "data": rows }),
                _ => json!({ "results": rows }),
            };
            Answer::new(200, answer.to_string())
        });
        let rerank = rerank(&fake, provider, params);
        let scores = providers(&fake).rerank(&rerank, "q", &texts(3)).await.unwrap();
        assert_eq!(scores, [0.5, -0.25, 0.9], "{provider}");
        assert_eq!((fake.asked()[0].path.as_str(), sent(&fake)), (path, body));
        let bearer = format!("Bearer {KEY}");
        assert_eq!(fake.asked()[0].header("authorization"), Some(&*bearer));
    }
}

#[tokio::test]
async fn what_a_provider_answers_wrongly_is_an_error() {
    let row = |index: usize, row: Value| json!({ "index": index, "embedding": row });
    let listed = |rows: Vec<Value>| json!({ "data": rows }).to_string();
    let cases = [
        ("<html>busy</html>".to_owned(), "not understood"),
        ("{}".to_owned(), "missing field"),
        (listed(vec![row(0, json!([1, 2]))]), "1 vectors came for 2 texts"),
        (listed(vec![row(0, json!([1, 2])), row(0, json!([1, 2]))]), "came twice"),
        (listed(vec![row(0, json!([1, 2])), row(7, json!([1, 2]))]), "index 7"),
        (listed(vec![row(0, json!([1, 2])), row(1, json!([1]))]), "required embedding dim is [2]"),
        (listed(vec![row(0, json!([1, 2])), row(1, json!([1, 1e39]))]), "out of range"),
        (" ".repeat(3 << 20), "larger than"),
    ];
    for (body, expected) in cases {
        let fake = Fake::start(move |_, _| Answer::new(200, body.clone()));
        let embedding = embedding(&fake, "openai", &[]).unwrap();
        let called = providers(&fake).embed(&embedding, &texts(2), Purpose::Insert).await;
        let error = called.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(fake.asked().len(), 1, "what is wrong once is wrong again");
    }
}

#[tokio::test]
async fn errors_that_pass_are_tried_again_and_others_are_not() {
    for (status, attempts) in [(429, 3), (500, 3), (503, 3), (400, 1), (401, 1), (404, 1), (302, 1)]
    {
        let fake = Fake::start(move |asked, _| {
            let echo = format!("no, {}", asked.header("authorization").unwrap());
            Answer::new(status, echo).header("retry-after", "0").header("location", "/elsewhere")
        });
        let embedding = embedding(&fake, "openai", &[]).unwrap();
        let called = providers(&fake).embed(&embedding, &texts(1), Purpose::Insert).await;
        let error = called.unwrap_err();
        assert!(matches!(error, Error::Refused { status: got, .. } if got == status), "{error}");
        assert!(!error.to_string().contains(KEY), "{error}");
        assert!(!format!("{error:?}").contains(KEY), "{error:?}");
        assert_eq!(fake.asked().len(), attempts, "{status}");
    }
    let fake = Fake::start(|asked, before| match before {
        0 => Answer { cut: Some(3), ..Answer::new(200, "[[1, 2]]") },
        1 => Answer::new(502, "gateway"),
        _ => Answer::new(200, answer("openai", asked).to_string()),
    });
    let embedding = embedding(&fake, "openai", &[]).unwrap();
    let found = providers(&fake).embed(&embedding, &texts(1), Purpose::Insert).await.unwrap();
    assert_eq!(found, vectors(1));
}

#[tokio::test]
async fn a_slow_provider_is_left_in_time_with_all_its_repetitions() {
    let fake = Fake::start(|_, _| Answer { delay: Duration::from_secs(3), ..Answer::new(500, "") });
    let patience = Patience {
        answer: Duration::from_millis(300),
        attempts: 3,
        pause: Duration::from_millis(1),
    };
    let options = ProviderOptions {
        keys: BTreeMap::from([("mine".to_owned(), Secret::new(KEY))]),
        allow: vec![fake.url.clone()],
        concurrency: 1,
        patience,
        ..ProviderOptions::default()
    };
    let providers = Providers::new(options).unwrap();
    let embedding = embedding(&fake, "openai", &[]).unwrap();
    let began = Instant::now();
    let called = providers.embed(&embedding, &texts(1), Purpose::Insert).await;
    assert!(called.unwrap_err().to_string().contains("longer than 0.3 s"));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn nobody_is_called_whom_the_operator_did_not_allow() {
    let (fake, other) = (speaking("openai"), speaking("openai"));
    let providers = providers(&fake);
    let read = |more: &[(&str, &str)]| {
        let all = [pairs(&[("provider", "openai"), ("model_name", "m")]), pairs(more)].concat();
        Embedding::parse("openai", &all, 2).unwrap().unwrap()
    };
    for url in [
        other.url.as_str(),
        "http://169.254.169.254/latest/meta-data",
        "http://api.openai.com/v1/embeddings",
        "https://api.openai.com:444/v1/embeddings",
        "https://api.openai.com.evil.example/v1/embeddings",
    ] {
        let embedding = read(&[("url", url), ("credential", "mine")]);
        let error = providers.embed(&embedding, &texts(1), Purpose::Insert).await.unwrap_err();
        assert!(error.to_string().contains("providers.allow"), "{error}");
    }
    assert!(other.asked().is_empty());
    for url in ["file:///etc/passwd", "http://me:pw@host/", "gopher://x", "http://"] {
        let all = pairs(&[("provider", "openai"), ("model_name", "m"), ("url", url)]);
        assert!(Embedding::parse("openai", &all, 2).unwrap().is_err(), "{url}");
    }
    // The provider's key goes to the provider; an address that is merely allowed gets none.
    let embedding = read(&[("url", &fake.url)]);
    providers.embed(&embedding, &texts(1), Purpose::Insert).await.unwrap();
    assert_eq!(fake.asked()[0].header("authorization"), None);
}

#[test]
fn parameters_are_checked_before_anything_is_sent() {
    let read = |provider: &str, more: &[(&str, &str)]| {
        let all = [pairs(&[("provider", provider)]), pairs(more)].concat();
        Embedding::parse(provider, &all, 2).unwrap().map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = |provider: &str, more: &[(&str, &str)], expected: &str| {
        let error = read(provider, more).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    refused("openai", &[], "model_name");
    refused("tei", &[], "endpoint");
    refused("openai", &[("model_name", "m"), ("dim", "3")], "does not match");
    refused("openai", &[("model_name", "m"), ("dim", "x")], "not a valid number");
    refused("openai", &[("model_name", "m"), ("truncate", "END")], "unknown parameter truncate");
    refused("cohere", &[("model_name", "m"), ("truncate", "MIDDLE")], "NONE, START, END");
    refused("voyageai", &[("model_name", "m"), ("truncation", "maybe")], "not true or false");
    refused("openai", &[("model_name", "m"), ("max_client_batch_size", "0")], "[1, 4096]");
    assert_eq!(read("openai", &[("Model_Name", "m"), ("DIM", "0")]), Ok(()));
    assert!(Embedding::parse("bedrock", &[], 2).is_none());
    let key = Secret::new(KEY);
    let options = ProviderOptions {
        default_keys: BTreeMap::from([("openai".to_owned(), key)]),
        ..ProviderOptions::default()
    };
    assert!(!format!("{options:?}").contains(KEY));
}
