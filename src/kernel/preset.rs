//! Tile shapes, and the short self-measurement that chooses among them.

use std::path::PathBuf;
use std::time::Instant;

use super::{Activation, Kernels, MaskBuffer, Product, Weight};
use crate::gpu::{Commands, DeviceKind, Gpu, GpuError};
use crate::model::{Dtype, TensorView};

/// Which product kernel a preset uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matmul {
    /// `matmul_rows` with this many rows per invocation: software drivers.
    Rows(u32),
    /// `matmul_tile`: GPUs.
    Tile,
}

/// Tile shapes of all kernels. Changing it changes summation orders, so a run records its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// "tile64", "rows8", "rows16" or "rows32".
    pub name: &'static str,
    pub(super) matmul: Matmul,
    /// Invocations of a workgroup of element-wise kernels.
    pub(super) lanes: u32,
    /// Lanes along tokens and slices along rows of the reducing kernels.
    pub(super) reduce: (u32, u32),
    /// Lanes along tokens and keys a step of attention.
    pub(super) attention: (u32, u32),
    /// Lanes that share one row of a matrix, in kernels that give each row a workgroup.
    pub(super) row: u32,
}

impl Preset {
    /// All presets.
    pub fn all() -> Vec<Self> {
        let rows = |name, rows| Self {
            name,
            matmul: Matmul::Rows(rows),
            lanes: 64,
            reduce: (8, 1),
            attention: (8, 32),
            row: 8,
        };
        vec![
            Self {
                name: "tile64",
                matmul: Matmul::Tile,
                lanes: 256,
                reduce: (16, 16),
                attention: (32, 16),
                row: 128,
            },
            rows("rows8", 8),
            rows("rows16", 16),
            rows("rows32", 32),
        ]
    }

    /// The preset of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|p| p.name == name)
    }

    /// The preset of a kind of device before anything is measured.
    pub fn of_kind(kind: DeviceKind) -> Self {
        let name = if kind == DeviceKind::Cpu { "rows16" } else { "tile64" };
        Self::all().into_iter().find(|p| p.name == name).unwrap_or_else(|| Self::all().swap_remove(0))
    }

    /// Rows of the output that one workgroup of the product makes.
    pub(super) fn row_unit(&self) -> usize {
        match self.matmul {
            Matmul::Rows(rows) => rows as usize,
            Matmul::Tile => 64,
        }
    }
}

/// The preset for `gpu`: `forced` by name, or the cached result of an earlier measurement on the same adapter, driver and
/// version, or the fastest of all presets in a measurement made now (a masked f16 product of 384 x 384 x 512).
///
/// # Errors
/// An unknown name, or what the device reports.
pub fn choose_preset(gpu: &Gpu, forced: Option<&str>) -> Result<Preset, GpuError> {
    if let Some(name) = forced {
        let names = || Preset::all().iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        return Preset::named(name).ok_or_else(|| GpuError::Device {
            during: "choosing a preset".into(),
            message: format!("there is no preset `{name}`; there are {}", names()),
        });
    }
    let key = format!("{} maskwright {}", gpu.describe(), env!("CARGO_PKG_VERSION"));
    let cache = Cache::open();
    if let Some(preset) = cache.get(&key) {
        return Ok(preset);
    }
    let mut best = (f64::MAX, Preset::of_kind(gpu.kind()));
    for preset in Preset::all() {
        match measure(gpu, &preset) {
            Ok(seconds) => {
                log::info!("preset {}: {:.2} ms", preset.name, seconds * 1e3);
                if seconds < best.0 {
                    best = (seconds, preset);
                }
            }
            Err(e) => log::warn!("preset {} does not run here: {e}", preset.name),
        }
    }
    cache.put(&key, best.1.name);
    Ok(best.1)
}

/// Best of five runs of the product, in seconds.
fn measure(gpu: &Gpu, preset: &Preset) -> Result<f64, GpuError> {
    let (n, k, t) = (384usize, 384usize, 512usize);
    let data: Vec<u8> =
        (0..n * k).flat_map(|i| half::f16::from_f32((i % 17) as f32 * 0.1 - 0.8).to_le_bytes()).collect();
    let view = TensorView { name: "self-measurement", dtype: Dtype::F16, shape: &[n, k], data: &data };
    let weight = Weight::upload(gpu, "probe:weights", &view)?;
    let mask = MaskBuffer::new(gpu, "probe:mask", n, k)?;
    gpu.upload(&mask.buffer, 0, &vec![0x33; n * k / 8])?;
    let x = Activation::new(gpu, "probe:x", k, t / 4)?;
    let y = Activation::new(gpu, "probe:y", n, t / 4)?;
    let kernels = Kernels::new(gpu, preset.clone());
    let mut commands = Commands::new(gpu)?;
    let mut best = f64::MAX;
    for _ in 0..6 {
        let started = Instant::now();
        let mut product = Product::new(&weight, x.rows(0, k, t / 4)?, y.rows(0, n, t / 4)?);
        product.mask = Some(&mask);
        kernels.matmul(&mut commands, &product)?;
        commands.finish()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Operations a second of f32 products under the preset of `kernels`: of the smallest square product that takes 5 ms.
///
/// # Errors
/// What the device reports.
pub fn product_rate(kernels: &Kernels<'_>) -> Result<f64, GpuError> {
    let gpu = kernels.gpu();
    let mut commands = Commands::new(gpu)?;
    let mut rate = 1.0;
    for n in [256usize, 512, 1024, 2048] {
        let new = |name: &str| Activation::new(gpu, &format!("probe:{name}"), n, n / 4);
        let (a, x, y) = (new("a")?, new("x")?, new("y")?);
        let (a_rows, x_rows, y_rows) = (a.rows(0, n, n / 4)?, x.rows(0, n, n / 4)?, y.rows(0, n, n / 4)?);
        let mut best = f64::MAX;
        // The first run builds the pipeline.
        for _ in 0..3 {
            let started = Instant::now();
            kernels.product_f32(&mut commands, a_rows, x_rows, y_rows, false)?;
            commands.finish()?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        rate = 2.0 * (n as f64).powi(3) / best;
        if best > 5e-3 {
            break;
        }
    }
    Ok(rate)
}

/// `presets.json` in the user's cache folder: adapter -> preset name. A cache that cannot be read or written is no error.
struct Cache {
    path: Option<PathBuf>,
}

impl Cache {
    fn open() -> Self {
        let dir = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = dir("MASKWRIGHT_CACHE").or_else(|| {
            dir("XDG_CACHE_HOME")
                .or_else(|| dir("LOCALAPPDATA"))
                .or_else(|| dir("HOME").map(|h| h.join(".cache")))
                .map(|b| b.join("maskwright"))
        });
        Self { path: base.map(|b| b.join("presets.json")) }
    }

    fn read(&self) -> serde_json::Map<String, serde_json::Value> {
        let text = self.path.as_ref().and_then(|p| std::fs::read_to_string(p).ok());
        text.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default()
    }

    fn get(&self, key: &str) -> Option<Preset> {
        self.read().get(key)?.as_str().and_then(Preset::named)
    }

    fn put(&self, key: &str, preset: &str) {
        let Some(path) = &self.path else {
            return;
        };
        let mut all = self.read();
        all.insert(key.to_string(), preset.into());
        let text = serde_json::Value::Object(all).to_string();
        // Under a name of its own first: two first runs at once must not read half a file.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = made.and_then(|()| std::fs::write(&temporary, text));
        if let Err(e) = written.and_then(|()| std::fs::rename(&temporary, path)) {
            log::info!("cannot keep the preset in {}: {e}", path.display());
        }
    }
}
