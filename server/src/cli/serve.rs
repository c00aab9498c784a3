//! `elanus serve`: flags become settings, settings become a running node.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use elanus::config::{Config, Sources};
use elanus::{serve, telemetry};

/// Every setting can also be given by environment variable (ELANUS_LISTEN, ELANUS_LIMITS_TOP_K, …)
/// or in a file; deploy/elanus.toml lists them all. A flag wins over the environment, that over
/// the file.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The directory that holds everything the node must not lose [default: ./elanus-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where clients connect, gRPC; port 0 picks a free one [default: 127.0.0.1:19530]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where health and metrics are served, HTTP [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDR")]
    ops_listen: Option<String>,
    /// `off` allows addresses that other machines can reach, without authorization
    #[arg(long, value_name = "off")]
    auth: Option<String>,
    /// A folder with models; may be repeated [default: DATA_DIR/models]
    #[arg(long = "model-dir", value_name = "DIR")]
    model_dirs: Vec<PathBuf>,
    /// A settings file
    #[arg(long, value_name = "FILE", env = "ELANUS_CONFIG")]
    config: Option<PathBuf>,
    /// Any other setting, as it would stand in the file: --set 'limits.top_k=100'
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, toml::Value)>,
}

/// Reads `key=value`, the value as TOML; a bare word is a text.
fn setting(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    Ok((key.trim().to_owned(), parsed))
}

impl Args {
    fn sources(self) -> Sources {
        let text = |path: PathBuf| toml::Value::String(path.to_string_lossy().into_owned());
        let mut flags = self.set;
        let mut flag = |key: &str, value: Option<toml::Value>| {
            flags.extend(value.map(|value| (key.to_owned(), value)));
        };
        flag("data_dir", self.data_dir.map(text));
        flag("listen", self.listen.map(toml::Value::String));
        flag("ops_listen", self.ops_listen.map(toml::Value::String));
        flag("auth", self.auth.map(toml::Value::String));
        if !self.model_dirs.is_empty() {
            let dirs = self.model_dirs.into_iter().map(text).collect();
            flag("model_dirs", Some(toml::Value::Array(dirs)));
        }
        let environment = super::environment();
        Sources { file: self.config, environment, flags }
    }
}

/// Runs the node until it is told to stop.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.sources())?;
    telemetry::init_logging(&config.log)?;
    crate::heap::tend().context("cannot start the thread that gives memory back")?;
    serve::run(config)
}
