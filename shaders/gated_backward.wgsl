// The gradient of gated.wgsl, in place of its inputs: with the nonlinearity f of KIND (shared/activation.wgsl) and d = d_inner
//   gate[i] = d up f'(gate),  up[i] = d f(gate)
//
// gate, up, d_inner: count vec4 each. Dispatch: count invocations, the grid folded into two dimensions.
#import maskwright::activation::parts

struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> gate: array<vec4<f32>>;   // [features, t4], before f
@group(0) @binding(2) var<storage, read_write> up: array<vec4<f32>>;     // [features, t4]
@group(0) @binding(3) var<storage, read> d_inner: array<vec4<f32>>;      // [features, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.count {
        let f = parts(gate[i]);
        let d = d_inner[i] * f.scale;
        gate[i] = d * up[i] * f.slope;
        up[i] = d * f.value;
    }
}
