//! Schemas and their fields.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};

use super::*;
use crate::segment::testing;

fn field(name: &str, data_type: DataType) -> Field {
    Field { nullable: false, ..testing::field(name, data_type) }
}

fn every_type() -> Vec<DataType> {
    use DataType::*;
    let array = |element| Array { element: Box::new(element), max_capacity: 4 };
    vec![
        Bool,
        Int8,
        Int16,
        Int32,
        Int64,
        Float,
        Double,
        VarChar { max_length: 8 },
        Json,
        array(Int64),
        array(VarChar { max_length: 3 }),
        array(Bool),
        FloatVector { dim: 4 },
        Float16Vector { dim: 4 },
        BFloat16Vector { dim: 4 },
        Int8Vector { dim: 4 },
        BinaryVector { dim: 16 },
        SparseFloatVector,
    ]
}

fn schema() -> Schema {
    let mut fields = vec![Field { primary_key: true, ..field("id", DataType::Int64) }];
    for (i, data_type) in every_type().into_iter().enumerate() {
        fields.push(Field { nullable: true, ..field(&format!("f{i}"), data_type) });
    }
    fields.push(Field { dynamic: true, ..field(META, DataType::Json) });
    Schema {
        description: String::new(),
        fields,
        enable_dynamic_field: true,
        functions: vec![],
        properties: vec![],
        version: 0,
        pending: vec![],
        next_field: 0,
    }
}

#[test]
fn a_schema_survives_json() {
    let schema = schema();
    let text = serde_json::to_string(&schema).unwrap();
    assert_eq!(serde_json::from_str::<Schema>(&text).unwrap(), schema);
}

#[test]
fn every_type_reads_as_null_where_the_field_is_absent() {
    let schema = schema();
    schema.validate().unwrap();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2, 3]))];
    for field in &schema.fields[1..] {
        let column = field.absent(3);
        assert_eq!(column.data_type(), &field.data_type.to_arrow(), "{}", field.name);
        assert_eq!(column.null_count(), if field.dynamic { 0 } else { 3 }, "{}", field.name);
        columns.push(column);
    }
    RecordBatch::try_new(schema.to_arrow(), columns).unwrap();
    assert_eq!(schema.dynamic().unwrap().absent(1).as_binary::<i64>().value(0), b"{}");
}

#[test]
fn a_default_wins_over_null_and_must_fit() {
    let mut with =
        Field { nullable: true, default: Some(Value::Int(7)), ..field("n", DataType::Int64) };
    assert_eq!(with.absent(2).as_primitive::<Int64Type>().values(), &[7, 7]);
    for (data_type, value) in [
        (DataType::Int8, Value::Int(128)),
        (DataType::Int64, Value::Float(1.0)),
        (DataType::VarChar { max_length: 2 }, Value::String("abc".into())),
        (DataType::Json, Value::String("{}".into())),
    ] {
        with.data_type = data_type;
        with.default = Some(value);
        assert!(with.validate().is_err(), "{with:?}");
    }
}

#[test]
fn broken_schemas_are_refused_with_the_name_of_the_field() {
    let broken = |change: fn(&mut Schema)| {
        let mut schema = schema();
        change(&mut schema);
        schema.validate().expect_err("must be refused").0
    };
    assert!(broken(|s| s.fields[0].primary_key = false).contains("exactly one primary key"));
    assert!(broken(|s| s.fields[1].primary_key = true).contains("`f0`"));
    assert!(broken(|s| s.fields[2].name = "id".into()).contains("`id` occurs twice"));
    assert!(broken(|s| s.fields[1].name = TS.into()).contains("reserved"));
    assert!(broken(|s| s.fields[1].name = META.into()).contains(META));
    assert!(broken(|s| s.enable_dynamic_field = false).contains(META));
    assert!(broken(|s| s.fields[0].nullable = true).contains("`id`"));
    assert!(broken(|s| s.fields[1].auto_id = true).contains("`f0`"));
    assert!(broken(|s| s.fields[1].partition_key = true).contains("`f0`"));
    assert!(broken(|s| s.fields[1].data_type = DataType::FloatVector { dim: 0 }).contains("`f0`"));
    assert!(
        broken(|s| s.fields[1].data_type = DataType::BinaryVector { dim: 12 })
            .contains("multiple of 8")
    );
    assert!(
        broken(|s| {
            s.fields[1].data_type =
                DataType::Array { element: Box::new(DataType::Json), max_capacity: 1 };
        })
        .contains("JSON")
    );
    assert!(
        broken(|s| {
            s.functions.push(FunctionDef {
                id: 0,
                name: "bm25".into(),
                description: String::new(),
                kind: 1,
                inputs: vec!["nope".into()],
                outputs: vec![],
                params: vec![],
            });
        })
        .contains("`nope`")
    );
}
