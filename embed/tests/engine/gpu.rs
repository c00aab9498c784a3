//! The golden data on a GPU, in float16. Ignored: they need a GPU, and a build with the feature
//! `cuda`. `cargo test --release -p elanus-embed --features cuda -- --ignored gpu`

use crate::common::{golden, golden_dir, own_golden_dir};
use elanus_embed::{
    Device, EmbedRequest, Mode, ModelStore, Options, Outputs, Precision, RerankRequest,
};
use serde::Deserialize;

/// What the golden data grant float16 on random weights, which amplify rounding.
const COSINE: f32 = 0.999;

fn store() -> ModelStore {
    let dirs = vec![golden_dir(), own_golden_dir()];
    ModelStore::new(Options { dirs, device: Device::Cuda(0), ..Options::default() })
}

#[derive(Deserialize)]
struct Row {
    dense: Vec<f32>,
    #[serde(default)]
    colbert: Vec<f32>,
}

#[derive(Deserialize)]
struct M3 {
    sentences: Vec<String>,
    max_length_512: Vec<Row>,
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn on_a_gpu_bge_m3_stays_near_its_reference() {
    let golden: M3 = golden("tiny-bge-m3");
    let outputs = Outputs { dense: true, sparse: true, colbert: true };
    let store = store();
    let request = EmbedRequest::new(golden.sentences, outputs, Mode::Insert);
    let found = store.embed("tiny-bge-m3", request).await.unwrap();
    assert_eq!(store.loaded()[0].precision, Precision::F16);
    assert_eq!(store.loaded()[0].device, Device::Cuda(0));
    let colbert = found.colbert.unwrap();
    for (index, expected) in golden.max_length_512.iter().enumerate() {
        let dense = &found.dense.as_ref().unwrap()[index * found.dim..][..found.dim];
        assert!(cosine(dense, &expected.dense) >= COSINE, "text {index}");
        if !expected.colbert.is_empty() {
            assert!(cosine(&colbert[index], &expected.colbert) >= COSINE, "text {index}");
        }
    }
}

#[derive(Deserialize)]
struct Run {
    max_length: usize,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Reranker {
    pairs: Vec<[String; 2]>,
    runs: Vec<Run>,
}

#[tokio::test]
#[ignore = "needs a GPU"]
async fn on_a_gpu_the_cross_encoder_stays_near_its_reference() {
    let golden: Reranker = golden("tiny-reranker");
    let store = store();
    for run in &golden.runs {
        for ([query, doc], logit) in golden.pairs.iter().zip(&run.logits) {
            let request = RerankRequest {
                query: query.clone(),
                docs: vec![doc.clone()],
                max_length: Some(run.max_length),
                ..Default::default()
            };
            let found = store.rerank("tiny-reranker", request).await.unwrap()[0];
            assert!((found - logit).abs() < 2e-2, "{found} not {logit}");
        }
    }
}
