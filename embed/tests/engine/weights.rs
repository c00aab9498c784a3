//! Weights in other forms: in several files, in eight bits, converted once and used again.

use std::path::{Path, PathBuf};

use crate::common::{Golden, golden};
use elanus_embed::{
    EmbedRequest, Embeddings, Error, Mode, ModelStore, Options, Outputs, Precision,
};

const MODEL: &str = "tiny-bge-m3";
const ALL: Outputs = Outputs { dense: true, sparse: true, colbert: true };

fn sentences() -> Vec<String> {
    golden::<serde_json::Value>(MODEL)["sentences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

async fn embed(folder: &Golden, precision: Precision) -> Result<Embeddings, Error> {
    let dirs = vec![folder.path().to_owned()];
    let store = ModelStore::new(Options { dirs, precision, ..Options::default() });
    store.embed(MODEL, EmbedRequest::new(sentences(), ALL, Mode::Insert)).await
}

fn file(folder: &Golden, name: &str) -> PathBuf {
    folder.path().join(MODEL).join(name)
}

/// Deals the tensors of `model.safetensors` out to two files and writes their index.
fn shard(folder: &Golden) {
    let whole = std::fs::read(file(folder, "model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut index = serde_json::Map::new();
    for shard in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let mut names = tensors.names();
        names.sort();
        let part: Vec<_> = names.into_iter().skip(shard).step_by(2).collect();
        for tensor in &part {
            index.insert((*tensor).to_owned(), name.clone().into());
        }
        let part = part.into_iter().map(|name| (name, tensors.tensor(name).unwrap()));
        safetensors::serialize_to_file(part, None, &file(folder, &name)).unwrap();
    }
    std::fs::remove_file(file(folder, "model.safetensors")).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    std::fs::write(file(folder, "model.safetensors.index.json"), index.to_string()).unwrap();
}

#[tokio::test]
async fn weights_in_several_files_give_the_same_bits() {
    let (whole, sharded) = (Golden::copy_of(MODEL), Golden::copy_of(MODEL));
    shard(&sharded);
    std::fs::remove_file(file(&sharded, "pytorch_model.bin")).unwrap();
    let expected = embed(&whole, Precision::F32).await.unwrap();
    assert_eq!(embed(&sharded, Precision::F32).await.unwrap(), expected);

    std::fs::remove_file(file(&sharded, "model-00002-of-00002.safetensors")).unwrap();
    let error = embed(&sharded, Precision::F32).await.unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[tokio::test]
async fn an_index_cannot_name_files_elsewhere() {
    let folder = Golden::copy_of(MODEL);
    std::fs::remove_file(file(&folder, "model.safetensors")).unwrap();
    for name in ["../model.safetensors", "/etc/x.safetensors", "model.bin"] {
        let index = serde_json::json!({ "weight_map": { "a": name } });
        std::fs::write(file(&folder, "model.safetensors.index.json"), index.to_string()).unwrap();
        let error = embed(&folder, Precision::F32).await.unwrap_err().to_string();
        assert!(error.contains("it names the file"), "{error}");
    }
}

#[tokio::test]
async fn eight_bits_are_near_and_do_not_depend_on_the_batch() {
    let folder = Golden::copy_of(MODEL);
    let exact = embed(&folder, Precision::F32).await.unwrap();
    let together = embed(&folder, Precision::Int8).await.unwrap();
    assert_ne!(together, exact, "it really ran in eight bits");
    let rows = |found: &Embeddings| -> Vec<Vec<f32>> {
        found.dense.as_ref().unwrap().chunks_exact(found.dim).map(<[f32]>::to_vec).collect()
    };
    for (a, b) in rows(&exact).iter().zip(&rows(&together)) {
        let cosine: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.99, "cosine {cosine}");
    }
    let dirs = vec![folder.path().to_owned()];
    let options = Options { dirs, precision: Precision::Int8, ..Options::default() };
    let store = ModelStore::new(options);
    for (index, text) in sentences().into_iter().enumerate() {
        let request = EmbedRequest::new(vec![text], ALL, Mode::Search);
        let alone = store.embed(MODEL, request).await.unwrap();
        assert_eq!(alone.dense.unwrap(), rows(&together)[index]);
        assert_eq!(alone.sparse.unwrap()[0], together.sparse.as_ref().unwrap()[index]);
        assert_eq!(alone.colbert.unwrap()[0], together.colbert.as_ref().unwrap()[index]);
    }
    assert_eq!(store.loaded()[0].precision, Precision::Int8);
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

#[tokio::test]
async fn converted_weights_are_used_again_until_their_source_changes() {
    let folder = Golden::copy_of(MODEL);
    // Only the pickle: it is converted, and then quantized.
    std::fs::remove_file(file(&folder, "model.safetensors")).unwrap();
    let first = embed(&folder, Precision::Int8).await.unwrap();
    let made = [".elanus/model.safetensors", ".elanus/int8.safetensors"];
    let times = made.map(|name| modified(&file(&folder, name)));
    assert_eq!(embed(&folder, Precision::Int8).await.unwrap(), first);
    assert_eq!(made.map(|name| modified(&file(&folder, name))), times, "nothing was made anew");

    // Cut short, as by a full disk, and older than its source: both are made anew.
    let int8 = file(&folder, made[1]);
    let bytes = std::fs::read(&int8).unwrap();
    std::fs::write(&int8, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(embed(&folder, Precision::Int8).await.unwrap(), first);
    assert_eq!(std::fs::read(&int8).unwrap(), bytes);
    let source = std::fs::read(file(&folder, "pytorch_model.bin")).unwrap();
    std::fs::write(file(&folder, "pytorch_model.bin"), source).unwrap();
    assert_eq!(embed(&folder, Precision::Int8).await.unwrap(), first);
    assert_ne!(std::fs::read(&int8).unwrap(), bytes, "it names another source");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_to_works_as_well() {
    let folder = Golden::copy_of(MODEL);
    let expected = embed(&folder, Precision::Int8).await.unwrap();
    std::fs::remove_dir_all(file(&folder, ".elanus")).unwrap();
    // A file in the place of the folder refuses even a superuser.
    std::fs::write(file(&folder, ".elanus"), "").unwrap();
    assert_eq!(embed(&folder, Precision::Int8).await.unwrap(), expected);
    std::fs::remove_file(file(&folder, "model.safetensors")).unwrap();
    assert_eq!(embed(&folder, Precision::Int8).await.unwrap(), expected);
}
