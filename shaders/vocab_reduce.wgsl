// One chunk of the vocabulary in a running log-sum-exp per token; the loss never needs all logits at once.
//   m = max over rows seen so far, l = sum exp(logit - m), target = logit of the token's target when it is in this chunk
// The loss of a token is m + log(l) - target. With CAP a logit is cap tanh(x / cap) of the x in the buffer.
//
// logits [count, t4] vec4 over tokens, of which a dispatch takes the rows start..end; targets [t4] vec4<u32> of vocabulary rows (any value outside the vocabulary = none);
// state [3, t4]: m, l, target. Vocabulary row 0 starts the state.
// An invocation holds a vec4 of tokens and walks its share of the rows, four at a time, the first share from the state on; the
// SLICES shares are merged by a fixed tree. Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (a power of two; 1 on CPU adapters).
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
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;   // [3, t4]

const NEG = -3.0e38;

fn logit(at: u32) -> vec4<f32> {
#ifdef CAP
    return capped(logits[at], p.cap);
#else
    return logits[at];
#endif
}

#if SLICES > 1
var<workgroup> sh_m: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_l: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    var m = vec4<f32>(NEG);
    var l = vec4<f32>();
    let neg = vec4<f32>(NEG);
    let continued = p.first + p.start > 0u;
    if continued && local.y == 0u {
        m = state[tc];
        l = state[p.t4 + tc];
    }
    for (var r = p.start + local.y * 4u; r < p.end; r += 4u * #{SLICES}u) {
        let top_row = p.end - 1u;
        let a = logit(r * p.t4 + tc);
        let b = select(neg, logit(min(r + 1u, top_row) * p.t4 + tc), r + 1u < p.end);
        let c = select(neg, logit(min(r + 2u, top_row) * p.t4 + tc), r + 2u < p.end);
        let d = select(neg, logit(min(r + 3u, top_row) * p.t4 + tc), r + 3u < p.end);
        let top = max(m, max(max(a, b), max(c, d)));
        l = l * exp(m - top) + (exp(a - top) + exp(b - top)) + (exp(c - top) + exp(d - top));
        m = top;
    }
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
    sh_m[at] = m;
    sh_l[at] = l;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            let other = at + half * #{LANES}u;
            let top = max(sh_m[at], sh_m[other]);
            sh_l[at] = sh_l[at] * exp(sh_m[at] - top) + sh_l[other] * exp(sh_m[other] - top);
            sh_m[at] = top;
        }
    }
    m = sh_m[at];
    l = sh_l[at];
#endif
    if local.y == 0u && t < p.t4 {
        var target_logit = vec4<f32>();
        if continued {
            target_logit = state[2u * p.t4 + t];
        }
        // Wraps around for targets before the rows, so one comparison covers both sides.
        let row = targets[t] - vec4<u32>(p.first + p.start);
        let rows = p.end - p.start;
        if row.x < rows { target_logit.x = logit((p.start + row.x) * p.t4 + t).x; }
        if row.y < rows { target_logit.y = logit((p.start + row.y) * p.t4 + t).y; }
        if row.z < rows { target_logit.z = logit((p.start + row.z) * p.t4 + t).z; }
        if row.w < rows { target_logit.w = logit((p.start + row.w) * p.t4 + t).w; }
        state[t] = m;
        state[p.t4 + t] = l;
        state[2u * p.t4 + t] = target_logit;
    }
}
