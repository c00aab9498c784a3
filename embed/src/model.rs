//! One loaded model: tokenizer, encoder and head together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::answers::Answers;
use crate::encoder::{Encoder, PackedBatch, Place, inference};
use crate::folder::{Folder, HeadConfig};
use crate::heads::{Encoded, Head};
use crate::tokenizer::{Sequence, TextTokenizer};
use crate::{Device, Error, ModelInfo, ModelSpec, Options, Outputs, Precision, cache};

/// A model in memory.
pub(crate) struct Model {
    spec: ModelSpec,
    device: Device,
    tokenizer: TextTokenizer,
    encoder: Encoder,
    head: Head,
    tokens: AtomicU64,
    /// Nanoseconds in which batches of it ran.
    run_time: AtomicU64,
    /// What questions were answered lately.
    answers: Mutex<Answers>,
}

/// One text (or pair) of a batch and what is wanted of it.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) sequence: &'a Sequence,
    pub(crate) outputs: Outputs,
}

impl Model {
    /// Reads everything; takes seconds for a large model.
    pub(crate) fn load(folder: &Folder, options: &Options) -> Result<Self, Error> {
        let (place, device) = place(folder, options)?;
        let spec = folder.spec.clone();
        let tokenizer = TextTokenizer::load(
            &spec.name,
            &spec.dir,
            folder.encoder.vocabulary,
            folder.lowercase,
        )?;
        let mut weights = cache::open(folder, place.precision)?;
        let encoder = Encoder::load(&mut weights, &folder.encoder, &place)?;
        let head = Head::load(folder, &mut weights, &encoder, tokenizer.specials())?;
        let answers = Mutex::new(Answers::new(options.cache_bytes));
        let (tokens, run_time) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { spec, device, tokenizer, encoder, head, tokens, run_time, answers })
    }

    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub(crate) fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    pub(crate) fn info(&self) -> ModelInfo {
        let bytes = self.encoder.bytes() + self.head.bytes();
        ModelInfo {
            spec: self.spec.clone(),
            device: self.device,
            precision: self.encoder.place().precision,
            bytes,
            tokens: self.tokens.load(Ordering::Relaxed),
            run_time: Duration::from_nanos(self.run_time.load(Ordering::Relaxed)),
            cache_hits: self.answers().hits(),
        }
    }

    /// A panic while the lock was held left at worst an answer out.
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of questions, item by item.
    pub(crate) fn recall(&self, items: &[Item<'_>]) -> Vec<Option<Encoded>> {
        let mut answers = self.answers();
        items.iter().map(|item| answers.get(item.sequence, item.outputs)).collect()
    }

    /// Keeps the answers to questions.
    pub(crate) fn remember(&self, items: &[Item<'_>], encoded: &[Encoded]) {
        let mut answers = self.answers();
        for (item, encoded) in items.iter().zip(encoded) {
            answers.put(item.sequence, item.outputs, encoded);
        }
    }

    /// Most tokens of a batch.
    ///
    /// On the CPU a query waits for the batch that runs, so a batch is what two cores do in about a tenth
    /// of a second, within bounds: below 128 tokens the weights are read from memory for too
    /// few rows, and nothing is gained above 4,096.
    pub(crate) fn batch_tokens(&self, threads: usize) -> usize {
        /// Multiply-adds of one core in a tenth of a second, measured with MiniLM.
        const PRODUCTS: usize = 3_000_000_000;
        /// What keeps a GPU busy; it is over in a few hundredths of a second.
        const GPU_TOKENS: usize = 16_384;
        if self.device != Device::Cpu {
            return GPU_TOKENS;
        }
        let per_token = self.encoder.config().products_per_token().max(1);
        (PRODUCTS.saturating_mul(threads) / per_token).clamp(128, 4096)
    }

    /// Runs a batch in the current rayon pool; one result per item, in order.
    ///
    /// Texts are independent, so each thread takes its own share through all layers and meets
    /// the others only at the end; a single text is shared inside the layers instead.
    pub(crate) fn run(&self, items: &[Item<'_>]) -> Result<Vec<Encoded>, Error> {
        let began = Instant::now();
        let total: usize = items.iter().map(|item| item.sequence.ids.len()).sum();
        self.tokens.fetch_add(total as u64, Ordering::Relaxed);
        let threads = if self.device == Device::Cpu { rayon::current_num_threads() } else { 1 };
        let shares = shares(items, threads);
        let encoded: Vec<Vec<Encoded>> = shares
            .par_iter()
            .map(|share| {
                let items: Vec<Item<'_>> = share.iter().map(|&index| items[index]).collect();
                self.run_share(&items)
            })
            .collect::<Result<_, _>>()?;
        let mut results = vec![Encoded::default(); items.len()];
        for (share, encoded) in shares.iter().zip(encoded) {
            for (&index, encoded) in share.iter().zip(encoded) {
                results[index] = encoded;
            }
        }
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.run_time.fetch_add(nanos, Ordering::Relaxed);
        Ok(results)
    }

    fn run_share(&self, items: &[Item<'_>]) -> Result<Vec<Encoded>, Error> {
        let first_position = self.encoder.config().first_position();
        let mut batch = PackedBatch::new();
        for Item { sequence, .. } in items {
            batch.push(&sequence.ids, sequence.second, first_position);
        }
        let ids: Vec<&[u32]> = items.iter().map(|item| item.sequence.ids.as_slice()).collect();
        let wanted: Vec<Outputs> = items.iter().map(|item| item.outputs).collect();
        let run = || {
            let packing = batch.packing(&self.encoder.place().device)?;
            let hidden = self.encoder.forward(&batch, &packing)?;
            self.head.forward(&hidden, &packing, &ids, &wanted)
        };
        run().map_err(|error| inference(&error))
    }
}

/// Where a model runs and in which numbers, as the options and the build allow.
fn place(folder: &Folder, options: &Options) -> Result<(Place, Device), Error> {
    let name = &folder.spec.name;
    let refuse = |reason: String| Error::Unsupported(format!("model `{name}`: {reason}"));
    let on_gpu = match options.device {
        Device::Cpu => None,
        Device::Cuda(number) => {
            let found = open_gpu(folder, number).map_err(|reason| {
                refuse(format!("the device cuda:{number} cannot run it: {reason}"))
            })?;
            Some((found, number))
        }
        Device::Auto => match open_gpu(folder, 0) {
            Ok(found) if options.precision != Precision::Int8 => Some((found, 0)),
            Ok(_) => None,
            Err(reason) => {
                tracing::debug!(model = name, reason, "the model runs on the CPU");
                None
            }
        },
    };
    let precision = match (options.precision, &on_gpu) {
        (Precision::Auto | Precision::F16, Some(_)) => Precision::F16,
        // Eight bits cost some accuracy, so they are a choice (ADR 8).
        (Precision::Auto | Precision::F32, None) => Precision::F32,
        (Precision::Int8, None) => Precision::Int8,
        (precision, Some(_)) => {
            return Err(refuse(format!(
                "on a GPU it runs in f16, {} is asked for",
                precision.name()
            )));
        }
        (Precision::F16, None) => {
            return Err(refuse("f16 is for GPUs, and it runs on the CPU".to_owned()));
        }
    };
    let (device, number) = match on_gpu {
        Some((device, number)) => (device, Device::Cuda(number)),
        None => (candle_core::Device::Cpu, Device::Cpu),
    };
    Ok((Place { device, precision }, number))
}

/// A GPU, if the build has them, there is one of this number, and it can run the model.
fn open_gpu(folder: &Folder, number: usize) -> Result<candle_core::Device, String> {
    if !cfg!(feature = "cuda") {
        return Err("this binary was built without CUDA (docs/models.md)".to_owned());
    }
    if folder.head == HeadConfig::Splade {
        return Err("SPLADE's maximum over the vocabulary runs on the CPU only".to_owned());
    }
    #[cfg(feature = "cuda")]
    if !crate::gpu::has_width(folder.encoder.hidden / folder.encoder.heads) {
        let width = folder.encoder.hidden / folder.encoder.heads;
        return Err(format!("its heads are {width} wide, which the kernels do not know"));
    }
    candle_core::Device::new_cuda(number).map_err(|error| error.to_string())
}

/// Deals texts out to threads, longest first, each to the share with the fewest tokens.
fn shares(items: &[Item<'_>], threads: usize) -> Vec<Vec<usize>> {
    /// Below this, a share of its own costs more than it saves.
    const LEAST_TOKENS: usize = 64;
    let length = |index: &usize| items[*index].sequence.ids.len();
    let total: usize = (0..items.len()).map(|index| length(&index)).sum();
    let count = threads.min(total / LEAST_TOKENS).min(items.len()).max(1);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(length(index)));
    let mut shares = vec![(0, Vec::new()); count];
    for index in order {
        let least = shares.iter_mut().min_by_key(|(tokens, _)| *tokens);
        let (tokens, share) = least.expect("there is at least one share");
        *tokens += length(&index);
        share.push(index);
    }
    shares.into_iter().map(|(_, share)| share).filter(|share| !share.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_every_text_once_and_are_even() {
        let sequences: Vec<Sequence> = [5, 300, 10, 280, 20, 7, 40]
            .map(|len| Sequence { ids: vec![0; len], second: len })
            .to_vec();
        let items: Vec<Item<'_>> =
            sequences.iter().map(|sequence| Item { sequence, outputs: Outputs::DENSE }).collect();
        let shares = shares(&items, 2);
        let tokens =
            |share: &Vec<usize>| share.iter().map(|&i| sequences[i].ids.len()).sum::<usize>();
        assert_eq!(shares.len(), 2);
        assert!(tokens(&shares[0]).abs_diff(tokens(&shares[1])) <= 20);
        let mut all: Vec<usize> = shares.concat();
        all.sort_unstable();
        assert_eq!(all, (0..7).collect::<Vec<_>>());
    }
}
