//! `elanus eval`: how well models find what people judged relevant, on data of one's own.
//!
//! Reads a collection in the files of BEIR (Thakur et al. 2021): `corpus.jsonl`, `queries.jsonl`
//! and `qrels/test.tsv`. Searches exactly, with the node's own kernels and fusion, so that the
//! figures tell of the models and not of an index. nDCG has linear gains, as trec_eval.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use arrow_buffer::{Buffer, ScalarBuffer};
use clap::Args as ClapArgs;
use elanus::plan::rank::{List, Ranker};
use elanus_embed::{
    EmbedRequest, Embeddings, LateRequest, LateWeights, Mode, ModelStore, Outputs, RerankRequest,
};
use elanus_index::{
    Cancel, Elem, FlatIndex, Metric, Query, RowMask, SearchParams, SparseRow, SparseScan,
    VectorIndex, Vectors,
};
use serde::Deserialize;
use serde_json::json;

use super::models::{Store, block_on, print};

/// Measure retrieval quality on files in BEIR's format.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// A folder with corpus.jsonl, queries.jsonl and qrels/test.tsv
    data: PathBuf,
    /// A model; may be repeated: one for dense and one for sparse vectors
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// A re-ranker: a cross-encoder, or a model with token vectors
    #[arg(long)]
    reranker: Option<String>,
    /// Candidates that are re-ranked
    #[arg(long, default_value_t = 50)]
    depth: usize,
    /// The judgements [default: DATA/qrels/test.tsv]
    #[arg(long, value_name = "FILE")]
    qrels: Option<PathBuf>,
    /// Width of the dense vectors, where the model allows to cut them
    #[arg(long)]
    dim: Option<usize>,
    #[command(flatten)]
    store: Store,
}

/// Hits of a search that are looked at.
const TOP: usize = 100;

/// Texts of one call of a model.
const BATCH: usize = 256;

/// Documents, questions and who judged what.
struct Data {
    doc_ids: Vec<String>,
    docs: Vec<String>,
    queries: Vec<String>,
    /// Per query the relevant documents and their grade.
    relevant: Vec<HashMap<u32, f64>>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// `elanus eval`.
pub(crate) fn eval(args: Args) -> anyhow::Result<()> {
    ensure!((1..=TOP).contains(&args.depth), "--depth must be 1 to {TOP}");
    let qrels = args.qrels.unwrap_or_else(|| args.data.join("qrels/test.tsv"));
    let data = Data::read(&args.data, &qrels)?;
    let store = args.store.open()?;
    let mut lists: Vec<(String, &str, Hits)> = Vec::new();
    for name in &args.models {
        let spec = store.resolve(name)?;
        let outputs = Outputs { colbert: false, ..spec.outputs() };
        ensure!(!outputs.is_empty(), "{name} makes no vectors; give re-rankers as --reranker");
        let began = Instant::now();
        let dim = args.dim.filter(|_| outputs.dense);
        let docs = vectors(&store, name, &data.docs, outputs, Mode::Insert, dim);
        let docs = block_on(docs)??;
        let seconds = began.elapsed().as_secs_f64();
        let queries = vectors(&store, name, &data.queries, outputs, Mode::Search, dim);
        let queries = block_on(queries)??;
        let texts = data.docs.len();
        print(&json!({ "model": name, "documents": texts, "seconds": seconds }))?;
        if outputs.dense {
            lists.push((name.clone(), "dense", dense_hits(&docs, &queries)?));
        }
        if outputs.sparse {
            lists.push((name.clone(), "sparse", sparse_hits(&docs, &queries)?));
        }
    }
    for (model, retrieval, hits) in &lists {
        data.report(retrieval, model, hits)?;
    }
    let names: Vec<&str> = lists.iter().map(|(model, ..)| model.as_str()).collect();
    let names = names.join(" + ");
    let fused: Hits = match lists.as_slice() {
        [(.., hits)] => hits.clone(),
        lists => (0..data.queries.len()).map(|query| fuse(lists, query)).collect(),
    };
    if lists.len() > 1 {
        data.report("fused (RRF)", &names, &fused)?;
    }
    if let Some(reranker) = &args.reranker {
        let began = Instant::now();
        let hits = block_on(rerank(&store, reranker, &data, &fused, args.depth))??;
        let seconds = began.elapsed().as_secs_f64();
        print(&json!({ "model": reranker, "queries": hits.len(), "seconds": seconds }))?;
        data.report("re-ranked", &format!("{names}, {reranker}"), &hits)?;
    }
    Ok(())
}

/// Per query the documents found, best first.
type Hits = Vec<Vec<(u32, f32)>>;

impl Data {
    fn read(dir: &Path, qrels: &Path) -> anyhow::Result<Self> {
        let (doc_ids, docs): (Vec<_>, Vec<_>) =
            lines(&dir.join("corpus.jsonl"))?.into_iter().unzip();
        ensure!(!docs.is_empty(), "corpus.jsonl has no documents");
        let by_id: HashMap<&str, u32> = doc_ids.iter().map(String::as_str).zip(0..).collect();
        let mut judged: HashMap<String, HashMap<u32, f64>> = HashMap::new();
        let text = std::fs::read_to_string(qrels).with_context(|| qrels.display().to_string())?;
        for (number, line) in text.lines().enumerate() {
            let fields: Vec<&str> = line.split('\t').collect();
            // BEIR has three columns and a heading, TREC has four and none.
            let [query, .., document, grade] = fields.as_slice() else {
                bail!("{}:{}: expected tab-separated columns", qrels.display(), number + 1);
            };
            let Ok(grade) = grade.trim().parse::<f64>() else {
                ensure!(number == 0, "{}:{}: no grade", qrels.display(), number + 1);
                continue;
            };
            if let Some(document) = by_id.get(document).filter(|_| grade > 0.0) {
                judged.entry((*query).to_owned()).or_default().insert(*document, grade);
            }
        }
        // Questions nobody judged say nothing.
        let asked = lines(&dir.join("queries.jsonl"))?.into_iter();
        let asked = asked.filter_map(|(id, text)| Some((text, judged.remove(&id)?)));
        let (queries, relevant): (Vec<_>, Vec<_>) = asked.unzip();
        ensure!(!queries.is_empty(), "{} judges none of the queries", qrels.display());
        Ok(Self { doc_ids, docs, queries, relevant })
    }

    fn report(&self, retrieval: &str, model: &str, hits: &Hits) -> anyhow::Result<()> {
        let mean = |score: fn(&[u32], &HashMap<u32, f64>) -> f64| {
            let scores = hits.iter().zip(&self.relevant).map(|(hits, relevant)| {
                let found: Vec<u32> = hits.iter().map(|(document, _)| *document).collect();
                score(&found, relevant)
            });
            let mean = scores.sum::<f64>() / self.queries.len() as f64;
            (mean * 1e4).round() / 1e4
        };
        print(&json!({
            "retrieval": retrieval,
            "model": model,
            "ndcg@10": mean(|found, relevant| ndcg(found, relevant, 10)),
            "recall@10": mean(|found, relevant| recall(found, relevant, 10)),
            "recall@100": mean(|found, relevant| recall(found, relevant, TOP)),
            "mrr@10": mean(|found, relevant| reciprocal_rank(found, relevant, 10)),
            "queries": self.queries.len(),
            "documents": self.doc_ids.len(),
        }))
    }
}

/// The ids and texts of a JSON-lines file; a title stands before its text.
fn lines(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut all = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let Line { id, title, text } = serde_json::from_str(&line)
            .with_context(|| format!("{}:{}", path.display(), number + 1))?;
        all.push((id, if title.is_empty() { text } else { format!("{title} {text}") }));
    }
    Ok(all)
}

async fn vectors(
    store: &ModelStore,
    model: &str,
    texts: &[String],
    outputs: Outputs,
    mode: Mode,
    dim: Option<usize>,
) -> anyhow::Result<Embeddings> {
    let mut all = Embeddings::default();
    for batch in texts.chunks(BATCH) {
        let request = EmbedRequest { dim, ..EmbedRequest::new(batch.to_vec(), outputs, mode) };
        let found = store.embed(model, request).await?;
        all.dim = found.dim;
        all.dense.get_or_insert_default().extend(found.dense.unwrap_or_default());
        all.sparse.get_or_insert_default().extend(found.sparse.unwrap_or_default());
    }
    Ok(all)
}

fn search(index: &impl VectorIndex, rows: usize, queries: &[Query<'_>]) -> anyhow::Result<Hits> {
    let params = SearchParams { k: TOP, ..SearchParams::default() };
    let found = index.search_many(queries, &params, &RowMask::all(rows), &Cancel::never())?;
    let list = |hits: Vec<elanus_index::Hit>| hits.iter().map(|hit| (hit.row, hit.score)).collect();
    Ok(found.into_iter().map(list).collect())
}

fn dense_hits(docs: &Embeddings, queries: &Embeddings) -> anyhow::Result<Hits> {
    let bytes = |found: &Embeddings| -> Vec<u8> {
        found.dense.iter().flatten().flat_map(|value| value.to_le_bytes()).collect()
    };
    let vectors = Vectors::new(Buffer::from_vec(bytes(docs)), Elem::F32, docs.dim)?;
    let (rows, queries) = (vectors.rows(), bytes(queries));
    let queries: Vec<Query<'_>> = queries.chunks_exact(4 * docs.dim).map(Query::Dense).collect();
    search(&FlatIndex::new(vectors, Metric::Cosine), rows, &queries)
}

fn sparse_hits(docs: &Embeddings, queries: &Embeddings) -> anyhow::Result<Hits> {
    let rows = |found: &Embeddings| -> Vec<Vec<u8>> {
        let pair = |(id, weight): &(u32, f32)| [id.to_le_bytes(), weight.to_le_bytes()].concat();
        let row = |row: &Vec<(u32, f32)>| row.iter().flat_map(pair).collect();
        found.sparse.iter().flatten().map(row).collect()
    };
    let (docs, queries) = (rows(docs), rows(queries));
    let mut offsets = vec![0_i64];
    for row in &docs {
        offsets.push(offsets[offsets.len() - 1] + row.len() as i64);
    }
    let index = SparseScan::new(ScalarBuffer::from(offsets), Buffer::from_vec(docs.concat()));
    let queries: Vec<Query<'_>> =
        queries.iter().map(|row| Query::Sparse(SparseRow::trusted(row))).collect();
    search(&index, docs.len(), &queries)
}

/// The lists of a query as the node fuses those of a hybrid search.
fn fuse(lists: &[(String, &str, Hits)], query: usize) -> Vec<(u32, f32)> {
    let list = |(.., hits): &(String, &str, Hits)| hits[query].clone();
    let hits: Vec<Vec<(u32, f32)>> = lists.iter().map(list).collect();
    let lists: Vec<List<'_>> = hits.iter().map(|hits| List { hits, metric: Metric::Ip }).collect();
    let mut fused = Ranker::Rrf { k: 60.0 }.fuse(&lists);
    fused.truncate(TOP);
    fused
}

/// The first `depth` hits of each query in the order of a re-ranker, the others behind them.
async fn rerank(
    store: &ModelStore,
    model: &str,
    data: &Data,
    hits: &Hits,
    depth: usize,
) -> anyhow::Result<Hits> {
    let spec = store.resolve(model)?;
    let mut all = Vec::with_capacity(hits.len());
    for (query, hits) in data.queries.iter().zip(hits) {
        let (first, rest) = hits.split_at(depth.min(hits.len()));
        let docs: Vec<String> =
            first.iter().map(|(row, _)| data.docs[*row as usize].clone()).collect();
        let query = query.clone();
        let scores = if spec.reranker {
            let request = RerankRequest { query, docs, ..RerankRequest::default() };
            store.rerank(model, request).await?
        } else {
            let weights = match spec.outputs() {
                Outputs { dense: true, sparse: true, colbert: true } => LateWeights::default(),
                _ => LateWeights { dense: 0.0, sparse: 0.0, colbert: 1.0 },
            };
            let request = LateRequest { query, docs, weights, max_length: None };
            store.late_interaction(model, request).await?
        };
        let mut ranked: Vec<(u32, f32)> = first.iter().map(|(row, _)| *row).zip(scores).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.extend_from_slice(rest);
        all.push(ranked);
    }
    Ok(all)
}

/// Discounted gain of the first `k`, over that of the best order there could be.
fn ndcg(found: &[u32], relevant: &HashMap<u32, f64>, k: usize) -> f64 {
    let gain = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        gains.take(k).enumerate().map(|(rank, gain)| gain / (rank as f64 + 2.0).log2()).sum()
    };
    let mut best: Vec<f64> = relevant.values().copied().collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = gain(&mut best.into_iter());
    gain(&mut found.iter().map(|row| relevant.get(row).copied().unwrap_or(0.0))) / ideal
}

/// The part of the relevant documents that is among the first `k`.
fn recall(found: &[u32], relevant: &HashMap<u32, f64>, k: usize) -> f64 {
    let hits = found.iter().take(k).filter(|row| relevant.contains_key(row)).count();
    hits as f64 / relevant.len() as f64
}

/// One over the rank of the first relevant document, 0 where none is among the first `k`.
fn reciprocal_rank(found: &[u32], relevant: &HashMap<u32, f64>, k: usize) -> f64 {
    let first = found.iter().take(k).position(|row| relevant.contains_key(row));
    first.map_or(0.0, |rank| 1.0 / (rank as f64 + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_agree_with_their_definitions() {
        let relevant = HashMap::from([(3, 2.0), (5, 1.0), (9, 1.0)]);
        let found = [7, 3, 9, 1];
        let log = f64::log2;
        let ideal = 2.0 / log(2.0) + 1.0 / log(3.0) + 1.0 / log(4.0);
        let gained = 2.0 / log(3.0) + 1.0 / log(4.0);
        assert!((ndcg(&found, &relevant, 10) - gained / ideal).abs() < 1e-12);
        let ideal = 2.0 / log(2.0) + 1.0 / log(3.0);
        assert!((ndcg(&found, &relevant, 2) - 2.0 / log(3.0) / ideal).abs() < 1e-12);
        assert!((recall(&found, &relevant, 10) - 2.0 / 3.0).abs() < 1e-12);
        assert!((recall(&found, &relevant, 2) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(reciprocal_rank(&found, &relevant, 10), 0.5);
        assert_eq!(reciprocal_rank(&found, &relevant, 1), 0.0);
    }

    #[test]
    fn judgements_of_unknown_documents_and_questions_nobody_judged_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "corpus.jsonl",
            "{\"_id\": \"a\", \"title\": \"T\", \"text\": \"x\"}\n{\"_id\": \"b\", \"text\": \"y\"}\n",
        );
        write(
            "queries.jsonl",
            "{\"_id\": \"1\", \"text\": \"q\"}\n{\"_id\": \"2\", \"text\": \"r\"}\n\n",
        );
        let qrels = dir.path().join("test.tsv");
        let beir = "query-id\tcorpus-id\tscore\n1\tb\t2\n1\ta\t0\n1\tnone\t1\n";
        for text in [beir, "1\t0\tb\t2\n"] {
            std::fs::write(&qrels, text).unwrap();
            let data = Data::read(dir.path(), &qrels).unwrap();
            assert_eq!(data.docs, ["T x", "y"]);
            assert_eq!((data.queries.len(), &data.queries[0]), (1, &"q".to_owned()));
            assert_eq!(data.relevant[0], HashMap::from([(1, 2.0)]));
        }
        for (text, reason) in [("9\ta\t1\n", "none of the queries"), ("1\ta\t1\n1\n", ":2:")] {
            std::fs::write(&qrels, text).unwrap();
            let error = Data::read(dir.path(), &qrels).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
