//! Index files of a sealed segment: which there are, how they are opened and written.
//!
//! An index holds nothing that the rows do not say, so one that is damaged or missing is no
//! error: it is put aside, searches look at the rows, and upkeep builds it anew. A file is opened
//! when it is first needed; its sections are verified then and read in place. A graph that there is
//! memory for is copied there in the background, and then searched there.

use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, LargeBinaryArray};
use elanus_index::{
    Cancel, Elem, HnswIndex, HnswParams, Metric, Progress, Row, Seed, SparseIndex, SparseRow,
    SparseScan, TermIndex, VectorIndex, Vectors,
};

use super::sealed::Repair;
use super::section_file::{self, Section, SectionFile, VerifiedSections};
use super::terms;
use crate::Error;
use crate::blobs::{Blobs, Published};
use crate::budget::Held;
use crate::manifest::{IndexFile, IndexKind, SectionsFile};
use crate::schema::{DataType, Field};
use crate::shared::Doomable;

/// One index file of a segment.
#[derive(Debug)]
pub(crate) struct Index {
    entry: IndexFile,
    file: Published,
    /// `None` once it turned out to be damaged.
    opened: OnceLock<Option<Opened>>,
    /// The graph in memory, which then answers, and what it takes of the node's.
    in_memory: OnceLock<(Arc<HnswIndex>, Held)>,
}

/// An open index.
#[derive(Clone, Debug)]
enum Opened {
    Sparse(Arc<SparseIndex>),
    Graph(Arc<HnswIndex>),
    Terms(Arc<TermIndex>),
}

impl Index {
    pub(super) fn new(dir: &Published, entry: IndexFile) -> Self {
        let file = dir.file(&entry.sections.file);
        Self { entry, file, opened: OnceLock::new(), in_memory: OnceLock::new() }
    }

    pub(crate) fn field(&self) -> i64 {
        self.entry.field
    }

    pub(crate) fn kind(&self) -> &IndexKind {
        &self.entry.kind
    }

    pub(super) fn entry(&self) -> &IndexFile {
        &self.entry
    }

    /// Whether it was found to be damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        matches!(self.opened.get(), Some(None))
    }

    /// Whether it was opened, and whether it is sound, as far as that is known.
    pub(super) fn state(&self) -> Option<bool> {
        self.opened.get().map(Option::is_some)
    }

    /// The vector index over a segment of that many rows, of which `column` are the indexed ones.
    ///
    /// # Errors
    /// Only the first time: why the index is not usable. `None` from then on.
    pub(super) fn open_vectors(
        self: &Arc<Self>,
        rows: usize,
        field: &Field,
        column: &ArrayRef,
        owner: &Arc<dyn Repair>,
    ) -> Result<Option<Arc<dyn VectorIndex>>, Error> {
        if let Some((graph, _)) = self.in_memory.get() {
            return Ok(Some(Arc::clone(graph) as Arc<dyn VectorIndex>));
        }
        let opened = self.open(rows, |sections| match &self.entry.kind {
            IndexKind::SparseInverted => {
                let index = SparseIndex::open(&sections, sparse_rows(column)?)?;
                Ok(Opened::Sparse(Arc::new(index)))
            }
            IndexKind::Hnsw(graph) => {
                let vectors = vectors(field, column)?;
                let index = HnswIndex::open(&sections, vectors.clone(), graph.metric)?;
                self.copy_later(sections, vectors, graph.metric, field, owner);
                Ok(Opened::Graph(Arc::new(index)))
            }
            IndexKind::Terms(_) => Err(of_another_kind()),
        })?;
        Ok(opened.and_then(|opened| match opened {
            Opened::Sparse(index) => Some(index as Arc<dyn VectorIndex>),
            Opened::Graph(index) => Some(index),
            Opened::Terms(_) => None,
        }))
    }

    /// The graph over a segment, as [`Index::open_vectors`].
    ///
    /// # Errors
    /// As [`Index::open_vectors`].
    pub(super) fn open_graph(
        self: &Arc<Self>,
        rows: usize,
        field: &Field,
        column: &ArrayRef,
        owner: &Arc<dyn Repair>,
    ) -> Result<Option<Arc<HnswIndex>>, Error> {
        self.open_vectors(rows, field, column, owner)?;
        Ok(match (self.in_memory.get(), self.opened.get()) {
            (Some((graph, _)), _) | (None, Some(Some(Opened::Graph(graph)))) => {
                Some(Arc::clone(graph))
            }
            (None, Some(Some(Opened::Sparse(_) | Opened::Terms(_)) | None) | None) => None,
        })
    }

    /// The sorted terms of a segment of that many rows.
    ///
    /// # Errors
    /// As [`Index::open_vectors`].
    pub(super) fn open_terms(&self, rows: usize) -> Result<Option<Arc<TermIndex>>, Error> {
        let opened = self.open(rows, |sections| match &self.entry.kind {
            IndexKind::Terms(_) => Ok(Opened::Terms(Arc::new(TermIndex::open(&sections)?))),
            IndexKind::SparseInverted | IndexKind::Hnsw(_) => Err(of_another_kind()),
        })?;
        Ok(opened.and_then(|opened| match opened {
            Opened::Terms(index) => Some(index),
            Opened::Sparse(_) | Opened::Graph(_) => None,
        }))
    }

    fn open(
        &self,
        rows: usize,
        read: impl FnOnce(VerifiedSections) -> Result<Opened, Error>,
    ) -> Result<Option<Opened>, Error> {
        let mut damage = None;
        let opened = self.opened.get_or_init(|| {
            let opened = self.sections(rows).and_then(read);
            match opened {
                Ok(opened) => Some(opened),
                Err(error) => {
                    damage = Some(
                        if let Error::Search(search) = &error
                            && !is_of_another_version(search)
                        {
                            Error::corrupt(self.file.path(), search.to_string())
                        } else {
                            error
                        },
                    );
                    None
                }
            }
        });
        match damage {
            Some(damage) => Err(damage),
            None => Ok(opened.clone()),
        }
    }

    fn sections(&self, rows: usize) -> Result<VerifiedSections, Error> {
        let sections = SectionFile::open(&self.file, &self.entry.sections)?;
        if sections.rows() != rows {
            let detail =
                format!("the index covers {} rows, the segment has {rows}", sections.rows());
            return Err(Error::corrupt(self.file.path(), detail));
        }
        sections.verified()
    }

    /// Has the sections copied to huge pages, which mapped files do not get, if the node has room for
    /// them: a walk is then a tenth quicker. To clear such pages may take a virtual machine seconds,
    /// so nobody waits for that.
    fn copy_later(
        self: &Arc<Self>,
        sections: VerifiedSections,
        vectors: Vectors,
        metric: Metric,
        field: &Field,
        owner: &Arc<dyn Repair>,
    ) {
        let (index, field) = (Arc::downgrade(self), field.clone());
        let owner_then = Arc::clone(owner);
        owner.in_background(Box::new(move || {
            let Some(index) = index.upgrade() else { return };
            let Some(held) = owner_then.admit_index(&field, sections.bytes()) else { return };
            let copied = (sections.in_memory()).map_err(|error| Error::io(index.file.path(), error));
            let copied = copied.and_then(|s| Ok(HnswIndex::open(&s, vectors, metric)?));
            match copied {
                // Set once, as it is opened once.
                Ok(graph) => drop(index.in_memory.set((Arc::new(graph), held))),
                Err(error) => {
                    tracing::warn!(%error, field = field.id, "no memory for an index; it stays mapped");
                }
            }
        }));
    }
}

/// Whether it is sound, and no more than to be built anew.
pub(crate) fn is_of_another_version(error: &elanus_index::Error) -> bool {
    matches!(error, elanus_index::Error::Format { .. })
}

fn of_another_kind() -> Error {
    Error::Internal("an index was asked for what its kind does not answer".into())
}

impl Doomable for Index {
    fn doom(&self) {
        self.file.doom();
    }
}

/// Builds an index over a column of a segment and publishes it as `file` in `dir`. Uses the rayon
/// pool that it is called in. Sorted terms take at most about `terms_bytes` of memory meanwhile. A
/// graph begins with `seed`, one of the same kind over many of the rows, which come with their places.
///
/// # Errors
/// [`Error::Search`] if they would take more, and once `cancel` is set; and what prevents writing.
pub(crate) fn write(
    (blobs, dir, file): (&Blobs, &str, &str),
    kind: &IndexKind,
    field: &Field,
    column: &ArrayRef,
    terms_bytes: usize,
    seed: Option<(&HnswIndex, &[Row])>,
    (progress, cancel): (&Progress, &Cancel),
) -> Result<IndexFile, Error> {
    let sections = match kind {
        IndexKind::SparseInverted => sparse_sections(column)?,
        IndexKind::Terms(def) => terms::sections(def, column, terms_bytes, progress, cancel)?,
        IndexKind::Hnsw(graph) => {
            let params = HnswParams {
                m: graph.m,
                ef_construction: graph.ef_construction,
                ..HnswParams::default()
            };
            let vectors = vectors(field, column)?;
            match seed {
                Some((graph, places)) => {
                    let seed = Seed { graph, places };
                    HnswIndex::build_on(&seed, &vectors, &params, progress, cancel)?
                }
                None => HnswIndex::build(&vectors, graph.metric, &params, progress, cancel)?,
            }
        }
    };
    let sections: Vec<Section> =
        sections.into_iter().map(|(name, bytes)| Section::new(name, bytes)).collect();
    let sections: SectionsFile = section_file::write(blobs, dir, file, column.len(), &sections)?;
    Ok(IndexFile { field: field.id, kind: kind.clone(), sections })
}

/// About how much memory a build takes, of which sorted terms get `terms_bytes`, and the file on
/// disk.
pub(crate) fn build_bytes(kind: &IndexKind, column: &ArrayRef, terms_bytes: usize) -> usize {
    let values = || terms::value_bytes(column);
    match kind {
        IndexKind::Terms(def) => {
            values().saturating_add(terms::build_bytes(def, column).min(terms_bytes))
        }
        IndexKind::SparseInverted => values(),
        // Links of four bytes, twice as many on the lowest level; as a graph and as sections.
        IndexKind::Hnsw(graph) => column.len().saturating_mul(graph.m * 16),
    }
}

/// The rows of a sparse vector column, without a copy.
pub(crate) fn sparse_rows(column: &ArrayRef) -> Result<SparseScan, Error> {
    let rows = large_binary(column)?;
    Ok(SparseScan::new(rows.offsets().inner().clone(), rows.values().clone()))
}

fn large_binary(column: &ArrayRef) -> Result<&LargeBinaryArray, Error> {
    column
        .as_any()
        .downcast_ref()
        .ok_or_else(|| Error::Internal("a sparse vector column is LargeBinary".into()))
}

fn sparse_sections(column: &ArrayRef) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let vectors = large_binary(column)?;
    let rows = (0..vectors.len())
        .map(|row| if vectors.is_null(row) { &[] } else { vectors.value(row) })
        .map(SparseRow::trusted);
    Ok(SparseIndex::build(rows))
}

/// The rows of a column of float32 vectors, without a copy; `None` of any other.
pub(crate) fn float_rows(column: &ArrayRef) -> Option<Vectors> {
    let rows = column.as_fixed_size_list_opt()?;
    let numbers = rows.values().as_primitive_opt::<Float32Type>()?;
    let dim = usize::try_from(rows.value_length()).ok()?;
    Vectors::new(numbers.values().inner().clone(), Elem::F32, dim).ok()
}

/// The rows of a dense vector column, without a copy.
///
/// # Errors
/// [`Error::Invalid`] if the field holds no dense vectors.
pub(crate) fn vectors(field: &Field, column: &ArrayRef) -> Result<Vectors, Error> {
    let (elem, dim) = match field.data_type {
        DataType::FloatVector { dim } => (Elem::F32, dim),
        DataType::Float16Vector { dim } => (Elem::F16, dim),
        DataType::BFloat16Vector { dim } => (Elem::Bf16, dim),
        DataType::Int8Vector { dim } => (Elem::I8, dim),
        DataType::BinaryVector { dim } => (Elem::Bit, dim),
        DataType::Bool
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float
        | DataType::Double
        | DataType::VarChar { .. }
        | DataType::Json
        | DataType::Array { .. }
        | DataType::SparseFloatVector => {
            return Err(Error::Invalid(format!("field `{}` holds no vectors", field.name)));
        }
    };
    let buffer = match elem {
        Elem::F32 => {
            let values = column.as_fixed_size_list().values();
            values.as_primitive::<Float32Type>().values().inner().clone()
        }
        Elem::F16 | Elem::Bf16 | Elem::I8 | Elem::Bit => {
            column.as_fixed_size_binary().values().clone()
        }
    };
    let vectors = Vectors::new(buffer, elem, dim as usize)?;
    if vectors.rows() != column.len() {
        return Err(Error::Internal(format!(
            "field `{}`: {} vectors for {} rows",
            field.name,
            vectors.rows(),
            column.len()
        )));
    }
    Ok(vectors)
}
