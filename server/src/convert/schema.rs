//! Collection schemas: from the wire with every rule of the contract checked (§4.1, §4.2), and
//! back so that a client finds what it sent (§4.3).
//!
//! Clients compare the described schema with their own, field by field: order, descriptions and
//! the text of type parameters are kept as received.

use elanus_proto::schema::value_field::Data;
use elanus_proto::schema::{
    CollectionSchema, DataType as Wire, FieldSchema, FunctionSchema, FunctionType, ValueField,
};
use elanus_storage::schema::{DataType, Field, FunctionDef, META, Schema, Value};
use prost::Message;

use super::{key_values, lookup, names, pairs, parse_number};
use crate::limits::Limits;
use crate::status::Failure;

/// Names that belong to the system.
const RESERVED: [&str; 3] = [META, "RowID", "Timestamp"];

/// Fewest dimensions of a float, half, bfloat16 or int8 vector.
const MIN_DIM: u32 = 2;

/// Reads the serialized schema of a create request.
///
/// Whether its functions can run is for [`super::function`] to say.
///
/// # Errors
/// Code 1100, with the first rule that is broken.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Schema, Failure> {
    let wire = CollectionSchema::decode(bytes).map_err(|error| {
        Failure::invalid(format!("the schema of the request is not a CollectionSchema: {error}"))
    })?;
    from_wire(wire, limits)
}

/// Reads the serialized field of an add-field request.
///
/// # Errors
/// Code 1100, with the first rule that is broken.
pub fn decode_field(bytes: &[u8], limits: &Limits) -> Result<Field, Failure> {
    let wire = FieldSchema::decode(bytes).map_err(|error| {
        Failure::invalid(format!("the schema of the request is not a FieldSchema: {error}"))
    })?;
    added_field(wire, limits)
}

/// Checks a field that is to be added to a collection that may have rows already.
///
/// # Errors
/// Code 1100, with the first rule that is broken.
pub fn added_field(wire: FieldSchema, limits: &Limits) -> Result<Field, Failure> {
    let field = field(wire, limits)?;
    let name = &field.name;
    let problem = if field.primary_key {
        format!("not support to add pk field, field name = {name}")
    } else if field.auto_id {
        format!("only primary field can specify AutoID with true, field name = {name}")
    } else if field.partition_key {
        format!("not support to add partition key field, field name  = {name}")
    } else if field.clustering_key {
        format!("not support to add clustering key field, field name  = {name}")
    } else if !field.nullable {
        format!("added field must be nullable, please check it, field name = {name}")
    } else if field.function_output {
        format!("not support to add a function output field, field name = {name}")
    } else {
        return Ok(field);
    };
    Err(Failure::invalid(problem))
}

fn from_wire(wire: CollectionSchema, limits: &Limits) -> Result<Schema, Failure> {
    refuse_absent_features(&wire)?;
    let mut fields = Vec::with_capacity(wire.fields.len().min(limits.fields));
    if wire.fields.len() > limits.fields {
        return Err(Failure::invalid(format!(
            "maximum field's number should be limited to {}, got {}",
            limits.fields,
            wire.fields.len()
        )));
    }
    for field_schema in wire.fields {
        // Some clients send back the hidden field that they once saw.
        if field_schema.is_dynamic && field_schema.name == META {
            continue;
        }
        fields.push(field(field_schema, limits)?);
    }
    let functions = wire.functions.into_iter().map(function).collect::<Result<Vec<_>, _>>()?;
    // Some clients mark them, others do not.
    for field in &mut fields {
        field.function_output |= is_output(field, &functions);
    }
    if wire.auto_id
        && let Some(key) = fields.iter_mut().find(|field| field.primary_key)
    {
        key.auto_id = true;
    }
    check_fields(&fields, limits)?;
    check_functions(&functions, &fields, limits)?;
    if wire.enable_dynamic_field {
        fields.push(dynamic_field());
    }
    Ok(Schema {
        description: wire.description,
        fields,
        enable_dynamic_field: wire.enable_dynamic_field,
        functions,
        properties: pairs(wire.properties),
        version: 0,
        pending: Vec::new(),
        next_field: 0,
    })
}

fn refuse_absent_features(wire: &CollectionSchema) -> Result<(), Failure> {
    let absent = if !wire.struct_array_fields.is_empty() {
        "struct array fields"
    } else if !wire.external_source.is_empty() || !wire.external_spec.is_empty() {
        "external collections"
    } else if wire.enable_namespace {
        "namespaces"
    } else {
        return Ok(());
    };
    Err(Failure::invalid(format!("{absent} are not supported by this node")))
}

/// The hidden column of keys that are not fields.
fn dynamic_field() -> Field {
    Field {
        id: 0,
        name: META.to_owned(),
        description: "dynamic schema".to_owned(),
        data_type: DataType::Json,
        nullable: false,
        default: None,
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: true,
        function_output: false,
        type_params: Vec::new(),
        column: None,
    }
}

/// Reads one field and checks the rules that concern it alone.
fn field(wire: FieldSchema, limits: &Limits) -> Result<Field, Failure> {
    names::check(names::Kind::Field, &wire.name, limits)?;
    if RESERVED.contains(&wire.name.as_str()) {
        return Err(Failure::invalid(format!("field name is a reserved name: {}", wire.name)));
    }
    let type_params = pairs(wire.type_params);
    let data_type = data_type(&wire.name, wire.data_type, wire.element_type, &type_params, limits)?;
    let default = match wire.default_value {
        Some(ValueField { data: Some(data) }) => Some(default(&wire.name, &data_type, &data)?),
        Some(ValueField { data: None }) | None => None,
    };
    let field = Field {
        id: 0,
        name: wire.name,
        description: wire.description,
        data_type,
        nullable: wire.nullable,
        default,
        primary_key: wire.is_primary_key,
        auto_id: wire.auto_id,
        partition_key: wire.is_partition_key,
        clustering_key: wire.is_clustering_key,
        dynamic: false,
        function_output: wire.is_function_output,
        type_params,
        column: None,
    };
    check_field(&field)?;
    Ok(field)
}

fn check_field(field: &Field) -> Result<(), Failure> {
    let name = &field.name;
    let is_key_type = matches!(field.data_type, DataType::Int64 | DataType::VarChar { .. });
    let problem = if field.primary_key && !is_key_type {
        format!(
            "the data type of primary key should be Int64 or VarChar, field {name} is {}",
            field.data_type.name()
        )
    } else if field.primary_key && field.nullable {
        format!("primary field not support null, field {name}")
    } else if field.primary_key && field.default.is_some() {
        format!("primary field not support default_value, field {name}")
    } else if field.auto_id && !field.primary_key {
        format!("only primary field can specify AutoID with true, field name = {name}")
    } else if field.partition_key && field.primary_key {
        format!("the partition key field must not be primary field, field {name}")
    } else if field.partition_key && !is_key_type {
        format!(
            "the data type of partition key should be Int64 or VarChar, field {name} is {}",
            field.data_type.name()
        )
    } else if field.partition_key && field.nullable {
        format!("partition key field not support nullable, field {name}")
    } else if field.clustering_key && field.nullable {
        format!("clustering key field not support nullable, field {name}")
    } else if field.clustering_key
        && (field.data_type.is_vector()
            || matches!(field.data_type, DataType::Json | DataType::Array { .. }))
    {
        format!(
            "the clustering key field must be a number or VarChar, field {name} is {}",
            field.data_type.name()
        )
    } else {
        return Ok(());
    };
    Err(Failure::invalid(problem))
}

/// The rules about all fields together.
fn check_fields(fields: &[Field], limits: &Limits) -> Result<(), Failure> {
    let named = |wanted: fn(&Field) -> bool| -> Vec<&str> {
        fields.iter().filter(|field| wanted(field)).map(|field| field.name.as_str()).collect()
    };
    for (at, field) in fields.iter().enumerate() {
        if fields[..at].iter().any(|earlier| earlier.name == field.name) {
            return Err(Failure::invalid(format!("duplicated field name: {}", field.name)));
        }
    }
    let keys = named(|field| field.primary_key);
    let partition_keys = named(|field| field.partition_key);
    let clustering_keys = named(|field| field.clustering_key);
    let vectors = named(|field| field.data_type.is_vector());
    let several = |what: &str, names: &[&str]| {
        format!("there are more than one {what}, field name = {}", names.join(", "))
    };
    let problem = if keys.is_empty() {
        "primary key is not specified".to_owned()
    } else if keys.len() > 1 {
        several("primary key", &keys)
    } else if partition_keys.len() > 1 {
        several("partition key", &partition_keys)
    } else if clustering_keys.len() > 1 {
        several("clustering key", &clustering_keys)
    } else if vectors.is_empty() {
        "schema does not contain vector field".to_owned()
    } else if vectors.len() > limits.vector_fields {
        format!(
            "maximum vector field's number should be limited to {}, got {}",
            limits.vector_fields,
            vectors.len()
        )
    } else {
        return Ok(());
    };
    Err(Failure::invalid(problem))
}

fn data_type(
    name: &str,
    wire: i32,
    element: i32,
    params: &[(String, String)],
    limits: &Limits,
) -> Result<DataType, Failure> {
    let unsupported = |what: String| {
        Err(Failure::invalid(format!(
            "field {name} has the data type {what}, which this node does not support"
        )))
    };
    let Ok(kind) = Wire::try_from(wire) else {
        return unsupported(format!("number {wire}"));
    };
    let dim = || dim(name, params, MIN_DIM, limits.dim);
    Ok(match kind {
        Wire::Bool => DataType::Bool,
        Wire::Int8 => DataType::Int8,
        Wire::Int16 => DataType::Int16,
        Wire::Int32 => DataType::Int32,
        Wire::Int64 => DataType::Int64,
        Wire::Float => DataType::Float,
        Wire::Double => DataType::Double,
        Wire::VarChar => DataType::VarChar { max_length: max_length(name, params, limits)? },
        Wire::Json => DataType::Json,
        Wire::Array => DataType::Array {
            element: Box::new(element_type(name, element, params, limits)?),
            max_capacity: max_capacity(name, params, limits)?,
        },
        Wire::FloatVector => DataType::FloatVector { dim: dim()? },
        Wire::Float16Vector => DataType::Float16Vector { dim: dim()? },
        Wire::BFloat16Vector => DataType::BFloat16Vector { dim: dim()? },
        Wire::Int8Vector => DataType::Int8Vector { dim: dim()? },
        Wire::BinaryVector => {
            let dim = self::dim(name, params, 8, limits.binary_dim)?;
            if !dim.is_multiple_of(8) {
                return Err(Failure::invalid(format!(
                    "invalid dimension: {dim} of field {name}. binary vector dimension should be \
                     multiple of 8"
                )));
            }
            DataType::BinaryVector { dim }
        }
        Wire::SparseFloatVector => {
            if lookup(params, "dim").is_some() {
                return Err(Failure::invalid(format!(
                    "dim should not be specified for sparse vector field {name}"
                )));
            }
            DataType::SparseFloatVector
        }
        Wire::None
        | Wire::String
        | Wire::Geometry
        | Wire::Text
        | Wire::Timestamptz
        | Wire::Mol
        | Wire::Date
        | Wire::Time
        | Wire::Decimal
        | Wire::Uuid
        | Wire::ArrayOfVector
        | Wire::ArrayOfStruct
        | Wire::Struct => return unsupported(kind.as_str_name().to_owned()),
    })
}

fn element_type(
    name: &str,
    element: i32,
    params: &[(String, String)],
    limits: &Limits,
) -> Result<DataType, Failure> {
    let kind = Wire::try_from(element).unwrap_or(Wire::None);
    let scalar = matches!(
        kind,
        Wire::Bool
            | Wire::Int8
            | Wire::Int16
            | Wire::Int32
            | Wire::Int64
            | Wire::Float
            | Wire::Double
            | Wire::VarChar
    );
    if !scalar {
        return Err(Failure::invalid(format!(
            "element type {} is not supported, field {name}",
            kind.as_str_name()
        )));
    }
    data_type(name, element, 0, params, limits)
}

fn dim(name: &str, params: &[(String, String)], min: u32, max: u32) -> Result<u32, Failure> {
    let Some(text) = lookup(params, "dim") else {
        return Err(Failure::invalid(format!(
            "dimension is not defined in field type params of field {name}, check type param `dim` \
             for vector field"
        )));
    };
    match parse_number::<i64>(text).map(u32::try_from) {
        Some(Ok(dim)) if (min..=max).contains(&dim) => Ok(dim),
        Some(_) => Err(Failure::invalid(format!(
            "invalid dimension: {text} of field {name}. vector dimension should be in range {min} ~ {max}"
        ))),
        None => Err(Failure::invalid(format!(
            "invalid dimension: {text} of field {name}. it is not a number"
        ))),
    }
}

fn max_length(name: &str, params: &[(String, String)], limits: &Limits) -> Result<u32, Failure> {
    let max = limits.varchar_bytes;
    let Some(text) = lookup(params, "max_length") else {
        return Err(Failure::invalid(format!(
            "type param(max_length) should be specified for the field({name}) of type VarChar"
        )));
    };
    parse_number::<u32>(text).filter(|length| (1..=max).contains(length)).ok_or_else(|| {
        Failure::invalid(format!(
            "the maximum length specified for the field({name}) should be in (0, {max}], but got \
             {text} instead"
        ))
    })
}

fn max_capacity(name: &str, params: &[(String, String)], limits: &Limits) -> Result<u32, Failure> {
    let max = limits.array_elements;
    let Some(text) = lookup(params, "max_capacity") else {
        return Err(Failure::invalid(format!(
            "type param(max_capacity) should be specified for array field {name}"
        )));
    };
    parse_number::<u32>(text).filter(|capacity| (1..=max).contains(capacity)).ok_or_else(|| {
        Failure::invalid(format!(
            "the maximum capacity specified for the field({name}) should be in (0, {max}], but got \
             {text} instead"
        ))
    })
}

fn default(name: &str, data_type: &DataType, data: &Data) -> Result<Value, Failure> {
    let in_range = |min: i64, max: i64| {
        // A plain Python integer always comes as an INT64.
        let value = if let Data::IntData(value) = data {
            i64::from(*value)
        } else if let Data::LongData(value) = data {
            *value
        } else {
            return Err(default_type(name, data_type, data));
        };
        if (min..=max).contains(&value) {
            Ok(Value::Int(value))
        } else {
            Err(Failure::invalid(format!(
                "default value of field {name}: [{min} <= value <= {max}] expected, got {value}"
            )))
        }
    };
    match (data_type, data) {
        (DataType::Int8, _) => in_range(i8::MIN.into(), i8::MAX.into()),
        (DataType::Int16, _) => in_range(i16::MIN.into(), i16::MAX.into()),
        (DataType::Int32, _) => in_range(i32::MIN.into(), i32::MAX.into()),
        (DataType::Bool, Data::BoolData(value)) => Ok(Value::Bool(*value)),
        (DataType::Int64, Data::LongData(value)) => Ok(Value::Int(*value)),
        (DataType::Float, Data::FloatData(value)) if value.is_finite() => {
            Ok(Value::Float(f64::from(*value)))
        }
        (DataType::Double, Data::DoubleData(value)) if value.is_finite() => {
            Ok(Value::Float(*value))
        }
        (DataType::VarChar { max_length }, Data::StringData(value)) => {
            if value.len() > *max_length as usize {
                return Err(Failure::invalid(format!(
                    "the length ({}) of string exceeds max length ({max_length}) in the default \
                     value of field {name}",
                    value.len()
                )));
            }
            Ok(Value::String(value.clone()))
        }
        (DataType::Float | DataType::Double, Data::FloatData(_) | Data::DoubleData(_)) => {
            Err(Failure::invalid(format!(
                "default value of field {name}: a finite number of the field's own type expected"
            )))
        }
        _ => Err(default_type(name, data_type, data)),
    }
}

fn default_type(name: &str, data_type: &DataType, data: &Data) -> Failure {
    Failure::invalid(format!(
        "type ({}) of field ({name}) is not equal to the type({}) of default_value, or the type \
         cannot have one",
        data_type.name(),
        arm(data)
    ))
}

/// The type a default value came as.
fn arm(data: &Data) -> &'static str {
    match data {
        Data::BoolData(_) => "Bool",
        Data::IntData(_) => "Int",
        Data::LongData(_) => "Int64",
        Data::FloatData(_) => "Float",
        Data::DoubleData(_) => "Double",
        Data::StringData(_) => "VarChar",
        Data::BytesData(_) => "Bytes",
        Data::TimestamptzData(_) => "Timestamptz",
        Data::DateData(_) => "Date",
        Data::TimeData(_) => "Time",
    }
}

/// A sparse output of a text embedding function, as a parameter: pymilvus lets such a function have
/// one output only, a dense one.
const SPARSE_OUTPUT: &str = "sparse_output_field";

/// Reads one function. An output that its parameters name becomes one of its outputs, which is how
/// everybody sees it from then on.
///
/// # Errors
/// Code 1100 for a type that is unknown.
pub fn function(wire: FunctionSchema) -> Result<FunctionDef, Failure> {
    if FunctionType::try_from(wire.r#type).is_err() {
        return Err(Failure::invalid(format!(
            "function {} has the unknown type number {}",
            wire.name, wire.r#type
        )));
    }
    let (mut outputs, mut params) = (wire.output_field_names, pairs(wire.params));
    if wire.r#type == FunctionType::TextEmbedding as i32
        && let Some(at) = params.iter().position(|(key, _)| key.eq_ignore_ascii_case(SPARSE_OUTPUT))
    {
        let (_, field) = params.remove(at);
        if !outputs.contains(&field) {
            outputs.push(field);
        }
    }
    Ok(FunctionDef {
        id: 0,
        name: wire.name,
        description: wire.description,
        kind: wire.r#type,
        inputs: wire.input_field_names,
        outputs,
        params,
    })
}

fn is_output(field: &Field, functions: &[FunctionDef]) -> bool {
    functions.iter().any(|function| function.outputs.contains(&field.name))
}

/// Checks the functions of a schema whose functions were changed, and marks the fields they fill.
///
/// # Errors
/// Code 1100 for a function that breaks a rule.
pub fn check_functions_of(schema: &mut Schema, limits: &Limits) -> Result<(), Failure> {
    for field in &mut schema.fields {
        field.function_output = is_output(field, &schema.functions);
    }
    check_functions(&schema.functions, &schema.fields, limits)
}

/// The rules that all functions share (contract §8.1); their own are in [`super::function`].
fn check_functions(
    functions: &[FunctionDef],
    fields: &[Field],
    limits: &Limits,
) -> Result<(), Failure> {
    let find = |name: &str| fields.iter().find(|field| field.name == name);
    let mut outputs: Vec<&str> = Vec::new();
    for (at, function) in functions.iter().enumerate() {
        names::check(names::Kind::Function, &function.name, limits)?;
        let name = &function.name;
        let refuse = |problem: String| Err(Failure::invalid(format!("function {name}: {problem}")));
        if functions[..at].iter().any(|earlier| earlier.name == *name) {
            return Err(Failure::invalid(format!("duplicate function name: {name}")));
        }
        for (at, input) in function.inputs.iter().enumerate() {
            let Some(field) = find(input) else {
                return refuse(format!("input field not found: {input}"));
            };
            if field.nullable {
                return refuse(format!("input field cannot be nullable: {input}"));
            }
            if function.inputs[..at].contains(input) {
                return refuse(format!("input field is named twice: {input}"));
            }
            if function.outputs.contains(input) {
                return refuse(format!("{input} is both input and output"));
            }
        }
        for output in &function.outputs {
            let Some(field) = find(output) else {
                return refuse(format!("output field not found: {output}"));
            };
            if field.nullable || field.primary_key || field.partition_key || field.clustering_key {
                return refuse(format!(
                    "output field {output} cannot be nullable, nor a primary, partition or \
                     clustering key"
                ));
            }
            if outputs.contains(&output.as_str()) {
                return refuse(format!("{output} is already the output of a function"));
            }
            outputs.push(output);
        }
    }
    if let Some(field) =
        fields.iter().find(|field| field.function_output && !outputs.contains(&field.name.as_str()))
    {
        return Err(Failure::invalid(format!(
            "field {} is marked as a function output, but no function fills it",
            field.name
        )));
    }
    Ok(())
}

/// A schema as clients see it: the hidden field is not listed.
pub fn encode(name: &str, db: &str, schema: &Schema) -> CollectionSchema {
    let id = |name: &String| schema.field(name).map_or(0, |field| field.id);
    CollectionSchema {
        name: name.to_owned(),
        description: schema.description.clone(),
        auto_id: schema.primary().auto_id,
        fields: schema.fields.iter().filter(|field| !field.dynamic).map(encode_field).collect(),
        enable_dynamic_field: schema.enable_dynamic_field,
        properties: key_values(&schema.properties),
        functions: schema
            .functions
            .iter()
            .map(|function| FunctionSchema {
                name: function.name.clone(),
                id: function.id,
                description: function.description.clone(),
                r#type: function.kind,
                input_field_names: function.inputs.clone(),
                input_field_ids: function.inputs.iter().map(id).collect(),
                output_field_names: function.outputs.clone(),
                output_field_ids: function.outputs.iter().map(id).collect(),
                params: key_values(&function.params),
            })
            .collect(),
        db_name: db.to_owned(),
        version: i32::try_from(schema.version).unwrap_or(i32::MAX),
        ..Default::default()
    }
}

fn encode_field(field: &Field) -> FieldSchema {
    let element = if let DataType::Array { element, .. } = &field.data_type {
        wire_type(element)
    } else {
        Wire::None
    };
    FieldSchema {
        field_id: field.id,
        name: field.name.clone(),
        is_primary_key: field.primary_key,
        description: field.description.clone(),
        data_type: wire_type(&field.data_type).into(),
        type_params: key_values(&field.type_params),
        auto_id: field.auto_id,
        element_type: element.into(),
        default_value: field.default.as_ref().map(|value| encode_default(&field.data_type, value)),
        is_partition_key: field.partition_key,
        is_clustering_key: field.clustering_key,
        nullable: field.nullable,
        is_function_output: field.function_output,
        ..Default::default()
    }
}

/// The wire's number for a type.
pub fn wire_type(data_type: &DataType) -> Wire {
    match data_type {
        DataType::Bool => Wire::Bool,
        DataType::Int8 => Wire::Int8,
        DataType::Int16 => Wire::Int16,
        DataType::Int32 => Wire::Int32,
        DataType::Int64 => Wire::Int64,
        DataType::Float => Wire::Float,
        DataType::Double => Wire::Double,
        DataType::VarChar { .. } => Wire::VarChar,
        DataType::Json => Wire::Json,
        DataType::Array { .. } => Wire::Array,
        DataType::FloatVector { .. } => Wire::FloatVector,
        DataType::Float16Vector { .. } => Wire::Float16Vector,
        DataType::BFloat16Vector { .. } => Wire::BFloat16Vector,
        DataType::Int8Vector { .. } => Wire::Int8Vector,
        DataType::BinaryVector { .. } => Wire::BinaryVector,
        DataType::SparseFloatVector => Wire::SparseFloatVector,
    }
}

fn encode_default(data_type: &DataType, value: &Value) -> ValueField {
    let data = match (data_type, value) {
        (_, Value::Bool(value)) => Data::BoolData(*value),
        // Also for the narrow integers: it is what most clients send, and they compare.
        (_, Value::Int(value)) => Data::LongData(*value),
        (DataType::Float, Value::Float(value)) => Data::FloatData(*value as f32),
        (_, Value::Float(value)) => Data::DoubleData(*value),
        (_, Value::String(value)) => Data::StringData(value.clone()),
    };
    ValueField { data: Some(data) }
}

#[cfg(test)]
mod tests;
