//! Index requests as clients really send them (contract §4.7, §17), and what they mean.
//!
//! Parameters come flat, as one JSON text under `params`, or both; the type and the metric may be
//! missing. They are stored flat, with the two completed, so that a client is told what it asked
//! for. Which index answers is the node's own choice ([`IndexSpec::graph`], [`IndexSpec::terms`],
//! docs/indexes.md).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use elanus_index::{HnswParams, Metric};
use elanus_proto::codes::Code;
use elanus_storage::filter::json_path;
use elanus_storage::schema::{DataType, Field, Schema};
use elanus_storage::{CollectionInfo, Grams, GraphDef, IndexDef, JsonCast, JsonPath, TermsDef};

use super::lookup;
use crate::status::Failure;

/// The index type that leaves the choice to the node.
const AUTO: &str = "AUTOINDEX";

const DENSE_TYPES: [&str; 14] = [
    AUTO,
    "FLAT",
    "HNSW",
    "IVF_FLAT",
    "IVF_SQ8",
    "IVF_PQ",
    "IVF_RABITQ",
    "HNSW_SQ",
    "HNSW_PQ",
    "HNSW_PRQ",
    "SCANN",
    "DISKANN",
    "GPU_CAGRA",
    "GPU_IVF_FLAT",
];
const GPU_TYPES: [&str; 2] = ["GPU_IVF_PQ", "GPU_BRUTE_FORCE"];
const BINARY_TYPES: [&str; 3] = [AUTO, "BIN_FLAT", "BIN_IVF_FLAT"];
const SPARSE_TYPES: [&str; 3] = [AUTO, "SPARSE_INVERTED_INDEX", "SPARSE_WAND"];
const FLAG_TYPES: [&str; 4] = [AUTO, "INVERTED", "BITMAP", "HYBRID"];
const INTEGER_TYPES: [&str; 6] = [AUTO, "INVERTED", "BITMAP", "STL_SORT", "HYBRID", "ASCENDING"];
const FLOAT_TYPES: [&str; 4] = [AUTO, "INVERTED", "STL_SORT", "ASCENDING"];
const TEXT_TYPES: [&str; 8] =
    [AUTO, "INVERTED", "BITMAP", "STL_SORT", "Trie", NGRAM, "HYBRID", "ASCENDING"];
const JSON_TYPES: [&str; 3] = [AUTO, "INVERTED", NGRAM];
/// Of arrays of numbers with a point, which have too many values for a bitmap each.
const FLOAT_ARRAY_TYPES: [&str; 2] = [AUTO, "INVERTED"];

/// The index over pieces of texts.
const NGRAM: &str = "NGRAM";
/// The most characters of a piece: every text is cut into pieces of every length up to it.
const MAX_GRAM: usize = 16;

/// Types that promise an exact answer: no graph is built for them.
const EXACT_TYPES: [&str; 2] = ["FLAT", "GPU_BRUTE_FORCE"];

/// Links per row of a graph whose definition names no `M`.
const DEFAULT_M: usize = 16;
/// Beam width of a build whose definition names no `efConstruction`.
const DEFAULT_EF_CONSTRUCTION: usize = 200;
/// Beyond this a build would only take longer.
const MAX_EF_CONSTRUCTION: usize = 4096;

const DENSE_METRICS: [&str; 3] = ["COSINE", "L2", "IP"];
const BINARY_METRICS: [&str; 2] = ["HAMMING", "JACCARD"];
const SPARSE_METRICS: [&str; 1] = ["IP"];

/// An index request, understood: what is stored, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSpec {
    /// The type asked for, in its usual spelling.
    pub index_type: String,
    /// The metric's name; empty for a scalar field.
    pub metric_name: String,
    /// Every other parameter, JSON texts taken apart.
    pub build: BTreeMap<String, String>,
}

/// Families of fields: which index types and metrics they take.
struct Family {
    word: &'static str,
    types: Vec<&'static str>,
    metrics: &'static [&'static str],
}

fn family(data_type: &DataType) -> Family {
    match data_type {
        DataType::FloatVector { .. }
        | DataType::Float16Vector { .. }
        | DataType::BFloat16Vector { .. }
        | DataType::Int8Vector { .. } => Family {
            word: "float vector",
            types: [DENSE_TYPES.as_slice(), GPU_TYPES.as_slice()].concat(),
            metrics: &DENSE_METRICS,
        },
        DataType::BinaryVector { .. } => {
            Family { word: "binary vector", types: BINARY_TYPES.to_vec(), metrics: &BINARY_METRICS }
        }
        DataType::SparseFloatVector => {
            Family { word: "sparse vector", types: SPARSE_TYPES.to_vec(), metrics: &SPARSE_METRICS }
        }
        DataType::Bool => scalars(&FLAG_TYPES),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            scalars(&INTEGER_TYPES)
        }
        DataType::Float | DataType::Double => scalars(&FLOAT_TYPES),
        DataType::VarChar { .. } => scalars(&TEXT_TYPES),
        DataType::Json => scalars(&JSON_TYPES),
        DataType::Array { element, .. } => {
            let floats = matches!(**element, DataType::Float | DataType::Double);
            scalars(if floats { &FLOAT_ARRAY_TYPES } else { &FLAG_TYPES })
        }
    }
}

fn scalars(types: &[&'static str]) -> Family {
    Family { word: "scalar", types: types.to_vec(), metrics: &[] }
}

impl IndexSpec {
    /// Reads the parameters of a request for an index over `field`.
    ///
    /// # Errors
    /// Code 1100 for an index type or metric that the field does not take, or for `params` that
    /// are no JSON object.
    pub fn parse(params: &[(String, String)], field: &Field) -> Result<Self, Failure> {
        Self::of_flat(flatten(params)?, field)
    }

    /// As [`Self::parse`], of parameters that are [flat](flatten).
    ///
    /// # Errors
    /// Code 1100 for an index type or metric that the field does not take.
    pub fn of_flat(mut build: BTreeMap<String, String>, field: &Field) -> Result<Self, Failure> {
        let family = family(&field.data_type);
        let index_type = match build.remove("index_type").filter(|text| !text.is_empty()) {
            None => AUTO.to_owned(),
            Some(text) => known(&family.types, &text).ok_or_else(|| {
                Failure::invalid(format!(
                    "invalid index type {text} for the {} field {}, supported: [{}]",
                    family.word,
                    field.name,
                    family.types.join(", ")
                ))
            })?,
        };
        let metric_name = match build.remove("metric_type").filter(|text| !text.is_empty()) {
            // A metric for a scalar means nothing; some clients send one all the same.
            _ if family.metrics.is_empty() => String::new(),
            None => family.metrics[0].to_owned(),
            Some(text) => known(family.metrics, &text)
                .ok_or_else(|| refuse_metric(&text, &family, &field.name))?,
        };
        Ok(Self { index_type, metric_name, build })
    }

    /// What a stored index definition means.
    ///
    /// # Errors
    /// As [`Self::parse`]; a stored definition was checked when it was made.
    pub fn of(index: &IndexDef, field: &Field) -> Result<Self, Failure> {
        Self::parse(&index.params, field)
    }

    /// The metric as the engine knows it; `None` for a scalar field.
    pub fn metric(&self) -> Option<Metric> {
        metric(&self.metric_name)
    }

    /// The graph that this index means for `field`: none for an exact type and for fields whose
    /// vectors are not dense. Whatever else the type is called, a graph is what is built.
    ///
    /// # Errors
    /// Code 1100 for an `M` or `efConstruction` out of range.
    pub fn graph(&self, field: &Field) -> Result<Option<GraphDef>, Failure> {
        let Some(metric) = self.metric().filter(|_| field.data_type.is_dense_vector()) else {
            return Ok(None);
        };
        if EXACT_TYPES.contains(&self.index_type.as_str()) {
            return Ok(None);
        }
        let m = self.number("M", 2..=HnswParams::MAX_M)?.unwrap_or(DEFAULT_M);
        let ef_construction = self
            .number("efConstruction", 1..=MAX_EF_CONSTRUCTION)?
            .unwrap_or(DEFAULT_EF_CONSTRUCTION);
        Ok(Some(GraphDef { metric, m, ef_construction }))
    }

    /// The sorted terms that this index means for `field`: none for vectors, and none for a JSON
    /// field as a whole, whose values have no one type.
    ///
    /// # Errors
    /// Code 1100 for a path, a type of values or lengths of grams that cannot be.
    pub fn terms(&self, field: &Field, schema: &Schema) -> Result<Option<TermsDef>, Failure> {
        if field.data_type.is_vector() {
            return Ok(None);
        }
        if self.index_type == "BITMAP" && field.primary_key {
            return Err(Failure::invalid("create bitmap index on primary key not supported"));
        }
        let of_json = field.data_type == DataType::Json;
        let path = if of_json { self.json_path(field, schema)? } else { None };
        if of_json && path.is_none() {
            return Ok(None);
        }
        let grams = if self.index_type == NGRAM { Some(self.grams()?) } else { None };
        Ok(Some(TermsDef { path, grams }))
    }

    /// Which values of JSON documents are indexed, as what; `None` if the request does not say.
    fn json_path(&self, field: &Field, schema: &Schema) -> Result<Option<JsonPath>, Failure> {
        let path = self.build.get("json_path");
        if path.is_none() && !self.build.contains_key("json_cast_type") && self.index_type == AUTO {
            return Ok(None);
        }
        let cast = self.build.get("json_cast_type");
        let cast = cast.ok_or_else(|| Failure::invalid("json index must specify cast type"))?;
        let (cast, array) = match cast.trim().to_ascii_uppercase().as_str() {
            "BOOL" => (JsonCast::Bool, false),
            "DOUBLE" => (JsonCast::Double, false),
            "VARCHAR" => (JsonCast::VarChar, false),
            "ARRAY_BOOL" => (JsonCast::Bool, true),
            "ARRAY_DOUBLE" => (JsonCast::Double, true),
            "ARRAY_VARCHAR" => (JsonCast::VarChar, true),
            _ => {
                return Err(Failure::invalid(format!(
                    "json_cast_type {cast} is not supported, supported: [BOOL, DOUBLE, VARCHAR, \
                     ARRAY_BOOL, ARRAY_DOUBLE, ARRAY_VARCHAR]"
                )));
            }
        };
        if self.index_type == NGRAM && (cast, array) != (JsonCast::VarChar, false) {
            return Err(Failure::invalid(format!(
                "JSON field with ngram index only supports VARCHAR cast type, got: {}",
                self.build["json_cast_type"]
            )));
        }
        if let Some(function) = self.build.get("json_cast_function") {
            return Err(Failure::invalid(format!(
                "json_cast_function {function} is not supported: a filter means the same with and \
                 without an index, and strings are not compared with numbers"
            )));
        }
        let text = path.map_or(field.name.as_str(), String::as_str);
        let refused = |why: &dyn std::fmt::Display| {
            Failure::invalid(format!("json_path {text} of field {}: {why}", field.name))
        };
        let (of, steps) = json_path(text, schema).map_err(|error| refused(&error))?;
        if of != field.name {
            return Err(refused(&format_args!("it leads into field {of}")));
        }
        Ok(Some(JsonPath { steps, cast, array }))
    }

    fn grams(&self) -> Result<Grams, Failure> {
        let (Some(min), Some(max)) = (self.build.get("min_gram"), self.build.get("max_gram"))
        else {
            return Err(Failure::invalid("Ngram index must specify both min_gram and max_gram"));
        };
        let number = |key: &str, text: &str| {
            text.trim().parse::<i64>().map_err(|_| {
                Failure::invalid(format!("{key} for Ngram index must be an integer, got: {text}"))
            })
        };
        let (min, max) = (number("min_gram", min)?, number("max_gram", max)?);
        match (usize::try_from(min), usize::try_from(max)) {
            (Ok(min), Ok(max)) if 1 <= min && min <= max && max <= MAX_GRAM => {
                Ok(Grams { min, max })
            }
            _ => Err(Failure::invalid(format!(
                "invalid min_gram or max_gram value for Ngram index, min_gram: {min}, max_gram: \
                 {max}, should be in range [1, {MAX_GRAM}], the smaller one first"
            ))),
        }
    }

    /// A build parameter that must be a whole number within limits.
    fn number(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Failure> {
        let Some(text) = self.build.get(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            Failure::invalid(format!(
                "param '{key}' ({text}) should be in range [{}, {}]",
                range.start(),
                range.end()
            ))
        })
    }

    /// The parameters as they are stored and described: flat, the type and the metric first.
    pub fn params(&self) -> Vec<(String, String)> {
        let mut params = vec![("index_type".to_owned(), self.index_type.clone())];
        if !self.metric_name.is_empty() {
            params.push(("metric_type".to_owned(), self.metric_name.clone()));
        }
        params.extend(self.build.iter().map(|(key, value)| (key.clone(), value.clone())));
        params
    }
}

fn refuse_metric(text: &str, family: &Family, field: &str) -> Failure {
    if text.eq_ignore_ascii_case("BM25") && family.word == "sparse vector" {
        return Failure::invalid(format!(
            "metric type BM25 needs a BM25 function that counts terms, and field {field} is not \
             the output of one; learned sparse vectors are compared with IP"
        ));
    }
    Failure::invalid(format!(
        "{} index does not support metric type: {text}: metric type {text} not found or not \
         supported, supported: [{}]",
        family.word,
        family.metrics.join(" ")
    ))
}

/// The metric of that name, in any case of letters.
pub fn metric(name: &str) -> Option<Metric> {
    match name.to_ascii_uppercase().as_str() {
        "L2" => Some(Metric::L2),
        "IP" => Some(Metric::Ip),
        "COSINE" => Some(Metric::Cosine),
        "HAMMING" => Some(Metric::Hamming),
        "JACCARD" => Some(Metric::Jaccard),
        _ => None,
    }
}

/// What a field is searched with: its index, else the default of its type.
///
/// # Errors
/// Code 5 when the stored definition of the index is not one.
pub fn spec_of_field(info: &CollectionInfo, field: &Field) -> Result<IndexSpec, Failure> {
    let params = info.index_of_field(&field.name).map_or(&[][..], |index| &index.params);
    IndexSpec::parse(params, field).map_err(|failure| {
        Failure::new(Code::ServiceInternal, failure.reason()).context("stored index definition")
    })
}

fn known(names: &[&str], text: &str) -> Option<String> {
    names.iter().find(|name| name.eq_ignore_ascii_case(text)).map(|&name| name.to_owned())
}

/// All parameters by name: flat ones, and those inside the JSON text under `params`, which win.
///
/// # Errors
/// Code 1100 for `params` that are no JSON object.
pub fn flatten(params: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut flat: BTreeMap<String, String> =
        params.iter().filter(|(key, _)| key != "params").cloned().collect();
    let Some(text) = lookup(params, "params").filter(|text| !text.is_empty()) else {
        return Ok(flat);
    };
    let json: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| {
            Failure::invalid(format!("index params should be a JSON object, got {text}: {error}"))
        })?;
    for (key, value) in json {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        flat.insert(key, text);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(data_type: DataType) -> Field {
        Field {
            id: 100,
            name: "f".to_owned(),
            description: String::new(),
            data_type,
            nullable: false,
            default: None,
            primary_key: false,
            auto_id: false,
            partition_key: false,
            clustering_key: false,
            dynamic: false,
            function_output: false,
            type_params: Vec::new(),
            column: None,
        }
    }

    fn params(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn without_a_type_the_node_chooses_and_the_metric_is_the_fields_default() {
        for (data_type, name) in [
            (DataType::FloatVector { dim: 4 }, "COSINE"),
            (DataType::Int8Vector { dim: 4 }, "COSINE"),
            (DataType::BinaryVector { dim: 8 }, "HAMMING"),
            (DataType::SparseFloatVector, "IP"),
            (DataType::Int64, ""),
        ] {
            let spec = IndexSpec::parse(&[], &field(data_type)).unwrap();
            assert_eq!((spec.index_type.as_str(), spec.metric_name.as_str()), ("AUTOINDEX", name));
        }
    }

    #[test]
    fn parameters_may_be_flat_or_json_or_both() {
        let dense = field(DataType::FloatVector { dim: 4 });
        let flat = params(&[("index_type", "HNSW"), ("metric_type", "L2"), ("M", "8")]);
        let json = params(&[("index_type", "HNSW"), ("params", r#"{"metric_type":"L2","M":8}"#)]);
        let both = params(&[
            ("index_type", "hnsw"),
            ("metric_type", "l2"),
            ("M", "8"),
            ("params", r#"{"M":"8"}"#),
        ]);
        let spec = IndexSpec::parse(&flat, &dense).unwrap();
        assert_eq!(spec.metric(), Some(Metric::L2));
        assert_eq!(spec, IndexSpec::parse(&json, &dense).unwrap());
        assert_eq!(spec, IndexSpec::parse(&both, &dense).unwrap());
        assert!(IndexSpec::parse(&params(&[("params", "[1]")]), &dense).is_err());
    }

    #[test]
    fn an_index_is_described_as_it_was_asked_for() {
        let dense = field(DataType::FloatVector { dim: 4 });
        let received = params(&[("params", r#"{"nlist":128}"#), ("index_type", "IVF_FLAT")]);
        let spec = IndexSpec::parse(&received, &dense).unwrap();
        let described =
            params(&[("index_type", "IVF_FLAT"), ("metric_type", "COSINE"), ("nlist", "128")]);
        assert_eq!(spec.params(), described);
        assert_eq!(IndexSpec::parse(&described, &dense).unwrap(), spec);
    }

    #[test]
    fn a_graph_is_built_for_every_dense_type_that_is_not_exact() {
        let dense = field(DataType::FloatVector { dim: 4 });
        let graph = |pairs: &[(&str, &str)], field: &Field| {
            IndexSpec::parse(&params(pairs), field).unwrap().graph(field)
        };
        let usual = GraphDef { metric: Metric::Cosine, m: 16, ef_construction: 200 };
        assert_eq!(graph(&[], &dense).unwrap(), Some(usual));
        for name in ["HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_PQ", "SCANN", "DISKANN"] {
            assert_eq!(graph(&[("index_type", name)], &dense).unwrap(), Some(usual), "{name}");
        }
        let asked = [("metric_type", "L2"), ("M", "8"), ("efConstruction", "64")];
        let expected = GraphDef { metric: Metric::L2, m: 8, ef_construction: 64 };
        assert_eq!(graph(&asked, &dense).unwrap(), Some(expected));
        assert_eq!(graph(&[("index_type", "FLAT")], &dense).unwrap(), None);
        assert_eq!(graph(&[], &field(DataType::BinaryVector { dim: 8 })).unwrap(), None);
        assert_eq!(graph(&[], &field(DataType::SparseFloatVector)).unwrap(), None);
        assert_eq!(graph(&[], &field(DataType::Int64)).unwrap(), None);
        for (key, value) in [("M", "1"), ("M", "2049"), ("M", "x"), ("efConstruction", "0")] {
            let refused = graph(&[(key, value)], &dense).unwrap_err();
            assert!(refused.reason().contains(&format!("param '{key}' ({value})")), "{refused}");
        }
    }

    #[test]
    fn a_metric_that_the_field_does_not_take_is_refused() {
        let refused = |data_type, name: &str| {
            IndexSpec::parse(&params(&[("metric_type", name)]), &field(data_type)).unwrap_err()
        };
        let failure = refused(DataType::FloatVector { dim: 4 }, "HAMMING");
        assert!(
            failure.reason().contains("float vector index does not support metric type: HAMMING")
        );
        assert!(failure.reason().contains("supported: [COSINE L2 IP]"), "{failure}");
        assert!(
            refused(DataType::BinaryVector { dim: 8 }, "COSINE").reason().contains("binary vector")
        );
        assert!(refused(DataType::SparseFloatVector, "BM25").reason().contains("BM25"));
    }

    #[test]
    fn an_index_type_that_the_field_does_not_take_is_refused() {
        let wanted = params(&[("index_type", "HNSW")]);
        assert!(IndexSpec::parse(&wanted, &field(DataType::SparseFloatVector)).is_err());
        assert!(IndexSpec::parse(&wanted, &field(DataType::Int64)).is_err());
        for (data_type, name) in [
            (DataType::Int64, "TRIE"),
            (DataType::Int64, "NGRAM"),
            (DataType::Float, "BITMAP"),
            (DataType::Bool, "STL_SORT"),
            (DataType::Json, "STL_SORT"),
        ] {
            let refused = IndexSpec::parse(&params(&[("index_type", name)]), &field(data_type));
            assert!(refused.unwrap_err().reason().contains("invalid index type"), "{name}");
        }
        let wanted = params(&[("index_type", "TRIE")]);
        let spec = IndexSpec::parse(&wanted, &field(DataType::VarChar { max_length: 9 })).unwrap();
        assert_eq!(spec.index_type, "Trie");
    }

    /// What an index over a scalar field of a collection with dynamic keys means.
    fn terms(of: &Field, pairs: &[(&str, &str)]) -> Result<Option<TermsDef>, Failure> {
        let dynamic = Field { name: "$meta".to_owned(), dynamic: true, ..field(DataType::Json) };
        let schema = Schema {
            description: String::new(),
            fields: vec![of.clone(), dynamic],
            enable_dynamic_field: true,
            functions: vec![],
            properties: vec![],
            version: 1,
            next_field: 0,
            pending: vec![],
        };
        IndexSpec::parse(&params(pairs), of)?.terms(of, &schema)
    }

    #[test]
    fn an_index_on_a_scalar_keeps_its_values_sorted() {
        let whole = Some(TermsDef::default());
        for data_type in [DataType::Bool, DataType::Int8, DataType::Double] {
            assert_eq!(terms(&field(data_type), &[]).unwrap(), whole);
        }
        let text = field(DataType::VarChar { max_length: 9 });
        assert_eq!(terms(&text, &[("index_type", "Trie")]).unwrap(), whole);
        let grams = [("index_type", "NGRAM"), ("params", r#"{"min_gram": 2, "max_gram": "3"}"#)];
        let def = terms(&text, &grams).unwrap().unwrap();
        assert_eq!(def.grams, Some(Grams { min: 2, max: 3 }));
        assert_eq!(terms(&field(DataType::FloatVector { dim: 4 }), &[]).unwrap(), None);
        let key = Field { primary_key: true, ..field(DataType::Int64) };
        assert!(terms(&key, &[("index_type", "BITMAP")]).unwrap_err().reason().contains("bitmap"));
        for (min, max, why) in [
            ("", "3", "must be an integer"),
            ("2.5", "3", "must be an integer, got: 2.5"),
            ("0", "3", "invalid min_gram or max_gram"),
            ("3", "2", "invalid min_gram or max_gram"),
            ("2", "17", "invalid min_gram or max_gram"),
        ] {
            let pairs = [("index_type", "NGRAM"), ("min_gram", min), ("max_gram", max)];
            assert!(terms(&text, &pairs).unwrap_err().reason().contains(why), "{min} {max}");
        }
        let missing = terms(&text, &[("index_type", "NGRAM"), ("min_gram", "2")]).unwrap_err();
        assert!(missing.reason().contains("both min_gram and max_gram"));
    }

    #[test]
    fn an_index_on_json_has_a_path_and_a_type() {
        let json = field(DataType::Json);
        let path = |pairs: &[(&str, &str)]| terms(&json, pairs).map(|def| def.and_then(|d| d.path));
        let key = |key: &str| elanus_storage::PathStep::Key(key.to_owned());
        let given = [("json_path", r#"f["a"][1]"#), ("json_cast_type", "array_double")];
        let steps = vec![key("a"), elanus_storage::PathStep::Index(1)];
        let expected = JsonPath { steps, cast: JsonCast::Double, array: true };
        assert_eq!(path(&given).unwrap(), Some(expected));
        let whole = path(&[("json_cast_type", "VARCHAR")]).unwrap().unwrap();
        assert_eq!(whole.steps, vec![]);
        assert_eq!(path(&[]).unwrap(), None);
        let refused = |pairs: &[(&str, &str)]| path(pairs).unwrap_err().reason().to_owned();
        assert!(refused(&[("index_type", "INVERTED")]).contains("must specify cast type"));
        assert!(refused(&[("json_cast_type", "ARRAY_INT64")]).contains("ARRAY_INT64 is not"));
        let beyond = [("json_path", "f +"), ("json_cast_type", "BOOL")];
        assert!(refused(&beyond).contains("json_path f + of field f"));
        // Another name is a dynamic key, of another field.
        let other = [("json_path", "g"), ("json_cast_type", "BOOL")];
        assert!(refused(&other).contains("leads into field $meta"));
        let function = [("json_cast_type", "DOUBLE"), ("json_cast_function", "STRING_TO_DOUBLE")];
        assert!(
            refused(&function).contains("json_cast_function STRING_TO_DOUBLE is not supported")
        );
        let grams = [("index_type", "NGRAM"), ("json_cast_type", "DOUBLE")];
        assert!(refused(&grams).contains("only supports VARCHAR"));
    }
}
