use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use elanus_remote::{Checksum, Error, Hub, Patience, Progress, RemoteFile, Secret, Snapshot};
use ring::digest;

use crate::fake::{Answer, Asked, Fake};

const COMMIT: &str = "5617a9f61b028005a4858fdac845db406aefb181";
const TOKEN: &str = "hf_not_to_be_seen";
const CONFIG: &[u8] = b"{\"model_type\": \"bert\"}";

fn weights() -> Vec<u8> {
    (0..300_000_u32).flat_map(|n| (n * 7).to_le_bytes()).collect()
}

fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, bytes))
}

fn git(bytes: &[u8]) -> String {
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &blob))
}

/// The list of files as Hugging Face writes it.
fn list() -> Vec<u8> {
    let weights = weights();
    format!(
        r#"{{"id": "a/b", "sha": "{COMMIT}", "siblings": [
            {{"rfilename": "config.json", "size": {}, "blobId": "{}"}},
            {{"rfilename": "model.safetensors", "size": {}, "blobId": "0", "lfs":
                {{"sha256": "{}", "size": {}, "pointerSize": 135}}}}]}}"#,
        CONFIG.len(),
        git(CONFIG),
        weights.len(),
        sha256(&weights),
        weights.len()
    )
    .into_bytes()
}

fn ranged(asked: &Asked, body: &[u8]) -> Answer {
    let range = asked.header("range").and_then(|range| range.strip_prefix("bytes="));
    let Some(from) = range.map(|range| range.trim_end_matches('-').parse::<usize>().unwrap())
    else {
        return Answer::new(200, body);
    };
    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
    Answer::new(206, &body[from..]).header("content-range", range)
}

/// A hub and the host it hands large files to.
fn hub_and_cdn(cdn: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> (Fake, Fake) {
    let cdn = Fake::start(cdn);
    let there = cdn.url.clone();
    let hub = Fake::start(move |asked, _| match asked.path.as_str() {
        "/api/models/a/b/revision/main?blobs=true" => Answer::new(200, list()),
        path if path == format!("/a/b/resolve/{COMMIT}/config.json") => {
            ranged(asked, CONFIG).header("etag", format!("\"{}\"", git(CONFIG)))
        }
        path if path == format!("/a/b/resolve/{COMMIT}/model.safetensors") => {
            Answer::new(302, Vec::new())
                .header("location", format!("{there}/blob?signature=secret"))
                .header("x-linked-etag", format!("\"{}\"", sha256(&weights())))
                .header("x-linked-size", weights().len().to_string())
        }
        _ => Answer::new(404, "Entry not found"),
    });
    (hub, cdn)
}

fn open(fake: &Fake) -> Hub {
    open_for(fake, Duration::from_secs(30))
}

fn open_for(fake: &Fake, answer: Duration) -> Hub {
    let patience = Patience { answer, attempts: 3, pause: Duration::from_millis(1) };
    Hub::new(&fake.url, Some(Secret::new(TOKEN)), patience).unwrap()
}

async fn get(hub: &Hub, file: &str, to: &Path) -> Result<(Checksum, u64), Error> {
    let snapshot = hub.snapshot("a/b", "main").await?;
    let file = snapshot.files.iter().find(|known| known.path == file).unwrap();
    let progress = Progress::default();
    let checksum = hub.fetch(&snapshot, file, to, &progress).await?;
    Ok((checksum, progress.done()))
}

fn part(to: &Path) -> std::path::PathBuf {
    to.with_file_name("model.safetensors.part")
}

#[tokio::test]
async fn files_come_checked_and_the_token_stays_with_the_hub() {
    let (hub, cdn) = hub_and_cdn(|asked, _| ranged(asked, &weights()));
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model.safetensors");
    let (checksum, done) = get(&open(&hub), "model.safetensors", &to).await.unwrap();
    assert_eq!(checksum, Checksum::Sha256(sha256(&weights())));
    assert_eq!(done, weights().len() as u64);
    assert_eq!(std::fs::read(&to).unwrap(), weights());
    checksum.verify(&to).unwrap();
    let small = dir.path().join("config.json");
    let (checksum, _) = get(&open(&hub), "config.json", &small).await.unwrap();
    assert_eq!(checksum, Checksum::Git(git(CONFIG)));
    std::fs::write(&small, "{}").unwrap();
    assert!(checksum.verify(&small).unwrap_err().to_string().contains("git id"));
    let bearer = format!("Bearer {TOKEN}");
    assert!(hub.asked().iter().all(|asked| asked.header("authorization") == Some(&*bearer)));
    assert!(cdn.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let calls = AtomicUsize::new(0);
    let (hub, cdn) = hub_and_cdn(move |asked, _| {
        // Five breaks, more than attempts are made in vain: each brought something.
        let cut = (calls.fetch_add(1, Ordering::Relaxed) < 5).then_some(100_000);
        Answer { cut, ..ranged(asked, &weights()) }
    });
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model.safetensors");
    let (_, done) = get(&open(&hub), "model.safetensors", &to).await.unwrap();
    assert_eq!(done, weights().len() as u64, "bytes of attempts are counted once");
    assert_eq!(std::fs::read(&to).unwrap(), weights());
    let ranges: Vec<_> = cdn.asked().iter().map(|asked| asked.header("range").is_some()).collect();
    assert_eq!(ranges, [false, true, true, true, true, true]);
}

#[tokio::test]
async fn what_an_earlier_process_left_is_gone_on_with_or_thrown_away() {
    let (hub, cdn) = hub_and_cdn(|asked, _| ranged(asked, &weights()));
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model.safetensors");
    std::fs::write(part(&to), &weights()[..700_000]).unwrap();
    get(&open(&hub), "model.safetensors", &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), weights());
    assert_eq!(cdn.asked()[0].header("range"), Some("bytes=700000-"));
    // Of a stranger's making: the checksum tells, and all is fetched anew.
    std::fs::write(part(&to), vec![1; 700_000]).unwrap();
    get(&open(&hub), "model.safetensors", &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), weights());
    assert_eq!(cdn.asked().last().unwrap().header("range"), None);
    // A server that knows no ranges sends the whole.
    let (hub, _cdn) = hub_and_cdn(|_, _| Answer::new(200, weights()));
    std::fs::write(part(&to), &weights()[..700_000]).unwrap();
    get(&open(&hub), "model.safetensors", &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), weights());
}

#[tokio::test]
async fn other_bytes_than_the_hub_tells_are_refused_and_deleted() {
    let mut wrong = weights();
    wrong[77] ^= 1;
    let longer = [weights(), vec![0; 9]].concat();
    for (bytes, expected) in [(wrong, "SHA-256"), (longer, "more came")] {
        let (hub, _cdn) = hub_and_cdn(move |asked, _| ranged(asked, &bytes));
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("model.safetensors");
        let error = get(&open(&hub), "model.safetensors", &to).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!to.exists() && !part(&to).exists());
    }
}

#[tokio::test]
async fn what_the_list_does_not_tell_comes_from_the_headers_or_the_file_is_refused() {
    let (hub, _cdn) = hub_and_cdn(|asked, _| ranged(asked, &weights()));
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::default();
    let snapshot =
        Snapshot { repo: "a/b".to_owned(), commit: COMMIT.to_owned(), files: Vec::new() };
    for file in ["config.json", "model.safetensors"] {
        let file = RemoteFile { path: file.to_owned(), bytes: None, checksum: None };
        let to = dir.path().join(&file.path);
        open(&hub).fetch(&snapshot, &file, &to, &progress).await.unwrap();
    }
    let silent = Fake::start(|_, _| Answer::new(200, CONFIG));
    let file = RemoteFile { path: "config.json".to_owned(), bytes: None, checksum: None };
    let to = dir.path().join("other.json");
    let error = open(&silent).fetch(&snapshot, &file, &to, &progress).await.unwrap_err();
    assert!(error.to_string().contains("no checksum"), "{error}");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_hold_no_token() {
    let cases: [(u16, Option<&str>, &str); 5] = [
        (401, None, "HF_TOKEN"),
        (403, Some("GatedRepo"), "accept its terms"),
        (404, Some("RevisionNotFound"), "no such revision"),
        (404, None, "no such repository"),
        (500, None, "echo [key]"),
    ];
    for (status, code, expected) in cases {
        let fake = Fake::start(move |asked, _| {
            let token = asked.header("authorization").unwrap().replace("Bearer", "echo");
            let answer = Answer::new(status, token);
            if let Some(code) = code { answer.header("x-error-code", code) } else { answer }
        });
        let error = open(&fake).snapshot("a/b", "main").await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&status.to_string()), "{error}");
        assert!(!error.contains(TOKEN), "{error}");
        let attempts = if status == 500 { 3 } else { 1 };
        assert_eq!(fake.asked().len(), attempts, "{status}");
    }
}

#[tokio::test]
async fn a_busy_or_silent_hub_is_asked_again() {
    let fake = Fake::start(|_, before| match before {
        0 => Answer::new(429, "slow down").header("retry-after", "0"),
        1 => Answer { delay: Duration::from_secs(30), ..Answer::new(200, list()) },
        _ => Answer::new(200, list()),
    });
    let hub = open_for(&fake, Duration::from_secs(1));
    let snapshot = hub.snapshot("a/b", "main").await.unwrap();
    assert_eq!((snapshot.files.len(), fake.asked().len()), (2, 3));
    let nobody =
        Hub::new("http://127.0.0.1:1", None, Patience { attempts: 1, ..Patience::default() });
    let error = nobody.unwrap().snapshot("a/b", "main").await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_not_sent() {
    let fake = Fake::start(|_, _| Answer::new(200, list()));
    let hub = open(&fake);
    for repo in ["", "a/../b", "/a", "a b", "a?x", "a%2f", "a//b"] {
        assert!(matches!(hub.snapshot(repo, "main").await, Err(Error::Invalid(_))), "{repo}");
    }
    let snapshot =
        Snapshot { repo: "a/b".to_owned(), commit: COMMIT.to_owned(), files: Vec::new() };
    let file = RemoteFile { path: "../../etc/passwd".to_owned(), bytes: None, checksum: None };
    let fetched = hub.fetch(&snapshot, &file, Path::new("/nowhere"), &Progress::default()).await;
    assert!(matches!(fetched, Err(Error::Invalid(_))));
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn hostile_answers_are_errors() {
    let long = vec![b' '; 17 << 20];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"<html>".to_vec(), "not understood"),
        (br#"{"sha": "../../..", "siblings": []}"#.to_vec(), "no commit"),
        (long, "larger than"),
    ];
    for (body, expected) in cases {
        let fake = Fake::start(move |_, _| Answer::new(200, body.clone()));
        let error = open(&fake).snapshot("a/b", "main").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (to, expected) in [("/again", "more than"), ("file:///etc/passwd", "no address")] {
        let fake = Fake::start(move |_, _| Answer::new(302, Vec::new()).header("location", to));
        let error = open(&fake).snapshot("a/b", "main").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
