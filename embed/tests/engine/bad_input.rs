//! Damaged folders, impossible requests and hostile texts: a clear error, never a panic.

use std::time::Duration;

use crate::common::{Golden, golden_dir, store};
use elanus_embed::{EmbedRequest, Error, Mode, ModelStore, Options, Outputs, RerankRequest};

fn request(texts: &[&str]) -> EmbedRequest {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    EmbedRequest::new(texts, Outputs::DENSE, Mode::Search)
}

async fn load(folder: &Golden) -> String {
    let error = folder.store().embed("tiny-bge-m3", request(&["a"])).await.unwrap_err();
    error.to_string()
}

#[tokio::test]
async fn names_cannot_leave_the_model_directories() {
    let store = store();
    let long = "x".repeat(300);
    for name in [
        "",
        "..",
        "../tiny-bge-m3",
        "a/../b",
        "/etc",
        "a//b",
        "a/b/c",
        "a\\b",
        "a\0b",
        "c:/d",
        &long,
    ] {
        let error = store.resolve(name).unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{name:?}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_model_names_what_was_searched_and_what_is_there() {
    let error = store().resolve("BAAI/bge-m4").unwrap_err().to_string();
    assert!(error.contains("BAAI/bge-m4") && error.contains("tiny-bge-m3"), "{error}");
}

#[tokio::test]
async fn a_model_is_found_without_its_organisation_and_in_any_case() {
    let dir = tempfile::tempdir().unwrap();
    let copy = Golden::copy_of("tiny-bge-m3");
    std::fs::create_dir(dir.path().join("BAAI")).unwrap();
    std::fs::rename(copy.path().join("tiny-bge-m3"), dir.path().join("BAAI/bge-m3")).unwrap();
    let store =
        ModelStore::new(Options { dirs: vec![dir.path().to_owned()], ..Options::default() });
    for name in ["BAAI/bge-m3", "baai/BGE-M3", "bge-m3", "BGE-m3"] {
        assert_eq!(store.resolve(name).unwrap().name, "BAAI/bge-m3");
    }
    store.embed("bge-m3", request(&["a"])).await.unwrap();
    store.embed("BAAI/bge-m3", request(&["a"])).await.unwrap();
    assert_eq!(store.loaded().len(), 1, "two names of one folder are one model in memory");
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for file in ["config.json", "tokenizer.json", "colbert_linear.pt", "sparse_linear.pt"] {
        let folder = Golden::copy_of("tiny-bge-m3");
        std::fs::remove_file(folder.path().join("tiny-bge-m3").join(file)).unwrap();
        let error = load(&folder).await;
        if file == "config.json" {
            // A folder without it is no model.
            assert!(error.contains("was not found"), "{error}");
        } else {
            assert!(error.contains(file), "{file}: {error}");
        }
    }
    let folder = Golden::copy_of("tiny-bge-m3");
    for file in ["model.safetensors", "pytorch_model.bin"] {
        std::fs::remove_file(folder.path().join("tiny-bge-m3").join(file)).unwrap();
    }
    assert!(load(&folder).await.contains("model.safetensors"));
}

#[tokio::test]
async fn damaged_weights_are_refused_with_the_file() {
    let whole = std::fs::read(golden_dir().join("tiny-bge-m3/model.safetensors")).unwrap();
    let mut overlong = whole.clone();
    overlong[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[8..100].fill(b'{');
    let half = whole[..whole.len() / 2].to_vec();
    for bytes in [Vec::new(), whole[..4].to_vec(), whole[..5000].to_vec(), half, overlong, garbled]
    {
        let folder = Golden::copy_of("tiny-bge-m3");
        std::fs::write(folder.path().join("tiny-bge-m3/model.safetensors"), bytes).unwrap();
        let error = load(&folder).await;
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

#[tokio::test]
async fn damaged_pickles_are_refused_with_the_file() {
    let whole = std::fs::read(golden_dir().join("tiny-bge-m3/sparse_linear.pt")).unwrap();
    let mut broken = Vec::new();
    for length in [0, 10, whole.len() / 2, whole.len() - 30] {
        broken.push(whole[..length].to_vec());
    }
    // A bare pickle that would run a command if anything executed it.
    broken.push(b"cos\nsystem\n(S'touch executed'\ntR.".to_vec());
    // Every byte of the pickle inside the archive in turn, as corruption would have it.
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        broken.push(bytes);
    }
    let folder = Golden::copy_of("tiny-bge-m3");
    let mut refused = 0;
    for bytes in broken {
        std::fs::write(folder.path().join("tiny-bge-m3/sparse_linear.pt"), bytes).unwrap();
        // Some flips fall into padding or into a number and do no harm.
        if let Err(error) = folder.store().embed("tiny-bge-m3", request(&["a"])).await {
            assert!(error.to_string().contains("sparse_linear.pt"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 30, "only {refused} damaged files were refused");
}

#[tokio::test]
async fn weights_of_another_shape_are_refused() {
    let folder = Golden::copy_of("tiny-bge-m3");
    let path = folder.path().join("tiny-bge-m3/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"hidden_size\": 64", "\"hidden_size\": 128")).unwrap();
    let error = load(&folder).await;
    assert!(error.contains("[4014, 64]") && error.contains("[4014, 128]"), "{error}");
}

#[tokio::test]
async fn configurations_that_are_not_understood_are_refused_with_the_reason() {
    for (from, to, reason) in [
        ("\"xlm-roberta\"", "\"deberta\"", "deberta"),
        ("\"gelu\"", "\"gelu_new\"", "gelu_new"),
        ("\"absolute\"", "\"rotary\"", "rotary"),
        ("\"hidden_size\": 64", "\"hidden_size\": 0", "hidden_size"),
        ("\"hidden_size\": 64", "\"hidden_size\": 99999999999", "hidden_size"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "num_attention_heads"),
        ("\"pad_token_id\": 1", "\"pad_token_id\": 5000", "pad_token_id"),
        ("\"vocab_size\": 4014", "\"vocab_size\": -1", "config.json"),
        ("{", "[", "config.json"),
    ] {
        let folder = Golden::copy_of("tiny-bge-m3");
        let path = folder.path().join("tiny-bge-m3/config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{from}");
        std::fs::write(&path, config.replacen(from, to, 1)).unwrap();
        let error = folder.store().resolve("tiny-bge-m3").unwrap_err().to_string();
        assert!(error.contains(reason), "{to}: {error}");
    }
}

#[tokio::test]
async fn outputs_a_model_does_not_have_are_refused_with_what_it_has() {
    let store = store();
    let error = store.embed("tiny-reranker", request(&["a"])).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("re-ranker")), "{error}");
    let rerank = RerankRequest { query: "a".into(), docs: vec!["b".into()], ..Default::default() };
    let error = store.rerank("tiny-bge-m3", rerank).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("dense")), "{error}");
    let nothing = EmbedRequest { outputs: Outputs::default(), ..request(&["a"]) };
    assert!(matches!(store.embed("tiny-bge-m3", nothing).await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn lengths_out_of_range_are_refused() {
    let store = store();
    for max_length in [0, 3, 1025, usize::MAX] {
        let request = EmbedRequest { max_length: Some(max_length), ..request(&["a"]) };
        let error = store.embed("tiny-bge-m3", request).await.unwrap_err();
        assert!(error.to_string().contains("4 to 1024"), "{error}");
    }
}

#[tokio::test]
async fn no_texts_give_no_vectors() {
    let found = store().embed("tiny-bge-m3", request(&[])).await.unwrap();
    assert_eq!(found.dense, Some(Vec::new()));
    assert_eq!(found.tokens, 0);
}

#[tokio::test]
async fn a_megabyte_of_text_and_control_characters_are_only_texts() {
    let store = store();
    let words = "lorem ipsum ".repeat(90_000);
    let one_word = "x".repeat(1_000_000);
    let spaces = " ".repeat(1_000_000);
    let odd = "\0\u{1}\u{7f}\u{fffe}\u{feff}\r\n\t\u{202e}\u{1f468}\u{200d}\u{1f469}";
    let found = store.embed("tiny-bge-m3", request(&[&words, &one_word, &spaces, odd, ""])).await;
    let found = found.unwrap();
    assert!(found.tokens <= 5 * 512);
    assert!(found.dense.unwrap().iter().all(|value| value.is_finite()));
}

#[tokio::test]
async fn a_text_of_many_megabytes_is_refused_before_it_is_tokenized() {
    let text = "x".repeat(5 << 20);
    let error = store().embed("tiny-bge-m3", request(&[&text])).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(reason) if reason.contains("passages")), "{error}");
}

#[tokio::test]
async fn a_queue_that_is_full_says_so_and_one_request_too_large_is_told_to_split() {
    let options = Options { dirs: vec![golden_dir()], queue_bytes: 1000, ..Options::default() };
    let store = ModelStore::new(options);
    let text = "x".repeat(2000);
    let error = store.embed("tiny-bge-m3", request(&[&text])).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(reason) if reason.contains("smaller")), "{error}");
    let text = "word ".repeat(150);
    let calls = (0..8).map(|_| {
        let (store, request) = (store.clone(), request(&[&text]));
        tokio::spawn(async move { store.embed("tiny-bge-m3", request).await })
    });
    let mut overloaded = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_retriable(), "{error}");
                overloaded += 1;
            }
        }
    }
    assert!(overloaded > 0, "eight calls of 800 bytes passed a limit of 1000");
}

#[tokio::test]
async fn a_call_that_is_dropped_gives_its_room_back() {
    let options = Options { dirs: vec![golden_dir()], queue_bytes: 4000, ..Options::default() };
    let store = ModelStore::new(options);
    let text = "word ".repeat(700);
    for _ in 0..20 {
        let call = store.embed("tiny-bge-m3", request(&[&text]));
        let _ = tokio::time::timeout(Duration::from_micros(50), call).await;
    }
    let mut left = 100;
    while let Err(error) = store.embed("tiny-bge-m3", request(&[&text])).await {
        assert!(error.is_retriable() && left > 0, "{error}");
        left -= 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn calls_of_many_tasks_each_get_their_own_vectors() {
    let store = store();
    let texts: Vec<String> = (0..60).map(|i| "word ".repeat(1 + i % 7) + &i.to_string()).collect();
    let alone =
        store.embed("tiny-bge-m3", EmbedRequest::new(texts.clone(), Outputs::DENSE, Mode::Insert));
    let alone = alone.await.unwrap();
    let calls = texts.iter().enumerate().map(|(i, text)| {
        let mode = if i % 2 == 0 { Mode::Insert } else { Mode::Search };
        let (store, texts) = (store.clone(), vec![text.clone()]);
        tokio::spawn(async move {
            store.embed("tiny-bge-m3", EmbedRequest::new(texts, Outputs::DENSE, mode)).await
        })
    });
    for (i, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        let found = call.await.unwrap().unwrap();
        let expected = &alone.dense.as_ref().unwrap()[i * alone.dim..][..alone.dim];
        assert_eq!(found.dense.unwrap(), expected);
    }
}

#[cfg(not(feature = "cuda"))]
#[tokio::test]
async fn a_gpu_in_a_build_without_them_is_refused_with_the_reason() {
    use elanus_embed::{Device, Precision};
    for (device, precision, reason) in [
        (Device::Cuda(0), Precision::Auto, "without CUDA"),
        (Device::Auto, Precision::F16, "f16 is for GPUs"),
    ] {
        let options = Options { dirs: vec![golden_dir()], device, precision, ..Options::default() };
        let error = ModelStore::new(options).embed("tiny-bge-m3", request(&["a"])).await;
        let error = error.unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains(reason)), "{error}");
    }
}
