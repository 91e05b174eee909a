// The law of #{N} draws without replacement from the softmax of the #{M} logits of a group, M <= 8, over the sets T of weights that
// are drawn so far, as bits.
//
// With rates w_i = exp(logit_i - c), R(T) = sum of w outside T, a draw behind T takes i outside T with the chance w_i / R(T). F(T), the
// chance that T are the first |T| draws, and what a draw brings from each T on, follow one behind the other:
//     f(T) = F(T) / R(T),   f({}) = 1 / R({}),   f(T) = sum_{i in T} w_i f(T \ i) / R(T)
//     P(i is drawn) = sum over T without i, |T| < N, of w_i f(T)
// All terms are positive. The reference c is the N-th greatest logit: of the N greatest one is outside any T of fewer, so R(T) >= 1
// whatever the logits are. Gaps above TOP count as TOP: fewer than N logits are that far above, and the chance that one of them is not
// drawn is below e^-TOP either way.
// For 2:4 the same is written out in vec4s, which stay in registers.
#define_import_path maskwright::draws

#import maskwright::soft::{second, within}

const TOP: f32 = 40.0;
// Behind the last set of N - 1 weights, and of N.
const OPEN: u32 = (((1u << (#{N}u - 1u)) - 1u) << (#{M}u - #{N}u + 1u)) + 1u;
const CLOSED: u32 = (((1u << #{N}u) - 1u) << (#{M}u - #{N}u)) + 1u;

fn drawn(taken: u32, i: u32) -> bool {
    return (taken >> i & 1u) == 1u;
}

fn rates(logits: array<f32, #{M}>) -> array<f32, #{M}> {
    var x = logits;
    var reference = 0.0;
    for (var i = 0u; i < #{M}u; i += 1u) {
        var above = 0u;
        for (var j = 0u; j < #{M}u; j += 1u) {
            above += select(0u, 1u, x[j] > x[i] || (x[j] == x[i] && j < i));
        }
        reference = select(reference, x[i], above + 1u == #{N}u);
    }
    for (var i = 0u; i < #{M}u; i += 1u) {
        x[i] = exp(min(x[i] - reference, TOP));
    }
    return x;
}

// f of all sets of fewer than N weights; what else is in the array is not written.
fn open_sets(rates: array<f32, #{M}>) -> array<f32, OPEN> {
    var w = rates;
    var f: array<f32, OPEN>;
    for (var t = 0u; t < OPEN; t += 1u) {
        if countOneBits(t) < #{N}u {
            var left = 0.0;
            var chance = select(0.0, 1.0, t == 0u);
            for (var i = 0u; i < #{M}u; i += 1u) {
                if drawn(t, i) {
                    chance += w[i] * f[t & ~(1u << i)];
                } else {
                    left += w[i];
                }
            }
            f[t] = chance / left;
        }
    }
    return f;
}

// The chance of each weight to be drawn.
fn inclusion(rates: array<f32, #{M}>) -> array<f32, #{M}> {
    var w = rates;
    var f = open_sets(rates);
    var sum: array<f32, #{M}>;
    for (var t = 0u; t < OPEN; t += 1u) {
        if countOneBits(t) < #{N}u {
            for (var i = 0u; i < #{M}u; i += 1u) {
                sum[i] += select(f[t], 0.0, drawn(t, i));
            }
        }
    }
    for (var i = 0u; i < #{M}u; i += 1u) {
        sum[i] = min(w[i] * sum[i], 1.0);
    }
    return sum;
}

#if M == 4
// Of 2:4: the rates, what a first draw leaves, and the chance of a first draw over that.
struct Pair {
    w: vec4<f32>,
    left: vec4<f32>,
    q: vec4<f32>,
    all: f32, // 1 / R({})
}

fn pair(logits: vec4<f32>) -> Pair {
    let w = exp(min(logits - second(array<vec4<f32>, 1>(logits)), vec4(TOP)));
    let left = within(w);
    let all = 1.0 / ((w.x + w.y) + (w.z + w.w));
    return Pair(w, left, w * all / left, all);
}

fn pair_inclusion(logits: vec4<f32>) -> vec4<f32> {
    let p = pair(logits);
    return min(p.w * (vec4(p.all) + within(p.q)), vec4(1.0));
}

// sum over the sets S of two of `cost` dP_S / dlogits; cost = those of S = (01, 02, 03) and of (12, 13, 23).
fn pair_gradient(logits: vec4<f32>, first: vec3<f32>, later: vec3<f32>) -> vec4<f32> {
    let p = pair(logits);
    // Less any number that all have: differences are what counts.
    let some = ((first.x + first.y) + (first.z + later.x) + (later.y + later.z)) / 6.0;
    let a = first - vec3(some);
    let b = later - vec3(some);
    let costs = mat4x4<f32>(
        0.0, a.x, a.y, a.z,
        a.x, 0.0, b.x, b.y,
        a.y, b.x, 0.0, b.z,
        a.z, b.y, b.z, 0.0);
    let v = (costs * p.w) / p.left;
    let mean = dot(p.w, v) * p.all;
    return p.w * ((v - vec4(mean)) * p.all + (costs * p.q - within(p.q * v)));
}
#endif
