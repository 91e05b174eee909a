// What the backward pass of attention subtracts from the gradient of every probability of a query (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135, equation 4 of appendix B):
//   delta[h, i] = sum_j p[i, j] dp[i, j] = sum_d d_o[h, d, i] o[h, d, i]
//
// o, d_o [heads * dim, t4], delta [heads, t4] with `stride` rows from one head to the next, vec4 over tokens.
// Dispatch: heads * t4 invocations, the grid folded into two dimensions.

struct Params {
    heads: u32,
    dim: u32,      // features of a head
    t4: u32,
    stride: u32,   // rows of delta from one head to the next
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> o: array<vec4<f32>>;            // [heads * dim, t4]
@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>;          // [heads * dim, t4]
@group(0) @binding(3) var<storage, read_write> delta: array<vec4<f32>>;  // [heads * stride, t4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.heads * p.t4 {
        let t = i % p.t4;
        let head = i / p.t4;
        var sum = vec4<f32>();
        for (var d = 0u; d < p.dim; d += 1u) {
            let at = (head * p.dim + d) * p.t4 + t;
            sum += o[at] * d_o[at];
        }
        delta[head * p.stride * p.t4 + t] = sum;
    }
}
