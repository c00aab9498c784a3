//! The loops that all vector kernels share, as macros over a module's lane operations.
//!
//! They are macros because functions with target features cannot implement traits. The module
//! that uses them names the types `Lane` (a register of numbers) and `Sum` (an accumulator),
//! the constant `STEP` (bytes that fill a lane), and the functions `load`, `load_tail`, `zero`,
//! `add` and `total`; for [`dense_metrics`] also `difference` and `multiply_add`.
//!
//! Steps alternate between two accumulators, which hides the latency of the multiply-add. A
//! row's last, partial step is filled up with zeros, which add nothing to any of the sums. One
//! row or several at once: the order of the operations on a row is the same.

/// Defines `load_tail` by way of a zeroed array.
macro_rules! copied_tail {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn load_tail(tail: &[u8]) -> Lane {
            let mut step = [0; STEP];
            step[..tail.len()].copy_from_slice(tail);
            load(&step)
        }
    };
}

/// Defines `fold`, which sums over the steps of several rows, and `block`, which goes over
/// consecutive rows.
macro_rules! row_loops {
    ($features:literal) => {
        /// Calls `visit(query lane, row lane, the row's sums)` for every step and returns the
        /// totals. With `MORE`, rows follow these and are asked for meanwhile.
        #[target_feature(enable = $features)]
        #[inline]
        fn fold<const ROWS: usize, const SUMS: usize, const MORE: bool>(
            query: &[u8],
            rows: [&[u8]; ROWS],
            visit: impl Fn(Lane, Lane, &mut [Sum; SUMS]),
        ) -> [[f32; SUMS]; ROWS] {
            let (query_steps, query_tail) = query.as_chunks::<STEP>();
            // Loops, not `map`: a closure made in a function with target features has them too,
            // and `map`, which has not, cannot inline it.
            let mut steps: [&[[u8; STEP]]; ROWS] = [&[]; ROWS];
            let mut tails: [&[u8]; ROWS] = [&[]; ROWS];
            for row in 0..ROWS {
                assert_eq!(rows[row].len(), query.len(), "a row as wide as the query");
                let (whole, tail) = rows[row].as_chunks();
                (steps[row], tails[row]) = (&whole[..query_steps.len()], tail);
            }
            // What comes next is beyond these rows, however wide they are.
            let ahead = super::BYTES_AHEAD.max(ROWS * query.len());
            let mut even = [[zero(); SUMS]; ROWS];
            let mut odd = even;
            let mut at = 0;
            while at + 1 < query_steps.len() {
                let lane = load(&query_steps[at]);
                for row in 0..ROWS {
                    if MORE {
                        prefetch_beyond(&steps[row][at], ahead);
                    }
                    visit(lane, load(&steps[row][at]), &mut even[row]);
                }
                let lane = load(&query_steps[at + 1]);
                for row in 0..ROWS {
                    // Two steps of less than a cache line are asked for as one.
                    if MORE && STEP >= 64 {
                        prefetch_beyond(&steps[row][at + 1], ahead);
                    }
                    visit(lane, load(&steps[row][at + 1]), &mut odd[row]);
                }
                at += 2;
            }
            if at < query_steps.len() {
                let lane = load(&query_steps[at]);
                for row in 0..ROWS {
                    visit(lane, load(&steps[row][at]), &mut even[row]);
                }
            }
            if !query_tail.is_empty() {
                let lane = load_tail(query_tail);
                for row in 0..ROWS {
                    visit(lane, load_tail(tails[row]), &mut odd[row]);
                }
            }
            let mut totals = [[0.0; SUMS]; ROWS];
            for row in 0..ROWS {
                for sum in 0..SUMS {
                    totals[row][sum] = total(add(even[row][sum], odd[row][sum]));
                }
            }
            totals
        }

        /// Scores consecutive rows, `ROWS` at a time, the rest one by one.
        #[target_feature(enable = $features)]
        #[inline]
        fn block<const ROWS: usize>(
            query: &[u8],
            rows: &[u8],
            out: &mut [f32],
            several: impl Fn([&[u8]; ROWS]) -> [f32; ROWS],
            one: impl Fn(&[u8]) -> f32,
        ) {
            let width = query.len().max(1);
            let mut groups = rows.chunks_exact(width * ROWS);
            let mut scores = out.chunks_exact_mut(ROWS);
            for (group, scores) in groups.by_ref().zip(scores.by_ref()) {
                let mut rows: [&[u8]; ROWS] = [&[]; ROWS];
                for (row, bytes) in rows.iter_mut().zip(group.chunks_exact(width)) {
                    *row = bytes;
                }
                scores.copy_from_slice(&several(rows));
            }
            let rest = groups.remainder().chunks_exact(width);
            for (row, score) in rest.zip(scores.into_remainder()) {
                *score = one(row);
            }
        }
    };
}

/// Defines `kernel(metric)` over L2, inner product and cosine. `$rows` rows are scored at once
/// (`$cosine_rows` for cosine, which keeps twice as many sums in registers).
macro_rules! dense_metrics {
    ($features:literal, $rows:literal, $cosine_rows:literal) => {
        row_loops!($features);

        #[target_feature(enable = $features)]
        #[inline]
        fn l2<const ROWS: usize, const MORE: bool>(
            query: &[u8],
            rows: [&[u8]; ROWS],
        ) -> [f32; ROWS] {
            let totals = fold::<ROWS, 1, MORE>(query, rows, |query, row, [sum]: &mut [Sum; 1]| {
                let apart = difference(query, row);
                *sum = multiply_add(apart, apart, *sum);
            });
            let mut results = [0.0; ROWS];
            for (result, [total]) in results.iter_mut().zip(totals) {
                *result = total;
            }
            results
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn ip<const ROWS: usize, const MORE: bool>(
            query: &[u8],
            rows: [&[u8]; ROWS],
        ) -> [f32; ROWS] {
            let totals = fold::<ROWS, 1, MORE>(query, rows, |query, row, [sum]: &mut [Sum; 1]| {
                *sum = multiply_add(query, row, *sum);
            });
            let mut results = [0.0; ROWS];
            for (result, [total]) in results.iter_mut().zip(totals) {
                *result = total;
            }
            results
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn cosine<const ROWS: usize, const MORE: bool>(
            query: &[u8],
            rows: [&[u8]; ROWS],
        ) -> [f32; ROWS] {
            let totals =
                fold::<ROWS, 2, MORE>(query, rows, |query, row, [dot, square]: &mut [Sum; 2]| {
                    *dot = multiply_add(query, row, *dot);
                    *square = multiply_add(row, row, *square);
                });
            let mut results = [0.0; ROWS];
            for (result, [dot, square]) in results.iter_mut().zip(totals) {
                *result = if square > 0.0 { dot / square.sqrt() } else { 0.0 };
            }
            results
        }

        /// Only to be called where the machine has this module's features.
        pub(super) fn kernel(metric: Metric) -> Kernel {
            match metric {
                Metric::L2 => entry!($features, l2, $rows),
                Metric::Cosine => entry!($features, cosine, $cosine_rows),
                Metric::Ip | Metric::Hamming | Metric::Jaccard => entry!($features, ip, $rows),
            }
        }
    };
}

/// A [`Kernel`](super::Kernel) of one of the functions over `ROWS` rows.
macro_rules! entry {
    ($features:literal, $metric:ident, $rows:literal) => {{
        #[target_feature(enable = $features)]
        fn consecutive(query: &[u8], rows: &[u8], out: &mut [f32]) {
            block(
                query,
                rows,
                out,
                |rows: [&[u8]; $rows]| $metric::<$rows, true>(query, rows),
                |row| $metric::<1, false>(query, [row])[0],
            );
        }
        Kernel {
            // SAFETY: `Kernel::at` hands this table out only after the machine was found to have
            // the features, which is all that calling the function asks for.
            pair: |query, row| unsafe { $metric::<1, false>(query, [row])[0] },
            // SAFETY: as above.
            block: |query, rows, out| unsafe { consecutive(query, rows, out) },
        }
    }};
}
