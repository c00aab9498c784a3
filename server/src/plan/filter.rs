//! Filter expressions of a request, with the values of their templates.
//!
//! The language itself is storage's; here its errors get Milvus's words.

use std::collections::HashMap;

use elanus_proto::codes::Code;
use elanus_proto::schema::{self, template_array_value, template_value};
use elanus_storage::Schema;
use elanus_storage::filter::{self, Predicate, TemplateValue, Templates};

use crate::status::Failure;

/// Characters of an expression that an error repeats.
const SHOWN: usize = 1_000;

/// Levels of nested template arrays.
const MAX_DEPTH: usize = 16;

/// A filter as the request carries it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// The expression; empty for none.
    pub text: String,
    /// Values of the `{names}` in it.
    pub values: HashMap<String, schema::TemplateValue>,
}

impl Filter {
    /// Parses and checks the expression; `None` when there is none.
    ///
    /// This is linear in the text, which may list 100,000 keys: it belongs on a search thread.
    ///
    /// # Errors
    /// Code 1100 with Milvus's text.
    pub fn compile(&self, schema: &Schema) -> Result<Option<Predicate>, Failure> {
        if self.text.trim().is_empty() {
            return Ok(None);
        }
        let templates = templates(&self.values)?;
        match filter::compile(&self.text, schema, &templates) {
            Ok(predicate) => Ok(Some(predicate)),
            Err(error) => Err(self.refused(&error)),
        }
    }

    fn refused(&self, error: &filter::FilterError) -> Failure {
        let shown: String = self.text.chars().take(SHOWN).collect();
        let more = if shown.len() < self.text.len() { "..." } else { "" };
        Failure::new(
            Code::ParameterInvalid,
            format!(
                "failed to create query plan: cannot parse expression: {shown}{more}, error: invalid parameter: {}",
                error.render(&self.text)
            ),
        )
    }
}

fn templates(values: &HashMap<String, schema::TemplateValue>) -> Result<Templates, Failure> {
    values.iter().map(|(name, value)| Ok((name.clone(), scalar(name, value)?))).collect()
}

fn scalar(name: &str, value: &schema::TemplateValue) -> Result<TemplateValue, Failure> {
    use template_value::Val;
    match &value.val {
        Some(Val::BoolVal(value)) => Ok(TemplateValue::Bool(*value)),
        Some(Val::Int64Val(value)) => Ok(TemplateValue::Int(*value)),
        Some(Val::FloatVal(value)) => Ok(TemplateValue::Float(*value)),
        Some(Val::StringVal(value)) => Ok(TemplateValue::String(value.clone())),
        Some(Val::ArrayVal(value)) => array(name, value, 0),
        Some(Val::BytesVal(value)) => Ok(TemplateValue::Bytes(value.clone())),
        None => Err(Failure::invalid(format!(
            "the value of expression template variable name {{{name}}} is empty"
        ))),
    }
}

fn array(
    name: &str,
    value: &schema::TemplateArrayValue,
    depth: usize,
) -> Result<TemplateValue, Failure> {
    use template_array_value::Data;
    if depth >= MAX_DEPTH {
        return Err(Failure::invalid(format!(
            "the value of expression template variable name {{{name}}} is nested deeper than {MAX_DEPTH} levels"
        )));
    }
    let values = match &value.data {
        Some(Data::BoolData(data)) => data.data.iter().copied().map(TemplateValue::Bool).collect(),
        Some(Data::LongData(data)) => data.data.iter().copied().map(TemplateValue::Int).collect(),
        Some(Data::DoubleData(data)) => data.data.iter().copied().map(TemplateValue::Float).collect(),
        Some(Data::StringData(data)) => data.data.iter().cloned().map(TemplateValue::String).collect(),
        Some(Data::ArrayData(data)) => {
            data.data.iter().map(|value| array(name, value, depth + 1)).collect::<Result<_, _>>()?
        }
        Some(Data::JsonData(data)) => data
            .data
            .iter()
            .map(|text| {
                serde_json::from_slice(text).map(TemplateValue::Json).map_err(|error| {
                    Failure::invalid(format!(
                        "the value of expression template variable name {{{name}}} is not json: {error}"
                    ))
                })
            })
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    Ok(TemplateValue::Array(values))
}

#[cfg(test)]
mod tests {
    use elanus_proto::schema::{JsonArray, LongArray, TemplateArrayValueArray};
    use elanus_storage::schema::DataType;

    use super::*;
    use crate::convert::fields::tests::{field, schema_of};

    fn list(data: template_array_value::Data) -> schema::TemplateArrayValue {
        schema::TemplateArrayValue { data: Some(data) }
    }

    fn value(value: template_value::Val) -> schema::TemplateValue {
        schema::TemplateValue { val: Some(value) }
    }

    fn key_schema() -> Schema {
        let mut id = field("id", DataType::Int64);
        id.primary_key = true;
        schema_of(vec![id])
    }

    #[test]
    fn a_filter_binds_its_templates_and_knows_the_keys_it_names() {
        let longs = list(template_array_value::Data::LongData(LongArray { data: vec![3, 1] }));
        let filter = Filter {
            text: "id in {keys}".into(),
            values: HashMap::from([("keys".into(), value(template_value::Val::ArrayVal(longs)))]),
        };
        let keys = filter.compile(&key_schema()).unwrap().unwrap().key_set();
        assert_eq!(keys.map(|keys| keys.len()), Some(2));
        assert!(
            Filter { text: " \n".into(), ..Filter::default() }
                .compile(&key_schema())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_filter_that_does_not_parse_says_where() {
        let filter = Filter { text: "idd > 3".into(), ..Filter::default() };
        let reason = filter.compile(&key_schema()).unwrap_err().reason().to_owned();
        assert!(
            reason.starts_with(
                "failed to create query plan: cannot parse expression: idd > 3, error: "
            ),
            "{reason}"
        );
        assert!(reason.contains('^'), "{reason}");
        let long = Filter { text: format!("id in [{}", "1,".repeat(9_000)), ..Filter::default() };
        assert!(
            long.compile(&key_schema()).unwrap_err().reason().len() < 3_000,
            "giant lists are not repeated"
        );
    }

    #[test]
    fn hostile_templates_are_errors() {
        let json = list(template_array_value::Data::JsonData(JsonArray {
            data: vec![b"{".to_vec().into()],
        }));
        let mut nested = list(template_array_value::Data::LongData(LongArray::default()));
        for _ in 0..40 {
            nested = list(template_array_value::Data::ArrayData(TemplateArrayValueArray {
                data: vec![nested],
            }));
        }
        for bad in [json, nested] {
            let bad = value(template_value::Val::ArrayVal(bad));
            assert!(templates(&HashMap::from([("x".into(), bad)])).is_err());
        }
        assert!(
            templates(&HashMap::from([("x".into(), schema::TemplateValue::default())])).is_err()
        );
    }
}
