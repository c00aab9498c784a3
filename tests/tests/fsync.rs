//! What an acknowledgement costs and means in syncs, as the kernel sees them.
//!
//! `strace` counts the calls of the real binary, makes them slow, and lets them fail. Where it is
//! not installed or may not attach, the tests say so and pass.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use elanus_proto::milvus::InsertRequest;
use elanus_tests::TestNode;
use elanus_tests::wire::{self, Client};
use rustix::process::{Pid, Signal, kill_process};

const COLLECTION: &str = "synced";

/// `strace` attached to a node.
struct Tracer {
    child: Child,
    report: tempfile::NamedTempFile,
}

impl Tracer {
    /// Attaches to all threads; `inject` is what strace does to `fdatasync`.
    fn attach(node: &TestNode, inject: &str) -> Result<Self> {
        let report = tempfile::NamedTempFile::new()?;
        let mut child = Command::new("strace")
            .args(["-f", "-e", "trace=fsync,fdatasync", "-e"])
            .arg(format!("inject=fdatasync:{inject}"))
            .arg("-o")
            .arg(report.path())
            .args(["-p", &node.pid()?.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("strace cannot be started")?;
        let mut said = String::new();
        BufReader::new(child.stderr.take().context("strace has no stderr")?)
            .read_line(&mut said)?;
        // Made first, so that a tracer that did not attach is ended too.
        let tracer = Self { child, report };
        ensure!(said.contains("attached"), "strace did not attach: {}", said.trim());
        Ok(tracer)
    }

    /// Detaches and returns how many calls of that name were made.
    fn count(mut self, call: &str) -> Result<usize> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait()?;
        let text = std::fs::read_to_string(self.report.path())?;
        // A call that another thread's call interrupts is begun on one line and ended on another.
        Ok(text.lines().filter(|line| line.contains(&format!(" {call}("))).count())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node with the collection, and a tracer; `None` with a notice where there can be none.
async fn traced(inject: &str) -> Result<Option<(TestNode, Tracer)>> {
    let node = TestNode::start()?;
    let mut client = node.client().await?;
    wire::create_and_load(&mut client, &wire::counting_schema(COLLECTION, &[], 2)).await?;
    insert(&mut client, -1).await?;
    match Tracer::attach(&node, inject) {
        Ok(tracer) => Ok(Some((node, tracer))),
        Err(reason) => {
            eprintln!("SKIPPED: syncs cannot be counted here: {reason:#}");
            Ok(None)
        }
    }
}

async fn insert(client: &mut Client, key: i64) -> Result<()> {
    let request = InsertRequest {
        collection_name: COLLECTION.to_owned(),
        fields_data: vec![
            wire::longs("id", vec![key]),
            wire::floats("vector", 2, vec![key as f32, 1.0]),
        ],
        num_rows: 1,
        ..InsertRequest::default()
    };
    let answer = client.insert(request).await?.into_inner();
    wire::check(answer.status.as_ref())
}

async fn keys(client: &mut Client) -> Result<Vec<i64>> {
    let query = wire::query(COLLECTION, "id >= -1", &["id"]);
    let answer = client.query(query).await?.into_inner();
    wire::check(answer.status.as_ref())?;
    Ok(wire::longs_of(&answer.fields_data, "id"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writer_has_a_sync_for_every_acknowledgement() {
    let Some((node, tracer)) = traced("delay_enter=100").await.unwrap() else { return };
    let mut client = node.client().await.unwrap();
    for key in 0..30 {
        insert(&mut client, key).await.unwrap();
    }
    let syncs = tracer.count("fdatasync").unwrap();
    eprintln!("1 writer: 30 acknowledgements, {syncs} syncs");
    assert!(syncs >= 30, "{syncs} syncs for 30 acknowledgements");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_writers_share_syncs() {
    // A disk that takes 5 ms for a sync, so that what is counted is not how fast this one is.
    let Some((node, tracer)) = traced("delay_enter=5000").await.unwrap() else { return };
    let mut writers = Vec::new();
    for writer in 0..16 {
        let mut client = node.client().await.unwrap();
        writers.push(tokio::spawn(async move {
            for i in 0..20 {
                insert(&mut client, writer * 20 + i).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let syncs = tracer.count("fdatasync").unwrap();
    eprintln!("16 writers: 320 acknowledgements, {syncs} syncs");
    assert!(syncs > 0 && syncs * 4 <= 320, "{syncs} syncs for 320 acknowledgements");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_sync_failed_nothing_is_acknowledged_reads_go_on_and_health_says_why() {
    let Some((mut node, tracer)) = traced("error=EIO").await.unwrap() else { return };
    let mut client = node.client().await.unwrap();
    for key in 0..3 {
        insert(&mut client, key).await.unwrap_err();
    }
    drop(tracer);
    // Syncs work again, but what the kernel could not write may be gone: nothing is acknowledged.
    let refusal = insert(&mut client, 3).await.unwrap_err().to_string();
    assert!(refusal.contains("restart"), "{refusal}");
    assert_eq!(keys(&mut client).await.unwrap(), vec![-1]);
    let (ready, why) = node.ops_page("/readyz").unwrap();
    assert!(!ready && why.contains("sync failed"), "{why}");

    node.kill9().unwrap();
    node.reopen().unwrap();
    let mut client = node.client().await.unwrap();
    insert(&mut client, 4).await.unwrap();
    let found = keys(&mut client).await.unwrap();
    assert!(found.contains(&-1) && found.contains(&4), "{found:?}");
    // Of the refused writes only the one whose sync failed can have reached the disk.
    assert!(!found.contains(&1) && !found.contains(&2) && !found.contains(&3), "{found:?}");
}
