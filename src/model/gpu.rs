//! Opening a GPU.

use candle_core::Device;

/// Why there is no GPU to compute on.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// Built without the feature.
    #[error("this program was built for processors only; build it with `--features cuda`")]
    NotBuilt,
    /// The driver refuses.
    #[error("the driver says: {0}")]
    Refused(candle_core::Error),
}

/// The GPU of this number.
///
/// # Errors
/// When this program was built without them, or there is no such GPU.
#[cfg(not(feature = "cuda"))]
pub fn open(_number: usize) -> Result<Device, GpuError> {
    Err(GpuError::NotBuilt)
}

/// The GPU of this number.
///
/// # Errors
/// When there is no such GPU, or no driver.
#[cfg(feature = "cuda")]
pub fn open(number: usize) -> Result<Device, GpuError> {
    // One stream for all threads: what one of them uploads, an adapter for instance, is there before another one computes with it.
    let device = Device::new_cuda_with_stream(number).map_err(GpuError::Refused)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: events order the use of memory between streams, at two calls of the driver for each argument of a kernel; here all memory is
        // taken, used and given back on the device's one stream, which orders that by itself.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}
