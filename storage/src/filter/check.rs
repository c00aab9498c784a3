//! Binding: an expression and a schema become a plan.
//!
//! Constants take the types of what they are compared with; `not` is pushed down to the tests. What
//! names and values stand for is found in `bind`. Every form of the language that is not supported
//! is refused in the two, by name.

use super::ast::{Arg, Cmp, Connective, Expr, Kind as Form, Path};
use super::bind::{Binder, Bound, Kind, Value, as_int};
use super::lex::Span;
use super::like::Pattern;
use super::parse::fail;
use super::plan::{ArrayCheck, Bundle, Check, Members, Operand, Plan, Source, Test, int_limits};
use super::set::ValueSet;
use super::value::{Const, ConstList, Native, Num, native_f32, native_f64, native_int};
use super::{FilterError, Templates, fold};
use crate::schema::Schema;

/// Longest pattern with `_`, which may cost a step for each pair of a character of the text and one
/// of the pattern. Patterns with `%` alone are found in one pass.
const MAX_WILD_BYTES: usize = 1_024;

/// Largest compiled regular expression.
const REGEX_BYTES: usize = 1 << 20;

/// Binds an expression that must be a condition.
///
/// # Errors
/// [`FilterError`] with the place of what does not fit.
pub(super) fn bind(
    expr: &Expr,
    text: &str,
    schema: &Schema,
    templates: &Templates,
) -> Result<Bundle, FilterError> {
    let mut binder =
        Binder { text, schema, templates, fields: Vec::new(), paths: Vec::new(), slots: 0 };
    let plan = binder.condition(expr, false)?;
    let primary = binder.fields.iter().position(|field| field.primary_key);
    let paths = binder
        .paths
        .into_iter()
        .map(|asked| {
            let mut paths = super::json::Paths::default();
            for (slot, (steps, whole)) in asked.iter().enumerate() {
                paths.insert(steps, slot, *whole);
            }
            (paths, asked.into_iter().map(|(steps, _)| steps).collect())
        })
        .collect();
    Ok(Bundle { plan, fields: binder.fields, paths, primary })
}

impl Binder<'_> {
    /// Binds something true or false; `negated` asks for the rows where it is false.
    fn condition(&mut self, expr: &Expr, negated: bool) -> Bound<Plan> {
        match &expr.kind {
            Form::Bool(value) => Ok(Plan::Const(*value != negated)),
            Form::Not(inner) => self.condition(inner, !negated),
            Form::Logic { connective, terms } => {
                let all = (*connective == Connective::And) != negated;
                let mut parts = Vec::with_capacity(terms.len());
                for term in terms {
                    parts.push(self.condition(term, negated)?);
                }
                Ok(Plan::join(all, parts))
            }
            Form::Compare { op, left, right } => self.compare(*op, left, right, expr.span, negated),
            Form::Range { low, low_op, value, high_op, high } => {
                self.range((low, *low_op), value, (*high_op, high), expr.span, negated)
            }
            Form::In { value, list, negated: not_in } => {
                self.membership(value, list, negated != *not_in)
            }
            Form::Like { value, pattern } => self.like(value, pattern, negated),
            Form::Matches { value, pattern, negated: not } => {
                self.regex(value, pattern, negated != *not)
            }
            Form::IsNull { value, negated: not } => self.is_null(value, negated != *not),
            Form::Exists(inner) => self.exists(inner, negated),
            Form::Call { name, args } => self.call(name, args, expr, negated),
            Form::Path(path) => self.flag(path, expr, negated),
            Form::Template(_)
            | Form::Int(_)
            | Form::Float(_)
            | Form::Text(_)
            | Form::List(_)
            | Form::Negate(_)
            | Form::Complement(_)
            | Form::Binary { .. }
            | Form::Temporal { .. } => match self.value(expr)? {
                Value::Const(Const::Bool(value)) => Ok(Plan::Const(value != negated)),
                Value::Const(other) => Err(self.not_a_condition(expr, other.type_name())),
                Value::Operand(..) => Err(self.not_a_condition(expr, "a number")),
                Value::Condition(_) => Err(self.not_a_condition(expr, "unknown")),
            },
        }
    }

    fn not_a_condition(&self, expr: &Expr, data_type: &str) -> FilterError {
        let source = self.text.get(expr.span.range()).unwrap_or_default();
        let shown: String = source.chars().take(80).collect();
        fail(
            expr.span,
            format!("predicate is not a boolean expression: {shown}, data type: {data_type}"),
        )
    }

    fn compare(
        &mut self,
        op: Cmp,
        left: &Expr,
        right: &Expr,
        span: Span,
        negated: bool,
    ) -> Bound<Plan> {
        let wanted = op.negate_if(negated);
        match (self.value(left)?, self.value(right)?) {
            (Value::Const(a), Value::Const(b)) => {
                let holds = fold::compare(wanted, &a, &b).map_err(|why| fail(span, why))?;
                Ok(Plan::Const(holds == Some(true)))
            }
            (Value::Operand(operand, kind), Value::Const(value)) => {
                self.with_constant(operand, kind, wanted, value, span)
            }
            (Value::Const(value), Value::Operand(operand, kind)) => {
                self.with_constant(operand, kind, wanted.flip(), value, span)
            }
            (Value::Operand(a, a_kind), Value::Operand(b, b_kind)) => {
                self.columns((&a, a_kind), wanted, (&b, b_kind), span)
            }
            (Value::Condition(inner), Value::Const(Const::Bool(value)))
            | (Value::Const(Const::Bool(value)), Value::Condition(inner))
                if op.is_equality() =>
            {
                let opposite = (op == Cmp::NotEqual) == value;
                self.condition(inner, negated != opposite)
            }
            (Value::Condition(_), _) | (_, Value::Condition(_)) => {
                Err(fail(span, "a condition can only be compared with true or false, by == or !="))
            }
        }
    }

    fn range(
        &mut self,
        (low, low_op): (&Expr, Cmp),
        value: &Expr,
        (high_op, high): (Cmp, &Expr),
        span: Span,
        negated: bool,
    ) -> Bound<Plan> {
        let low_value = self.constant(low, "the bound of a range")?;
        let high_value = self.constant(high, "the bound of a range")?;
        // `low < value < high`, so the bounds must leave room in the direction of the signs;
        // equal bounds leave one value if both are included.
        let order = if low_op == high_op && !matches!(low_op, Cmp::Less | Cmp::Greater) {
            low_op
        } else if low_op.is_less() {
            Cmp::Less
        } else {
            Cmp::Greater
        };
        if fold::compare(order, &low_value, &high_value).map_err(|why| fail(span, why))?
            != Some(true)
        {
            return Err(fail(
                span,
                "invalid range operations: lowerbound is greater than upperbound",
            ));
        }
        let (operand, kind) = self.operand(value, low_op_text(low_op))?;
        let parts = [(low_op.flip(), low_value), (high_op, high_value)];
        let mut plans = Vec::with_capacity(2);
        for (op, bound) in parts {
            plans.push(self.with_constant(
                operand.clone(),
                kind,
                op.negate_if(negated),
                bound,
                span,
            )?);
        }
        Ok(Plan::join(!negated, plans))
    }

    /// `operand op constant`, where a negation is already in `op`.
    fn with_constant(
        &mut self,
        operand: Operand,
        kind: Kind,
        op: Cmp,
        constant: Const,
        span: Span,
    ) -> Bound<Plan> {
        let number = constant.num();
        let plain = operand.arithmetic.is_empty();
        match (kind, constant) {
            (Kind::Int | Kind::Single | Kind::Double | Kind::Json, _) if number.is_some() => {
                let number = number.unwrap_or(Num::Int(0));
                Ok(self.with_number(operand, kind, op, number))
            }
            (Kind::Text, Const::Text(value)) => Ok(Plan::test(match operand.source {
                Source::Column(field) => Test::Text { field, op, value },
                _ => value_test(operand, Check::Text(op, value), false),
            })),
            (Kind::Json, Const::Text(value)) if plain => {
                Ok(Plan::test(value_test(operand, Check::Text(op, value), false)))
            }
            (Kind::Bool | Kind::Json, Const::Bool(value)) if op.is_equality() && plain => {
                let value = value == (op == Cmp::Equal);
                Ok(Plan::test(match (kind, &operand.source) {
                    (Kind::Bool, Source::Column(field)) => Test::Bool { field: *field, value },
                    _ => value_test(operand, Check::Bool(value), false),
                }))
            }
            (Kind::Json, constant @ (Const::List(_) | Const::Object(_)))
                if op.is_equality() && plain =>
            {
                let Some(tree) = constant.to_json() else {
                    return Err(fail(span, "the list holds what JSON cannot express"));
                };
                self.keep_whole(&operand.source);
                Ok(Plan::test(value_test(operand, Check::Tree(tree), op == Cmp::NotEqual)))
            }
            (Kind::Array, Const::List(list)) if op.is_equality() => {
                let Source::Column(field) = operand.source else {
                    return Err(fail(span, "an array element is no array"));
                };
                let items = self.array_items(field, &Const::List(list), span)?;
                let check = ArrayCheck::Equals(items);
                Ok(Plan::test(Test::Array { field, check, negated: op == Cmp::NotEqual }))
            }
            (_, constant) => Err(fail(
                span,
                format!(
                    "comparisons between {} and {} are not supported",
                    self.type_name(&operand.source),
                    constant.type_name()
                ),
            )),
        }
    }

    fn with_number(&self, operand: Operand, kind: Kind, op: Cmp, number: Num) -> Plan {
        if matches!(number, Num::Float(value) if value.is_nan()) {
            return Plan::Const(false);
        }
        let column = match operand.source {
            Source::Column(field) if operand.arithmetic.is_empty() => Some(field),
            _ => None,
        };
        let Some(field) = column else {
            let number = if kind == Kind::Single { round_single(number) } else { number };
            return Plan::test(value_test(operand, Check::Number(op, number), false));
        };
        let always = || Plan::test(Test::Null { source: Source::Column(field), negated: true });
        match int_limits(&self.fields[field].data_type) {
            Some((min, max)) => match native_int(op, number, min, max) {
                Native::Test(op, value) => Plan::test(Test::Int { field, op, value }),
                Native::Always => always(),
                Native::Never => Plan::Const(false),
            },
            None if kind == Kind::Single => match native_f32(op, number) {
                Native::Test(op, value) => Plan::test(Test::Single { field, op, value }),
                Native::Always => always(),
                Native::Never => Plan::Const(false),
            },
            None => match native_f64(op, number) {
                Native::Test(op, value) => Plan::test(Test::Double { field, op, value }),
                Native::Always => always(),
                Native::Never => Plan::Const(false),
            },
        }
    }

    fn columns(
        &self,
        (a, a_kind): (&Operand, Kind),
        op: Cmp,
        (b, b_kind): (&Operand, Kind),
        span: Span,
    ) -> Bound<Plan> {
        let comparable = (a_kind.is_number() && b_kind.is_number())
            || (a_kind == Kind::Text && b_kind == Kind::Text)
            || (a_kind == Kind::Bool && b_kind == Kind::Bool && op.is_equality());
        match (&a.source, &b.source) {
            (Source::Column(left), Source::Column(right))
                if comparable && a.arithmetic.is_empty() && b.arithmetic.is_empty() =>
            {
                Ok(Plan::test(Test::Columns { left: *left, op, right: *right }))
            }
            _ => Err(fail(
                span,
                format!(
                    "comparisons between {} and {} are not supported; two fields can be compared \
                     if both are plain numbers or both are strings",
                    self.type_name(&a.source),
                    self.type_name(&b.source)
                ),
            )),
        }
    }

    fn membership(&mut self, value: &Expr, list: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "in")?;
        let items = match self.constant(list, "the right side of `in`")? {
            Const::List(items) => items,
            other => {
                return Err(fail(
                    list.span,
                    format!("the right side of `in` must be a list, not {}", other.type_name()),
                ));
            }
        };
        if matches!(kind, Kind::Array | Kind::Vector) {
            let name = self.type_name(&operand.source);
            return Err(fail(value.span, format!("`in` is not supported on {name}")));
        }
        if items.len() == 0 {
            return Ok(if negated { present(operand.source) } else { Plan::Const(false) });
        }
        let cast = |item: &Const| fail(list.span, self.cast_error(item, &operand.source));
        let column = match operand.source {
            Source::Column(field) if operand.arithmetic.is_empty() => Some(field),
            _ => None,
        };
        match (kind, column) {
            (Kind::Int, Some(field)) => {
                let ints = match items {
                    ConstList::Ints(ints) => ints,
                    other => other
                        .iter()
                        .map(|item| as_int(&item).ok_or_else(|| cast(&item)))
                        .collect::<Bound<_>>()?,
                };
                let set = Members::Ints(ints.iter().copied().collect());
                Ok(Plan::test(Test::In { field, list: ConstList::Ints(ints), set, negated }))
            }
            (Kind::Text, Some(field)) => {
                let ConstList::Texts(texts) = items else {
                    let wrong = items.iter().find(|item| !matches!(item, Const::Text(_)));
                    return Err(cast(&wrong.unwrap_or(Const::Bool(false))));
                };
                let set = Members::Texts(texts.iter().cloned().collect());
                Ok(Plan::test(Test::In { field, list: ConstList::Texts(texts), set, negated }))
            }
            _ => {
                let mut set = ValueSet::default();
                for item in items.iter() {
                    set.insert(&self.element(&item, kind).ok_or_else(|| cast(&item))?);
                }
                Ok(Plan::test(value_test(operand, Check::In(set), negated)))
            }
        }
    }

    fn like(&mut self, value: &Expr, pattern: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "like")?;
        let Const::Text(text) = self.constant(pattern, "the pattern of `like`")? else {
            return Err(fail(pattern.span, "the pattern of `like` must be a string"));
        };
        if text.len() > MAX_WILD_BYTES && text.contains('_') {
            return Err(fail(
                pattern.span,
                format!("a pattern of `like` with `_` has at most {MAX_WILD_BYTES} bytes"),
            ));
        }
        let pattern = Pattern::new(&text);
        match (kind, &operand.source) {
            (Kind::Text, Source::Column(field)) => {
                Ok(Plan::test(Test::Like { field: *field, pattern, negated }))
            }
            (Kind::Text | Kind::Json, _) if operand.arithmetic.is_empty() => {
                Ok(Plan::test(value_test(operand, Check::Like(pattern), negated)))
            }
            _ => Err(fail(
                value.span,
                format!(
                    "like operation on non-string or no-json field is unsupported, got: {}",
                    self.type_name(&operand.source)
                ),
            )),
        }
    }

    fn regex(&mut self, value: &Expr, pattern: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "=~")?;
        let Const::Text(text) = self.constant(pattern, "the pattern of `=~`")? else {
            return Err(fail(pattern.span, "the pattern of `=~` must be a string"));
        };
        if !matches!(kind, Kind::Text | Kind::Json) || !operand.arithmetic.is_empty() {
            let name = self.type_name(&operand.source);
            return Err(fail(value.span, format!("`=~` needs a string, got: {name}")));
        }
        let regex = regex::RegexBuilder::new(&text)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_BYTES)
            .build()
            .map_err(|why| fail(pattern.span, format!("invalid regular expression: {why}")))?;
        Ok(Plan::test(value_test(operand, Check::Regex(regex), negated)))
    }

    fn is_null(&mut self, value: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "is null")?;
        if kind == Kind::Vector || !operand.arithmetic.is_empty() {
            let name = self.type_name(&operand.source);
            return Err(fail(value.span, format!("`is null` is not supported on {name}")));
        }
        Ok(Plan::test(Test::Null { source: operand.source, negated }))
    }

    fn exists(&mut self, inner: &Expr, negated: bool) -> Bound<Plan> {
        match self.value(inner)? {
            Value::Operand(Operand { source, arithmetic }, Kind::Json) if arithmetic.is_empty() => {
                Ok(Plan::test(Test::Null { source, negated: !negated }))
            }
            Value::Operand(Operand { source, .. }, _) => Err(fail(
                inner.span,
                format!(
                    "exists operations are only supported on json field now, got: {}",
                    self.type_name(&source)
                ),
            )),
            Value::Const(_) | Value::Condition(_) => {
                Err(fail(inner.span, "exists operations are only supported on json field now"))
            }
        }
    }

    /// A field or path that is itself true or false.
    fn flag(&mut self, path: &Path, expr: &Expr, negated: bool) -> Bound<Plan> {
        let (source, kind) = self.resolve(path, expr.span, false)?;
        match (kind, &source) {
            (Kind::Bool, Source::Column(field)) => {
                Ok(Plan::test(Test::Bool { field: *field, value: !negated }))
            }
            (Kind::Bool | Kind::Json, _) => {
                let operand = Operand { source, arithmetic: Vec::new() };
                Ok(Plan::test(value_test(operand, Check::Bool(!negated), false)))
            }
            _ => Err(self.not_a_condition(expr, self.type_name(&source))),
        }
    }

    fn call(&mut self, name: &str, args: &[Arg], expr: &Expr, negated: bool) -> Bound<Plan> {
        let function = self.function(name, expr.span)?;
        if function == "array_length" {
            return Err(self.not_a_condition(expr, "Int64"));
        }
        let [target, wanted] = args else {
            return Err(fail(
                expr.span,
                format!("`{function}` takes two arguments, a field and a value"),
            ));
        };
        self.refuse_named(function, args)?;
        let Form::Path(path) = &target.value.kind else {
            return Err(fail(
                target.value.span,
                format!("the first argument of `{function}` must be a field or a path"),
            ));
        };
        let (source, kind) = self.resolve(path, target.value.span, true)?;
        let wanted_span = wanted.value.span;
        let wanted =
            self.constant(&wanted.value, &format!("the second argument of `{function}`"))?;
        let all = function.ends_with("_all");
        let listed = all || function.ends_with("_any");
        let wanted = match (listed, wanted) {
            (true, wanted @ Const::List(_)) => wanted,
            (true, other) => {
                return Err(fail(
                    wanted_span,
                    format!(
                        "{function} operation element must be an array, got: {}",
                        other.type_name()
                    ),
                ));
            }
            (false, one) => Const::List(ConstList::Mixed(vec![one])),
        };
        match kind {
            Kind::Array => {
                let Source::Column(field) = source else {
                    return Err(fail(target.value.span, "an array element is no array"));
                };
                let mut members = ValueSet::default();
                for item in self.array_items(field, &wanted, wanted_span)? {
                    members.insert(&item);
                }
                let check = ArrayCheck::Contains { all, members };
                Ok(Plan::test(Test::Array { field, check, negated }))
            }
            Kind::Json => {
                let mut members = ValueSet::default();
                let Const::List(items) = &wanted else { return Ok(Plan::Const(false)) };
                for item in items.iter() {
                    if item.to_json().is_none() {
                        return Err(fail(wanted_span, self.cast_error(&item, &source)));
                    }
                    members.insert(&item);
                }
                let operand = Operand { source, arithmetic: Vec::new() };
                Ok(Plan::test(value_test(operand, Check::Contains { all, members }, negated)))
            }
            _ => Err(fail(
                target.value.span,
                format!(
                    "contains operation are only supported on json or array fields now, got: {}",
                    self.type_name(&source)
                ),
            )),
        }
    }
}

fn value_test(operand: Operand, check: Check, negated: bool) -> Test {
    Test::Value { operand, check, negated }
}

/// Rows in which there is a value.
fn present(source: Source) -> Plan {
    Plan::test(Test::Null { source, negated: true })
}

/// A float constant as single precision knows it, so that what was inserted as 0.1 equals 0.1.
fn round_single(number: Num) -> Num {
    match number {
        Num::Float(value) if (value as f32).is_finite() => Num::Float(f64::from(value as f32)),
        other => other,
    }
}

fn low_op_text(op: Cmp) -> &'static str {
    if op.is_less() { "<" } else { ">" }
}
