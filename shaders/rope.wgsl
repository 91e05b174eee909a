// Rotary position embedding in place, half-split as in Hugging Face: for i < d/2 of each head
//   a = x[i], b = x[i + d/2];  x[i] = a cos - b sin;  x[i + d/2] = b cos + a sin
// with cos, sin of position * inv_freq[i], made on the host in f64. The position is the token's index in its window.
// The def BACKWARD rotates by the negative angle: the transpose of a rotation, and so its backward pass, is its inverse.
//
// x [heads * 2 * half, t4] vec4 over tokens; table [2, half, window4]: cos, then sin.
// Dispatch: heads * half * t4 invocations, the grid folded into two dimensions.

struct Params {
    pairs: u32,    // heads * half
    half: u32,     // head_dim / 2
    t4: u32,
    window4: u32,  // padded window length / 4
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;        // [2, half, window4]
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;      // [heads * 2 * half, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.pairs * p.t4 {
        let t = i % p.t4;
        let pair = i / p.t4;
        let f = pair % p.half;
        let c = table[f * p.window4 + t % p.window4];
#ifdef BACKWARD
        let s = -table[(p.half + f) * p.window4 + t % p.window4];
#else
        let s = table[(p.half + f) * p.window4 + t % p.window4];
#endif
        let low = ((pair / p.half) * 2u * p.half + f) * p.t4 + t;
        let high = low + p.half * p.t4;
        let a = x[low];
        let b = x[high];
        x[low] = a * c - b * s;
        x[high] = b * c + a * s;
    }
}
