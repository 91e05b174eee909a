// Kullback-Leibler divergence of the logits' distribution q from that of the dense model, d, and its gradient in place, for one
// chunk of the vocabulary, after vocab_reduce.wgsl has left the states of both over all chunks:
//   kl[0, t] += sum_r d[r] (log d[r] - log q[r]),  logits[r, t] = scale (q[r] - d[r]);  log q[r] = logit - m - log(l), d alike
//   kl[1, t] += rows r in which both models have their greatest logit: 1 over all chunks where they agree, else 0 (ties may give more)
// Tokens without a target add nothing and get zeros; so do rows beyond the vocabulary. With CAP a logit is cap tanh(x / cap) of the x in
// the buffer, and the gradient that by x: times 1 - tanh(x / cap)^2; DENSE_CAP caps those of the dense model.
//
// logits, dense [count, t4] vec4 over tokens; state, dense_state [3, t4]: m, l, -; targets [t4] vec4<u32> (all bits set = none);
// kl [2, t4]. A dispatch makes the rows start..end. An invocation holds a vec4 of tokens and walks its share of the rows; the SLICES
// shares are added by a fixed tree.
// Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (a power of two; 1 on CPU adapters).
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
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>;  // [count, t4]
@group(0) @binding(2) var<storage, read> dense: array<vec4<f32>>;         // [count, t4]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;         // [3, t4]
@group(0) @binding(4) var<storage, read> dense_state: array<vec4<f32>>;   // [3, t4]
@group(0) @binding(5) var<storage, read> targets: array<vec4<u32>>;       // [t4]
@group(0) @binding(6) var<storage, read_write> kl: array<vec4<f32>>;      // [2, t4]

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
    var sum = vec4<f32>();
    var agree = vec4<f32>();
    if t < p.t4 {
        let m = state[t];
        let log_l = log(state[p.t4 + t]);
        let dense_m = dense_state[t];
        let dense_log_l = log(dense_state[p.t4 + t]);
        for (var r = p.start + local.y; r < min(p.end, p.rows); r += #{SLICES}u) {
            let i = r * p.t4 + t;
            // The maximum first: a difference of two logits keeps the digits that m + log(l) would lose.
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
            let below = own - m;
            let dense_below = of_dense - dense_m;
            let log_q = below - log_l;
            let log_d = dense_below - dense_log_l;
            let d = exp(log_d);
            sum += d * (log_d - log_q);
            // Not `below == zero`, in which a driver may leave the product of the cap unrounded.
            agree += select(zero, vec4(1.0), (own == m) & (of_dense == dense_m));
#ifdef CAP
            logits[i] = select(zero, p.scale * (exp(log_q) - d) * cap_slope(x, p.cap), has);
#else
            logits[i] = select(zero, p.scale * (exp(log_q) - d), has);
#endif
        }
        for (var r = max(p.start, p.rows) + local.y; r < p.end; r += #{SLICES}u) {
            logits[r * p.t4 + t] = zero;
        }
    }
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
        kl[t] += select(zero, sum, has);
        kl[p.t4 + t] += select(zero, agree, has);
    }
}
