//! Files of models from a hub that speaks as Hugging Face's does.
//!
//! A revision is resolved to a commit once, and every file is asked for by that commit, so what is
//! fetched belongs together, and what was fetched before a break is still right after it. Each file
//! goes to `NAME.part`, is checked against the checksum that the hub tells (SHA-256 of large files,
//! git's own of small ones) and only then gets its name.
//!
//! The hub hands large files over to other hosts; the token is sent to the hub alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fs_err::{File, OpenOptions};
use http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::http::{Client, content_length, origin, parse, piece, refusal, shown, whole};
use crate::{Error, Patience, Secret};

/// The largest list of files that is read.
const LIST_BYTES: usize = 16 << 20;

/// How often a request is sent on before it is given up.
const REDIRECTS: usize = 8;

/// A hub, and the right to use it.
#[derive(Clone)]
pub struct Hub {
    client: Client,
    /// Without a slash at its end.
    endpoint: String,
    origin: (bool, String, u16),
    token: Option<Secret>,
    patience: Patience,
}

/// The files of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `ORG/NAME`.
    pub repo: String,
    /// The commit that the revision meant, 40 hexadecimal digits.
    pub commit: String,
    /// All files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository. Not checked: whoever makes a local path of it must look.
    pub path: String,
    /// Its size in bytes, if the list tells.
    pub bytes: Option<u64>,
    /// What its contents must give, if the list tells.
    pub checksum: Option<Checksum>,
}

/// What the contents of a file must give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksum {
    /// SHA-256 in lower-case hexadecimal digits: files in large file storage.
    Sha256(String),
    /// The id of the file in git (SHA-1 over its length and contents): all others.
    Git(String),
}

impl Checksum {
    /// A checksum from an ETag or an object id: 64 digits are SHA-256, 40 git's.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text)),
            40 if is_hex => Some(Self::Git(text)),
            _ => None,
        }
    }

    fn begin(&self, bytes: u64) -> digest::Context {
        match self {
            Self::Sha256(_) => digest::Context::new(&digest::SHA256),
            Self::Git(_) => {
                let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {bytes}\0").as_bytes());
                context
            }
        }
    }

    fn check(&self, context: digest::Context) -> Result<(), String> {
        let (Self::Sha256(expected) | Self::Git(expected)) = self;
        let found: String =
            context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == *expected {
            return Ok(());
        }
        let name = if matches!(self, Self::Sha256(_)) { "SHA-256" } else { "git id" };
        Err(format!("its {name} is {found}, the hub says {expected}"))
    }

    /// Checks a file on this machine.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or differs.
    pub fn verify(&self, path: &Path) -> Result<(), Error> {
        let mut file = File::open(path).map_err(|error| failed(path, &error))?;
        let bytes = file.metadata().map_err(|error| failed(path, &error))?.len();
        let mut context = self.begin(bytes);
        digest_file(&mut file, &mut context).map_err(|error| failed(path, &error))?;
        self.check(context).map_err(|detail| Error::File { path: path.to_owned(), detail })
    }
}

/// How far the fetching of files has come; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes that are here, those of an earlier attempt included.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of all files; 0 while they are not known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Says how many bytes there are.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// Notes bytes that are here already.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What the hub says of a file while it sends us to where the file lies.
#[derive(Default)]
struct Linked {
    bytes: Option<u64>,
    checksum: Option<Checksum>,
}

/// The list of files as the hub writes it.
#[derive(Deserialize)]
struct RawSnapshot {
    sha: String,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<RawLarge>,
}

#[derive(Deserialize)]
struct RawLarge {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

impl Hub {
    /// A hub at an address such as `https://huggingface.co`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is none.
    pub fn new(endpoint: &str, token: Option<Secret>, patience: Patience) -> Result<Self, Error> {
        let uri = parse(endpoint)?;
        if uri.query().is_some() {
            return Err(Error::Invalid(format!("the hub's address {} has a query", shown(&uri))));
        }
        Ok(Self {
            client: Client::new()?,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            origin: origin(&uri),
            token,
            patience,
        })
    }

    /// Its address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The files of `repo` (`ORG/NAME`) at a branch, a tag or a commit.
    ///
    /// # Errors
    /// [`Error::Invalid`] for names that cannot be; [`Error::Refused`] with what to do about it;
    /// [`Error::Unreachable`] after the last attempt; [`Error::Garbage`].
    pub async fn snapshot(&self, repo: &str, revision: &str) -> Result<Snapshot, Error> {
        check_name("repository", repo)?;
        check_name("revision", revision)?;
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{repo}/revision/{revision}?blobs=true", self.endpoint);
        let list = self.patiently(|| self.list(&url)).await?;
        let garbage = |detail: String| Error::Garbage { url: url.clone(), detail };
        let raw: RawSnapshot =
            serde_json::from_slice(&list).map_err(|error| garbage(error.to_string()))?;
        if !matches!(Checksum::parse(&raw.sha), Some(Checksum::Git(_))) {
            return Err(garbage(format!("`sha` is no commit: {}", raw.sha.escape_debug())));
        }
        let file = |file: RawFile| match file.lfs {
            Some(large) => RemoteFile {
                path: file.rfilename,
                bytes: Some(large.size),
                checksum: Checksum::parse(&large.sha256),
            },
            None => RemoteFile {
                path: file.rfilename,
                bytes: file.size,
                checksum: file.blob_id.as_deref().and_then(Checksum::parse),
            },
        };
        let files = raw.siblings.into_iter().map(file).collect();
        Ok(Snapshot { repo: repo.to_owned(), commit: raw.sha, files })
    }

    /// Fetches a file to the path `to`, whose folder exists; what an earlier attempt left beside it
    /// is gone on with. Returns the checksum that it was found to have.
    ///
    /// Writes to the disk on the thread that polls it, so it wants a runtime of its own.
    ///
    /// # Errors
    /// As [`Hub::snapshot`]; [`Error::Garbage`] for contents that are not what the hub says, and
    /// [`Error::File`].
    pub async fn fetch(
        &self,
        snapshot: &Snapshot,
        file: &RemoteFile,
        to: &Path,
        progress: &Progress,
    ) -> Result<Checksum, Error> {
        check_name("file", &file.path)?;
        let url = format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint, snapshot.repo, snapshot.commit, file.path
        );
        let part = Part::new(to);
        let mut spoilt = false;
        loop {
            let once = || self.fetch_once(&url, file, &part, progress);
            match self.patiently_going_on(&part, once).await {
                // Resumed from bytes that a crash or a foreign hand spoilt: once more, from nothing.
                Err(Error::Garbage { detail, .. }) if part.resumed() && !spoilt => {
                    tracing::warn!(file = file.path, detail, "fetching it again");
                    spoilt = true;
                }
                other => return other,
            }
        }
    }

    async fn list(&self, url: &str) -> Result<Vec<u8>, Error> {
        let (response, _) = self.get(url, 0).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response, url).await);
        }
        whole(response.into_body(), url, LIST_BYTES, self.patience.answer).await
    }

    async fn fetch_once(
        &self,
        url: &str,
        file: &RemoteFile,
        part: &Part,
        progress: &Progress,
    ) -> Result<Checksum, Error> {
        let here = part.len();
        // A file that is here as a whole needs only to be checked; a range of nothing is refused.
        let from = if file.bytes.is_some_and(|bytes| here >= bytes) { 0 } else { here };
        let (response, linked) = self.get(url, from).await?;
        let garbage = |detail: String| Error::Garbage { url: url.to_owned(), detail };
        let (response, from) = match response.status() {
            StatusCode::OK => (response, 0),
            StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(from) => {
                (response, from)
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                part.remove();
                return Err(Error::Unreachable {
                    url: url.to_owned(),
                    detail: "it cannot go on where the last answer broke off".to_owned(),
                });
            }
            _ => return Err(self.refused(response, url).await),
        };
        let announced = content_length(response.headers()).map(|bytes| bytes.saturating_add(from));
        let bytes = file.bytes.or(linked.bytes).or(announced);
        let bytes = bytes.ok_or_else(|| garbage("it does not tell the size".to_owned()))?;
        let own = checksum_of(response.headers());
        let checksum = file.checksum.clone().or(linked.checksum).or(own);
        let checksum = checksum.ok_or_else(|| {
            garbage("it tells no checksum, so nothing could be checked".to_owned())
        })?;
        let mut open = part.open(from, checksum.begin(bytes))?;
        let counted = Counted::new(progress, from);
        let mut body = response.into_body();
        while let Some(piece) = piece(&mut body, url, self.patience.answer).await? {
            if open.len + piece.len() as u64 > bytes {
                part.remove();
                return Err(garbage(format!("more came than the {bytes} bytes that it has")));
            }
            open.write(&piece)?;
            counted.add(piece.len() as u64);
        }
        if open.len < bytes {
            let detail = format!("the answer ended after {} of {bytes} bytes", open.len);
            return Err(Error::Unreachable { url: url.to_owned(), detail });
        }
        let (file, context) = (open.file, open.context);
        if let Err(detail) = checksum.check(context) {
            part.remove();
            return Err(garbage(format!("{detail}; what came was deleted")));
        }
        file.sync_all().map_err(|error| failed(&part.path, &error))?;
        fs_err::rename(&part.path, &part.to).map_err(|error| failed(&part.to, &error))?;
        counted.keep();
        Ok(checksum)
    }

    /// Sends a request for `url` from the byte `from` on, and follows where it is sent.
    async fn get(&self, url: &str, from: u64) -> Result<(Response<Incoming>, Linked), Error> {
        let mut uri = parse(url)?;
        let mut linked = Linked::default();
        for _ in 0..REDIRECTS {
            let own = origin(&uri) == self.origin;
            let mut request = Request::get(uri.clone());
            if let (true, Some(token)) = (own, &self.token) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let request = request
                .body(Full::<Bytes>::default())
                // A line break in a token, for one.
                .map_err(|_| Error::Invalid("the token cannot be sent in a header".to_owned()))?;
            let response = self.client.send(request, self.patience.answer).await?;
            if own {
                linked.read(response.headers());
            }
            if !response.status().is_redirection() {
                return Ok((response, linked));
            }
            uri = next(&uri, response.headers())?;
        }
        Err(Error::Garbage {
            url: shown(&uri),
            detail: format!("it sent us on more than {REDIRECTS} times"),
        })
    }

    /// The error of an answer that is none of success, with what to do.
    async fn refused(&self, response: Response<Incoming>, url: &str) -> Error {
        let says = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let advice = match (response.status().as_u16(), says("x-error-code"), &self.token) {
            (401 | 403, Some("GatedRepo"), _) => Some(
                "the repository is gated: accept its terms on the hub, and set HF_TOKEN to a token \
                 of that account"
                    .to_owned(),
            ),
            (401, _, None) => Some(
                "there is no such repository, or it is private: correct the name, or set HF_TOKEN"
                    .to_owned(),
            ),
            (401, _, Some(_)) => Some(
                "there is no such repository, or the token in HF_TOKEN may not read it".to_owned(),
            ),
            (404, Some("RevisionNotFound"), _) => Some("it has no such revision".to_owned()),
            (404, _, _) => Some("there is no such repository, revision or file".to_owned()),
            _ => None,
        };
        let url = shown(&parse(url).unwrap_or_default());
        refusal(response, &url, self.token.as_ref(), advice).await
    }

    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut attempt = 1;
        loop {
            match call().await {
                Err(error) if error.is_transient() && attempt < self.patience.attempts => {
                    self.pause(attempt, &error).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// As [`Hub::patiently`], but an attempt that brought bytes does not count: a long file over a
    /// poor line is worth many.
    async fn patiently_going_on<F>(
        &self,
        part: &Part,
        call: impl Fn() -> F,
    ) -> Result<Checksum, Error>
    where
        F: Future<Output = Result<Checksum, Error>>,
    {
        let mut attempt = 1;
        loop {
            let before = part.len();
            match call().await {
                Err(error) if error.is_transient() => {
                    attempt = if part.len() > before { 1 } else { attempt + 1 };
                    if attempt > self.patience.attempts {
                        return Err(error);
                    }
                    self.pause(attempt.saturating_sub(1), &error).await;
                }
                other => return other,
            }
        }
    }

    async fn pause(&self, attempt: u32, error: &Error) {
        let pause = self.patience.pause(attempt, error.retry_after());
        tracing::info!(%error, ms = pause.as_millis(), "trying again");
        tokio::time::sleep(pause).await;
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Linked {
    fn read(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        self.bytes = self.bytes.or(text("x-linked-size").and_then(|text| text.parse().ok()));
        let checksum = text("x-linked-etag").and_then(Checksum::parse);
        self.checksum = self.checksum.take().or(checksum);
    }
}

fn checksum_of(headers: &HeaderMap) -> Option<Checksum> {
    headers.get(ETAG)?.to_str().ok().and_then(Checksum::parse)
}

/// Where `Content-Range: bytes 7-9/10` begins.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The address that an answer sends us to: absolute, or on the same host.
fn next(from: &Uri, headers: &HeaderMap) -> Result<Uri, Error> {
    let garbage = |detail: &str| Error::Garbage { url: shown(from), detail: detail.to_owned() };
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| garbage("it sends us on, and not where to"))?;
    let text = if location.starts_with('/') && !location.starts_with("//") {
        let scheme = from.scheme_str().unwrap_or("https");
        format!("{scheme}://{}{location}", from.authority().map_or("", |a| a.as_str()))
    } else {
        location.to_owned()
    };
    let to = parse(&text).map_err(|_| garbage("it sends us to what is no address"))?;
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err(garbage("it sends us from https to http"));
    }
    Ok(to)
}

/// A name that may stand in a path of the hub: plain words between slashes.
fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let part =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(plain);
    if name.len() <= 256 && name.split('/').all(part) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "`{}` is no name of a {what}: letters, digits, `.`, `_`, `-` and single slashes expected",
        name.escape_debug()
    )))
}

/// A file on its way: where its bytes gather, and what it becomes.
struct Part {
    path: PathBuf,
    to: PathBuf,
    /// Bytes that an earlier process left.
    found: u64,
}

/// The open file of a part, and the checksum of what is in it.
struct OpenPart<'a> {
    file: File,
    len: u64,
    context: digest::Context,
    path: &'a Path,
}

impl Part {
    fn new(to: &Path) -> Self {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = to.with_file_name(name);
        let found = len_of(&path);
        Self { path, to: to.to_owned(), found }
    }

    fn len(&self) -> u64 {
        len_of(&self.path)
    }

    fn resumed(&self) -> bool {
        self.found > 0
    }

    /// Opens it for writing after its first `from` bytes, which go into the checksum.
    fn open(&self, from: u64, mut context: digest::Context) -> Result<OpenPart<'_>, Error> {
        let mut open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.path)?;
            file.set_len(from)?;
            digest_file(&mut file, &mut context)?;
            Ok(file)
        };
        let file = open().map_err(|error| failed(&self.path, &error))?;
        Ok(OpenPart { file, len: from, context, path: &self.path })
    }

    fn remove(&self) {
        // If it stays, its checksum will be wrong again, and nothing else happens.
        let _ = fs_err::remove_file(&self.path);
    }
}

impl OpenPart<'_> {
    fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        use std::io::Write;
        self.file.write_all(piece).map_err(|error| failed(self.path, &error))?;
        self.context.update(piece);
        self.len += piece.len() as u64;
        Ok(())
    }
}

/// Bytes of one attempt in the progress; taken back when it fails, as the next counts anew.
struct Counted<'a> {
    progress: &'a Progress,
    bytes: AtomicU64,
}

impl<'a> Counted<'a> {
    fn new(progress: &'a Progress, bytes: u64) -> Self {
        progress.add(bytes);
        Self { progress, bytes: AtomicU64::new(bytes) }
    }

    fn add(&self, bytes: u64) {
        self.progress.add(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn keep(self) {
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.progress.take_back(self.bytes.load(Ordering::Relaxed));
    }
}

fn len_of(path: &Path) -> u64 {
    fs_err::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Puts the rest of a file into a checksum.
fn digest_file(file: &mut File, context: &mut digest::Context) -> std::io::Result<()> {
    use std::io::Read;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => context.update(&buffer[..read]),
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::File { path: path.to_owned(), detail: error.to_string() }
}
