// A step of AdamW (shared/adam.wgsl) on weights, in place; with MASK only on those that it keeps: where the bit is 0, the weight and
// its moments stay as they are, bit for bit.
//
// W [rows, k4] vec4; G [rows, cols] f32 in vec4s; moments [rows, k4] vec4; bits [rows, words].
// Dispatch: one invocation per four columns of a row, the grid folded into two dimensions.
// Needs: finite weights and gradients.

#import maskwright::adam::{Adam, adam_step}

struct Params {
    rows: u32,
    k4: u32,
    w_first: u32,   // vec4 of W at which row 0 starts
    g_at: u32,      // vec4 of G at which row 0 starts
    g_stride: u32,
    first_row: u32, // row of the tensor that row 0 is
    state_at: u32,  // vec4 of the bound moments at which row 0 starts
    words: u32,     // mask words per row
    adam: Adam,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gradient: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> first: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> second: array<vec4<f32>>;
#ifdef MASK
@group(0) @binding(5) var<storage, read> bits: array<u32>;
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.rows * p.k4 {
        let row = i / p.k4;
        let k = i - row * p.k4;
        let x = w[p.w_first + i];
        let m = first[p.state_at + i];
        let v = second[p.state_at + i];
        let s = adam_step(p.adam, x, m, v, gradient[p.g_at + row * p.g_stride + k]);
#ifdef MASK
        let word = bits[(p.first_row + row) * p.words + k / 8u] >> ((k % 8u) * 4u);
        let kept = (vec4(word) & vec4(1u, 2u, 4u, 8u)) != vec4(0u);
        w[p.w_first + i] = select(x, s.x, kept);
        first[p.state_at + i] = select(m, s.m, kept);
        second[p.state_at + i] = select(v, s.v, kept);
#else
        w[p.w_first + i] = s.x;
        first[p.state_at + i] = s.m;
        second[p.state_at + i] = s.v;
#endif
    }
}
