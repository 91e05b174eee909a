// The gradient of norms over groups of rows with respect to their input, root mean square or with LAYER about the mean, as in
// norm_backward.wgsl, for software drivers with subgroups of SUBGROUP lanes. With ACCUMULATE it is added to what d_x has.
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl). So lane l, of a subgroup that is
// the whole workgroup, reads the l-th of eight gains, and `subgroupBroadcast` hands them round to two vec4 of tokens a
// lane. Two, since the rows of many tokens lie pages apart: more of each page at a time is twice as fast.
//
// x, d_y, d_x [groups * features, t4] vec4 over tokens; g [features] with stride 0, [groups * features] with stride `features`.
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
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;          // [groups * features, t4]
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<f32>>;    // [groups * features, t4]

// What one feature adds to the sums, with q = g d_y: x^2 and x q; about the mean also x and q.
#ifdef LAYER
fn terms(at: u32, about: vec4<f32>, gain: f32) -> mat4x4<f32> {
    let v = x[at] - about;
    let q = gain * d_y[at];
    return mat4x4<f32>(v * v, v * q, v, q);
}
#else
fn terms(at: u32, gain: f32) -> mat2x4<f32> {
    let v = x[at];
    return mat2x4<f32>(v * v, v * (gain * d_y[at]));
}
#endif

// A vec4 of tokens, which are beyond the end where it is not live, and what its gradient is made of.
struct Token {
    t: u32,
    r: vec4<f32>,
    along: vec4<f32>,
    mean: vec4<f32>,
    up: vec4<f32>,
}

// r, and in this order r^3, which alone leaves the range of f32 earlier.
#ifdef LAYER
fn token(t: u32, about: vec4<f32>, sums: mat4x4<f32>) -> Token {
    let features = f32(p.features);
    let off = sums[2] / features;
    let r = inverseSqrt(max(sums[0] / features - off * off, vec4<f32>()) + p.eps);
    let dot = sums[1] - off * sums[3];
    return Token(t, r, ((dot / features * r) * r) * r, about + off, sums[3] / features);
}
#else
fn token(t: u32, sums: mat2x4<f32>) -> Token {
    let features = f32(p.features);
    let r = inverseSqrt(sums[0] / features + p.eps);
    return Token(t, r, ((sums[1] / features * r) * r) * r, vec4<f32>(), vec4<f32>());
}
#endif

// The gradient of the feature whose row starts at `row`.
fn store(row: u32, token: Token, gain: f32) {
    if token.t < p.t4 {
        let i = row + token.t;
#ifdef LAYER
        let d = token.r * (gain * d_y[i] - token.up) - (x[i] - token.mean) * token.along;
#else
        let d = token.r * gain * d_y[i] - x[i] * token.along;
#endif
#ifdef ACCUMULATE
        d_x[i] += d;
#else
        d_x[i] = d;
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
#ifdef LAYER
    var sum_a = vec4<f32>();
    var sum_b = vec4<f32>();
    for (var h = 0u; h < p.features; h += 4u) {
        let at = first + h * n + min(ta, last);
        let bt = first + h * n + min(tb, last);
        sum_a += (x[at] + x[at + n]) + (x[at + 2u * n] + x[at + 3u * n]);
        sum_b += (x[bt] + x[bt + n]) + (x[bt + 2u * n] + x[bt + 3u * n]);
    }
    let about_a = sum_a / f32(p.features);
    let about_b = sum_b / f32(p.features);
    var sums_a = mat4x4<f32>();
    var sums_b = mat4x4<f32>();
#else
    var sums_a = mat2x4<f32>();
    var sums_b = mat2x4<f32>();
#endif
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[gains + h];
        let a = first + h * n + min(ta, last);
        let b = first + h * n + min(tb, last);
        let g0 = subgroupBroadcast(gain, 0u);
        let g1 = subgroupBroadcast(gain, 1u);
        let g2 = subgroupBroadcast(gain, 2u);
        let g3 = subgroupBroadcast(gain, 3u);
        let g4 = subgroupBroadcast(gain, 4u);
        let g5 = subgroupBroadcast(gain, 5u);
        let g6 = subgroupBroadcast(gain, 6u);
        let g7 = subgroupBroadcast(gain, 7u);
#ifdef LAYER
        sums_a += terms(a, about_a, g0);
        sums_b += terms(b, about_b, g0);
        sums_a += terms(a + n, about_a, g1);
        sums_b += terms(b + n, about_b, g1);
        sums_a += terms(a + 2u * n, about_a, g2);
        sums_b += terms(b + 2u * n, about_b, g2);
        sums_a += terms(a + 3u * n, about_a, g3);
        sums_b += terms(b + 3u * n, about_b, g3);
        sums_a += terms(a + 4u * n, about_a, g4);
        sums_b += terms(b + 4u * n, about_b, g4);
        sums_a += terms(a + 5u * n, about_a, g5);
        sums_b += terms(b + 5u * n, about_b, g5);
        sums_a += terms(a + 6u * n, about_a, g6);
        sums_b += terms(b + 6u * n, about_b, g6);
        sums_a += terms(a + 7u * n, about_a, g7);
        sums_b += terms(b + 7u * n, about_b, g7);
#else
        sums_a += terms(a, g0);
        sums_b += terms(b, g0);
        sums_a += terms(a + n, g1);
        sums_b += terms(b + n, g1);
        sums_a += terms(a + 2u * n, g2);
        sums_b += terms(b + 2u * n, g2);
        sums_a += terms(a + 3u * n, g3);
        sums_b += terms(b + 3u * n, g3);
        sums_a += terms(a + 4u * n, g4);
        sums_b += terms(b + 4u * n, g4);
        sums_a += terms(a + 5u * n, g5);
        sums_b += terms(b + 5u * n, g5);
        sums_a += terms(a + 6u * n, g6);
        sums_b += terms(b + 6u * n, g6);
        sums_a += terms(a + 7u * n, g7);
        sums_b += terms(b + 7u * n, g7);
#endif
    }
#ifdef LAYER
    let a = token(ta, about_a, sums_a);
    let b = token(tb, about_b, sums_b);
#else
    let a = token(ta, sums_a);
    let b = token(tb, sums_b);
#endif
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let row = first + h * n;
        let gain = g[gains + h];
        let g0 = subgroupBroadcast(gain, 0u);
        store(row, a, g0);
        store(row, b, g0);
        let g1 = subgroupBroadcast(gain, 1u);
        store(row + n, a, g1);
        store(row + n, b, g1);
        let g2 = subgroupBroadcast(gain, 2u);
        store(row + 2u * n, a, g2);
        store(row + 2u * n, b, g2);
        let g3 = subgroupBroadcast(gain, 3u);
        store(row + 3u * n, a, g3);
        store(row + 3u * n, b, g3);
        let g4 = subgroupBroadcast(gain, 4u);
        store(row + 4u * n, a, g4);
        store(row + 4u * n, b, g4);
        let g5 = subgroupBroadcast(gain, 5u);
        store(row + 5u * n, a, g5);
        store(row + 5u * n, b, g5);
        let g6 = subgroupBroadcast(gain, 6u);
        store(row + 6u * n, a, g6);
        store(row + 6u * n, b, g6);
        let g7 = subgroupBroadcast(gain, 7u);
        store(row + 7u * n, a, g7);
        store(row + 7u * n, b, g7);
    }
}
