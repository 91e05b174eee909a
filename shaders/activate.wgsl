// f(x[i]) in place, or with OUT into a second tensor, for the nonlinearity f of KIND (shared/activation.wgsl).
//
// x, out: count vec4 each. Dispatch: count invocations, the grid folded into two dimensions.
#import maskwright::activation::activated

struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#ifdef OUT
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [features, t4]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;    // [features, t4]
#else
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [features, t4]
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.count {
        let y = activated(x[i]);
#ifdef OUT
        out[i] = y;
#else
        x[i] = y;
#endif
    }
}
