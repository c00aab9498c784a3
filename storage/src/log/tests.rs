//! The log as a whole, on a disk that forgets what was not synced and fails on demand.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::Lsn;
use super::files::{DiskLog, Files, LogDir, LogFile};
use super::frame::{FILE_HEADER, FRAME_HEADER, Header};
use super::reader::{Replayed, replay};
use super::record::{Change, Record};
use super::writer::{Apply, CommitLog, LogControl, LogSize};
use crate::Error;
use crate::clock::{HybridClock, Ts, Wall};
use crate::disk::LocalDisk;
use crate::engine::Durability;
use crate::keys::Keys;

/// A log directory in memory.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Default)]
struct DiskState {
    files: BTreeMap<Lsn, FileState>,
    syncs: usize,
    sync_delay: Duration,
    fail_syncs: bool,
    /// Bytes that may still be written.
    room: Option<usize>,
    fail_truncate: bool,
}

#[derive(Clone, Default)]
struct FileState {
    bytes: Vec<u8>,
    synced: usize,
}

impl Disk {
    fn change<T>(&self, change: impl FnOnce(&mut DiskState) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    /// What a power cut leaves: synced bytes, and as much of the others as `keep` says.
    fn crashed(&self, keep: impl Fn(usize) -> usize) -> Self {
        let files = self.change(|disk| disk.files.clone());
        let files = (files.into_iter())
            .map(|(first, mut file)| {
                let len = file.synced + keep(file.bytes.len() - file.synced);
                file.bytes.truncate(len);
                (first, file)
            })
            .collect();
        Self(Arc::new(Mutex::new(DiskState { files, ..DiskState::default() })))
    }
}

impl LogDir for Disk {
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error> {
        Ok(self.change(|disk| disk.files.iter().map(|(f, s)| (*f, s.bytes.len() as u64)).collect()))
    }

    fn read(&self, first: Lsn) -> Result<Box<dyn Read>, Error> {
        Ok(Box::new(io::Cursor::new(self.change(|disk| disk.files[&first].bytes.clone()))))
    }

    fn create(&self, first: Lsn) -> Result<Box<dyn LogFile>, Error> {
        self.change(|disk| disk.files.insert(first, FileState::default()));
        Ok(Box::new(DiskFile { disk: self.clone(), first }))
    }

    fn settle(&self, first: Lsn, _: u64) -> Result<(), Error> {
        self.change(|disk| {
            let file = disk.files.get_mut(&first).unwrap();
            file.synced = file.bytes.len();
        });
        Ok(())
    }

    fn truncate(&self, first: Lsn, len: u64) -> Result<(), Error> {
        self.change(|disk| {
            let file = disk.files.get_mut(&first).unwrap();
            file.bytes.truncate(usize::try_from(len).unwrap());
            file.synced = file.bytes.len();
        });
        Ok(())
    }

    fn remove(&self, first: Lsn) -> Result<(), Error> {
        self.change(|disk| disk.files.remove(&first));
        Ok(())
    }

    fn path(&self, first: Lsn) -> PathBuf {
        format!("disk/{first}.log").into()
    }
}

struct DiskFile {
    disk: Disk,
    first: Lsn,
}

impl LogFile for DiskFile {
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.disk.change(|disk| {
            for part in parts {
                let fits = disk.room.map_or(part.len(), |room| room.min(part.len()));
                let file = disk.files.get_mut(&self.first).unwrap();
                file.bytes.extend_from_slice(&part[..fits]);
                disk.room = disk.room.map(|room| room - fits);
                if fits < part.len() {
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let delay = self.disk.change(|disk| disk.sync_delay);
        std::thread::sleep(delay);
        self.disk.change(|disk| {
            if disk.fail_syncs {
                return Err(io::Error::other("the disk is broken"));
            }
            disk.syncs += 1;
            let file = disk.files.get_mut(&self.first).unwrap();
            file.synced = file.bytes.len();
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.change(|disk| {
            if disk.fail_truncate {
                return Err(io::Error::other("the disk is broken"));
            }
            disk.files.get_mut(&self.first).unwrap().bytes.truncate(usize::try_from(len).unwrap());
            Ok(())
        })
    }
}

/// Remembers what was applied; its order is to start a new file.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<(Lsn, Ts, i64)>>>);

impl Memory {
    fn keys(&self) -> Vec<i64> {
        self.0.lock().unwrap().iter().map(|(_, _, key)| *key).collect()
    }
}

enum Order {
    Rotate,
    RemoveBelow(Lsn),
}

impl Apply for Memory {
    type Control = Order;

    fn admit(&self, record: &Record) -> Result<(), Error> {
        match &record.change {
            Change::Delete { keys: Keys::Int(keys), .. } if keys[0] == -404 => {
                Err(Error::PartitionNotFound("404".into()))
            }
            Change::Delete { .. } | Change::Insert(_) | Change::Replace { .. } => Ok(()),
        }
    }

    fn apply(&mut self, lsn: Lsn, ts: Ts, record: Record) -> Result<usize, Error> {
        let Change::Delete { keys: Keys::Int(keys), .. } = record.change else {
            panic!("a record of these tests has one key");
        };
        assert!(keys[0] != 666, "told to panic");
        self.0.lock().unwrap().push((lsn, ts, keys[0]));
        Ok(keys.len())
    }

    fn publish(&mut self, _: &LogSize) {}

    fn control(&mut self, order: Order, log: &mut LogControl<'_>) {
        match order {
            Order::Rotate => log.rotate().unwrap(),
            Order::RemoveBelow(lsn) => log.remove_below(lsn).unwrap(),
        }
    }
}

fn record(key: i64) -> Record {
    let change = Change::Delete { partitions: None, keys: Keys::Int(vec![key]) };
    Record { collection: 1, schema_version: 0, change }
}

type Log = CommitLog<Order>;

fn start_at(dir: impl LogDir + 'static, replayed: Replayed, memory: &Memory) -> Log {
    start_with(dir, replayed, memory, Durability::Sync)
}

fn start_with(
    dir: impl LogDir + 'static,
    replayed: Replayed,
    memory: &Memory,
    durability: Durability,
) -> Log {
    let files = Files::start(Box::new(dir), replayed.files, replayed.next).unwrap();
    let clock = Arc::new(HybridClock::new(Wall::system()));
    CommitLog::start(files, replayed.next, durability, clock, memory.clone()).unwrap()
}

fn start(disk: &Disk, memory: &Memory) -> Log {
    start_at(disk.clone(), Replayed { files: vec![], next: 1, ts: Ts::ZERO, frames: 0 }, memory)
}

async fn write(log: &Log, key: i64) -> Result<(Ts, usize), Error> {
    let record = record(key);
    let encoded = record.change.encode().unwrap();
    log.write(record, encoded).await
}

fn read(dir: &dyn LogDir, start: Lsn) -> Result<(Vec<i64>, Replayed), Error> {
    let mut keys = Vec::new();
    let replayed = replay(dir, start, 0, &mut |frame| {
        let Change::Delete { keys: Keys::Int(found), .. } = frame.record()?.change else {
            panic!("unexpected record");
        };
        keys.push(found[0]);
        Ok(())
    })?;
    Ok((keys, replayed))
}

/// A disk with the keys 1 to 6 in two files, all synced one by one.
async fn two_files() -> Disk {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    for key in 1..=6 {
        write(&log, key).await.unwrap();
        if key == 3 {
            log.control(Order::Rotate).unwrap();
        }
    }
    log.stop();
    disk
}

#[tokio::test]
async fn what_was_written_is_replayed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let open = || DiskLog::open(Arc::new(LocalDisk), dir.path().join("log")).unwrap();
    let memory = Memory::default();
    let log =
        start_at(open(), Replayed { files: vec![], next: 1, ts: Ts::ZERO, frames: 0 }, &memory);
    let mut last = Ts::ZERO;
    for key in 1..=5 {
        let (ts, rows) = write(&log, key).await.unwrap();
        assert!(ts > last && rows == 1);
        last = ts;
    }
    log.stop();
    assert!(matches!(write(&log, 9).await, Err(Error::Closed)));
    assert_eq!(memory.keys(), vec![1, 2, 3, 4, 5]);

    let (keys, replayed) = read(&open(), 1).unwrap();
    assert_eq!(keys, vec![1, 2, 3, 4, 5]);
    assert_eq!((replayed.next, replayed.ts, replayed.frames), (6, last, 5));
    let log = start_at(open(), replayed, &memory);
    write(&log, 6).await.unwrap();
    log.control(Order::RemoveBelow(6)).unwrap();
    write(&log, 7).await.unwrap();
    log.stop();
    let (keys, replayed) = read(&open(), 6).unwrap();
    assert_eq!(keys, vec![6, 7]);
    assert_eq!(replayed.files.len(), 1);
    let missing = read(&open(), 4).unwrap_err().to_string();
    assert!(missing.contains("a log file is missing"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_syncs() {
    let (disk, memory) = (Disk::default(), Memory::default());
    disk.change(|disk| disk.sync_delay = Duration::from_millis(2));
    let log = Arc::new(start(&disk, &memory));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for i in 0..20 {
                    write(&log, writer * 100 + i).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let syncs = disk.change(|disk| disk.syncs);
    assert!(syncs * 4 <= 320, "{syncs} syncs for 320 records");
    assert_eq!(log.counters().records, 320);
    log.stop();
    let (mut keys, _) = read(&disk, 1).unwrap();
    assert_eq!(keys, memory.keys());
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 320);
}

#[tokio::test]
async fn one_writer_gets_one_sync_per_record() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    for key in 0..10 {
        write(&log, key).await.unwrap();
    }
    assert_eq!(disk.change(|disk| disk.syncs), 10);
    log.stop();
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    write(&log, 1).await.unwrap();
    disk.change(|disk| disk.fail_syncs = true);
    assert!(matches!(write(&log, 2).await, Err(Error::LogPoisoned(_))));
    disk.change(|disk| disk.fail_syncs = false);
    let error = write(&log, 3).await.unwrap_err();
    assert!(error.to_string().contains("the disk is broken"), "{error}");
    assert_eq!(memory.keys(), vec![1]);
    log.stop();
    let (keys, _) = read(&disk.crashed(|_| 0), 1).unwrap();
    assert_eq!(keys, vec![1]);
}

#[tokio::test]
async fn what_is_refused_is_not_logged() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    for key in [1, -404, 2] {
        let refused = write(&log, key).await;
        assert_eq!(matches!(refused, Err(Error::PartitionNotFound(_))), key == -404);
    }
    log.stop();
    assert_eq!(read(&disk, 1).unwrap().0, vec![1, 2]);
}

#[tokio::test]
async fn on_a_full_disk_writes_are_refused_and_come_back() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    write(&log, 1).await.unwrap();
    disk.change(|disk| disk.room = Some(FRAME_HEADER + 3));
    assert!(matches!(write(&log, 2).await, Err(Error::DiskFull(_))));
    disk.change(|disk| disk.room = None);
    write(&log, 3).await.unwrap();
    log.stop();
    assert_eq!(read(&disk, 1).unwrap().0, vec![1, 3]);
    assert_eq!(memory.keys(), vec![1, 3]);
}

#[tokio::test]
async fn a_write_that_cannot_be_undone_poisons_the_log() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    write(&log, 1).await.unwrap();
    disk.change(|disk| (disk.room, disk.fail_truncate) = (Some(7), true));
    assert!(matches!(write(&log, 2).await, Err(Error::LogPoisoned(_))));
    assert!(matches!(write(&log, 3).await, Err(Error::LogPoisoned(_))));
    log.stop();
    assert_eq!(read(&disk, 1).unwrap().0, vec![1]);
}

#[tokio::test]
async fn a_panic_while_applying_refuses_later_writes() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let log = start(&disk, &memory);
    write(&log, 1).await.unwrap();
    write(&log, 666).await.unwrap_err();
    assert!(matches!(write(&log, 2).await, Err(Error::LogPoisoned(_))));
    log.stop();
}

#[tokio::test]
async fn an_asynchronous_log_syncs_by_itself() {
    let (disk, memory) = (Disk::default(), Memory::default());
    let replayed = Replayed { files: vec![], next: 1, ts: Ts::ZERO, frames: 0 };
    let log = start_with(disk.clone(), replayed, &memory, Durability::Async);
    for key in 0..100 {
        write(&log, key).await.unwrap();
    }
    let early = disk.change(|disk| disk.syncs);
    assert!(early < 50, "{early} syncs");
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if read(&disk.crashed(|_| 0), 1).unwrap().0.len() == 100 {
            break;
        }
    }
    assert_eq!(read(&disk.crashed(|_| 0), 1).unwrap().0.len(), 100);
    log.stop();
}

#[tokio::test]
async fn a_torn_last_frame_is_dropped_and_the_log_accepts_writes() {
    let sound = two_files().await;
    let len = sound.change(|disk| disk.files[&4].bytes.len());
    for cut in 0..len {
        let disk = sound.crashed(|_| 0);
        disk.change(|disk| disk.files.get_mut(&4).unwrap().bytes.truncate(cut));
        let (keys, replayed) = read(&disk, 1).unwrap();
        // The padding behind a frame holds nothing that could be lost.
        let frame = (len - FILE_HEADER) / 3;
        let padding = frame - FRAME_HEADER - record(4).change.encode().unwrap().body.len();
        let whole = 3 + (cut + padding).saturating_sub(FILE_HEADER) / frame;
        assert_eq!(keys, (1..=i64::try_from(whole).unwrap()).collect::<Vec<_>>(), "cut at {cut}");
        let memory = Memory::default();
        let log = start_at(disk.clone(), replayed, &memory);
        write(&log, 50).await.unwrap();
        log.stop();
        let (again, _) = read(&disk, 1).unwrap();
        assert_eq!(again, [keys, vec![50]].concat(), "cut at {cut}");
    }
}

#[tokio::test]
async fn damage_before_the_last_frame_is_named_with_file_and_offset() {
    let sound = two_files().await;
    for (first, from_end) in [(1, 0), (4, 1)] {
        let len = sound.change(|disk| disk.files[&first].bytes.len());
        let frame = (len - FILE_HEADER) / 3;
        for at in 0..len - from_end * frame {
            let disk = sound.crashed(|_| 0);
            disk.change(|disk| disk.files.get_mut(&first).unwrap().bytes[at] ^= 0x10);
            match read(&disk, 1) {
                Ok((keys, _)) => {
                    // Padding is not covered, because nothing reads it.
                    assert_eq!(keys, vec![1, 2, 3, 4, 5, 6], "file {first}, byte {at}");
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(&format!("disk/{first}.log")), "{text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_missing_file_in_the_middle_is_found() {
    let disk = two_files().await;
    disk.change(|disk| disk.files.insert(9, disk.files[&4].clone()));
    disk.change(|disk| disk.files.remove(&4));
    let error = read(&disk, 1).unwrap_err().to_string();
    assert!(error.contains("4 is next"), "{error}");
}

#[tokio::test]
async fn pages_of_one_write_may_reach_the_disk_in_any_order() {
    // Three records of one group: the first is lost, the others are there. None of them was
    // acknowledged, so this is a torn write and not damage.
    let disk = two_files().await;
    let mut bytes = super::frame::file_header(7).to_vec();
    for lsn in 7..10 {
        let record = record(i64::try_from(lsn).unwrap());
        let encoded = record.change.encode().unwrap();
        let header = Header {
            len: u32::try_from(encoded.body.len()).unwrap(),
            crc: 0,
            lsn,
            ts: Ts(lsn),
            synced: 7,
            collection: 1,
            schema_version: 0,
            kind: encoded.kind,
        };
        bytes.extend_from_slice(&header.encode(encoded.crc));
        bytes.extend_from_slice(&encoded.body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes[FILE_HEADER + 20] ^= 1;
    disk.change(|disk| disk.files.insert(7, FileState { synced: bytes.len(), bytes }));
    let (keys, replayed) = read(&disk, 1).unwrap();
    assert_eq!((keys.len(), replayed.next), (6, 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_are_no_reason_to_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let disk = Disk::default();
        disk.change(|disk| disk.files.insert(1, FileState { synced: bytes.len(), bytes }));
        let _ = read(&disk, 1);
    }

    #[test]
    fn a_power_cut_loses_nothing_acknowledged(keep in 0_usize..400, writes in 1_i64..12) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disk = Disk::default();
        runtime.block_on(async {
            let log = start(&disk, &Memory::default());
            for key in 0..writes {
                write(&log, key).await.unwrap();
            }
            disk.change(|disk| disk.fail_syncs = true);
            write(&log, 1000).await.unwrap_err();
            log.stop();
        });
        let crashed = disk.crashed(|pending| keep.min(pending));
        let (keys, _) = read(&crashed, 1).unwrap();
        prop_assert!(keys.starts_with(&(0..writes).collect::<Vec<_>>()));
        prop_assert!(keys.len() <= usize::try_from(writes).unwrap() + 1);
    }
}
