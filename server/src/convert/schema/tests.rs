use elanus_proto::codes::Code;
use elanus_proto::common::KeyValuePair;
use elanus_proto::schema::StructArrayFieldSchema;

use super::*;

fn kv(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_owned() }
}

fn wire_field(name: &str, data_type: Wire, params: &[(&str, &str)]) -> FieldSchema {
    FieldSchema {
        name: name.to_owned(),
        data_type: data_type.into(),
        type_params: params.iter().map(|(key, value)| kv(key, value)).collect(),
        ..Default::default()
    }
}

fn key() -> FieldSchema {
    FieldSchema { is_primary_key: true, ..wire_field("id", Wire::Int64, &[]) }
}

fn vector() -> FieldSchema {
    wire_field("vec", Wire::FloatVector, &[("dim", "4")])
}

fn with(fields: Vec<FieldSchema>) -> CollectionSchema {
    CollectionSchema { name: "books".to_owned(), fields, ..Default::default() }
}

fn read(schema: &CollectionSchema) -> Result<Schema, Failure> {
    decode(&schema.encode_to_vec(), &Limits::default())
}

#[track_caller]
fn refused(schema: &CollectionSchema, text: &str) {
    let failure = read(schema).unwrap_err();
    assert_eq!(failure.code(), Code::ParameterInvalid, "{failure}");
    assert!(failure.reason().contains(text), "{failure}");
}

/// A schema with something of everything.
fn rich() -> CollectionSchema {
    let value = |data| Some(ValueField { data: Some(data) });
    let fields = vec![
        FieldSchema {
            is_primary_key: true,
            auto_id: true,
            description: "the key".to_owned(),
            ..wire_field("id", Wire::VarChar, &[("max_length", "36")])
        },
        FieldSchema { is_partition_key: true, ..wire_field("tenant", Wire::Int64, &[]) },
        FieldSchema { is_clustering_key: true, ..wire_field("n16", Wire::Int16, &[]) },
        FieldSchema {
            default_value: value(Data::LongData(-7)),
            ..wire_field("n8", Wire::Int8, &[])
        },
        FieldSchema {
            default_value: value(Data::FloatData(0.1)),
            nullable: true,
            ..wire_field("f", Wire::Float, &[])
        },
        FieldSchema {
            default_value: value(Data::StringData("x".to_owned())),
            ..wire_field("word", Wire::VarChar, &[("max_length", "5")])
        },
        FieldSchema {
            default_value: value(Data::LongData(i64::MAX)),
            ..wire_field("long", Wire::Int64, &[("mmap.enabled", "True")])
        },
        FieldSchema { nullable: true, ..wire_field("json", Wire::Json, &[]) },
        FieldSchema {
            element_type: Wire::VarChar.into(),
            ..wire_field("tags", Wire::Array, &[("max_capacity", "9"), ("max_length", "10")])
        },
        wire_field("text", Wire::VarChar, &[("max_length", "\"65535\""), ("enable_match", "True")]),
        FieldSchema {
            is_function_output: true,
            ..wire_field("dense", Wire::FloatVector, &[("dim", "4")])
        },
        wire_field("sparse", Wire::SparseFloatVector, &[]),
        wire_field("half", Wire::Float16Vector, &[("dim", "4")]),
        wire_field("brain", Wire::BFloat16Vector, &[("dim", "4")]),
        wire_field("bytes", Wire::Int8Vector, &[("dim", "4")]),
        wire_field("bits", Wire::BinaryVector, &[("dim", "16")]),
    ];
    CollectionSchema {
        auto_id: true,
        description: "books and more".to_owned(),
        enable_dynamic_field: true,
        properties: vec![kv("a", "b")],
        functions: vec![FunctionSchema {
            name: "embed".to_owned(),
            description: "makes vectors".to_owned(),
            r#type: FunctionType::TextEmbedding.into(),
            input_field_names: vec!["text".to_owned()],
            output_field_names: vec!["dense".to_owned()],
            params: vec![kv("provider", "local"), kv("dim", "4")],
            ..Default::default()
        }],
        ..with(fields)
    }
}

#[test]
fn a_described_schema_equals_the_one_that_was_sent() {
    let sent = rich();
    let stored = read(&sent).unwrap();
    assert_eq!(stored.dynamic().map(|field| field.name.as_str()), Some(META));
    stored.validate().unwrap();
    let mut expected = sent;
    // The ids that the server fills in; here they are all zero still.
    expected.functions[0].input_field_ids = vec![0];
    expected.functions[0].output_field_ids = vec![0];
    assert_eq!(encode("books", "", &stored), expected);
}

#[test]
fn ids_are_the_stored_ones_in_fields_and_functions() {
    let mut stored = read(&rich()).unwrap();
    for (id, field) in (100..).zip(&mut stored.fields) {
        field.id = id;
    }
    let described = encode("books", "default", &stored);
    assert_eq!(described.fields[0].field_id, 100);
    assert_eq!(described.functions[0].input_field_ids, [109]);
    assert_eq!(described.functions[0].output_field_ids, [110]);
    assert_eq!(described.fields.len(), 16, "the hidden field is not listed");
}

#[test]
fn the_collections_auto_id_and_the_keys_are_one() {
    let schema = CollectionSchema { auto_id: true, ..with(vec![key(), vector()]) };
    let stored = read(&schema).unwrap();
    assert!(stored.primary().auto_id);
    let described = encode("books", "", &stored);
    assert!(described.auto_id && described.fields[0].auto_id);
}

#[test]
fn a_function_marks_its_output() {
    let mut schema = rich();
    schema.fields[10].is_function_output = false;
    assert!(read(&schema).unwrap().field("dense").unwrap().function_output);
}

#[test]
fn keys_are_checked() {
    refused(&with(vec![vector()]), "primary key is not specified");
    refused(
        &with(vec![key(), FieldSchema { name: "id2".to_owned(), ..key() }, vector()]),
        "there are more than one primary key, field name = id, id2",
    );
    let float = FieldSchema { data_type: Wire::Float.into(), ..key() };
    refused(&with(vec![float, vector()]), "primary key should be Int64 or VarChar");
    let nullable = FieldSchema { nullable: true, ..key() };
    refused(&with(vec![nullable, vector()]), "primary field not support null");
    let auto = FieldSchema { auto_id: true, ..wire_field("n", Wire::Int64, &[]) };
    refused(&with(vec![key(), auto, vector()]), "only primary field");
    let partition = FieldSchema { is_partition_key: true, ..wire_field("p", Wire::Float, &[]) };
    refused(&with(vec![key(), partition, vector()]), "partition key should be Int64 or VarChar");
    let both = FieldSchema { is_partition_key: true, ..key() };
    refused(&with(vec![both, vector()]), "must not be primary");
}

#[test]
fn names_are_checked() {
    refused(&with(vec![key(), key(), vector()]), "duplicated field name: id");
    refused(
        &with(vec![key(), wire_field("a b", Wire::Int64, &[]), vector()]),
        "Invalid field name: a b",
    );
    for reserved in ["$meta", "RowID", "Timestamp"] {
        let failure =
            read(&with(vec![key(), wire_field(reserved, Wire::Int64, &[]), vector()])).unwrap_err();
        assert_eq!(failure.code(), Code::ParameterInvalid);
    }
}

#[test]
fn vectors_are_checked() {
    refused(&with(vec![key()]), "schema does not contain vector field");
    for (params, text) in [
        (&[][..], "dimension is not defined"),
        (&[("dim", "1")][..], "should be in range 2 ~ 32768"),
        (&[("dim", "32769")][..], "should be in range 2 ~ 32768"),
        (&[("dim", "-4")][..], "should be in range 2 ~ 32768"),
        (&[("dim", "many")][..], "invalid dimension: many"),
    ] {
        refused(&with(vec![key(), wire_field("v", Wire::FloatVector, params)]), text);
    }
    refused(
        &with(vec![key(), wire_field("v", Wire::BinaryVector, &[("dim", "12")])]),
        "multiple of 8",
    );
    refused(
        &with(vec![key(), wire_field("v", Wire::SparseFloatVector, &[("dim", "12")])]),
        "dim should not be specified for sparse vector field v",
    );
    let eleven = (0..11)
        .map(|n| wire_field(&format!("v{n}"), Wire::FloatVector, &[("dim", "4")]))
        .collect::<Vec<_>>();
    refused(&with([vec![key()], eleven].concat()), "maximum vector field's number");
    let many = (0..64).map(|n| wire_field(&format!("n{n}"), Wire::Int64, &[])).collect::<Vec<_>>();
    refused(&with([vec![key(), vector()], many].concat()), "maximum field's number");
}

#[test]
fn lengths_and_elements_are_checked() {
    let one = |field| with(vec![key(), field, vector()]);
    refused(&one(wire_field("s", Wire::VarChar, &[])), "type param(max_length)");
    refused(&one(wire_field("s", Wire::VarChar, &[("max_length", "65536")])), "in (0, 65535]");
    refused(&one(wire_field("s", Wire::VarChar, &[("max_length", "0")])), "in (0, 65535]");
    let array = |element: Wire, params: &[(&str, &str)]| {
        one(FieldSchema { element_type: element.into(), ..wire_field("a", Wire::Array, params) })
    };
    refused(&array(Wire::Int64, &[]), "type param(max_capacity)");
    refused(&array(Wire::Int64, &[("max_capacity", "4097")]), "in (0, 4096]");
    refused(&array(Wire::VarChar, &[("max_capacity", "4")]), "type param(max_length)");
    for element in [Wire::Json, Wire::Array, Wire::FloatVector, Wire::None] {
        refused(&array(element, &[("max_capacity", "4")]), "is not supported");
    }
}

#[test]
fn defaults_must_fit_their_field() {
    let with_default = |data_type, params: &[(&str, &str)], data| {
        with(vec![
            key(),
            FieldSchema {
                default_value: Some(ValueField { data: Some(data) }),
                ..wire_field("d", data_type, params)
            },
            vector(),
        ])
    };
    for data in [Data::IntData(-128), Data::LongData(-128)] {
        let stored = read(&with_default(Wire::Int8, &[], data)).unwrap();
        assert_eq!(stored.field("d").unwrap().default, Some(Value::Int(-128)));
    }
    refused(&with_default(Wire::Int8, &[], Data::IntData(128)), "-128 <= value <= 127");
    refused(&with_default(Wire::Int16, &[], Data::LongData(1 << 20)), "<= value <= 32767");
    refused(&with_default(Wire::Int16, &[], Data::BoolData(true)), "is not equal to");
    refused(&with_default(Wire::Int64, &[], Data::StringData("1".to_owned())), "is not equal to");
    refused(&with_default(Wire::Json, &[], Data::BytesData("{}".into())), "is not equal to");
    refused(&with_default(Wire::Float, &[], Data::FloatData(f32::NAN)), "finite");
    refused(
        &with_default(Wire::VarChar, &[("max_length", "2")], Data::StringData("abc".to_owned())),
        "exceeds max length (2)",
    );
    refused(&with_default(Wire::Int64, &[], Data::TimestamptzData(1)), "Timestamptz");
}

#[test]
fn types_and_features_that_are_not_there_are_refused_by_name() {
    for data_type in
        [Wire::Geometry, Wire::Timestamptz, Wire::Text, Wire::ArrayOfVector, Wire::String]
    {
        let name = data_type.as_str_name();
        refused(&with(vec![key(), wire_field("x", data_type, &[]), vector()]), name);
    }
    let unknown = FieldSchema { data_type: 4711, ..vector() };
    refused(&with(vec![key(), unknown]), "4711");
    let nested = CollectionSchema {
        struct_array_fields: vec![StructArrayFieldSchema::default()],
        ..with(vec![key(), vector()])
    };
    refused(&nested, "struct array fields are not supported");
}

#[test]
fn functions_must_name_fields_that_fit() {
    let changed = |change: fn(&mut FunctionSchema)| {
        let mut schema = rich();
        change(&mut schema.functions[0]);
        schema
    };
    refused(&changed(|f| f.input_field_names = vec!["nope".to_owned()]), "input field not found");
    refused(&changed(|f| f.output_field_names = vec!["nope".to_owned()]), "output field not found");
    refused(&changed(|f| f.input_field_names = vec!["dense".to_owned()]), "both input and output");
    refused(&changed(|f| f.output_field_names = vec!["id".to_owned()]), "output field id cannot");
    refused(&changed(|f| f.input_field_names = vec!["f".to_owned()]), "cannot be nullable: f");
    refused(&changed(|f| f.r#type = 99), "unknown type number 99");
    let mut twice = rich();
    twice.functions.push(twice.functions[0].clone());
    refused(&twice, "duplicate function name");
    twice.functions[1].name = "other".to_owned();
    refused(&twice, "already the output");
    let mut orphan = rich();
    orphan.functions.clear();
    refused(&orphan, "no function fills it");
}

#[test]
fn an_added_field_must_be_nullable_and_plain() {
    let limits = Limits::default();
    let nullable = FieldSchema { nullable: true, ..wire_field("n", Wire::Int64, &[]) };
    assert!(added_field(nullable.clone(), &limits).unwrap().nullable);
    assert!(decode_field(&nullable.encode_to_vec(), &limits).is_ok());
    for (field, text) in [
        (
            wire_field("n", Wire::Int64, &[]),
            "added field must be nullable, please check it, field name = n",
        ),
        (key(), "not support to add pk field"),
        (
            FieldSchema { is_partition_key: true, ..wire_field("n", Wire::Int64, &[]) },
            "partition key",
        ),
    ] {
        let failure = added_field(field, &limits).unwrap_err();
        assert!(failure.reason().contains(text), "{failure}");
    }
}

#[test]
fn bytes_that_are_no_schema_are_refused() {
    assert!(decode(&[0xff, 0xff, 0xff], &Limits::default()).is_err());
    assert!(decode(&[], &Limits::default()).is_err());
}
