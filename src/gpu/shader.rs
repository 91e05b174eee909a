//! Composition of WGSL from `shaders/` by naga_oil: imports, `#ifdef`, typed constants.

use naga_oil::compose::{ComposableModuleDescriptor, Composer, NagaModuleDescriptor, ShaderDefValue};

use super::GpuError;

/// Shader defs of one pipeline: sizes and switches, substituted as `#{NAME}` and tested by `#ifdef`/`#if`.
pub type Defs = Vec<(&'static str, u32)>;

/// A module under `shaders/shared/`.
struct Shared {
    name: &'static str,
    path: &'static str,
    source: &'static str,
}

macro_rules! shared {
    ($($name:literal),*) => {
        &[$(Shared {
            name: concat!("maskwright::", $name),
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

/// Composes `source` (of `shaders/<kernel>.wgsl`) with the shared modules under the shader defs `defs`.
///
/// # Errors
/// [`GpuError::Shader`] with the position in the WGSL when it does not parse or validate.
pub fn compose(kernel: &str, source: &str, defs: &Defs) -> Result<Composed, GpuError> {
    let fail = |message: String| GpuError::Shader { kernel: kernel.to_string(), message };
    let shader_defs: std::collections::HashMap<String, ShaderDefValue> =
        defs.iter().map(|&(name, value)| (name.to_string(), ShaderDefValue::UInt(value))).collect();
    let capabilities = capabilities(defs);
    let mut composer = Composer::default().with_capabilities(capabilities);
    for shared in imported(source) {
        let module = ComposableModuleDescriptor {
            source: shared.source,
            file_path: shared.path,
            shader_defs: shader_defs.clone(),
            ..Default::default()
        };
        if let Err(e) = composer.add_composable_module(module) {
            return Err(fail(e.emit_to_string(&composer)));
        }
    }
    let path = format!("shaders/{kernel}.wgsl");
    let module = composer
        .make_naga_module(NagaModuleDescriptor {
            source,
            file_path: &path,
            shader_defs,
            ..Default::default()
        })
        .map_err(|e| fail(e.emit_to_string(&composer)))?;
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| fail(format!("{e:?}")))?;
    Ok(Composed { module, info })
}

/// The shared modules that `source` imports, directly or through others, each after those it needs.
fn imported(source: &str) -> Vec<&'static Shared> {
    fn imports(source: &str, name: &str) -> bool {
        source.lines().any(|l| l.starts_with("#import") && l.contains(name))
    }
    let mut needed: Vec<&Shared> = Vec::new();
    for shared in SHARED.iter().rev() {
        let by_other = needed.iter().any(|n| imports(n.source, shared.name));
        if by_other || imports(source, shared.name) {
            needed.push(shared);
        }
    }
    needed.reverse();
    needed
}
