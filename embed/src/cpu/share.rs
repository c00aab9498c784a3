//! How the output of a product is shared out to threads.

use std::ops::Range;

use rayon::prelude::*;

/// Rows of one task at most. At the widths of BERT its inputs stay in a core's second-level cache
/// while all panels of weights pass by, and there are enough to make up for reading those.
pub(super) const BLOCK_ROWS: usize = 144;

/// With so many rows and fewer the threads share the columns: each reads a part of the weights.
const FEW_ROWS: usize = 48;

/// The columns of a product: panels of weights, the last of which may be partly used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    pub(super) outputs: usize,
    pub(super) panel_width: usize,
}

impl Columns {
    pub(super) fn panels(self) -> usize {
        self.outputs.div_ceil(self.panel_width)
    }
}

/// Calls `product(rows, panels, out)` for parts of a `rows × outputs` product, each of which
/// writes its rows of its columns, and puts them together.
pub(super) fn product(
    rows: usize,
    columns: Columns,
    product: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let Columns { outputs, panel_width } = columns;
    let mut out = vec![0.0; rows * outputs];
    if rows == 0 {
        return out;
    }
    let threads = rayon::current_num_threads();
    if rows > FEW_ROWS || threads == 1 {
        // Whole output rows per task, and as many for each, in tiles of eight rows.
        let tasks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads);
        let block = rows.div_ceil(tasks).next_multiple_of(8);
        out.par_chunks_mut(block * outputs).enumerate().for_each(|(index, out)| {
            let first = index * block;
            product(first..first + out.len() / outputs, 0..columns.panels(), out);
        });
        return out;
    }
    // A query has too few rows to share, so the threads share the columns.
    let per_task = columns.panels().div_ceil(threads).max(1);
    let parts: Vec<(usize, Vec<f32>)> = (0..columns.panels())
        .into_par_iter()
        .step_by(per_task)
        .map(|first| {
            let panels = first..(first + per_task).min(columns.panels());
            let from = first * panel_width;
            let to = (panels.end * panel_width).min(outputs);
            let mut part = vec![0.0; rows * (to - from)];
            product(0..rows, panels, &mut part);
            (from, part)
        })
        .collect();
    for (from, part) in parts {
        let width = part.len() / rows;
        for (out, part) in out.chunks_exact_mut(outputs).zip(part.chunks_exact(width)) {
            out[from..from + width].copy_from_slice(part);
        }
    }
    out
}
