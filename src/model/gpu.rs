//! Opening a GPU.

use candle_core::Device;

/// Why there is no GPU to compute on.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// Built without the feature.
    #[error("this program was built for processors only; build it with `--features cuda`")]
    NotBuilt,
    /// The machine lacks the driver.
    #[error("there is no NVIDIA driver ({0})")]
    NoDriver(String),
    /// The driver refuses.
    #[error("{0}")]
    Refused(candle_core::Error),
}

/// The GPU of this number.
///
/// # Errors
/// When this program was built without them, or there is no such GPU, or no driver.
pub fn open(number: usize) -> Result<Device, GpuError> {
    #[cfg(feature = "cuda")]
    return cuda::open(number);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = number;
        Err(GpuError::NotBuilt)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::Device;
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    use super::GpuError;

    /// The driver's library, under the name that all its versions have.
    const DRIVER: &str = "libcuda.so.1";

    pub(super) fn open(number: usize) -> Result<Device, GpuError> {
        load_driver()?;
        // One stream for all threads: what one of them uploads, an adapter for instance, is there before another one computes with it.
        let device = Device::new_cuda_with_stream(number).map_err(GpuError::Refused)?;
        if let Device::Cuda(cuda) = &device {
            // SAFETY: events order the use of memory between streams, at two calls of the driver for each argument of a kernel; here all memory
            // is taken, used and given back on the device's one stream, which orders that by itself.
            unsafe { cuda.disable_event_tracking() };
        }
        Ok(device)
    }

    /// Loads the driver where the program is not linked to it (`docker/cuda-flags`), so that it starts on machines without one.
    fn load_driver() -> Result<(), GpuError> {
        // SAFETY: the library's initialisers run, as they would have at the start of a program that is linked to it.
        let driver = unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_GLOBAL) };
        let driver = driver.map_err(|error| GpuError::NoDriver(error.to_string()))?;
        // Its functions are called for as long as the program runs.
        std::mem::forget(driver);
        Ok(())
    }
}
