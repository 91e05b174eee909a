// f(gate[i]) * up[i] into gate, or with OUT into a third tensor, for the nonlinearity f of KIND (shared/activation.wgsl).
//
// gate, up, out: count vec4 each. Dispatch: count invocations, the grid folded into two dimensions.
#import maskwright::activation::activated

struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#ifdef OUT
@group(0) @binding(1) var<storage, read> gate: array<vec4<f32>>;         // [features, t4]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;    // [features, t4]
#else
@group(0) @binding(1) var<storage, read_write> gate: array<vec4<f32>>;   // [features, t4]
#endif
@group(0) @binding(2) var<storage, read> up: array<vec4<f32>>;           // [features, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.count {
        let y = activated(gate[i]) * up[i];
#ifdef OUT
        out[i] = y;
#else
        gate[i] = y;
#endif
    }
}
