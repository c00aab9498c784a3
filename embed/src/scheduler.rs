//! One thread that owns the device and turns waiting calls into batches.
//!
//! Calls arrive tokenized. A batch takes texts of one model from as many calls as fit its budget
//! of tokens, and calls take turns at its head; nothing is padded, so long and short texts mix
//! freely and a batch costs what its tokens cost. Searches go before inserts, but inserts that have waited get
//! every so often a batch of their own. Equal texts of a batch run once, and a question that was asked lately not at all. A call whose caller has
//! gone is dropped. A batch that fails is run again call by call, so that one bad call, or a
//! panic, costs no other; one for which the device has no memory is run again with half of the
//! tokens, and so are those after it.
//!
//! This module knows calls and budgets. It does not know tokenizers, heads or folders.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::heads::Encoded;
use crate::model::{Item, Model};
use crate::tokenizer::Sequence;
use crate::{Error, Load, Mode, Options, Outputs};

/// Calls that may wait; the bytes of their texts are bounded as well.
const MAX_CALLS: usize = 16_384;

/// While searches keep coming, inserts get a batch this often.
const INSERT_TURN: Duration = Duration::from_millis(250);

/// Runs calls on one device.
pub(crate) struct Scheduler {
    queue: Sender<Call>,
    queued_bytes: Arc<AtomicUsize>,
    limit_bytes: usize,
    waiting: Arc<Waiting>,
}

/// What the thread tells of itself.
#[derive(Default)]
struct Waiting {
    /// Calls in its lanes.
    calls: AtomicUsize,
    /// Tokens that the last batch could have had.
    batch_tokens: AtomicUsize,
}

/// The right to have so many bytes of text waiting; given back when dropped.
pub(crate) struct Permit {
    bytes: usize,
    queued_bytes: Arc<AtomicUsize>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The tokenized texts of one request.
struct Call {
    model: Arc<Model>,
    mode: Mode,
    outputs: Outputs,
    sequences: Vec<Sequence>,
    /// Results of the first texts, in order.
    encoded: Vec<Encoded>,
    reply: oneshot::Sender<Result<Vec<Encoded>, Error>>,
    _permit: Permit,
}

impl Scheduler {
    /// Starts the thread and its pool.
    ///
    /// # Errors
    /// [`Error::Inference`] if the system gives no threads.
    pub(crate) fn start(options: &Options) -> Result<Self, Error> {
        let failed = |error: String| Error::Inference(format!("cannot start threads: {error}"));
        let (queue, calls) = bounded(MAX_CALLS);
        let waiting = Arc::<Waiting>::default();
        let shared = Arc::clone(&waiting);
        let (threads, batch_tokens) = (options.threads, options.max_batch_tokens);
        let (tell, started) = bounded(1);
        let work = move || {
            // This thread is one of its own pool: a batch wakes nobody before there is work to share.
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .use_current_thread()
                .thread_name(|index| format!("embed-{index}"))
                .build();
            let (pool, outcome) = match pool {
                Ok(pool) => (Some(pool), Ok(())),
                Err(error) => (None, Err(error.to_string())),
            };
            // Whoever started it waits for this.
            let _ = tell.send(outcome);
            if let Some(pool) = pool {
                Worker { pool, batch_tokens, halvings: Cell::new(0), waiting: shared }.work(&calls);
            }
        };
        std::thread::Builder::new()
            .name("embed-0".to_owned())
            .spawn(work)
            .map_err(|error| failed(error.to_string()))?;
        let outcome = started.recv().unwrap_or_else(|error| Err(error.to_string()));
        outcome.map_err(failed)?;
        let limit_bytes = options.queue_bytes;
        Ok(Self { queue, queued_bytes: Arc::default(), limit_bytes, waiting })
    }

    /// Reserves room for a request of `bytes` of text.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too much is waiting, [`Error::Invalid`] if it could never fit.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Permit, Error> {
        if bytes > self.limit_bytes {
            return Err(Error::Invalid(format!(
                "the request has {bytes} bytes of text, {} are allowed at once; send smaller \
                 batches",
                self.limit_bytes
            )));
        }
        let add =
            |queued: usize| queued.checked_add(bytes).filter(|queued| *queued <= self.limit_bytes);
        match self.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Permit { bytes, queued_bytes: Arc::clone(&self.queued_bytes) }),
            Err(queued_bytes) => Err(self.overloaded(queued_bytes, bytes)),
        }
    }

    /// Queues the texts of a request; the receiver gets one result per text, in order.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too many calls are waiting, [`Error::Closed`] if the thread has
    /// ended.
    pub(crate) fn submit(
        &self,
        model: Arc<Model>,
        mode: Mode,
        outputs: Outputs,
        sequences: Vec<Sequence>,
        permit: Permit,
    ) -> Result<oneshot::Receiver<Result<Vec<Encoded>, Error>>, Error> {
        let (reply, receiver) = oneshot::channel();
        let bytes = permit.bytes;
        let encoded = Vec::with_capacity(sequences.len());
        let call = Call { model, mode, outputs, sequences, encoded, reply, _permit: permit };
        match self.queue.try_send(call) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => {
                Err(self.overloaded(self.queued_bytes.load(Ordering::Relaxed), bytes))
            }
            Err(TrySendError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// What is waiting now.
    pub(crate) fn load(&self) -> Load {
        Load {
            queued_bytes: self.queued_bytes.load(Ordering::Relaxed),
            queued_calls: self.queue.len() + self.waiting.calls.load(Ordering::Relaxed),
            batch_tokens: self.waiting.batch_tokens.load(Ordering::Relaxed),
        }
    }

    fn overloaded(&self, queued_bytes: usize, request_bytes: usize) -> Error {
        Error::Overloaded { queued_bytes, request_bytes, limit_bytes: self.limit_bytes }
    }
}

struct Worker {
    pool: ThreadPool,
    /// Tokens of a batch; 0 asks the model.
    batch_tokens: usize,
    /// How often the device had no memory for that many.
    halvings: Cell<u32>,
    waiting: Arc<Waiting>,
}

/// Texts of one call in a batch: its place in the lane, and how many of its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pick {
    call: usize,
    texts: usize,
}

impl Worker {
    /// Until the store is gone.
    fn work(&self, calls: &Receiver<Call>) {
        let mut lanes = Lanes::new(Instant::now());
        loop {
            self.waiting.calls.store(lanes.len(), Ordering::Relaxed);
            if lanes.is_empty() {
                match calls.recv() {
                    Ok(call) => lanes.push(call),
                    Err(_) => return,
                }
            }
            calls.try_iter().for_each(|call| lanes.push(call));
            lanes.drop_cancelled();
            self.waiting.calls.store(lanes.len(), Ordering::Relaxed);
            if let Some(lane) = lanes.next(Instant::now()) {
                self.step(lane);
            }
        }
    }

    /// Runs one batch from the front of a lane.
    fn step(&self, lane: &mut VecDeque<Call>) {
        self.step_with(lane, |lane, picks| self.run(lane, picks));
    }

    /// The same with whatever `run` makes of picked texts.
    fn step_with(
        &self,
        lane: &mut VecDeque<Call>,
        run: impl Fn(&VecDeque<Call>, &[Pick]) -> Result<Vec<Encoded>, Error>,
    ) {
        let Some(front) = lane.front() else { return };
        let budget = match self.batch_tokens {
            0 => front.model.batch_tokens(self.pool.current_num_threads()),
            tokens => tokens,
        };
        let budget = budget.checked_shr(self.halvings.get()).unwrap_or(0).max(1);
        self.waiting.batch_tokens.store(budget, Ordering::Relaxed);
        let picks = pick(lane, budget);
        match run(lane, &picks) {
            Ok(encoded) => deliver(lane, &picks, encoded),
            Err(error) if can_halve(&error, &picks) => {
                self.halvings.set(self.halvings.get() + 1);
                tracing::warn!(%error, tokens = budget / 2, "batches are made smaller");
                return;
            }
            Err(error) if picks.len() == 1 => fail(lane, picks[0].call, error),
            Err(_) => {
                // From the back, so that a call that fails moves no pick still to come.
                for pick in picks.into_iter().rev() {
                    match run(lane, &[pick]) {
                        Ok(encoded) => deliver(lane, &[pick], encoded),
                        Err(error) => fail(lane, pick.call, error),
                    }
                }
            }
        }
        while let Some(index) = lane.iter().position(|c| c.encoded.len() == c.sequences.len()) {
            if let Some(call) = lane.remove(index) {
                // Whoever asked may have gone meanwhile.
                let _ = call.reply.send(Ok(call.encoded));
            }
        }
        // The next batch begins with another call, so that a small one (or one of another model)
        // does not wait for all of a large one.
        if lane.front().is_some_and(|call| !call.encoded.is_empty()) {
            lane.rotate_left(1);
        }
    }

    /// The results of all picked texts, pick by pick.
    fn run(&self, lane: &VecDeque<Call>, picks: &[Pick]) -> Result<Vec<Encoded>, Error> {
        let model = &lane[picks[0].call].model;
        // Equal texts run once, with all that any of them wants.
        let mut items: Vec<Item<'_>> = Vec::new();
        let mut place: HashMap<&Sequence, usize> = HashMap::new();
        let mut places = Vec::new();
        for pick in picks {
            let call = &lane[pick.call];
            for sequence in &call.sequences[call.encoded.len()..][..pick.texts] {
                let index = *place.entry(sequence).or_insert_with(|| {
                    items.push(Item { sequence, outputs: Outputs::default() });
                    items.len() - 1
                });
                items[index].outputs = items[index].outputs.union(call.outputs);
                places.push(index);
            }
        }
        // Questions are asked again, documents are not.
        let search = lane[picks[0].call].mode == Mode::Search;
        let known = if search { model.recall(&items) } else { vec![None; items.len()] };
        let new = items.iter().zip(&known).filter(|(_, known)| known.is_none());
        let new: Vec<Item<'_>> = new.map(|(item, _)| *item).collect();
        let fresh = if new.is_empty() {
            Vec::new()
        } else {
            catch_unwind(AssertUnwindSafe(|| self.pool.install(|| model.run(&new))))
                .unwrap_or_else(|panic| Err(Error::Inference(panic_text(&*panic))))?
        };
        if search {
            model.remember(&new, &fresh);
        }
        let mut fresh = fresh.into_iter();
        let encoded: Vec<Encoded> = known
            .into_iter()
            .map(|known| known.or_else(|| fresh.next()).expect("a run gives one result per item"))
            .collect();
        Ok(places.into_iter().map(|index| encoded[index].clone()).collect())
    }
}

/// Texts for one batch: the model of the first call decides, and calls of other models wait. At
/// least one text is taken, however long.
fn pick(lane: &VecDeque<Call>, budget: usize) -> Vec<Pick> {
    let mut picks = Vec::new();
    let mut tokens = 0;
    for (index, call) in lane.iter().enumerate() {
        if !Arc::ptr_eq(&call.model, &lane[0].model) {
            continue;
        }
        let mut texts = 0;
        for sequence in &call.sequences[call.encoded.len()..] {
            if tokens > 0 && tokens + sequence.ids.len() > budget {
                break;
            }
            tokens += sequence.ids.len();
            texts += 1;
        }
        if texts > 0 {
            picks.push(Pick { call: index, texts });
        }
        if tokens >= budget || texts < call.sequences.len() - call.encoded.len() {
            break;
        }
    }
    picks
}

/// Whether fewer texts at once may help.
fn can_halve(error: &Error, picks: &[Pick]) -> bool {
    let texts: usize = picks.iter().map(|pick| pick.texts).sum();
    matches!(error, Error::DeviceMemory(_)) && texts > 1
}

fn deliver(lane: &mut VecDeque<Call>, picks: &[Pick], encoded: Vec<Encoded>) {
    let mut encoded = encoded.into_iter();
    for pick in picks {
        let call = &mut lane[pick.call];
        call.encoded.extend(encoded.by_ref().take(pick.texts));
    }
}

fn fail(lane: &mut VecDeque<Call>, index: usize, error: Error) {
    if let Some(call) = lane.remove(index) {
        tracing::warn!(model = call.model.spec().name, %error, "embedding call failed");
        // Whoever asked may have gone meanwhile.
        let _ = call.reply.send(Err(error));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

/// Calls that wait, searches apart from inserts.
struct Lanes {
    search: VecDeque<Call>,
    insert: VecDeque<Call>,
    /// When inserts last had a batch, or last had nothing to wait for.
    insert_served: Instant,
}

impl Lanes {
    fn new(now: Instant) -> Self {
        Self { search: VecDeque::new(), insert: VecDeque::new(), insert_served: now }
    }

    fn push(&mut self, call: Call) {
        match call.mode {
            Mode::Search | Mode::Rerank => self.search.push_back(call),
            Mode::Insert => self.insert.push_back(call),
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.search.len() + self.insert.len()
    }

    fn drop_cancelled(&mut self) {
        self.search.retain(|call| !call.reply.is_closed());
        self.insert.retain(|call| !call.reply.is_closed());
    }

    /// The lane whose turn it is.
    fn next(&mut self, now: Instant) -> Option<&mut VecDeque<Call>> {
        let turn = turn(
            !self.search.is_empty(),
            !self.insert.is_empty(),
            now.saturating_duration_since(self.insert_served),
        )?;
        if turn == Mode::Insert || self.insert.is_empty() {
            self.insert_served = now;
        }
        Some(match turn {
            Mode::Search | Mode::Rerank => &mut self.search,
            Mode::Insert => &mut self.insert,
        })
    }
}

/// Searches first, unless inserts have waited their time.
fn turn(search: bool, insert: bool, insert_waited: Duration) -> Option<Mode> {
    match (search, insert) {
        (false, false) => None,
        (true, false) => Some(Mode::Search),
        (false, true) => Some(Mode::Insert),
        (true, true) if insert_waited >= INSERT_TURN => Some(Mode::Insert),
        (true, true) => Some(Mode::Search),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::folder::Folder;

    type Answer = oneshot::Receiver<Result<Vec<Encoded>, Error>>;

    fn model() -> Arc<Model> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/data/embedding-golden/tiny-bge-m3");
        let folder = Folder::read("tiny-bge-m3", &dir).unwrap();
        Arc::new(Model::load(&folder, &Options::default()).unwrap())
    }

    fn worker() -> Worker {
        let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        Worker { pool, batch_tokens: 100, halvings: Cell::new(0), waiting: Arc::default() }
    }

    /// A call of texts with these many tokens each, all of id `id`.
    fn call(model: &Arc<Model>, id: u32, lengths: &[usize]) -> (Call, Answer) {
        let (reply, answer) = oneshot::channel();
        let sequence = |&length: &usize| Sequence { ids: vec![id; length], second: length };
        let call = Call {
            model: Arc::clone(model),
            mode: Mode::Insert,
            outputs: Outputs::DENSE,
            sequences: lengths.iter().map(sequence).collect(),
            encoded: Vec::new(),
            reply,
            _permit: Permit { bytes: 0, queued_bytes: Arc::default() },
        };
        (call, answer)
    }

    #[test]
    fn a_batch_takes_texts_in_order_up_to_its_budget_and_leaves_other_models_alone() {
        let (first, second) = (model(), model());
        let calls = [
            call(&first, 5, &[40, 30]),
            call(&second, 5, &[10]),
            call(&first, 5, &[20, 20, 20]),
            call(&first, 5, &[1]),
        ];
        let mut lane: VecDeque<Call> = calls.into_iter().map(|(call, _)| call).collect();
        let picks = pick(&lane, 100);
        assert_eq!(picks, [Pick { call: 0, texts: 2 }, Pick { call: 2, texts: 1 }]);
        assert_eq!(pick(&lane, 10), [Pick { call: 0, texts: 1 }], "a long text runs alone");
        lane[0].encoded.push(Encoded::default());
        let picks = pick(&lane, 50);
        assert_eq!(picks, [Pick { call: 0, texts: 1 }, Pick { call: 2, texts: 1 }]);
    }

    #[test]
    fn a_call_larger_than_the_budget_is_answered_after_several_batches() {
        let (call, mut answer) = call(&model(), 5, &[60, 60, 60]);
        let mut lane = VecDeque::from([call]);
        let worker = worker();
        for left in [2, 1] {
            worker.step(&mut lane);
            assert_eq!(lane[0].sequences.len() - lane[0].encoded.len(), left);
            assert!(answer.try_recv().is_err());
        }
        worker.step(&mut lane);
        assert!(lane.is_empty());
        assert_eq!(answer.try_recv().unwrap().unwrap().len(), 3);
    }

    #[test]
    fn a_small_call_does_not_wait_for_all_of_a_large_one() {
        let model = model();
        let (large, _large_answer) = call(&model, 5, &[90; 20]);
        let (small, mut small_answer) = call(&model, 7, &[90]);
        let mut lane = VecDeque::from([large, small]);
        let worker = worker();
        worker.step(&mut lane);
        worker.step(&mut lane);
        assert!(small_answer.try_recv().is_ok());
        assert_eq!(lane.len(), 1);
    }

    #[test]
    fn a_call_that_fails_costs_its_neighbours_nothing() {
        let model = model();
        let (good, mut good_answer) = call(&model, 5, &[4]);
        // No tokenizer of the model gives such an id, so only a fault of ours could.
        let (bad, mut bad_answer) = call(&model, 1_000_000, &[4]);
        let (other, mut other_answer) = call(&model, 7, &[4]);
        let mut lane = VecDeque::from([good, bad, other]);
        worker().step(&mut lane);
        assert!(lane.is_empty());
        assert!(good_answer.try_recv().unwrap().is_ok());
        let error = bad_answer.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::Inference(_)), "{error}");
        assert!(other_answer.try_recv().unwrap().is_ok());
    }

    #[test]
    fn equal_texts_of_a_batch_run_once() {
        let model = model();
        let (first, mut first_answer) = call(&model, 5, &[10, 10]);
        let (second, mut second_answer) = call(&model, 5, &[10]);
        let mut lane = VecDeque::from([first, second]);
        worker().step(&mut lane);
        assert_eq!(model.info().tokens, 10);
        let first = first_answer.try_recv().unwrap().unwrap();
        assert_eq!(first[0], first[1]);
        assert_eq!(first[..1], second_answer.try_recv().unwrap().unwrap());
    }

    #[test]
    fn a_call_whose_caller_has_gone_is_dropped() {
        let model = model();
        let (gone, answer) = call(&model, 5, &[4]);
        let (kept, _answer) = call(&model, 5, &[4]);
        drop(answer);
        let mut lanes = Lanes::new(Instant::now());
        lanes.push(gone);
        lanes.push(kept);
        lanes.drop_cancelled();
        assert_eq!(lanes.insert.len(), 1);
    }

    #[test]
    fn searches_go_first_and_inserts_do_not_starve() {
        let soon = Duration::from_millis(10);
        assert_eq!(turn(false, false, soon), None);
        assert_eq!(turn(true, true, soon), Some(Mode::Search));
        assert_eq!(turn(true, true, INSERT_TURN), Some(Mode::Insert));
        assert_eq!(turn(false, true, soon), Some(Mode::Insert));
    }

    #[test]
    fn bytes_are_given_back_when_a_call_ends() {
        let scheduler =
            Scheduler::start(&Options { queue_bytes: 100, threads: 1, ..Options::default() })
                .unwrap();
        let first = scheduler.reserve(70).unwrap();
        let refused = scheduler.reserve(40).err().unwrap();
        assert!(refused.is_retriable(), "{refused}");
        drop(first);
        assert!(scheduler.reserve(40).is_ok());
        assert!(matches!(scheduler.reserve(101), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_batch_without_memory_is_halved_until_one_text_is_left() {
        let memory = Error::DeviceMemory("CUDA_ERROR_OUT_OF_MEMORY".to_owned());
        let pick = |texts| Pick { call: 0, texts };
        assert!(can_halve(&memory, &[pick(1), pick(1)]) && can_halve(&memory, &[pick(2)]));
        assert!(!can_halve(&memory, &[pick(1)]));
        assert!(!can_halve(&Error::Inference("nan".to_owned()), &[pick(2)]));
        let candle = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY)".to_owned());
        assert!(matches!(crate::encoder::inference(&candle), Error::DeviceMemory(_)));
    }

    #[test]
    fn out_of_memory_halves_the_budget_and_every_call_is_answered() {
        let (model, worker) = (model(), worker());
        let (first, mut first_answer) = call(&model, 5, &[10; 6]);
        let (second, mut second_answer) = call(&model, 7, &[10, 10]);
        let (huge, mut huge_answer) = call(&model, 7, &[40]);
        let mut lane = VecDeque::from([first, second, huge]);
        let mut batches = Vec::new();
        let tokens = std::cell::RefCell::new(&mut batches);
        // A device with room for 30 tokens, where the budget is 100.
        let run = |lane: &VecDeque<Call>, picks: &[Pick]| {
            let texts = picks.iter().flat_map(|pick| {
                let call = &lane[pick.call];
                &call.sequences[call.encoded.len()..][..pick.texts]
            });
            let total: usize = texts.map(|text| text.ids.len()).sum();
            tokens.borrow_mut().push(total);
            match total {
                0..=30 => worker.run(lane, picks),
                _ => Err(Error::DeviceMemory("CUDA_ERROR_OUT_OF_MEMORY".to_owned())),
            }
        };
        while !lane.is_empty() {
            worker.step_with(&mut lane, run);
        }
        assert_eq!(batches[..3], [80, 50, 20], "100 tokens, then 50, then 25");
        assert!(batches[3..].iter().all(|tokens| *tokens <= 25 || *tokens == 40), "{batches:?}");
        assert_eq!(
            worker.waiting.batch_tokens.load(Ordering::Relaxed),
            25,
            "what the metric shows"
        );
        assert_eq!(first_answer.try_recv().unwrap().unwrap().len(), 6);
        assert_eq!(second_answer.try_recv().unwrap().unwrap().len(), 2);
        let error = huge_answer.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::DeviceMemory(_)), "one text cannot be halved: {error}");
    }
}
