//! The arithmetic of the forward pass on a CPU, for whatever vector width it has.
//!
//! Every function here works on plain slices and picks its instruction set at run time through
//! `pulp`, whose dispatch is safe: AVX-512, AVX2 with FMA, NEON, or scalar code. Only the products
//! of bytes in [`dot`] need instructions that it does not have. One rule holds
//! throughout: *the result of a row never depends on the rows beside it*. Sums over the inner
//! dimension run in one fixed order whatever the tile, so a text has the same bits alone or in
//! a batch of a thousand.
//!
//! Work is cut into blocks for the rayon pool that the caller runs in. Nothing here knows
//! models, layers or tensors.

mod attention;
mod dot;
mod gemm;
mod int8;
mod math;
mod prefetch;
mod rotary;
mod share;

pub(crate) use attention::{Heads, attention};
pub(crate) use gemm::{Activation, Matrix, matmul, matmul_row_max};
pub(crate) use int8::{MAX_INPUTS as MAX_INT8_INPUTS, Panels, QuantMatrix, matmul as matmul_int8};
pub(crate) use math::{add_layer_norm, gate, l2_normalize, sigmoid};
pub(crate) use rotary::{Turns, rotate};
