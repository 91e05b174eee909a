// y[h, t] = x[h, t] * g[h] / sqrt(mean_h x[h, t]^2 + eps), as in rms_norm.wgsl, for software drivers with subgroups of SUBGROUP
// lanes.
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl). So lane l, of a subgroup that is
// the whole workgroup, reads the l-th of eight gains, and `subgroupBroadcast` hands them round to two vec4 of tokens a lane.
//
// x, y [features, t4] vec4 over tokens, g [features].
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
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;      // [features, t4]

fn square(at: u32) -> vec4<f32> {
    return x[at] * x[at];
}

// Row h of the result for tokens ta and tb, which are beyond the end where they are not live.
fn store(h: u32, ta: u32, tb: u32, a: vec4<f32>, b: vec4<f32>) {
    let row = h * p.t4;
    if ta < p.t4 { y[row + ta] = x[row + ta] * a; }
    if tb < p.t4 { y[row + tb] = x[row + tb] * b; }
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let ta = wg.x * 2u * #{SUBGROUP}u + lane;
    let tb = ta + #{SUBGROUP}u;
    let last = p.t4 - 1u;
    var sum_a = vec4<f32>();
    var sum_b = vec4<f32>();
    for (var h = 0u; h < p.features; h += 4u) {
        let at = h * p.t4 + min(ta, last);
        sum_a += (square(at) + square(at + p.t4)) + (square(at + 2u * p.t4) + square(at + 3u * p.t4));
        let bt = h * p.t4 + min(tb, last);
        sum_b += (square(bt) + square(bt + p.t4)) + (square(bt + 2u * p.t4) + square(bt + 3u * p.t4));
    }
    let a = inverseSqrt(sum_a / f32(p.features) + p.eps);
    let b = inverseSqrt(sum_b / f32(p.features) + p.eps);
    for (var h = 0u; h < p.features; h += #{SUBGROUP}u) {
        let gain = g[h + lane];
        let g0 = subgroupBroadcast(gain, 0u);
        store(h, ta, tb, a * g0, b * g0);
        let g1 = subgroupBroadcast(gain, 1u);
        store(h + 1u, ta, tb, a * g1, b * g1);
        let g2 = subgroupBroadcast(gain, 2u);
        store(h + 2u, ta, tb, a * g2, b * g2);
        let g3 = subgroupBroadcast(gain, 3u);
        store(h + 3u, ta, tb, a * g3, b * g3);
        let g4 = subgroupBroadcast(gain, 4u);
        store(h + 4u, ta, tb, a * g4, b * g4);
        let g5 = subgroupBroadcast(gain, 5u);
        store(h + 5u, ta, tb, a * g5, b * g5);
        let g6 = subgroupBroadcast(gain, 6u);
        store(h + 6u, ta, tb, a * g6, b * g6);
        let g7 = subgroupBroadcast(gain, 7u);
        store(h + 7u, ta, tb, a * g7, b * g7);
    }
}
