// d_x[h, t] += r g[h] d_y[h, t] - x[h, t] r^3 / H sum_i g[i] d_y[i, t] x[i, t], as in rms_norm_backward.wgsl, for software
// drivers with subgroups of SUBGROUP lanes.
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl). So lane l, of a subgroup that is
// the whole workgroup, reads the l-th of eight gains, and `subgroupBroadcast` hands them round to two vec4 of tokens a
// lane. Two, since the rows of many tokens lie pages apart: more of each page at a time is twice as fast.
//
// x, d_y, d_x [features, t4] vec4 over tokens, g [features].
// Dispatch: [ceil(t4 / 16), 1, 1]. SUBGROUP = 8, features a multiple of eight.

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

// Adds the gradient of a feature, whose row starts at `row`, where t is within the tokens; `r_gain` is r times its gain.
fn step(row: u32, t: u32, r_gain: vec4<f32>, along: vec4<f32>) {
    if t < p.t4 {
        let i = row + t;
        d_x[i] += r_gain * d_y[i] - x[i] * along;
    }
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let ta = wg.x * 2u * #{SUBGROUP}u + lane;
    let tb = ta + #{SUBGROUP}u;
    let n = p.t4;
    let last = n - 1u;
    var sums_a = mat2x4<f32>();
    var sums_b = mat2x4<f32>();
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[h + lane];
        let a = h * n + min(ta, last);
        let b = h * n + min(tb, last);
        let g0 = subgroupBroadcast(gain, 0u);
        sums_a += terms(a + 0u * n, g0);
        sums_b += terms(b + 0u * n, g0);
        let g1 = subgroupBroadcast(gain, 1u);
        sums_a += terms(a + 1u * n, g1);
        sums_b += terms(b + 1u * n, g1);
        let g2 = subgroupBroadcast(gain, 2u);
        sums_a += terms(a + 2u * n, g2);
        sums_b += terms(b + 2u * n, g2);
        let g3 = subgroupBroadcast(gain, 3u);
        sums_a += terms(a + 3u * n, g3);
        sums_b += terms(b + 3u * n, g3);
        let g4 = subgroupBroadcast(gain, 4u);
        sums_a += terms(a + 4u * n, g4);
        sums_b += terms(b + 4u * n, g4);
        let g5 = subgroupBroadcast(gain, 5u);
        sums_a += terms(a + 5u * n, g5);
        sums_b += terms(b + 5u * n, g5);
        let g6 = subgroupBroadcast(gain, 6u);
        sums_a += terms(a + 6u * n, g6);
        sums_b += terms(b + 6u * n, g6);
        let g7 = subgroupBroadcast(gain, 7u);
        sums_a += terms(a + 7u * n, g7);
        sums_b += terms(b + 7u * n, g7);
    }
    let features = f32(p.features);
    let ra = inverseSqrt(sums_a[0] / features + p.eps);
    let rb = inverseSqrt(sums_b[0] / features + p.eps);
    // In this order: r^3 alone leaves the range of f32 earlier.
    let along_a = ((sums_a[1] / features * ra) * ra) * ra;
    let along_b = ((sums_b[1] / features * rb) * rb) * rb;
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[h + lane];
        let g0 = subgroupBroadcast(gain, 0u);
        step((h + 0u) * n, ta, ra * g0, along_a);
        step((h + 0u) * n, tb, rb * g0, along_b);
        let g1 = subgroupBroadcast(gain, 1u);
        step((h + 1u) * n, ta, ra * g1, along_a);
        step((h + 1u) * n, tb, rb * g1, along_b);
        let g2 = subgroupBroadcast(gain, 2u);
        step((h + 2u) * n, ta, ra * g2, along_a);
        step((h + 2u) * n, tb, rb * g2, along_b);
        let g3 = subgroupBroadcast(gain, 3u);
        step((h + 3u) * n, ta, ra * g3, along_a);
        step((h + 3u) * n, tb, rb * g3, along_b);
        let g4 = subgroupBroadcast(gain, 4u);
        step((h + 4u) * n, ta, ra * g4, along_a);
        step((h + 4u) * n, tb, rb * g4, along_b);
        let g5 = subgroupBroadcast(gain, 5u);
        step((h + 5u) * n, ta, ra * g5, along_a);
        step((h + 5u) * n, tb, rb * g5, along_b);
        let g6 = subgroupBroadcast(gain, 6u);
        step((h + 6u) * n, ta, ra * g6, along_a);
        step((h + 6u) * n, tb, rb * g6, along_b);
        let g7 = subgroupBroadcast(gain, 7u);
        step((h + 7u) * n, ta, ra * g7, along_a);
        step((h + 7u) * n, tb, rb * g7, along_b);
    }
}
