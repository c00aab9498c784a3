//! Which tests of a plan the sorted terms of a segment answer, and which rows are left to be
//! looked at.
//!
//! A test is looked up where that is cheaper than looking at the rows that are open; rows that an
//! `and` has lost already are not. An answer says of exactly which rows the test is true, except
//! where it only names candidates, which the test is then put to.

use std::ops::Range;

use elanus_index::{Cancel, RowMask, Term, TermIndex};

use super::Columns;
use super::ast::{Cmp, Step as PathStep};
use super::eval::Scalar;
use super::like::Pattern;
use super::plan::{ArrayCheck, Bundle, Check, Operand, Plan, Source, Test};
use super::terms::{Kind, Terms, grams_of, steps};
use super::value::{Const, ConstList, Num};
use crate::Error;
use crate::catalog::{JsonCast, TermsDef};

// What things are taken to cost, in picoseconds: estimates, of which `cargo bench -p elanus-storage
// --bench filters` shows what comes.

/// A row from a list of rows, or a word of a bitmap.
const WORD: usize = 1_000;
/// Finding a term.
const FIND: usize = 150_000;
/// A text of an index put to a pattern.
const MATCH: usize = 20_000;

/// Terms between two looks at whether to go on.
const TERMS_PER_CHECK: usize = 1_024;

/// Grams of a pattern that are looked for.
const MOST_GRAMS: usize = 64;

#[cfg(test)]
thread_local! {
    /// Whether every index that can answer is asked: with few rows, few of them would be.
    pub(super) static WHATEVER_IT_COSTS: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
}

/// Whether to look up what costs so much, and so much where the rows are looked at.
fn pays(cost: usize, scan_cost: usize) -> bool {
    #[cfg(test)]
    if WHATEVER_IT_COSTS.get() {
        return true;
    }
    cost <= scan_cost
}

/// What is left of a plan in one run of rows.
pub(super) enum Step<'p> {
    /// Exactly these rows.
    Known(RowMask),
    Test(&'p Test),
    /// In this order.
    All(Vec<Step<'p>>),
    Any(Vec<Step<'p>>),
}

impl Step<'_> {
    /// A set of rows outside of which none is chosen, where one is known.
    pub(super) fn bounds(&self) -> Option<&RowMask> {
        match self {
            Self::Known(mask) => Some(mask),
            Self::All(steps) => steps.first().and_then(Self::bounds),
            Self::Test(_) | Self::Any(_) => None,
        }
    }

    /// Marks the columns that tests still read.
    pub(super) fn mark(&self, read: &mut [bool]) {
        match self {
            Self::Known(_) => {}
            Self::Test(test) => test.columns().into_iter().for_each(|column| read[column] = true),
            Self::All(steps) | Self::Any(steps) => steps.iter().for_each(|step| step.mark(read)),
        }
    }
}

/// The indexes that a filter may use.
pub(super) struct Lookups<'p> {
    bundle: &'p Bundle,
    cancel: &'p Cancel,
    rows: usize,
    /// By column of the bundle.
    terms: Vec<Vec<Terms>>,
}

/// What a test asks of one index.
struct Lookup<'a> {
    index: &'a TermIndex,
    how: How<'a>,
    /// The rows wanted are those that have a value and are not found.
    negated: bool,
    /// Whether the test is true of every row found.
    exact: bool,
    /// In picoseconds.
    cost: usize,
}

enum How<'a> {
    /// Rows with one of the terms, in runs that ascend and lie apart, where no row has two.
    One(Vec<Range<usize>>),
    /// Rows with one of the terms or more.
    Any(Vec<Range<usize>>),
    /// Rows with all of the terms.
    All(Vec<Range<usize>>),
    /// Rows with a text of the run that passes.
    Passing(Range<usize>, Box<dyn Fn(&str) -> bool + 'a>),
}

impl<'p> Lookups<'p> {
    pub(super) fn new(bundle: &'p Bundle, columns: &dyn Columns, cancel: &'p Cancel) -> Self {
        let rows = columns.rows();
        let terms_of = |(field, (_, paths)): (_, &(_, Vec<Vec<PathStep>>))| {
            let wanted = |def: &TermsDef| match &def.path {
                Some(path) => paths.contains(&steps(path)),
                None => true,
            };
            let mut terms = columns.terms(field, &wanted);
            terms.retain(|terms| terms.index.rows() == rows);
            terms
        };
        let terms = bundle.fields.iter().zip(&bundle.paths).map(terms_of).collect();
        Self { bundle, cancel, rows, terms }
    }

    /// What is left of the filter, of which `open` rows are asked.
    ///
    /// # Errors
    /// [`Error::Search`] when cancelled.
    pub(super) fn resolve(&self, open: usize) -> Result<Step<'p>, Error> {
        self.step(&self.bundle.plan, open)
    }

    fn step(&self, plan: &'p Plan, open: usize) -> Result<Step<'p>, Error> {
        match plan {
            Plan::Const(true) => Ok(Step::Known(RowMask::all(self.rows))),
            Plan::Const(false) => Ok(Step::Known(RowMask::none(self.rows))),
            Plan::All(parts) => self.all(parts, open),
            Plan::Test(_) => self.all(std::slice::from_ref(plan), open),
            Plan::Any(parts) => {
                let mut known: Option<RowMask> = None;
                let mut rest = Vec::new();
                for part in parts {
                    match (self.step(part, open)?, &mut known) {
                        (Step::Known(mask), Some(known)) => known.or_with(&mask),
                        (Step::Known(mask), None) => known = Some(mask),
                        (step, _) => rest.push(step),
                    }
                }
                Ok(joined(known, rest, Step::Any))
            }
        }
    }

    /// The parts of which all must hold, what is answered first.
    fn all(&self, parts: &'p [Plan], mut open: usize) -> Result<Step<'p>, Error> {
        // Tests of the same values, as the two ends of a range, are one lookup.
        let mut lookups: Vec<(Vec<(usize, &Test)>, Lookup<'_>)> = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let Plan::Test(test) = part else { continue };
            let Some(lookup) = self.lookup(test, open)? else { continue };
            let joined = lookups.iter_mut().find_map(|(tests, other)| {
                *other = other.and(&lookup)?;
                Some(tests)
            });
            match joined {
                Some(tests) => tests.push((at, test)),
                None => lookups.push((vec![(at, test)], lookup)),
            }
        }
        lookups.sort_by_key(|(_, lookup)| lookup.cost);
        let mut known: Option<RowMask> = None;
        let mut answered = vec![false; parts.len()];
        for (tests, lookup) in lookups {
            let scans = tests.iter().map(|(_, test)| test.scan_cost(self.rows, open));
            if !pays(lookup.cost, scans.fold(0, usize::saturating_add)) {
                continue;
            }
            let found = lookup.rows(self.cancel)?;
            tests.iter().for_each(|(at, _)| answered[*at] = lookup.exact);
            open = open.min(match &mut known {
                None => known.insert(found).count(),
                Some(known) => {
                    known.and_with(&found);
                    known.count()
                }
            });
        }
        let left = parts.iter().zip(answered).filter(|(_, answered)| !answered);
        let rest = left.map(|(part, _)| match part {
            Plan::Test(test) => Ok(Step::Test(test)),
            Plan::Const(_) | Plan::All(_) | Plan::Any(_) => self.step(part, open),
        });
        Ok(joined(known, rest.collect::<Result<_, _>>()?, Step::All))
    }

    /// The cheapest way to look a test up of `open` rows.
    fn lookup<'s>(&'s self, test: &'s Test, open: usize) -> Result<Option<Lookup<'s>>, Error> {
        let Some((column, path)) = self.subject(test) else { return Ok(None) };
        let (field, cancel) = (&self.bundle.fields[column], self.cancel);
        let scan_cost = test.scan_cost(self.rows, open);
        let of_path = |terms: &&Terms| match (&terms.def.path, path) {
            (None, None) => true,
            (Some(of), Some(path)) => steps(of) == path,
            _ => false,
        };
        let mut cheapest: Option<Lookup<'s>> = None;
        for terms in self.terms[column].iter().filter(of_path) {
            let Some((kind, many)) = Kind::of(&terms.def, field) else { continue };
            let asked = Asked { terms, kind, many, scan_cost, cancel };
            if let Some(lookup) = asked.lookup(test)?
                && cheapest.as_ref().is_none_or(|cheapest| lookup.cost < cheapest.cost)
            {
                cheapest = Some(lookup);
            }
        }
        Ok(cheapest)
    }

    /// The column that a test is about and the path within it, if it is about one.
    fn subject(&self, test: &Test) -> Option<(usize, Option<&'p [PathStep]>)> {
        match test {
            Test::Int { field, .. }
            | Test::Single { field, .. }
            | Test::Double { field, .. }
            | Test::Text { field, .. }
            | Test::Bool { field, .. }
            | Test::In { field, .. }
            | Test::Like { field, .. }
            | Test::Array { field, .. } => Some((*field, None)),
            Test::Value { operand: Operand { source, arithmetic }, .. }
                if arithmetic.is_empty() =>
            {
                match source {
                    Source::Column(field) => Some((*field, None)),
                    Source::Json { field, slot, .. } => {
                        Some((*field, Some(&self.bundle.paths[*field].1[*slot])))
                    }
                    Source::Element { .. } | Source::Length(_) | Source::JsonLength { .. } => None,
                }
            }
            Test::Value { .. } | Test::Null { .. } | Test::Columns { .. } => None,
        }
    }
}

/// Steps with the rows that are known in front.
fn joined<'p>(
    known: Option<RowMask>,
    rest: Vec<Step<'p>>,
    join: impl Fn(Vec<Step<'p>>) -> Step<'p>,
) -> Step<'p> {
    let mut steps: Vec<_> = known.map(Step::Known).into_iter().chain(rest).collect();
    if steps.len() == 1 { steps.remove(0) } else { join(steps) }
}

impl Test {
    /// What looking at the rows costs where `open` of them are asked about.
    fn scan_cost(&self, rows: usize, open: usize) -> usize {
        let each = |cost: usize| open.saturating_mul(cost);
        match self {
            // All rows of a chunk at once, if any of them is open.
            Self::Int { .. } | Self::Single { .. } | Self::Double { .. } | Self::Bool { .. } => {
                rows.min(open.saturating_mul(64)).saturating_mul(250)
            }
            Self::Null { .. } | Self::Columns { .. } => each(5_000),
            Self::Text { .. } | Self::In { .. } => each(8_000),
            Self::Like { .. } | Self::Array { .. } => each(25_000),
            Self::Value { operand, .. } => match operand.source {
                Source::Json { .. } | Source::JsonLength { .. } => each(200_000),
                Source::Column(_) | Source::Element { .. } | Source::Length(_) => each(20_000),
            },
        }
    }

    /// The columns it reads.
    fn columns(&self) -> Vec<usize> {
        match self {
            Self::Int { field, .. }
            | Self::Single { field, .. }
            | Self::Double { field, .. }
            | Self::Text { field, .. }
            | Self::Bool { field, .. }
            | Self::In { field, .. }
            | Self::Like { field, .. }
            | Self::Array { field, .. } => vec![*field],
            Self::Columns { left, right, .. } => vec![*left, *right],
            Self::Null { source, .. } | Self::Value { operand: Operand { source, .. }, .. } => {
                vec![match source {
                    Source::Column(field)
                    | Source::Element { field, .. }
                    | Source::Json { field, .. }
                    | Source::Length(field)
                    | Source::JsonLength { field, .. } => *field,
                }]
            }
        }
    }
}

/// What lies between runs of so many terms.
fn gaps(runs: &[Range<usize>], terms: usize) -> Vec<Range<usize>> {
    let starts = runs.iter().map(|run| run.start).chain([terms]);
    let ends = std::iter::once(0).chain(runs.iter().map(|run| run.end));
    ends.zip(starts).map(|(start, end)| start..end).collect()
}

/// What lies in both.
fn overlaps(a: &[Range<usize>], b: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut both = Vec::new();
    while let (Some(one), Some(other)) = (a.peek(), b.peek()) {
        let run = one.start.max(other.start)..one.end.min(other.end);
        if one.end < other.end {
            a.next()
        } else {
            b.next()
        };
        if !run.is_empty() {
            both.push(run);
        }
    }
    both
}

impl<'a> Lookup<'a> {
    /// Rows with one value each that is in one of the runs, ascending and apart: by these runs or by
    /// what is between them, whichever is shorter.
    fn among(index: &'a TermIndex, runs: Vec<Range<usize>>) -> Self {
        let words = |runs: &[Range<usize>]| -> usize {
            runs.iter().map(|run| index.words(run.clone())).sum()
        };
        let others = gaps(&runs, index.len());
        let (of_runs, of_others) = (words(&runs), words(&others));
        let negated = of_others < of_runs;
        let cost = of_runs.min(of_others).saturating_mul(WORD).saturating_add(FIND);
        let how = How::One(if negated { others } else { runs });
        Self { index, how, negated, exact: true, cost }
    }

    /// The same for the rows that both find, where that is one question to one index.
    fn and(&self, other: &Self) -> Option<Self> {
        let runs = |lookup: &Self| match &lookup.how {
            How::One(others) if lookup.negated => Some(gaps(others, lookup.index.len())),
            How::One(runs) => Some(runs.clone()),
            How::Any(_) | How::All(_) | How::Passing(..) => None,
        };
        let same = std::ptr::eq(self.index, other.index);
        same.then_some(Self::among(self.index, overlaps(&runs(self)?, &runs(other)?)))
    }

    fn rows(&self, cancel: &Cancel) -> Result<RowMask, Error> {
        let index = self.index;
        let pause = |at: usize| match at % TERMS_PER_CHECK {
            0 => cancel.check(),
            _ => Ok(()),
        };
        let with = |terms: &Range<usize>| {
            let mut rows = RowMask::none(index.rows());
            index.add(terms.clone(), &mut rows);
            rows
        };
        let mut rows = RowMask::none(index.rows());
        match &self.how {
            How::One(runs) | How::Any(runs) => {
                for (at, run) in runs.iter().enumerate() {
                    pause(at)?;
                    index.add(run.clone(), &mut rows);
                }
            }
            How::All(terms) => {
                rows = index.present();
                for term in terms {
                    cancel.check()?;
                    rows.and_with(&with(term));
                }
            }
            How::Passing(run, passes) => {
                for at in run.clone() {
                    pause(at - run.start)?;
                    if let Term::Text(text) = index.term(at)
                        && std::str::from_utf8(text).is_ok_and(passes)
                    {
                        index.add(at..at + 1, &mut rows);
                    }
                }
            }
        }
        if self.negated {
            let mut others = index.present();
            others.and_not_with(&rows);
            return Ok(others);
        }
        Ok(rows)
    }
}

/// One index, asked.
#[derive(Clone, Copy)]
struct Asked<'a> {
    terms: &'a Terms,
    kind: Kind,
    /// Whether a row may have any number of terms; else each row with a value has one.
    many: bool,
    /// What it costs to look at the rows instead.
    scan_cost: usize,
    cancel: &'a Cancel,
}

impl<'a> Asked<'a> {
    fn lookup(self, test: &'a Test) -> Result<Option<Lookup<'a>>, Error> {
        if self.terms.def.grams.is_some() {
            return Ok(self.by_grams(test));
        }
        if self.many {
            return self.of_many(test);
        }
        Ok(match test {
            Test::Int { op, value, .. } => {
                self.compare(*op, &Scalar::Num(Num::Int((*value).into())))
            }
            Test::Single { op, value, .. } => {
                self.compare(*op, &Scalar::Num(Num::Float((*value).into())))
            }
            Test::Double { op, value, .. } => self.compare(*op, &Scalar::Num(Num::Float(*value))),
            Test::Text { op, value, .. } => self.compare(*op, &Scalar::Text(value)),
            Test::Bool { value, .. } => self.compare(Cmp::Equal, &Scalar::Bool(*value)),
            Test::In { list, negated, .. } => match list {
                ConstList::Ints(ints) => {
                    let values = ints.iter().map(|int| Scalar::Num(Num::Int((*int).into())));
                    self.one_of(ints.len(), values, *negated)?
                }
                ConstList::Texts(texts) => {
                    let values = texts.iter().map(|text| Scalar::Text(text));
                    self.one_of(texts.len(), values, *negated)?
                }
                ConstList::Mixed(_) => None,
            },
            Test::Like { pattern, negated, .. } => self.like(pattern, *negated),
            Test::Value { check, negated, .. } => match check {
                // Where a comparison is unknown, so is its negation: both hold of this type only.
                Check::Number(op, number) => {
                    self.compare(op.negate_if(*negated), &Scalar::Num(*number))
                }
                Check::Text(op, text) => self.compare(op.negate_if(*negated), &Scalar::Text(text)),
                Check::Bool(value) => {
                    self.compare(Cmp::Equal.negate_if(*negated), &Scalar::Bool(*value))
                }
                Check::In(set) => match set.scalars() {
                    Some(values) => self.one_of(set.len(), values, *negated)?,
                    None => None,
                },
                Check::Like(pattern) => self.like(pattern, *negated),
                Check::Regex(regex) => {
                    let all = 0..self.terms.index.len();
                    self.passing(all, *negated, Box::new(|text| regex.is_match(text)))
                }
                Check::Tree(_) | Check::Contains { .. } => None,
            },
            Test::Null { .. } | Test::Columns { .. } | Test::Array { .. } => None,
        })
    }

    /// Rows with one value each that compares so.
    fn compare(self, op: Cmp, value: &Scalar<'_>) -> Option<Lookup<'a>> {
        let index = &*self.terms.index;
        let key = self.kind.key(value)??;
        let at = index.partition_point(|term| term < key.term());
        let after = at + usize::from(at < index.len() && index.term(at) == key.term());
        // What is not a number compares with nothing.
        let end = match self.kind {
            Kind::Float => index.partition_point(|term| term < Term::NAN),
            Kind::Flag | Kind::Int | Kind::Text | Kind::Json(_) => index.len(),
        };
        let runs = match op {
            Cmp::Equal => [at..after, after..after],
            Cmp::NotEqual => [0..at, after..end],
            Cmp::Less => [0..at, at..at],
            Cmp::LessEqual => [0..after, after..after],
            Cmp::Greater => [after..end, end..end],
            Cmp::GreaterEqual => [at..end, end..end],
        };
        Some(Lookup::among(index, runs.to_vec()))
    }

    /// Rows with one value each that is a member, or, `negated`, is none.
    fn one_of<'v>(
        self,
        members: usize,
        values: impl Iterator<Item = Scalar<'v>>,
        negated: bool,
    ) -> Result<Option<Lookup<'a>>, Error> {
        let index = &*self.terms.index;
        let Some(mut runs) = self.find(members, values)? else { return Ok(None) };
        runs.retain(|run| !run.is_empty());
        runs.sort_unstable_by_key(|run| run.start);
        runs.dedup();
        let runs = if negated { gaps(&runs, index.len()) } else { runs };
        Ok(Some(Lookup::among(index, runs)))
    }

    /// The terms of so many values, as runs of one; `None` if the index cannot tell, or finding them
    /// alone costs more than looking at the rows.
    fn find<'v>(
        self,
        members: usize,
        values: impl Iterator<Item = Scalar<'v>>,
    ) -> Result<Option<Vec<Range<usize>>>, Error> {
        if !pays(members.saturating_mul(FIND), self.scan_cost) {
            return Ok(None);
        }
        let mut runs = Vec::with_capacity(members);
        for (at, value) in values.enumerate() {
            if at % TERMS_PER_CHECK == 0 {
                self.cancel.check()?;
            }
            let Some(key) = self.kind.key(&value) else { return Ok(None) };
            runs.push(key.map_or(0..0, |key| self.terms.index.find(key.term())));
        }
        Ok(Some(runs))
    }

    fn like(self, pattern: &'a Pattern, negated: bool) -> Option<Lookup<'a>> {
        if !self.has_texts() {
            return None;
        }
        let index = &*self.terms.index;
        let (prefix, whole) = pattern.prefix();
        let start = index.partition_point(|term| term < Term::Text(prefix.as_bytes()));
        let end = index.partition_point(|term| match term {
            Term::Text(text) => text < prefix.as_bytes() || text.starts_with(prefix.as_bytes()),
            Term::Number(_) => true,
        });
        if whole {
            let runs = if negated { [0..start, end..index.len()] } else { [start..end, end..end] };
            return Some(Lookup::among(index, runs.to_vec()));
        }
        self.passing(start..end, negated, Box::new(|text| pattern.matches(text)))
    }

    fn passing(
        self,
        run: Range<usize>,
        negated: bool,
        passes: Box<dyn Fn(&str) -> bool + 'a>,
    ) -> Option<Lookup<'a>> {
        let index = &*self.terms.index;
        let words = index.words(run.clone());
        let cost = run.len().saturating_mul(MATCH).saturating_add(words.saturating_mul(WORD));
        let how = How::Passing(run, passes);
        self.has_texts().then_some(Lookup { index, how, negated, exact: true, cost })
    }

    fn has_texts(self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Json(JsonCast::VarChar))
    }

    /// Rows whose arrays have the terms.
    fn of_many(self, test: &'a Test) -> Result<Option<Lookup<'a>>, Error> {
        let (all, values, negated, exact) = match test {
            Test::Array { check: ArrayCheck::Contains { all, members: set }, negated, .. }
            | Test::Value { check: Check::Contains { all, members: set }, negated, .. } => {
                let Some(values) = set.scalars() else { return Ok(None) };
                (*all, self.find(set.len(), values)?, *negated, true)
            }
            // In any order, and among others.
            Test::Array { check: ArrayCheck::Equals(items), negated: false, .. }
                if !items.is_empty() =>
            {
                (true, self.find(items.len(), items.iter().map(scalar))?, false, false)
            }
            _ => return Ok(None),
        };
        let Some(values) = values else { return Ok(None) };
        let index = &*self.terms.index;
        let words: usize = values.iter().map(|run| index.words(run.clone())).sum();
        let cost = words.saturating_mul(WORD).saturating_add(values.len().saturating_mul(FIND));
        // Each term of which all are wanted is a mask of its own.
        let masks = if all { values.len().saturating_mul(index.rows() / 64) } else { 0 };
        let cost = cost.saturating_add(masks.saturating_mul(WORD));
        let how = if all { How::All(values) } else { How::Any(values) };
        Ok(Some(Lookup { index, how, negated, exact, cost }))
    }

    /// Rows that may match a pattern, since they have the grams of what it says.
    fn by_grams(self, test: &'a Test) -> Option<Lookup<'a>> {
        let (Test::Like { pattern, negated: false, .. }
        | Test::Value { check: Check::Like(pattern), negated: false, .. }) = test
        else {
            return None;
        };
        let (index, grams) = (&*self.terms.index, self.terms.def.grams?);
        let terms = pattern.literals().flat_map(|part| grams_of(part, grams)).take(MOST_GRAMS);
        let mut terms: Vec<_> = terms.map(|term| index.find(term)).collect();
        terms.sort_by_key(|term| index.words(term.clone()));
        terms.dedup();
        // The rarest ones; more would say little that the rows themselves do not.
        terms.truncate(4);
        let rarest = terms.first().map(|term| index.words(term.clone()))?;
        let words: usize = terms.iter().map(|term| index.words(term.clone())).sum();
        let masks = terms.len().saturating_mul(index.rows() / 64);
        // The rows found are looked at, as without an index.
        let cost = words.saturating_add(masks).saturating_mul(WORD);
        let cost = cost.saturating_add(rarest.saturating_mul(test.scan_cost(1, 1)));
        Some(Lookup { index, how: How::All(terms), negated: false, exact: false, cost })
    }
}

/// A constant as the value of a row.
fn scalar(value: &Const) -> Scalar<'_> {
    match value {
        Const::Bool(value) => Scalar::Bool(*value),
        Const::Int(value) => Scalar::Num(Num::Int((*value).into())),
        Const::Float(value) => Scalar::Num(Num::Float(*value)),
        Const::Text(text) => Scalar::Text(text),
        // Equal to no element; not to be found in any index.
        Const::List(_) | Const::Object(_) | Const::Bytes(_) => Scalar::Num(Num::Float(f64::NAN)),
    }
}
