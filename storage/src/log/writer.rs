//! Group commit: many writers, one sync.
//!
//! Writers queue a record and await its ticket. One thread drains the queue: it gives every
//! waiting record the next lsn and timestamp, writes them with one write, calls `fdatasync` once,
//! applies them in order, lets readers see the result and completes the tickets. A failed sync
//! poisons the log: the page cache may have dropped our bytes and a second sync would report
//! success (Rebello et al., ATC'20). A failed write is undone and only its group refused.
//!
//! Orders to the applier ([`CommitLog::control`]) take their place in the same queue, so that a
//! cut between two writes is a place in the queue.
//!
//! This module does not know what applying means; see [`Apply`].

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Lsn;
use super::files::Files;
use super::frame::{ALIGN, FRAME_HEADER, Header, padding};
use super::record::{Encoded, Record};
use crate::Error;
use crate::clock::{HybridClock, Ts};
use crate::engine::{Durability, LogCounters};
use crate::pools::panicked;

/// Bytes of records that may wait; writers beyond that wait before they queue.
const QUEUE_BYTES: usize = 256 << 20;

/// The queue counts in these units, so that its limit fits a semaphore.
const QUEUE_UNIT: usize = 1 << 10;

/// A group is written when it has this many bytes, however many records still wait.
const GROUP_BYTES: usize = 32 << 20;

/// A file is finished when it is longer than this; the unit in which log space comes back.
const FILE_BYTES: u64 = 64 << 20;

/// How often [`Durability::Async`] syncs.
const ASYNC_SYNC_EVERY: Duration = Duration::from_millis(100);

/// What happens to records that are durable.
pub(crate) trait Apply: Send + 'static {
    /// An order that takes its place between the writes.
    type Control: Send + 'static;

    /// Whether a record may be logged: everything in the log must have been applied, or replay
    /// would do what never happened.
    fn admit(&self, record: &Record) -> Result<(), Error>;

    /// Applies a record; readers must not see it yet. Returns the number of rows touched.
    fn apply(&mut self, lsn: Lsn, ts: Ts, record: Record) -> Result<usize, Error>;

    /// Lets readers see everything applied so far; called once per group.
    fn publish(&mut self, log: &LogSize);

    /// Carries out an order after everything before it was applied and published.
    fn control(&mut self, control: Self::Control, log: &mut LogControl<'_>);
}

/// How much log there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSize {
    pub(crate) bytes: u64,
}

/// What an order may ask of the log.
pub(crate) struct LogControl<'a> {
    thread: &'a mut Shared,
}

impl LogControl<'_> {
    /// The lsn of the next record.
    pub(crate) fn next_lsn(&self) -> Lsn {
        self.thread.next
    }

    /// Finishes the active file, so that its space can come back once its records are not needed.
    ///
    /// # Errors
    /// [`Error::LogPoisoned`] if the log is or becomes unusable, or what prevented the new file.
    pub(crate) fn rotate(&mut self) -> Result<(), Error> {
        self.thread.check()?;
        self.thread.sync()?;
        let next = self.thread.next;
        self.thread.files.rotate(next)
    }

    /// How much log there is.
    pub(crate) fn size(&self) -> LogSize {
        self.thread.size()
    }

    /// See [`Files::start_above`].
    pub(crate) fn start_above(&self, floor: Lsn) -> Option<Lsn> {
        self.thread.files.start_above(floor)
    }

    /// See [`Files::remove_below`].
    pub(crate) fn remove_below(&mut self, floor: Lsn) -> Result<(), Error> {
        self.thread.files.remove_below(floor)
    }
}

/// See [`LogCounters`].
#[derive(Debug, Default)]
struct LogStats {
    syncs: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    len: AtomicU64,
}

/// The way into the log. Shared by all collections.
#[derive(Debug)]
pub(crate) struct CommitLog<C> {
    queue: Sender<Item<C>>,
    room: Arc<Semaphore>,
    poison: Arc<ArcSwapOption<String>>,
    stats: Arc<LogStats>,
    thread: Mutex<Option<JoinHandle<Option<Lsn>>>>,
}

#[derive(Debug)]
enum Item<C> {
    Write(Write),
    Control(C),
    Stop,
}

#[derive(Debug)]
struct Write {
    record: Record,
    encoded: Encoded,
    ticket: oneshot::Sender<Result<(Ts, usize), Error>>,
    /// Frees the queue's room when the write is done.
    _room: OwnedSemaphorePermit,
}

impl<C: Send + 'static> CommitLog<C> {
    /// Starts the thread. `next` is the lsn of the next record.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system gives no thread.
    pub(crate) fn start(
        files: Files,
        next: Lsn,
        durability: Durability,
        clock: Arc<HybridClock>,
        applier: impl Apply<Control = C>,
    ) -> Result<Self, Error> {
        let (queue, items) = unbounded();
        let poison = Arc::new(ArcSwapOption::empty());
        let stats = Arc::new(LogStats::default());
        stats.len.store(files.total_len(), Ordering::Relaxed);
        let shared = Shared {
            files,
            next,
            synced: next,
            durability,
            clock,
            poison: Arc::clone(&poison),
            stats: Arc::clone(&stats),
        };
        let thread = LogThread { items, shared, applier };
        let thread = std::thread::Builder::new()
            .name("elanus-log".into())
            .spawn(move || thread.run())
            .map_err(|error| Error::Internal(format!("cannot start the log thread: {error}")))?;
        Ok(Self {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES / QUEUE_UNIT)),
            poison,
            stats,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes a record; durable, applied and visible on return. Once queued the write happens
    /// even if the caller goes away.
    pub(crate) async fn write(
        &self,
        record: Record,
        encoded: Encoded,
    ) -> Result<(Ts, usize), Error> {
        self.check()?;
        let units = encoded.body.len().div_ceil(QUEUE_UNIT).clamp(1, QUEUE_BYTES / QUEUE_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room =
            Arc::clone(&self.room).acquire_many_owned(units).await.map_err(|_| Error::Closed)?;
        let (ticket, done) = oneshot::channel();
        let write = Write { record, encoded, ticket, _room: room };
        self.queue.send(Item::Write(write)).map_err(|_| Error::Closed)?;
        done.await.unwrap_or(Err(Error::Closed))
    }

    /// Queues an order.
    pub(crate) fn control(&self, control: C) -> Result<(), Error> {
        self.queue.send(Item::Control(control)).map_err(|_| Error::Closed)
    }

    /// Whether writes are possible.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check(&self.poison)
    }

    /// Counters since the start.
    pub(crate) fn counters(&self) -> LogCounters {
        LogCounters {
            syncs: self.stats.syncs.load(Ordering::Relaxed),
            records: self.stats.records.load(Ordering::Relaxed),
            bytes: self.stats.bytes.load(Ordering::Relaxed),
            len: self.stats.len.load(Ordering::Relaxed),
        }
    }

    /// Finishes what is queued, syncs and ends the thread. Blocks. Returns the lsn below which
    /// every record is on disk; `None` if the thread had ended or could not sync.
    pub(crate) fn stop(&self) -> Option<Lsn> {
        let thread =
            self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()?;
        // An error means that the thread has ended already.
        let _ = self.queue.send(Item::Stop);
        thread.join().ok().flatten()
    }
}

fn check(poison: &ArcSwapOption<String>) -> Result<(), Error> {
    match &*poison.load() {
        Some(reason) => Err(Error::LogPoisoned(reason.as_ref().clone())),
        None => Ok(()),
    }
}

/// What the log thread shares with the orders it carries out.
struct Shared {
    files: Files,
    next: Lsn,
    /// Everything below is on disk.
    synced: Lsn,
    durability: Durability,
    clock: Arc<HybridClock>,
    poison: Arc<ArcSwapOption<String>>,
    stats: Arc<LogStats>,
}

impl Shared {
    fn check(&self) -> Result<(), Error> {
        check(&self.poison)
    }

    fn size(&self) -> LogSize {
        let bytes = self.files.total_len();
        self.stats.len.store(bytes, Ordering::Relaxed);
        LogSize { bytes }
    }

    fn poison(&self, reason: String) -> Error {
        tracing::error!(reason, "the commit log is unusable; writes are refused until a restart");
        self.poison.store(Some(Arc::new(reason.clone())));
        Error::LogPoisoned(reason)
    }

    /// Makes all written records durable.
    fn sync(&mut self) -> Result<(), Error> {
        if self.synced == self.next {
            return Ok(());
        }
        if let Err(error) = self.files.sync() {
            return Err(self.poison(format!("sync failed: {error}")));
        }
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.synced = self.next;
        Ok(())
    }

    /// Gives the records of a group their places and puts them on disk.
    fn write(&mut self, group: &[Write]) -> Result<Vec<(Lsn, Ts)>, Error> {
        self.check()?;
        if self.files.active_len() > FILE_BYTES {
            self.sync()?;
            self.files.rotate(self.next)?;
        }
        let first = self.next;
        let places: Vec<(Lsn, Ts)> =
            (first..).zip(group).map(|(lsn, _)| (lsn, self.clock.next())).collect();
        let headers: Vec<[u8; FRAME_HEADER]> = (places.iter().zip(group))
            .map(|(&(lsn, ts), write)| self.header(lsn, ts, write))
            .collect();
        let mut parts = Vec::with_capacity(3 * group.len());
        for (header, write) in headers.iter().zip(group) {
            let body = &write.encoded.body;
            parts.push(IoSlice::new(header));
            parts.push(IoSlice::new(body));
            parts.push(IoSlice::new(&[0; ALIGN][..padding(body.len())]));
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if let Err((error, left_over)) = self.files.append(&mut parts) {
            return Err(match left_over {
                None => error,
                Some(undo) => {
                    self.poison(format!("write failed: {error}; undoing it failed: {undo}"))
                }
            });
        }
        self.next += group.len() as u64;
        self.stats.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        match self.durability {
            Durability::Sync => self.sync()?,
            Durability::Async => {}
        }
        Ok(places)
    }

    fn header(&self, lsn: Lsn, ts: Ts, write: &Write) -> [u8; FRAME_HEADER] {
        Header {
            len: u32::try_from(write.encoded.body.len()).expect("encode keeps to the limit"),
            crc: 0,
            lsn,
            ts,
            synced: self.synced,
            collection: write.record.collection,
            schema_version: write.record.schema_version,
            kind: write.encoded.kind,
        }
        .encode(write.encoded.crc)
    }
}

struct LogThread<A: Apply> {
    items: Receiver<Item<A::Control>>,
    shared: Shared,
    applier: A,
}

impl<A: Apply> LogThread<A> {
    fn run(mut self) -> Option<Lsn> {
        while let Some(item) = self.next_item() {
            let mut group = Vec::new();
            let last = self.gather(item, &mut group);
            self.commit(group);
            match last {
                Some(Item::Control(control)) => self.carry_out(control),
                Some(Item::Stop) => break,
                Some(Item::Write(_)) | None => {}
            }
        }
        // Without this, an asynchronous log would lose its last records to a later power cut.
        match self.shared.check().and_then(|()| self.shared.sync()) {
            Ok(()) => Some(self.shared.synced),
            Err(error) => {
                tracing::error!(%error, "the log could not be synced at the end");
                None
            }
        }
    }

    /// The next item, however long it takes; `None` when nobody can send any more.
    fn next_item(&mut self) -> Option<Item<A::Control>> {
        loop {
            if self.shared.synced == self.shared.next || self.shared.check().is_err() {
                return self.items.recv().ok();
            }
            match self.items.recv_timeout(ASYNC_SYNC_EVERY) {
                Ok(item) => return Some(item),
                Err(RecvTimeoutError::Disconnected) => return None,
                // A failure poisons the log, which the next writer is told.
                Err(RecvTimeoutError::Timeout) => drop(self.shared.sync()),
            }
        }
    }

    /// Collects the writes that wait, up to the first item that is not a write.
    fn gather(&self, first: Item<A::Control>, group: &mut Vec<Write>) -> Option<Item<A::Control>> {
        let mut bytes = 0;
        let mut item = first;
        loop {
            match item {
                Item::Write(write) => {
                    bytes += write.encoded.body.len();
                    group.push(write);
                }
                Item::Control(_) | Item::Stop => return Some(item),
            }
            if bytes >= GROUP_BYTES {
                return None;
            }
            item = self.items.try_recv().ok()?;
        }
    }

    fn commit(&mut self, waiting: Vec<Write>) {
        let mut group = Vec::with_capacity(waiting.len());
        for write in waiting {
            match self.applier.admit(&write.record) {
                Ok(()) => group.push(write),
                // The writer may have gone away.
                Err(error) => drop(write.ticket.send(Err(error))),
            }
        }
        if group.is_empty() {
            return;
        }
        let places = match self.shared.write(&group) {
            Ok(places) => places,
            Err(error) => {
                for write in group {
                    let _ = write.ticket.send(Err(error.duplicate()));
                }
                return;
            }
        };
        let size = self.shared.size();
        let applier = &mut self.applier;
        let applied = catch_unwind(AssertUnwindSafe(|| {
            let mut tickets = Vec::with_capacity(group.len());
            for (write, (lsn, ts)) in group.into_iter().zip(places) {
                let Write { record, ticket, _room, .. } = write;
                let rows = applier.apply(lsn, ts, record);
                tickets.push((ticket, rows.map(|rows| (ts, rows)), _room));
            }
            applier.publish(&size);
            tickets
        }));
        match applied {
            Ok(tickets) => {
                self.shared.stats.records.fetch_add(tickets.len() as u64, Ordering::Relaxed);
                for (ticket, result, _room) in tickets {
                    let _ = ticket.send(result);
                }
            }
            // The records are safe in the log, but memory may disagree with it from here on.
            Err(panic) => drop(self.shared.poison(panicked(&*panic).to_string())),
        }
    }

    fn carry_out(&mut self, control: A::Control) {
        let mut log = LogControl { thread: &mut self.shared };
        let applier = &mut self.applier;
        let done = catch_unwind(AssertUnwindSafe(|| applier.control(control, &mut log)));
        if let Err(panic) = done {
            drop(self.shared.poison(panicked(&*panic).to_string()));
        }
    }
}
