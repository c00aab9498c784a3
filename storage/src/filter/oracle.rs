//! The slow filter: one row and one node at a time, straight from the parsed expression.
//!
//! It shares the parser with the fast one and nothing of binding, planning or evaluation. Tests
//! hold the two against each other.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::Value as Json;

use super::ast::{Binary, Cmp, Connective, Expr, Kind, List, Path, Step};
use super::value::Num;
use super::{TemplateValue, Templates};

/// A row: values by field name; absent means null.
pub(super) type Row = HashMap<String, Val>;

/// A value of a row or of the expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Val {
    Missing,
    Bool(bool),
    Num(Num),
    /// Of a single-precision field, which float constants are rounded for.
    Single(f32),
    Text(String),
    List(Vec<Val>),
    Json(Json),
}

pub(super) struct Oracle<'a> {
    /// Names that are fields; all others are keys of `$meta`.
    pub(super) fields: &'a [&'a str],
    pub(super) templates: &'a Templates,
    pub(super) row: &'a Row,
}

impl Oracle<'_> {
    /// Whether the expression is true of the row; `None` for unknown.
    pub(super) fn truth(&self, expr: &Expr) -> Option<bool> {
        match &expr.kind {
            Kind::Not(inner) => self.truth(inner).map(|truth| !truth),
            Kind::Logic { connective, terms } => {
                let decisive = *connective == Connective::Or;
                let truths: Vec<_> = terms.iter().map(|term| self.truth(term)).collect();
                if truths.contains(&Some(decisive)) {
                    Some(decisive)
                } else if truths.contains(&None) {
                    None
                } else {
                    Some(!decisive)
                }
            }
            Kind::Compare { op, left, right } => self.compare(*op, left, right),
            Kind::Range { low, low_op, value, high_op, high } => {
                let both = [self.compare(*low_op, low, value), self.compare(*high_op, value, high)];
                if both.contains(&Some(false)) {
                    Some(false)
                } else if both.contains(&None) {
                    None
                } else {
                    Some(true)
                }
            }
            Kind::In { value, list, negated } => {
                let Val::List(items) = self.value(list) else { panic!("not a list") };
                let value = self.value(value);
                let truth = if value == Val::Missing {
                    None
                } else {
                    let equal: Vec<_> =
                        items.iter().map(|item| same(&round_for(&value, item), &value)).collect();
                    if equal.contains(&Some(true)) {
                        Some(true)
                    } else if items.is_empty() || equal.contains(&Some(false)) {
                        Some(false)
                    } else {
                        None
                    }
                };
                truth.map(|truth| truth != *negated)
            }
            Kind::Like { value, pattern } => {
                match (scalar(self.value(value)), self.value(pattern)) {
                    (Val::Text(text), Val::Text(pattern)) => {
                        let chars = |text: &str| text.chars().collect::<Vec<_>>();
                        Some(like(&chars(&pattern), &chars(&text)))
                    }
                    _ => None,
                }
            }
            Kind::IsNull { value, negated } => {
                Some((scalar(self.value(value)) == Val::Missing) != *negated)
            }
            Kind::Exists(inner) => Some(scalar(self.value(inner)) != Val::Missing),
            Kind::Call { name, args } => {
                let Val::List(items) = (match scalar(self.value(&args[0].value)) {
                    Val::Json(Json::Array(items)) => {
                        Val::List(items.into_iter().map(|item| scalar(Val::Json(item))).collect())
                    }
                    Val::Json(_) => Val::Missing,
                    other => other,
                }) else {
                    return None;
                };
                let wanted = self.value(&args[1].value);
                let has = |wanted: &Val| {
                    items.iter().any(|item| same(&round_for(item, wanted), item) == Some(true))
                };
                Some(match (name.to_lowercase().rsplit('_').next(), wanted) {
                    (Some("all"), Val::List(wanted)) => wanted.iter().all(has),
                    (Some("any"), Val::List(wanted)) => wanted.iter().any(has),
                    (_, wanted) => has(&wanted),
                })
            }
            _ => match scalar(self.value(expr)) {
                Val::Bool(value) => Some(value),
                _ => None,
            },
        }
    }

    fn compare(&self, op: Cmp, left: &Expr, right: &Expr) -> Option<bool> {
        let (mut a, mut b) = (self.side(left), self.side(right));
        if is_constant(right) {
            b = round_for(&a, &b);
        }
        if is_constant(left) {
            a = round_for(&b, &a);
        }
        let (a, b) = (widen(a), widen(b));
        match (&a, &b) {
            (Val::Num(a), Val::Num(b)) => a.compare(*b).map(|order| op.holds(order)),
            (Val::Text(a), Val::Text(b)) => Some(op.holds(a.cmp(b))),
            (Val::Bool(a), Val::Bool(b)) => Some(op.holds(a.cmp(b))),
            _ => same(&a, &b).map(|equal| equal == (op == Cmp::Equal)),
        }
    }

    /// A side of a comparison: a value, or a condition's truth.
    fn side(&self, expr: &Expr) -> Val {
        match &expr.kind {
            Kind::Call { name, .. } if name.to_lowercase() != "array_length" => {
                self.truth(expr).map_or(Val::Missing, Val::Bool)
            }
            Kind::Not(_)
            | Kind::Logic { .. }
            | Kind::Compare { .. }
            | Kind::Range { .. }
            | Kind::In { .. }
            | Kind::Like { .. }
            | Kind::IsNull { .. }
            | Kind::Exists(_) => self.truth(expr).map_or(Val::Missing, Val::Bool),
            _ => self.value(expr),
        }
    }

    fn value(&self, expr: &Expr) -> Val {
        match &expr.kind {
            Kind::Bool(value) => Val::Bool(*value),
            Kind::Int(value) => Val::Num(Num::Int(i128::from(*value))),
            Kind::Float(value) => Val::Num(Num::Float(*value)),
            Kind::Text(text) => Val::Text(text.clone()),
            Kind::List(List::Ints(ints)) => {
                Val::List(ints.iter().map(|int| Val::Num(Num::Int(i128::from(*int)))).collect())
            }
            Kind::List(List::Texts(texts)) => {
                Val::List(texts.iter().cloned().map(Val::Text).collect())
            }
            Kind::List(List::Mixed(items)) => {
                Val::List(items.iter().map(|item| self.value(item)).collect())
            }
            Kind::Template(name) => from_template(&self.templates[name]),
            Kind::Path(path) => scalar(self.path(path)),
            Kind::Negate(inner) => {
                self.arithmetic(Binary::Multiply, self.value(inner), Val::Num(Num::Int(-1)))
            }
            Kind::Binary { op, left, right } => {
                self.arithmetic(*op, self.value(left), self.value(right))
            }
            Kind::Call { args, .. } => match scalar(self.value(&args[0].value)) {
                Val::List(items) => Val::Num(Num::Int(items.len() as i128)),
                Val::Json(Json::Array(items)) => Val::Num(Num::Int(items.len() as i128)),
                _ => Val::Missing,
            },
            other => panic!("no value: {other:?}"),
        }
    }

    fn arithmetic(&self, op: Binary, a: Val, b: Val) -> Val {
        match (widen(a), widen(b)) {
            (Val::Num(a), Val::Num(b)) => a.apply(op, b).map_or(Val::Missing, Val::Num),
            _ => Val::Missing,
        }
    }

    fn path(&self, path: &Path) -> Val {
        let known = self.fields.contains(&path.name.as_str());
        let mut here = if known {
            self.row.get(&path.name).cloned().unwrap_or(Val::Missing)
        } else {
            let meta = self.row.get("$meta").cloned().unwrap_or(Val::Missing);
            step(meta, &Step::Key(path.name.clone()))
        };
        for next in &path.steps {
            here = step(here, next);
        }
        here
    }
}

fn step(value: Val, step: &Step) -> Val {
    match (value, step) {
        (Val::Json(json), Step::Key(key)) => json.get(key).cloned().map_or(Val::Missing, Val::Json),
        (Val::Json(json), Step::Index(index)) => {
            json.get(*index).cloned().map_or(Val::Missing, Val::Json)
        }
        (Val::List(items), Step::Index(index)) => {
            items.get(*index).cloned().unwrap_or(Val::Missing)
        }
        _ => Val::Missing,
    }
}

/// JSON scalars as values of their own; JSON's null is missing.
fn scalar(value: Val) -> Val {
    match value {
        Val::Json(Json::Null) => Val::Missing,
        Val::Json(Json::Bool(value)) => Val::Bool(value),
        Val::Json(Json::String(text)) => Val::Text(text),
        Val::Json(Json::Number(number)) => Val::Num(match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Num::Int(int.into()),
            (None, Some(large)) => Num::Int(large.into()),
            (None, None) => Num::Float(number.as_f64().unwrap()),
        }),
        other => other,
    }
}

fn widen(value: Val) -> Val {
    match value {
        Val::Single(value) => Val::Num(Num::Float(f64::from(value))),
        other => other,
    }
}

/// A constant as it is compared with `value`.
fn round_for(value: &Val, constant: &Val) -> Val {
    match (value, constant) {
        (Val::Single(_), Val::Num(Num::Float(constant))) => {
            let single = *constant as f32;
            if single.is_infinite() && constant.is_finite() {
                Val::Num(Num::Float(*constant))
            } else {
                Val::Num(Num::Float(f64::from(single)))
            }
        }
        _ => constant.clone(),
    }
}

/// Equality; unknown if the types differ.
fn same(a: &Val, b: &Val) -> Option<bool> {
    match (widen(scalar(a.clone())), widen(scalar(b.clone()))) {
        (Val::Num(a), Val::Num(b)) => a.compare(b).map(Ordering::is_eq),
        (Val::Text(a), Val::Text(b)) => Some(a == b),
        (Val::Bool(a), Val::Bool(b)) => Some(a == b),
        (Val::List(a), Val::List(b)) => Some(
            a.len() == b.len()
                && a.iter()
                    .zip(&b)
                    .all(|(a, b)| same(&round_for(b, a), &round_for(a, b)) == Some(true)),
        ),
        (Val::Json(Json::Array(a)), list @ Val::List(_)) => {
            same(&Val::List(a.into_iter().map(Val::Json).collect()), &list)
        }
        (list @ Val::List(_), Val::Json(Json::Array(b))) => {
            same(&list, &Val::List(b.into_iter().map(Val::Json).collect()))
        }
        (Val::Json(Json::Array(a)), Val::Json(Json::Array(b))) => same(
            &Val::List(a.into_iter().map(Val::Json).collect()),
            &Val::List(b.into_iter().map(Val::Json).collect()),
        ),
        _ => None,
    }
}

fn is_constant(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Path(_) | Kind::Call { .. } => false,
        Kind::Negate(inner) => is_constant(inner),
        Kind::Binary { left, right, .. } => is_constant(left) && is_constant(right),
        _ => true,
    }
}

fn from_template(value: &TemplateValue) -> Val {
    match value {
        TemplateValue::Bool(value) => Val::Bool(*value),
        TemplateValue::Int(value) => Val::Num(Num::Int(i128::from(*value))),
        TemplateValue::Float(value) => Val::Num(Num::Float(*value)),
        TemplateValue::String(text) => Val::Text(text.clone()),
        TemplateValue::Array(items) => Val::List(items.iter().map(from_template).collect()),
        TemplateValue::Json(Json::Array(items)) => {
            Val::List(items.iter().cloned().map(Val::Json).map(scalar).collect())
        }
        TemplateValue::Json(json) => scalar(Val::Json(json.clone())),
        TemplateValue::Bytes(_) => Val::Missing,
    }
}

fn like(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|skip| like(rest, &text[skip..])),
        ['_', rest @ ..] => !text.is_empty() && like(rest, &text[1..]),
        ['\\', escaped, rest @ ..] => text.first() == Some(escaped) && like(rest, &text[1..]),
        [char, rest @ ..] => text.first() == Some(char) && like(rest, &text[1..]),
    }
}
