//! Where the test models are, and how values are compared.

use std::path::{Path, PathBuf};

use elanus_embed::{ModelStore, Options};
use serde::de::DeserializeOwned;

/// The folder of the golden data.
pub(crate) fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/embedding-golden")
}

/// The folder of this crate's own golden data, made by the script in it.
pub(crate) fn own_golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The expected values of a model.
pub(crate) fn golden<T: DeserializeOwned>(model: &str) -> T {
    let file = format!("{model}.golden.json");
    let own = own_golden_dir().join(&file);
    let path = if own.exists() { own } else { golden_dir().join(file) };
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// A store over the golden models.
pub(crate) fn store() -> ModelStore {
    ModelStore::new(Options { dirs: vec![golden_dir(), own_golden_dir()], ..Options::default() })
}

/// Asserts that values differ by `tolerance` at most.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerance, "largest difference {difference}, allowed is {tolerance}");
}

/// A copy of one golden model that a test may damage.
pub(crate) struct Golden {
    dir: tempfile::TempDir,
}

impl Golden {
    /// Copies the folder `model`.
    pub(crate) fn copy_of(model: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join(model);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(golden_dir().join(model)).unwrap() {
            let entry = entry.unwrap();
            std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap())
                .unwrap();
        }
        Self { dir }
    }

    /// The model directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A store over it.
    pub(crate) fn store(&self) -> ModelStore {
        ModelStore::new(Options { dirs: vec![self.dir.path().to_owned()], ..Options::default() })
    }
}

/// Expected sparse vectors.
#[derive(serde::Deserialize)]
pub(crate) struct Sparse {
    pub(crate) sentences: Vec<String>,
    rows: Vec<SparseRow>,
}

/// One of them.
#[derive(serde::Deserialize)]
pub(crate) struct SparseRow {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl SparseRow {
    /// Asserts equal ids and weights within `tolerance`.
    #[track_caller]
    pub(crate) fn assert_close(&self, found: &[(u32, f32)], tolerance: f32) {
        let (ids, weights): (Vec<u32>, Vec<f32>) = found.iter().copied().unzip();
        assert_eq!(ids, self.ids);
        assert_close(&weights, &self.weights, tolerance);
    }
}

impl Sparse {
    /// Asserts equal ids and weights within `tolerance`.
    #[track_caller]
    pub(crate) fn assert_close(&self, found: &[Vec<(u32, f32)>], tolerance: f32) {
        assert_eq!(found.len(), self.rows.len());
        for (found, expected) in found.iter().zip(&self.rows) {
            expected.assert_close(found, tolerance);
        }
    }
}
