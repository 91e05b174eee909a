// One chunk of the vocabulary in a running log-sum-exp per token; the loss never needs all logits at once.
//   top = max over rows seen so far, l = sum exp(logit - near), target = logit of the token's target when it is in this chunk
// `near` is a logit seen so far that none exceeds by more than RISE: it follows the greatest one in steps, since every change of it scales
// the sum, and the roundings of a scale close to 1 add up over logits that rise slowly. The sum is in levels (shared/levels.wgsl); the loss
// of a token is near + log(l) - target. With CAP a logit is cap tanh(x / cap) of the x in the buffer.
//
// logits [count, t4] vec4 over tokens, of which a dispatch takes the rows start..end; targets [t4] vec4<u32> of vocabulary rows (any value outside the vocabulary = none);
// state [7, t4]: top, near, four levels of l, target. Vocabulary row 0 starts the state.
// An invocation holds a vec4 of tokens and walks its share of the rows, four at a time, in blocks of 64; the SLICES shares are merged by a
// fixed tree and added to the state. Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (a power of two; 1 on CPU adapters).
#import maskwright::levels::{Levels, levels_added, levels_scaled, levels_total, rescale}
#ifdef CAP
#import maskwright::cap::capped
#endif

struct Params {
    start: u32,
    end: u32,
    t4: u32,
    first: u32,    // vocabulary row of the chunk's row 0
    cap: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;        // [count, t4]
@group(0) @binding(2) var<storage, read> targets: array<vec4<u32>>;       // [t4]
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;   // [7, t4]

const NEG = -3.0e38;
const RISE = 2.0;

fn logit(at: u32) -> vec4<f32> {
#ifdef CAP
    return capped(logits[at], p.cap);
#else
    return logits[at];
#endif
}

#if SLICES > 1
var<workgroup> sh_top: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_near: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_l: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    let neg = vec4<f32>(NEG);
    let zero = vec4<f32>();
    let continued = p.first + p.start > 0u;
    var top = neg;
    var near = neg;
    if continued {
        near = state[p.t4 + tc];
    }
    var sums = Levels(zero, zero, zero, zero);
    var rows = 0u;
    for (var block = p.start + local.y * 4u; block < p.end; block += 64u * #{SLICES}u) {
        let stop = min(block + 64u * #{SLICES}u, p.end);
        var part = vec4<f32>();
        for (var r = block; r < stop; r += 4u * #{SLICES}u) {
            let last = p.end - 1u;
            let a = logit(r * p.t4 + tc);
            let b = select(neg, logit(min(r + 1u, last) * p.t4 + tc), r + 1u < p.end);
            let c = select(neg, logit(min(r + 2u, last) * p.t4 + tc), r + 2u < p.end);
            let d = select(neg, logit(min(r + 3u, last) * p.t4 + tc), r + 3u < p.end);
            let most = max(max(a, b), max(c, d));
            top = max(top, most);
            let rises = most > near + vec4<f32>(RISE);
            if any(rises) {
                let next = select(near, most, rises);
                let by = rescale(near, next);
                part *= by;
                sums = levels_scaled(sums, by);
                near = next;
            }
            part += (exp(a - near) + exp(b - near)) + (exp(c - near) + exp(d - near));
        }
        sums = levels_added(sums, part, rows, rows + 64u);
        rows += 64u;
    }
    var l = levels_total(sums);
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
    sh_top[at] = top;
    sh_near[at] = near;
    sh_l[at] = l;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            let other = at + half * #{LANES}u;
            let next = max(sh_near[at], sh_near[other]);
            sh_l[at] = sh_l[at] * rescale(sh_near[at], next) + sh_l[other] * rescale(sh_near[other], next);
            sh_near[at] = next;
            sh_top[at] = max(sh_top[at], sh_top[other]);
        }
    }
    top = sh_top[at];
    near = sh_near[at];
    l = sh_l[at];
#endif
    if local.y == 0u && t < p.t4 {
        var all = Levels(zero, zero, zero, zero);
        var target_logit = vec4<f32>();
        if continued {
            all = Levels(state[2u * p.t4 + t], state[3u * p.t4 + t], state[4u * p.t4 + t], state[5u * p.t4 + t]);
            all = levels_scaled(all, rescale(state[p.t4 + t], near));
            top = max(top, state[t]);
            target_logit = state[6u * p.t4 + t];
        }
        all = levels_added(all, l, p.first + p.start, p.first + p.end);
        // Wraps around for targets before the rows, so one comparison covers both sides.
        let row = targets[t] - vec4<u32>(p.first + p.start);
        let count = p.end - p.start;
        if row.x < count { target_logit.x = logit((p.start + row.x) * p.t4 + t).x; }
        if row.y < count { target_logit.y = logit((p.start + row.y) * p.t4 + t).y; }
        if row.z < count { target_logit.z = logit((p.start + row.z) * p.t4 + t).z; }
        if row.w < count { target_logit.w = logit((p.start + row.w) * p.t4 + t).w; }
        state[t] = top;
        state[p.t4 + t] = near;
        state[2u * p.t4 + t] = all.a;
        state[3u * p.t4 + t] = all.b;
        state[4u * p.t4 + t] = all.c;
        state[5u * p.t4 + t] = all.d;
        state[6u * p.t4 + t] = target_logit;
    }
}
