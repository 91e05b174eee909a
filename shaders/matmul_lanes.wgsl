// Y[n, t] (+)= sum_k W[n, k] X[k, t] (+ bias[n]) for software drivers with subgroups of SUBGROUP lanes: no workgroup memory, no
// barrier.
//
// Such a driver runs every load from a storage buffer as a loop over the lanes with a branch and bounds checks in each, the
// same address in all lanes or not. So the lanes of the subgroup, which is the whole workgroup, share the loads of the
// weights: lane l reads four inputs of row l, l + 8, ..., and `subgroupBroadcast` hands them round, which is a shuffle of
// registers. A lane holds two vec4 of tokens: the loads of a step of four inputs, ROWS / 8 of W and eight of X, are then
// shared by 2 * ROWS products. (docs/benchmarks.md and docs/rejected-optimizations.md have the figures.)
// A sum is added up in the same order as in matmul_rows. Masked products read weights that `mask_apply` has zeroed before.
//
// W [n, k4] packed by four (shared/weights.wgsl), X [k, t4] vec4 over tokens, Y [n, t4], bias [n]; the rows of X and Y may be
// parts of longer ones.
// Dispatch: [ceil(t4 / 16), ceil(n / ROWS), 1]. SUBGROUP = 8, ROWS in {16, 32}.
#import maskwright::weights::{unpack}

struct Params {
    n: u32,        // rows of W and Y in this dispatch
    k4: u32,       // inputs / 4
    t4: u32,       // tokens / 4
    w_stride: u32, // packed elements from one row of W to the next
    w_first: u32,  // packed element at which row 0 starts (the input range may start inside a row)
    x_at: u32,     // vec4 of X at which row 0 starts, and from one row to the next
    x_stride: u32,
    y_at: u32,     // the same of Y
    y_stride: u32,
    bias_row: u32, // first element of bias
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;            // [n, w_stride]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;            // [n, w_stride]
#endif
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;          // [k, t4]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;    // [n, t4]
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // [n]
#endif

fn row_start(r: u32) -> u32 {
    return p.w_first + min(r, p.n - 1u) * p.w_stride;
}

// Four inputs of one vec4 of tokens.
fn inputs(b: u32) -> mat4x4<f32> {
    return mat4x4<f32>(x[b], x[b + p.x_stride], x[b + 2u * p.x_stride], x[b + 3u * p.x_stride]);
}

fn store_one(r: u32, t: u32, value: vec4<f32>) {
    if r < p.n && t < p.t4 {
        let at = p.y_at + r * p.y_stride + t;
        var v = value;
#ifdef BIAS
        v += bias[p.bias_row + r];
#endif
#ifdef ACCUMULATE
        v += y[at];
#endif
        y[at] = v;
    }
}

fn store(r: u32, t: u32, a: vec4<f32>, b: vec4<f32>) {
    store_one(r, t, a);
    store_one(r, t + #{SUBGROUP}u, b);
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let t = wg.x * 2u * #{SUBGROUP}u + lane;
    let ta = min(t, p.t4 - 1u);
    let tb = min(t + #{SUBGROUP}u, p.t4 - 1u);
    let r = wg.y * #{ROWS}u;
    let w0 = row_start(r + lane);
    let w1 = row_start(r + 8u + lane);
#if ROWS > 16
    let w2 = row_start(r + 16u + lane);
    let w3 = row_start(r + 24u + lane);
#endif
    var a0 = vec4<f32>();
    var b0 = vec4<f32>();
    var a1 = vec4<f32>();
    var b1 = vec4<f32>();
    var a2 = vec4<f32>();
    var b2 = vec4<f32>();
    var a3 = vec4<f32>();
    var b3 = vec4<f32>();
    var a4 = vec4<f32>();
    var b4 = vec4<f32>();
    var a5 = vec4<f32>();
    var b5 = vec4<f32>();
    var a6 = vec4<f32>();
    var b6 = vec4<f32>();
    var a7 = vec4<f32>();
    var b7 = vec4<f32>();
    var a8 = vec4<f32>();
    var b8 = vec4<f32>();
    var a9 = vec4<f32>();
    var b9 = vec4<f32>();
    var a10 = vec4<f32>();
    var b10 = vec4<f32>();
    var a11 = vec4<f32>();
    var b11 = vec4<f32>();
    var a12 = vec4<f32>();
    var b12 = vec4<f32>();
    var a13 = vec4<f32>();
    var b13 = vec4<f32>();
    var a14 = vec4<f32>();
    var b14 = vec4<f32>();
    var a15 = vec4<f32>();
    var b15 = vec4<f32>();
#if ROWS > 16
    var a16 = vec4<f32>();
    var b16 = vec4<f32>();
    var a17 = vec4<f32>();
    var b17 = vec4<f32>();
    var a18 = vec4<f32>();
    var b18 = vec4<f32>();
    var a19 = vec4<f32>();
    var b19 = vec4<f32>();
    var a20 = vec4<f32>();
    var b20 = vec4<f32>();
    var a21 = vec4<f32>();
    var b21 = vec4<f32>();
    var a22 = vec4<f32>();
    var b22 = vec4<f32>();
    var a23 = vec4<f32>();
    var b23 = vec4<f32>();
    var a24 = vec4<f32>();
    var b24 = vec4<f32>();
    var a25 = vec4<f32>();
    var b25 = vec4<f32>();
    var a26 = vec4<f32>();
    var b26 = vec4<f32>();
    var a27 = vec4<f32>();
    var b27 = vec4<f32>();
    var a28 = vec4<f32>();
    var b28 = vec4<f32>();
    var a29 = vec4<f32>();
    var b29 = vec4<f32>();
    var a30 = vec4<f32>();
    var b30 = vec4<f32>();
    var a31 = vec4<f32>();
    var b31 = vec4<f32>();
#endif
    // Tests at its end: behind a test at the start such a driver runs the body once more, with all lanes off.
    var k = 0u;
    loop {
        let at = p.x_at + k * 4u * p.x_stride;
        let xa = inputs(at + ta);
        let xb = inputs(at + tb);
        let v0 = unpack(w[w0 + k]);
        let v1 = unpack(w[w1 + k]);
#if ROWS > 16
        let v2 = unpack(w[w2 + k]);
        let v3 = unpack(w[w3 + k]);
#endif
        let s0 = subgroupBroadcast(v0, 0u);
        a0 += xa * s0;
        b0 += xb * s0;
        let s1 = subgroupBroadcast(v0, 1u);
        a1 += xa * s1;
        b1 += xb * s1;
        let s2 = subgroupBroadcast(v0, 2u);
        a2 += xa * s2;
        b2 += xb * s2;
        let s3 = subgroupBroadcast(v0, 3u);
        a3 += xa * s3;
        b3 += xb * s3;
        let s4 = subgroupBroadcast(v0, 4u);
        a4 += xa * s4;
        b4 += xb * s4;
        let s5 = subgroupBroadcast(v0, 5u);
        a5 += xa * s5;
        b5 += xb * s5;
        let s6 = subgroupBroadcast(v0, 6u);
        a6 += xa * s6;
        b6 += xb * s6;
        let s7 = subgroupBroadcast(v0, 7u);
        a7 += xa * s7;
        b7 += xb * s7;
        let s8 = subgroupBroadcast(v1, 0u);
        a8 += xa * s8;
        b8 += xb * s8;
        let s9 = subgroupBroadcast(v1, 1u);
        a9 += xa * s9;
        b9 += xb * s9;
        let s10 = subgroupBroadcast(v1, 2u);
        a10 += xa * s10;
        b10 += xb * s10;
        let s11 = subgroupBroadcast(v1, 3u);
        a11 += xa * s11;
        b11 += xb * s11;
        let s12 = subgroupBroadcast(v1, 4u);
        a12 += xa * s12;
        b12 += xb * s12;
        let s13 = subgroupBroadcast(v1, 5u);
        a13 += xa * s13;
        b13 += xb * s13;
        let s14 = subgroupBroadcast(v1, 6u);
        a14 += xa * s14;
        b14 += xb * s14;
        let s15 = subgroupBroadcast(v1, 7u);
        a15 += xa * s15;
        b15 += xb * s15;
#if ROWS > 16
        let s16 = subgroupBroadcast(v2, 0u);
        a16 += xa * s16;
        b16 += xb * s16;
        let s17 = subgroupBroadcast(v2, 1u);
        a17 += xa * s17;
        b17 += xb * s17;
        let s18 = subgroupBroadcast(v2, 2u);
        a18 += xa * s18;
        b18 += xb * s18;
        let s19 = subgroupBroadcast(v2, 3u);
        a19 += xa * s19;
        b19 += xb * s19;
        let s20 = subgroupBroadcast(v2, 4u);
        a20 += xa * s20;
        b20 += xb * s20;
        let s21 = subgroupBroadcast(v2, 5u);
        a21 += xa * s21;
        b21 += xb * s21;
        let s22 = subgroupBroadcast(v2, 6u);
        a22 += xa * s22;
        b22 += xb * s22;
        let s23 = subgroupBroadcast(v2, 7u);
        a23 += xa * s23;
        b23 += xb * s23;
        let s24 = subgroupBroadcast(v3, 0u);
        a24 += xa * s24;
        b24 += xb * s24;
        let s25 = subgroupBroadcast(v3, 1u);
        a25 += xa * s25;
        b25 += xb * s25;
        let s26 = subgroupBroadcast(v3, 2u);
        a26 += xa * s26;
        b26 += xb * s26;
        let s27 = subgroupBroadcast(v3, 3u);
        a27 += xa * s27;
        b27 += xb * s27;
        let s28 = subgroupBroadcast(v3, 4u);
        a28 += xa * s28;
        b28 += xb * s28;
        let s29 = subgroupBroadcast(v3, 5u);
        a29 += xa * s29;
        b29 += xb * s29;
        let s30 = subgroupBroadcast(v3, 6u);
        a30 += xa * s30;
        b30 += xb * s30;
        let s31 = subgroupBroadcast(v3, 7u);
        a31 += xa * s31;
        b31 += xb * s31;
#endif
        k += 1u;
        if k >= p.k4 { break; }
    }
    store(r + 0u, t, a0, b0);
    store(r + 1u, t, a1, b1);
    store(r + 2u, t, a2, b2);
    store(r + 3u, t, a3, b3);
    store(r + 4u, t, a4, b4);
    store(r + 5u, t, a5, b5);
    store(r + 6u, t, a6, b6);
    store(r + 7u, t, a7, b7);
    store(r + 8u, t, a8, b8);
    store(r + 9u, t, a9, b9);
    store(r + 10u, t, a10, b10);
    store(r + 11u, t, a11, b11);
    store(r + 12u, t, a12, b12);
    store(r + 13u, t, a13, b13);
    store(r + 14u, t, a14, b14);
    store(r + 15u, t, a15, b15);
#if ROWS > 16
    store(r + 16u, t, a16, b16);
    store(r + 17u, t, a17, b17);
    store(r + 18u, t, a18, b18);
    store(r + 19u, t, a19, b19);
    store(r + 20u, t, a20, b20);
    store(r + 21u, t, a21, b21);
    store(r + 22u, t, a22, b22);
    store(r + 23u, t, a23, b23);
    store(r + 24u, t, a24, b24);
    store(r + 25u, t, a25, b25);
    store(r + 26u, t, a26, b26);
    store(r + 27u, t, a27, b27);
    store(r + 28u, t, a28, b28);
    store(r + 29u, t, a29, b29);
    store(r + 30u, t, a30, b30);
    store(r + 31u, t, a31, b31);
#endif
}
