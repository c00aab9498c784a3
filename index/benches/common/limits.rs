//! What the machine can do at most, measured in turns with what is benched: how fast memory or a
//! cache is read, and how many multiply-adds a core does.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};

/// Work that does nothing but use up what is limited.
pub(crate) struct Limit<'a> {
    what: &'static str,
    /// Bytes or operations of one pass.
    amount: usize,
    pass: Box<dyn Fn() + 'a>,
}

impl<'a> Limit<'a> {
    /// `pass` uses up `amount` bytes or operations of `what`.
    pub(crate) fn new(what: &'static str, amount: usize, pass: impl Fn() + 'a) -> Self {
        Self { what, amount, pass: Box::new(pass) }
    }

    /// One thread reads `bytes`.
    pub(crate) fn read(bytes: &'a [u8]) -> Self {
        Self::new("the read bandwidth", bytes.len(), || read(bytes))
    }

    /// Multiply-adds of float32 in registers; each counts as two operations.
    pub(crate) fn multiply_add() -> Self {
        const TIMES: usize = 100_000;
        Self::new("the multiply-add peak", TIMES * machine::OPERATIONS, || {
            black_box(machine::multiply_add(TIMES));
        })
    }

    /// Benches the limit itself, counting what `throughput` makes of its amount.
    pub(crate) fn bench(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        throughput: fn(u64) -> Throughput,
    ) {
        group.throughput(throughput(self.amount as u64));
        group.bench_function(name, |bencher| bencher.iter(&self.pass));
    }
}

/// Reads `bytes` and does next to nothing with them.
pub(crate) fn read(bytes: &[u8]) {
    black_box(machine::read(bytes));
}

/// Benches `work`, which needs `amount` of what the limit limits, and prints what share of the
/// limit it reaches, the median of passes that take turns.
pub(crate) fn beside(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    limit: &Limit<'_>,
    amount: usize,
    mut work: impl FnMut(),
) {
    let shares = RefCell::new(Vec::new());
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|times| {
            let took = time(times, &mut work);
            let passes = (times as usize * amount).div_ceil(limit.amount).max(1);
            let least = time(passes as u64, &limit.pass).as_secs_f64();
            let least = least / passes as f64 / limit.amount as f64;
            shares.borrow_mut().push(least / (took.as_secs_f64() / times as f64 / amount as f64));
            took
        });
    });
    let mut shares = shares.into_inner();
    shares.sort_by(f64::total_cmp);
    // None when criterion's arguments leave this one out.
    if let Some(share) = shares.get(shares.len() / 2) {
        eprintln!("{:24}{:.0} % of {}", "", share * 100.0, limit.what);
    }
}

fn time(times: u64, mut work: impl FnMut()) -> Duration {
    let began = Instant::now();
    (0..times).for_each(|_| work());
    began.elapsed()
}

/// As AVX-512 or AVX2 do it where there is one of them.
#[cfg(target_arch = "x86_64")]
mod machine {
    use std::arch::x86_64::*;

    /// How far ahead lines are asked for; more or less was not quicker.
    const AHEAD: usize = 16 * 1024;
    /// Sums that depend on nothing but themselves, enough to keep both units busy.
    const SUMS: usize = 12;

    pub(super) const OPERATIONS: usize = SUMS * 16 * 2;

    pub(super) fn read(bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx512f")]
        fn lines(lines: &[[u8; 512]]) -> u64 {
            let mut all = [_mm512_setzero_si512(); 8];
            for line in lines {
                for (at, all) in all.iter_mut().enumerate() {
                    let start = line.as_ptr().wrapping_add(at * 64);
                    // SAFETY: a prefetch never faults, and `start` has 64 bytes of `line` behind it.
                    let read = unsafe {
                        _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(AHEAD).cast());
                        _mm512_loadu_si512(start.cast())
                    };
                    *all = _mm512_or_si512(*all, read);
                }
            }
            let all = all.into_iter().reduce(|a, b| _mm512_or_si512(a, b));
            _mm512_reduce_or_epi64(all.expect("eight")).cast_unsigned()
        }
        let (whole, rest) = bytes.as_chunks();
        let rest = rest.iter().fold(0, |all, byte| all | u64::from(*byte));
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the feature.
            rest | unsafe { lines(whole) }
        } else {
            let words = bytemuck::cast_slice::<[u8; 512], [[u8; 8]; 64]>(whole);
            let or = |all, word: &[u8; 8]| all | u64::from_le_bytes(*word);
            words.iter().flatten().fold(rest, or)
        }
    }

    pub(super) fn multiply_add(times: usize) -> f32 {
        #[target_feature(enable = "avx512f")]
        fn wide(times: usize) -> f32 {
            let (factor, term) = (_mm512_set1_ps(0.999), _mm512_set1_ps(0.001));
            let mut sums = [_mm512_set1_ps(0.5); SUMS];
            for _ in 0..times {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, factor, term);
                }
            }
            sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
        }
        #[target_feature(enable = "avx,fma")]
        fn narrow(times: usize) -> f32 {
            let (factor, term) = (_mm256_set1_ps(0.999), _mm256_set1_ps(0.001));
            let mut sums = [_mm256_set1_ps(0.5); SUMS];
            for _ in 0..2 * times {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, factor, term);
                }
            }
            sums.into_iter().map(|sum| _mm_cvtss_f32(_mm256_castps256_ps128(sum))).sum()
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the feature.
            unsafe { wide(times) }
        } else if is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the feature, and AVX with it.
            unsafe { narrow(times) }
        } else {
            super::plain::multiply_add(times)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
use plain as machine;

/// As the compiler does it.
mod plain {
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const OPERATIONS: usize = LANES * 2;
    const LANES: usize = 192;

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn read(bytes: &[u8]) -> u64 {
        let (words, _) = bytes.as_chunks();
        words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word))
    }

    pub(super) fn multiply_add(times: usize) -> f32 {
        let mut sums = [0.5f32; LANES];
        for _ in 0..times {
            sums.iter_mut().for_each(|sum| *sum = *sum * 0.999 + 0.001);
        }
        sums.iter().sum()
    }
}
