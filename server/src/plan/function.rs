//! Functions: vectors that the node makes from text, on insert and in a search.
//!
//! Functions with the same model, input and settings share one call of the model: BGE-M3 gives
//! dense and sparse vectors in one pass. In a hybrid search the same goes for legs with the same
//! texts. How calls of different requests are batched is the model store's business.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, LargeBinaryArray};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use bytes::Bytes;
use elanus_embed::{EmbedRequest, Embeddings, Mode, Outputs, shorten};
use elanus_proto::codes::Code;
use elanus_storage::schema::Field;
use elanus_storage::{Schema, Unfilled};
use futures::future::try_join_all;

use crate::convert::fields::Columns;
use crate::convert::function::ModelFunction;
use crate::convert::placeholder::QueryRows;
use crate::engines::{Engines, Source};
use crate::status::Failure;

/// Texts that search one field.
#[derive(Clone, Debug)]
pub struct TextQuery {
    /// One text per query.
    pub texts: Vec<String>,
    /// The function whose output the field is.
    pub function: ModelFunction,
    /// Whether the field is the function's sparse output.
    pub sparse: bool,
    /// Width of a dense field.
    pub dim: usize,
}

impl TextQuery {
    /// Texts for a search on `field`.
    ///
    /// # Errors
    /// Code 1100 when no function fills the field.
    pub fn new(schema: &Schema, field: &str, texts: Vec<String>) -> Result<Self, Failure> {
        let fills = |function: &ModelFunction| {
            [&function.dense, &function.sparse].into_iter().any(|out| out.as_deref() == Some(field))
        };
        let function = ModelFunction::all(schema).into_iter().find(fills).ok_or_else(|| {
            Failure::invalid(format!(
                "no function makes field {field} from text, search it with vectors"
            ))
        })?;
        let sparse = function.sparse.as_deref() == Some(field);
        let dim = schema.field(field).and_then(|field| field.data_type.dim()).unwrap_or(0) as usize;
        Ok(Self { texts, function, sparse, dim })
    }
}

/// The functions that the rows of an insert still need, and the model calls that serve them.
#[derive(Debug)]
pub struct Fill {
    calls: Calls,
    /// Each function with the number of its call.
    users: Vec<(usize, ModelFunction)>,
}

impl Fill {
    /// Collects the input texts of all functions whose outputs are not there yet.
    ///
    /// # Errors
    /// Code 1100 when an input column is missing, 2400 when a text is empty.
    pub fn plan(schema: &Schema, columns: &Columns) -> Result<Self, Failure> {
        let mut fill = Self { calls: Calls::default(), users: Vec::new() };
        for function in ModelFunction::all(schema) {
            if is_filled(schema, columns, &function) {
                continue;
            }
            let texts = input(schema, columns, &function)?;
            fill.users.push((fill.calls.join_to_store(&function, texts)?, function));
        }
        Ok(fill)
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Runs the models.
    ///
    /// # Errors
    /// Code 2400 when a model fails.
    pub async fn run(self, engines: Engines<'_>) -> Result<Filled, Failure> {
        let answers = self.calls.run(|source, request| embed(engines, source, request)).await?;
        Ok(Filled { answers, users: self.users })
    }
}

/// What the models made of the rows of an insert.
pub struct Filled {
    answers: Vec<Answer>,
    users: Vec<(usize, ModelFunction)>,
}

impl Filled {
    /// Adds the output columns.
    ///
    /// # Errors
    /// Code 2400 when a model gave something else than the schema expects.
    pub fn apply(self, schema: &Schema, columns: &mut Columns) -> Result<(), Failure> {
        for (call, function) in self.users {
            let answer = &self.answers[call];
            if let Some(name) = &function.dense {
                let (position, dim) = output(schema, name)?;
                columns.set(position, answer.dense_column(&function, dim, columns.rows())?);
            }
            if let Some(name) = &function.sparse {
                let (position, _) = output(schema, name)?;
                columns.set(position, answer.sparse_column(&function, columns.rows())?);
            }
        }
        Ok(())
    }
}

/// 64 texts: as many as stored rows put into a model's queue at a time.
const REFILL_TEXTS: usize = 64;

/// Makes the values of pending fields of stored rows. `schema` is what rows are
/// [written](Schema::written) by. Rows without a text have no vector.
///
/// # Errors
/// Code 2400 when a model fails, or gives something else than the fields expect.
pub async fn refill(
    engines: Engines<'_>,
    schema: &Schema,
    rows: &Unfilled,
) -> Result<Vec<ArrayRef>, Failure> {
    let fills = |function: &ModelFunction| {
        function.outputs().any(|output| rows.fields.iter().any(|field| field.name == output))
    };
    let functions: Vec<_> = ModelFunction::all(schema).into_iter().filter(fills).collect();
    for field in &rows.fields {
        let is_made = functions.iter().any(|f| f.outputs().any(|output| output == field.name));
        // What is not pending any more is not stored either.
        if !is_made && schema.field(&field.name).is_some() {
            return Err(Failure::new(
                Code::FunctionFailed,
                format!(
                    "this version does not understand the function that is to make {}; alter it",
                    field.name
                ),
            ));
        }
    }
    let count = rows.inputs.num_rows();
    let mut columns: Vec<Refilled> =
        rows.fields.iter().map(|field| Refilled::new(field, count)).collect();
    for first in (0..count).step_by(REFILL_TEXTS) {
        let end = count.min(first + REFILL_TEXTS);
        let (mut calls, mut users) = (Calls::default(), Vec::new());
        for function in &functions {
            let column = rows.inputs.column_by_name(&function.input);
            let texts =
                column.and_then(|column| column.as_string_opt::<i64>()).ok_or_else(|| {
                    Failure::internal(format!("the input {} is no text", function.input))
                })?;
            let has_text = |row: &usize| {
                rows.wanted.value(*row) && texts.is_valid(*row) && !texts.value(*row).is_empty()
            };
            let places: Vec<usize> = (first..end).filter(has_text).collect();
            if places.is_empty() {
                continue;
            }
            let texts = places.iter().map(|row| texts.value(*row).to_owned()).collect();
            users.push((calls.join_to_store(function, texts)?, function, places));
        }
        let answers = calls.run(|source, request| embed(engines, source, request)).await?;
        for (call, function, places) in users {
            let made = columns.iter_mut().zip(&rows.fields);
            for (column, field) in made.filter(|(_, f)| function.outputs().any(|o| f.name == o)) {
                column.put(&answers[call], function, field, &places)?;
            }
        }
    }
    columns.into_iter().zip(&rows.fields).map(|(column, field)| column.finish(field)).collect()
}

/// A column of vectors that is put together bit by bit.
enum Refilled {
    Dense { values: Vec<f32>, valid: Vec<bool> },
    Sparse(Vec<Option<Vec<u8>>>),
}

impl Refilled {
    fn new(field: &Field, rows: usize) -> Self {
        match field.data_type.dim() {
            Some(dim) => {
                Self::Dense { values: vec![0.0; rows * dim as usize], valid: vec![false; rows] }
            }
            None => Self::Sparse(vec![None; rows]),
        }
    }

    fn put(
        &mut self,
        answer: &Answer,
        function: &ModelFunction,
        field: &Field,
        places: &[usize],
    ) -> Result<(), Failure> {
        match self {
            Self::Dense { values, valid } => {
                let dim = field.data_type.dim().unwrap_or(0) as usize;
                let made = answer.dense(function, dim, places.len())?;
                for (vector, &row) in made.chunks_exact(dim.max(1)).zip(places) {
                    values[row * dim..][..dim].copy_from_slice(vector);
                    valid[row] = true;
                }
            }
            Self::Sparse(rows) => {
                let made = answer.sparse(function, places.len())?;
                for (vector, &row) in made.iter().zip(places) {
                    rows[row] = Some(wire(vector));
                }
            }
        }
        Ok(())
    }

    fn finish(self, field: &Field) -> Result<ArrayRef, Failure> {
        match self {
            Self::Dense { values, valid } => {
                let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
                let dim = field.data_type.dim().unwrap_or(0) as usize;
                dense_list(values.into(), dim, nulls)
            }
            Self::Sparse(rows) => Ok(Arc::new(LargeBinaryArray::from_iter(rows))),
        }
    }
}

/// Makes the query vectors of the legs of one request; `None` for legs that bring their own.
///
/// # Errors
/// Code 2400 when a text is empty or a model fails.
pub async fn queries(
    engines: Engines<'_>,
    legs: &[Option<&TextQuery>],
) -> Result<Vec<Option<QueryRows>>, Failure> {
    queries_with(legs, |source, request| embed(engines, source, request)).await
}

async fn queries_with<F>(
    legs: &[Option<&TextQuery>],
    run: impl Fn(Source, EmbedRequest) -> F,
) -> Result<Vec<Option<QueryRows>>, Failure>
where
    F: Future<Output = Result<Embeddings, Failure>>,
{
    let mut calls = Calls::default();
    let mut users = Vec::with_capacity(legs.len());
    for leg in legs {
        let Some(leg) = leg else {
            users.push(None);
            continue;
        };
        let outputs = if leg.sparse { Outputs::SPARSE } else { Outputs::DENSE };
        let request = EmbedRequest {
            max_length: leg.function.max_length,
            prompt: leg.function.search_prompt.clone(),
            unnormalized: leg.function.unnormalized,
            ..EmbedRequest::new(leg.texts.clone(), outputs, Mode::Search)
        };
        users.push(Some((calls.join(&leg.function.source, request)?, leg)));
    }
    let results = calls.run(run).await?;
    users
        .into_iter()
        .map(|user| {
            user.map(|(call, leg)| {
                let (result, count) = (&results[call], leg.texts.len());
                if leg.sparse {
                    result.sparse_queries(&leg.function, count)
                } else {
                    result.dense_queries(&leg.function, leg.dim, count)
                }
            })
            .transpose()
        })
        .collect()
}

async fn embed(
    engines: Engines<'_>,
    source: Source,
    request: EmbedRequest,
) -> Result<Embeddings, Failure> {
    engines.embed(&source, request).await
}

/// Whether all outputs of a function are there already (kept by a partial update).
fn is_filled(schema: &Schema, columns: &Columns, function: &ModelFunction) -> bool {
    let has = |name: &String| {
        let position = schema.fields.iter().position(|field| field.name == *name);
        position.is_some_and(|position| columns.get(position).is_some())
    };
    [&function.dense, &function.sparse].into_iter().flatten().all(has)
}

/// The texts of a function's input column.
fn input(
    schema: &Schema,
    columns: &Columns,
    function: &ModelFunction,
) -> Result<Vec<String>, Failure> {
    let position = schema.fields.iter().position(|field| field.name == function.input);
    let column = position.and_then(|position| columns.get(position)).ok_or_else(|| {
        Failure::invalid(format!(
            "fieldSchema({}) has no corresponding fieldData pass in: function {} reads it",
            function.input, function.name
        ))
    })?;
    let texts = column.as_string_opt::<i64>().ok_or_else(|| {
        Failure::internal(format!(
            "the input {} of function {} is no text",
            function.input, function.name
        ))
    })?;
    Ok(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
}

/// Position and width of an output field.
fn output(schema: &Schema, name: &str) -> Result<(usize, usize), Failure> {
    let position = schema.fields.iter().position(|field| field.name == name);
    let position =
        position.ok_or_else(|| Failure::internal(format!("function output {name} is no field")))?;
    let dim = schema.fields[position].data_type.dim().unwrap_or(0);
    Ok((position, dim as usize))
}

/// Calls of models, each shared by everybody who wants a part of its answer.
#[derive(Debug, Default)]
struct Calls(Vec<(Source, EmbedRequest)>);

impl Calls {
    /// Adds what a function does with texts that are stored; returns the number of the call.
    fn join_to_store(
        &mut self,
        function: &ModelFunction,
        texts: Vec<String>,
    ) -> Result<usize, Failure> {
        let outputs = Outputs {
            dense: function.dense.is_some(),
            sparse: function.sparse.is_some(),
            colbert: false,
        };
        let request = EmbedRequest {
            max_length: function.max_length,
            prompt: function.insert_prompt.clone(),
            unnormalized: function.unnormalized,
            ..EmbedRequest::new(texts, outputs, Mode::Insert)
        };
        self.join(&function.source, request)
    }

    /// Adds a call, or widens an equal one that is already there; returns its number.
    fn join(&mut self, source: &Source, request: EmbedRequest) -> Result<usize, Failure> {
        if request.texts.iter().any(String::is_empty) {
            return Err(Failure::new(
                Code::FunctionFailed,
                "There is an empty string in the input data, TextEmbedding function does not support empty text",
            ));
        }
        let same = |(other_source, other): &(Source, EmbedRequest)| {
            // How long dense vectors are says nothing of a call for sparse ones.
            let as_long = other.unnormalized == request.unnormalized
                || !(other.outputs.dense && request.outputs.dense);
            other_source == source
                && as_long
                && other.mode == request.mode
                && other.max_length == request.max_length
                && other.prompt == request.prompt
                && other.texts == request.texts
        };
        if let Some(call) = self.0.iter().position(same) {
            let shared = &mut self.0[call].1;
            if request.outputs.dense {
                shared.unnormalized = request.unnormalized;
            }
            shared.outputs = shared.outputs.union(request.outputs);
            return Ok(call);
        }
        self.0.push((source.clone(), request));
        Ok(self.0.len() - 1)
    }

    /// Runs all calls at once.
    async fn run<F>(self, run: impl Fn(Source, EmbedRequest) -> F) -> Result<Vec<Answer>, Failure>
    where
        F: Future<Output = Result<Embeddings, Failure>>,
    {
        let answers =
            try_join_all(self.0.into_iter().map(|(source, request)| run(source, request))).await?;
        Ok(answers.into_iter().map(Answer::new).collect())
    }
}

/// The vectors of one call.
struct Answer {
    dense: Option<(usize, ScalarBuffer<f32>)>,
    sparse: Option<Vec<Vec<(u32, f32)>>>,
}

impl Answer {
    fn new(embeddings: Embeddings) -> Self {
        Self {
            dense: embeddings.dense.map(|values| (embeddings.dim, ScalarBuffer::from(values))),
            sparse: embeddings.sparse,
        }
    }

    /// The dense rows, cut if the function says so, checked for their number and width.
    fn dense(
        &self,
        function: &ModelFunction,
        dim: usize,
        rows: usize,
    ) -> Result<ScalarBuffer<f32>, Failure> {
        match &self.dense {
            Some((width, values)) if *width == dim && values.len() == rows * dim => {
                Ok(values.clone())
            }
            // Cut here and not by the model, so that fields of other widths share its run.
            Some((width, values))
                if function.dim == Some(dim) && *width > dim && values.len() == rows * width =>
            {
                Ok(if function.unnormalized {
                    values.chunks_exact(*width).flat_map(|row| &row[..dim]).copied().collect()
                } else {
                    shorten(values, *width, dim).into()
                })
            }
            Some((width, values)) => Err(Failure::new(
                Code::FunctionFailed,
                format!(
                    "function failed: model {} gave {} numbers of width {width}, function {} expects {rows} rows of {dim} dimensions",
                    function.source,
                    values.len(),
                    function.name
                ),
            )),
            None => Err(no_output(function, "dense")),
        }
    }

    fn sparse(&self, function: &ModelFunction, rows: usize) -> Result<&[Vec<(u32, f32)>], Failure> {
        match &self.sparse {
            Some(vectors) if vectors.len() == rows => Ok(vectors),
            Some(_) | None => Err(no_output(function, "sparse")),
        }
    }

    fn dense_column(
        &self,
        function: &ModelFunction,
        dim: usize,
        rows: usize,
    ) -> Result<ArrayRef, Failure> {
        dense_list(self.dense(function, dim, rows)?, dim, None)
    }

    fn sparse_column(&self, function: &ModelFunction, rows: usize) -> Result<ArrayRef, Failure> {
        let rows: Vec<_> = self.sparse(function, rows)?.iter().map(|row| wire(row)).collect();
        let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
        let values = Buffer::from_vec(rows.concat());
        Ok(Arc::new(LargeBinaryArray::new(offsets, values, None)))
    }

    fn dense_queries(
        &self,
        function: &ModelFunction,
        dim: usize,
        rows: usize,
    ) -> Result<QueryRows, Failure> {
        let values = self.dense(function, dim, rows)?;
        let row =
            |row: &[f32]| row.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        Ok(QueryRows::Dense(values.chunks_exact(dim.max(1)).map(|v| Bytes::from(row(v))).collect()))
    }

    fn sparse_queries(&self, function: &ModelFunction, rows: usize) -> Result<QueryRows, Failure> {
        let rows = self.sparse(function, rows)?;
        Ok(QueryRows::Sparse(rows.iter().map(|row| Bytes::from(wire(row))).collect()))
    }
}

fn dense_list(
    values: ScalarBuffer<f32>,
    dim: usize,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, Failure> {
    let list = FixedSizeListArray::try_new(
        Arc::new(ArrowField::new("item", ArrowType::Float32, false)),
        i32::try_from(dim).unwrap_or(i32::MAX),
        Arc::new(Float32Array::new(values, None)),
        nulls,
    );
    Ok(Arc::new(list.map_err(|error| Failure::internal(error.to_string()))?))
}

fn no_output(function: &ModelFunction, kind: &str) -> Failure {
    Failure::new(
        Code::FunctionFailed,
        format!(
            "function failed: model {} gave no {kind} vectors for function {}",
            function.source, function.name
        ),
    )
}

/// A sparse row in wire layout; models give ascending ids.
fn wire(row: &[(u32, f32)]) -> Vec<u8> {
    row.iter()
        .flat_map(|(index, value)| index.to_le_bytes().into_iter().chain(value.to_le_bytes()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn function(name: &str, model: &str) -> ModelFunction {
        ModelFunction {
            name: name.into(),
            input: "text".into(),
            source: Source::Model(model.into()),
            dense: Some("dense".into()),
            sparse: Some("sparse".into()),
            insert_prompt: None,
            search_prompt: None,
            max_length: None,
            dim: None,
            unnormalized: false,
        }
    }

    fn leg(model: &str, sparse: bool, texts: &[&str]) -> TextQuery {
        TextQuery {
            texts: texts.iter().map(|text| (*text).into()).collect(),
            function: function("f", model),
            sparse,
            dim: 2,
        }
    }

    /// A model that writes the length of a text into its vectors and notes what it was asked.
    async fn model(
        calls: &Mutex<Vec<(String, Outputs)>>,
        source: Source,
        request: EmbedRequest,
    ) -> Result<Embeddings, Failure> {
        calls.lock().unwrap().push((source.to_string(), request.outputs));
        let lengths: Vec<f32> = request.texts.iter().map(|text| text.len() as f32).collect();
        Ok(Embeddings {
            dense: request.outputs.dense.then(|| lengths.iter().flat_map(|l| [*l, 1.0]).collect()),
            dim: 2,
            sparse: request.outputs.sparse.then(|| lengths.iter().map(|l| vec![(9, *l)]).collect()),
            ..Embeddings::default()
        })
    }

    #[tokio::test]
    async fn legs_with_the_same_text_and_model_share_one_run() {
        let calls = Mutex::new(Vec::new());
        let (dense, sparse) = (leg("m", false, &["kite"]), leg("m", true, &["kite"]));
        let (other, elsewhere) = (leg("m", false, &["hawk!"]), leg("n", false, &["kite"]));
        let legs = [Some(&dense), None, Some(&sparse), Some(&other), Some(&elsewhere)];
        let rows = queries_with(&legs, |name, request| model(&calls, name, request)).await.unwrap();
        let both = Outputs { dense: true, sparse: true, colbert: false };
        assert_eq!(
            *calls.lock().unwrap(),
            [
                ("m".to_owned(), both),
                ("m".to_owned(), Outputs::DENSE),
                ("n".to_owned(), Outputs::DENSE)
            ]
        );
        let dense_row =
            |length: f32| [length, 1.0].into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>();
        assert_eq!(rows[0], Some(QueryRows::Dense(vec![dense_row(4.0).into()])));
        assert_eq!(rows[1], None);
        assert_eq!(rows[2], Some(QueryRows::Sparse(vec![wire(&[(9, 4.0)]).into()])));
        assert_eq!(rows[3], Some(QueryRows::Dense(vec![dense_row(5.0).into()])));
    }

    #[tokio::test]
    async fn fields_of_two_widths_share_one_run() {
        let calls = Mutex::new(Vec::new());
        let whole = leg("m", false, &["kite"]);
        let mut short = leg("m", false, &["kite"]);
        (short.dim, short.function.dim) = (1, Some(1));
        let legs = [Some(&whole), Some(&short)];
        let rows = queries_with(&legs, |name, request| model(&calls, name, request)).await.unwrap();
        assert_eq!(*calls.lock().unwrap(), [("m".to_owned(), Outputs::DENSE)]);
        let row = |numbers: &[f32]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            Some(QueryRows::Dense(vec![bytes.into()]))
        };
        assert_eq!(rows, [row(&[4.0, 1.0]), row(&[1.0])]);
    }

    #[tokio::test]
    async fn dense_vectors_left_as_long_as_they_come_take_a_run_of_their_own() {
        let calls = Mutex::new(Vec::new());
        let asked = Mutex::new(Vec::new());
        let query = |sparse: bool, unnormalized: bool| {
            let mut leg = leg("m", sparse, &["kite"]);
            leg.function.unnormalized = unnormalized;
            leg
        };
        let legs =
            [query(true, false), query(false, true), query(false, false), query(false, true)];
        let run = |source, request: EmbedRequest| {
            asked.lock().unwrap().push(request.unnormalized);
            model(&calls, source, request)
        };
        queries_with(&legs.each_ref().map(Some), run).await.unwrap();
        let both = Outputs { dense: true, sparse: true, colbert: false };
        let outputs: Vec<Outputs> = calls.lock().unwrap().iter().map(|call| call.1).collect();
        assert_eq!(
            (outputs, asked.into_inner().unwrap()),
            (vec![both, Outputs::DENSE], vec![true, false])
        );
    }

    #[tokio::test]
    async fn empty_texts_and_wrong_widths_are_function_failures() {
        let calls = Mutex::new(Vec::new());
        let empty = leg("m", false, &["a", ""]);
        let run = |name, request| model(&calls, name, request);
        let failure = queries_with(&[Some(&empty)], run).await.unwrap_err();
        assert_eq!(failure.code(), Code::FunctionFailed);
        assert!(failure.reason().contains("empty string"), "{failure}");
        let mut wide = leg("m", false, &["a"]);
        wide.dim = 3;
        let failure = queries_with(&[Some(&wide)], |n, r| model(&calls, n, r)).await.unwrap_err();
        assert!(failure.reason().contains("3 dimensions"), "{failure}");
    }
}
