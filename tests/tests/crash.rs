//! Nothing acknowledged is lost when the process is killed, at whatever moment: in the middle of
//! a write, a flush, a compaction or the build of an index.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use elanus_proto::milvus::{
    DescribeIndexRequest, FlushRequest, GetCompactionStateRequest, ManualCompactionRequest,
};
use elanus_tests::ledger::{self, COLLECTION, End, Ledger};
use elanus_tests::{Random, TestNode, from_env};

const WRITERS: usize = 4;
/// Rows that nobody changes, of one more writer: they make building the graph take as long as a
/// round.
const QUIET_ROWS: i64 = 12_000;
/// How long the node is watched for the moment to kill it.
const WATCH: Duration = Duration::from_secs(2);

/// What the node is to be killed in, beside the writes that are under way all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Inside {
    Writes,
    Flush,
    Compaction,
    IndexBuild,
}

const ALL: [Inside; 4] = [Inside::Writes, Inside::Flush, Inside::Compaction, Inside::IndexBuild];

/// Kills the node; returns whether that was seen to be inside of what it should be.
async fn kill(node: &mut TestNode, inside: Inside, random: &mut Random) -> Result<bool> {
    let mut client = node.client().await?;
    tokio::time::sleep(Duration::from_millis(20 + random.below(300) as u64)).await;
    let a_little = Duration::from_millis(random.below(8) as u64);
    let deadline = Instant::now() + WATCH;
    match inside {
        Inside::Writes => {
            node.kill9()?;
            Ok(true)
        }
        Inside::Flush => {
            let request = FlushRequest {
                collection_names: vec![COLLECTION.to_owned()],
                ..FlushRequest::default()
            };
            let flush = tokio::spawn(async move { client.flush(request).await.is_ok() });
            tokio::time::sleep(a_little).await;
            node.kill9()?;
            // It was asked for and never answered.
            Ok(!flush.await?)
        }
        Inside::Compaction => {
            let request = ManualCompactionRequest {
                collection_name: COLLECTION.to_owned(),
                ..ManualCompactionRequest::default()
            };
            let id = client.manual_compaction(request).await?.into_inner().compaction_id;
            tokio::time::sleep(a_little).await;
            let request = GetCompactionStateRequest { compaction_id: id };
            let state = client.get_compaction_state(request).await?.into_inner();
            node.kill9()?;
            Ok(state.executing_plan_no > 0)
        }
        Inside::IndexBuild => loop {
            let built = || node.log_text().matches("an index was built").count();
            let before = built();
            let request = DescribeIndexRequest {
                collection_name: COLLECTION.to_owned(),
                ..DescribeIndexRequest::default()
            };
            let indexes = client.describe_index(request).await?.into_inner().index_descriptions;
            let pending = indexes.iter().any(|index| index.pending_index_rows > 0);
            if pending || Instant::now() > deadline {
                node.kill9()?;
                // Nor was it finished in the last moment.
                let built = node.log_text().matches("an index was built").count();
                return Ok(pending && built == before);
            }
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_find_every_acknowledged_row_after_the_node_was_killed() {
    let seed = Random::seed_from_env(20_261_121);
    let rounds = from_env("ELANUS_ROUNDS", 20);
    let mut random = Random::new(seed);
    let mut node = TestNode::start().unwrap();
    let mut client = node.client().await.unwrap();
    ledger::create(&mut client).await.unwrap();
    let mut quiet = ledger::quiet(&mut client, WRITERS, QUIET_ROWS).await.unwrap();

    let mut ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
    let mut landed: BTreeMap<Inside, usize> = BTreeMap::new();
    for round in 0..rounds {
        let mut tasks = Vec::new();
        for (writer, ledger) in ledgers.drain(..).enumerate() {
            let client = node.client().await.unwrap();
            let random = Random::new(random.bits());
            let write = ledger::write_until_cut_off(client, writer, ledger, random, End::Kill);
            tasks.push(tokio::spawn(write));
        }
        let inside = ALL[round % ALL.len()];
        if kill(&mut node, inside, &mut random).await.unwrap() {
            *landed.entry(inside).or_default() += 1;
        }
        for task in tasks {
            ledgers.push(task.await.unwrap().unwrap());
        }
        node.reopen().unwrap();
        let mut client = node.client().await.unwrap();
        for (writer, ledger) in ledgers.iter_mut().chain([&mut quiet]).enumerate() {
            ledger::verify(&mut client, writer, ledger, &mut random)
                .await
                .unwrap_or_else(|error| panic!("round {round}, writer {writer}: {error:#}"));
        }
    }
    let acknowledged: usize = ledgers.iter().map(Ledger::acknowledged).sum();
    let rows: usize = ledgers.iter().map(Ledger::rows).sum();
    eprintln!("{rounds} kills, {acknowledged} acknowledged calls, {rows} rows at the end");
    eprintln!("kills inside: {landed:?}");
    assert!(acknowledged > rounds * WRITERS, "the writers hardly wrote: the test proves nothing");
    let reached = landed.values().filter(|kills| **kills > 0).count();
    assert!(rounds < 3 * ALL.len() || reached == ALL.len(), "kills missed their aim: {landed:?}");
}
