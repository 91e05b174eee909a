//! The device of a run.

use serde::Serialize;

use super::{Observer, RunError};
use crate::gpu::{DeviceKind, Gpu, GpuOptions};
use crate::kernel::{Preset, choose_preset};

/// Behind the options of a command.
pub(crate) const LAST: usize = 1000;

/// Which device, and how it is used; every field is an option of every command.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Device and output")]
pub struct DeviceSpec {
    /// Adapter: its number in `maskwright devices`, or a part of its name that only it has [default: the one marked there]
    #[arg(long, global = true, value_name = "N|NAME", display_order = LAST)]
    pub device: Option<String>,
    /// How kernels are cut into tiles: tile64, rows8, rows16, rows32, lanes16 or lanes32 [default: the fastest, measured once]
    #[arg(long, global = true, value_name = "NAME", display_order = LAST)]
    pub preset: Option<String>,
    /// Measure the time of every kernel, and print a table of it at the end
    #[arg(long, global = true, display_order = LAST)]
    pub profile: bool,
    /// Milliseconds that the device is given work for at once; fewer where the screen stutters or a watchdog resets it
    #[arg(long, global = true, value_name = "MS", default_value_t = 100, display_order = LAST)]
    pub max_submit_ms: u32,
    /// Keep the bounds checks of the shader compiler (slower; for hunting a fault)
    #[arg(long, global = true, display_order = LAST)]
    pub checked: bool,
    /// Bind at most this many bytes at once, as an adapter with small limits would
    #[arg(long, global = true, value_name = "BYTES", hide = true)]
    pub max_binding_bytes: Option<u64>,
    /// Hold this many times fewer bytes of panels, strips and logits at once, so that small models are cut as large ones are
    #[arg(long, global = true, value_name = "TIMES", default_value_t = 1, hide = true)]
    pub shrink: u32,
    /// Branch, tag or commit of models that are named as on the Hugging Face hub, ORG/NAME; ORG/NAME@REV goes before it [default: main]
    #[arg(long, global = true, value_name = "REV", display_order = LAST)]
    pub revision: Option<String>,
}

impl DeviceSpec {
    /// Opens the device and says which.
    ///
    /// # Errors
    /// No such device, or what it reports.
    pub fn open(&self, observer: &dyn Observer) -> Result<Gpu, RunError> {
        let gpu = Gpu::open(GpuOptions {
            device: self.device.clone(),
            max_binding_bytes: self.max_binding_bytes,
            max_workgroup_bytes: None,
            max_workgroups: None,
            shrink: self.shrink,
            profile: self.profile,
            checked: self.checked,
            max_submit_ms: self.max_submit_ms,
        })?;
        observer.note(&format!("adapter: {} - {}", gpu.describe(), gpu.reason()));
        if gpu.kind() == DeviceKind::Cpu {
            observer.note(
                "note: this is a software driver on the CPU; a GPU is tens to thousands of times faster",
            );
        }
        Ok(gpu)
    }

    /// The preset for `gpu`.
    ///
    /// # Errors
    /// No preset of that name, or one that the device cannot run.
    pub fn preset(&self, gpu: &Gpu, observer: &dyn Observer) -> Result<Preset, RunError> {
        let preset = choose_preset(gpu, self.preset.as_deref())?;
        observer.note(&format!("preset: {}", preset.name));
        Ok(preset)
    }
}

impl Default for DeviceSpec {
    fn default() -> Self {
        super::described::defaults()
    }
}
