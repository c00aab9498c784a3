//! Fusing the hits of several searches into one ranking: RRF and weighted sums.
//!
//! Pure functions over candidate numbers. Candidates are numbered in ascending order of their
//! primary key, so "ties by key" is "ties by the smaller number". All arithmetic is in `f32`, as
//! Milvus does it. Scores are internal ones (larger is better, distances negated) on both sides.

use std::f32::consts::PI;

use elanus_index::Metric;
use serde_json::Value;

use super::Params;
use crate::status::Failure;

/// A candidate row, numbered by ascending primary key within one query.
pub type Candidate = u32;

/// The hits of one search for one query, best first, with the metric its scores come from.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// Candidates with their internal scores.
    pub hits: &'a [(Candidate, f32)],
    /// What the scores mean.
    pub metric: Metric,
}

/// How several lists become one.
#[derive(Clone, Debug, PartialEq)]
pub enum Ranker {
    /// Reciprocal rank fusion: the sum of `1 / (k + rank)`.
    Rrf {
        /// Dampens the first ranks; larger means flatter.
        k: f32,
    },
    /// The weighted sum of scores.
    Weighted {
        /// One weight in `[0, 1]` per list.
        weights: Vec<f32>,
        /// Map each metric to `[0, 1]` first.
        normalize: bool,
    },
}

/// Milvus's default for RRF's `k`.
const DEFAULT_K: f32 = 60.0;

impl Ranker {
    /// Reads the ranker named `strategy` (absent means RRF) for a fusion of `lists` searches.
    ///
    /// # Errors
    /// Code 1100 for an unknown name, a `k` outside (0, 16384), weights outside `[0, 1]` or of
    /// another number than `lists`.
    pub fn parse(strategy: Option<&str>, params: &Params, lists: usize) -> Result<Self, Failure> {
        match strategy.unwrap_or("rrf") {
            "rrf" => Self::rrf(params),
            "weighted" => Self::weighted(params, lists),
            other => Err(Failure::invalid(format!("unsupported rank type {other}"))),
        }
    }

    fn rrf(params: &Params) -> Result<Self, Failure> {
        let k = params.float("k")?.map_or(DEFAULT_K, narrow);
        if k > 0.0 && k < 16_384.0 {
            Ok(Self::Rrf { k })
        } else {
            Err(Failure::invalid(format!(
                "The rank params k should be in range (0, 16384), got {k}"
            )))
        }
    }

    fn weighted(params: &Params, lists: usize) -> Result<Self, Failure> {
        let Some(Value::Array(weights)) = params.json("weights") else {
            return Err(Failure::invalid(
                "The weights param of the weighted ranker is not found, it should be a list of numbers",
            ));
        };
        let weights = weights
            .iter()
            .map(|weight| match weight.as_f64().map(narrow) {
                Some(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
                _ => Err(Failure::invalid(format!(
                    "rank param weight should be in range [0, 1], got {weight}"
                ))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if weights.len() != lists {
            return Err(Failure::invalid(format!(
                "the length of weights param mismatch with ann search requests: {} weights, {lists} requests",
                weights.len()
            )));
        }
        Ok(Self::Weighted { weights, normalize: params.flag("norm_score")? })
    }

    /// Whether a client sees larger fused scores as better. Only a plain weighted sum of
    /// distances stays a distance.
    pub fn larger_is_better(&self, metrics: &[Metric]) -> bool {
        match self {
            Self::Rrf { .. } | Self::Weighted { normalize: true, .. } => true,
            Self::Weighted { normalize: false, .. } => {
                metrics.iter().any(|metric| metric.larger_is_better())
            }
        }
    }

    /// Fuses the lists of one query: each candidate that occurs once, best first, ties by the
    /// smaller candidate.
    pub fn fuse(&self, lists: &[List<'_>]) -> Vec<(Candidate, f32)> {
        let mut scores = Scores::new(lists);
        match self {
            Self::Rrf { k } => {
                for list in lists {
                    let mut rank = 0.0_f32;
                    for (candidate, _) in list.hits {
                        rank += 1.0;
                        scores.add(*candidate, 1.0 / (k + rank));
                    }
                }
            }
            Self::Weighted { weights, normalize } => {
                let metrics: Vec<_> = lists.iter().map(|list| list.metric).collect();
                let distances = !self.larger_is_better(&metrics);
                for (list, weight) in lists.iter().zip(weights) {
                    for (candidate, score) in list.hits {
                        let value = if *normalize {
                            normalized(list.metric, *score)
                        } else if distances || list.metric.larger_is_better() {
                            *score
                        } else {
                            normalized(list.metric, *score)
                        };
                        scores.add(*candidate, weight * value);
                    }
                }
            }
        }
        let mut fused = scores.into_pairs();
        sort(&mut fused);
        fused
    }
}

/// Best first, ties by the smaller candidate.
pub fn sort(hits: &mut [(Candidate, f32)]) {
    hits.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// An internal score mapped to `[0, 1]`, larger better, so that metrics can be added up.
pub fn normalized(metric: Metric, score: f32) -> f32 {
    match metric {
        Metric::Cosine => f32::midpoint(1.0, score),
        Metric::Ip => 0.5 + score.atan() / PI,
        // Internal scores of distances are negated.
        Metric::L2 | Metric::Hamming | Metric::Jaccard => 1.0 - 2.0 * (-score).atan() / PI,
    }
}

/// Sums by candidate.
struct Scores {
    sums: Vec<f32>,
    seen: Vec<bool>,
}

impl Scores {
    fn new(lists: &[List<'_>]) -> Self {
        let largest =
            lists.iter().flat_map(|list| list.hits).map(|(candidate, _)| candidate + 1).max();
        let count = largest.unwrap_or(0) as usize;
        Self { sums: vec![0.0; count], seen: vec![false; count] }
    }

    fn add(&mut self, candidate: Candidate, value: f32) {
        self.sums[candidate as usize] += value;
        self.seen[candidate as usize] = true;
    }

    fn into_pairs(self) -> Vec<(Candidate, f32)> {
        (0..)
            .zip(self.sums)
            .zip(self.seen)
            .filter_map(|(pair, seen)| seen.then_some(pair))
            .collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rank parameters are single precision in Milvus"
)]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use elanus_proto::common::KeyValuePair;
    use proptest::prelude::*;

    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(&[KeyValuePair { key: "params".into(), value: text.into() }]).unwrap()
    }

    fn list(metric: Metric, hits: &[(Candidate, f32)]) -> List<'_> {
        List { hits, metric }
    }

    #[test]
    fn rrf_adds_reciprocal_ranks_and_breaks_ties_by_key() {
        let ranker = Ranker::parse(None, &params("{}"), 2).unwrap();
        assert_eq!(ranker, Ranker::Rrf { k: 60.0 });
        let dense = [(7, 0.9), (3, 0.8), (1, 0.1)];
        let sparse = [(3, 12.0), (7, 11.0), (5, 1.0)];
        let fused = ranker.fuse(&[list(Metric::Cosine, &dense), list(Metric::Ip, &sparse)]);
        let both = 1.0_f32 / 61.0 + 1.0 / 62.0;
        assert_eq!(fused, [(3, both), (7, both), (1, 1.0 / 63.0), (5, 1.0 / 63.0)]);
    }

    #[test]
    fn weighted_sums_follow_the_table_of_norms() {
        let ranker = Ranker::parse(
            Some("weighted"),
            &params(r#"{"weights":[0.7,0.3],"norm_score":true}"#),
            2,
        )
        .unwrap();
        let dense = [(1, 0.5)];
        let distance = [(1, -2.0), (2, -3.0)];
        let fused = ranker.fuse(&[list(Metric::Cosine, &dense), list(Metric::L2, &distance)]);
        let expected = 0.7 * (1.0 + 0.5) / 2.0 + 0.3 * (1.0 - 2.0 * 2.0_f32.atan() / PI);
        assert!((fused[0].1 - expected).abs() < 1e-6, "{fused:?}");
        assert_eq!(fused[0].0, 1);
        assert!((normalized(Metric::Ip, 1.0) - 0.75).abs() < 1e-6);
    }

    #[test]
    fn plain_sums_of_distances_stay_distances() {
        let ranker = Ranker::parse(Some("weighted"), &params(r#"{"weights":[0.5,1]}"#), 2).unwrap();
        assert!(!ranker.larger_is_better(&[Metric::L2, Metric::Hamming]));
        assert!(ranker.larger_is_better(&[Metric::L2, Metric::Ip]));
        let (a, b) = ([(1, -2.0), (2, -4.0)], [(1, -1.0)]);
        let fused = ranker.fuse(&[list(Metric::L2, &a), list(Metric::L2, &b)]);
        // Missing in a list adds nothing, as in Milvus.
        assert_eq!(fused, [(1, -2.0), (2, -2.0)]);
        let mixed = ranker.fuse(&[list(Metric::L2, &a[..1]), list(Metric::Ip, &[(1, 3.0)])]);
        assert!((mixed[0].1 - (0.5 * (1.0 - 2.0 * 2.0_f32.atan() / PI) + 3.0)).abs() < 1e-6);
    }

    #[test]
    fn parameters_out_of_range_are_refused_with_milvus_texts() {
        let reason = |strategy: &str, text: &str| {
            Ranker::parse(Some(strategy), &params(text), 2).unwrap_err().reason().to_owned()
        };
        assert!(reason("rrf", r#"{"k":0}"#).contains("should be in range (0, 16384)"));
        assert!(reason("rrf", r#"{"k":16384}"#).contains("should be in range (0, 16384)"));
        assert!(
            reason("weighted", r#"{"weights":[0.1]}"#)
                .contains("mismatch with ann search requests")
        );
        assert!(
            reason("weighted", r#"{"weights":[0.1, 2]}"#).contains("should be in range [0, 1]")
        );
        assert!(reason("weighted", "{}").contains("weights"));
        assert!(reason("best", "{}").contains("unsupported rank type best"));
    }

    proptest! {
        #[test]
        fn rrf_agrees_with_a_table_by_hand(
            lists in prop::collection::vec(prop::collection::btree_set(0_u32..30, 0..20), 1..4),
        ) {
            let lists: Vec<Vec<(Candidate, f32)>> =
                lists.into_iter().map(|set| set.into_iter().map(|c| (c, 0.0)).collect()).collect();
            let views: Vec<_> = lists.iter().map(|hits| list(Metric::Ip, hits)).collect();
            let fused = Ranker::Rrf { k: 7.0 }.fuse(&views);
            for (candidate, score) in &fused {
                let mut expected = 0.0_f32;
                for hits in &lists {
                    if let Some(at) = hits.iter().position(|hit| hit.0 == *candidate) {
                        expected += 1.0 / (7.0 + (at + 1) as f32);
                    }
                }
                prop_assert_eq!(*score, expected);
            }
            let distinct: std::collections::BTreeSet<_> = lists.iter().flatten().map(|h| h.0).collect();
            prop_assert_eq!(fused.len(), distinct.len());
            prop_assert!(fused.windows(2).all(|w| w[0].1 > w[1].1 || (w[0].1 == w[1].1 && w[0].0 < w[1].0)));
        }
    }
}
