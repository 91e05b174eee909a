//! Composition of WGSL from `shaders/` by naga_oil: imports, `#ifdef`, typed constants.

use std::sync::{Mutex, MutexGuard, PoisonError};

use naga_oil::compose::{ComposableModuleDescriptor, Composer, NagaModuleDescriptor, ShaderDefValue};

use super::GpuError;

/// Shader defs of one pipeline: sizes and switches, substituted as `#{NAME}` and tested by `#ifdef`/`#if`.
pub type Defs = Vec<(&'static str, u32)>;

/// A module under `shaders/shared/`.
struct Shared {
    path: &'static str,
    source: &'static str,
}

macro_rules! shared {
    ($($name:literal),*) => {
        &[$(Shared {
            path: concat!("shaders/shared/", $name, ".wgsl"),
            source: include_str!(concat!("../../shaders/shared/", $name, ".wgsl")),
        }),*]
    };
}

/// Shared modules, each after those it imports.
const SHARED: &[Shared] = shared![
    "philox",
    "gumbel",
    "groups",
    "score",
    "attention",
    "weights",
    "soft",
    "inclusion",
    "patterns",
    "draws",
    "arrivals",
    "adam",
    "activation",
    "cap",
    "levels"
];

/// What every wgpu device can do: `unpack2x16float` and its kin.
const CAPABILITIES: naga::valid::Capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// The one optional capability is allowed to kernels with the def `SUBGROUP` (the subgroup size that they are written for):
/// others must run on every device.
fn capabilities(defs: &Defs) -> naga::valid::Capabilities {
    if defs.iter().any(|(name, _)| *name == "SUBGROUP") {
        CAPABILITIES | naga::valid::Capabilities::SUBGROUP
    } else {
        CAPABILITIES
    }
}

/// A composed and validated kernel.
pub struct Composed {
    /// The module, with one entry point `main`.
    pub module: naga::Module,
    /// What naga's validator found out about it (needed to write other languages).
    pub info: naga::valid::ModuleInfo,
}

/// Composers that are not at work. Making one takes ten times as long as composing a kernel with it: regular expressions are compiled, and
/// what is shared is parsed again.
static IDLE: Mutex<Vec<Composer>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Composer>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A composer that knows all shared modules.
fn composer(capabilities: naga::valid::Capabilities) -> Result<Composer, String> {
    let mut idle = idle();
    if let Some(at) = idle.iter().position(|c| c.capabilities == capabilities) {
        return Ok(idle.swap_remove(at));
    }
    drop(idle);
    let mut composer = Composer::default().with_capabilities(capabilities);
    for shared in SHARED {
        let module = ComposableModuleDescriptor {
            source: shared.source,
            file_path: shared.path,
            ..Default::default()
        };
        if let Err(e) = composer.add_composable_module(module) {
            return Err(e.emit_to_string(&composer));
        }
    }
    Ok(composer)
}

/// Composes `source` (of `shaders/<kernel>.wgsl`) with the shared modules under the shader defs `defs`.
///
/// # Errors
/// [`GpuError::Shader`] with the position in the WGSL when it does not parse or validate.
pub fn compose(kernel: &str, source: &str, defs: &Defs) -> Result<Composed, GpuError> {
    let fail = |message: String| GpuError::Shader { kernel: kernel.to_string(), message };
    let shader_defs: std::collections::HashMap<String, ShaderDefValue> =
        defs.iter().map(|&(name, value)| (name.to_string(), ShaderDefValue::UInt(value))).collect();
    let capabilities = capabilities(defs);
    let mut composer = composer(capabilities).map_err(fail)?;
    let path = format!("shaders/{kernel}.wgsl");
    let descriptor = NagaModuleDescriptor { source, file_path: &path, shader_defs, ..Default::default() };
    let module = match composer.make_naga_module(descriptor) {
        Ok(module) => module,
        Err(e) => return Err(fail(e.emit_to_string(&composer))),
    };
    idle().push(composer);
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| fail(format!("{e:?}")))?;
    Ok(Composed { module, info })
}
