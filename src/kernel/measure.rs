//! The short self-measurement that chooses among tile shapes.

use std::path::PathBuf;
use std::time::Instant;

use super::preset::SUBGROUP;
use super::{Activation, Kernels, MaskBuffer, Norm, Preset, Product, Weight};
use crate::gpu::{Commands, DeviceKind, Gpu, GpuError};
use crate::model::{Dtype, TensorView};

/// The preset for `gpu`: `forced` by name, or the cached result of an earlier measurement on the same adapter, driver,
/// version, limits and presets, or the fastest of all offered presets in a measurement made now. One that uses subgroups has to pass
/// a self-test first, every time.
///
/// # Errors
/// An unknown name, a preset that this device does not run, or what the device reports.
pub fn choose_preset(gpu: &Gpu, forced: Option<&str>) -> Result<Preset, GpuError> {
    if let Some(name) = forced {
        let preset = forced_preset(name, gpu.subgroup_size())?;
        self_test(gpu, &preset)?;
        return Ok(preset);
    }
    let offered = Preset::offered(gpu);
    let names = offered.iter().map(|p| p.name).collect::<Vec<_>>().join(" ");
    // All that a kernel's speed depends on and that may differ between two starts on one adapter.
    let (limits, subgroup) = (gpu.limits(), gpu.subgroup_size().unwrap_or(0));
    let key = format!(
        "{} maskwright {}: {names}; {} bytes bound, {} groups, subgroups of {subgroup}",
        gpu.describe(),
        env!("CARGO_PKG_VERSION"),
        limits.binding,
        limits.groups
    );
    let cache = Cache::open();
    if let Some(preset) = cache.get(&key).filter(|cached| offered.contains(cached)) {
        match self_test(gpu, &preset) {
            Ok(()) => return Ok(preset),
            Err(e) => log::warn!("preset {} ran here before and does not now: {e}", preset.name),
        }
    }
    let mut best: Option<(f64, Preset)> = None;
    for preset in offered {
        match self_test(gpu, &preset).and_then(|()| measure(gpu, &preset)) {
            Ok(seconds) => {
                log::info!("preset {}: {:.2} ms", preset.name, seconds * 1e3);
                if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                    best = Some((seconds, preset));
                }
            }
            Err(e) => log::warn!("preset {} does not run here: {e}", preset.name),
        }
    }
    match best {
        Some((_, preset)) => {
            cache.put(&key, preset.name);
            Ok(preset)
        }
        // Not kept: what failed now may go well at the next start.
        None => {
            let preset = Preset::of_kind(gpu.kind());
            log::warn!("no preset could be measured here; {} is taken, --preset names another", preset.name);
            Ok(preset)
        }
    }
}

/// The preset of that name, if it runs where subgroups have `subgroup` invocations.
fn forced_preset(name: &str, subgroup: Option<u32>) -> Result<Preset, GpuError> {
    let fail = |message| GpuError::Device { during: "choosing a preset".into(), message };
    let names = || Preset::all().iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
    let preset = Preset::named(name)
        .ok_or_else(|| fail(format!("there is no preset `{name}`; there are {}", names())))?;
    if preset.needs_met(subgroup) {
        return Ok(preset);
    }
    let has = subgroup.map_or("no subgroups of one fixed size".into(), |n| format!("subgroups of {n}"));
    Err(fail(format!("preset `{name}` needs subgroups of {SUBGROUP} invocations, and this device has {has}")))
}

/// Holds a preset with subgroups against one without: how lanes are numbered and what they exchange is up to the driver.
fn self_test(gpu: &Gpu, preset: &Preset) -> Result<(), GpuError> {
    if !preset.subgroups() {
        return Ok(());
    }
    // Two tiles along rows and tokens, none full, each element of W and of X with its own value.
    let (n, k, t4) = (45usize, 52usize, 21usize);
    let weights: Vec<u8> = (0..n * k).flat_map(|i| (i as f32 / (n * k) as f32).to_le_bytes()).collect();
    let inputs: Vec<f32> = (0..k * 4 * t4).map(|i| i as f32 / (k * 4 * t4) as f32).collect();
    let view = TensorView { name: "self-test", dtype: Dtype::F32, shape: &[n, k], data: &weights };
    let weight = Weight::upload(gpu, "probe:weights", &view)?;
    let x = Activation::new(gpu, "probe:x", k, t4)?;
    gpu.upload(x.buffer(), 0, bytemuck::cast_slice(&inputs))?;
    // A product and a norm: vectors and single numbers go from lane to lane.
    let features = k / 8 * 8;
    let gain = gpu.alloc_init("probe:gain", &inputs[1..=features])?;
    let mut commands = Commands::new(gpu)?;
    let mut run = |preset: &Preset| {
        let kernels = Kernels::new(gpu, preset.clone());
        let mut out = Vec::new();
        for rows in [n, features] {
            let y = Activation::new(gpu, "probe:y", rows, t4)?;
            gpu.upload(y.buffer(), 0, bytemuck::cast_slice(&vec![f32::NAN; rows * 4 * t4]))?;
            let y_rows = y.rows(0, rows, t4)?;
            if rows == n {
                kernels.matmul(&mut commands, &Product::new(&weight, x.rows(0, k, t4)?, y_rows))?;
            } else {
                kernels.norm(&mut commands, x.rows(0, features, t4)?, &Norm::rms(&gain, 1e-5), y_rows)?;
            }
            out.extend(commands.read::<f32>(y.buffer(), 0, rows * 4 * t4)?);
        }
        Ok::<_, GpuError>(out)
    };
    let (got, want) = (run(preset)?, run(&Preset::of_kind(DeviceKind::Cpu))?);
    // The run that follows may read less, and its plan of memory says how much.
    gpu.release_staging();
    // All terms are positive, so that rounding stays far below this; another lane's value does not. NaN is not close.
    let close = |(got, want): &(&f32, &f32)| (*got - *want).abs() <= 1e-5 * want.abs();
    let wrong = got.len() - got.iter().zip(&want).filter(close).count();
    if wrong == 0 {
        return Ok(());
    }
    Err(GpuError::Device {
        during: format!("self-test of preset {}", preset.name),
        message: format!("{wrong} of {} results differ from those without subgroups", got.len()),
    })
}

/// Seconds of a masked f16 and a masked f32 product of 384 x 384 x 512, the best of five runs each.
fn measure(gpu: &Gpu, preset: &Preset) -> Result<f64, GpuError> {
    let (n, k, t) = (384usize, 384usize, 512usize);
    let value = |i: usize| (i % 17) as f32 * 0.1 - 0.8;
    let half = (0..n * k).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect::<Vec<u8>>();
    let full = (0..n * k).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>();
    let mask = MaskBuffer::new(gpu, "probe:mask", n, k)?;
    gpu.upload(&mask.buffer, 0, &vec![0x33; n * k / 8])?;
    let x = Activation::new(gpu, "probe:x", k, t / 4)?;
    let y = Activation::new(gpu, "probe:y", n, t / 4)?;
    let kernels = Kernels::new(gpu, preset.clone());
    let mut commands = Commands::new(gpu)?;
    let mut sum = 0.0;
    for (dtype, data) in [(Dtype::F16, &half), (Dtype::F32, &full)] {
        let view = TensorView { name: "self-measurement", dtype, shape: &[n, k], data };
        let weight = Weight::upload(gpu, "probe:weights", &view)?;
        let mut best = f64::MAX;
        for _ in 0..6 {
            let started = Instant::now();
            let mut product = Product::new(&weight, x.rows(0, k, t / 4)?, y.rows(0, n, t / 4)?);
            product.mask = Some(&mask);
            kernels.matmul(&mut commands, &product)?;
            commands.finish()?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        sum += best;
    }
    Ok(sum)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_with_subgroups_need_theirs() {
        for preset in Preset::all() {
            let lanes = preset.name.starts_with("lanes");
            assert!(forced_preset(preset.name, Some(SUBGROUP)).is_ok());
            for other in [None, Some(4), Some(32)] {
                assert_eq!(forced_preset(preset.name, other).is_err(), lanes, "{} {other:?}", preset.name);
            }
        }
        let error = forced_preset("lanes32", Some(4)).expect_err("another size").to_string();
        assert!(error.contains("needs subgroups of 8") && error.contains("subgroups of 4"), "{error}");
    }
}
