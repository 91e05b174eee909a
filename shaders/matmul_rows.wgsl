// Y[n, t] (+)= sum_k W[n, k] X[k, t] (+ bias[n]), the preset of CPU adapters: no workgroup memory, no barrier.
//
// Lanes run along tokens, one vec4 of tokens a lane; an invocation makes ROWS rows of Y for them. The weights' address
// is the same for the whole workgroup, so a software driver loads them once and broadcasts; the per-lane loads, which are
// loops over lanes there, are the four of X per step, shared by ROWS rows. (docs/benchmarks.md has the figures.)
// Masked products read weights that `mask_apply` has zeroed before: decoding bits per lane costs a third here.
//
// W [n, k4] packed by four (shared/weights.wgsl), X [k, t4] vec4 over tokens, Y [n, t4], bias [n]; the rows of X and Y may be
// parts of longer ones.
// Dispatch: [ceil(t4 / LANES), ceil(n / ROWS), 1]. ROWS in {8, 16, 32}.
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

fn store(r: u32, t: u32, value: vec4<f32>) {
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

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let t = wg.x * #{LANES}u + lane;
    let tc = min(t, p.t4 - 1u);
    let r = wg.y * #{ROWS}u;
    let w0 = row_start(r + 0u);
    var c0 = vec4<f32>();
    let w1 = row_start(r + 1u);
    var c1 = vec4<f32>();
    let w2 = row_start(r + 2u);
    var c2 = vec4<f32>();
    let w3 = row_start(r + 3u);
    var c3 = vec4<f32>();
    let w4 = row_start(r + 4u);
    var c4 = vec4<f32>();
    let w5 = row_start(r + 5u);
    var c5 = vec4<f32>();
    let w6 = row_start(r + 6u);
    var c6 = vec4<f32>();
    let w7 = row_start(r + 7u);
    var c7 = vec4<f32>();
#if ROWS > 8
    let w8 = row_start(r + 8u);
    var c8 = vec4<f32>();
    let w9 = row_start(r + 9u);
    var c9 = vec4<f32>();
    let w10 = row_start(r + 10u);
    var c10 = vec4<f32>();
    let w11 = row_start(r + 11u);
    var c11 = vec4<f32>();
    let w12 = row_start(r + 12u);
    var c12 = vec4<f32>();
    let w13 = row_start(r + 13u);
    var c13 = vec4<f32>();
    let w14 = row_start(r + 14u);
    var c14 = vec4<f32>();
    let w15 = row_start(r + 15u);
    var c15 = vec4<f32>();
#endif
#if ROWS > 16
    let w16 = row_start(r + 16u);
    var c16 = vec4<f32>();
    let w17 = row_start(r + 17u);
    var c17 = vec4<f32>();
    let w18 = row_start(r + 18u);
    var c18 = vec4<f32>();
    let w19 = row_start(r + 19u);
    var c19 = vec4<f32>();
    let w20 = row_start(r + 20u);
    var c20 = vec4<f32>();
    let w21 = row_start(r + 21u);
    var c21 = vec4<f32>();
    let w22 = row_start(r + 22u);
    var c22 = vec4<f32>();
    let w23 = row_start(r + 23u);
    var c23 = vec4<f32>();
    let w24 = row_start(r + 24u);
    var c24 = vec4<f32>();
    let w25 = row_start(r + 25u);
    var c25 = vec4<f32>();
    let w26 = row_start(r + 26u);
    var c26 = vec4<f32>();
    let w27 = row_start(r + 27u);
    var c27 = vec4<f32>();
    let w28 = row_start(r + 28u);
    var c28 = vec4<f32>();
    let w29 = row_start(r + 29u);
    var c29 = vec4<f32>();
    let w30 = row_start(r + 30u);
    var c30 = vec4<f32>();
    let w31 = row_start(r + 31u);
    var c31 = vec4<f32>();
#endif
    for (var k = 0u; k < p.k4; k += 1u) {
        let b = p.x_at + k * 4u * p.x_stride + tc;
        let xs = mat4x4<f32>(x[b], x[b + p.x_stride], x[b + 2u * p.x_stride], x[b + 3u * p.x_stride]);
        c0 += xs * unpack(w[w0 + k]);
        c1 += xs * unpack(w[w1 + k]);
        c2 += xs * unpack(w[w2 + k]);
        c3 += xs * unpack(w[w3 + k]);
        c4 += xs * unpack(w[w4 + k]);
        c5 += xs * unpack(w[w5 + k]);
        c6 += xs * unpack(w[w6 + k]);
        c7 += xs * unpack(w[w7 + k]);
#if ROWS > 8
        c8 += xs * unpack(w[w8 + k]);
        c9 += xs * unpack(w[w9 + k]);
        c10 += xs * unpack(w[w10 + k]);
        c11 += xs * unpack(w[w11 + k]);
        c12 += xs * unpack(w[w12 + k]);
        c13 += xs * unpack(w[w13 + k]);
        c14 += xs * unpack(w[w14 + k]);
        c15 += xs * unpack(w[w15 + k]);
#endif
#if ROWS > 16
        c16 += xs * unpack(w[w16 + k]);
        c17 += xs * unpack(w[w17 + k]);
        c18 += xs * unpack(w[w18 + k]);
        c19 += xs * unpack(w[w19 + k]);
        c20 += xs * unpack(w[w20 + k]);
        c21 += xs * unpack(w[w21 + k]);
        c22 += xs * unpack(w[w22 + k]);
        c23 += xs * unpack(w[w23 + k]);
        c24 += xs * unpack(w[w24 + k]);
        c25 += xs * unpack(w[w25 + k]);
        c26 += xs * unpack(w[w26 + k]);
        c27 += xs * unpack(w[w27 + k]);
        c28 += xs * unpack(w[w28 + k]);
        c29 += xs * unpack(w[w29 + k]);
        c30 += xs * unpack(w[w30 + k]);
        c31 += xs * unpack(w[w31 + k]);
#endif
    }
    store(r + 0u, t, c0);
    store(r + 1u, t, c1);
    store(r + 2u, t, c2);
    store(r + 3u, t, c3);
    store(r + 4u, t, c4);
    store(r + 5u, t, c5);
    store(r + 6u, t, c6);
    store(r + 7u, t, c7);
#if ROWS > 8
    store(r + 8u, t, c8);
    store(r + 9u, t, c9);
    store(r + 10u, t, c10);
    store(r + 11u, t, c11);
    store(r + 12u, t, c12);
    store(r + 13u, t, c13);
    store(r + 14u, t, c14);
    store(r + 15u, t, c15);
#endif
#if ROWS > 16
    store(r + 16u, t, c16);
    store(r + 17u, t, c17);
    store(r + 18u, t, c18);
    store(r + 19u, t, c19);
    store(r + 20u, t, c20);
    store(r + 21u, t, c21);
    store(r + 22u, t, c22);
    store(r + 23u, t, c23);
    store(r + 24u, t, c24);
    store(r + 25u, t, c25);
    store(r + 26u, t, c26);
    store(r + 27u, t, c27);
    store(r + 28u, t, c28);
    store(r + 29u, t, c29);
    store(r + 30u, t, c30);
    store(r + 31u, t, c31);
#endif
}
