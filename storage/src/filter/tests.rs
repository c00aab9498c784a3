//! The language as a whole: tables from the contract, and hostile text.

mod random;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float32Builder, Float64Builder, Int8Builder, Int32Builder, Int64Builder,
    LargeBinaryBuilder, LargeListBuilder, LargeStringBuilder, PrimitiveBuilder,
};
use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use serde_json::json;

use elanus_index::{Cancel, InMemory, Progress, TermIndex};

use super::lookup::{Lookups, Step, WHATEVER_IT_COSTS};
use super::oracle::{Row, Val};
use super::value::Num;
use super::*;
use crate::catalog::{Grams, JsonCast, JsonPath, TermsDef};
use crate::schema::DataType;
use crate::segment::terms::sections;

fn field(id: i64, name: &str, data_type: DataType) -> Field {
    Field {
        id,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: name != "id",
        default: None,
        primary_key: name == "id",
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: name == "$meta",
        function_output: false,
        type_params: vec![],
        column: None,
    }
}

const FIELDS: [&str; 11] =
    ["id", "tiny", "int", "single", "double", "text", "flag", "ints", "tags", "doc", "$meta"];

fn schema() -> Schema {
    let array = |element| DataType::Array { element: Box::new(element), max_capacity: 8 };
    let text = || DataType::VarChar { max_length: 64 };
    let types = [
        DataType::Int64,
        DataType::Int8,
        DataType::Int32,
        DataType::Float,
        DataType::Double,
        text(),
        DataType::Bool,
        array(DataType::Int64),
        array(text()),
        DataType::Json,
        DataType::Json,
    ];
    let mut fields: Vec<Field> =
        (100..).zip(FIELDS.iter().zip(types)).map(|(id, (name, t))| field(id, name, t)).collect();
    fields.insert(10, field(200, "vector", DataType::FloatVector { dim: 2 }));
    let schema = Schema {
        description: String::new(),
        fields,
        enable_dynamic_field: true,
        functions: vec![],
        properties: vec![],
        version: 1,
        pending: vec![],
        next_field: 0,
    };
    schema.validate().unwrap();
    schema
}

/// The same without dynamic keys.
fn strict() -> Schema {
    let mut schema = schema();
    schema.fields.pop();
    schema.enable_dynamic_field = false;
    schema
}

fn primitive<T: ArrowPrimitiveType>(
    rows: &[Row],
    name: &str,
    value: impl Fn(&Val) -> T::Native,
) -> ArrayRef {
    let mut builder = PrimitiveBuilder::<T>::new();
    for row in rows {
        builder.append_option(row.get(name).map(&value));
    }
    Arc::new(builder.finish())
}

fn int_of(value: &Val) -> i64 {
    match value {
        Val::Num(Num::Int(int)) => *int as i64,
        other => panic!("{other:?} is no integer"),
    }
}

fn text_of(value: &Val) -> &str {
    match value {
        Val::Text(text) => text,
        other => panic!("{other:?} is no text"),
    }
}

fn batch(rows: &[Row]) -> RecordBatch {
    type I8 = <Int8Builder as Primitive>::Type;
    type I32 = <Int32Builder as Primitive>::Type;
    type I64 = <Int64Builder as Primitive>::Type;
    type F32 = <Float32Builder as Primitive>::Type;
    type F64 = <Float64Builder as Primitive>::Type;
    trait Primitive {
        type Type: ArrowPrimitiveType;
    }
    impl<T: ArrowPrimitiveType> Primitive for PrimitiveBuilder<T> {
        type Type = T;
    }

    let mut text = LargeStringBuilder::new();
    let mut flag = BooleanBuilder::new();
    let item = |t| ArrowField::new("item", t, false);
    let mut ints = LargeListBuilder::new(Int64Builder::new()).with_field(item(ArrowType::Int64));
    let mut tags =
        LargeListBuilder::new(LargeStringBuilder::new()).with_field(item(ArrowType::LargeUtf8));
    let (mut doc, mut meta) = (LargeBinaryBuilder::new(), LargeBinaryBuilder::new());
    for row in rows {
        text.append_option(row.get("text").map(text_of));
        flag.append_option(row.get("flag").map(|value| *value == Val::Bool(true)));
        match row.get("ints") {
            Some(Val::List(items)) => ints.append_value(items.iter().map(|i| Some(int_of(i)))),
            _ => ints.append_null(),
        }
        match row.get("tags") {
            Some(Val::List(items)) => tags.append_value(items.iter().map(|t| Some(text_of(t)))),
            _ => tags.append_null(),
        }
        for (name, builder) in [("doc", &mut doc), ("$meta", &mut meta)] {
            builder.append_option(row.get(name).map(|value| match value {
                Val::Json(json) => json.to_string(),
                other => panic!("{other:?} is no JSON"),
            }));
        }
    }
    let vector = schema().field("vector").unwrap().absent(rows.len());
    let columns: Vec<ArrayRef> = vec![
        primitive::<I64>(rows, "id", int_of),
        primitive::<I8>(rows, "tiny", |value| int_of(value) as i8),
        primitive::<I32>(rows, "int", |value| int_of(value) as i32),
        primitive::<F32>(rows, "single", |value| match value {
            Val::Single(value) => *value,
            other => panic!("{other:?}"),
        }),
        primitive::<F64>(rows, "double", |value| match value {
            Val::Num(Num::Float(value)) => *value,
            other => panic!("{other:?}"),
        }),
        Arc::new(text.finish()),
        Arc::new(flag.finish()),
        Arc::new(ints.finish()),
        Arc::new(tags.finish()),
        Arc::new(doc.finish()),
        vector,
        Arc::new(meta.finish()),
    ];
    RecordBatch::try_new(schema().to_arrow(), columns).unwrap()
}

/// Rows with every index that there can be.
struct Indexed<'a> {
    batch: &'a RecordBatch,
    terms: HashMap<i64, Vec<Terms>>,
}

impl<'a> Indexed<'a> {
    fn new(batch: &'a RecordBatch) -> Self {
        let mut terms = HashMap::new();
        for field in &schema().fields {
            let of_field = definitions(field).into_iter().map(|def| {
                let column = Columns::column(batch, field).unwrap();
                let (progress, never) = (Progress::default(), Cancel::never());
                let sections = sections(&def, &column, usize::MAX, &progress, &never).unwrap();
                let index = TermIndex::open(&InMemory::new(sections, batch.num_rows())).unwrap();
                Terms { def, index: Arc::new(index) }
            });
            terms.insert(field.id, of_field.collect());
        }
        Self { batch, terms }
    }
}

impl Columns for Indexed<'_> {
    fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
        Columns::column(self.batch, field)
    }

    fn terms(&self, field: &Field, wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
        self.terms[&field.id].iter().filter(|terms| wanted(&terms.def)).cloned().collect()
    }
}

/// The indexes that a field can have.
fn definitions(field: &Field) -> Vec<TermsDef> {
    let grams = |min, max| Some(Grams { min, max });
    match field.data_type {
        DataType::Json => {
            let paths = match field.name.as_str() {
                "doc" => ["doc", "doc[\"a\"]", "doc[\"a\"][\"b\"]", "doc[0]", "doc[\"b\"]"],
                _ => ["n", "a", "b", "a[1]", "a[\"n\"]"],
            };
            let mut defs = Vec::new();
            for path in paths {
                let (of, steps) = json_path(path, &schema()).unwrap();
                assert_eq!(of, field.name);
                for cast in [JsonCast::Bool, JsonCast::Double, JsonCast::VarChar] {
                    for array in [false, true] {
                        let path = Some(JsonPath { steps: steps.clone(), cast, array });
                        defs.push(TermsDef { path, grams: None });
                    }
                }
                let path = JsonPath { steps, cast: JsonCast::VarChar, array: false };
                defs.push(TermsDef { path: Some(path), grams: grams(1, 2) });
            }
            defs
        }
        DataType::VarChar { .. } => {
            vec![TermsDef::default(), TermsDef { path: None, grams: grams(2, 3) }]
        }
        _ if field.data_type.is_vector() => vec![],
        _ => vec![TermsDef::default()],
    }
}

fn num(value: i64) -> Val {
    Val::Num(Num::Int(value.into()))
}

/// Seven rows with something of everything; row 6 has nulls wherever it can.
fn sample() -> Vec<Row> {
    let metas = [
        json!({"color": "red", "n": 1, "deep": {"list": [1, "a", [2, 3]]}, "on": true}),
        json!({"color": "green", "n": 2.5, "deep": {"list": []}, "on": false}),
        json!({"color": 7, "n": 9007199254740993_i64}),
        json!({"color": null, "n": "1"}),
        json!({"deep": {"list": [3, 3.0, null]}, "big": 18446744073709551615_u64}),
        json!({}),
        json!({"quote\"d": 1, "color": "blue"}),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for (i, meta) in (0_i64..).zip(metas) {
        let mut row = Row::new();
        row.insert("id".into(), num(i));
        row.insert("$meta".into(), Val::Json(meta));
        if i < 6 {
            row.insert("tiny".into(), num(i * 50 - 125));
            row.insert("int".into(), num(i * 10));
            row.insert("single".into(), Val::Single(i as f32 / 10.0));
            row.insert("double".into(), Val::Num(Num::Float(i as f64 / 10.0)));
            row.insert("text".into(), Val::Text(format!("name{i}%")));
            row.insert("flag".into(), Val::Bool(i % 2 == 0));
            row.insert("ints".into(), Val::List((0..i).map(num).collect()));
            let tags = ["x", "y", "zz"].iter().take(i as usize % 4);
            row.insert("tags".into(), Val::List(tags.map(|t| Val::Text((*t).into())).collect()));
            row.insert("doc".into(), Val::Json(json!({"a": {"b": i}, "l": [i, i + 1]})));
        }
        rows.push(row);
    }
    rows
}

fn templates() -> Templates {
    Templates::from([
        ("five".into(), TemplateValue::Int(5)),
        ("half".into(), TemplateValue::Float(0.5)),
        ("name".into(), TemplateValue::String("name1%".into())),
        ("yes".into(), TemplateValue::Bool(true)),
        ("list".into(), TemplateValue::Array(vec![TemplateValue::Int(1), TemplateValue::Int(3)])),
        ("empty".into(), TemplateValue::Array(vec![])),
        ("mixed".into(), TemplateValue::Json(json!([1, "red", 2.5]))),
        ("blob".into(), TemplateValue::Bytes(Bytes::from_static(b"MRB1"))),
    ])
}

fn matching(filter: &str) -> Vec<u32> {
    let predicate = compile(filter, &schema(), &templates())
        .unwrap_or_else(|error| panic!("{}", error.render(filter)));
    predicate.eval(&batch(&sample())).unwrap().iter().collect()
}

fn error(filter: &str) -> String {
    match compile(filter, &schema(), &templates()) {
        Ok(_) => panic!("{filter} should be refused"),
        Err(error) => {
            assert!(error.span.end <= filter.len(), "{filter}: {:?}", error.span);
            error.message
        }
    }
}

#[test]
fn the_forms_of_the_contract_choose_their_rows() {
    for (filter, rows) in [
        // Comparisons, either way round, and chains.
        ("int > 30", &[4, 5][..]),
        ("30 < int", &[4, 5]),
        ("10 <= int <= 25", &[1, 2]),
        ("25 >= int > 10", &[2]),
        ("10 <= int <= 10", &[1]),
        ("int == 10 or int == 20 and flag", &[1, 2]),
        ("(int == 10 || int == 20) && flag", &[2]),
        ("INT == 10 OR id == 3", &[3]),
        // Exact over types and outside of ranges.
        ("tiny < 300", &[0, 1, 2, 3, 4, 5]),
        ("tiny > 300", &[]),
        ("not (tiny > 300)", &[0, 1, 2, 3, 4, 5]),
        ("tiny >= -125", &[0, 1, 2, 3, 4, 5]),
        ("int < 10.5", &[0, 1]),
        ("int == 10.5", &[]),
        ("int != 10.5", &[0, 1, 2, 3, 4, 5]),
        ("single == 0.1", &[1]),
        ("single > 0.1", &[2, 3, 4, 5]),
        ("double == 0.1", &[1]),
        ("double >= 0", &[0, 1, 2, 3, 4, 5]),
        ("double < 1e300", &[0, 1, 2, 3, 4, 5]),
        ("n == 9007199254740993", &[2]),
        ("n == 9007199254740992", &[]),
        ("big == 18446744073709551615.0", &[]),
        ("big > 1", &[4]),
        // Null is unknown.
        ("int != 10", &[0, 2, 3, 4, 5]),
        ("not int == 10", &[0, 2, 3, 4, 5]),
        ("int is null", &[6]),
        ("int is not null and flag", &[0, 2, 4]),
        ("int > 1000 or id == 6", &[6]),
        ("id == 6 and not (int > 1000)", &[]),
        ("tags is null", &[6]),
        ("doc IS NULL", &[6]),
        ("doc is not null", &[0, 1, 2, 3, 4, 5]),
        ("id is null", &[]),
        // Booleans.
        ("flag", &[0, 2, 4]),
        ("not flag", &[1, 3, 5]),
        ("!flag", &[1, 3, 5]),
        ("flag == false", &[1, 3, 5]),
        ("flag != true", &[1, 3, 5]),
        ("flag in [true]", &[0, 2, 4]),
        ("(int > 30) == false", &[0, 1, 2, 3]),
        ("true", &[0, 1, 2, 3, 4, 5, 6]),
        ("1 == 2", &[]),
        ("1 + 1 == 2", &[0, 1, 2, 3, 4, 5, 6]),
        // Lists.
        ("id in [1, 3, 99,]", &[1, 3]),
        ("id not in [1, 3]", &[0, 2, 4, 5, 6]),
        ("not (id in [1, 3])", &[0, 2, 4, 5, 6]),
        ("int in []", &[]),
        ("int not in []", &[0, 1, 2, 3, 4, 5]),
        ("int in [-0x0, 0b1010, 024]", &[0, 1, 2]),
        ("single in [0.1, 0]", &[0, 1]),
        ("tiny in [-125, 1000]", &[0]),
        ("text in ['name0%', r\"name3%\"]", &[0, 3]),
        ("text NOT IN ['name0%']", &[1, 2, 3, 4, 5]),
        ("color in ['red', 7]", &[0, 2]),
        ("color not in ['red', 7]", &[1, 6]),
        ("color not in ['red']", &[1, 6]),
        // Arithmetic.
        ("int + 5 > 40", &[4, 5]),
        ("5 + int > 40", &[4, 5]),
        ("int % 20 == 0", &[0, 2, 4]),
        ("int / 20 == 1", &[2, 3]),
        ("-int < -30", &[4, 5]),
        ("(int - 10) * 2 == 20", &[2]),
        ("double * 10 == 2", &[2]),
        ("n + 1 == 2", &[0]),
        ("n * 2 == 5", &[1]),
        ("ints[0] + 1 == 1", &[1, 2, 3, 4, 5]),
        ("array_length(ints) - 1 == 2", &[3]),
        ("int == 2 ** 3 + 2", &[1]),
        // Like.
        ("text like 'name1%'", &[1]),
        ("text like \"%e2_\"", &[2]),
        ("text like 'n%\\%'", &[0, 1, 2, 3, 4, 5]),
        ("text like 'name_\\\\%'", &[0, 1, 2, 3, 4, 5]),
        ("not (text like 'name1%')", &[0, 2, 3, 4, 5]),
        ("color LIKE '%re%'", &[0, 1]),
        ("tags[0] like 'x'", &[1, 2, 3, 5]),
        ("text =~ \"^name[12]\"", &[1, 2]),
        ("text !~ \"^name[12]\"", &[0, 3, 4, 5]),
        // JSON and dynamic keys.
        ("color == 'red'", &[0]),
        ("$meta[\"color\"] == 'red'", &[0]),
        ("color != 'red'", &[1, 6]),
        ("color < 'h'", &[1, 6]),
        ("color == 7", &[2]),
        ("n == 1", &[0]),
        ("n == 1.0", &[0]),
        ("n >= 2", &[1, 2]),
        ("n == \"1\"", &[3]),
        ("deep['list'][0] == 1", &[0]),
        ("deep[\"list\"][2][1] == 3", &[0]),
        ("deep['list'] == [1, 'a', [2, 3]]", &[0]),
        ("deep['list'] != [1, 'a', [2, 3]]", &[1, 4]),
        ("doc['a']['b'] >= 4", &[4, 5]),
        ("doc[\"l\"][1] == 3", &[2]),
        ("on", &[0]),
        ("not on", &[1]),
        ("on == true", &[0]),
        ("exists color", &[0, 1, 2, 6]),
        ("exists deep['list'][0]", &[0, 4]),
        ("not exists color", &[3, 4, 5]),
        ("color is null", &[3, 4, 5]),
        ("doc['a']['b'] is not null", &[0, 1, 2, 3, 4, 5]),
        ("$meta[\"quote\\\"d\"] == 1", &[6]),
        // Arrays.
        ("ints[1] == 1", &[2, 3, 4, 5]),
        ("ints[1] != 1", &[]),
        ("ints == [0, 1]", &[2]),
        ("ints != [0, 1]", &[0, 1, 3, 4, 5]),
        ("tags[1] in ['y']", &[2, 3]),
        ("array_length(tags) == 0", &[0, 4]),
        ("ARRAY_LENGTH(deep['list']) == 3", &[0, 4]),
        ("array_contains(ints, 3)", &[4, 5]),
        ("array_contains_all(ints, [1, 3])", &[4, 5]),
        ("array_contains_any(tags, ['zz', 'q'])", &[3]),
        ("not array_contains(tags, 'x')", &[0, 4]),
        ("json_contains(tags, 'x')", &[1, 2, 3, 5]),
        ("json_contains(deep['list'], [2, 3.0])", &[0]),
        ("json_contains(deep[\"list\"], 3)", &[4]),
        ("not JSON_CONTAINS(deep['list'], 3)", &[0, 1]),
        ("json_contains_all(deep['list'], [1, 'a'])", &[0]),
        ("json_contains_any(doc['l'], [1, 5])", &[0, 1, 4, 5]),
        ("array_contains_any(doc['l'], [1, 5])", &[0, 1, 4, 5]),
        ("array_contains_all(tags, [])", &[0, 1, 2, 3, 4, 5]),
        // Columns.
        ("tiny < int", &[0, 1, 2, 3]),
        ("double == single", &[0, 5]),
        ("id <= double", &[0]),
        ("text == text", &[0, 1, 2, 3, 4, 5]),
        // Templates.
        ("id < {five} and flag == {yes}", &[0, 2, 4]),
        ("double <= {half}", &[0, 1, 2, 3, 4, 5]),
        ("id in {list}", &[1, 3]),
        ("id in [{five}, 6]", &[5, 6]),
        ("id in {empty}", &[]),
        ("text == {name}", &[1]),
        ("color in {mixed}", &[0]),
        ("n in {mixed}", &[0, 1]),
        ("json_contains_any(deep['list'], {mixed})", &[0]),
        ("{yes}", &[0, 1, 2, 3, 4, 5, 6]),
        ("", &[0, 1, 2, 3, 4, 5, 6]),
        (" \n\t", &[0, 1, 2, 3, 4, 5, 6]),
    ] {
        assert_eq!(matching(filter), rows, "{filter}");
    }
}

#[test]
fn filters_that_mean_nothing_are_refused_with_a_reason() {
    for (filter, part) in [
        ("int >", "expected a value"),
        ("int > 5 flag", "expected an operator or the end, found `flag`"),
        ("(int > 5", "expected `)`, but the expression ends"),
        ("int = 5", "found `=`"),
        ("text == 'abc", "a string begins here and does not end"),
        ("int == 12abc", "`12abc` is not a number"),
        ("int == 99999999999999999999", "64 bits"),
        ("int == 9223372036854775808", "64 bits"),
        ("text == '\\q'", "unknown escape"),
        ("int in 5", "expected a list"),
        ("int in {five}", "must be a list"),
        ("int in [1, 'x']", "value 'x' in list cannot be casted to Int32"),
        ("text in [1]", "value '1' in list cannot be casted to VarChar"),
        ("int in [1.5]", "value '1.5' in list cannot be casted to Int32"),
        ("array_contains(tags, 1)", "value '1' in list cannot be casted to VarChar"),
        ("int", "predicate is not a boolean expression: int, data type: Int32"),
        ("1 + 1", "predicate is not a boolean expression: 1 + 1, data type: Int64"),
        ("array_length(ints)", "data type: Int64"),
        ("text == 5", "comparisons between VarChar and Int64 are not supported"),
        ("int == 'a'", "comparisons between Int32 and VarChar are not supported"),
        ("flag == 1", "comparisons between Bool and Int64 are not supported"),
        ("flag > true", "comparisons between Bool and Bool are not supported"),
        ("int > flag", "comparisons between Int32 and Bool are not supported"),
        ("color == doc['a']", "comparisons between JSON and JSON are not supported"),
        ("ints == 1", "comparisons between Array and Int64 are not supported"),
        ("vector == 1", "comparisons between FloatVector and Int64 are not supported"),
        ("vector is null", "`is null` is not supported on FloatVector"),
        ("int + id > 3", "arithmetic between two fields is not supported"),
        ("5 - int > 3", "constant on its right"),
        ("int / 0 == 1", "division by zero"),
        ("int % 0 == 1", "modulo by zero"),
        ("double % 2 == 1", "modulo can only apply on integer types"),
        ("int % 2.5 == 1", "modulo can only apply on integer types"),
        ("text + 1 == 2", "`+` cannot be applied to VarChar"),
        ("int ** 2 == 4", "constants only"),
        ("int & 1 == 1", "bit operator"),
        ("int & 1", "the bit operator `&` is not supported"),
        ("int << 1 == 2", "the bit operator `<<` is not supported"),
        ("~int == 2", "the bit operator `~` is not supported"),
        ("5 < int < 3", "lowerbound is greater than upperbound"),
        ("5 < int < 5", "lowerbound is greater than upperbound"),
        ("1 < int > 0", "point the same way"),
        ("id < int < 5", "must be a constant"),
        ("1 < int < 3 < 4", "cannot be applied\u{0}|true or false"),
        ("int like 'a'", "like operation on non-string"),
        ("text like 5", "expected a string or a template"),
        ("text like {five}", "must be a string"),
        ("text =~ '('", "invalid regular expression"),
        ("exists int", "exists operations are only supported on json field now, got: Int32"),
        ("int[0] == 1", "nothing inside to index"),
        ("ints['a'] == 1", "takes one index"),
        ("ints[0][1] == 1", "takes one index"),
        ("ints[-1] == 1", "expected a key"),
        (
            "json_contains(int, 1)",
            "contains operation are only supported on json or array fields now, got: Int32",
        ),
        ("json_contains(ints)", "takes two arguments"),
        ("json_contains_any(ints, 1)", "must be an array"),
        ("array_length(text) == 1", "array_length operation are only supported"),
        ("int == {nope}", "the value of expression template variable name {nope} is not found"),
        ("int == {blob}", "comparisons between Int32 and Bytes are not supported"),
        ("text_match(text, 'a')", "the function `text_match` is not supported"),
        ("PHRASE_MATCH(text, 'a', 1)", "the function `phrase_match` is not supported"),
        ("membership_match(int, {blob}, type=roaring)", "`membership_match` is not supported"),
        ("random_sample(0.5)", "`random_sample` is not supported"),
        ("element_filter(s, $[a] > 1)", "`element_filter` is not supported"),
        ("match_least(s, $[a] > 1, threshold=2)", "`match_least` is not supported"),
        ("st_within(geo, 'POINT (1 1)')", "`st_within` is not supported"),
        ("s[sub] == 1", "struct fields and element filters are not supported"),
        ("$[sub] == 1", "struct fields"),
        ("$foo == 1", "field $foo not exist"),
        ("ts + INTERVAL 'P1D' >= ISO '2025-01-01'", "timestamptz"),
        ("json_contain(doc, 1)", "unknown function `json_contain`, did you mean `json_contains`?"),
        ("Json_Contains(doc, 1)", "unknown function"),
        ("-flag == 1", "`*` cannot be applied to Bool"),
        ("-'a' == 1", "`-` cannot be applied to VarChar"),
        ("'a' == 1", "comparisons between VarChar and Int64 are not supported"),
    ] {
        let message = error(filter);
        assert!(part.split('|').any(|part| message.contains(part)), "{filter}: {message}");
    }
}

#[test]
fn unknown_fields_are_named_and_similar_ones_offered() {
    let schema = strict();
    let text = "flag and\n\tsingel > 10 and true";
    let error = compile(text, &schema, &Templates::new()).unwrap_err();
    assert_eq!(error.message, "field singel not exist, did you mean `single`?");
    assert_eq!(
        error.render(text),
        "field singel not exist, did you mean `single`?\n   singel > 10 and true\n   ^^^^^^"
    );
    let error = compile("nothing == 1", &schema, &Templates::new()).unwrap_err();
    assert_eq!(error.to_string(), "field nothing not exist");
}

#[test]
fn a_caret_points_into_long_lines_and_past_the_end() {
    let text = format!("{}nope == 'é", "flag and ".repeat(40));
    let error = compile(&text, &schema(), &Templates::new()).unwrap_err();
    let rendered = error.render(&text);
    let lines: Vec<_> = rendered.lines().collect();
    assert!(lines[1].starts_with("  …") && lines[1].chars().count() < 140, "{rendered}");
    let caret = lines[2].chars().position(|c| c == '^').unwrap();
    assert_eq!(lines[1].chars().nth(caret), Some('\''));
    let error = compile("flag and", &schema(), &Templates::new()).unwrap_err();
    assert!(error.render("flag and").ends_with("\n  flag and\n          ^"));
    assert!(FilterError { span: 5..900, message: String::new() }.render("é").contains('^'));
}

#[test]
fn key_sets_are_seen_only_when_nothing_else_is_asked() {
    let keys = |filter| compile(filter, &schema(), &templates()).unwrap().key_set();
    assert_eq!(keys("id in [3, 1, 3]"), Some(Keys::Int(vec![3, 1, 3])));
    assert_eq!(keys("id in {list}"), Some(Keys::Int(vec![1, 3])));
    assert_eq!(keys("id == 5"), Some(Keys::Int(vec![5])));
    assert_eq!(keys("5 == id"), Some(Keys::Int(vec![5])));
    assert_eq!(keys("not (id != 5)"), Some(Keys::Int(vec![5])));
    for other in ["id in [1] and flag", "id not in [1]", "id > 5", "int == 5", "id + 1 == 5", ""] {
        assert_eq!(keys(other), None, "{other}");
    }
    let mut schema = schema();
    schema.fields[0].primary_key = false;
    schema.fields[5].primary_key = true;
    let keys = |filter| compile(filter, &schema, &templates()).unwrap().key_set();
    assert_eq!(keys("text in ['b', \"a\"]"), Some(Keys::Str(vec!["b".into(), "a".into()])));
    assert_eq!(keys("text == 'b'"), Some(Keys::Str(vec!["b".into()])));
}

#[test]
fn bounds_on_the_key_are_seen_through_conjunctions() {
    use Bound::{Excluded, Included, Unbounded};
    let range = |filter| compile(filter, &schema(), &templates()).unwrap().key_range();
    let int = Key::Int;
    assert_eq!(range("id > 5 and (int > 3 or flag)"), (Excluded(int(5)), Unbounded));
    assert_eq!(range("5 <= id < 9 and id >= 6"), (Included(int(6)), Excluded(int(9))));
    assert_eq!(range("id <= 9 and id < 9"), (Unbounded, Excluded(int(9))));
    assert_eq!(range("id == 5 and flag"), (Included(int(5)), Included(int(5))));
    assert_eq!(range("id > 5 or flag"), (Unbounded, Unbounded));
    assert_eq!(range("int > 5"), (Unbounded, Unbounded));
    let values = |filter, field| compile(filter, &schema(), &templates()).unwrap().values_of(field);
    assert_eq!(
        values("text in ['a','b'] and int > 3", "text"),
        Some(Keys::Str(vec!["a".into(), "b".into()]))
    );
    assert_eq!(values("text in ['a','b'] or int > 3", "text"), None);
    assert_eq!(values("int > 3", "text"), None);
}

#[test]
fn patterns_that_could_cost_too_much_are_refused() {
    let long = "a_".repeat(600);
    assert!(error(&format!("text like '%{long}b'")).contains("1024 bytes"));
    assert!(matching(&format!("text like '%{}'", long.replace('_', "b"))).is_empty());
}

#[test]
fn what_is_always_so_is_recognised() {
    let always = |filter| compile(filter, &schema(), &templates()).unwrap().is_always_true();
    for filter in ["true", "1 == 1", "", "not false", "flag or true", "{yes} and not (1 > 2)"] {
        assert!(always(filter), "{filter}");
    }
    for filter in ["flag", "int == int", "false", "tiny < 1000"] {
        assert!(!always(filter), "{filter}");
    }
    assert!(compile("flag and 1 > 2", &schema(), &templates()).unwrap().is_always_false());
}

#[test]
fn the_precedence_is_that_of_the_contract() {
    for (plain, grouped) in [
        ("a or b and c", "a or (b and c)"),
        ("a and b or c and d", "(a and b) or (c and d)"),
        ("not a == b and c", "(not (a == b)) and c"),
        ("! a in [1] or b", "(!(a in [1])) or b"),
        ("a | b ^ c & d == e", "a | (b ^ (c & (d == e)))"),
        ("a == b < c", "a == (b < c)"),
        ("a < b in [1]", "a < (b in [1])"),
        ("a + b in [1]", "(a + b) in [1]"),
        ("a << b + c * d", "a << (b + (c * d))"),
        ("a - b - c", "(a - b) - c"),
        ("a * -b ** c", "a * (-(b ** c))"),
        ("a ** b ** c", "(a ** b) ** c"),
        ("-a * b", "(-a) * b"),
        ("~a % b", "(~a) % b"),
        ("exists a[\"x\"] and b", "(exists (a[\"x\"])) and b"),
        ("a like 'x' == true", "(a like 'x') == true"),
        ("not a like 'x'", "not (a like 'x')"),
        ("a is null == b is not null", "(a is null) == (b is not null)"),
        ("not a is null", "not (a is null)"),
        ("1 < a <= 5 == b", "(1 < a <= 5) == b"),
        ("a =~ 'x' and b", "(a =~ 'x') and b"),
    ] {
        assert_eq!(parse::parse(plain).unwrap(), parse::parse(grouped).unwrap(), "{plain}");
    }
    assert!(parse::parse("a And b").is_err());
}

#[test]
fn giant_lists_are_read_in_a_loop() {
    let ids: Vec<String> = (0..200_000).map(|id| (id * 3).to_string()).collect();
    let predicate =
        compile(&format!("id in [{}]", ids.join(",")), &schema(), &Templates::new()).unwrap();
    assert_eq!(predicate.key_set().unwrap().len(), 200_000);
    assert_eq!(predicate.eval(&batch(&sample())).unwrap().iter().collect::<Vec<_>>(), [0, 3, 6]);
    let texts = format!("text in [{}]", "'name1%',".repeat(100_000));
    assert_eq!(matching(&texts), [1]);
    let terms: Vec<String> = (0..50_000).map(|id| format!("id == {id}")).collect();
    assert_eq!(matching(&terms.join(" or ")).len(), 7);
}

#[test]
fn deep_nesting_is_refused_without_exhausting_a_small_stack() {
    let check = || {
        let deep = 100_000;
        for text in [
            format!("{}flag{}", "(".repeat(deep), ")".repeat(deep)),
            format!("{}flag", "not ".repeat(deep)),
            format!("{}1 == 1", "-".repeat(deep)),
            format!("int {} == 1", "+ 1".repeat(deep)),
            format!("doc{} == 1", "[0]".repeat(deep)),
            format!("id in {}{}", "[".repeat(deep), "]".repeat(deep)),
            format!("{}int{} == 1", "array_length(".repeat(deep), ")".repeat(deep)),
            "(".repeat(deep),
            "flag and (flag or (".repeat(deep),
            format!("flag{}", " == flag".repeat(deep)),
        ] {
            let error = compile(&text, &schema(), &Templates::new()).unwrap_err();
            assert!(
                error.message.contains("1000 levels") || error.message.contains("128 brackets"),
                "{}",
                error.message
            );
        }
        // What is just allowed is also evaluated and dropped.
        for (before, middle, after, levels) in [
            ("not (int is not null and ", "flag", ")", 332),
            ("(", "flag", ")", 998),
            ("not ", "flag", "", 998),
            ("(id == 99 or (", "flag", "))", 332),
            ("", "int", " + 0", 990),
            ("-", "int", "", 990),
            ("(", "n", " * 1)", 990),
            ("(", "flag", ") == true", 495),
        ] {
            let mut text = format!("{}{middle}{}", before.repeat(levels), after.repeat(levels));
            if middle != "flag" {
                text.push_str(" > 5");
            }
            let predicate = compile(&text, &schema(), &Templates::new())
                .unwrap_or_else(|error| panic!("{before}: {error}"));
            assert!(predicate.eval(&batch(&sample())).unwrap().count() < 7);
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(check).unwrap().join().unwrap();
}

#[test]
fn evaluation_over_many_chunks_and_few_candidates_is_the_same() {
    let rows: Vec<Row> = sample().into_iter().cycle().take(40_000).collect();
    let batch = batch(&rows);
    for filter in ["int > 30 or color == 'red'", "text like '%1%' and n == 9 or flag", "id in [3]"]
    {
        let predicate = compile(filter, &schema(), &Templates::new()).unwrap();
        let few: Vec<u32> = matching(filter);
        let all = predicate.eval(&batch).unwrap();
        for row in 0..40_000 {
            assert_eq!(all.contains(row), few.contains(&(row % 7)), "{filter} at {row}");
        }
        let candidates = RowMask::from_fn(40_000, |row| row > 20_000 && row % 3 == 0);
        let mut expected = all.clone();
        expected.and_with(&candidates);
        let some = predicate.eval_within(&batch, &candidates, &elanus_index::Cancel::never());
        assert_eq!(some.unwrap(), expected);
        // A slice has offsets inside its buffers.
        let part = predicate.eval(&batch.slice(17_001, 9_999)).unwrap();
        assert_eq!(part, all.slice(17_001, 9_999));
    }
    let cancel = elanus_index::Cancel::never();
    cancel.flag().store(true, std::sync::atomic::Ordering::Relaxed);
    let predicate = compile("int > 30", &schema(), &Templates::new()).unwrap();
    let stopped = predicate.eval_within(&batch, &RowMask::all(40_000), &cancel);
    assert!(matches!(stopped, Err(Error::Search(elanus_index::Error::Cancelled))));
}

#[test]
fn a_column_of_another_type_is_an_error_and_an_absent_one_reads_as_absent() {
    let batch = batch(&sample());
    let mut wrong = schema();
    wrong.fields[2].data_type = DataType::Int64;
    let predicate = compile("int > 30", &wrong, &Templates::new()).unwrap();
    assert!(matches!(predicate.eval(&batch), Err(Error::Internal(text)) if text.contains("`int`")));
    let mut added = strict();
    added.fields.push(Field {
        default: Some(crate::schema::Value::Int(7)),
        ..field(300, "added", DataType::Int64)
    });
    let predicate = compile("added == 7", &added, &Templates::new()).unwrap();
    assert!(predicate.eval(&batch).unwrap().is_all());
}

#[test]
fn what_is_not_a_number_is_the_same_with_and_without_an_index() {
    let mut rows = sample();
    let doubles = [f64::NAN, -0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, 1.5];
    for (row, double) in rows.iter_mut().zip(doubles) {
        row.insert("double".into(), Val::Num(Num::Float(double)));
        row.insert("single".into(), Val::Single(double as f32));
    }
    let batch = batch(&rows);
    let indexed = Indexed::new(&batch);
    for field in ["double", "single"] {
        for test in [
            "== 0",
            "!= 0",
            "< 1.5",
            "<= 1.5",
            "> -1e308",
            ">= 1.5",
            "in [0, 1.5]",
            "not in [0]",
            "is null",
            "is not null",
        ] {
            let filter = format!("{field} {test}");
            let predicate = compile(&filter, &schema(), &templates()).unwrap();
            let plain = predicate.eval(&batch).unwrap();
            assert_eq!(predicate.eval(&indexed).unwrap(), plain, "{filter}");
        }
    }
}

#[test]
fn a_column_that_indexes_answer_for_is_not_read() {
    /// Rows of which only the indexes can be asked, and the paths of those that were.
    struct Unreadable<'a>(Indexed<'a>, RefCell<BTreeSet<String>>);
    impl Columns for Unreadable<'_> {
        fn rows(&self) -> usize {
            self.0.rows()
        }
        fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
            Err(Error::Internal(format!("{} is read", field.name)))
        }
        fn terms(&self, field: &Field, wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
            let of_path = |terms: &Terms| {
                format!("{:?}", terms.def.path.iter().map(|path| &path.steps).collect::<Vec<_>>())
            };
            let terms = self.0.terms(field, wanted);
            self.1.borrow_mut().extend(terms.iter().map(of_path));
            terms
        }
    }
    let batch = batch(&sample());
    let columns = Unreadable(Indexed::new(&batch), RefCell::default());
    let eval = |filter: &str| {
        compile(filter, &schema(), &templates()).unwrap().eval(&columns).map(|rows| rows.count())
    };
    assert_eq!(eval("int == 10").unwrap(), 1);
    assert_eq!(eval("int > 10 and text != \"name3%\"").unwrap(), 3);
    assert_eq!(eval("10 < int and text != \"name3%\" and int <= 40").unwrap(), 2);
    columns.1.take();
    assert_eq!(eval("array_contains(tags, \"y\") or n == 1").unwrap(), 3);
    assert_eq!(columns.1.take(), BTreeSet::from(["[]".into(), "[[Key(\"n\")]]".into()]));
    assert!(eval("int is null").unwrap_err().to_string().contains("int is read"));
}

/// Whether a filter over rows with every index is answered by these alone, where they count costs.
fn is_looked_up(filter: &str, columns: &dyn Columns, open: usize) -> bool {
    let predicate = compile(filter, &schema(), &templates()).unwrap();
    let never = Cancel::never();
    WHATEVER_IT_COSTS.set(false);
    let step = Lookups::new(&predicate.bundle, columns, &never).resolve(open);
    WHATEVER_IT_COSTS.set(true);
    matches!(step.unwrap(), Step::Known(_))
}

#[test]
fn what_looking_at_the_rows_costs_less_is_not_looked_up() {
    let rows: Vec<Row> = (0..20_000).map(|id| Row::from([("id".to_owned(), num(id))])).collect();
    let batch = batch(&rows);
    let indexed = Indexed::new(&batch);
    let listed = |members: i64| {
        let members: Vec<String> = (0..members).map(|id| (id * 7).to_string()).collect();
        format!("id in [{}]", members.join(","))
    };
    for (filter, open, looked_up) in [
        (listed(1), 20_000, true),
        (listed(900), 20_000, true),
        (listed(2_000), 20_000, false),
        (listed(900), 10_000, false),
        ("id == 7".to_owned(), 20_000, true),
        ("id == 7".to_owned(), 5, false),
        ("id > 9000".to_owned(), 20_000, false),
        ("id < 9100".to_owned(), 20_000, false),
        ("id > 9000 and id < 9100".to_owned(), 20_000, true),
        ("9000 < id <= 9100 and id != 9050".to_owned(), 20_000, true),
        ("id > 9100 and id < 9000".to_owned(), 20_000, true),
    ] {
        assert_eq!(is_looked_up(&filter, &indexed, open), looked_up, "{open}: {filter:.40}");
        let predicate = compile(&filter, &schema(), &templates()).unwrap();
        assert_eq!(predicate.eval(&indexed).unwrap(), predicate.eval(&batch).unwrap());
    }
}

#[test]
fn lookups_are_stopped_too() {
    let batch = batch(&sample());
    let indexed = Indexed::new(&batch);
    let stopped = Cancel::never();
    stopped.flag().store(true, std::sync::atomic::Ordering::Relaxed);
    for filter in ["id == 3", "id in [3, 4]", "text like '%1%'", "array_contains_all(ints, [1, 2])"]
    {
        let predicate = compile(filter, &schema(), &templates()).unwrap();
        let step = Lookups::new(&predicate.bundle, &indexed, &stopped).resolve(7);
        assert!(matches!(step, Err(Error::Search(elanus_index::Error::Cancelled))), "{filter}");
    }
}
