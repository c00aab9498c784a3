//! Functions that are to make other vectors: the stored texts are embedded anew, in the background.
//!
//! The catalog knows what is pending, so a restart goes on where it stopped. A round takes a step
//! for each collection: some rows, as many as the model does in a while, at the priority of inserts,
//! which every search goes before. What fails (a model that is not there, a full disk) is told and
//! tried again. Storage's part, and why no search sees a mix, is in
//! [`elanus_storage::Engine::next_unfilled`] and what stands beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use elanus_storage::{Collection, CollectionInfo};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::node::Node;
use crate::plan::function;
use crate::status::Failure;

/// Between rounds while something is pending and waits: for an index, or for what failed to mend.
const INDEXING_PAUSE: Duration = Duration::from_millis(200);
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// Between looks when nothing was asked for.
const IDLE_PAUSE: Duration = Duration::from_secs(60);

/// Rows of a step: the first has few, and the next as many as took about so long.
const FIRST_ROWS: usize = 64;
const MOST_ROWS: usize = 4_096;
const STEP: Duration = Duration::from_secs(10);
/// Dense vectors of a step take no more.
const MOST_BYTES: usize = 64 << 20;

/// Collections that are worked on at a time: each has the rows of a step in memory.
const COLLECTIONS_AT_ONCE: usize = 2;

/// How often the log tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What is known of the changes under way; the catalog has all that matters.
#[derive(Debug, Default)]
pub struct Reembedding {
    wake: Arc<Notify>,
    jobs: Mutex<HashMap<i64, Job>>,
}

/// The change of one collection.
#[derive(Clone, Debug)]
struct Job {
    /// Rows of the next step.
    rows: usize,
    told: Instant,
    /// Why the last step failed, if it did.
    trouble: Option<String>,
    /// No step is taken before.
    not_before: Instant,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// There may be more to do at once.
    Done,
    /// An index is being built.
    Indexing,
    Failed,
}

impl Reembedding {
    /// Has the pending functions looked at now.
    pub fn wake(&self) {
        // What failed may be what was altered.
        self.jobs().clear();
        self.wake.notify_one();
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<i64, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the work for as long as the node is there.
pub fn in_background(node: &Arc<Node>) {
    let (weak, wake) = (Arc::downgrade(node), Arc::clone(&node.reembedding.wake));
    tokio::spawn(async move {
        while let Some(node) = weak.upgrade() {
            let pause = node.reembed_round().await;
            drop(node);
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}

impl Node {
    /// Takes a step for every collection with pending functions; returns how long the next round
    /// may wait.
    async fn reembed_round(&self) -> Duration {
        let catalog = self.catalog();
        let pending = |info: &&Arc<CollectionInfo>| !info.schema.pending.is_empty();
        let pending: Vec<_> = catalog.all_collections().filter(pending).collect();
        self.reembedding.jobs().retain(|id, _| pending.iter().any(|info| info.id == *id));
        let steps: Vec<_> = pending.into_iter().map(|info| self.reembed_step(info)).collect();
        let steps = stream::iter(steps).buffer_unordered(COLLECTIONS_AT_ONCE);
        let steps: Vec<Step> = steps.collect().await;
        match steps.into_iter().min() {
            None => IDLE_PAUSE,
            Some(Step::Done) => Duration::ZERO,
            Some(Step::Indexing) => INDEXING_PAUSE,
            Some(Step::Failed) => FAILURE_PAUSE,
        }
    }

    async fn reembed_step(&self, info: &CollectionInfo) -> Step {
        let Some(collection) = self.engine.collection(info.id) else { return Step::Failed };
        let began = Instant::now();
        let new = Job { rows: FIRST_ROWS, told: began, trouble: None, not_before: began };
        let mut job = self.reembedding.jobs().entry(info.id).or_insert(new).clone();
        if began < job.not_before {
            return Step::Failed;
        }
        let (step, trouble) = match self.reembed_rows(&collection, job.rows).await {
            Ok(Some(rows)) => {
                // As many more or fewer as the time was short or long.
                let factor = STEP.as_secs_f64() / began.elapsed().as_secs_f64().max(0.001);
                if factor > 2.0 && rows == job.rows {
                    job.rows = (rows * 2).min(MOST_ROWS);
                } else if factor < 0.5 {
                    job.rows = (rows / 2).max(FIRST_ROWS);
                }
                (Step::Done, None)
            }
            Ok(None) => match self.end_reembedding(info, &collection).await {
                Ok(step) => (step, None),
                Err(failure) => (Step::Failed, Some(failure.to_string())),
            },
            // The collection or the node is going.
            Err(failure) if self.engine.collection(info.id).is_none() => {
                tracing::debug!(%failure, collection = info.name, "embedding anew ended");
                (Step::Failed, None)
            }
            Err(failure) => (Step::Failed, Some(failure.to_string())),
        };
        if let Some(reason) = &trouble
            && job.trouble != trouble
        {
            tracing::warn!(reason, collection = info.name, "stored texts wait to be embedded anew");
        }
        job.trouble = trouble;
        if step == Step::Failed {
            job.not_before = Instant::now() + FAILURE_PAUSE;
        }
        if job.told.elapsed() >= TELL_EVERY
            && let Some(progress) = collection.refill_progress()
        {
            job.told = Instant::now();
            let (rows, done) = (progress.rows, progress.filled);
            tracing::info!(collection = info.name, rows, done, "stored texts are embedded anew");
        }
        // Not if the functions were altered meanwhile: what is known is of another model.
        if let Some(known) = self.reembedding.jobs().get_mut(&info.id) {
            *known = job;
        }
        step
    }

    /// Embeds the texts of the next rows; returns how many, or `None` if none are left.
    async fn reembed_rows(
        &self,
        collection: &Collection,
        most: usize,
    ) -> Result<Option<usize>, Failure> {
        let info = collection.info();
        let widths = info.schema.pending_fields().filter_map(|f| f.data_type.bytes_per_row());
        let most = most.min(MOST_BYTES / widths.sum::<usize>().max(1));
        let Some(rows) = self.engine.next_unfilled(collection.id(), most).await? else {
            return Ok(None);
        };
        self.check_room()?;
        let count = rows.inputs.num_rows();
        let schema = collection.info().schema.written();
        let values = function::refill(self.engines(), &schema, &rows).await?;
        self.engine.fill(rows, values).await?;
        Ok(Some(count))
    }

    /// Lets the new vectors be seen, once they are searched as quickly as the old.
    async fn end_reembedding(
        &self,
        info: &CollectionInfo,
        collection: &Collection,
    ) -> Result<Step, Failure> {
        let progress = collection.refill_progress();
        let indexing = |p: &elanus_storage::RefillProgress| p.unindexed > 0 && p.failure.is_none();
        if progress.as_ref().is_some_and(indexing) {
            return Ok(Step::Indexing);
        }
        // Otherwise rows came that had been on their way, or the change was given up.
        if self.engine.end_refill(info.id).await? {
            let rows = progress.map_or(0, |progress| progress.rows);
            tracing::info!(collection = info.name, rows, "vectors of new functions are in use");
        }
        Ok(Step::Done)
    }

    /// How far the pending functions of a collection are, for its users; `None` without any.
    pub fn reembedding_state(&self, info: &CollectionInfo) -> Option<Value> {
        let progress = self.engine.collection(info.id)?.refill_progress()?;
        let functions: HashMap<&str, HashMap<&str, &str>> = (info.schema.pending.iter())
            .map(|refill| {
                let params = refill.function.params.iter();
                let params = params.map(|(key, value)| (key.as_str(), value.as_str())).collect();
                (refill.function.name.as_str(), params)
            })
            .collect();
        let trouble = self.reembedding.jobs().get(&info.id).and_then(|job| job.trouble.clone());
        let state = match (&trouble, progress.filled < progress.rows) {
            (Some(_), _) => "waiting",
            (None, true) => "embedding",
            (None, false) => "indexing",
        };
        Some(json!({
            "state": state,
            "functions": functions,
            "rows": progress.rows,
            "embedded_rows": progress.filled,
            "unindexed_rows": progress.unindexed,
            "reason": trouble.or(progress.failure),
        }))
    }

    /// Rows of all collections whose texts are still to be embedded anew.
    pub fn rows_to_reembed(&self) -> usize {
        let catalog = self.catalog();
        (catalog.all_collections())
            .filter_map(|info| self.engine.collection(info.id)?.refill_progress())
            .map(|progress| progress.rows.saturating_sub(progress.filled))
            .sum()
    }
}
