//! Function rankers: what a request's `function_score` asks for.
//!
//! RRF and weighted sums are spelled a second way here; decay weighs hits by a number's distance
//! from an origin; a model re-ranks by reading; boosts multiply or add to the scores of rows that
//! match a filter. Parsing and formulas are here, candidates and their columns in
//! [`super::hybrid`].

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use elanus_embed::LateWeights;
use elanus_proto::schema::{FunctionSchema, FunctionScore, FunctionType};
use elanus_remote::Rerank;
use elanus_storage::schema::{DataType, Field, Schema};
use serde_json::Value;

use super::Params;
use super::filter::Filter;
use super::rank::{Candidate, List, Ranker, narrow, normalized, sort};
use crate::convert::pairs;
use crate::convert::results::restored;
use crate::engines::Judge;
use crate::status::Failure;

/// How the lists of a request become one ranking.
#[derive(Clone, Debug)]
pub enum Reranker {
    /// By ranks or weighted scores.
    Rank(Ranker),
    /// By how near a number is to an origin.
    Decay(Decay),
    /// By a model that reads query and text.
    Model(Model),
}

/// All that a `function_score` asks for.
#[derive(Clone, Debug, Default)]
pub struct Scoring {
    /// What makes the ranking; `None` keeps that of the search.
    pub reranker: Option<Reranker>,
    /// What changes the scores before that.
    pub boosts: Boosts,
}

impl Scoring {
    /// Reads the functions of a request that searches `lists` times for `queries` queries.
    ///
    /// # Errors
    /// Code 1100 for functions of another type, unknown names, two rerankers, and parameters out
    /// of range.
    pub fn parse(
        score: &FunctionScore,
        schema: &Schema,
        lists: usize,
        queries: usize,
    ) -> Result<Self, Failure> {
        let mut scoring = Self { reranker: None, boosts: Boosts::parse(&score.params)? };
        for function in &score.functions {
            if function.r#type != i32::from(FunctionType::Rerank)
                || !function.output_field_names.is_empty()
            {
                return Err(Failure::invalid(format!(
                    "function {} of function_score must be of type Rerank and have no output fields",
                    function.name
                )));
            }
            let params = Params::parse(&function.params)?;
            let name = params.text("reranker").unwrap_or_default().to_ascii_lowercase();
            let reranker = match name.as_str() {
                "rrf" | "weighted" => Reranker::Rank(Ranker::parse(Some(&name), &params, lists)?),
                "decay" => Reranker::Decay(Decay::parse(function, &params, schema)?),
                "model" => Reranker::Model(Model::parse(function, &params, schema, queries)?),
                "colbert" => {
                    let weights = late_weights(&params)?;
                    let model = Model::parse(function, &params, schema, queries)?;
                    Reranker::Model(model.with_token_vectors(weights)?)
                }
                "boost" => {
                    scoring.boosts.add(&params)?;
                    continue;
                }
                other => {
                    return Err(Failure::invalid(format!(
                        "unsupported rerank function: [{other}] , list of supported [rrf,weighted,decay,model,colbert]"
                    )));
                }
            };
            if scoring.reranker.replace(reranker).is_some() {
                return Err(Failure::invalid(
                    "at most one reranker besides boosts is supported in a request",
                ));
            }
        }
        Ok(scoring)
    }

    /// The field whose values the reranker needs.
    pub fn field(&self) -> Option<&str> {
        match &self.reranker {
            Some(Reranker::Decay(decay)) => Some(&decay.field),
            Some(Reranker::Model(model)) => Some(&model.field),
            Some(Reranker::Rank(_)) | None => None,
        }
    }
}

fn input<'a>(
    function: &FunctionSchema,
    schema: &'a Schema,
    what: &str,
    fits: impl Fn(&Field) -> bool,
) -> Result<&'a Field, Failure> {
    let [name] = function.input_field_names.as_slice() else {
        return Err(Failure::invalid(format!(
            "the {what} reranker needs exactly one input field, got {}",
            function.input_field_names.len()
        )));
    };
    let field = schema.field(name).ok_or_else(|| {
        Failure::invalid(format!("function {}: field {name} not exist", function.name))
    })?;
    if !fits(field) {
        return Err(Failure::invalid(format!(
            "function {}: field {name} ({}) cannot be the input of the {what} reranker",
            function.name,
            field.data_type.name()
        )));
    }
    Ok(field)
}

/// Weighs scores by how near a number is to an origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Decay {
    field: String,
    curve: Curve,
    origin: f64,
    scale: f64,
    offset: f64,
    decay: f64,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    Gauss,
    Exp,
    Linear,
}

/// How the scores of one row in several lists become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Max,
    Sum,
    Avg,
}

impl Decay {
    fn parse(function: &FunctionSchema, params: &Params, schema: &Schema) -> Result<Self, Failure> {
        let numeric = |field: &Field| {
            let number = field.data_type.is_integer()
                || matches!(field.data_type, DataType::Float | DataType::Double);
            number && !field.nullable
        };
        let field = input(function, schema, "decay", numeric)?.name.clone();
        let curve = match params.text("function").as_deref() {
            Some("gauss") => Curve::Gauss,
            Some("exp") => Curve::Exp,
            Some("linear") => Curve::Linear,
            other => {
                return Err(Failure::invalid(format!(
                    "invalid decay function: {}, only support [gauss,linear,exp]",
                    other.unwrap_or("none")
                )));
            }
        };
        let number = |key: &str| params.float(key);
        let required = |key: &str| {
            number(key)?
                .ok_or_else(|| Failure::invalid(format!("decay function lost param: {key}")))
        };
        let (origin, scale) = (required("origin")?, required("scale")?);
        let offset = number("offset")?.unwrap_or(0.0);
        let decay = number("decay")?.unwrap_or(0.5);
        if scale <= 0.0 {
            return Err(Failure::invalid(format!(
                "decay function param: scale must > 0, but got {scale}"
            )));
        }
        if offset < 0.0 {
            return Err(Failure::invalid(format!(
                "decay function param: offset must >= 0, but got {offset}"
            )));
        }
        if decay <= 0.0 || decay >= 1.0 {
            return Err(Failure::invalid(format!(
                "decay function param: decay must 0 < decay < 1, but got {decay}"
            )));
        }
        let mode = match params.text("score_mode").as_deref() {
            None | Some("max") => Mode::Max,
            Some("sum") => Mode::Sum,
            Some("avg") => Mode::Avg,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "unsupported score_mode {other}, use max, sum or avg"
                )));
            }
        };
        Ok(Self { field, curve, origin, scale, offset, decay, mode })
    }

    /// The factor for a value, in (0, 1].
    fn factor(&self, value: f64) -> f32 {
        let distance = ((value - self.origin).abs() - self.offset).max(0.0);
        narrow(match self.curve {
            Curve::Gauss => {
                (distance * distance * self.decay.ln() / (self.scale * self.scale)).exp()
            }
            Curve::Exp => (distance * self.decay.ln() / self.scale).exp(),
            Curve::Linear => self.decay.max(1.0 - (1.0 - self.decay) * distance / self.scale),
        })
    }

    /// Merges the lists and weighs each candidate by its value. Distances are turned into
    /// similarities first, so larger is better in the end.
    pub fn fuse(
        &self,
        lists: &[List<'_>],
        value: impl Fn(Candidate) -> f64,
    ) -> Vec<(Candidate, f32)> {
        let mut merged: std::collections::BTreeMap<Candidate, (f32, u16)> =
            std::collections::BTreeMap::new();
        for list in lists {
            for (candidate, score) in list.hits {
                let score = if list.metric.larger_is_better() {
                    *score
                } else {
                    normalized(list.metric, *score)
                };
                let entry = merged.entry(*candidate).or_insert((score, 0));
                if entry.1 > 0 {
                    entry.0 =
                        if self.mode == Mode::Max { entry.0.max(score) } else { entry.0 + score };
                }
                entry.1 += 1;
            }
        }
        let mut fused: Vec<_> = merged
            .into_iter()
            .map(|(candidate, (score, count))| {
                let score = if self.mode == Mode::Avg { score / f32::from(count) } else { score };
                (candidate, score * self.factor(value(candidate)))
            })
            .collect();
        sort(&mut fused);
        fused
    }
}

/// The numbers of a column; null counts as not a number.
pub fn numbers(array: &ArrayRef) -> Vec<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a decay is over magnitudes")]
    let number = |row: usize| {
        if let Some(values) = array.as_primitive_opt::<Int64Type>() {
            values.value(row) as f64
        } else if let Some(values) = array.as_primitive_opt::<Int32Type>() {
            f64::from(values.value(row))
        } else if let Some(values) = array.as_primitive_opt::<Int16Type>() {
            f64::from(values.value(row))
        } else if let Some(values) = array.as_primitive_opt::<Int8Type>() {
            f64::from(values.value(row))
        } else if let Some(values) = array.as_primitive_opt::<Float32Type>() {
            f64::from(values.value(row))
        } else if let Some(values) = array.as_primitive_opt::<Float64Type>() {
            values.value(row)
        } else {
            f64::NAN
        }
    };
    (0..array.len()).map(number).collect()
}

/// A model, in the node or elsewhere, that reads query and text.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    field: String,
    /// Who reads.
    pub judge: Judge,
    /// One text per query.
    pub queries: Vec<String>,
}

/// The weights of a `colbert` reranker: dense, sparse, token vectors.
fn late_weights(params: &Params) -> Result<LateWeights, Failure> {
    if !params.has("weights") {
        return Ok(LateWeights::default());
    }
    let numbers: Option<Vec<f32>> = params.json("weights").and_then(|weights| {
        let number = |weight: &Value| weight.as_f64().map(narrow);
        weights.as_array()?.iter().map(number).collect()
    });
    if let Some(&[dense, sparse, colbert]) = numbers.as_deref() {
        let weights = LateWeights { dense, sparse, colbert };
        if weights.are_valid() {
            return Ok(weights);
        }
    }
    Err(Failure::invalid(
        "the weights of the colbert reranker must be a json list of three numbers (dense, sparse, \
         colbert), none below 0 and not all 0",
    ))
}

/// Providers that mean a model inside the node.
const PROVIDERS: [&str; 2] = ["builtin", "local"];

impl Model {
    fn parse(
        function: &FunctionSchema,
        params: &Params,
        schema: &Schema,
        queries: usize,
    ) -> Result<Self, Failure> {
        let text = |field: &Field| matches!(field.data_type, DataType::VarChar { .. });
        let field = input(function, schema, "model", text)?.name.clone();
        let provider = params.text("provider").unwrap_or_default().to_ascii_lowercase();
        let Some(Value::Array(texts)) = params.json("queries") else {
            return Err(Failure::invalid("the model reranker needs queries, a json list of texts"));
        };
        let texts: Option<Vec<String>> =
            texts.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        let texts = texts.filter(|texts| texts.len() == queries).ok_or_else(|| {
            Failure::invalid(format!(
                "the queries of the model reranker must be {queries} texts, one per query (nq)"
            ))
        })?;
        let judge = match Rerank::parse(&provider, &pairs(function.params.clone())) {
            Some(rerank) => Judge::Provider(Box::new(rerank?)),
            None if PROVIDERS.contains(&provider.as_str()) => {
                let name = params
                    .text("model_name")
                    .ok_or_else(|| Failure::invalid("the model reranker needs a model_name"))?
                    .into_owned();
                let normalize = !params.has("normalize") || params.flag("normalize")?;
                Judge::Model { name, normalize }
            }
            None => {
                let supported: Vec<_> = PROVIDERS.into_iter().chain(Rerank::providers()).collect();
                return Err(Failure::invalid(format!(
                    "unsupported rerank model provider: [{provider}] , list of supported [{}]",
                    supported.join(",")
                )));
            }
        };
        Ok(Self { field, judge, queries: texts })
    }

    /// The same with scores by token vectors.
    fn with_token_vectors(mut self, weights: LateWeights) -> Result<Self, Failure> {
        self.judge = match self.judge {
            Judge::Model { name, .. } | Judge::TokenVectors { name, .. } => {
                Judge::TokenVectors { name, weights }
            }
            Judge::Provider(_) => {
                return Err(Failure::invalid(format!(
                    "the colbert reranker needs a model inside the node, list of supported \
                     providers [{}]",
                    PROVIDERS.join(",")
                )));
            }
        };
        Ok(self)
    }
}

/// Changes of the scores of rows that match filters.
#[derive(Clone, Debug, Default)]
pub struct Boosts {
    boosts: Vec<Boost>,
    /// How a boost meets the score.
    sum: bool,
    /// How several boosts meet.
    sum_functions: bool,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Boost {
    weight: f32,
    /// The rows it applies to; empty for all.
    pub filter: Filter,
}

impl Boosts {
    fn parse(pairs: &[elanus_proto::common::KeyValuePair]) -> Result<Self, Failure> {
        let params = Params::parse(pairs)?;
        let is_sum = |key: &str| match params.text(key).as_deref() {
            None => Ok(false),
            Some(mode) if mode.eq_ignore_ascii_case("multiply") => Ok(false),
            Some(mode) if mode.eq_ignore_ascii_case("sum") => Ok(true),
            Some(other) => {
                Err(Failure::invalid(format!("unsupported {key} {other}, use multiply or sum")))
            }
        };
        Ok(Self {
            boosts: Vec::new(),
            sum: is_sum("boost_mode")?,
            sum_functions: is_sum("function_mode")?,
        })
    }

    fn add(&mut self, params: &Params) -> Result<(), Failure> {
        if params.has("random_score") {
            return Err(Failure::invalid("random_score of the boost reranker is not supported"));
        }
        let weight = params
            .float("weight")?
            .ok_or_else(|| Failure::invalid("the boost reranker needs a weight"))?;
        let text = params.text("filter").unwrap_or_default().into_owned();
        let filter = Filter { text, ..Filter::default() };
        self.boosts.push(Boost { weight: narrow(weight), filter });
        Ok(())
    }

    /// Whether nothing is boosted.
    pub fn is_empty(&self) -> bool {
        self.boosts.is_empty()
    }

    /// The boosts in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Boost> {
        self.boosts.iter()
    }

    /// The score of a row that matches the boosts for which `matches` has true. Works on the
    /// score that a client sees, so that adding to a distance makes it larger.
    pub fn apply(&self, score: f32, larger_is_better: bool, matches: &[bool]) -> f32 {
        let matching = self.boosts.iter().zip(matches).filter(|(_, matches)| **matches);
        let Some(boost) = matching
            .map(|(boost, _)| boost.weight)
            .reduce(|a, b| if self.sum_functions { a + b } else { a * b })
        else {
            return score;
        };
        let shown = if larger_is_better { score } else { restored(score) };
        let boosted = if self.sum { shown + boost } else { shown * boost };
        if larger_is_better { boosted } else { restored(boosted) }
    }
}

#[cfg(test)]
mod tests {
    use elanus_index::Metric;

    use super::*;

    fn decay(curve: Curve, mode: Mode) -> Decay {
        Decay {
            field: "age".into(),
            curve,
            origin: 100.0,
            scale: 10.0,
            offset: 2.0,
            decay: 0.5,
            mode,
        }
    }

    #[test]
    fn decay_curves_follow_the_formulas() {
        for curve in [Curve::Gauss, Curve::Exp, Curve::Linear] {
            let decay = decay(curve, Mode::Max);
            assert_eq!(decay.factor(101.0), 1.0, "within the offset nothing decays");
            assert!((decay.factor(112.0) - 0.5).abs() < 1e-6, "at the scale it is `decay`");
            assert!((decay.factor(88.0) - 0.5).abs() < 1e-6);
        }
        let twice = |curve| decay(curve, Mode::Max).factor(122.0);
        assert!((twice(Curve::Gauss) - 0.0625).abs() < 1e-6);
        assert!((twice(Curve::Exp) - 0.25).abs() < 1e-6);
        assert!((twice(Curve::Linear) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn lists_are_merged_before_they_decay() {
        let (a, b) = ([(1, 0.8), (2, 0.4)], [(2, 0.6), (3, 0.2)]);
        let lists = [List { hits: &a, metric: Metric::Ip }, List { hits: &b, metric: Metric::Ip }];
        let at_origin = |_| 100.0;
        let scores = |mode| decay(Curve::Exp, mode).fuse(&lists, at_origin);
        assert_eq!(scores(Mode::Max), [(1, 0.8), (2, 0.6), (3, 0.2)]);
        assert_eq!(scores(Mode::Sum), [(2, 1.0), (1, 0.8), (3, 0.2)]);
        assert_eq!(scores(Mode::Avg), [(1, 0.8), (2, 0.5), (3, 0.2)]);
    }

    #[test]
    fn boosts_work_on_the_score_a_client_sees() {
        let boost = |weight| Boost { weight, filter: Filter::default() };
        let boosts =
            |sum| Boosts { boosts: vec![boost(2.0), boost(3.0)], sum, sum_functions: true };
        assert_eq!(boosts(false).apply(0.5, true, &[true, true]), 2.5);
        assert_eq!(boosts(false).apply(0.5, true, &[true, false]), 1.0);
        assert_eq!(boosts(false).apply(0.5, true, &[false, false]), 0.5);
        // A distance of 4 becomes 6: worse, so the internal score falls.
        assert_eq!(boosts(true).apply(-4.0, false, &[true, false]), -6.0);
    }
}
