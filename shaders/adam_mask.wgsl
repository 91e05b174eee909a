// Learning the logits of soft top-#{N} masks: the gradient by the mask, G * W, goes back through the soft top-N (RELAXATION 0:
// shared/soft.wgsl, 1 and 2: shared/inclusion.wgsl; keys are made again from the logits and the same noise), and a step of Adam moves the logits in place (shared/adam.wgsl).
//
//   a = gain * logit + noise * Gumbel,   dmask = G * W,   dlogit = slope * (d mask / d a)^T dmask
// ONLY_GRADIENT writes dlogit in f32 instead of a step. JOINT also multiplies G by the mask in place: the gradient by the weights.
//
// W [rows, k4] packed by four; G [rows, cols] f32 in vec4s; logits and moments [rows, cols], f32 (STATE 0) or f16 pairs (STATE 1).
// Noise: see effective.wgsl. Random numbers of the rounding: Philox counter (Adam's step, projection, quad, 17), 13 low bits of
// word i % 4 for a logit, 13 from bit 16 on for the root of its second moment.
// Dispatch: one invocation per span of max(M, 4) columns of a row, the grid folded into two dimensions.
// Needs: finite logits and gradients.

#import maskwright::weights::unpack
#import maskwright::soft::{QUADS, soft_gradient, soft_mask}
#if RELAXATION > 0
#import maskwright::inclusion::{inclusion_gradient, inclusion_mask}
#endif
#import maskwright::philox::philox4x32
#import maskwright::gumbel::gumbel4
#import maskwright::adam::{Adam, adam_step}
#if STATE == 1
#import maskwright::adam::{to_halves, stochastic, MOMENT_SCALE, ROUNDING}
#endif

struct Params {
    rows: u32,
    k4: u32,
    w_first: u32,    // packed element of W at which row 0 starts
    g_at: u32,       // vec4 of G at which row 0 starts
    g_stride: u32,
    first_row: u32,  // row of the tensor that row 0 is
    state_at: u32,   // element of the bound logits and moments at which row 0 starts
    state_stride: u32, // elements of a row
    out_at: u32,     // ONLY_GRADIENT: element of out at which row 0 starts
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
    gain: f32,
    noise: f32,
    removal: f32,    // RELAXATION 0
    slope: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
    adam: Adam,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
#ifdef JOINT
@group(0) @binding(2) var<storage, read_write> gradient: array<vec4<f32>>;
#else
@group(0) @binding(2) var<storage, read> gradient: array<vec4<f32>>;
#endif
#if STATE == 0
#if M == 2
@group(0) @binding(3) var<storage, read_write> logits: array<vec2<f32>>;
#else
@group(0) @binding(3) var<storage, read_write> logits: array<vec4<f32>>;
#endif
#else
#if M == 2
@group(0) @binding(3) var<storage, read_write> logits: array<u32>;
#else
@group(0) @binding(3) var<storage, read_write> logits: array<vec2<u32>>;
#endif
#endif
#ifdef ONLY_GRADIENT
#if M == 2
@group(0) @binding(4) var<storage, read_write> out: array<vec2<f32>>;
#else
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#endif
#else
#if STATE == 0
#if M == 2
@group(0) @binding(4) var<storage, read_write> first: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> second: array<vec2<f32>>;
#else
@group(0) @binding(4) var<storage, read_write> first: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> second: array<vec4<f32>>;
#endif
#else
#if M == 2
@group(0) @binding(4) var<storage, read_write> first: array<u32>;
@group(0) @binding(5) var<storage, read_write> second: array<u32>;
#else
@group(0) @binding(4) var<storage, read_write> first: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> second: array<vec2<u32>>;
#endif
#endif
#endif

#if STATE == 0
fn wide(x: vec4<f32>) -> vec4<f32> {
    return x;
}
#else
fn wide(x: vec2<u32>) -> vec4<f32> {
    return vec4(unpack2x16float(x.x), unpack2x16float(x.y));
}
#endif

#if M == 2
#if STATE == 0
fn pair(a: vec2<f32>, b: vec2<f32>) -> vec4<f32> {
    return vec4(a, b);
}
#else
fn pair(a: u32, b: u32) -> vec2<u32> {
    return vec2(a, b);
}
#endif
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    let spans = p.k4 / QUADS;
    if i < p.rows * spans {
        let row = i / spans;
        let k0 = (i - row * spans) * QUADS;
        let seed = vec2(p.seed_lo, p.seed_hi);
        let number = (p.first_row + row) * p.k4 + k0;
        let at = p.state_at + row * p.state_stride;
#if M == 2
        // where a row ends in half a quad, the other half is any group of the row, and is not written
        let one = at + 2u * k0;
        let last = at + p.state_stride - 1u;
        let two = min(one + 1u, last);
#endif
        var x: array<vec4<f32>, QUADS>;
        var a: array<vec4<f32>, QUADS>;
        var g: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
#if M == 2
            x[q] = wide(pair(logits[one], logits[two]));
#else
            x[q] = wide(logits[at + k0 + q]);
#endif
            a[q] = x[q] * p.gain;
#ifdef NOISE
            let random = philox4x32(vec4(p.step, p.projection, number + q, 16u), seed);
            a[q] += vec4<f32>(gumbel4(random)) * p.noise;
#endif
            g[q] = gradient[p.g_at + row * p.g_stride + k0 + q];
        }
#ifdef JOINT
#if RELAXATION == 0
        var soft = soft_mask(a, p.removal);
#else
        var soft = inclusion_mask(a);
#endif
        for (var q = 0u; q < QUADS; q += 1u) {
            gradient[p.g_at + row * p.g_stride + k0 + q] = g[q] * soft[q];
        }
#endif
        for (var q = 0u; q < QUADS; q += 1u) {
            let weight = unpack(w[p.w_first + row * p.k4 + k0 + q]);
            g[q] *= weight;
        }
#if RELAXATION == 0
        var d = soft_gradient(a, p.removal, g);
#else
        var d = inclusion_gradient(a, g);
#endif
        for (var q = 0u; q < QUADS; q += 1u) {
            let slope = p.slope * d[q];
#ifdef ONLY_GRADIENT
#if M == 2
            let to = p.out_at + row * p.state_stride + 2u * k0;
            out[to] = slope.xy;
            if one < last {
                out[to + 1u] = slope.zw;
            }
#else
            out[p.out_at + row * p.state_stride + k0 + q] = slope;
#endif
#else
#if M == 2
            let old_m = wide(pair(first[one], first[two]));
            let old_v = wide(pair(second[one], second[two]));
#else
            let old_m = wide(first[at + k0 + q]);
            let old_v = wide(second[at + k0 + q]);
#endif
#if STATE == 0
            let s = adam_step(p.adam, x[q], old_m, old_v, slope);
            let new_x = s.x;
            let new_m = s.m;
            let new_v = s.v;
#else
            let m = old_m / MOMENT_SCALE;
            let v = old_v / MOMENT_SCALE;
            let s = adam_step(p.adam, x[q], m, v * v, slope);
            let random = philox4x32(vec4(p.adam.step, p.projection, number + q, ROUNDING), seed);
            let new_x = stochastic(s.x, random);
            let new_m = to_halves(s.m * MOMENT_SCALE);
            let new_v = stochastic(sqrt(s.v) * MOMENT_SCALE, random >> vec4(16u));
#endif
#if M == 2
#if STATE == 0
            logits[one] = new_x.xy;
            first[one] = new_m.xy;
            second[one] = new_v.xy;
            if one < last {
                logits[two] = new_x.zw;
                first[two] = new_m.zw;
                second[two] = new_v.zw;
            }
#else
            logits[one] = new_x.x;
            first[one] = new_m.x;
            second[one] = new_v.x;
            if one < last {
                logits[two] = new_x.y;
                first[two] = new_m.y;
                second[two] = new_v.y;
            }
#endif
#else
            logits[at + k0 + q] = new_x;
            first[at + k0 + q] = new_m;
            second[at + k0 + q] = new_v;
#endif
#endif
        }
    }
}
