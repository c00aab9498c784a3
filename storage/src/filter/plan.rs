//! A bound filter: names are columns, constants have the columns' types, negations are gone.
//!
//! `not` is pushed down to the tests when a filter is bound, which three-valued logic allows (De
//! Morgan's laws hold in it). So a test only has to say of which rows it is *true*, and `and` and
//! `or` are those of sets.

use std::ops::Bound;

use super::ast::{Binary, Cmp, Step};
use super::json::Paths;
use super::like::Pattern;
use super::set::{IntSet, ValueSet};
use super::value::{Const, ConstList, Num};
use crate::keys::{Key, Keys};
use crate::schema::{DataType, Field};

/// A bound filter and the columns it reads.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) plan: Plan,
    /// The columns; tests refer to them by position.
    pub(super) fields: Vec<Field>,
    /// For each column, the JSON paths asked of it, by slot.
    pub(super) paths: Vec<(Paths, Vec<Vec<Step>>)>,
    /// Position of the primary key among `fields`, if the filter uses it.
    pub(super) primary: Option<usize>,
}

/// Which rows.
#[derive(Debug)]
pub(super) enum Plan {
    /// All rows or none.
    Const(bool),
    /// Rows that every part chooses; cheap parts first.
    All(Vec<Plan>),
    /// Rows that some part chooses; cheap parts first.
    Any(Vec<Plan>),
    Test(Box<Test>),
}

/// A condition on one row. `negated` tests are true where the plain one is false (not where it is
/// unknown).
#[derive(Debug)]
pub(super) enum Test {
    Int {
        field: usize,
        op: Cmp,
        value: i64,
    },
    Single {
        field: usize,
        op: Cmp,
        value: f32,
    },
    Double {
        field: usize,
        op: Cmp,
        value: f64,
    },
    Text {
        field: usize,
        op: Cmp,
        value: String,
    },
    Bool {
        field: usize,
        value: bool,
    },
    /// An integer or text column in a list.
    In {
        field: usize,
        list: ConstList,
        set: Members,
        negated: bool,
    },
    Like {
        field: usize,
        pattern: Pattern,
        negated: bool,
    },
    Null {
        source: Source,
        negated: bool,
    },
    Columns {
        left: usize,
        op: Cmp,
        right: usize,
    },
    /// Anything else, value by value.
    Value {
        operand: Operand,
        check: Check,
        negated: bool,
    },
    /// A condition on a whole array.
    Array {
        field: usize,
        check: ArrayCheck,
        negated: bool,
    },
}

/// The members of an `in` list.
#[derive(Debug)]
pub(super) enum Members {
    Ints(IntSet),
    Texts(std::collections::HashSet<String>),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    Column(usize),
    Element {
        field: usize,
        index: usize,
    },
    /// `slot` numbers the paths of one column.
    Json {
        field: usize,
        slot: usize,
        root: bool,
    },
    /// Number of elements of an array field.
    Length(usize),
    /// Number of elements of a JSON array.
    JsonLength {
        field: usize,
        slot: usize,
    },
}

/// A value and what is computed with it.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) source: Source,
    /// Applied in order, the value on the left.
    pub(super) arithmetic: Vec<(Binary, Num)>,
}

/// A condition on one value; unknown when the value is missing or of another type.
#[derive(Debug)]
pub(super) enum Check {
    Number(Cmp, Num),
    Text(Cmp, String),
    Bool(bool),
    Tree(serde_json::Value),
    In(ValueSet),
    Like(Pattern),
    Regex(regex::Regex),
    /// On JSON arrays.
    Contains {
        all: bool,
        members: ValueSet,
    },
}

/// A condition on an ARRAY value.
#[derive(Debug)]
pub(super) enum ArrayCheck {
    Contains { all: bool, members: ValueSet },
    Equals(Vec<Const>),
}

impl Plan {
    pub(super) fn test(test: Test) -> Self {
        Self::Test(Box::new(test))
    }

    /// Joins parts by `and` (`all`) or `or`: flattens, folds constants and puts cheap parts first.
    pub(super) fn join(all: bool, parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                // `true` adds nothing to an `and` and decides an `or`.
                Self::Const(value) if value == all => {}
                Self::Const(value) => return Self::Const(value),
                Self::All(inner) if all => flat.extend(inner),
                Self::Any(inner) if !all => flat.extend(inner),
                other => flat.push(other),
            }
        }
        flat.sort_by_key(Self::cost);
        match flat.len() {
            0 => Self::Const(all),
            1 => flat.remove(0),
            _ if all => Self::All(flat),
            _ => Self::Any(flat),
        }
    }

    /// Rank of the work per row.
    fn cost(&self) -> u8 {
        match self {
            Self::Const(_) => 0,
            // Parts are sorted, so the last one is the dearest.
            Self::All(parts) | Self::Any(parts) => parts.last().map_or(0, Self::cost),
            Self::Test(test) => match &**test {
                Test::Null { source, .. } => source.cost(),
                Test::Int { .. }
                | Test::Single { .. }
                | Test::Double { .. }
                | Test::Bool { .. } => 0,
                Test::Columns { .. } => 1,
                Test::In { .. } => 2,
                Test::Text { .. } => 3,
                Test::Like { .. } => 4,
                Test::Array { .. } => 5,
                Test::Value { operand, .. } => operand.source.cost().max(4),
            },
        }
    }

    /// The parts of which all must hold.
    fn conjuncts(&self) -> &[Self] {
        match self {
            Self::All(parts) => parts,
            Self::Const(_) | Self::Any(_) | Self::Test(_) => std::slice::from_ref(self),
        }
    }
}

impl Source {
    fn cost(&self) -> u8 {
        match self {
            Self::Column(_) | Self::Json { root: true, .. } => 0,
            Self::Element { .. } | Self::Length(_) => 4,
            Self::Json { root: false, .. } | Self::JsonLength { .. } => 6,
        }
    }
}

impl Bundle {
    /// A filter that all rows pass.
    pub(super) fn everything() -> Self {
        Self { plan: Plan::Const(true), fields: Vec::new(), paths: Vec::new(), primary: None }
    }

    /// The keys, when the filter says no more than `key in [..]` or `key == v`.
    pub(super) fn key_set(&self) -> Option<Keys> {
        self.listed(self.primary?, &self.plan)
    }

    /// Values outside of which no row of that field can qualify.
    pub(super) fn values_of(&self, field: &str) -> Option<Keys> {
        let position = self.fields.iter().position(|candidate| candidate.name == field)?;
        self.plan.conjuncts().iter().find_map(|part| self.listed(position, part))
    }

    fn listed(&self, wanted: usize, plan: &Plan) -> Option<Keys> {
        let Plan::Test(test) = plan else { return None };
        match &**test {
            Test::Int { field, op: Cmp::Equal, value } if *field == wanted => {
                Some(Keys::Int(vec![*value]))
            }
            Test::Text { field, op: Cmp::Equal, value } if *field == wanted => {
                Some(Keys::Str(vec![value.clone()]))
            }
            Test::In { field, list, negated: false, .. } if *field == wanted => match list {
                ConstList::Ints(ints) => Some(Keys::Int(ints.clone())),
                ConstList::Texts(texts) => Some(Keys::Str(texts.clone())),
                ConstList::Mixed(_) => None,
            },
            _ => None,
        }
    }

    /// Bounds on the primary key of every row that can qualify.
    pub(super) fn key_range(&self) -> (Bound<Key>, Bound<Key>) {
        let mut low = Bound::Unbounded;
        let mut high = Bound::Unbounded;
        let Some(primary) = self.primary else { return (low, high) };
        for part in self.plan.conjuncts() {
            let Plan::Test(test) = part else { continue };
            let (op, key) = match &**test {
                Test::Int { field, op, value } if *field == primary => (*op, Key::Int(*value)),
                Test::Text { field, op, value } if *field == primary => {
                    (*op, Key::Str(value.clone()))
                }
                _ => continue,
            };
            let (new_low, new_high) = match op {
                Cmp::Equal => (Some(Bound::Included(key.clone())), Some(Bound::Included(key))),
                Cmp::NotEqual => (None, None),
                Cmp::Less => (None, Some(Bound::Excluded(key))),
                Cmp::LessEqual => (None, Some(Bound::Included(key))),
                Cmp::Greater => (Some(Bound::Excluded(key)), None),
                Cmp::GreaterEqual => (Some(Bound::Included(key)), None),
            };
            if let Some(bound) = new_low {
                low = tighter(low, bound, std::cmp::Ordering::Greater);
            }
            if let Some(bound) = new_high {
                high = tighter(high, bound, std::cmp::Ordering::Less);
            }
        }
        (low, high)
    }
}

/// Of two bounds on the same side, the one that lets fewer keys through; `closer` is how a tighter
/// key compares with a looser one.
fn tighter(old: Bound<Key>, new: Bound<Key>, closer: std::cmp::Ordering) -> Bound<Key> {
    let (Bound::Included(a) | Bound::Excluded(a)) = &old else { return new };
    let (Bound::Included(b) | Bound::Excluded(b)) = &new else { return old };
    let order = b.cmp(a);
    if order == closer || (order.is_eq() && matches!(new, Bound::Excluded(_))) { new } else { old }
}

/// The smallest and largest value of an integer column type.
pub(super) fn int_limits(data_type: &DataType) -> Option<(i64, i64)> {
    let limits = |bits: u32| (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
    match data_type {
        DataType::Int8 => Some(limits(8)),
        DataType::Int16 => Some(limits(16)),
        DataType::Int32 => Some(limits(32)),
        DataType::Int64 => Some(limits(64)),
        _ => None,
    }
}
