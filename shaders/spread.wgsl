// Weights as f32: out = W, or only those that a mask keeps or prunes, or a multiple of W minus other weights.
//
//   MASK       out[r, j] = W[r, j] where (bit ^ flip) is 1, else 0;  bits [rows, words]
//   MINUS      out[r, j] = scale * (W[r, j] - out[r, j])
// W [rows, k4] packed by four (shared/weights.wgsl), out [n, k4] vec4.
// Dispatch: n * k4 invocations, the grid folded into two dimensions.
#import maskwright::weights::{unpack, keep}

struct Params {
    n: u32,
    k4: u32,
    w_first: u32,  // packed element of W at which row 0 starts
    bit_row: u32,  // row of the mask that row 0 is
    words: u32,    // mask words per row
    flip: u32,     // all ones: the bits mark the weights that become zero
    out_first: u32, // vec4 of out at which row 0 starts
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;            // [rows, k4]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;            // [rows, k4]
#endif
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;  // [n, k4]
#ifdef MASK
@group(0) @binding(3) var<storage, read> bits: array<u32>;             // [rows, words]
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.n * p.k4 {
        var packed = w[p.w_first + i];
#ifdef MASK
        let row = i / p.k4;
        let k = i % p.k4;
        let word = bits[(p.bit_row + row) * p.words + k / 8u] ^ p.flip;
        packed = keep(packed, word >> ((k % 8u) * 4u));
#endif
        var value = unpack(packed);
#ifdef MINUS
        value = p.scale * (value - out[p.out_first + i]);
#endif
        out[p.out_first + i] = value;
    }
}
