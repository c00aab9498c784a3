//! Grouping search: at most a few hits per value of a field.
//!
//! Groups stand in the order of their scores, hits of a group stay together in score order, and
//! limit and offset count groups. Pure: values come in as [`GroupKey`]s, one per candidate.

use std::collections::HashMap;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use elanus_storage::schema::{DataType, Field, Schema};

use super::Params;
use super::rank::Candidate;
use crate::limits::Limits;
use crate::status::Failure;

/// What a request wants grouped.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouping {
    /// The field whose values make the groups.
    pub field: String,
    /// Hits wanted per group.
    pub size: usize,
    /// Search on until groups are full; a fusion leaves out those that did not fill.
    pub strict: bool,
    /// How a group's score comes from its members'.
    pub scorer: Scorer,
}

/// How a group's score comes from its members'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scorer {
    /// The best member's.
    #[default]
    Max,
    /// The sum.
    Sum,
    /// The mean.
    Avg,
}

/// One value of the grouping field; null is a group of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GroupKey {
    /// No value.
    Null,
    /// BOOL.
    Bool(bool),
    /// INT8 to INT64.
    Int(i64),
    /// VARCHAR.
    Text(String),
    /// FLOAT and DOUBLE by their bits; elements of arrays only, no field is grouped by them.
    Bits(u64),
}

impl Grouping {
    /// Reads the grouping parameters; `None` when the request does not group.
    ///
    /// # Errors
    /// Code 1100 for an unknown or unsuitable field and a size out of range.
    pub fn parse(
        params: &Params,
        schema: &Schema,
        limits: &Limits,
    ) -> Result<Option<Self>, Failure> {
        let one = params.text("group_by_field").or_else(|| params.text("group_by_fields"));
        let Some(name) = one else { return Ok(None) };
        if name.contains(',') {
            return Err(Failure::invalid(format!(
                "group by several fields is not supported, got {name}"
            )));
        }
        if params.has("json_path") {
            return Err(Failure::invalid(
                "group by on a json path is not supported, group by a scalar field",
            ));
        }
        let field = schema.field(&name).filter(|field| !field.dynamic).ok_or_else(|| {
            Failure::invalid(format!(
                "groupBy field not found in schema: field not found[field={name}]"
            ))
        })?;
        if !groupable(field) {
            return Err(Failure::invalid(format!(
                "unsupported data type {:?} of group by field {name}, use BOOL, INT8 to INT64 or VARCHAR",
                field.data_type
            )));
        }
        let size = params.int("group_size")?.unwrap_or(1);
        let size = u64::try_from(size).ok().filter(|size| (1..=limits.group_size).contains(size)).ok_or_else(|| {
            Failure::invalid(format!(
                "input group size:{size} exceeds configured max group size:{}, it should be in range [1, {}]",
                limits.group_size, limits.group_size
            ))
        })?;
        let scorer = match params.text("rank_group_scorer").as_deref() {
            None | Some("max") => Scorer::Max,
            Some("sum") => Scorer::Sum,
            Some("avg") => Scorer::Avg,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "unsupported rank_group_scorer {other}, use max, sum or avg"
                )));
            }
        };
        Ok(Some(Self {
            field: field.name.clone(),
            size: usize::try_from(size).unwrap_or(usize::MAX),
            strict: params.flag("strict_group_size")?,
            scorer,
        }))
    }

    /// Puts the hits of one query into groups and returns those of the groups in `page`, flat.
    ///
    /// `hits` are best first, ties by smaller candidate; `value` gives each candidate's key.
    /// With `full_only`, groups with fewer than `size` members are left out.
    pub fn apply(
        &self,
        hits: &[(Candidate, f32)],
        value: impl Fn(Candidate) -> GroupKey,
        page: Range<usize>,
        full_only: bool,
    ) -> Vec<(Candidate, f32)> {
        let mut groups = self.collect(hits, value);
        if full_only {
            groups.retain(|group| group.len() == self.size);
        }
        // Stable, and groups begin in the order of their best hits, so with the default scorer
        // only ties are left to decide.
        groups.sort_by(|a, b| {
            self.score(b)
                .total_cmp(&self.score(a))
                .then(b.len().cmp(&a.len()))
                .then(a[0].0.cmp(&b[0].0))
        });
        groups.into_iter().skip(page.start).take(page.len()).flatten().collect()
    }

    /// Whether a search that returned these hits need not look further: it found `groups` groups
    /// and, where that is asked for, the first of them are full.
    pub fn is_filled(
        &self,
        hits: &[(Candidate, f32)],
        value: impl Fn(Candidate) -> GroupKey,
        groups: usize,
    ) -> bool {
        let found = self.collect(hits, value);
        let full = |group: &Vec<_>| !self.strict || group.len() == self.size;
        found.len() >= groups && found.iter().take(groups).all(full)
    }

    /// The groups in order of their best hit, each with at most `size` members.
    fn collect(
        &self,
        hits: &[(Candidate, f32)],
        value: impl Fn(Candidate) -> GroupKey,
    ) -> Vec<Vec<(Candidate, f32)>> {
        let mut groups: Vec<Vec<(Candidate, f32)>> = Vec::new();
        let mut places: HashMap<GroupKey, usize> = HashMap::new();
        for hit in hits {
            let place = *places.entry(value(hit.0)).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            if groups[place].len() < self.size {
                groups[place].push(*hit);
            }
        }
        groups
    }

    fn score(&self, group: &[(Candidate, f32)]) -> f32 {
        let scores = group.iter().map(|hit| hit.1);
        match self.scorer {
            Scorer::Max => scores.fold(f32::NEG_INFINITY, f32::max),
            Scorer::Sum => scores.sum(),
            #[expect(clippy::cast_precision_loss, reason = "a group has at most some ten members")]
            Scorer::Avg => scores.sum::<f32>() / group.len() as f32,
        }
    }
}

fn groupable(field: &Field) -> bool {
    matches!(
        field.data_type,
        DataType::Bool
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::VarChar { .. }
    )
}

/// The values of a scalar column as keys that can be told apart.
pub fn keys(array: &ArrayRef) -> Vec<GroupKey> {
    let key = |row: usize| {
        if array.is_null(row) {
            GroupKey::Null
        } else if let Some(values) = array.as_boolean_opt() {
            GroupKey::Bool(values.value(row))
        } else if let Some(values) = array.as_string_opt::<i64>() {
            GroupKey::Text(values.value(row).to_owned())
        } else if let Some(values) = array.as_primitive_opt::<Int64Type>() {
            GroupKey::Int(values.value(row))
        } else if let Some(values) = array.as_primitive_opt::<Int32Type>() {
            GroupKey::Int(i64::from(values.value(row)))
        } else if let Some(values) = array.as_primitive_opt::<Int16Type>() {
            GroupKey::Int(i64::from(values.value(row)))
        } else if let Some(values) = array.as_primitive_opt::<Int8Type>() {
            GroupKey::Int(i64::from(values.value(row)))
        } else if let Some(values) = array.as_primitive_opt::<Float32Type>() {
            GroupKey::Bits(u64::from(values.value(row).to_bits()))
        } else if let Some(values) = array.as_primitive_opt::<Float64Type>() {
            GroupKey::Bits(values.value(row).to_bits())
        } else {
            GroupKey::Null
        }
    };
    (0..array.len()).map(key).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grouping(size: usize, strict: bool, scorer: Scorer) -> Grouping {
        Grouping { field: "f".into(), size, strict, scorer }
    }

    /// Candidate `c` belongs to group `c % 3`.
    fn by_three(candidate: Candidate) -> GroupKey {
        GroupKey::Int(i64::from(candidate % 3))
    }

    const HITS: [(Candidate, f32); 6] =
        [(4, 0.9), (1, 0.8), (3, 0.7), (5, 0.6), (2, 0.5), (0, 0.4)];

    #[test]
    fn groups_stand_in_the_order_of_their_best_hit_and_keep_their_hits_together() {
        let groups = grouping(2, false, Scorer::Max);
        assert_eq!(
            groups.apply(&HITS, by_three, 0..10, false),
            [(4, 0.9), (1, 0.8), (3, 0.7), (0, 0.4), (5, 0.6), (2, 0.5)]
        );
        assert_eq!(
            groups.apply(&HITS, by_three, 1..2, false),
            [(3, 0.7), (0, 0.4)],
            "a page counts groups"
        );
    }

    #[test]
    fn strict_groups_are_looked_for_until_full_and_may_be_left_out_otherwise() {
        let hits = &HITS[..4];
        assert_eq!(
            grouping(2, true, Scorer::Max).apply(hits, by_three, 0..10, true),
            [(4, 0.9), (1, 0.8)]
        );
        assert!(grouping(2, true, Scorer::Max).is_filled(hits, by_three, 1));
        assert!(!grouping(2, true, Scorer::Max).is_filled(hits, by_three, 2));
        assert!(grouping(2, false, Scorer::Max).is_filled(hits, by_three, 3));
        assert!(!grouping(2, false, Scorer::Max).is_filled(hits, by_three, 4));
    }

    #[test]
    fn group_scores_decide_then_size_then_the_first_id() {
        // Sum: group 2 (0.6 + 0.5) beats group 0 (0.7 + 0.3).
        let hits = [(4, 0.9), (1, 0.8), (3, 0.7), (5, 0.6), (2, 0.5), (0, 0.3)];
        let order: Vec<_> = grouping(2, false, Scorer::Sum)
            .apply(&hits, by_three, 0..10, false)
            .into_iter()
            .map(|hit| hit.0)
            .collect();
        assert_eq!(order, [4, 1, 5, 2, 3, 0]);
        // Equal sums: the larger group goes first, then the one whose first id is smaller.
        let ties = [(3, 1.0), (1, 0.5), (4, 0.5), (2, 1.0)];
        let order: Vec<_> = grouping(2, false, Scorer::Sum)
            .apply(&ties, by_three, 0..10, false)
            .into_iter()
            .map(|hit| hit.0)
            .collect();
        assert_eq!(order, [1, 4, 2, 3]);
    }

    proptest! {
        #[test]
        fn a_group_never_exceeds_its_size_and_no_better_hit_is_left_out(
            scores in prop::collection::vec(0_u8..20, 0..60),
            size in 1_usize..4,
        ) {
            let mut hits: Vec<(Candidate, f32)> =
                (0..).zip(scores.iter().map(|s| f32::from(*s))).collect();
            super::super::rank::sort(&mut hits);
            let value = |c: Candidate| GroupKey::Int(i64::from(c % 5));
            let kept = grouping(size, false, Scorer::Max).apply(&hits, value, 0..100, false);
            for group in 0..5 {
                let all: Vec<_> = hits.iter().filter(|h| h.0 % 5 == group).copied().collect();
                let of: Vec<_> = kept.iter().filter(|h| h.0 % 5 == group).copied().collect();
                prop_assert_eq!(&of[..], &all[..size.min(all.len())]);
            }
        }
    }
}
