//! What writers were told, and whether a node still holds it.
//!
//! Writers own disjoint ranges of keys and keep a [`Ledger`] of what was acknowledged. A call that
//! was cut off is in doubt: it may have happened or not, but as a whole. Once the node is back,
//! [`verify`] compares everything that it holds with the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use elanus_proto::milvus::{
    DeleteRequest, FlushRequest, InsertRequest, ManualCompactionRequest, UpsertRequest,
};
use elanus_proto::schema::FieldData;

use crate::Random;
use crate::wire::{self, Client};

/// The collection that all ledgers are about.
pub const COLLECTION: &str = "ledger";
const DIM: usize = 4;
/// Keys of one writer lie in `writer * RANGE ..`; all of them are exact as `f32`.
const RANGE: i64 = 1 << 20;
/// Rows of one writer from which on it only changes and deletes: a long run does not need more
/// memory the longer it takes.
const MOST_ROWS: usize = 10_000;
/// The most rows that one search or query may return.
const PAGE: usize = 16_384;

/// What one writer knows: the version of each row that is there, and which keys are free.
#[derive(Default)]
pub struct Ledger {
    rows: BTreeMap<i64, i64>,
    next_key: i64,
    next_version: i64,
    /// The call that was cut off: what it would have made of some rows (`None` is deleted).
    doubt: Option<Vec<(i64, Option<i64>)>>,
    acknowledged: usize,
}

/// Creates the collection that all ledgers are about, with a graph over its vectors, and loads it.
///
/// # Errors
/// When one of the steps fails.
pub async fn create(client: &mut Client) -> Result<()> {
    let schema = wire::counting_schema(COLLECTION, &["writer", "version"], DIM);
    let index = [("index_type", "HNSW"), ("M", "16"), ("efConstruction", "400")];
    wire::create_and_load_with(client, &schema, &index).await
}

/// Inserts `rows` rows that nobody will change: they make the build of the graph take its time.
///
/// # Errors
/// When the node refuses them.
pub async fn quiet(client: &mut Client, writer: usize, rows: i64) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    let keys: Vec<i64> = (0..rows).map(|key| writer as i64 * RANGE + key).collect();
    for keys in keys.chunks(4_000) {
        let answer = client.insert(insert(writer, keys, 1)).await?;
        wire::check(answer.get_ref().status.as_ref())?;
        ledger.rows.extend(keys.iter().map(|key| (*key, 1)));
    }
    Ok(ledger)
}

/// How a run of writers comes to its end.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The process is killed: calls break off, and a refusal is a fault.
    Kill,
    /// The disk goes away under the process: from then on it refuses. The flag is set just before.
    /// What is answered after that counts as in doubt: where power fails nobody is left to answer,
    /// but here the process lives on, and ext4 can report success to a sync that was under way.
    Refusal(&'static AtomicBool),
}

impl End {
    fn has_come(self) -> bool {
        matches!(self, Self::Refusal(cut) if cut.load(Ordering::SeqCst))
    }
}

/// Inserts, replaces, deletes and seals rows until a call fails because the node is gone.
///
/// # Errors
/// When the node refuses what it should have done.
pub async fn write_until_cut_off(
    mut client: Client,
    writer: usize,
    mut ledger: Ledger,
    mut random: Random,
    end: End,
) -> Result<Ledger> {
    loop {
        let present: Vec<i64> = ledger.rows.keys().copied().collect();
        let some = 1 + random.below(40);
        let (outcome, effect) = if present.is_empty()
            || (present.len() < MOST_ROWS && random.chance(45))
        {
            let first = writer as i64 * RANGE + ledger.next_key;
            ledger.next_key += some as i64;
            let keys: Vec<i64> = (first..first + some as i64).collect();
            let version = ledger.version();
            let outcome = client.insert(insert(writer, &keys, version)).await;
            (outcome, keys.iter().map(|key| (*key, Some(version))).collect())
        } else if random.chance(50) {
            let keys = random.pick(&present, some);
            let version = ledger.version();
            // Inserting a key again replaces the row, as upserting it does.
            let request = insert(writer, &keys, version);
            let outcome = if random.chance(30) {
                client.insert(request).await
            } else {
                client.upsert(upsert(request)).await
            };
            (outcome, keys.iter().map(|key| (*key, Some(version))).collect())
        } else if random.chance(85) {
            let keys = random.pick(&present, some);
            let expr = format!("id in {keys:?}");
            let request = DeleteRequest {
                collection_name: COLLECTION.to_owned(),
                expr,
                ..DeleteRequest::default()
            };
            (client.delete(request).await, keys.iter().map(|key| (*key, None)).collect::<Vec<_>>())
        } else {
            // Rows move from the log to sealed files, or from these to others.
            let status = if random.chance(60) {
                let request = FlushRequest {
                    collection_names: vec![COLLECTION.to_owned()],
                    ..FlushRequest::default()
                };
                client.flush(request).await.map(|answer| answer.into_inner().status)
            } else {
                let request = ManualCompactionRequest {
                    collection_name: COLLECTION.to_owned(),
                    ..ManualCompactionRequest::default()
                };
                client.manual_compaction(request).await.map(|answer| answer.into_inner().status)
            };
            match status {
                Ok(status) => match wire::check(status.as_ref()) {
                    Ok(()) => continue,
                    Err(_) if matches!(end, End::Refusal(_)) => return Ok(ledger),
                    Err(refusal) => return Err(refusal),
                },
                Err(_) => return Ok(ledger),
            }
        };
        let checked = match outcome {
            Ok(answer) => match wire::check(answer.get_ref().status.as_ref()) {
                // It is a fault of the test or of the node, never of the kill.
                Err(refusal) if matches!(end, End::Kill) => return Err(refusal),
                checked => checked,
            },
            Err(cut_off) => Err(cut_off.into()),
        };
        if checked.is_err() || end.has_come() {
            ledger.doubt = Some(effect);
            return Ok(ledger);
        }
        ledger.apply(&effect);
        ledger.acknowledged += 1;
    }
}

/// Compares what the node holds of one writer's rows with the ledger, by query and by search.
///
/// # Errors
/// When something was lost, came back or is there twice; the text says what.
pub async fn verify(
    client: &mut Client,
    writer: usize,
    ledger: &mut Ledger,
    random: &mut Random,
) -> Result<()> {
    let found = rows_by_query(client, writer).await?;
    if let Some(effect) = ledger.doubt.take() {
        let (before, mut after) = (ledger.rows.clone(), Ledger::default());
        after.rows.clone_from(&before);
        after.apply(&effect);
        // As a whole, or not at all.
        if found == after.rows && found != before {
            ledger.rows = after.rows;
        }
    }
    let lost: Vec<_> =
        ledger.rows.iter().filter(|(k, v)| found.get(k) != Some(v)).take(5).collect();
    let extra: Vec<_> =
        found.iter().filter(|(k, v)| ledger.rows.get(k) != Some(v)).take(5).collect();
    ensure!(
        found == ledger.rows,
        "the node holds {} rows, {} were acknowledged; expected but not found {lost:?}, found but \
         not expected {extra:?}",
        found.len(),
        ledger.rows.len(),
    );

    let filter = format!("writer == {writer}");
    let count = client.query(wire::query(COLLECTION, &filter, &["count(*)"])).await?.into_inner();
    wire::check(count.status.as_ref())?;
    let count = wire::longs_of(&count.fields_data, "count(*)");
    ensure!(count == [found.len() as i64], "count(*) is {count:?}, there are {} rows", found.len());

    // Every row is found by its own vector, at distance zero and once.
    let keys: Vec<i64> = found.keys().copied().collect();
    for key in random.pick(&keys, 5) {
        let vector = vector(writer, key, found[&key]);
        let mut request = wire::search(COLLECTION, "vector", &vector, 3);
        request.dsl.clone_from(&filter);
        // Within a range the answer is exact, graph or not.
        request.search_params.push(wire::pair("radius", &1e30));
        let answer = client.search(request).await?.into_inner();
        wire::check(answer.status.as_ref())?;
        let hits = answer.results.unwrap_or_default();
        let ids = wire::int_ids(hits.ids.as_ref());
        ensure!(
            ids.first() == Some(&key) && hits.scores.first() == Some(&0.0),
            "row {key} is not the best hit of its own vector: {ids:?} at {:?}",
            hits.scores
        );
    }
    // What the graph finds is there, too.
    let mut request = wire::search(COLLECTION, "vector", &[0.0; DIM], 10);
    request.dsl.clone_from(&filter);
    let answer = client.search(request).await?.into_inner();
    wire::check(answer.status.as_ref())?;
    let ids = wire::int_ids(answer.results.unwrap_or_default().ids.as_ref());
    ensure!(ids.len() == found.len().min(10), "{} of 10 rows are found", ids.len());
    ensure!(ids.iter().all(|key| found.contains_key(key)), "a row that is gone is found: {ids:?}");

    let mut request = wire::search(COLLECTION, "vector", &[0.0; DIM], PAGE);
    request.dsl = filter;
    let answer = client.search(request).await?.into_inner();
    wire::check(answer.status.as_ref())?;
    let ids = wire::int_ids(answer.results.unwrap_or_default().ids.as_ref());
    let distinct: BTreeSet<i64> = ids.iter().copied().collect();
    ensure!(distinct.len() == ids.len(), "a search returns a row twice");
    ensure!(
        ids.len() == found.len().min(PAGE) && distinct.iter().all(|key| found.contains_key(key)),
        "a search over everything returns {} rows, there are {}",
        ids.len(),
        found.len()
    );
    Ok(())
}

/// All rows of one writer, page by page.
async fn rows_by_query(client: &mut Client, writer: usize) -> Result<BTreeMap<i64, i64>> {
    let mut rows = BTreeMap::new();
    let mut after = -1;
    loop {
        let filter = format!("writer == {writer} and id > {after}");
        let mut request = wire::query(COLLECTION, &filter, &["id", "version"]);
        request.query_params = vec![wire::pair("limit", &PAGE)];
        let page = client.query(request).await?.into_inner();
        wire::check(page.status.as_ref())?;
        let keys = wire::longs_of(&page.fields_data, "id");
        let versions = wire::longs_of(&page.fields_data, "version");
        ensure!(keys.len() == versions.len(), "columns of different length");
        ensure!(keys.is_sorted_by(|a, b| a < b), "a key appears twice, or out of order");
        let Some(last) = keys.last() else { return Ok(rows) };
        after = *last;
        rows.extend(keys.into_iter().zip(versions));
    }
}

impl Ledger {
    /// Calls that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Rows that must be there.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    fn version(&mut self) -> i64 {
        self.next_version += 1;
        self.next_version
    }

    fn apply(&mut self, effect: &[(i64, Option<i64>)]) {
        for (key, version) in effect {
            match version {
                Some(version) => self.rows.insert(*key, *version),
                None => self.rows.remove(key),
            };
        }
    }
}

fn insert(writer: usize, keys: &[i64], version: i64) -> InsertRequest {
    InsertRequest {
        collection_name: COLLECTION.to_owned(),
        fields_data: columns(writer, keys, version),
        num_rows: keys.len() as u32,
        ..InsertRequest::default()
    }
}

fn upsert(insert: InsertRequest) -> UpsertRequest {
    UpsertRequest {
        collection_name: insert.collection_name,
        fields_data: insert.fields_data,
        num_rows: insert.num_rows,
        ..UpsertRequest::default()
    }
}

fn columns(writer: usize, keys: &[i64], version: i64) -> Vec<FieldData> {
    let vectors = keys.iter().flat_map(|key| vector(writer, *key, version)).collect();
    vec![
        wire::longs("id", keys.to_vec()),
        wire::longs("writer", vec![writer as i64; keys.len()]),
        wire::longs("version", vec![version; keys.len()]),
        wire::floats("vector", DIM, vectors),
    ]
}

/// A vector that no other row, and no other version of this row, has.
fn vector(writer: usize, key: i64, version: i64) -> [f32; DIM] {
    [(key % RANGE) as f32, version as f32, writer as f32, 1.0]
}
