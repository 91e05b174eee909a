// The gradient of swiglu.wgsl, in place of its inputs: with s = 1 / (1 + exp(-gate)) and d = d_inner
//   gate[i] = d up s (1 + gate (1 - s)),  up[i] = d gate s
//
// gate, up, d_inner: count vec4 each. Dispatch: count invocations, the grid folded into two dimensions.

struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> gate: array<vec4<f32>>;   // [features, t4], before silu
@group(0) @binding(2) var<storage, read_write> up: array<vec4<f32>>;     // [features, t4]
@group(0) @binding(3) var<storage, read> d_inner: array<vec4<f32>>;      // [features, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.count {
        let g = gate[i];
        // exp overflows beyond 88; WGSL lets a driver assume that there are no infinities.
        let e = exp(min(-g, vec4<f32>(80.0)));
        let s = 1.0 / (1.0 + e);
        let d = d_inner[i] * s;
        // e s is 1 - s without the cancellation at large gates.
        gate[i] = d * up[i] * (1.0 + g * (e * s));
        up[i] = d * g;
    }
}
