//! The engine from outside: one test binary, because each one links all of candle again.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod common;
#[cfg(test)]
mod families;
#[cfg(test)]
mod golden;
#[cfg(all(test, feature = "cuda"))]
mod gpu;
#[cfg(test)]
mod real_models;
#[cfg(test)]
mod weights;
