//! What can go wrong on a device, each with what a user can do about it.

/// An error of the GPU layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// No adapter of any backend was found.
    #[error(
        "no GPU adapter found (backends asked: {backends}). Install a Vulkan driver; on Debian or Ubuntu without a GPU: \
         apt-get install libvulkan1 mesa-vulkan-drivers. `maskwright devices` lists what is seen"
    )]
    NoAdapter {
        /// The wgpu backends that were searched.
        backends: String,
    },
    /// `--device` or `WGPU_ADAPTER_NAME` selects nothing.
    #[error(
        "no adapter matches `{wanted}`; there are: {found}. Choose one by its number, or by a part of its name that is no number"
    )]
    NoSuchAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters there are.
        found: String,
    },
    /// `--device` or `WGPU_ADAPTER_NAME` is a part of several names.
    #[error("`{wanted}` fits several adapters: {found}. Give the number of one, or more of its name")]
    SeveralAdapters {
        /// What was asked for.
        wanted: String,
        /// The adapters that it fits.
        found: String,
    },
    /// The driver refused to open the device.
    #[error("cannot open {adapter}: {reason}. Update the driver or choose another adapter with --device")]
    Open {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// A shader did not compose, validate or compile: a defect of this program or of the driver.
    #[error("kernel `{kernel}` does not compile on this adapter: {message}")]
    Shader {
        /// The kernel's name.
        kernel: String,
        /// The compiler's words.
        message: String,
    },
    /// An allocation failed or is larger than the adapter allows.
    #[error(
        "out of GPU memory: `{label}` needs {bytes} bytes ({in_use} already in use): {reason}. Use a smaller batch or \
         window, or a device with more memory"
    )]
    OutOfMemory {
        /// The buffer's label.
        label: String,
        /// Its size.
        bytes: u64,
        /// What was allocated before it.
        in_use: u64,
        /// The driver's words, or the limit that was hit.
        reason: String,
    },
    /// A tensor cannot be bound in one piece, and its kernel has no way to cut it.
    #[error("`{label}` needs a binding of {bytes} bytes, the adapter binds at most {limit}: {remedy}")]
    BindingTooLarge {
        /// The tensor's label.
        label: String,
        /// The bytes it needs in one binding.
        bytes: u64,
        /// The adapter's limit.
        limit: u64,
        /// What to change.
        remedy: String,
    },
    /// The device was lost (driver reset, unplugged, watchdog).
    #[error(
        "the device was lost while running {during}: {message}. Start again; if it happens repeatedly, lower \
         --max-submit-ms or update the driver"
    )]
    Lost {
        /// The kernels of the submit that was running.
        during: String,
        /// The driver's words.
        message: String,
    },
    /// Any other error that wgpu reported.
    #[error("GPU error in {during}: {message}")]
    Device {
        /// The kernel or buffer at fault, as far as known.
        during: String,
        /// wgpu's words.
        message: String,
    },
    /// A kernel was called with shapes that do not fit together: a defect of this program.
    #[error("kernel `{kernel}`: {message}")]
    Shape {
        /// The kernel's name.
        kernel: &'static str,
        /// Which shapes do not fit.
        message: String,
    },
    /// A symmetric matrix could not be factored, whatever was added to its diagonal.
    #[error(
        "the Gram matrix [{n}, {n}] of a layer's inputs is not positive definite: the pivot of row {row} is not a positive number, \
         with {damp} of the mean diagonal element added. Look for NaN or infinite activations: try other calibration texts, or check the \
         model's perplexity"
    )]
    NotPositive {
        /// Row of the pivot.
        row: usize,
        /// Rows of the matrix.
        n: usize,
        /// The last damping tried.
        damp: f64,
    },
}
