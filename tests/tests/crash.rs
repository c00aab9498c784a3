//! Nothing acknowledged is lost when the process is killed, at whatever moment: in the middle of
//! a write, a flush, a compaction or the build of an index.

use std::time::Duration;

use elanus_tests::ledger::{self, End, Ledger};
use elanus_tests::{Random, TestNode, from_env};

const WRITERS: usize = 4;
/// Rows that nobody changes, of one more writer: they make building the graph take as long as a
/// round.
const QUIET_ROWS: i64 = 12_000;

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
    for round in 0..rounds {
        let mut tasks = Vec::new();
        for (writer, ledger) in ledgers.drain(..).enumerate() {
            let client = node.client().await.unwrap();
            let random = Random::new(random.bits());
            let write = ledger::write_until_cut_off(client, writer, ledger, random, End::Kill);
            tasks.push(tokio::spawn(write));
        }
        tokio::time::sleep(Duration::from_millis(20 + random.below(400) as u64)).await;
        node.kill9().unwrap();
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
    assert!(acknowledged > rounds * WRITERS, "the writers hardly wrote: the test proves nothing");
}
