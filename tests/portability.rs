//! The claim that the shaders run anywhere, checked without the hardware: every variant of every kernel composes, validates
//! without optional capabilities, translates to SPIR-V, MSL and HLSL, and stays within WebGPU's default limits. (Subgroups are
//! allowed to the kernels `*_lanes`, which devices without them do not need: other presets have other kernels for the same.) Also rules
//! that no compiler checks, and that no kernel is without a test against its twin.

mod common;
mod reference;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::TESTED;
use maskwright::gpu::compose;
use maskwright::kernel::{KERNELS, Variant};
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, ShaderStage};

/// Kernels that may use subgroups, under presets that are offered only where there are some.
const SUBGROUP_KERNELS: &[&str] =
    &["attention_backward_lanes", "attention_lanes", "matmul_lanes", "norm_backward_lanes", "norm_lanes"];

/// WebGPU's default limits (https://www.w3.org/TR/webgpu/#limits).
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_INVOCATIONS: u32 = 256;
const MAX_WORKGROUP: [u32; 3] = [256, 256, 64];
const MAX_WORKGROUP_BYTES: u32 = 16384;
/// Slots of parameter blocks are this far apart.
const MAX_PARAMS_BYTES: u32 = 256;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Composes a variant; a failure shows which.
fn composed(source: &str, variant: &Variant) -> (Module, ModuleInfo) {
    match compose(variant.kernel, source, &variant.defs) {
        Ok(c) => (c.module, c.info),
        Err(e) => panic!("{variant:?}: {e}"),
    }
}

fn policies() -> [BoundsCheckPolicies; 2] {
    // as wgpu builds trusted modules, and the others
    [BoundsCheckPolicy::Unchecked, BoundsCheckPolicy::Restrict].map(|p| BoundsCheckPolicies {
        index: p,
        buffer: p,
        image_load: p,
        binding_array: p,
    })
}

fn to_spirv(module: &Module, info: &ModuleInfo, subgroups: bool) -> Result<(), String> {
    // What every Vulkan device has; anything else would be an error here.
    let mut capabilities = vec![spv::Capability::Shader, spv::Capability::Matrix];
    if subgroups {
        capabilities.extend([spv::Capability::GroupNonUniform, spv::Capability::GroupNonUniformShuffle]);
    }
    for bounds_check_policies in policies() {
        let options = spv::Options {
            bounds_check_policies,
            capabilities: Some(capabilities.iter().copied().collect()),
            ..Default::default()
        };
        let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".into() };
        let words =
            spv::write_vec(module, info, &options, Some(&entry)).map_err(|e| format!("SPIR-V: {e}"))?;
        if words.first() != Some(&0x0723_0203) {
            return Err("SPIR-V: no magic number".into());
        }
    }
    Ok(())
}

fn to_msl(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    for bounds_check_policies in policies() {
        // 2.0 is the oldest that wgpu's Metal backend asks for.
        let options = msl::Options {
            lang_version: (2, 0),
            bounds_check_policies,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let (text, names) = msl::write_string(module, info, &options, &msl::PipelineOptions::default())
            .map_err(|e| format!("MSL: {e}"))?;
        names
            .entry_point_names
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("MSL: {e}"))?;
        if !text.contains("kernel void") {
            return Err("MSL: no kernel".into());
        }
    }
    Ok(())
}

fn to_hlsl(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    for restrict_indexing in [false, true] {
        // wgpu compiles for 5.1 where only the old compiler of Windows is there.
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V5_1,
            restrict_indexing,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let mut text = String::new();
        let pipeline = hlsl::PipelineOptions::default();
        let names = hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(module, info, None)
            .map_err(|e| format!("HLSL: {e}"))?;
        names
            .entry_point_names
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("HLSL: {e}"))?;
        if !text.contains("[numthreads(") {
            return Err("HLSL: no compute shader".into());
        }
    }
    Ok(())
}

/// What exceeds WebGPU's default limits.
fn over_limits(module: &Module) -> Vec<String> {
    let mut out = Vec::new();
    let (mut storage, mut workgroup, mut uniforms) = (0, 0, 0);
    for (_, var) in module.global_variables.iter() {
        let bytes = module.types[var.ty].inner.size(module.to_ctx());
        match var.space {
            AddressSpace::Storage { .. } => storage += 1,
            AddressSpace::WorkGroup => workgroup += bytes.next_multiple_of(16),
            AddressSpace::Uniform => {
                uniforms += 1;
                if bytes > MAX_PARAMS_BYTES {
                    out.push(format!("{bytes} bytes of parameters"));
                }
            }
            AddressSpace::Private => {}
            other => out.push(format!("a variable in {other:?}")),
        }
    }
    let [entry] = module.entry_points.as_slice() else {
        return vec![format!("{} entry points", module.entry_points.len())];
    };
    let size = entry.workgroup_size;
    let invocations = size.iter().product::<u32>();
    if entry.name != "main" || entry.stage != ShaderStage::Compute {
        out.push(format!("entry point {} of stage {:?}", entry.name, entry.stage));
    }
    if storage > MAX_STORAGE_BUFFERS {
        out.push(format!("{storage} storage buffers"));
    }
    if uniforms != 1 {
        out.push(format!("{uniforms} parameter blocks"));
    }
    if invocations == 0
        || invocations > MAX_INVOCATIONS
        || size.iter().zip(MAX_WORKGROUP).any(|(&s, m)| s > m)
    {
        out.push(format!("a workgroup of {size:?}"));
    }
    if workgroup > MAX_WORKGROUP_BYTES {
        out.push(format!("{workgroup} bytes of workgroup memory"));
    }
    out
}

#[test]
fn every_variant_translates_within_the_limits() {
    let (mut count, mut wrong) = (0, Vec::new());
    for kernel in KERNELS {
        let variants = kernel.variants();
        assert!(!variants.is_empty(), "{} has no variants", kernel.name);
        let distinct: BTreeSet<_> = variants.iter().map(|v| v.defs.clone()).collect();
        assert_eq!(distinct.len(), variants.len(), "{} lists a variant twice", kernel.name);
        for variant in variants {
            assert_eq!(variant.kernel, kernel.name);
            let (module, info) = composed(kernel.source, &variant);
            let subgroups = SUBGROUP_KERNELS.contains(&variant.kernel);
            let results =
                [to_spirv(&module, &info, subgroups), to_msl(&module, &info), to_hlsl(&module, &info)];
            let errors = results.into_iter().filter_map(Result::err).chain(over_limits(&module));
            wrong.extend(errors.map(|e| format!("{} {:?}: {e}", variant.kernel, variant.defs)));
            count += 1;
        }
    }
    println!("{count} variants of {} kernels", KERNELS.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The limits above are noticed, so that the test is worth something.
#[test]
fn excess_is_noticed() {
    let source = "
        struct Params { a: array<vec4<u32>, 17> }
        @group(0) @binding(0) var<uniform> p: Params;
        var<workgroup> big: array<vec4<f32>, 1025>;
        @compute @workgroup_size(257) fn main() { big[p.a[0].x].x = 1.0; }";
    let variant = Variant { kernel: "excess", defs: vec![] };
    let (module, _) = composed(source, &variant);
    assert_eq!(
        over_limits(&module),
        ["272 bytes of parameters", "a workgroup of [257, 1, 1]", "16400 bytes of workgroup memory"]
    );
    // Optional capabilities do not validate.
    let half = "enable f16;
        @group(0) @binding(1) var<storage, read_write> a: array<f16>;
        @compute @workgroup_size(1) fn main() { a[0] = a[1]; }";
    assert!(compose("excess", half, &vec![]).is_err());
    // Nor do subgroups, without the def that asks for them.
    let subgroup = "@group(0) @binding(1) var<storage, read_write> a: array<u32>;
        @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) { a[i] = subgroupBroadcast(a[i], 1u); }";
    assert!(compose("excess", subgroup, &vec![]).is_err());
    assert!(compose("excess", subgroup, &vec![("SUBGROUP", 8)]).is_ok());
}

/// All shader files with their text, comments cut off.
fn shader_files() -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    for folder in ["shaders", "shaders/shared"] {
        for entry in fs::read_dir(repository().join(folder)).expect("the folder of shaders") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|e| e == "wgsl") {
                let text = fs::read_to_string(&path).expect("a shader");
                let code =
                    text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
                out.push((path, code));
            }
        }
    }
    assert!(out.len() > KERNELS.len(), "the shaders of all kernels and the shared ones");
    out
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty())
}

/// Between the start of the entry point and its last barrier nothing leaves early: on some hardware the others would wait for
/// ever, and on none is it defined. No extension, no float atomics (design: plain WGSL, fixed summation orders); no subgroups
/// but in the kernels made for them, where they move values and do no arithmetic.
fn lint(code: &str, subgroups: bool) -> Vec<String> {
    let mut out = Vec::new();
    if let (Some(main), Some(barrier)) = (code.find("fn main"), code.rfind("workgroupBarrier")) {
        // A barrier above the entry point would be in a helper, where this text search cannot follow it.
        match code.get(main..barrier) {
            Some(body) => {
                let early = words(body).filter(|w| *w == "return");
                out.extend(early.map(|_| "returns before the last barrier".to_string()));
            }
            None => out.push("has a barrier outside of main".into()),
        }
        if code[..main].contains("workgroupBarrier") {
            out.push("has a barrier outside of main".into());
        }
    }
    let moves = ["subgroupBroadcast", "subgroup_invocation_id"];
    let banned = |w: &&str| {
        matches!(*w, "enable" | "requires" | "storageBarrier")
            || w.starts_with("subgroup") && !(subgroups && moves.contains(w))
            || w.starts_with("quad")
    };
    out.extend(words(code).filter(banned).map(|w| format!("uses `{w}`")));
    // Floats reach atomics by bit casts and compare-and-swap, or as a type of their own.
    let compact: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    for bad in ["atomic<f", "atomicCompareExchange"] {
        if compact.contains(bad) {
            out.push(format!("uses `{bad}`"));
        }
    }
    out
}

#[test]
fn shaders_keep_the_rules() {
    for (path, code) in shader_files() {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let subgroups = SUBGROUP_KERNELS.contains(&name.as_ref());
        assert_eq!(lint(&code, subgroups), [""; 0], "{}", path.display());
    }
}

#[test]
fn broken_rules_are_noticed() {
    let (with_subgroups, lint) = (|code: &str| lint(code, true), |code: &str| lint(code, false));
    let barrier = |before: &str, after: &str| {
        format!("fn f() {{ return; }} fn main() {{ {before} workgroupBarrier(); {after} }}")
    };
    assert_eq!(lint(&barrier("", "return;")), [""; 0]);
    assert_eq!(lint(&barrier("if x { return; }", "")), ["returns before the last barrier"]);
    assert_eq!(
        lint("fn f() { workgroupBarrier(); } fn main() { f(); }"),
        ["has a barrier outside of main"; 2]
    );
    assert_eq!(lint("enable f16;"), ["uses `enable`"]);
    assert_eq!(lint("var<workgroup> a: atomic< f32 >;"), ["uses `atomic<f`"]);
    assert_eq!(lint("let s = subgroupAdd(x);"), ["uses `subgroupAdd`"]);
    assert_eq!(lint("let s = subgroupBroadcast(x, 1u);"), ["uses `subgroupBroadcast`"]);
    assert_eq!(with_subgroups("let s = subgroupBroadcast(x, 1u);"), [""; 0]);
    assert_eq!(with_subgroups("let s = subgroupAdd(x);"), ["uses `subgroupAdd`"]);
}

/// Every shader file is in the kernel table, and its header says how it is dispatched.
#[test]
fn the_table_has_every_shader() {
    for entry in fs::read_dir(repository().join("shaders")).expect("the folder of shaders") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "wgsl") {
            continue;
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let kernel = KERNELS.iter().find(|k| k.name == name);
        let kernel = kernel.unwrap_or_else(|| panic!("shaders/{name}.wgsl is not in the kernel table"));
        let header: String = kernel.source.lines().take_while(|l| l.starts_with("//")).collect();
        assert!(header.contains("Dispatch:"), "shaders/{name}.wgsl: the header does not say `Dispatch:`");
    }
}

/// Every kernel is in the list of tested ones, and the file named there has a test that names the kernel.
#[test]
fn every_kernel_has_a_test() {
    let kernels: BTreeSet<_> = KERNELS.iter().map(|k| k.name).collect();
    let listed: BTreeSet<_> = TESTED.iter().map(|t| t.0).collect();
    assert_eq!(kernels.len(), KERNELS.len(), "the table names a kernel twice");
    let missing: Vec<_> = kernels.difference(&listed).collect();
    assert!(missing.is_empty(), "kernels without a test (add one, then TESTED in tests/common): {missing:?}");
    assert_eq!(listed.len(), TESTED.len(), "TESTED names a kernel twice");
    let gone: Vec<_> = listed.difference(&kernels).collect();
    assert!(gone.is_empty(), "TESTED names what is no kernel: {gone:?}");
    for (kernel, file) in TESTED {
        let path = repository().join("tests").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains("#[test]"), "{file} has no test");
        assert!(words(&text).any(|w| w == *kernel), "{file} does not mention {kernel}");
        // The twins of the mask kernels are part of the product.
        let twin = fs::read_dir(repository().join("tests/reference")).expect("the twins").any(|f| {
            let text = fs::read_to_string(f.expect("an entry").path()).unwrap_or_default();
            text.contains(&format!("pub fn {kernel}("))
        });
        assert!(twin || *file == "kernel_mask.rs", "tests/reference has no function {kernel}");
    }
}
