//! Models fetched from a hub: what `elanus model pull` does, and what a node does in the background
//! for the models that its settings name.
//!
//! The small files come first. A model that is not understood is refused before its weights are
//! fetched. Nothing here is asked for by a client: a model's name in a request never leads to a
//! download.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use elanus_embed::{Draft, ModelSpec, ModelStore};
use elanus_remote::{Checksum, Hub, Progress, RemoteFile, Snapshot};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

/// What tells in a model's folder where its files came from.
const SOURCE: &str = ".source.json";

/// Files on their way at once.
const PARALLEL: usize = 4;

/// How long a node waits before it tries again to fetch a model.
const AGAIN: Duration = Duration::from_secs(60);

/// A model by name, and which state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `ORG/NAME`.
    pub name: String,
    /// A branch, a tag, or, to get the same files for ever, a commit.
    pub revision: String,
}

impl Wanted {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`.
    pub fn parse(text: &str) -> Self {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        Self { name: name.to_owned(), revision: revision.to_owned() }
    }
}

/// Where the files of a model came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The hub's address.
    pub hub: String,
    /// The repository.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// What each file was found to be.
    pub files: BTreeMap<String, Checksum>,
}

impl Source {
    /// What a model's folder tells; `None` if it was not fetched.
    pub fn of(spec: &ModelSpec) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(spec.dir.join(SOURCE)).ok()?).ok()
    }

    /// Compares the files of a folder with what the hub said of them; returns how many there are.
    ///
    /// # Errors
    /// The first file that is missing or differs.
    pub fn verify(&self, dir: &Path) -> anyhow::Result<usize> {
        for (file, checksum) in &self.files {
            // Names were checked when they were fetched, but the list lies in a file.
            if file.split('/').any(|part| part == "..") || file.starts_with('/') {
                bail!("{SOURCE} names the file `{}`", file.escape_debug());
            }
            checksum.verify(&dir.join(file))?;
        }
        Ok(self.files.len())
    }
}

/// Fetches a model and installs it. Blocks; what is on the disk already is not fetched again.
///
/// # Errors
/// Whatever keeps it from being fetched, checked, understood or installed, with what to do.
pub fn pull(
    models: &ModelStore,
    hub: &Hub,
    wanted: &Wanted,
    progress: &Progress,
) -> anyhow::Result<(ModelSpec, Source)> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the threads for a download")?
        .block_on(fetch(models, hub, wanted, progress))
}

async fn fetch(
    models: &ModelStore,
    hub: &Hub,
    wanted: &Wanted,
    progress: &Progress,
) -> anyhow::Result<(ModelSpec, Source)> {
    let name = &wanted.name;
    let snapshot = hub.snapshot(name, &wanted.revision).await.with_context(|| {
        format!(
            "cannot fetch model {name}: where the hub cannot be reached, set HF_ENDPOINT to a \
             mirror, or bring the folder (config.json, tokenizer.json, model.safetensors or \
             pytorch_model.bin, and what else the repository has of configuration) and run \
             `elanus model add FOLDER {name}`"
        )
    })?;
    let paths: Vec<&str> = snapshot.files.iter().map(|file| file.path.as_str()).collect();
    let needed = elanus_embed::needed(name, &paths)?;
    let files = || snapshot.files.iter().filter(|file| needed.contains(&file.path.as_str()));
    progress.set_total(files().filter_map(|file| file.bytes).sum());
    let draft = models.draft(name, &snapshot.commit[..12])?;
    let get = async |weights: bool| {
        let part = files().filter(|file| Draft::is_weights(&file.path) == weights);
        stream::iter(part.map(|file| one(hub, &snapshot, file, draft.dir(), progress)))
            .buffer_unordered(PARALLEL)
            .try_collect::<BTreeMap<String, Checksum>>()
            .await
    };
    let mut checksums = get(false).await?;
    draft.understand(&needed)?;
    checksums.extend(get(true).await?);
    let source = Source {
        hub: hub.endpoint().to_owned(),
        repo: snapshot.repo.clone(),
        commit: snapshot.commit.clone(),
        files: checksums,
    };
    let record = draft.dir().join(SOURCE);
    std::fs::write(&record, serde_json::to_vec_pretty(&source)?)
        .with_context(|| format!("cannot write {}", record.display()))?;
    Ok((draft.publish()?, source))
}

/// Fetches a file into the draft, unless it is there.
async fn one(
    hub: &Hub,
    snapshot: &Snapshot,
    file: &RemoteFile,
    draft: &Path,
    progress: &Progress,
) -> anyhow::Result<(String, Checksum)> {
    let to = draft.join(&file.path);
    if let Some(checksum) = &file.checksum
        && checksum.verify(&to).is_ok()
    {
        progress.add(file.bytes.unwrap_or(0));
        return Ok((file.path.clone(), checksum.clone()));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let checksum = hub.fetch(snapshot, file, &to, progress).await.with_context(|| {
        format!(
            "cannot fetch {} of model {}; what has come is kept, and the next attempt goes on from \
             there",
            file.path, snapshot.repo
        )
    })?;
    Ok((file.path.clone(), checksum))
}

/// Fetches the models that a node wants and has not, on a thread of its own, until all are there.
pub fn in_background(models: &ModelStore, hub: Hub, mut wanted: Vec<Wanted>) {
    wanted.retain(|wanted| !is_here(models, wanted));
    if wanted.is_empty() {
        return;
    }
    for wanted in &wanted {
        models.announce(&wanted.name, Some("it is about to be fetched".to_owned()));
    }
    let models = models.clone();
    let begun = thread::Builder::new().name("elanus-pull".to_owned()).spawn(move || {
        while !wanted.is_empty() {
            wanted.retain(|wanted| !attempt(&models, &hub, wanted));
            if !wanted.is_empty() {
                thread::sleep(AGAIN);
            }
        }
    });
    if let Err(error) = begun {
        tracing::error!(%error, "no thread could be started to fetch models");
    }
}

fn is_here(models: &ModelStore, wanted: &Wanted) -> bool {
    let Ok(spec) = models.resolve(&wanted.name) else { return false };
    let is_commit = wanted.revision.len() == 40;
    if is_commit && Source::of(&spec).is_none_or(|source| source.commit != wanted.revision) {
        tracing::warn!(
            model = wanted.name,
            wanted = wanted.revision,
            "another commit of this model, or one from elsewhere, is installed and stays: \
             `elanus model remove` it to have the wanted one fetched"
        );
    }
    true
}

/// Whether the model is here now.
fn attempt(models: &ModelStore, hub: &Hub, wanted: &Wanted) -> bool {
    let Wanted { name, revision } = wanted;
    let progress = Arc::new(Progress::default());
    tracing::info!(model = name, revision, hub = hub.endpoint(), "fetching a model");
    let outcome = thread::scope(|scope| {
        let fetching = scope.spawn(|| pull(models, hub, wanted, &progress));
        let mut noted = 0;
        while !fetching.is_finished() {
            let percent = percent(&progress);
            models.announce(name, Some(format!("it is being fetched, {percent} % are here")));
            if percent >= noted + 10 {
                noted = percent;
                tracing::info!(model = name, percent, "fetching a model");
            }
            thread::park_timeout(Duration::from_millis(200));
        }
        fetching.join()
    });
    match outcome {
        Ok(Ok((_, source))) => {
            models.announce(name, None);
            tracing::info!(model = name, commit = source.commit, "a model was fetched");
            true
        }
        Ok(Err(error)) => {
            let text = format!("it could not be fetched, and will be tried again: {error:#}");
            models.announce(name, Some(text));
            tracing::warn!(model = name, "a model could not be fetched: {error:#}");
            false
        }
        Err(_) => {
            models.announce(name, Some("fetching it failed, see the node's log".to_owned()));
            tracing::error!(model = name, "a panic ended the fetching of a model");
            false
        }
    }
}

/// How much of all bytes is here.
fn percent(progress: &Progress) -> u64 {
    (progress.done() * 100).checked_div(progress.total()).unwrap_or(0).min(100)
}

/// Shows the progress of `work` on `to`: a line that is rewritten on a terminal, otherwise one line
/// for each tenth.
///
/// # Errors
/// Those of `work`.
pub fn shown<T: Send>(
    mut to: impl Write,
    rewrite: bool,
    name: &str,
    progress: &Progress,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    const MB: u64 = 1_000_000;
    let outcome = thread::scope(|scope| {
        let working = scope.spawn(work);
        let mut shown = None;
        loop {
            let finished = working.is_finished();
            let percent = percent(progress);
            if progress.total() > 0 && (rewrite || shown.is_none_or(|last| percent >= last + 10)) {
                let (done, total) = (progress.done() / MB, progress.total() / MB);
                let (begin, end) = if rewrite { ("\r", "") } else { ("", "\n") };
                // Nothing depends on whether somebody looks.
                let _ = write!(to, "{begin}{name}: {percent} %, {done} of {total} MB{end}");
                let _ = to.flush();
                shown = Some(percent);
            }
            if finished {
                break;
            }
            thread::park_timeout(Duration::from_millis(200));
        }
        if rewrite && shown.is_some() {
            let _ = writeln!(to);
        }
        working.join()
    });
    outcome.unwrap_or_else(|_| bail!("fetching model {name} failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_stands_behind_an_at() {
        let of = |text| {
            let Wanted { name, revision } = Wanted::parse(text);
            (name, revision)
        };
        assert_eq!(of("BAAI/bge-m3"), ("BAAI/bge-m3".to_owned(), "main".to_owned()));
        assert_eq!(of("a/b@refs/pr/1"), ("a/b".to_owned(), "refs/pr/1".to_owned()));
    }

    #[test]
    fn progress_is_shown_by_tenths_where_nobody_watches() {
        let progress = Progress::default();
        let mut lines = Vec::new();
        shown(&mut lines, false, "a/b", &progress, || {
            progress.set_total(2_000_000);
            progress.add(2_000_000);
            Ok(())
        })
        .unwrap();
        let text = String::from_utf8(lines).unwrap();
        assert!(text.ends_with("a/b: 100 %, 2 of 2 MB\n"), "{text}");
    }
}
