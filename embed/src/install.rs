//! Model folders that come and go: copied, fetched, published as a whole, removed.
//!
//! What arrives gathers in a draft, a folder of the first model directory whose name begins with a
//! dot and which is therefore no model's. One rename makes it a model; a crash before it leaves a
//! draft, which the next attempt goes on with.

use std::path::{Path, PathBuf};

use fs_err::File;

use crate::folder::Folder;
use crate::store::parts;
use crate::{Error, ModelSpec, ModelStore};

/// Files that the engine reads where they are there, beside the weights.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sparse_linear.pt",
    "colbert_linear.pt",
];

/// The index of weights in several files.
const INDEX: &str = "model.safetensors.index.json";

/// What the files of drafts begin with.
const DRAFT: &str = ".draft";

/// Those of a repository's files that the engine reads: configuration, tokenizer, heads, modules
/// (`1_Pooling/config.json`, `2_Dense` with its weights), and the weights in one form. The encoder's
/// weights come last.
///
/// # Errors
/// [`Error::Load`] names the file that every model needs and that is not among them.
pub fn needed<'a>(name: &str, files: &[&'a str]) -> Result<Vec<&'a str>, Error> {
    let missing = |file: &str| Error::Load {
        path: PathBuf::from(name),
        detail: format!("the repository has no {file}"),
    };
    for file in ["config.json", "tokenizer.json"] {
        if !files.contains(&file) {
            return Err(missing(file));
        }
    }
    let companion = |path: &str| match path.split_once('/') {
        None => COMPANIONS.contains(&path) || path.starts_with("LICENSE"),
        // `1_Pooling`, and `2_Dense` with weights of its own.
        Some((module, file)) if module.starts_with(|c: char| c.is_ascii_digit()) => match file {
            "config.json" | "model.safetensors" => true,
            "pytorch_model.bin" => !files.contains(&&*format!("{module}/model.safetensors")),
            _ => false,
        },
        Some(_) => false,
    };
    let mut needed: Vec<&str> = files.iter().copied().filter(|path| companion(path)).collect();
    let shard = |path: &&str| is_shard(path);
    if let Some(one) = files.iter().find(|path| **path == "model.safetensors") {
        needed.push(one);
    } else if let Some(index) = files.iter().find(|path| **path == INDEX) {
        needed.push(index);
        needed.extend(files.iter().copied().filter(shard));
    } else if let Some(one) = files.iter().find(|path| **path == "pytorch_model.bin") {
        needed.push(one);
    } else {
        return Err(missing("model.safetensors (or pytorch_model.bin)"));
    }
    Ok(needed)
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(path: &str) -> bool {
    let numbers = path.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    numbers.is_some_and(|numbers| {
        !numbers.is_empty() && numbers.split("-of-").all(|n| n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Whether a file of the list that [`needed`] gives holds weights of the encoder.
fn is_weights(path: &str) -> bool {
    matches!(path, "model.safetensors" | "pytorch_model.bin") || is_shard(path)
}

/// A model that is on its way; nobody else works on it while this is there.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    target: PathBuf,
    name: String,
    /// Held for its lock, which ends with the process too.
    _lock: File,
}

impl Draft {
    /// The folder in which the files gather.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Understands what is there, as far as that is possible without the weights, of which `files`
    /// are announced.
    ///
    /// # Errors
    /// [`Error::Load`] and [`Error::Unsupported`] say what is missing or not understood.
    pub fn understand(&self, files: &[&str]) -> Result<(), Error> {
        let announced = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            files.iter().any(|file| name == *file && (is_weights(file) || *file == INDEX))
        };
        Folder::read_with(&self.name, &self.dir, announced).map(|_| ())
    }

    /// Whether a file of [`needed`] is wanted only once the model is understood.
    pub fn is_weights(file: &str) -> bool {
        is_weights(file)
    }

    /// Makes it a model: there as a whole or not at all, also after a loss of power.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`] for a folder that is not understood; [`Error::Load`] if it cannot
    /// get its name.
    pub fn publish(self) -> Result<ModelSpec, Error> {
        Folder::read(&self.name, &self.dir)?;
        let parent = self.target.parent().unwrap_or(&self.target);
        let publish = || -> std::io::Result<()> {
            sync(&self.dir, 0)?;
            fs_err::create_dir_all(parent)?;
            fs_err::rename(&self.dir, &self.target)?;
            File::open(parent)?.sync_all()
        };
        publish().map_err(|error| Error::Load {
            path: self.target.clone(),
            detail: format!("the model cannot be put there: {error}"),
        })?;
        let spec = Folder::read(&self.name, &self.target)?.spec;
        // The lock file goes before its lock.
        let _ = fs_err::remove_file(lock_path(&self.dir));
        Ok(spec)
    }
}

impl ModelStore {
    /// Begins, or goes on with, a model that will be called `name` (`<org>/<name>`). `tag` tells
    /// drafts apart that must not be mixed, such as those of two revisions.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Load`] if the name is taken, somebody else works on that
    /// draft, or the folder cannot be made.
    pub fn draft(&self, name: &str, tag: &str) -> Result<Draft, Error> {
        let parts = parts(name)?;
        let load = |path: &Path, detail: String| Error::Load { path: path.to_owned(), detail };
        let first = self.dirs().first().ok_or_else(|| {
            load(Path::new(name), "no model directory is configured to put it in".to_owned())
        })?;
        let target = parts.iter().fold(first.clone(), |path, part| path.join(part));
        if target.exists() {
            return Err(load(&target, "it exists; remove that model first".to_owned()));
        }
        let dir = first.join(format!("{DRAFT}.{}.{tag}", parts.join(".")));
        let failed = |error: std::io::Error| load(&dir, error.to_string());
        fs_err::create_dir_all(&dir).map_err(failed)?;
        let lock = File::create(lock_path(&dir)).map_err(failed)?;
        match lock.file().try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(load(&dir, "another process is fetching this model".to_owned()));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Draft { dir, target, name: name.to_owned(), _lock: lock })
    }

    /// Copies a folder in Hugging Face layout into the first directory, under `name`
    /// (`<org>/<name>`). It is there as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Load`] and [`Error::Unsupported`] for a folder that is not
    /// understood, that cannot be copied, or whose name is taken.
    pub fn add(&self, folder: &Path, name: &str) -> Result<ModelSpec, Error> {
        parts(name)?;
        Folder::read(name, folder)?;
        let draft = self.draft(name, "copy")?;
        if let Err(error) = copy(folder, draft.dir(), 0) {
            // What is left of it is of no use; that it cannot be removed changes nothing.
            let _ = fs_err::remove_dir_all(draft.dir());
            let _ = fs_err::remove_file(lock_path(draft.dir()));
            let detail = format!("it cannot be copied there: {error}");
            return Err(Error::Load { path: draft.target, detail });
        }
        draft.publish()
    }

    /// Deletes the folder of a model that is not in memory, and says what it was.
    ///
    /// # Errors
    /// As [`ModelStore::resolve`]; [`Error::Load`] if it cannot be deleted.
    pub fn remove(&self, name: &str) -> Result<ModelSpec, Error> {
        let spec = self.resolve(name)?;
        let outcome = if spec.dir.is_symlink() {
            fs_err::remove_file(&spec.dir)
        } else {
            fs_err::remove_dir_all(&spec.dir)
        };
        match outcome {
            Ok(()) => Ok(spec),
            Err(error) => Err(Error::Load { path: spec.dir, detail: error.to_string() }),
        }
    }
}

fn lock_path(draft: &Path) -> PathBuf {
    let mut name = draft.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// `1_Pooling/config.json` is at depth one; a deeper tree is no model.
const DEEPEST: usize = 3;

/// Copies the files of a model folder and of the folders in it; links are followed, as the hub's
/// own cache is made of them.
fn copy(from: &Path, to: &Path, depth: usize) -> std::io::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        if !path.is_dir() {
            fs_err::copy(&path, to.join(name))?;
        } else if depth < DEEPEST {
            copy(&path, &to.join(name), depth + 1)?;
        }
    }
    Ok(())
}

/// Brings a folder, its files and the folders in it to the disk.
fn sync(dir: &Path, depth: usize) -> std::io::Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if !path.is_dir() {
            File::open(&path)?.sync_all()?;
        } else if depth < DEEPEST {
            sync(&path, depth + 1)?;
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_model_needs_is_asked_for() {
        let bge_m3 = [
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "colbert_linear.pt",
            "config.json",
            "imgs/mkqa.jpg",
            "modules.json",
            "onnx/model.onnx",
            "onnx/config.json",
            "pytorch_model.bin",
            "sparse_linear.pt",
            "tokenizer.json",
            "../../config.json",
            "1_Pooling/../../config.json",
        ];
        let found = needed("BAAI/bge-m3", &bge_m3).unwrap();
        assert_eq!(
            found,
            [
                "1_Pooling/config.json",
                "colbert_linear.pt",
                "config.json",
                "modules.json",
                "sparse_linear.pt",
                "tokenizer.json",
                "pytorch_model.bin"
            ]
        );
    }

    #[test]
    fn a_layer_behind_the_pooling_comes_with_its_weights() {
        let with = |more: &[&'static str]| {
            let encoder = ["config.json", "tokenizer.json", "model.safetensors"];
            let files = [more, &encoder].concat();
            let found = needed("m", &files).unwrap();
            found[..found.len() - encoder.len()].to_vec()
        };
        let dense = ["2_Dense/config.json", "2_Dense/model.safetensors"];
        assert_eq!(with(&dense), dense);
        assert_eq!(with(&[&dense[..], &["2_Dense/pytorch_model.bin"]].concat()), dense);
        let pickled = ["2_Dense/config.json", "2_Dense/pytorch_model.bin"];
        assert_eq!(with(&pickled), pickled);
    }

    #[test]
    fn weights_come_in_one_form() {
        let least = ["config.json", "tokenizer.json"];
        let of = |weights: &[&'static str]| {
            needed("m", &[&least[..], weights].concat()).map(|found| found[2..].to_vec())
        };
        assert_eq!(of(&["pytorch_model.bin", "model.safetensors"]).unwrap(), ["model.safetensors"]);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let others = ["model-x.safetensors", "model-.safetensors", "pytorch_model.bin", INDEX];
        assert_eq!(
            of(&[&shards[..], &others[..]].concat()).unwrap(),
            [INDEX, shards[0], shards[1]]
        );
        let error = of(&["model.onnx"]).unwrap_err().to_string();
        assert!(error.contains("no model.safetensors"), "{error}");
        let error = needed("a/b", &["config.json"]).unwrap_err().to_string();
        assert!(error.contains("a/b") && error.contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn one_works_on_a_draft_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::Options { dirs: vec![dir.path().to_owned()], ..Default::default() };
        let store = ModelStore::new(options);
        let draft = store.draft("a/b", "1").unwrap();
        let error = store.draft("a/b", "1").unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        assert!(store.draft("a/b", "2").is_ok());
        assert!(draft.publish().unwrap_err().to_string().contains("config.json"));
        assert!(store.draft("a/b", "1").is_ok(), "a lock ends with its draft");
        assert!(store.folders().is_empty(), "a draft is no model");
    }
}
