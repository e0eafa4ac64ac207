//! Loops over slices, compiled for several levels of vector instructions and chosen at run time.

pub mod bf16;
pub mod blocks;
pub(crate) mod gemm;
mod memory;
pub mod nf4;
pub mod quantized;
pub(crate) mod vector;
