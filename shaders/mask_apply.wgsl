// Masked copy of packed weights: out = W where the bit is 1, +0.0 elsewhere. First half of a masked product on CPU adapters.
//
// W, out [n, k4] packed by four (shared/weights.wgsl); bits [rows, words] with bit c % 32 of word c / 32.
// Dispatch: n * k4 invocations, the grid folded into two dimensions.
#import maskwright::weights::{keep}

struct Params {
    n: u32,
    k4: u32,
    words: u32,    // mask words per row
    bit_row: u32,  // row of the mask that row 0 is
    w_first: u32,  // packed element of W at which row 0 starts; out starts at 0
    flip: u32,     // all ones: the bits mark the weights that become zero
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;              // [n, k4]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;              // [n, k4]
#endif
@group(0) @binding(2) var<storage, read> bits: array<u32>;               // [rows, words]
#if WEIGHT == 0
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;      // [n, k4]
#else
@group(0) @binding(3) var<storage, read_write> out: array<vec2<u32>>;      // [n, k4]
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.n * p.k4 {
        let row = i / p.k4;
        let k = i % p.k4;
        let word = bits[(p.bit_row + row) * p.words + k / 8u] ^ p.flip;
        out[i] = keep(w[p.w_first + i], word >> ((k % 8u) * 4u));
    }
}
