//! Every family in the layout it is published in: recognised from its own files, with its pooling,
//! its prompts and its heads, over tiny encoders with random weights. The expected values are
//! those of torch and transformers (`tests/data/make_families.py`).

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{SparseRow, assert_close, golden_dir, own_golden_dir};
use elanus_embed::{EmbedRequest, Mode, ModelStore, Options, Outputs, Precision, RerankRequest};
use serde::Deserialize;

/// Largest difference of a value to the reference in float32.
const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Golden {
    documents: Vec<String>,
    queries: Vec<String>,
    families: Vec<Family>,
    reranker: Reranker,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    weights: String,
    tokenizer: String,
    files: BTreeMap<String, serde_json::Value>,
    documents: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
    #[serde(default)]
    sparse: Vec<SparseRow>,
}

#[derive(Deserialize)]
struct Reranker {
    name: String,
    weights: String,
    tokenizer: String,
    pairs: Vec<[String; 2]>,
    logits: Vec<f32>,
}

fn golden() -> Golden {
    let path = own_golden_dir().join("families.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A folder of golden models by its name.
fn source(name: &str) -> std::path::PathBuf {
    let dirs = [own_golden_dir().join("families"), own_golden_dir(), golden_dir()];
    let found = dirs.iter().map(|dir| dir.join(name)).find(|dir| dir.is_dir());
    found.unwrap_or_else(|| panic!("there is no golden folder {name}"))
}

/// Puts a family's folder together: shared weights and tokenizer, its own small files.
fn install(
    dir: &Path,
    name: &str,
    weights: &str,
    tokenizer: &str,
    files: &BTreeMap<String, serde_json::Value>,
) {
    let folder = dir.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(source(weights).join(file), folder.join(file)).unwrap();
    }
    std::fs::copy(source(tokenizer).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    for (file, content) in files {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content.to_string()).unwrap();
        if file == "2_Dense/config.json" {
            let layer = source("2_Dense").join("model.safetensors");
            std::fs::copy(layer, path.with_file_name("model.safetensors")).unwrap();
        }
    }
}

fn store(dir: &Path, precision: Precision) -> ModelStore {
    ModelStore::new(Options { dirs: vec![dir.to_owned()], precision, ..Options::default() })
}

async fn dense(store: &ModelStore, model: &str, texts: &[String], mode: Mode) -> Vec<Vec<f32>> {
    let request = EmbedRequest::new(texts.to_vec(), Outputs::DENSE, mode);
    let found = store.embed(model, request).await.unwrap();
    found.dense.unwrap().chunks_exact(found.dim).map(<[f32]>::to_vec).collect()
}

#[tokio::test]
async fn every_family_gives_the_vectors_of_its_reference_from_its_published_layout() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Precision::F32);
    assert!(golden.families.len() >= 18);
    for family in &golden.families {
        let Family { name, weights, tokenizer, files, .. } = family;
        install(dir.path(), name, weights, tokenizer, files);
        for (texts, mode, expected) in [
            (&golden.documents, Mode::Insert, &family.documents),
            (&golden.queries, Mode::Search, &family.queries),
        ] {
            let found = dense(&store, name, texts, mode).await;
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                println!("{name}");
                assert_close(found, expected, TOLERANCE);
            }
        }
        if !family.sparse.is_empty() {
            let request =
                EmbedRequest::new(golden.documents.clone(), Outputs::SPARSE, Mode::Insert);
            let found = store.embed(name, request).await.unwrap().sparse.unwrap();
            for (found, expected) in found.iter().zip(&family.sparse) {
                expected.assert_close(found, TOLERANCE);
            }
        }
    }
}

#[tokio::test]
async fn the_cross_encoder_of_gte_scores_as_transformers_does() {
    let Golden { reranker, .. } = golden();
    let Reranker { name, weights, tokenizer, pairs, logits } = &reranker;
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), name, weights, tokenizer, &BTreeMap::new());
    let store = store(dir.path(), Precision::F32);
    for ([query, doc], logit) in pairs.iter().zip(logits) {
        let request =
            RerankRequest { query: query.clone(), docs: vec![doc.clone()], ..Default::default() };
        assert_close(&store.rerank(name, request).await.unwrap(), &[*logit], TOLERANCE);
    }
}

#[tokio::test]
async fn gte_in_eight_bits_stays_near_its_vectors() {
    let golden = golden();
    let family = golden.families.iter().find(|f| f.weights == "gte-multilingual").unwrap();
    let Family { name, weights, tokenizer, files, .. } = family;
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), name, weights, tokenizer, files);
    for _ in 0..2 {
        // The second time from the weights that were kept.
        let store = store(dir.path(), Precision::Int8);
        let found = dense(&store, name, &golden.documents, Mode::Insert).await;
        for (found, expected) in found.iter().zip(&family.documents) {
            let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.99, "{cosine}");
        }
    }
}

#[tokio::test]
async fn a_vector_cut_short_is_its_beginning_made_one_long_again() {
    let golden = golden();
    let family = golden.families.iter().find(|f| f.name.contains("arctic")).unwrap();
    let Family { name, weights, tokenizer, files, .. } = family;
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), name, weights, tokenizer, files);
    let store = store(dir.path(), Precision::F32);
    let request = EmbedRequest {
        dim: Some(24),
        ..EmbedRequest::new(golden.documents.clone(), Outputs::DENSE, Mode::Insert)
    };
    let found = store.embed(name, request).await.unwrap();
    assert_eq!(found.dim, 24);
    for (found, whole) in found.dense.unwrap().chunks_exact(24).zip(&family.documents) {
        let length = whole[..24].iter().map(|x| x * x).sum::<f32>().sqrt();
        let expected: Vec<f32> = whole[..24].iter().map(|x| x / length).collect();
        assert_close(found, &expected, TOLERANCE);
    }
}
