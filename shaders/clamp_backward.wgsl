// The gradient of clamp_to.wgsl, in place of that of its result: d[i] = 0 where |x[i]| > limit
//
// x, d: count vec4 each. Dispatch: count invocations, the grid folded into two dimensions.

struct Params {
    count: u32,
    limit: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [rows, t4]
@group(0) @binding(2) var<storage, read_write> d: array<vec4<f32>>;      // [rows, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.count {
        d[i] = select(d[i], vec4<f32>(), abs(x[i]) > vec4<f32>(p.limit));
    }
}
