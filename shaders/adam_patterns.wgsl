// Learning the logits of a softmax over the #{COUNT} masks of a group (MaskLLM): the gradient by the soft mask goes back through the
// softmax (shared/patterns.wgsl), and a step of AdamW moves the logits in place (shared/adam.wgsl).
//
//   y = softmax(gain * logit + noise * Gumbel),   mask = sum_k y_k S_k,   dmask = G * W - pull * W^2 * mask
//   dlogit_k = slope * y_k (<S_k, dmask> - sum_l y_l <S_l, dmask>)
// ONLY_GRADIENT writes dlogit instead of a step.
//
// W [rows, k4] packed by four; G [rows, cols] f32 in vec4s; logits and moments [rows, groups, COUNT] f32. Noise: see effective.wgsl.
// Dispatch: one invocation per group, the grid folded into two dimensions.
// Needs: finite logits and gradients.

#import maskwright::weights::unpack
#import maskwright::patterns::{PAIRS, SLOTS, add_noise, PATTERN_QUADS, soften, mixed, unmix}
#import maskwright::adam::{Adam, adam_step}

struct Params {
    rows: u32,
    k4: u32,
    w_first: u32,    // packed element of W at which row 0 starts
    g_at: u32,       // vec4 of G at which row 0 starts
    g_stride: u32,
    first_row: u32,  // row of the tensor that row 0 is
    state_at: u32,   // pair of the bound logits and moments at which row 0 starts
    state_stride: u32, // pairs of a row
    out_at: u32,     // ONLY_GRADIENT: pair of out at which row 0 starts
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
    gain: f32,
    noise: f32,
    pull: f32,
    slope: f32,
    groups: u32,     // of a row
    fours: u32,      // of the combinations of a group: ceil(COUNT / 4)
    pad: u32,
    adam: Adam,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
@group(0) @binding(2) var<storage, read> gradient: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> logits: array<vec2<f32>>;
#ifdef ONLY_GRADIENT
@group(0) @binding(4) var<storage, read_write> out: array<vec2<f32>>;
#else
@group(0) @binding(4) var<storage, read_write> first: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> second: array<vec2<f32>>;
#endif

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.rows * p.groups {
        let row = i / p.groups;
        let group = i - row * p.groups;
        let at = p.state_at + row * p.state_stride + group * PAIRS;
        var y: array<vec2<f32>, SLOTS>;
        for (var k = 0u; k < PAIRS; k += 1u) {
            y[k] = logits[at + k] * p.gain;
        }
#ifdef NOISE
        let number = (p.first_row + row) * p.groups + group;
        add_noise(&y, vec3(p.step, p.projection, number), vec2(p.seed_lo, p.seed_hi), p.noise, p.fours);
#endif
        soften(&y);
        var mask = mixed(&y);
        var g: array<vec4<f32>, PATTERN_QUADS>;
        var mean = vec4<f32>();
        for (var q = 0u; q < PATTERN_QUADS; q += 1u) {
#if M == 2
            let k = group / 2u;
#else
            let k = group * PATTERN_QUADS + q;
#endif
            let weight = unpack(w[p.w_first + row * p.k4 + k]);
            let slope = weight * gradient[p.g_at + row * p.g_stride + k];
            let size = p.pull * weight * weight;
#if M == 2
            let upper = (group & 1u) == 1u;
            g[q] = vec4(select(slope.xy, slope.zw, upper) - select(size.xy, size.zw, upper) * mask[q].xy, vec2<f32>());
#else
            g[q] = slope - size * mask[q];
#endif
            mean += g[q] * mask[q];
        }
        unmix(&y, &g, (mean.x + mean.y) + (mean.z + mean.w));
        for (var k = 0u; k < PAIRS; k += 1u) {
            let slope = p.slope * y[k];
#ifdef ONLY_GRADIENT
            out[p.out_at + row * p.state_stride + group * PAIRS + k] = slope;
#else
            let zero = vec2<f32>();
            let s = adam_step(p.adam, vec4(logits[at + k], zero), vec4(first[at + k], zero),
                vec4(second[at + k], zero), vec4(slope, zero));
            logits[at + k] = s.x.xy;
            first[at + k] = s.m.xy;
            second[at + k] = s.v.xy;
#endif
        }
    }
}
