//! The filter language: text in, the set of matching rows out.
//!
//! [`compile`] takes a filter's text through four stages. `lex` makes tokens, `parse` makes an
//! expression with places in it, `check` binds names and types to a schema, fills in template
//! variables and folds constants, and what comes out is a [`Predicate`], which any number of
//! batches can be put to. Logic is three-valued: a comparison with null is unknown, and only rows
//! of which the filter is true qualify.
//!
//! | module | is for |
//! |---|---|
//! | `lex`, `ast`, `parse` | the grammar; all forms of the language are understood |
//! | `check`, `bind`, `fold`, `value` | meaning; forms that are not supported are refused here, by name |
//! | `plan` | the bound filter, and what it says about keys |
//! | `eval`, `set`, `like`, `json` | its rows, a column and 16 Ki rows at a time |
//! | `lookup`, `terms` | what of it the sorted terms of a segment answer |
//! | `oracle` | the same, slowly and for tests only, straight from the expression |
//!
//! Input is hostile: lists cost memory in proportion to their text, depth is bounded, and nothing
//! here panics whatever the text.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an operator or a check means something for few kinds of tokens, values and types, \
              and for all others the same: refused, or unknown"
)]

use std::collections::HashMap;
use std::ops::{Bound, Range};

use arrow_array::{ArrayRef, RecordBatch};
use bytes::Bytes;
use elanus_index::RowMask;

use crate::Error;
use crate::catalog::{PathStep, TermsDef};
use crate::keys::{Key, Keys};
use crate::schema::{DataType, Field, Schema};

mod ast;
mod bind;
mod check;
mod eval;
mod fold;
mod json;
mod lex;
mod like;
mod lookup;
#[cfg(test)]
mod oracle;
mod parse;
mod plan;
mod set;
mod terms;
#[cfg(test)]
mod tests;
mod value;

pub use terms::Terms;
pub(crate) use terms::{each_gram, project};

/// The value of a template variable, `{name}` in the text.
#[derive(Clone, Debug, PartialEq)]
pub enum TemplateValue {
    /// A boolean.
    Bool(bool),
    /// A 64-bit integer.
    Int(i64),
    /// A double-precision number.
    Float(f64),
    /// Text.
    String(String),
    /// A list, possibly of lists.
    Array(Vec<TemplateValue>),
    /// Any JSON value.
    Json(serde_json::Value),
    /// Raw bytes, as membership filters come.
    Bytes(Bytes),
}

/// Template variables by name.
pub type Templates = HashMap<String, TemplateValue>;

/// A filter that cannot be used, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// Byte range in the filter's text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
}

impl FilterError {
    /// The message, and under it the line of `text` it is about with the place marked:
    ///
    /// ```text
    /// field prise not exist, did you mean `price`?
    ///   prise > 10 and color == "red"
    ///   ^^^^^
    /// ```
    ///
    /// Of long lines only the surroundings are shown.
    pub fn render(&self, text: &str) -> String {
        /// Characters shown on either side of the place.
        const AROUND: usize = 40;
        let boundary = |at: usize| {
            let at = at.min(text.len());
            (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
        };
        let (start, end) = (boundary(self.span.start), boundary(self.span.end));
        let end = end.max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let marked = &text[start..end.min(line_end)];

        let before: Vec<char> = text[line_start..start].chars().rev().take(AROUND + 1).collect();
        let cut_before = before.len() > AROUND;
        let before: String = before.into_iter().take(AROUND).rev().collect();
        let shown: String = marked.chars().take(2 * AROUND).collect();
        let cut_marked = shown.len() < marked.len();
        let after: String = if cut_marked {
            String::new()
        } else {
            text[start + marked.len()..line_end].chars().take(AROUND).collect()
        };
        let cut_after = cut_marked || start + marked.len() + after.len() < line_end;

        let dots = |cut: bool| if cut { "…" } else { "" };
        let blank = " ".repeat(before.chars().count() + usize::from(cut_before));
        let carets = "^".repeat(shown.chars().count().max(1));
        format!(
            "{}\n  {}{}{shown}{after}{}\n  {blank}{carets}",
            self.message,
            dots(cut_before),
            before.replace('\t', " "),
            dots(cut_after),
        )
    }
}

/// The columns of a run of rows.
pub trait Columns {
    /// Number of rows in every column.
    fn rows(&self) -> usize;

    /// The column of a field, in the field's Arrow type.
    ///
    /// # Errors
    /// Whatever keeps the column from being read.
    fn column(&self, field: &Field) -> Result<ArrayRef, Error>;

    /// The indexes there are over a field of exactly these rows, of those that are `wanted`.
    fn terms(&self, _field: &Field, _wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
        Vec::new()
    }
}

/// A field that the batch lacks reads as its default, else as null.
impl Columns for RecordBatch {
    fn rows(&self) -> usize {
        self.num_rows()
    }

    fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
        Ok(self
            .column_by_name(&field.name)
            .cloned()
            .unwrap_or_else(|| field.absent(self.num_rows())))
    }
}

/// Compiles a filter for rows of a schema. Blank text means all rows.
///
/// # Errors
/// [`FilterError`] if the text is not of the language, names unknown fields or template variables,
/// mixes types, or uses a form that is not supported.
pub fn compile(
    text: &str,
    schema: &Schema,
    templates: &Templates,
) -> Result<Predicate, FilterError> {
    if text.trim().is_empty() {
        return Ok(Predicate { bundle: plan::Bundle::everything() });
    }
    let expr = parse::parse(text)?;
    Ok(Predicate { bundle: check::bind(&expr, text, schema, templates)? })
}

/// Understands a path into a JSON field, or below a dynamic key, as filters write it: the field's
/// name, and the steps from the root of its documents.
///
/// # Errors
/// [`FilterError`] if the text is no path, or leads to no JSON.
pub fn json_path(text: &str, schema: &Schema) -> Result<(String, Vec<PathStep>), FilterError> {
    let refuse = |message: String| FilterError { span: 0..text.len(), message };
    let ast::Kind::Path(ast::Path { name, steps }) = parse::parse(text)?.kind else {
        return Err(refuse(format!("`{text}` is not a path, as in field[\"key\"][0]")));
    };
    let mut path = Vec::with_capacity(steps.len() + 1);
    let field = match (schema.field(&name), schema.dynamic()) {
        (Some(field), _) if field.data_type == DataType::Json => field,
        (None, Some(dynamic)) => {
            path.push(PathStep::Key(name));
            dynamic
        }
        _ => return Err(refuse(format!("{name} is no JSON field"))),
    };
    for step in steps {
        path.push(match step {
            ast::Step::Key(key) => PathStep::Key(key),
            ast::Step::Index(index) => PathStep::Index(index),
            ast::Step::Member(name) => {
                return Err(refuse(format!("[{name}] is not a key in quotes, nor a position")));
            }
        });
    }
    Ok((field.name.clone(), path))
}

/// A compiled filter.
#[derive(Debug)]
pub struct Predicate {
    bundle: plan::Bundle,
}

impl Predicate {
    /// The rows of which the filter is true.
    ///
    /// # Errors
    /// Those of [`Columns::column`]; [`Error::Internal`] if a column has another type than its
    /// field.
    pub fn eval(&self, columns: &dyn Columns) -> Result<RowMask, Error> {
        self.eval_within(columns, &RowMask::all(columns.rows()), &elanus_index::Cancel::never())
    }

    /// The rows among `candidates` of which the filter is true. Costs less the fewer candidates
    /// there are.
    ///
    /// # Errors
    /// As [`Predicate::eval`]; [`Error::Search`] when cancelled.
    pub fn eval_within(
        &self,
        columns: &dyn Columns,
        candidates: &RowMask,
        cancel: &elanus_index::Cancel,
    ) -> Result<RowMask, Error> {
        eval::eval(&self.bundle, columns, candidates, cancel)
    }

    /// The primary keys asked for, in the order and number they were listed, when the filter is
    /// nothing but `key in [..]` or `key == v`.
    pub fn key_set(&self) -> Option<Keys> {
        self.bundle.key_set()
    }

    /// Whether the filter was found to hold of every row, whatever is in it.
    pub fn is_always_true(&self) -> bool {
        matches!(self.bundle.plan, plan::Plan::Const(true))
    }

    /// Whether the filter was found to hold of no row, whatever is in it.
    pub fn is_always_false(&self) -> bool {
        matches!(self.bundle.plan, plan::Plan::Const(false))
    }

    /// Bounds that the primary key of every matching row keeps; for pruning.
    pub fn key_range(&self) -> (Bound<Key>, Bound<Key>) {
        self.bundle.key_range()
    }

    /// Values of which every matching row has one in that field, when the filter lists them, as
    /// `field == v` or `field in [..]` does; for pruning by partition key.
    pub fn values_of(&self, field: &str) -> Option<Keys> {
        self.bundle.values_of(field)
    }
}
