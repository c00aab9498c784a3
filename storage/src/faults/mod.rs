//! The whole engine on a disk that fails: what a crash, a refused call or a broken sync leaves.
//!
//! A [`script`] of operations runs on a [`MemoryDisk`]. A [`model::Model`] says what the collections must
//! hold after each of them; [`model::Model::seen`] reads what they do hold, through queries as well as
//! searches.
//!
//! | module | is for |
//! |---|---|
//! | [`script`] | the operations on the engine |
//! | [`model`] | the same on the model |
//! | `crash` | a crash at every call, and another one while recovering from it |
//! | `refusal` | calls that fail and a process that goes on |

mod crash;
mod model;
mod refusal;
mod script;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::disk::memory::MemoryDisk;
use crate::{Engine, Error, Options, Wall};

/// The time of day, in seconds.
type Time = Arc<AtomicU64>;

/// Opens the engine on a disk. Nothing is sealed but where the script says so.
async fn open(disk: &MemoryDisk, time: &Time) -> Result<Engine, Error> {
    let time = Arc::clone(time);
    let options = Options {
        dir: PathBuf::from("/data"),
        search_threads: 1,
        build_threads: 1,
        index_rows: 4,
        // None: what the disk refuses is told to it.
        disk_reserve_bytes: 1,
        // Deleted rows can leave the disk when the script lets time pass.
        retention_ms: 30_000,
        wall: Wall::new(move || time.load(Ordering::SeqCst) * 1_000),
        ..Options::default()
    };
    Engine::open_on(Arc::new(disk.clone()), options).await
}

/// A runtime for one thread of a test.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs work for each number below `n`, on all cores.
fn for_each(n: usize, work: impl AsyncFn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                runtime().block_on(async {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n {
                            break;
                        }
                        work(i).await;
                    }
                });
            });
        }
    });
}

/// Waits until background work leaves the disk alone.
async fn settle(disk: &MemoryDisk) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let (mut calls, mut quiet) = (disk.calls(), 0);
    while quiet < 3 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
        quiet = if disk.calls() == calls { quiet + 1 } else { 0 };
        calls = disk.calls();
    }
}
