//! Functions that make vectors of text, as a schema declares them (contract §8).
//!
//! Several declarations mean the same thing, because clients differ in what they let a user write:
//! `TextEmbedding` with a dense output, with a dense and a sparse output in any order (or the sparse
//! one as a parameter, [`super::schema::function`]), `BM25` with a `provider`, whose output are
//! learned term weights instead of counted ones, and `MinHash` with a `provider`, whose outputs no
//! client looks at. All become a [`ModelFunction`]. Its vectors come from a model inside the node or, dense
//! ones, from a provider elsewhere ([`elanus_remote::Embedding`]).

use elanus_embed::{EmbedRequest, Mode, ModelSpec, ModelStore, Outputs};
use elanus_proto::schema::FunctionType;
use elanus_remote::Embedding;
use elanus_storage::schema::{DataType, FunctionDef, Schema};

use super::{lookup, parse_bool, parse_number};
use crate::engines::{Engines, Source};
use crate::status::Failure;

/// Providers that run a model inside the node.
const PROVIDERS: [&str; 3] = ["builtin", "local", "bge-m3"];

/// The model of the provider `bge-m3`.
const BGE_M3: &str = "BAAI/bge-m3";

/// The parameters that are honoured; others are refused, so that none is silently without effect.
const PARAMS: [&str; 7] = [
    "provider",
    "model_name",
    "dim",
    "ingestion_prompt",
    "search_prompt",
    "max_length",
    "normalize",
];

/// A function that reads one text field and fills a dense field, a sparse field, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFunction {
    /// Its name in the schema.
    pub name: String,
    /// The VARCHAR field it reads.
    pub input: String,
    /// What makes the vectors.
    pub source: Source,
    /// The dense field it fills.
    pub dense: Option<String>,
    /// The sparse field it fills.
    pub sparse: Option<String>,
    /// Put before stored texts instead of the model's own prompt.
    pub insert_prompt: Option<String>,
    /// Put before searched texts instead of the model's own prompt.
    pub search_prompt: Option<String>,
    /// Most tokens of a text; `None` takes the model's own length.
    pub max_length: Option<usize>,
    /// Width of the dense vectors where they are cut; `None` takes the model's own.
    pub dim: Option<usize>,
    /// Leaves the dense vectors as long as they come, also where the model normalizes them.
    pub unnormalized: bool,
}

impl ModelFunction {
    /// Reads a declaration, and checks it against the fields it names.
    ///
    /// # Errors
    /// Code 1100 for a declaration that breaks a rule, 10 for a function that is not there yet.
    pub fn of(function: &FunctionDef, schema: &Schema) -> Result<Self, Failure> {
        let name = &function.name;
        let refuse = |problem: String| Failure::invalid(format!("function {name}: {problem}"));
        let kind = FunctionType::try_from(function.kind).unwrap_or(FunctionType::Unknown);
        // As Milvus reads them: the case of a key does not count.
        let lower = |(key, value): &(String, String)| (key.to_ascii_lowercase(), value.clone());
        let params: Vec<(String, String)> = function.params.iter().map(lower).collect();
        let provider = lookup(&params, "provider");
        match kind {
            FunctionType::TextEmbedding => {}
            FunctionType::Bm25 | FunctionType::MinHash if provider.is_some() => {}
            FunctionType::Bm25 => {
                return Err(Failure::unimplemented(format!(
                    "function {name}: BM25 over counted terms is not supported yet; a learned \
                     sparse model does the same job: give the function params={{\"provider\": \
                     \"builtin\", \"model_name\": …}}"
                )));
            }
            FunctionType::Rerank => {
                return Err(refuse(
                    "a Rerank function belongs into a search request, not into a schema".to_owned(),
                ));
            }
            FunctionType::MinHash | FunctionType::MolFingerprint => {
                return Err(Failure::unimplemented(format!(
                    "function {name}: functions of type {} are not supported",
                    kind.as_str_name()
                )));
            }
            FunctionType::Unknown => {
                return Err(refuse("the function type is Unknown".to_owned()));
            }
        }
        let [input] = function.inputs.as_slice() else {
            return Err(refuse(format!(
                "exactly one input field expected, got {}",
                function.inputs.len()
            )));
        };
        if !matches!(schema.field(input).map(|f| &f.data_type), Some(DataType::VarChar { .. })) {
            return Err(refuse(format!("input field {input} must be a VarChar")));
        }
        let (dense, sparse) = outputs(function, kind, schema)?;
        let dim = dense.as_ref().and_then(|name| schema.field(name)?.data_type.dim()).unwrap_or(0);
        let service = provider.unwrap_or_default().to_ascii_lowercase();
        if let Some(embedding) = Embedding::parse(&service, &params, dim as usize) {
            let embedding = embedding.map_err(|error| refuse(error.to_string()))?;
            if let Some(field) = sparse {
                return Err(refuse(format!(
                    "output field {field} is sparse, and provider {service} makes no sparse vectors"
                )));
            }
            return Ok(Self {
                name: name.clone(),
                input: input.clone(),
                source: Source::Provider(Box::new(embedding)),
                dense,
                sparse,
                // The provider's part puts them before the texts, where it has any.
                insert_prompt: None,
                search_prompt: None,
                max_length: None,
                // It is asked for vectors of the width of the field.
                dim: None,
                unnormalized: false,
            });
        }
        let model = model_name(name, provider, &params)?;
        if let Some((key, _)) = params.iter().find(|(key, _)| !PARAMS.contains(&key.as_str())) {
            return Err(refuse(format!(
                "unknown parameter {key} for a model inside the node, it takes [{}]",
                PARAMS.join(", ")
            )));
        }
        let text = |key: &str| lookup(&params, key).map(str::to_owned);
        let number = |key: &str, what: &str| {
            let number = |text: &str| {
                parse_number(text).filter(|number| *number > 0).ok_or_else(|| {
                    refuse(format!("{key} must be a number of {what} above 0, got {text}"))
                })
            };
            lookup(&params, key).map(number).transpose()
        };
        let (max_length, dim) = (number("max_length", "tokens")?, number("dim", "dimensions")?);
        let normalize = lookup(&params, "normalize").map(|text| {
            let refused = || refuse(format!("normalize must be true or false, got {text}"));
            parse_bool(text).ok_or_else(refused)
        });
        Ok(Self {
            name: name.clone(),
            input: input.clone(),
            source: Source::Model(model),
            dense,
            sparse,
            insert_prompt: text("ingestion_prompt"),
            search_prompt: text("search_prompt"),
            max_length,
            dim,
            unnormalized: normalize.transpose()? == Some(false),
        })
    }

    /// All functions of a schema that was checked when it was stored.
    pub fn all(schema: &Schema) -> Vec<Self> {
        schema.functions.iter().filter_map(|function| Self::of(function, schema).ok()).collect()
    }

    /// The fields it fills.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.dense.as_deref().into_iter().chain(self.sparse.as_deref())
    }

    /// Whether another declaration of this function stores the same vectors; how texts are searched
    /// for, and by which way a provider is reached, does not count.
    pub fn makes_the_vectors_of(&self, other: &Self) -> bool {
        let source = match (&self.source, &other.source) {
            (Source::Model(one), Source::Model(other)) => one == other,
            (Source::Provider(one), Source::Provider(other)) => one.makes_the_vectors_of(other),
            (Source::Model(_), Source::Provider(_)) | (Source::Provider(_), Source::Model(_)) => {
                false
            }
        };
        source
            && (&self.insert_prompt, self.max_length, self.dim, self.unnormalized)
                == (&other.insert_prompt, other.max_length, other.dim, other.unnormalized)
    }

    /// Checks that the function's model or provider is there and makes what it promises. A provider
    /// is called once, as Milvus does.
    ///
    /// # Errors
    /// Code 2400 when it is not there, 1100 when it does not fit the fields.
    pub async fn check(&self, schema: &Schema, engines: Engines<'_>) -> Result<(), Failure> {
        match &self.source {
            Source::Model(model) => self.check_model(model, schema, engines.models),
            Source::Provider(_) => {
                let texts = vec!["check".to_owned()];
                let request = EmbedRequest::new(texts, Outputs::DENSE, Mode::Insert);
                let called = engines.embed(&self.source, request).await;
                called.map_err(|failure| failure.context(&format!("function {}", self.name)))?;
                Ok(())
            }
        }
    }

    fn check_model(&self, name: &str, schema: &Schema, models: &ModelStore) -> Result<(), Failure> {
        let refuse =
            |problem: String| Err(Failure::invalid(format!("function {}: {problem}", self.name)));
        let model: ModelSpec = models
            .resolve(name)
            .map_err(|error| Failure::from(error).context(&format!("function {}", self.name)))?;
        if let Some(field) = &self.dense {
            let Some(dim) = model.dense_dim else {
                return refuse(format!("model {name} makes no dense vectors"));
            };
            let declared = schema.field(field).and_then(|field| field.data_type.dim());
            if let Some(cut) = self.dim.filter(|cut| *cut > dim) {
                return refuse(format!(
                    "parameter dim is {cut}, the dimension of model {name} is {dim}"
                ));
            }
            if declared.map(|dim| dim as usize) != Some(self.dim.unwrap_or(dim)) {
                let what = match self.dim {
                    None => format!("dimension ({dim}) of model {name}"),
                    Some(cut) => format!("parameter dim ({cut})"),
                };
                return refuse(format!(
                    "the dim ({}) of field {field} is not the {what}",
                    declared.unwrap_or_default()
                ));
            }
        }
        if self.sparse.is_some() && model.sparse_dim.is_none() {
            return refuse(format!("model {name} makes no sparse vectors"));
        }
        if let Some(tokens) = self.max_length
            && tokens > model.max_length_limit
        {
            return refuse(format!(
                "max_length is {tokens}, model {name} reads at most {} tokens",
                model.max_length_limit
            ));
        }
        Ok(())
    }
}

/// Checks that every function of a new schema can run on this node.
///
/// # Errors
/// Those of [`ModelFunction::of`], and code 2400 when a model is not there, 1100 when it does
/// not make what the fields expect.
pub async fn check(schema: &Schema, engines: Engines<'_>) -> Result<(), Failure> {
    for function in &schema.functions {
        ModelFunction::of(function, schema)?.check(schema, engines).await?;
    }
    Ok(())
}

/// All providers, for errors.
fn supported() -> String {
    PROVIDERS.into_iter().chain(Embedding::providers()).collect::<Vec<_>>().join(", ")
}

fn model_name(
    function: &str,
    provider: Option<&str>,
    params: &[(String, String)],
) -> Result<String, Failure> {
    let Some(provider) = provider else {
        return Err(Failure::invalid(format!(
            "function {function}: the text embedding service provider parameter (provider) not \
             found, list of supported [{}]",
            supported()
        )));
    };
    let provider = provider.to_ascii_lowercase();
    if !PROVIDERS.contains(&provider.as_str()) {
        return Err(Failure::invalid(format!(
            "unsupported text embedding service provider: [{provider}] , list of supported [{}]",
            supported()
        )));
    }
    match lookup(params, "model_name").filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None if provider == "bge-m3" => Ok(BGE_M3.to_owned()),
        None => Err(Failure::invalid(format!(
            "function {function}: provider {provider} needs the parameter model_name, for example \
             {BGE_M3}"
        ))),
    }
}

/// The dense and the sparse field a function fills.
fn outputs(
    function: &FunctionDef,
    kind: FunctionType,
    schema: &Schema,
) -> Result<(Option<String>, Option<String>), Failure> {
    let name = &function.name;
    let (mut dense, mut sparse) = (None, None);
    for output in &function.outputs {
        let data_type = schema.field(output).map(|field| &field.data_type);
        let slot = match data_type {
            Some(DataType::FloatVector { .. }) if kind != FunctionType::Bm25 => &mut dense,
            Some(DataType::SparseFloatVector) => &mut sparse,
            other => {
                let expected = if kind == FunctionType::Bm25 {
                    "a SparseFloatVector"
                } else {
                    "a FloatVector or a SparseFloatVector"
                };
                return Err(Failure::invalid(format!(
                    "function {name}: output field {output} must be {expected}, it is {}",
                    other.map_or("missing", DataType::name)
                )));
            }
        };
        if slot.replace(output.clone()).is_some() {
            return Err(Failure::invalid(format!(
                "function {name}: at most one dense and one sparse output field expected"
            )));
        }
    }
    if dense.is_none() && sparse.is_none() {
        return Err(Failure::invalid(format!("function {name}: an output field is required")));
    }
    Ok((dense, sparse))
}

#[cfg(test)]
mod tests {
    use elanus_proto::codes::Code;
    use elanus_storage::schema::Field;

    use super::*;

    fn field(name: &str, data_type: DataType) -> Field {
        Field {
            id: 0,
            name: name.to_owned(),
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

    fn schema() -> Schema {
        Schema {
            description: String::new(),
            fields: vec![
                field("text", DataType::VarChar { max_length: 100 }),
                field("dense", DataType::FloatVector { dim: 4 }),
                field("sparse", DataType::SparseFloatVector),
                field("bits", DataType::BinaryVector { dim: 8 }),
            ],
            enable_dynamic_field: false,
            functions: Vec::new(),
            properties: Vec::new(),
            version: 0,
            pending: Vec::new(),
            next_field: 0,
        }
    }

    fn function(kind: FunctionType, outputs: &[&str], params: &[(&str, &str)]) -> FunctionDef {
        FunctionDef {
            id: 0,
            name: "f".to_owned(),
            description: String::new(),
            kind: kind.into(),
            inputs: vec!["text".to_owned()],
            outputs: outputs.iter().map(|&name| name.to_owned()).collect(),
            params: params.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        }
    }

    #[test]
    fn every_declaration_of_a_model_is_understood() {
        let m3 = [("provider", "bge-m3")];
        let read = |kind, outputs: &[&str]| {
            ModelFunction::of(&function(kind, outputs, &m3), &schema()).unwrap()
        };
        let dense = read(FunctionType::TextEmbedding, &["dense"]);
        assert_eq!((dense.dense.as_deref(), dense.sparse.as_deref()), (Some("dense"), None));
        assert_eq!(dense.source, Source::Model(BGE_M3.to_owned()));
        let sparse = read(FunctionType::Bm25, &["sparse"]);
        assert_eq!((sparse.dense.as_deref(), sparse.sparse.as_deref()), (None, Some("sparse")));
        let both = read(FunctionType::TextEmbedding, &["sparse", "dense"]);
        assert_eq!(both.outputs().collect::<Vec<_>>(), ["dense", "sparse"]);
        let unchecked = read(FunctionType::MinHash, &["dense", "sparse"]);
        assert_eq!(unchecked.outputs().collect::<Vec<_>>(), ["dense", "sparse"]);
    }

    #[test]
    fn parameters_are_read_and_unknown_ones_refused() {
        let params = [
            ("provider", "local"),
            ("model_name", "a/b"),
            ("search_prompt", "query: "),
            ("Max_Length", "512"),
            ("normalize", "False"),
        ];
        let read = ModelFunction::of(
            &function(FunctionType::TextEmbedding, &["dense"], &params),
            &schema(),
        )
        .unwrap();
        assert_eq!(read.source, Source::Model("a/b".to_owned()));
        assert_eq!(read.max_length, Some(512));
        assert_eq!(read.search_prompt.as_deref(), Some("query: "));
        assert_eq!((read.insert_prompt, read.unnormalized), (None, true));
        let params = [("provider", "local"), ("model_name", "a/b"), ("url", "http://x")];
        let failure = ModelFunction::of(
            &function(FunctionType::TextEmbedding, &["dense"], &params),
            &schema(),
        )
        .unwrap_err();
        assert!(failure.reason().contains("unknown parameter url"), "{failure}");
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        let m3 = [("provider", "bge-m3")];
        let cases = [
            (function(FunctionType::Bm25, &["sparse"], &[]), Code::ServiceUnimplemented, "BM25"),
            (function(FunctionType::Bm25, &["dense"], &m3), Code::ParameterInvalid, "SparseFloat"),
            (function(FunctionType::Rerank, &[], &m3), Code::ParameterInvalid, "search request"),
            (
                function(FunctionType::MinHash, &["bits"], &[]),
                Code::ServiceUnimplemented,
                "MinHash",
            ),
            (
                function(FunctionType::TextEmbedding, &["bits"], &m3),
                Code::ParameterInvalid,
                "BinaryVector",
            ),
            (function(FunctionType::TextEmbedding, &[], &m3), Code::ParameterInvalid, "output"),
            (
                function(FunctionType::TextEmbedding, &["dense"], &[("provider", "bedrock")]),
                Code::ParameterInvalid,
                "unsupported text embedding service provider: [bedrock] , list of supported [",
            ),
            (
                function(FunctionType::TextEmbedding, &["dense"], &[("provider", "local")]),
                Code::ParameterInvalid,
                "needs the parameter model_name",
            ),
        ];
        for (function, code, text) in cases {
            let failure = ModelFunction::of(&function, &schema()).unwrap_err();
            assert_eq!(failure.code(), code, "{failure}");
            assert!(failure.reason().contains(text), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_model_that_is_not_installed_is_a_failed_function() {
        let mut schema = schema();
        schema.functions =
            vec![function(FunctionType::TextEmbedding, &["dense"], &[("provider", "bge-m3")])];
        let models = ModelStore::new(elanus_embed::Options::default());
        let providers = elanus_remote::Providers::new(Default::default()).unwrap();
        let engines = Engines { models: &models, providers: &providers };
        let failure = check(&schema, engines).await.unwrap_err();
        assert_eq!(failure.code(), Code::FunctionFailed);
        assert!(failure.reason().contains("function failed"), "{failure}");
    }
}
