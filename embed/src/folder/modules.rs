//! What sentence-transformers puts behind the encoder: `modules.json` and the folders it names.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{missing, read_json};
use crate::Error;

/// One vector of the rows of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// That of the first token.
    First,
    /// The mean of all.
    Mean,
}

/// How a text becomes one dense vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pooled {
    pub(crate) pooling: Pooling,
    pub(crate) projection: Option<Projection>,
    /// Divides the vector by its length.
    pub(crate) normalize: bool,
}

/// A linear layer behind the pooling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Projection {
    /// The file with `linear.weight`, and `linear.bias` if it has one.
    pub(crate) weights: PathBuf,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    pub(crate) tanh: bool,
}

#[derive(Deserialize)]
struct RawModule {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct RawPooling {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    pooling_mode: Option<serde_json::Value>,
    include_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct RawSpladePooling {
    pooling_strategy: Option<String>,
    activation_function: Option<String>,
}

#[derive(Deserialize)]
struct RawDense {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

/// The modules of a sentence-transformers folder.
#[derive(Debug, PartialEq)]
pub(super) enum Modules {
    /// One vector per text; `None` where no module pools.
    Dense(Option<Pooled>),
    /// SPLADE's maximum over the vocabulary.
    Splade,
}

/// `modules.json`, or the pooling folder where there is only that.
pub(super) fn modules(
    dir: &Path,
    refuse: impl Fn(String) -> Error,
) -> Result<Option<Modules>, Error> {
    let plain = |pooling| Pooled { pooling, projection: None, normalize: false };
    let Some(raw) = read_json::<Vec<RawModule>>(&dir.join("modules.json"))? else {
        let pooling = pooling(dir, "1_Pooling", &refuse)?;
        let pooled = pooling.map(|pooling| Pooled { normalize: true, ..plain(pooling) });
        return Ok(pooled.map(|pooled| Modules::Dense(Some(pooled))));
    };
    let mut pooled: Option<Pooled> = None;
    let mut splade = false;
    for module in raw {
        // Older folders say `sentence_transformers.models.Pooling`, newer ones have longer paths.
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        match (kind, &mut pooled) {
            ("Transformer" | "MLMTransformer", None) => {}
            ("Pooling", None) => {
                let pooling = pooling(dir, &module.path, &refuse)?
                    .ok_or_else(|| missing(dir, &format!("{}/config.json", module.path)))?;
                pooled = Some(plain(pooling));
            }
            ("Dense", Some(pooled)) if pooled.projection.is_none() && !pooled.normalize => {
                pooled.projection = Some(projection(dir, &module.path, &refuse)?);
            }
            ("Normalize", Some(pooled)) => pooled.normalize = true,
            ("SpladePooling", None) => {
                splade_pooling(dir, &module.path, &refuse)?;
                splade = true;
            }
            ("Pooling" | "Dense" | "Normalize" | "Transformer" | "SpladePooling", _) => {
                return Err(refuse(format!(
                    "modules.json has the module `{kind}` in a place that is not understood; \
                     expected Transformer, Pooling, at most one Dense, Normalize"
                )));
            }
            (other, _) => {
                return Err(refuse(format!(
                    "modules.json adds the module `{other}`; Transformer, Pooling, Dense, \
                     Normalize and SpladePooling are supported"
                )));
            }
        }
    }
    Ok(Some(if splade { Modules::Splade } else { Modules::Dense(pooled) }))
}

fn pooling(
    dir: &Path,
    path: &str,
    refuse: &impl Fn(String) -> Error,
) -> Result<Option<Pooling>, Error> {
    let file = dir.join(sub_folder(path, refuse)?).join("config.json");
    let Some(raw) = read_json::<RawPooling>(&file)? else { return Ok(None) };
    if raw.include_prompt == Some(false) {
        return Err(refuse(format!("{path} leaves the prompt out of the pooling")));
    }
    let named = match raw.pooling_mode.as_ref().map(|mode| mode.as_str().unwrap_or("several")) {
        Some("cls") => Some(Pooling::First),
        Some("mean") => Some(Pooling::Mean),
        Some(other) => {
            return Err(refuse(format!("{path} pools by `{other}`; cls and mean are supported")));
        }
        None => None,
    };
    let others = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || raw.pooling_mode_lasttoken;
    match (named, raw.pooling_mode_cls_token, raw.pooling_mode_mean_tokens, others) {
        (Some(pooling), false, false, false) => Ok(Some(pooling)),
        (None, true, false, false) => Ok(Some(Pooling::First)),
        (None, false, true, false) => Ok(Some(Pooling::Mean)),
        _ => Err(refuse(format!(
            "{path}/config.json asks for another pooling than one of cls and mean"
        ))),
    }
}

/// The folder of a linear layer.
fn projection(
    dir: &Path,
    path: &str,
    refuse: &impl Fn(String) -> Error,
) -> Result<Projection, Error> {
    /// Far above any layer in use, far below where a product of two could overflow.
    const WIDEST: usize = 131_072;
    let folder = dir.join(sub_folder(path, refuse)?);
    let raw: RawDense = read_json(&folder.join("config.json"))?
        .ok_or_else(|| missing(dir, &format!("{path}/config.json")))?;
    let activation = raw.activation_function.as_deref().unwrap_or("Tanh");
    let tanh = match activation.rsplit('.').next().unwrap_or_default() {
        "Tanh" => true,
        "Identity" => false,
        other => {
            return Err(refuse(format!(
                "{path} applies `{other}`; Identity and Tanh are supported"
            )));
        }
    };
    let (inputs, outputs) = (raw.in_features, raw.out_features);
    if !(1..=WIDEST).contains(&inputs) || !(1..=WIDEST).contains(&outputs) {
        return Err(refuse(format!("{path} is a layer of {inputs} inputs and {outputs} outputs")));
    }
    let weights = ["model.safetensors", "pytorch_model.bin"]
        .map(|file| folder.join(file))
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| missing(dir, &format!("{path}/model.safetensors")))?;
    Ok(Projection { weights, inputs, outputs, bias: raw.bias, tanh })
}

fn splade_pooling(dir: &Path, path: &str, refuse: &impl Fn(String) -> Error) -> Result<(), Error> {
    let file = dir.join(sub_folder(path, refuse)?).join("config.json");
    let Some(raw) = read_json::<RawSpladePooling>(&file)? else { return Ok(()) };
    let strategy = raw.pooling_strategy.as_deref().unwrap_or("max");
    let activation = raw.activation_function.as_deref().unwrap_or("relu");
    if (strategy, activation) == ("max", "relu") {
        return Ok(());
    }
    Err(refuse(format!(
        "{path} pools by `{strategy}` of `{activation}`; max of log(1 + relu) is supported"
    )))
}

/// A folder name from `modules.json`, which must not lead out of the model folder.
fn sub_folder<'a>(path: &'a str, refuse: &impl Fn(String) -> Error) -> Result<&'a str, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if path.chars().all(plain) {
        return Ok(path);
    }
    Err(refuse(format!("modules.json names the folder `{}`", path.escape_debug())))
}
