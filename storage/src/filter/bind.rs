//! What the parts of an expression stand for: names, values, types.
//!
//! A name becomes a column, an array element or a JSON path; arithmetic becomes steps on a value;
//! what is constant is computed. What is done with the values, in conditions, stands in `check`.

use super::ast::{Arg, Binary, Expr, Kind as Form, List, Path, Step};
use super::lex::Span;
use super::parse::fail;
use super::plan::{Operand, Source};
use super::value::{Const, ConstList, Num};
use super::{FilterError, Templates, fold};
use crate::schema::{DataType, Field, META, Schema};

/// Most JSON paths in one filter; they are extracted into a table of rows × paths.
const MAX_PATHS: usize = 1_024;

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

pub(super) struct Binder<'a> {
    pub(super) text: &'a str,
    pub(super) schema: &'a Schema,
    pub(super) templates: &'a Templates,
    pub(super) fields: Vec<Field>,
    /// For each field, the paths asked of it and whether arrays are needed whole.
    pub(super) paths: Vec<Vec<(Vec<Step>, bool)>>,
    pub(super) slots: usize,
}

/// What an expression stands for.
pub(super) enum Value<'e> {
    Const(Const),
    Operand(Operand, Kind),
    /// Something true or false, not bound yet.
    Condition(&'e Expr),
}

/// The type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
    pub(super) fn of(data_type: &DataType) -> Self {
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

    pub(super) fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Single | Self::Double)
    }
}

pub(super) type Bound<T> = Result<T, FilterError>;

impl Binder<'_> {
    /// Binds something that has a value.
    pub(super) fn value<'e>(&mut self, expr: &'e Expr) -> Bound<Value<'e>> {
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

    pub(super) fn constant(&mut self, expr: &Expr, what: &str) -> Bound<Const> {
        match self.value(expr)? {
            Value::Const(value) => Ok(value),
            Value::Operand(..) | Value::Condition(_) => {
                Err(fail(expr.span, format!("{what} must be a constant")))
            }
        }
    }

    pub(super) fn operand(&mut self, expr: &Expr, operator: &str) -> Bound<(Operand, Kind)> {
        match self.value(expr)? {
            Value::Operand(operand, kind) => Ok((operand, kind)),
            Value::Const(_) | Value::Condition(_) => Err(fail(
                expr.span,
                format!("the left side of `{operator}` must be a field, a path or an element"),
            )),
        }
    }

    pub(super) fn list(&mut self, list: &List) -> Bound<ConstList> {
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

    pub(super) fn negate<'e>(&mut self, inner: &'e Expr, span: Span) -> Bound<Value<'e>> {
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

    pub(super) fn arithmetic<'e>(
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
    pub(super) fn extend<'e>(
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

    /// A list's element as a value of that kind; `None` if it cannot be one.
    pub(super) fn element(&self, item: &Const, kind: Kind) -> Option<Const> {
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

    pub(super) fn cast_error(&self, item: &Const, source: &Source) -> String {
        let name = self.type_name(source);
        format!("value '{item}' in list cannot be casted to {name}")
    }

    /// The name of a known function in lower case.
    pub(super) fn function(&self, name: &str, span: Span) -> Bound<&'static str> {
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

    pub(super) fn refuse_named(&self, function: &str, args: &[Arg]) -> Bound<()> {
        match args.iter().find_map(|arg| arg.name.as_ref().map(|name| (name, arg.value.span))) {
            Some((name, span)) => {
                Err(fail(span, format!("`{function}` has no argument called `{name}`")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn length(&mut self, args: &[Arg], span: Span) -> Bound<Source> {
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
    pub(super) fn array_items(&self, field: usize, list: &Const, span: Span) -> Bound<Vec<Const>> {
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
    pub(super) fn type_name(&self, source: &Source) -> &'static str {
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
    pub(super) fn resolve(
        &mut self,
        path: &Path,
        span: Span,
        whole: bool,
    ) -> Bound<(Source, Kind)> {
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
    pub(super) fn column(&mut self, field: &Field) -> usize {
        if let Some(position) = self.fields.iter().position(|known| known.name == field.name) {
            return position;
        }
        self.fields.push(field.clone());
        self.paths.push(Vec::new());
        self.fields.len() - 1
    }

    pub(super) fn json(
        &mut self,
        field: usize,
        steps: Vec<Step>,
        whole: bool,
        span: Span,
    ) -> Bound<Source> {
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

    pub(super) fn keep_whole(&mut self, source: &Source) {
        if let Source::Json { field, slot, .. } = source {
            self.paths[*field][*slot].1 = true;
        }
    }
}

pub(super) fn as_int(item: &Const) -> Option<i64> {
    match item.num()?.canonical() {
        Num::Int(value) => i64::try_from(value).ok(),
        Num::Float(_) => None,
    }
}
