// Rotary position embedding in place, of the first 2 half features of each head: for i < half
//   a = x[step i], b = x[step i + across];  x[step i] = a cos - b sin;  x[step i + across] = b cos + a sin
// with cos, sin of position * inv_freq[i], made on the host in f64, where they may be scaled. The position is the token's index in
// its window. step 1, across half: the half-split order of Hugging Face; step 2, across 1: neighbours are a pair.
// The def BACKWARD rotates by the negative angle, the transpose, and so the backward pass, of a scaled rotation.
//
// x [heads * head_dim, t4] vec4 over tokens; table [2, half, window4]: cos, then sin.
// Dispatch: heads * half * t4 invocations, the grid folded into two dimensions.

struct Params {
    pairs: u32,    // heads * half
    half: u32,
    t4: u32,
    window4: u32,  // padded window length / 4
    head_dim: u32, // 2 half, or more where the features behind stay
    step: u32,
    across: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;        // [2, half, window4]
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;      // [heads * head_dim, t4]

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
        let low = ((pair / p.half) * p.head_dim + f * p.step) * p.t4 + t;
        let high = low + p.across * p.t4;
        let a = x[low];
        let b = x[high];
        x[low] = a * c - b * s;
        x[high] = b * c + a * s;
    }
}
