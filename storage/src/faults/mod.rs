//! The whole engine on a disk that fails: what a crash, a refused call or a broken sync leaves.
//!
//! A [`script`] of operations runs on a [`MemoryDisk`]. A [`Model`] says what the collections must
//! hold after each of them; [`Model::seen`] reads what they do hold, through queries as well as
//! searches.
//!
//! | module | is for |
//! |---|---|
//! | [`script`] | the operations, on the engine and on the model |
//! | `crash` | a crash at every call, and another one while recovering from it |
//! | `refusal` | calls that fail and a process that goes on |

mod crash;
mod refusal;
mod script;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::memory::MemoryDisk;
use crate::{Engine, Error, Options};

/// Opens the engine on a disk. Nothing is sealed but where the script says so.
async fn open(disk: &MemoryDisk) -> Result<Engine, Error> {
    let options = Options {
        dir: PathBuf::from("/data"),
        search_threads: 1,
        build_threads: 1,
        graph_rows: 4,
        // None: what the disk refuses is told to it.
        disk_reserve_bytes: 1,
        ..Options::default()
    };
    Engine::open_on(Arc::new(disk.clone()), options).await
}

/// A runtime for one thread of a test.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
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
