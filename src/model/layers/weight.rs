//! The frozen matrix of a linear layer, in the form that suits what it is used for.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::super::kernels::bf16::PackedBf16;
use super::super::kernels::blocks::BlockMatrix;
use super::super::kernels::gemm::{MatrixView, gemm};
use super::super::kernels::quantized::QuantizedMatrix;
use super::super::ops::with_values;

/// A matrix `[out, in]` that is multiplied with activations and never changes.
#[derive(Debug)]
pub enum Weight {
    /// As it is; any device, differentiable when it is a variable.
    Dense(Tensor),
    /// Packed for bf16 dot products on the CPU, in both directions.
    Bf16 {
        /// For `x · Wᵀ`.
        forward: PackedBf16,
        /// For `dy · W`.
        backward: PackedBf16,
        /// `(out, in)`.
        shape: (usize, usize),
    },
    /// 4- or 8-bit blocks on the CPU; forward only.
    Quantized(QuantizedMatrix),
    /// Blocks on the CPU that are decoded tile by tile, in both directions: 4-bit weights under an adapter that is trained.
    Blocks(BlockMatrix),
}

impl Weight {
    /// Packs a dense CPU matrix for bf16 products where the processor has them; otherwise leaves it as it is.
    ///
    /// # Errors
    /// When the matrix is not two-dimensional.
    pub fn for_training(weight: Tensor, dtype: DType) -> Result<Self> {
        if dtype != DType::BF16 || !weight.device().is_cpu() || !PackedBf16::is_supported() {
            return Ok(Self::Dense(weight));
        }
        let (n, k) = weight.dims2()?;
        with_values(&weight, |values| {
            Ok(Self::Bf16 {
                forward: PackedBf16::pack(values, n, k),
                backward: PackedBf16::pack_transposed(values, n, k),
                shape: (n, k),
            })
        })
    }

    /// The matrix itself.
    ///
    /// # Errors
    /// When it is packed or in blocks.
    pub(crate) fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight),
            Self::Bf16 { .. } | Self::Quantized(_) | Self::Blocks(_) => bail!("a weight that is not dense"),
        }
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(weight) => (weight.dims()[0], weight.dims()[1]),
            Self::Bf16 { shape, .. } => *shape,
            Self::Quantized(matrix) => matrix.shape(),
            Self::Blocks(matrix) => matrix.shape(),
        }
    }

    /// Writes row `row` into `out [in]`, where the weight is held in blocks.
    ///
    /// # Errors
    /// When it is not, or there is no such row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let (rows, _) = self.shape();
        if row >= rows {
            bail!("row {row} of a matrix of {rows}")
        }
        match self {
            Self::Quantized(matrix) => matrix.dequantize_row(row, out),
            Self::Blocks(matrix) => matrix.decode_row(row, out),
            Self::Dense(_) | Self::Bf16 { .. } => bail!("a weight that is not in blocks is not looked up by row"),
        }
        Ok(())
    }

    /// The device its products run on.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.device().clone(),
            Self::Bf16 { .. } | Self::Quantized(_) | Self::Blocks(_) => Device::Cpu,
        }
    }

    /// `out[m, n] = x[m, k] · Wᵀ` over slices on the CPU.
    pub(crate) fn project(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        match self {
            Self::Dense(weight) => with_values(weight, |weight| {
                gemm(
                    out,
                    n,
                    false,
                    1.0,
                    MatrixView::new(x, rows, k),
                    MatrixView::new(weight, n, k).t(),
                );
                Ok(())
            }),
            Self::Bf16 { forward, .. } => {
                forward.matmul(x, rows, out, false);
                Ok(())
            }
            Self::Quantized(matrix) => {
                matrix.matmul(x, rows, out);
                Ok(())
            }
            Self::Blocks(matrix) => {
                matrix.project(x, rows, out);
                Ok(())
            }
        }
    }

    /// `dx[m, k] = dy[m, n] · W` over slices on the CPU: the backward pass of [`Weight::project`].
    pub(crate) fn project_back(&self, dy: &[f32], rows: usize, dx: &mut [f32]) -> Result<()> {
        let (n, k) = self.shape();
        match self {
            Self::Dense(weight) => with_values(weight, |weight| {
                gemm(
                    dx,
                    k,
                    false,
                    1.0,
                    MatrixView::new(dy, rows, n),
                    MatrixView::new(weight, n, k),
                );
                Ok(())
            }),
            Self::Bf16 { backward, .. } => {
                backward.matmul(dy, rows, dx, false);
                Ok(())
            }
            Self::Blocks(matrix) => {
                matrix.project_back(dy, rows, dx);
                Ok(())
            }
            Self::Quantized(_) => bail!("a weight quantised for serving has no backward pass"),
        }
    }
}
