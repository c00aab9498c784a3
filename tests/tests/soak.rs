//! A long mixed run: writers, readers that check what they see, and kills.
//!
//! `make soak SEED=7 HOURS=2` runs it. Four writers keep ledgers; a fifth replaces the rows of a
//! small collection all at once, each time with the next number, and two readers look at them
//! under Strong consistency. A read is *stale* if it shows a number older than one acknowledged
//! before the read began, *torn* if it shows two, *backwards* if it shows a smaller one than the
//! reader has seen. The process is killed every `ELANUS_KILL_EVERY` seconds (0: never) and
//! compared with the ledgers; between kills its memory and its file descriptors are watched. Rows
//! that are replaced are kept for [`RETENTION`], so what is in use is compared from [`WARM_UP`] on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use elanus_proto::milvus::{FlushRequest, UpsertRequest};
use elanus_tests::ledger::{self, End, Ledger};
use elanus_tests::wire::{self, Client};
use elanus_tests::{Random, TestNode, from_env};

const WRITERS: usize = 4;
const READERS: usize = 2;
const PULSE: &str = "pulse";
/// Rows of the small collection.
const ROWS: i64 = 20;
/// Numbers written between two seals of the small collection.
const SEAL_EVERY: i64 = 1_000;

/// For how many seconds the node keeps what is deleted or replaced.
const RETENTION: usize = 60;
/// Seconds after which as much is forgotten as comes, and the ledgers are full.
const WARM_UP: usize = 4 * RETENTION;

/// Numbers that were acknowledged, and when to stop.
#[derive(Default)]
struct Pulse {
    acknowledged: AtomicI64,
    stop: AtomicBool,
}

/// Writes the next number into all rows, until a call fails because the node is gone.
async fn beat(mut client: Client, pulse: Arc<Pulse>) -> Result<()> {
    // The call that was cut off may have happened.
    let mut number = pulse.acknowledged.load(Ordering::SeqCst) + 1;
    while !pulse.stop.load(Ordering::SeqCst) {
        number += 1;
        let request = UpsertRequest {
            collection_name: PULSE.to_owned(),
            fields_data: vec![
                wire::longs("id", (0..ROWS).collect()),
                wire::longs("number", vec![number; ROWS as usize]),
                wire::floats("vector", 2, vec![number as f32; 2 * ROWS as usize]),
            ],
            num_rows: ROWS as u32,
            ..UpsertRequest::default()
        };
        let Ok(answer) = client.upsert(request).await else { return Ok(()) };
        wire::check(answer.get_ref().status.as_ref())?;
        pulse.acknowledged.store(number, Ordering::SeqCst);
        // Replaced rows are in memory until their segment is sealed, which would otherwise come
        // once in a long while for rows so small.
        if number % SEAL_EVERY == 0 {
            let request = FlushRequest {
                collection_names: vec![PULSE.to_owned()],
                ..FlushRequest::default()
            };
            let Ok(answer) = client.flush(request).await else { return Ok(()) };
            wire::check(answer.get_ref().status.as_ref())?;
        }
    }
    Ok(())
}

/// Reads all rows again and again; returns how often.
async fn watch(mut client: Client, pulse: Arc<Pulse>) -> Result<usize> {
    let (mut reads, mut seen) = (0, 0);
    while !pulse.stop.load(Ordering::SeqCst) {
        let acknowledged = pulse.acknowledged.load(Ordering::SeqCst);
        let Ok(answer) = client.query(wire::query(PULSE, "id >= 0", &["number"])).await else {
            return Ok(reads);
        };
        let answer = answer.into_inner();
        wire::check(answer.status.as_ref())?;
        let numbers = wire::longs_of(&answer.fields_data, "number");
        let Some(&number) = numbers.first() else {
            ensure!(acknowledged == 0, "a read shows nothing, {acknowledged} was acknowledged");
            continue;
        };
        ensure!(numbers.len() == ROWS as usize, "a read shows {} rows", numbers.len());
        ensure!(numbers.iter().all(|n| *n == number), "a torn read: {numbers:?}");
        ensure!(number >= acknowledged, "a stale read: {number}, {acknowledged} was acknowledged");
        ensure!(number >= seen, "a read backwards: {number} after {seen}");
        (seen, reads) = (number, reads + 1);
    }
    Ok(reads)
}

/// What a process uses.
#[derive(Clone, Copy)]
struct Footprint {
    /// Resident memory of its own, in KiB.
    own: u64,
    /// Resident pages of mapped files, in KiB.
    mapped: u64,
    /// Open file descriptors.
    files: usize,
}

impl Footprint {
    fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| -> Result<u64> {
            let line =
                status.lines().find(|line| line.starts_with(name)).context("no such line")?;
            Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
        };
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { own: kib("RssAnon:")?, mapped: kib("RssFile:")?, files })
    }
}

/// Compares the first fifth of a process's life after it was warm with the last. What the node keeps
/// of replaced rows is more the faster they are replaced, so the machine should have nothing else to do.
fn tell_growth(life: &[Footprint]) {
    let life = life.get(WARM_UP..).unwrap_or_default();
    let part = life.len() / 5;
    if part < 3 {
        return;
    }
    let median = |part: &[Footprint], of: fn(&Footprint) -> u64| {
        let mut values: Vec<u64> = part.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2] / 1024
    };
    let (early, late) = (&life[..part], &life[life.len() - part..]);
    let (own_early, own_late) = (median(early, |one| one.own), median(late, |one| one.own));
    eprintln!(
        "memory in the first and in the last fifth after {WARM_UP} s: own {own_early} and {own_late} \
         MiB, mapped {} and {} MiB; files {} and {}",
        median(early, |one| one.mapped),
        median(late, |one| one.mapped),
        early[0].files,
        late[0].files,
    );
    // More than a busy machine was seen to make of it: what is kept for ever grows twofold.
    assert!(own_late * 2 < own_early * 3, "{own_early} MiB became {own_late} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for ELANUS_SECONDS; `make soak`"]
async fn a_long_mixed_run_shows_nothing_stale_torn_lost_or_twice() {
    let seed = Random::seed_from_env(20_261_123);
    let length = Duration::from_secs(from_env("ELANUS_SECONDS", 600) as u64);
    let kill_every = Duration::from_secs(match from_env("ELANUS_KILL_EVERY", 60) {
        0 => u64::MAX,
        seconds => seconds as u64,
    });
    let mut random = Random::new(seed);
    let mut node = TestNode::start_with(&[&format!("retention_seconds={RETENTION}")]).unwrap();
    let mut client = node.client().await.unwrap();
    ledger::create(&mut client).await.unwrap();
    let schema = wire::counting_schema(PULSE, &["number"], 2);
    wire::create_and_load(&mut client, &schema).await.unwrap();

    let mut ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
    let began = Instant::now();
    let (mut kills, mut reads, mut beats) = (0, 0, 0);
    while began.elapsed() < length {
        let pulse = Arc::new(Pulse::default());
        pulse.acknowledged.store(beats, Ordering::SeqCst);
        let mut writers = Vec::new();
        for (writer, ledger) in ledgers.drain(..).enumerate() {
            let client = node.client().await.unwrap();
            let random = Random::new(random.bits());
            let write = ledger::write_until_cut_off(client, writer, ledger, random, End::Kill);
            writers.push(tokio::spawn(write));
        }
        let beating = tokio::spawn(beat(node.client().await.unwrap(), Arc::clone(&pulse)));
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let client = node.client().await.unwrap();
            readers.push(tokio::spawn(watch(client, Arc::clone(&pulse))));
        }
        let mut life = Vec::new();
        let until = began.elapsed().saturating_add(kill_every).min(length);
        while began.elapsed() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = Footprint::of(node.pid().unwrap()).unwrap();
            life.push(now);
            let seconds = began.elapsed().as_secs();
            if seconds.is_multiple_of(10) {
                let Footprint { own, mapped, files } = now;
                let beats = pulse.acknowledged.load(Ordering::SeqCst);
                eprintln!(
                    "{seconds:>6} s  {own:>9} KiB own  {mapped:>9} mapped  {files:>4} files  \
                     {beats:>9} beats"
                );
            }
            let ended = readers.iter().any(tokio::task::JoinHandle::is_finished);
            assert!(!ended && !beating.is_finished(), "a reader or the beat ended by itself");
        }
        tell_growth(&life);
        pulse.stop.store(true, Ordering::SeqCst);
        beating.await.unwrap().unwrap();
        for reader in readers {
            reads += reader.await.unwrap().unwrap();
        }
        beats = pulse.acknowledged.load(Ordering::SeqCst);
        node.kill9().unwrap();
        kills += 1;
        for writer in writers {
            ledgers.push(writer.await.unwrap().unwrap());
        }
        node.reopen().unwrap();
        let mut client = node.client().await.unwrap();
        for (writer, ledger) in ledgers.iter_mut().enumerate() {
            ledger::verify(&mut client, writer, ledger, &mut random)
                .await
                .unwrap_or_else(|error| panic!("kill {kills}, writer {writer}: {error:#}"));
        }
    }
    let acknowledged: usize = ledgers.iter().map(Ledger::acknowledged).sum();
    eprintln!(
        "{} s, {kills} kills, {acknowledged} acknowledged calls of the ledgers, {beats} beats, \
         {reads} reads: nothing stale, torn, backwards, lost or twice",
        began.elapsed().as_secs()
    );
}
