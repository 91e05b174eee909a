// d_x[h, t] += r g[h] d_y[h, t] - x[h, t] r^3 / H sum_i g[i] d_y[i, t] x[i, t], as in rms_norm_backward.wgsl, for software
// drivers with subgroups of SUBGROUP lanes.
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl). So lane l, of a subgroup that is
// the whole workgroup, reads the l-th of eight gains, and `subgroupBroadcast` hands them round.
//
// x, d_y, d_x [features, t4] vec4 over tokens, g [features].
// Dispatch: [ceil(t4 / 8), 1, 1]. SUBGROUP = 8, features a multiple of eight.

struct Params {
    features: u32,
    t4: u32,
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [features, t4]
@group(0) @binding(2) var<storage, read> g: array<f32>;                  // [features]
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;          // [features, t4]
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<f32>>;    // [features, t4]

// What one feature adds to the two sums: x^2 and x g d_y.
fn terms(at: u32, gain: f32) -> mat2x4<f32> {
    let v = x[at];
    return mat2x4<f32>(v * v, v * (gain * d_y[at]));
}

// The gradient of one feature; `r_gain` is r times its gain.
fn step(at: u32, r_gain: vec4<f32>, along: vec4<f32>) -> vec4<f32> {
    return d_x[at] + (r_gain * d_y[at] - x[at] * along);
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let t = wg.x * #{SUBGROUP}u + lane;
    let tc = min(t, p.t4 - 1u);
    let n = p.t4;
    var sums = mat2x4<f32>();
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[h + lane];
        let i = h * n + tc;
        let a = terms(i, subgroupBroadcast(gain, 0u)) + terms(i + n, subgroupBroadcast(gain, 1u));
        let b = terms(i + 2u * n, subgroupBroadcast(gain, 2u)) + terms(i + 3u * n, subgroupBroadcast(gain, 3u));
        let c = terms(i + 4u * n, subgroupBroadcast(gain, 4u)) + terms(i + 5u * n, subgroupBroadcast(gain, 5u));
        let d = terms(i + 6u * n, subgroupBroadcast(gain, 6u)) + terms(i + 7u * n, subgroupBroadcast(gain, 7u));
        sums += (a + b) + (c + d);
    }
    let features = f32(p.features);
    let r = inverseSqrt(sums[0] / features + p.eps);
    // In this order: r^3 alone leaves the range of f32 earlier.
    let along = ((sums[1] / features * r) * r) * r;
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[h + lane];
        let g0 = subgroupBroadcast(gain, 0u);
        let g1 = subgroupBroadcast(gain, 1u);
        let g2 = subgroupBroadcast(gain, 2u);
        let g3 = subgroupBroadcast(gain, 3u);
        let g4 = subgroupBroadcast(gain, 4u);
        let g5 = subgroupBroadcast(gain, 5u);
        let g6 = subgroupBroadcast(gain, 6u);
        let g7 = subgroupBroadcast(gain, 7u);
        if t < n {
            let i = h * n + t;
            d_x[i] = step(i, r * g0, along);
            d_x[i + n] = step(i + n, r * g1, along);
            d_x[i + 2u * n] = step(i + 2u * n, r * g2, along);
            d_x[i + 3u * n] = step(i + 3u * n, r * g3, along);
            d_x[i + 4u * n] = step(i + 4u * n, r * g4, along);
            d_x[i + 5u * n] = step(i + 5u * n, r * g5, along);
            d_x[i + 6u * n] = step(i + 6u * n, r * g6, along);
            d_x[i + 7u * n] = step(i + 7u * n, r * g7, along);
        }
    }
}
