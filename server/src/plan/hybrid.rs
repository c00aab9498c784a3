//! Several searches, one ranking: candidates, their columns, and the fusion.
//!
//! All legs search one view, so a row has one address whichever leg found it. The rows that any
//! leg found are the candidates of a query, numbered by ascending primary key; only the columns
//! that decide the ranking are fetched for them. Those of the winners are fetched once, at the
//! end ([`crate::convert::results`]).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch};
use elanus_index::Metric;
use elanus_storage::filter::Columns;
use elanus_storage::schema::{Field, Schema};
use elanus_storage::{Found, ReadView, RowAddr};

use super::group::{self, GroupKey, Grouping};
use super::rank::{Candidate, List, Ranker, sort};
use super::score::{Boosts, Reranker, Scoring, numbers};
use super::search::Page;
use crate::convert::fields;
use crate::engines::Engines;
use crate::status::Failure;

/// Candidates that one query may hand to a model; each costs a pass of the model.
const MAX_MODEL_CANDIDATES: usize = 1_000;

/// The rows that the legs found for one query.
#[derive(Debug)]
pub struct Candidates {
    /// Where they are, by ascending primary key.
    addrs: Vec<RowAddr>,
    /// Per leg the hits, best first.
    lists: Vec<Vec<(Candidate, f32)>>,
    /// The columns that the ranking needs, in the candidates' order.
    columns: RecordBatch,
}

/// Numbers the candidates of all queries and fetches the columns that decide their ranking.
///
/// `found` has per leg, per query the hits, best first.
///
/// # Errors
/// What fetching rows reports.
pub fn candidates(
    view: &ReadView,
    schema: &Schema,
    found: &[Vec<Vec<Found>>],
    columns: &[&str],
) -> Result<Vec<Candidates>, Failure> {
    let queries = found.iter().map(Vec::len).max().unwrap_or(0);
    let addrs: Vec<Vec<RowAddr>> = (0..queries)
        .map(|query| {
            let hits = found.iter().filter_map(|leg| leg.get(query)).flatten();
            let mut addrs: Vec<RowAddr> = hits.map(|hit| hit.addr).collect();
            addrs.sort_unstable();
            addrs.dedup();
            addrs
        })
        .collect();
    if columns.is_empty() && addrs.iter().all(|addrs| view.is_in_key_order(addrs)) {
        let nothing = RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty()));
        let numbered = addrs.into_iter().enumerate().map(|(query, addrs)| Candidates {
            lists: lists(found, query, |hit| place(&addrs, hit) as Candidate),
            columns: nothing.clone(),
            addrs,
        });
        return Ok(numbered.collect());
    }
    let mut names = vec![schema.primary().name.as_str()];
    names.extend(columns.iter().filter(|name| **name != schema.primary().name));
    names.dedup();
    let batch = view.take(&addrs.concat(), &names)?;
    let keys = fields::keys(batch.column(0))?;
    let mut start = 0;
    let mut candidates = Vec::with_capacity(queries);
    for (query, addrs) in addrs.into_iter().enumerate() {
        let mut order: Vec<usize> = (start..start + addrs.len()).collect();
        order.sort_unstable_by(|a, b| keys.get(*a).cmp(&keys.get(*b)));
        let sorted: Vec<RowAddr> = order.iter().map(|at| addrs[at - start]).collect();
        let mut numbers: Vec<Candidate> = vec![0; addrs.len()];
        for (number, at) in (0..).zip(&order) {
            numbers[at - start] = number;
        }
        let rows: arrow_array::UInt64Array = order.iter().map(|at| *at as u64).collect();
        let columns = arrow_select::take::take_record_batch(&batch, &rows)
            .map_err(|error| Failure::internal(error.to_string()))?;
        start += addrs.len();
        candidates.push(Candidates {
            addrs: sorted,
            lists: lists(found, query, |hit| numbers[place(&addrs, hit)]),
            columns,
        });
    }
    Ok(candidates)
}

/// Where a hit is in the ascending `addrs`, of which it is one.
fn place(addrs: &[RowAddr], hit: &Found) -> usize {
    addrs.partition_point(|addr| *addr < hit.addr)
}

/// Per leg the hits of one query, by the numbers of their rows.
fn lists(
    found: &[Vec<Vec<Found>>],
    query: usize,
    number: impl Fn(&Found) -> Candidate,
) -> Vec<Vec<(Candidate, f32)>> {
    let list = |hits: &Vec<Found>| hits.iter().map(|hit| (number(hit), hit.score)).collect();
    found.iter().map(|leg| leg.get(query).map(list).unwrap_or_default()).collect()
}

impl Candidates {
    fn column(&self, name: &str) -> Result<&ArrayRef, Failure> {
        self.columns.column_by_name(name).ok_or_else(|| {
            Failure::internal(format!("column {name} was not fetched for the ranking"))
        })
    }

    /// The lists that a fusion sees.
    fn lists<'a>(&'a self, metrics: &'a [Metric]) -> Vec<List<'a>> {
        self.lists
            .iter()
            .zip(metrics)
            .map(|(hits, metric)| List { hits, metric: *metric })
            .collect()
    }

    /// The candidates' texts, for a model to read.
    fn texts(&self, field: &str) -> Result<Vec<String>, Failure> {
        let column = self.column(field)?;
        let texts = column
            .as_string_opt::<i64>()
            .ok_or_else(|| Failure::internal(format!("column {field} is no text")))?;
        Ok(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
    }
}

/// Has a model score the candidates of each query. Empty when no model is asked for.
///
/// # Errors
/// Code 1100 for too many candidates, 2400 when the model fails.
pub async fn model_scores(
    engines: Engines<'_>,
    scoring: &Scoring,
    candidates: &[Candidates],
) -> Result<Vec<Vec<f32>>, Failure> {
    let (Some(Reranker::Model(model)), Some(field)) = (&scoring.reranker, scoring.field()) else {
        return Ok(Vec::new());
    };
    let mut requests = Vec::with_capacity(candidates.len());
    for (query, candidates) in model.queries.iter().zip(candidates) {
        if candidates.addrs.len() > MAX_MODEL_CANDIDATES {
            return Err(Failure::invalid(format!(
                "{} candidates are too many for the model reranker, at most {MAX_MODEL_CANDIDATES} per query; lower the limits of the searches",
                candidates.addrs.len()
            )));
        }
        requests.push((query.clone(), candidates.texts(field)?));
    }
    let scores = requests.into_iter().map(|(query, texts)| async {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let expected = texts.len();
        let scores = engines.rerank(&model.judge, query, texts).await?;
        if scores.len() != expected {
            return Err(Failure::internal(format!("{} scores for {expected} texts", scores.len())));
        }
        Ok(scores)
    });
    futures::future::try_join_all(scores).await
}

/// Everything that turns candidates into the page of a ranking.
#[derive(Debug)]
pub struct Fusion {
    /// How lists become one.
    pub scoring: Scoring,
    /// The metric of each leg.
    pub metrics: Vec<Metric>,
    /// How hits are grouped, if they are.
    pub grouping: Option<Grouping>,
    /// The part wanted.
    pub page: Page,
    /// Leave out groups that did not fill.
    pub full_groups_only: bool,
}

impl Fusion {
    /// The columns that decide the ranking.
    pub fn columns(&self) -> Vec<&str> {
        let group = self.grouping.as_ref().map(|grouping| grouping.field.as_str());
        let mut columns: Vec<&str> = self.scoring.field().into_iter().chain(group).collect();
        columns.dedup();
        columns
    }

    /// Whether a client sees larger scores of the result as better.
    pub fn larger_is_better(&self) -> bool {
        match &self.scoring.reranker {
            Some(Reranker::Rank(ranker)) => ranker.larger_is_better(&self.metrics),
            Some(Reranker::Decay(_) | Reranker::Model(_)) => true,
            None => self.metrics.iter().all(|metric| metric.larger_is_better()),
        }
    }

    /// Ranks the candidates of one query and returns the page.
    ///
    /// # Errors
    /// Code 1100 for a boost filter that cannot be evaluated.
    pub fn rank(
        &self,
        view: &ReadView,
        schema: &Schema,
        candidates: &mut Candidates,
        model_scores: Option<&[f32]>,
    ) -> Result<Vec<(RowAddr, f32)>, Failure> {
        boost(&self.scoring.boosts, view, schema, candidates, &self.metrics)?;
        let lists = candidates.lists(&self.metrics);
        let ranked = match &self.scoring.reranker {
            Some(Reranker::Rank(ranker)) => ranker.fuse(&lists),
            Some(Reranker::Decay(decay)) => {
                let field = self.scoring.field().unwrap_or_default();
                let values = numbers(candidates.column(field)?);
                decay.fuse(&lists, |candidate| values[candidate as usize])
            }
            Some(Reranker::Model(_)) => {
                let scores = model_scores.unwrap_or_default().iter().copied();
                let mut ranked: Vec<_> = (0..).zip(scores).collect();
                sort(&mut ranked);
                ranked
            }
            // One list, boosted or not, in its own order.
            None => candidates.lists.first().cloned().unwrap_or_default(),
        };
        let kept = match &self.grouping {
            None => self.page.cut(ranked),
            Some(grouping) => {
                let values = group::keys(candidates.column(&grouping.field)?);
                let value =
                    |candidate: Candidate| -> GroupKey { values[candidate as usize].clone() };
                let page = self.page.offset..self.page.end();
                grouping.apply(&ranked, value, page, self.full_groups_only)
            }
        };
        let addr =
            |(candidate, score): (Candidate, f32)| (candidates.addrs[candidate as usize], score);
        Ok(kept.into_iter().map(addr).collect())
    }
}

/// Changes the scores of the candidates that match the boosts' filters, in every list.
fn boost(
    boosts: &Boosts,
    view: &ReadView,
    schema: &Schema,
    candidates: &mut Candidates,
    metrics: &[Metric],
) -> Result<(), Failure> {
    if boosts.is_empty() {
        return Ok(());
    }
    let rows = candidates.addrs.len();
    let mut matches = vec![Vec::with_capacity(boosts.iter().count()); rows];
    for boost in boosts.iter() {
        let columns = CandidateColumns { view, addrs: &candidates.addrs };
        let predicate = boost.filter.compile(schema)?;
        let mask = predicate.map(|predicate| predicate.eval(&columns)).transpose()?;
        for (row, matches) in (0..).zip(&mut matches) {
            matches.push(mask.as_ref().is_none_or(|mask| mask.contains(row)));
        }
    }
    for (list, metric) in candidates.lists.iter_mut().zip(metrics) {
        for (candidate, score) in list.iter_mut() {
            *score = boosts.apply(*score, metric.larger_is_better(), &matches[*candidate as usize]);
        }
        sort(list);
    }
    Ok(())
}

/// The candidates' columns, as a filter sees them; fetched when they are asked for.
struct CandidateColumns<'a> {
    view: &'a ReadView,
    addrs: &'a [RowAddr],
}

impl Columns for CandidateColumns<'_> {
    fn rows(&self) -> usize {
        self.addrs.len()
    }

    fn column(&self, field: &Field) -> Result<ArrayRef, elanus_storage::Error> {
        let batch = self.view.take(self.addrs, &[field.name.as_str()])?;
        Ok(ArrayRef::clone(batch.column(0)))
    }
}

/// The ranker of a hybrid search that names none in a `function_score`.
///
/// # Errors
/// As [`Ranker::parse`].
pub fn ranker(params: &super::Params, legs: usize) -> Result<Scoring, Failure> {
    let strategy = params.text("strategy");
    let ranker = Ranker::parse(strategy.as_deref(), params, legs)?;
    Ok(Scoring { reranker: Some(Reranker::Rank(ranker)), ..Scoring::default() })
}
