//! Hits and rows as the wire's `SearchResultData` and `QueryResults`.
//!
//! This is the one place where scores get the sign that a client sees: inside the node larger is
//! always better, on the wire a distance is positive and smaller is better.

use arrow_array::{Array, ArrayRef, RecordBatch};
use elanus_proto::milvus::QueryResults;
use elanus_proto::schema::{self, FieldData, SearchResultData};
use elanus_storage::schema::{Field, META, Schema};
use elanus_storage::{Held, ReadView, RowAddr};

use super::fields::{encode, encode_ids};
use crate::status::Failure;

/// The name by which a count is asked for, and of the column that answers it.
pub const COUNT: &str = "count(*)";

/// The columns that a request wants back.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The fields to fetch, without repetition.
    fields: Vec<Field>,
    /// The names to report: fields, and keys of the dynamic field.
    names: Vec<String>,
}

impl Output {
    /// Resolves the output fields of a request: names, `*` for all, keys of the dynamic field.
    ///
    /// # Errors
    /// Code 1100 for a name that is no field where the collection has no dynamic field.
    pub fn resolve(schema: &Schema, wanted: &[String]) -> Result<Self, Failure> {
        let mut output = Self { fields: Vec::new(), names: Vec::new() };
        let all = wanted.iter().any(|name| name.trim() == "*");
        if all {
            schema.fields.iter().for_each(|field| output.add(field, &field.name));
        }
        for name in wanted.iter().map(|name| name.trim()).filter(|name| *name != "*") {
            if let Some(field) = schema.field(name) {
                output.add(field, name);
            } else if let (Some(dynamic), false) = (schema.dynamic(), name.is_empty()) {
                output.add(dynamic, dynamic_key(name));
            } else {
                return Err(Failure::invalid(format!("field {name} not exist")));
            }
        }
        // Clients keep only the dynamic keys that are named, if any is; here all are wanted.
        if output.names.iter().any(|name| name == META) {
            output.names.retain(|name| schema.field(name).is_some());
        }
        Ok(output)
    }

    /// Adds the primary key, which the answer to a query always has.
    #[must_use]
    pub fn with_primary(mut self, schema: &Schema) -> Self {
        let primary = schema.primary();
        self.add(primary, &primary.name);
        self
    }

    fn add(&mut self, field: &Field, name: &str) {
        if !self.fields.iter().any(|known| known.name == field.name) {
            self.fields.push(field.clone());
        }
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }

    /// Names of the fields to fetch.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.name.as_str())
    }

    fn encode(&self, batch: &RecordBatch) -> Result<Vec<FieldData>, Failure> {
        self.fields.iter().map(|field| Ok(encode(field, column(batch, &field.name)?))).collect()
    }
}

/// `color` and `$meta["color"]` name the same key.
fn dynamic_key(name: &str) -> &str {
    let inner = name.strip_prefix(META).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
    inner.map_or(name, |quoted| quoted.trim_matches(['"', '\'']))
}

/// Ranked rows of all queries of a search, to be fetched and written out.
#[derive(Debug)]
pub struct Ranking {
    /// Per query the rows with their internal scores, in the order to be shown.
    pub hits: Vec<Vec<(RowAddr, f32)>>,
    /// Whether a client sees larger scores as better; otherwise they are distances.
    pub larger_is_better: bool,
    /// Decimals to round scores to; negative for none.
    pub round_decimal: i32,
    /// The field the hits are grouped by.
    pub group_by: Option<Field>,
}

impl Ranking {
    /// Fetches the columns of all hits at once and writes the result.
    ///
    /// # Errors
    /// Code 1100 when the columns would take more than `max_bytes`.
    pub fn fetch(
        &self,
        view: &ReadView,
        schema: &Schema,
        output: &Output,
        max_bytes: usize,
    ) -> Result<SearchResultData, Failure> {
        let primary = schema.primary();
        let rows: Vec<RowAddr> = self.hits.iter().flatten().map(|hit| hit.0).collect();
        let mut names = vec![primary.name.as_str()];
        let group = self.group_by.iter().map(|field| field.name.as_str());
        for name in output.fields().chain(group) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let Taken { batch, _memory } = take(view, &rows, &names, max_bytes, "search")?;
        self.write(primary, output, &batch)
    }

    /// Writes the result; `batch` has a row for each hit, all queries one after the other.
    fn write(
        &self,
        primary: &Field,
        output: &Output,
        batch: &RecordBatch,
    ) -> Result<SearchResultData, Failure> {
        let topks: Vec<i64> = self.hits.iter().map(|hits| count(hits.len())).collect();
        let scores = self.hits.iter().flatten().map(|hit| self.shown(hit.1)).collect();
        let group_value = match &self.group_by {
            Some(field) => Some(encode(field, column(batch, &field.name)?)),
            None => None,
        };
        Ok(SearchResultData {
            num_queries: count(self.hits.len()),
            top_k: topks.iter().copied().max().unwrap_or(0),
            fields_data: output.encode(batch)?,
            scores,
            ids: Some(encode_ids(column(batch, &primary.name)?)),
            topks,
            output_fields: output.names.clone(),
            group_by_field_values: group_value.clone().into_iter().collect(),
            group_by_field_value: group_value,
            primary_field_name: primary.name.clone(),
            ..Default::default()
        })
    }

    /// A score as the client sees it.
    pub fn shown(&self, score: f32) -> f32 {
        let score = if self.larger_is_better { score } else { restored(score) };
        rounded(score, self.round_decimal)
    }
}

/// Turns an internal score of a distance into the distance, and back.
pub fn restored(score: f32) -> f32 {
    // Zero minus, not negated: a distance of zero is shown as 0, never as -0.
    0.0 - score
}

/// Rounds half up to `decimals`, as Milvus does; negative means not at all.
#[expect(clippy::cast_possible_truncation, reason = "a score is single precision on the wire")]
fn rounded(score: f32, decimals: i32) -> f32 {
    if decimals < 0 {
        return score;
    }
    let factor = 10_f64.powi(decimals);
    ((f64::from(score) * factor + 0.5).floor() / factor) as f32
}

/// Writes the rows of a query; `batch` holds at least the columns of `output`.
///
/// # Errors
/// Code 5 when storage left a column out.
pub fn query_results(
    schema: &Schema,
    output: &Output,
    batch: &RecordBatch,
) -> Result<QueryResults, Failure> {
    Ok(QueryResults {
        fields_data: output.encode(batch)?,
        output_fields: output.names.clone(),
        primary_field_name: schema.primary().name.clone(),
        ..Default::default()
    })
}

/// The answer to `count(*)`.
pub fn count_results(schema: &Schema, rows: usize) -> QueryResults {
    let counted = schema::LongArray { data: vec![count(rows)] };
    QueryResults {
        fields_data: vec![FieldData {
            r#type: schema::DataType::Int64.into(),
            field_name: COUNT.to_owned(),
            field: Some(schema::field_data::Field::Scalars(schema::ScalarField {
                data: Some(schema::scalar_field::Data::LongData(counted)),
                ..Default::default()
            })),
            ..Default::default()
        }],
        output_fields: vec![COUNT.to_owned()],
        primary_field_name: schema.primary().name.clone(),
        ..Default::default()
    }
}

/// Rows fetched at once before the size of the answer is looked at.
const CHUNK: usize = 8_192;

/// How often rows are in memory on their way out: as columns, and as the message.
const RESULT_COPIES: usize = 2;

/// Columns of rows, whose memory is counted until this is dropped.
#[derive(Debug)]
pub struct Taken {
    /// The columns.
    pub batch: RecordBatch,
    /// What counts.
    pub _memory: Vec<Held>,
}

/// Fetches columns of rows, and gives up when they take more than `max_bytes`, or more than there
/// is.
///
/// # Errors
/// Code 1100 in the first case, a retriable one in the second.
pub fn take(
    view: &ReadView,
    rows: &[RowAddr],
    names: &[&str],
    max_bytes: usize,
    what: &str,
) -> Result<Taken, Failure> {
    let (mut bytes, mut memory) = (0, Vec::new());
    let mut fetch = |rows: &[RowAddr]| {
        let batch = view.take(rows, names)?;
        let more = batch.columns().iter().map(column_bytes).sum::<usize>();
        bytes += more;
        memory.push(view.hold(RESULT_COPIES * more)?);
        if bytes > max_bytes {
            return Err(Failure::invalid(format!(
                "{what} results exceed the maxOutputSize Limit {max_bytes}, ask for fewer rows or fields"
            )));
        }
        Ok(batch)
    };
    if rows.len() <= CHUNK {
        let batch = fetch(rows)?;
        return Ok(Taken { batch, _memory: memory });
    }
    let batches = rows.chunks(CHUNK).map(fetch).collect::<Result<Vec<_>, _>>()?;
    let batch = arrow_select::concat::concat_batches(&batches[0].schema(), &batches)
        .map_err(|error| Failure::internal(error.to_string()))?;
    Ok(Taken { batch, _memory: memory })
}

/// Bytes of a column's own rows, not of the buffers they may be a slice of.
fn column_bytes(column: &ArrayRef) -> usize {
    column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_buffer_memory_size())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, Failure> {
    batch
        .column_by_name(name)
        .ok_or_else(|| Failure::internal(format!("storage returned no column {name}")))
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, LargeBinaryArray, LargeStringArray};
    use elanus_proto::schema::i_ds::IdField;
    use elanus_storage::schema::DataType;

    use super::*;
    use crate::convert::fields::tests::field;

    fn schema(dynamic: bool) -> Schema {
        let mut id = field("id", DataType::Int64);
        id.primary_key = true;
        let mut fields = vec![id, field("text", DataType::VarChar { max_length: 10 })];
        if dynamic {
            fields.push(Field { dynamic: true, ..field(META, DataType::Json) });
        }
        Schema {
            description: String::new(),
            fields,
            enable_dynamic_field: dynamic,
            functions: Vec::new(),
            properties: Vec::new(),
            version: 0,
            pending: Vec::new(),
            next_field: 0,
        }
    }

    fn names(schema: &Schema, wanted: &[&str]) -> Result<Vec<String>, Failure> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).into()).collect();
        Output::resolve(schema, &wanted).map(|output| output.names)
    }

    fn batch(ids: &[i64]) -> RecordBatch {
        let texts = ids.iter().map(|id| format!("row {id}"));
        let metas = ids.iter().map(|id| format!("{{\"n\":{id}}}"));
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef),
            ("text", Arc::new(LargeStringArray::from_iter_values(texts))),
            (META, Arc::new(LargeBinaryArray::from_iter_values(metas))),
        ])
        .unwrap()
    }

    #[test]
    fn output_names_are_fields_the_star_and_dynamic_keys() {
        let plain = schema(false);
        assert_eq!(names(&plain, &["text", "text"]).unwrap(), ["text"]);
        assert_eq!(names(&plain, &["*"]).unwrap(), ["id", "text"]);
        assert!(names(&plain, &["color"]).unwrap_err().reason().contains("field color not exist"));
        let dynamic = schema(true);
        assert_eq!(names(&dynamic, &["color", "$meta[\"size\"]"]).unwrap(), ["color", "size"]);
        // A client keeps only the named keys; with all of them wanted none may be named.
        assert_eq!(names(&dynamic, &["*", "color"]).unwrap(), ["id", "text", META]);
        let output = Output::resolve(&dynamic, &["color".to_owned(), "size".to_owned()]).unwrap();
        assert_eq!(output.fields().collect::<Vec<_>>(), [META], "one column serves all keys");
    }

    #[test]
    fn a_search_result_has_one_count_per_query_and_all_arms_set() {
        let addr = RowAddr { segment: 0, row: 0 };
        let ranking = Ranking {
            hits: vec![vec![(addr, -0.25), (addr, -1.0)], vec![], vec![(addr, 0.0)]],
            larger_is_better: false,
            round_decimal: -1,
            group_by: None,
        };
        let schema = schema(true);
        let output = Output::resolve(&schema, &["*".to_owned()]).unwrap();
        let data = ranking.write(schema.primary(), &output, &batch(&[7, 8, 9])).unwrap();
        assert_eq!((data.num_queries, data.top_k), (3, 2));
        assert_eq!(data.topks, [2, 0, 1]);
        assert_eq!(data.scores, [0.25, 1.0, 0.0]);
        assert!(data.scores[2].is_sign_positive(), "a distance of zero is not minus zero");
        assert_eq!(data.primary_field_name, "id");
        assert_eq!(data.fields_data.len(), 3);
        assert!(data.fields_data[2].is_dynamic);
        let Some(IdField::IntId(ids)) = data.ids.unwrap().id_field else { panic!("no int ids") };
        assert_eq!(ids.data, [7, 8, 9]);

        let nothing = Ranking { hits: vec![vec![], vec![]], ..ranking };
        let data = nothing.write(schema.primary(), &output, &batch(&[])).unwrap();
        assert_eq!((data.topks.as_slice(), data.top_k), (&[0, 0][..], 0));
        assert!(matches!(data.ids.unwrap().id_field, Some(IdField::IntId(_))));
        assert!(data.fields_data.iter().all(|column| column.field.is_some()));
    }

    #[test]
    fn scores_are_rounded_half_up_and_keep_their_order() {
        assert_eq!(rounded(1.2345, 2), 1.23);
        assert_eq!(rounded(-0.5, 0), 0.0);
        assert_eq!(rounded(2.5, 0), 3.0);
        assert_eq!(rounded(0.123_456_7, -1), 0.123_456_7);
    }

    #[test]
    fn a_query_always_answers_with_the_key_and_a_count_has_its_name() {
        let schema = schema(true);
        let output = Output::resolve(&schema, &["text".to_owned()]).unwrap().with_primary(&schema);
        let results = query_results(&schema, &output, &batch(&[])).unwrap();
        let columns: Vec<_> = results.fields_data.iter().map(|c| c.field_name.as_str()).collect();
        assert_eq!(columns, ["text", "id"]);
        assert_eq!(results.primary_field_name, "id");
        let counted = count_results(&schema, 42);
        assert_eq!(counted.fields_data[0].field_name, "count(*)");
    }
}
