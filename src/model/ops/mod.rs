//! The decoder's operations as candle operations, each with a hand-written backward pass.
//!
//! candle's own fused operations cut the gradient, and plain compositions spend most of a training step in
//! temporaries. Each file here holds one operation: a CPU implementation over slices with its backward pass, and
//! `reference`, the plain composition that says what it computes. Other devices run the composition; tests hold the two equal,
//! in value and in gradient. A decoder that only serves may be made of candle's fused operations instead: [`Backend`].

mod add;
mod attention;
mod backend;
mod bias;
mod cross_entropy;
mod dropout;
mod gelu;
mod head;
mod layer_norm;
mod lora_linear;
pub mod low_rank;
mod mixed_linear;
mod rms_norm;
mod rotary;
mod swiglu;

pub use add::add;
pub(crate) use attention::beyond_window;
pub use attention::{AttentionShape, attention};
pub use backend::Backend;
pub(crate) use backend::{masked_softmax, turn};
pub use bias::add_bias;
pub(crate) use cross_entropy::cross_entropy_of;
pub use cross_entropy::{Target, cross_entropy};
pub use dropout::Dropout;
pub use gelu::gelu;
pub use head::{adapted_cross_entropy, mixed_cross_entropy};
pub use layer_norm::layer_norm;
pub use lora_linear::{LoraPart, linear, lora_linear};
pub(crate) use mixed_linear::PackedUpdate;
pub use mixed_linear::{LowRankUpdate, mixed_linear};
pub use rms_norm::rms_norm;
pub use rotary::RotaryTable;
pub(crate) use rotary::rotate;
pub use swiglu::swiglu;

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};

/// The values of a contiguous `f32` tensor handed to a custom operation.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("expected f32 values")
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected contiguous values"),
    }
}

/// Runs `read` over the values of a contiguous `f32` tensor on the CPU.
pub(crate) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => read(values(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use candle_core::{Device, Result, Tensor, Var};

    /// Fixed pseudo-random values in -1..1.
    pub fn noise(shape: &[usize], seed: u32) -> Tensor {
        let count: usize = shape.iter().product();
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    pub fn variable(shape: &[usize], seed: u32) -> Var {
        Var::from_tensor(&noise(shape, seed)).unwrap()
    }

    pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    /// Holds an operation equal to its reference composition: values, and gradients of every variable under a fixed
    /// random weighting of the outputs.
    pub fn same_value_and_gradient(
        variables: &[&Var],
        operation: impl Fn() -> Result<Tensor>,
        reference: impl Fn() -> Result<Tensor>,
        tolerance: f32,
    ) {
        let (got, want) = (operation().unwrap(), reference().unwrap());
        assert!(
            largest_difference(&got, &want) < tolerance,
            "values differ by {}",
            largest_difference(&got, &want)
        );
        let weights = noise(got.dims(), 99);
        let gradients = |output: Tensor| (output * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (got, want) = (gradients(got), gradients(want));
        for (index, variable) in variables.iter().enumerate() {
            let (got, want) = (got.get(variable).unwrap(), want.get(variable).unwrap());
            let difference = largest_difference(got, want);
            assert!(difference < tolerance, "gradient {index} differs by {difference}");
        }
    }
}
