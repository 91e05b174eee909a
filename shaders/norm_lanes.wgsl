// Norms over groups of rows per token, root mean square or with LAYER about the mean, as in norm.wgsl, for software drivers with
// subgroups of SUBGROUP lanes.
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl). So lane l, of a subgroup that is
// the whole workgroup, reads the l-th of eight gains, and `subgroupBroadcast` hands them round to two vec4 of tokens a lane.
//
// x, y [groups * features, t4] vec4 over tokens; g, bias [features] with stride 0, [groups * features] with stride `features`.
// Dispatch: [ceil(t4 / 16), groups, 1]. SUBGROUP = 8, features a multiple of eight.

struct Params {
    features: u32,  // of a group
    t4: u32,
    eps: f32,
    stride: u32,    // gains from one group to the next
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [groups * features, t4]
@group(0) @binding(2) var<storage, read> g: array<f32>;                  // [features] or [groups * features]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;      // [groups * features, t4]
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;               // as g
#endif

fn square(at: u32) -> vec4<f32> {
    return x[at] * x[at];
}

// What one element adds to the first two moments about `about`.
fn moments(at: u32, about: vec4<f32>) -> mat2x4<f32> {
    let d = x[at] - about;
    return mat2x4<f32>(d, d * d);
}

// A vec4 of tokens, which are beyond the end where it is not live, and what norms them.
struct Token {
    t: u32,
    mean: vec4<f32>,
    scale: vec4<f32>,
}

// The token at t, of the sum of the squares of its features, or from their sum and the moments about its mean.
#ifdef LAYER
fn token(t: u32, about: vec4<f32>, sums: mat2x4<f32>) -> Token {
    let off = sums[0] / f32(p.features);
    let variance = max(sums[1] / f32(p.features) - off * off, vec4<f32>());
    return Token(t, about + off, inverseSqrt(variance + p.eps));
}
#else
fn token(t: u32, sum: vec4<f32>) -> Token {
    return Token(t, vec4<f32>(), inverseSqrt(sum / f32(p.features) + p.eps));
}
#endif

// The result in the row that starts at `row`.
fn store(row: u32, token: Token, gain: f32, shift: f32) {
    if token.t < p.t4 {
        let i = row + token.t;
#ifdef LAYER
        let n = (x[i] - token.mean) * (token.scale * gain);
#else
        let n = x[i] * (token.scale * gain);
#endif
#ifdef BIAS
        y[i] = n + shift;
#else
        y[i] = n;
#endif
    }
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let ta = wg.x * 2u * #{SUBGROUP}u + lane;
    let tb = ta + #{SUBGROUP}u;
    let n = p.t4;
    let last = n - 1u;
    let first = wg.y * p.features * n;
    let gains = wg.y * p.stride + lane;
    var sum_a = vec4<f32>();
    var sum_b = vec4<f32>();
    for (var h = 0u; h < p.features; h += 4u) {
        let at = first + h * n + min(ta, last);
        let bt = first + h * n + min(tb, last);
#ifdef LAYER
        sum_a += (x[at] + x[at + n]) + (x[at + 2u * n] + x[at + 3u * n]);
        sum_b += (x[bt] + x[bt + n]) + (x[bt + 2u * n] + x[bt + 3u * n]);
#else
        sum_a += (square(at) + square(at + n)) + (square(at + 2u * n) + square(at + 3u * n));
        sum_b += (square(bt) + square(bt + n)) + (square(bt + 2u * n) + square(bt + 3u * n));
#endif
    }
#ifdef LAYER
    let about_a = sum_a / f32(p.features);
    let about_b = sum_b / f32(p.features);
    var sums_a = mat2x4<f32>();
    var sums_b = mat2x4<f32>();
    for (var h = 0u; h < p.features; h += 2u) {
        let at = first + h * n + min(ta, last);
        let bt = first + h * n + min(tb, last);
        sums_a += moments(at, about_a) + moments(at + n, about_a);
        sums_b += moments(bt, about_b) + moments(bt + n, about_b);
    }
    let a = token(ta, about_a, sums_a);
    let b = token(tb, about_b, sums_b);
#else
    let a = token(ta, sum_a);
    let b = token(tb, sum_b);
#endif
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let row = first + h * n;
        let gain = g[gains + h];
#ifdef BIAS
        let shift = bias[gains + h];
        let s0 = subgroupBroadcast(shift, 0u);
        let s1 = subgroupBroadcast(shift, 1u);
        let s2 = subgroupBroadcast(shift, 2u);
        let s3 = subgroupBroadcast(shift, 3u);
        let s4 = subgroupBroadcast(shift, 4u);
        let s5 = subgroupBroadcast(shift, 5u);
        let s6 = subgroupBroadcast(shift, 6u);
        let s7 = subgroupBroadcast(shift, 7u);
#else
        let s0 = 0.0;
        let s1 = 0.0;
        let s2 = 0.0;
        let s3 = 0.0;
        let s4 = 0.0;
        let s5 = 0.0;
        let s6 = 0.0;
        let s7 = 0.0;
#endif
        let g0 = subgroupBroadcast(gain, 0u);
        store(row, a, g0, s0);
        store(row, b, g0, s0);
        let g1 = subgroupBroadcast(gain, 1u);
        store(row + n, a, g1, s1);
        store(row + n, b, g1, s1);
        let g2 = subgroupBroadcast(gain, 2u);
        store(row + 2u * n, a, g2, s2);
        store(row + 2u * n, b, g2, s2);
        let g3 = subgroupBroadcast(gain, 3u);
        store(row + 3u * n, a, g3, s3);
        store(row + 3u * n, b, g3, s3);
        let g4 = subgroupBroadcast(gain, 4u);
        store(row + 4u * n, a, g4, s4);
        store(row + 4u * n, b, g4, s4);
        let g5 = subgroupBroadcast(gain, 5u);
        store(row + 5u * n, a, g5, s5);
        store(row + 5u * n, b, g5, s5);
        let g6 = subgroupBroadcast(gain, 6u);
        store(row + 6u * n, a, g6, s6);
        store(row + 6u * n, b, g6, s6);
        let g7 = subgroupBroadcast(gain, 7u);
        store(row + 7u * n, a, g7, s7);
        store(row + 7u * n, b, g7, s7);
    }
}
