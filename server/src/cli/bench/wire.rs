//! The calls that a benchmark makes, in messages that every server of the Milvus API takes.

use anyhow::{Context, Result, bail};
use elanus_proto::common::{KeyValuePair, Status};
use elanus_proto::milvus::milvus_service_client::MilvusServiceClient;
use elanus_proto::schema::i_ds::IdField;
use elanus_proto::schema::{DataType, FieldSchema, SearchResultData};
use tonic::transport::{Channel, Endpoint};

/// 1 GiB: answers are small, but no server should be stopped by this side.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// A connection of its own.
pub(super) type Client = MilvusServiceClient<Channel>;

/// Where the server is, and which collection is used.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:19530", value_name = "URI")]
    pub(super) uri: String,
    /// The collection
    #[arg(long, default_value = "elanus_bench", value_name = "NAME")]
    pub(super) collection: String,
    /// The server's process, if it runs on this machine: tells its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
}

impl Target {
    /// Connects to the server.
    pub(super) async fn connect(&self) -> Result<Client> {
        let endpoint = Endpoint::from_shared(self.uri.clone())
            .with_context(|| format!("{}: expected a URI like http://127.0.0.1:19530", self.uri))?;
        let channel = endpoint.tcp_nodelay(true).connect().await;
        let channel = channel.with_context(|| format!("cannot connect to {}", self.uri))?;
        let client = MilvusServiceClient::new(channel);
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

pub(super) fn pair(key: &str, value: &(impl ToString + ?Sized)) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_string() }
}

/// Turns a failure that an answer tells of into an error.
pub(super) fn check(what: &str, status: Option<&Status>) -> Result<()> {
    match status {
        Some(Status { code, error_code, reason, .. }) if *code != 0 || *error_code != 0 => {
            bail!("{what}: the server says: {reason} (code {code}, {error_code})")
        }
        Some(_) | None => Ok(()),
    }
}

/// A field of a schema.
pub(super) fn field(id: i64, name: &str, kind: DataType, dim: Option<usize>) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.to_owned(),
        data_type: kind.into(),
        is_primary_key: name == "id",
        type_params: dim.map(|dim| pair("dim", &dim)).into_iter().collect(),
        ..FieldSchema::default()
    }
}

/// The keys of each query's results.
pub(super) fn ids(results: &SearchResultData) -> Result<Vec<&[i64]>> {
    let ids = match results.ids.as_ref().and_then(|ids| ids.id_field.as_ref()) {
        Some(IdField::IntId(ids)) => &*ids.data,
        Some(IdField::StrId(_) | IdField::UuidId(_)) => {
            bail!("expected INT64 keys, the collection has others")
        }
        None => &[],
    };
    let mut rest = ids;
    let lists = results.topks.iter().map(|count| {
        let count = usize::try_from(*count).ok();
        let (list, others) = count
            .and_then(|count| rest.split_at_checked(count))
            .context("the server counts more results than it sent")?;
        rest = others;
        Ok(list)
    });
    lists.collect()
}
