// Kullback-Leibler divergence of the logits' distribution q from that of the dense model, d, and its gradient in place, for one
// chunk of the vocabulary, after vocab_reduce.wgsl has left the states of both over all chunks:
//   kl[0..4, t] += sum_r exp(dense_below[r]) (dense_below[r] - below[r] + offset), in levels (shared/levels.wgsl); below = logit - near
//   kl[4, t] += rows r in which both models have their greatest logit: 1 over all chunks where they agree, else 0 (ties may give more)
//   kl[5, t] = offset, about log(l) - log(dense_l): terms are then as small as those of d (log d - log q). The host takes the sum over
//   dense_l, and puts right by how much offset is not that difference, in f64.
//   logits[r, t] = scale (q[r] - d[r]);  q[r] = exp(below) / l, d alike
// Tokens without a target add nothing and get zeros; so do rows beyond the vocabulary. With CAP a logit is cap tanh(x / cap) of the x in
// the buffer, and the gradient that by x: times 1 - tanh(x / cap)^2; DENSE_CAP caps those of the dense model.
//
// logits, dense [count, t4] vec4 over tokens; state, dense_state [7, t4]: top, near, four levels of l, -; targets [t4] vec4<u32> (all bits
// set = none); kl [6, t4]. A dispatch makes the rows start..end. An invocation holds a vec4 of tokens and walks its share of the rows in
// blocks of 16; the SLICES shares are added by a fixed tree.
// Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (a power of two; 1 on CPU adapters).
#import maskwright::levels::{Levels, levels_added, levels_total}
#ifdef CAP
#import maskwright::cap::{capped, cap_slope}
#else
#ifdef DENSE_CAP
#import maskwright::cap::capped
#endif
#endif

struct Params {
    rows: u32,     // rows of this chunk within the vocabulary
    start: u32,    // rows of the chunk that this dispatch makes, with those that pad it
    end: u32,
    t4: u32,
    scale: f32,
    cap: f32,
    dense_cap: f32,
    first: u32,    // vocabulary row of the chunk's row 0
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>;  // [count, t4]
@group(0) @binding(2) var<storage, read> dense: array<vec4<f32>>;         // [count, t4]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;         // [7, t4]
@group(0) @binding(4) var<storage, read> dense_state: array<vec4<f32>>;   // [7, t4]
@group(0) @binding(5) var<storage, read> targets: array<vec4<u32>>;       // [t4]
@group(0) @binding(6) var<storage, read_write> kl: array<vec4<f32>>;      // [6, t4]

#if SLICES > 1
var<workgroup> sh_sum: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_agree: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    let has = targets[tc] != vec4<u32>(0xffffffffu);
    let zero = vec4<f32>();
    let top = state[tc];
    let near = state[p.t4 + tc];
    let l = levels_total(
        Levels(state[2u * p.t4 + tc], state[3u * p.t4 + tc], state[4u * p.t4 + tc], state[5u * p.t4 + tc]));
    let dense_top = dense_state[tc];
    let dense_near = dense_state[p.t4 + tc];
    let dense_l = levels_total(Levels(
        dense_state[2u * p.t4 + tc], dense_state[3u * p.t4 + tc], dense_state[4u * p.t4 + tc],
        dense_state[5u * p.t4 + tc]));
    let offset = log(l) - log(dense_l);
    var sums = Levels(zero, zero, zero, zero);
    var agree = vec4<f32>();
    var walked = 0u;
    if t < p.t4 {
        let rows = min(p.end, p.rows);
        for (var block = p.start + local.y; block < rows; block += 16u * #{SLICES}u) {
            let stop = min(block + 16u * #{SLICES}u, rows);
            var part = vec4<f32>();
            for (var r = block; r < stop; r += #{SLICES}u) {
                let i = r * p.t4 + t;
                let x = logits[i];
#ifdef CAP
                let own = capped(x, p.cap);
#else
                let own = x;
#endif
#ifdef DENSE_CAP
                let of_dense = capped(dense[i], p.dense_cap);
#else
                let of_dense = dense[i];
#endif
                let below = own - near;
                let dense_below = of_dense - dense_near;
                let q = exp(below);
                let d = exp(dense_below);
                part += d * ((dense_below - below) + offset);
                // Not `own - top == zero`, in which a driver may leave the product of the cap unrounded.
                agree += select(zero, vec4(1.0), (own == top) & (of_dense == dense_top));
                // Quotients, since products might be left unrounded: the same distributions have no gradient.
                let difference = q / l - d / dense_l;
#ifdef CAP
                logits[i] = select(zero, p.scale * difference * cap_slope(x, p.cap), has);
#else
                logits[i] = select(zero, p.scale * difference, has);
#endif
            }
            sums = levels_added(sums, part, walked, walked + 64u);
            walked += 64u;
        }
        for (var r = max(p.start, p.rows) + local.y; r < p.end; r += #{SLICES}u) {
            logits[r * p.t4 + t] = zero;
        }
    }
    var sum = levels_total(sums);
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
    sh_sum[at] = sum;
    sh_agree[at] = agree;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_sum[at] += sh_sum[at + half * #{LANES}u];
            sh_agree[at] += sh_agree[at + half * #{LANES}u];
        }
    }
    sum = sh_sum[at];
    agree = sh_agree[at];
#endif
    if local.y == 0u && t < p.t4 {
        var all = Levels(kl[t], kl[p.t4 + t], kl[2u * p.t4 + t], kl[3u * p.t4 + t]);
        all = levels_added(all, select(zero, sum, has), p.first + p.start, p.first + p.end);
        kl[t] = all.a;
        kl[p.t4 + t] = all.b;
        kl[2u * p.t4 + t] = all.c;
        kl[3u * p.t4 + t] = all.d;
        kl[4u * p.t4 + t] += select(zero, agree, has);
        kl[5u * p.t4 + t] = select(zero, offset, has);
    }
}
