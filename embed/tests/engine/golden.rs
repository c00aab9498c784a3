//! The golden data of `tests/data/embedding-golden`: what FlagEmbedding and transformers return
//! for tiny models with random weights, within the tolerances that its README states.

use crate::common::{Golden, Sparse, assert_close, golden, store};
use elanus_embed::{
    EmbedRequest, Embeddings, LateRequest, LateWeights, Mode, ModelStore, Outputs, RerankRequest,
};
use serde::Deserialize;

/// Largest difference of a value to the reference in float32.
const TOLERANCE: f32 = 2e-5;

const ALL: Outputs = Outputs { dense: true, sparse: true, colbert: true };

#[derive(Deserialize)]
struct M3Row {
    dense: Vec<f32>,
    sparse: std::collections::BTreeMap<u32, f32>,
    colbert_shape: [usize; 2],
    #[serde(default)]
    colbert: Vec<f32>,
}

#[derive(Deserialize)]
struct M3Scores {
    pairs: Vec<[String; 2]>,
    dense: Vec<f32>,
    sparse: Vec<f32>,
    colbert: Vec<f32>,
    #[serde(rename = "colbert+sparse+dense")]
    all: Vec<f32>,
}

#[derive(Deserialize)]
struct M3Long {
    text: String,
    max_length: usize,
    n_ids: usize,
    dense: Vec<f32>,
    colbert_rows: usize,
    colbert_last_row: Vec<f32>,
    sparse_sum: f32,
    sparse_terms: usize,
}

#[derive(Deserialize)]
struct M3 {
    sentences: Vec<String>,
    max_length_512: Vec<M3Row>,
    max_length_8: Vec<M3Row>,
    #[serde(rename = "scores_0.4_0.2_0.4")]
    scores: M3Scores,
    long: M3Long,
}

async fn m3(
    store: &ModelStore,
    model: &str,
    texts: &[String],
    max_length: Option<usize>,
) -> Embeddings {
    let request =
        EmbedRequest { max_length, ..EmbedRequest::new(texts.to_vec(), ALL, Mode::Insert) };
    store.embed(model, request).await.unwrap()
}

fn assert_m3(found: &Embeddings, expected: &[M3Row]) {
    let dense = found.dense.as_ref().unwrap();
    let sparse = found.sparse.as_ref().unwrap();
    let colbert = found.colbert.as_ref().unwrap();
    assert_eq!((sparse.len(), colbert.len()), (expected.len(), expected.len()));
    for (index, expected) in expected.iter().enumerate() {
        assert_close(&dense[index * found.dim..][..found.dim], &expected.dense, TOLERANCE);
        let ids = |pairs: &[(u32, f32)]| pairs.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&sparse[index]), expected.sparse.keys().copied().collect::<Vec<_>>());
        let weights: Vec<f32> = sparse[index].iter().map(|(_, weight)| *weight).collect();
        let expected_weights: Vec<f32> = expected.sparse.values().copied().collect();
        assert_close(&weights, &expected_weights, TOLERANCE);
        assert_eq!(colbert[index].len(), expected.colbert_shape.iter().product::<usize>());
        if !expected.colbert.is_empty() {
            assert_close(&colbert[index], &expected.colbert, TOLERANCE);
        }
    }
}

#[tokio::test]
async fn bge_m3_gives_the_three_outputs_of_flagembedding() {
    let golden: M3 = golden("tiny-bge-m3");
    let store = store();
    let found = m3(&store, "tiny-bge-m3", &golden.sentences, None).await;
    assert_m3(&found, &golden.max_length_512);
    let cut = m3(&store, "tiny-bge-m3", &golden.sentences, Some(8)).await;
    assert_m3(&cut, &golden.max_length_8);
}

#[tokio::test]
async fn pytorch_weights_give_the_same_bits_as_safetensors() {
    let golden: M3 = golden("tiny-bge-m3");
    let folder = Golden::copy_of("tiny-bge-m3");
    std::fs::remove_file(folder.path().join("tiny-bge-m3/model.safetensors")).unwrap();
    let from_pickle = m3(&folder.store(), "tiny-bge-m3", &golden.sentences, None).await;
    assert_m3(&from_pickle, &golden.max_length_512);
    let from_safetensors = m3(&store(), "tiny-bge-m3", &golden.sentences, None).await;
    assert_eq!(from_pickle, from_safetensors);
}

#[tokio::test]
async fn a_text_of_1024_tokens_has_the_right_positions() {
    let M3 { long, .. } = golden("tiny-bge-m3");
    let found = m3(&store(), "tiny-bge-m3", &[long.text], Some(long.max_length)).await;
    assert_eq!(found.tokens, long.n_ids);
    assert_close(found.dense.as_ref().unwrap(), &long.dense, TOLERANCE);
    let colbert = &found.colbert.as_ref().unwrap()[0];
    assert_eq!(colbert.len(), long.colbert_rows * long.colbert_last_row.len());
    let last = &colbert[colbert.len() - long.colbert_last_row.len()..];
    assert_close(last, &long.colbert_last_row, TOLERANCE);
    let sparse = &found.sparse.as_ref().unwrap()[0];
    assert_eq!(sparse.len(), long.sparse_terms);
    let sum: f32 = sparse.iter().map(|(_, weight)| weight).sum();
    assert!((sum - long.sparse_sum).abs() < TOLERANCE * sparse.len() as f32);
}

#[tokio::test]
async fn late_interaction_scores_as_compute_score() {
    let M3 { scores, .. } = golden("tiny-bge-m3");
    let store = store();
    for (index, [query, doc]) in scores.pairs.iter().enumerate() {
        for (weights, expected) in [
            ([1.0, 0.0, 0.0], scores.dense[index]),
            ([0.0, 1.0, 0.0], scores.sparse[index]),
            ([0.0, 0.0, 1.0], scores.colbert[index]),
            ([0.4, 0.2, 0.4], scores.all[index]),
        ] {
            let [dense, sparse, colbert] = weights;
            // More documents than one call of the model takes; the last one counts.
            let mut docs = vec!["another text".to_owned(); 20];
            docs.push(doc.clone());
            let weights = LateWeights { dense, sparse, colbert };
            let query = query.clone();
            let request = LateRequest { query, docs, weights, max_length: None };
            let found = store.late_interaction("tiny-bge-m3", request).await.unwrap();
            assert_eq!(found.len(), 21);
            // Sums of products of weights up to 6.5: the tolerance is relative there.
            assert!((found[20] - expected).abs() <= TOLERANCE * expected.abs().max(1.0));
        }
    }
    let none = LateRequest { query: "a".into(), ..LateRequest::default() };
    assert_eq!(store.late_interaction("tiny-bge-m3", none).await.unwrap(), [0.0; 0]);
    let other = LateRequest { query: "a".into(), docs: vec!["b".into()], ..Default::default() };
    let error = store.late_interaction("tiny-splade", other).await.unwrap_err();
    assert!(error.to_string().contains("token vectors"), "{error}");
}

/// The README allows 2e-6; the kernels promise equal bits.
#[tokio::test]
async fn a_text_has_the_same_bits_alone_in_a_batch_and_in_any_order() {
    let M3 { mut sentences, .. } = golden("tiny-bge-m3");
    let store = store();
    let together = m3(&store, "tiny-bge-m3", &sentences, None).await;
    for (index, text) in sentences.iter().enumerate() {
        let alone = m3(&store, "tiny-bge-m3", std::slice::from_ref(text), None).await;
        assert_eq!(
            alone.dense.unwrap(),
            together.dense.as_ref().unwrap()[index * together.dim..][..together.dim]
        );
        assert_eq!(alone.sparse.unwrap()[0], together.sparse.as_ref().unwrap()[index]);
        assert_eq!(alone.colbert.unwrap()[0], together.colbert.as_ref().unwrap()[index]);
    }
    sentences.reverse();
    let mut reversed = m3(&store, "tiny-bge-m3", &sentences, None).await;
    reversed.sparse.as_mut().unwrap().reverse();
    assert_eq!(reversed.sparse, together.sparse);
}

#[derive(Deserialize)]
struct Run {
    max_length: usize,
    logits: Vec<f32>,
    scores_normalized: Vec<f32>,
}

#[derive(Deserialize)]
struct Reranker {
    pairs: Vec<[String; 2]>,
    runs: Vec<Run>,
}

#[tokio::test]
async fn the_cross_encoder_scores_as_transformers_does() {
    let golden: Reranker = golden("tiny-reranker");
    let store = store();
    for run in &golden.runs {
        for (index, [query, doc]) in golden.pairs.iter().enumerate() {
            let request = |normalize: bool| RerankRequest {
                query: query.clone(),
                docs: vec![doc.clone()],
                normalize,
                max_length: Some(run.max_length),
                ..Default::default()
            };
            let logits = store.rerank("tiny-reranker", request(false)).await.unwrap();
            assert_close(&logits, &run.logits[index..=index], TOLERANCE);
            let scores = store.rerank("tiny-reranker", request(true)).await.unwrap();
            assert_close(&scores, &run.scores_normalized[index..=index], TOLERANCE);
        }
    }
}

#[tokio::test]
async fn documents_of_one_query_are_scored_in_the_order_given() {
    let golden: Reranker = golden("tiny-reranker");
    let docs: Vec<String> = golden.pairs.iter().map(|[_, doc]| doc.clone()).collect();
    let query = golden.pairs[0][0].clone();
    let store = store();
    let request = RerankRequest { query: query.clone(), docs: docs.clone(), ..Default::default() };
    let together = store.rerank("tiny-reranker", request).await.unwrap();
    assert_eq!(together.len(), docs.len());
    for (doc, score) in docs.into_iter().zip(together) {
        let request = RerankRequest { query: query.clone(), docs: vec![doc], ..Default::default() };
        assert_eq!(store.rerank("tiny-reranker", request).await.unwrap(), [score]);
    }
}

#[derive(Deserialize)]
struct BertPairs {
    pairs: Vec<[String; 2]>,
    logits: Vec<f32>,
}

#[tokio::test]
async fn a_bert_cross_encoder_knows_the_second_text_by_its_type() {
    let golden: BertPairs = golden("tiny-bert-reranker");
    let store = store();
    for ([query, doc], logit) in golden.pairs.iter().zip(&golden.logits) {
        let request = RerankRequest {
            query: query.clone(),
            docs: vec![doc.clone()],
            max_length: Some(128),
            ..Default::default()
        };
        let found = store.rerank("tiny-bert-reranker", request).await.unwrap();
        assert_close(&found, &[*logit], TOLERANCE);
    }
}

#[tokio::test]
async fn splade_gives_the_weights_of_transformers() {
    let golden: Sparse = golden("tiny-splade");
    let request = EmbedRequest::new(golden.sentences.clone(), Outputs::SPARSE, Mode::Insert);
    let found = store().embed("tiny-splade", request).await.unwrap();
    golden.assert_close(&found.sparse.unwrap(), TOLERANCE);
    assert_eq!(found.dense, None);
}

#[tokio::test]
async fn a_question_asked_again_costs_no_pass_and_has_the_same_bits() {
    let M3 { sentences, .. } = golden("tiny-bge-m3");
    let store = store();
    let ask = |outputs| {
        let request = EmbedRequest::new(sentences.clone(), outputs, Mode::Search);
        store.embed("tiny-bge-m3", request)
    };
    let first = ask(ALL).await.unwrap();
    let tokens = store.loaded()[0].tokens;
    assert_eq!(ask(ALL).await.unwrap(), first);
    let dense = ask(Outputs::DENSE).await.unwrap();
    assert_eq!(dense.dense, first.dense);
    assert!(dense.sparse.is_none() && dense.colbert.is_none());
    let info = &store.loaded()[0];
    assert_eq!(info.tokens, tokens, "nothing was run again");
    assert!(info.cache_hits >= sentences.len() as u64);
    // The thread counts what is left after it has answered.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while store.load().queued_calls > 0 {
        assert!(std::time::Instant::now() < deadline, "{:?}", store.load());
        tokio::task::yield_now().await;
    }
    assert!(store.load().batch_tokens > 0);
}
