//! Binding: an expression and a schema become a plan.
//!
//! Names become columns, JSON paths or array elements; constants take the types of what they are
//! compared with; `not` is pushed down to the tests. Every form of the language that is not
//! supported is refused here, by name.

use super::ast::{Arg, Binary, Cmp, Connective, Expr, Kind as Form, List, Path, Step};
use super::fold;
use super::lex::Span;
use super::like::Pattern;
use super::parse::fail;
use super::plan::{ArrayCheck, Bundle, Check, Members, Operand, Plan, Source, Test, int_limits};
use super::set::ValueSet;
use super::value::{Const, ConstList, Native, Num, native_f32, native_f64, native_int};
use super::{FilterError, Templates};
use crate::schema::{DataType, Field, META, Schema};

/// Most JSON paths in one filter; they are extracted into a table of rows × paths.
const MAX_PATHS: usize = 1_024;

/// Largest compiled regular expression.
const REGEX_BYTES: usize = 1 << 20;

/// Functions of the language that this node does not have.
const UNSUPPORTED: [&str; 18] = [
    "text_match",
    "phrase_match",
    "membership_match",
    "random_sample",
    "element_filter",
    "match_any",
    "match_all",
    "match_least",
    "match_most",
    "match_exact",
    "st_equals",
    "st_touches",
    "st_overlaps",
    "st_crosses",
    "st_contains",
    "st_intersects",
    "st_within",
    "st_dwithin",
];

const CONTAINS: [&str; 6] = [
    "json_contains",
    "array_contains",
    "json_contains_all",
    "array_contains_all",
    "json_contains_any",
    "array_contains_any",
];

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
            (paths, asked.len())
        })
        .collect();
    Ok(Bundle { plan, fields: binder.fields, paths, primary })
}

struct Binder<'a> {
    text: &'a str,
    schema: &'a Schema,
    templates: &'a Templates,
    fields: Vec<Field>,
    /// For each field, the paths asked of it and whether arrays are needed whole.
    paths: Vec<Vec<(Vec<Step>, bool)>>,
    slots: usize,
}

/// What an expression stands for.
enum Value<'e> {
    Const(Const),
    Operand(Operand, Kind),
    /// Something true or false, not bound yet.
    Condition(&'e Expr),
}

/// The type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Single,
    Double,
    Text,
    Bool,
    /// Any type, known only row by row.
    Json,
    Array,
    Vector,
}

impl Kind {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Bool => Self::Bool,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Self::Int,
            DataType::Float => Self::Single,
            DataType::Double => Self::Double,
            DataType::VarChar { .. } => Self::Text,
            DataType::Json => Self::Json,
            DataType::Array { .. } => Self::Array,
            DataType::FloatVector { .. }
            | DataType::Float16Vector { .. }
            | DataType::BFloat16Vector { .. }
            | DataType::Int8Vector { .. }
            | DataType::BinaryVector { .. }
            | DataType::SparseFloatVector => Self::Vector,
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Single | Self::Double)
    }
}

type Bound<T> = Result<T, FilterError>;

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

    /// Binds something that has a value.
    fn value<'e>(&mut self, expr: &'e Expr) -> Bound<Value<'e>> {
        let span = expr.span;
        Ok(match &expr.kind {
            Form::Bool(value) => Value::Const(Const::Bool(*value)),
            Form::Int(value) => Value::Const(Const::Int(i64::try_from(*value).map_err(|_| {
                fail(span, format!("the integer {value} does not fit into 64 bits"))
            })?)),
            Form::Float(value) => Value::Const(Const::Float(*value)),
            Form::Text(text) => Value::Const(Const::Text(text.clone())),
            Form::List(list) => Value::Const(Const::List(self.list(list)?)),
            Form::Template(name) => {
                Value::Const(fold::template(name, self.templates).map_err(|why| fail(span, why))?)
            }
            Form::Path(path) => {
                let (source, kind) = self.resolve(path, span, false)?;
                Value::Operand(Operand { source, arithmetic: Vec::new() }, kind)
            }
            Form::Negate(inner) => self.negate(inner, span)?,
            Form::Binary { op, left, right } => self.arithmetic(*op, left, right, span)?,
            Form::Call { name, args } if self.function(name, span)? == "array_length" => {
                let source = self.length(args, span)?;
                Value::Operand(Operand { source, arithmetic: Vec::new() }, Kind::Int)
            }
            Form::Complement(_) => {
                return Err(fail(span, "the bit operator `~` is not supported"));
            }
            Form::Temporal { name, .. } => {
                return Err(fail(span, format!("`{name}` and timestamptz are not supported")));
            }
            Form::Not(_)
            | Form::Logic { .. }
            | Form::Compare { .. }
            | Form::Range { .. }
            | Form::In { .. }
            | Form::Like { .. }
            | Form::Matches { .. }
            | Form::IsNull { .. }
            | Form::Exists(_)
            | Form::Call { .. } => Value::Condition(expr),
        })
    }

    fn constant(&mut self, expr: &Expr, what: &str) -> Bound<Const> {
        match self.value(expr)? {
            Value::Const(value) => Ok(value),
            Value::Operand(..) | Value::Condition(_) => {
                Err(fail(expr.span, format!("{what} must be a constant")))
            }
        }
    }

    fn operand(&mut self, expr: &Expr, operator: &str) -> Bound<(Operand, Kind)> {
        match self.value(expr)? {
            Value::Operand(operand, kind) => Ok((operand, kind)),
            Value::Const(_) | Value::Condition(_) => Err(fail(
                expr.span,
                format!("the left side of `{operator}` must be a field, a path or an element"),
            )),
        }
    }

    fn list(&mut self, list: &List) -> Bound<ConstList> {
        match list {
            List::Ints(ints) => Ok(ConstList::Ints(ints.clone())),
            List::Texts(texts) => Ok(ConstList::Texts(texts.clone())),
            List::Mixed(items) => {
                let mut values = Vec::with_capacity(items.len());
                for item in items {
                    values.push(self.constant(item, "an element of a list")?);
                }
                Ok(fold::pack(values))
            }
        }
    }

    fn negate<'e>(&mut self, inner: &'e Expr, span: Span) -> Bound<Value<'e>> {
        // The smallest integer has no positive counterpart, so it is recognised as a whole.
        if matches!(inner.kind, Form::Int(value) if value == i64::MIN.unsigned_abs()) {
            return Ok(Value::Const(Const::Int(i64::MIN)));
        }
        match self.value(inner)? {
            Value::Const(value) => fold::arithmetic(Binary::Multiply, &value, &Const::Int(-1))
                .map(Value::Const)
                .map_err(|_| fail(span, format!("`-` cannot be applied to {}", value.type_name()))),
            Value::Operand(operand, kind) => {
                self.extend(operand, kind, Binary::Multiply, Num::Int(-1), span)
            }
            Value::Condition(_) => Err(fail(span, "`-` cannot be applied to a condition")),
        }
    }

    fn arithmetic<'e>(
        &mut self,
        op: Binary,
        left: &Expr,
        right: &Expr,
        span: Span,
    ) -> Bound<Value<'e>> {
        let bits = [Binary::ShiftLeft, Binary::ShiftRight, Binary::And, Binary::Xor, Binary::Or];
        if bits.contains(&op) {
            return Err(fail(span, format!("the bit operator `{}` is not supported", op.sign())));
        }
        let number = |value: &Const| {
            value.num().ok_or_else(|| {
                fail(span, format!("`{}` cannot be applied to {}", op.sign(), value.type_name()))
            })
        };
        match (self.value(left)?, self.value(right)?) {
            (Value::Const(a), Value::Const(b)) => {
                fold::arithmetic(op, &a, &b).map(Value::Const).map_err(|why| fail(span, why))
            }
            (Value::Operand(operand, kind), Value::Const(value)) => {
                self.extend(operand, kind, op, number(&value)?, span)
            }
            (Value::Const(value), Value::Operand(operand, kind)) => match op {
                Binary::Add | Binary::Multiply => {
                    self.extend(operand, kind, op, number(&value)?, span)
                }
                _ => Err(fail(
                    span,
                    format!(
                        "`{}` needs the field on its left and the constant on its right",
                        op.sign()
                    ),
                )),
            },
            (Value::Operand(..), Value::Operand(..)) => {
                Err(fail(span, "arithmetic between two fields is not supported"))
            }
            (Value::Condition(_), _) | (_, Value::Condition(_)) => {
                Err(fail(span, format!("`{}` cannot be applied to a condition", op.sign())))
            }
        }
    }

    /// Appends `op constant` to what is computed with an operand.
    fn extend<'e>(
        &self,
        mut operand: Operand,
        kind: Kind,
        op: Binary,
        constant: Num,
        span: Span,
    ) -> Bound<Value<'e>> {
        if !kind.is_number() && kind != Kind::Json {
            let name = self.type_name(&operand.source);
            return Err(fail(span, format!("`{}` cannot be applied to {name}", op.sign())));
        }
        if op == Binary::Power {
            return Err(fail(span, "`**` works on constants only"));
        }
        let like_it =
            if matches!(kind, Kind::Int | Kind::Json) { Num::Int(1) } else { Num::Float(1.0) };
        fold::check_divisor(op, like_it, constant).map_err(|why| fail(span, why))?;
        operand.arithmetic.push((op, constant));
        let kind = match (kind, constant) {
            (Kind::Int, Num::Int(_)) => Kind::Int,
            (Kind::Json, _) => Kind::Json,
            _ => Kind::Double,
        };
        Ok(Value::Operand(operand, kind))
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
            (Kind::Text, Const::Text(value)) => Ok(Plan::Test(match operand.source {
                Source::Column(field) => Test::Text { field, op, value },
                _ => value_test(operand, Check::Text(op, value), false),
            })),
            (Kind::Json, Const::Text(value)) if plain => {
                Ok(Plan::Test(value_test(operand, Check::Text(op, value), false)))
            }
            (Kind::Bool | Kind::Json, Const::Bool(value)) if op.is_equality() && plain => {
                let value = value == (op == Cmp::Equal);
                Ok(Plan::Test(match (kind, &operand.source) {
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
                Ok(Plan::Test(value_test(operand, Check::Tree(tree), op == Cmp::NotEqual)))
            }
            (Kind::Array, Const::List(list)) if op.is_equality() => {
                let Source::Column(field) = operand.source else {
                    return Err(fail(span, "an array element is no array"));
                };
                let items = self.array_items(field, &Const::List(list), span)?;
                let check = ArrayCheck::Equals(items);
                Ok(Plan::Test(Test::Array { field, check, negated: op == Cmp::NotEqual }))
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
            return Plan::Test(value_test(operand, Check::Number(op, number), false));
        };
        let always = || Plan::Test(Test::Null { source: Source::Column(field), negated: true });
        match int_limits(&self.fields[field].data_type) {
            Some((min, max)) => match native_int(op, number, min, max) {
                Native::Test(op, value) => Plan::Test(Test::Int { field, op, value }),
                Native::Always => always(),
                Native::Never => Plan::Const(false),
            },
            None if kind == Kind::Single => match native_f32(op, number) {
                Native::Test(op, value) => Plan::Test(Test::Single { field, op, value }),
                Native::Always => always(),
                Native::Never => Plan::Const(false),
            },
            None => match native_f64(op, number) {
                Native::Test(op, value) => Plan::Test(Test::Double { field, op, value }),
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
                Ok(Plan::Test(Test::Columns { left: *left, op, right: *right }))
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
                Ok(Plan::Test(Test::In { field, list: ConstList::Ints(ints), set, negated }))
            }
            (Kind::Text, Some(field)) => {
                let ConstList::Texts(texts) = items else {
                    let wrong = items.iter().find(|item| !matches!(item, Const::Text(_)));
                    return Err(cast(&wrong.unwrap_or(Const::Bool(false))));
                };
                let set = Members::Texts(texts.iter().cloned().collect());
                Ok(Plan::Test(Test::In { field, list: ConstList::Texts(texts), set, negated }))
            }
            _ => {
                let mut set = ValueSet::default();
                for item in items.iter() {
                    set.insert(&self.element(&item, kind).ok_or_else(|| cast(&item))?);
                }
                Ok(Plan::Test(value_test(operand, Check::In(set), negated)))
            }
        }
    }

    /// A list's element as a value of that kind; `None` if it cannot be one.
    fn element(&self, item: &Const, kind: Kind) -> Option<Const> {
        match (kind, item) {
            (Kind::Int, _) => as_int(item).map(Const::Int),
            (Kind::Single, Const::Float(value)) => Some(Const::Float(f64::from(*value as f32))),
            (Kind::Single | Kind::Double, Const::Int(_))
            | (Kind::Double, Const::Float(_))
            | (Kind::Text, Const::Text(_))
            | (Kind::Bool, Const::Bool(_))
            | (Kind::Json, Const::Int(_) | Const::Float(_) | Const::Text(_) | Const::Bool(_)) => {
                Some(item.clone())
            }
            _ => None,
        }
    }

    fn cast_error(&self, item: &Const, source: &Source) -> String {
        let name = self.type_name(source);
        format!("value '{item}' in list cannot be casted to {name}")
    }

    fn like(&mut self, value: &Expr, pattern: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "like")?;
        let Const::Text(text) = self.constant(pattern, "the pattern of `like`")? else {
            return Err(fail(pattern.span, "the pattern of `like` must be a string"));
        };
        let pattern = Pattern::new(&text);
        match (kind, &operand.source) {
            (Kind::Text, Source::Column(field)) => {
                Ok(Plan::Test(Test::Like { field: *field, pattern, negated }))
            }
            (Kind::Text | Kind::Json, _) if operand.arithmetic.is_empty() => {
                Ok(Plan::Test(value_test(operand, Check::Like(pattern), negated)))
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
        Ok(Plan::Test(value_test(operand, Check::Regex(regex), negated)))
    }

    fn is_null(&mut self, value: &Expr, negated: bool) -> Bound<Plan> {
        let (operand, kind) = self.operand(value, "is null")?;
        if kind == Kind::Vector || !operand.arithmetic.is_empty() {
            let name = self.type_name(&operand.source);
            return Err(fail(value.span, format!("`is null` is not supported on {name}")));
        }
        Ok(Plan::Test(Test::Null { source: operand.source, negated }))
    }

    fn exists(&mut self, inner: &Expr, negated: bool) -> Bound<Plan> {
        match self.value(inner)? {
            Value::Operand(Operand { source, arithmetic }, Kind::Json) if arithmetic.is_empty() => {
                Ok(Plan::Test(Test::Null { source, negated: !negated }))
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
                Ok(Plan::Test(Test::Bool { field: *field, value: !negated }))
            }
            (Kind::Bool | Kind::Json, _) => {
                let operand = Operand { source, arithmetic: Vec::new() };
                Ok(Plan::Test(value_test(operand, Check::Bool(!negated), false)))
            }
            _ => Err(self.not_a_condition(expr, self.type_name(&source))),
        }
    }

    /// The name of a known function in lower case.
    fn function(&self, name: &str, span: Span) -> Bound<&'static str> {
        let lower = name.to_ascii_lowercase();
        let one_case = name == lower || name == name.to_ascii_uppercase();
        let supported = CONTAINS.iter().copied().chain(["array_length"]);
        if one_case && let Some(known) = supported.clone().find(|known| *known == lower) {
            return Ok(known);
        }
        if one_case && (UNSUPPORTED.contains(&lower.as_str()) || lower == "st_isvalid") {
            return Err(fail(span, format!("the function `{lower}` is not supported")));
        }
        let hint = fold::closest(&lower, supported)
            .map(|known| format!(", did you mean `{known}`?"))
            .unwrap_or_default();
        Err(fail(span, format!("unknown function `{name}`{hint}")))
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
                Ok(Plan::Test(Test::Array { field, check, negated }))
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
                Ok(Plan::Test(value_test(operand, Check::Contains { all, members }, negated)))
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

    fn refuse_named(&self, function: &str, args: &[Arg]) -> Bound<()> {
        match args.iter().find_map(|arg| arg.name.as_ref().map(|name| (name, arg.value.span))) {
            Some((name, span)) => {
                Err(fail(span, format!("`{function}` has no argument called `{name}`")))
            }
            None => Ok(()),
        }
    }

    fn length(&mut self, args: &[Arg], span: Span) -> Bound<Source> {
        self.refuse_named("array_length", args)?;
        let [Arg { value: Expr { kind: Form::Path(path), span: place, .. }, .. }] = args else {
            return Err(fail(span, "`array_length` takes one argument, a field or a path"));
        };
        match self.resolve(path, *place, false)? {
            (Source::Column(field), Kind::Array) => Ok(Source::Length(field)),
            (Source::Json { field, slot, .. }, _) => Ok(Source::JsonLength { field, slot }),
            (source, _) => Err(fail(
                *place,
                format!(
                    "array_length operation are only supported on json or array fields now, got: {}",
                    self.type_name(&source)
                ),
            )),
        }
    }

    /// The elements of a list as values of an array field's element type.
    fn array_items(&self, field: usize, list: &Const, span: Span) -> Bound<Vec<Const>> {
        let (Const::List(items), DataType::Array { element, .. }) =
            (list, &self.fields[field].data_type)
        else {
            return Err(fail(span, "expected a list for an array field"));
        };
        let kind = Kind::of(element);
        items
            .iter()
            .map(|item| {
                self.element(&item, kind).ok_or_else(|| {
                    let name = element.name();
                    fail(span, format!("value '{item}' in list cannot be casted to {name}"))
                })
            })
            .collect()
    }

    /// What messages call the type of a source.
    fn type_name(&self, source: &Source) -> &'static str {
        match source {
            Source::Column(field) => self.fields[*field].data_type.name(),
            Source::Element { field, .. } => match &self.fields[*field].data_type {
                DataType::Array { element, .. } => element.name(),
                other => other.name(),
            },
            Source::Json { .. } => "JSON",
            Source::Length(_) | Source::JsonLength { .. } => "Int64",
        }
    }

    /// Finds what a name with brackets stands for. `whole` keeps JSON arrays found there.
    fn resolve(&mut self, path: &Path, span: Span, whole: bool) -> Bound<(Source, Kind)> {
        let Path { name, steps } = path;
        if name == "$" || steps.iter().any(|step| matches!(step, Step::Member(_))) {
            return Err(fail(span, "struct fields and element filters are not supported"));
        }
        if name.starts_with('$') && name != META {
            return Err(fail(span, format!("field {name} not exist")));
        }
        if let Some(field) = self.schema.field(name) {
            let position = self.column(field);
            return match (&field.data_type, steps.as_slice()) {
                (DataType::Json, steps) => {
                    Ok((self.json(position, steps.to_vec(), whole, span)?, Kind::Json))
                }
                (other, []) => Ok((Source::Column(position), Kind::of(other))),
                (DataType::Array { element, .. }, [Step::Index(index)]) => {
                    Ok((Source::Element { field: position, index: *index }, Kind::of(element)))
                }
                (DataType::Array { .. }, _) => Err(fail(
                    span,
                    format!("array field `{name}` takes one index, as in {name}[0]"),
                )),
                (other, _) => Err(fail(
                    span,
                    format!("field `{name}` of type {} has nothing inside to index", other.name()),
                )),
            };
        }
        if let Some(dynamic) = self.schema.dynamic() {
            let position = self.column(dynamic);
            let mut all = Vec::with_capacity(steps.len() + 1);
            all.push(Step::Key(name.clone()));
            all.extend(steps.iter().cloned());
            return Ok((self.json(position, all, whole, span)?, Kind::Json));
        }
        let names = self.schema.fields.iter().map(|field| field.name.as_str());
        let hint = fold::closest(name, names)
            .map(|known| format!(", did you mean `{known}`?"))
            .unwrap_or_default();
        Err(fail(span, format!("field {name} not exist{hint}")))
    }

    /// Position of a field among those the filter reads.
    fn column(&mut self, field: &Field) -> usize {
        if let Some(position) = self.fields.iter().position(|known| known.name == field.name) {
            return position;
        }
        self.fields.push(field.clone());
        self.paths.push(Vec::new());
        self.fields.len() - 1
    }

    fn json(&mut self, field: usize, steps: Vec<Step>, whole: bool, span: Span) -> Bound<Source> {
        let root = steps.is_empty();
        let asked = &mut self.paths[field];
        if let Some(slot) = asked.iter().position(|(known, _)| *known == steps) {
            asked[slot].1 |= whole;
            return Ok(Source::Json { field, slot, root });
        }
        if self.slots == MAX_PATHS {
            return Err(fail(span, format!("a filter reads at most {MAX_PATHS} JSON paths")));
        }
        self.slots += 1;
        asked.push((steps, whole));
        Ok(Source::Json { field, slot: asked.len() - 1, root })
    }

    fn keep_whole(&mut self, source: &Source) {
        if let Source::Json { field, slot, .. } = source {
            self.paths[*field][*slot].1 = true;
        }
    }
}

fn value_test(operand: Operand, check: Check, negated: bool) -> Test {
    Test::Value { operand, check, negated }
}

/// Rows in which there is a value.
fn present(source: Source) -> Plan {
    Plan::Test(Test::Null { source, negated: true })
}

fn as_int(item: &Const) -> Option<i64> {
    match item.num()?.canonical() {
        Num::Int(value) => i64::try_from(value).ok(),
        Num::Float(_) => None,
    }
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
