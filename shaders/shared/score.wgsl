// The score d log P(S) / d logit of one group of #{M} weights of which #{N} (the set S) are kept, where P is the unordered
// probability of S under draws without replacement from the softmax.
//
// Let w_i = exp(logit_i - c), Z = sum of all w, r = sum of w outside S. P(S) is the chance that S finishes first in a race of
// exponential clocks with rates w. Raising the rate of i in S by a factor 1 + e adds the runs in which S \ {i} was in time,
// i was not, and an extra clock of rate e * w_i rings before the first clock outside S. Hence only positive terms, nothing that
// cancels. Over subsets T of S, with D(T) = Z - w(T) = r + w(S \ T):
//     f({}) = 1 / Z,      f(T) = sum_{j in T} w_j f(T \ j) / D(T)                     (chance of T as the first draws, / D)
//     v({}) = 1 / Z^2,    v(T) = (f(T) + sum_{j in T} w_j v(T \ j)) / D(T)            (the same times the mean time, / D)
//     P(S) = sum_{j in S} w_j f(S \ j),     score_i = r w_i v(S \ i) / P(S)  in S,
//     score_i = -w_i / r * sum of the scores in S,  outside S (P does not change when all logits move together).
// N = 1 and N = 2 are this recursion written out. It needs 2^N values, so beyond N = 8 the race is integrated over the time t
// of the first clock outside S instead:
//     P(S) = int r e^{-r t} prod_{i in S} (1 - e^{-w_i t}) dt,   score_i = mean over that density of w_i t / (e^{w_i t} - 1)
// by the trapezoidal rule in ln t, whose error falls exponentially (see tests/reference/law_f32.rs for the figures).
//
// The reference c is the greatest logit outside S, so that 1 <= r <= M - N: the kept weights' ratios to it are what matters.
// Gaps above GAP_MAX count as GAP_MAX: scores of such groups are below 1e-8 either way, and f32 neither overflows nor underflows.
#define_import_path maskwright::score

#import maskwright::groups::QUADS

const GAP_MAX: f32 = 20.0;
const GAP_MIN: f32 = -80.0;

#if N > 8
const NODES: u32 = 88u;
const LN_T_FIRST: f32 = -17.5;
const LN_T_STEP: f32 = 0.25;
#else
#if N > 2
const SUBSETS: u32 = 1u << #{N}u;
#endif
#endif

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

fn in_quad(kept: u32, q: u32) -> vec4<bool> {
    return (vec4(kept >> (q * 4u)) & vec4(1u, 2u, 4u, 8u)) != vec4(0u);
}

// Scores of the group's weights; bit i of `kept` is weight i.
fn score(logits: array<vec4<f32>, QUADS>, kept: u32) -> array<vec4<f32>, QUADS> {
    var l = logits;
    var c = -3.0e38;
    for (var q = 0u; q < QUADS; q += 1u) {
        let outside = select(l[q], vec4(-3.0e38), in_quad(kept, q));
        c = max(c, max(max(outside.x, outside.y), max(outside.z, outside.w)));
    }
    // weights, the kept ones and the others apart
    var inside: array<vec4<f32>, QUADS>;
    var outside: array<vec4<f32>, QUADS>;
    var r = 0.0;
    var rest = 0.0;
    for (var q = 0u; q < QUADS; q += 1u) {
        let w = exp(clamp(l[q] - vec4(c), vec4(GAP_MIN), vec4(GAP_MAX)));
        inside[q] = select(vec4(0.0), w, in_quad(kept, q));
        outside[q] = select(w, vec4(0.0), in_quad(kept, q));
        r += total(outside[q]);
        rest += total(inside[q]);
    }
    var s: array<vec4<f32>, QUADS>;
    var sum = 0.0;
#if N == 1
    sum = r / (r + rest);
    for (var q = 0u; q < QUADS; q += 1u) {
        s[q] = select(vec4(0.0), vec4(sum), in_quad(kept, q));
    }
#else
#if N == 2
    // score_a = (A / Z) (r / B) (1 + w_a / (A + B)) with A = r + w_b and B = r + w_a, for S = {a, b}
    let both = r + r + rest;
    let r_over_z = r / (r + rest);
    for (var q = 0u; q < QUADS; q += 1u) {
        // the other kept weight: the other three of the quad, and the other quads
        var other = inside[q].yzwx + inside[q].zwxy + inside[q].wxyz;
        for (var p = 0u; p < QUADS; p += 1u) {
            other += vec4(select(total(inside[p]), 0.0, p == q));
        }
        let a = vec4(r) + other;
        let b = vec4(r) + inside[q];
        s[q] = select(vec4(0.0), a * r_over_z / b * (vec4(1.0) + inside[q] / both), in_quad(kept, q));
        sum += total(s[q]);
    }
#else
    // the kept weights side by side
    var w: array<f32, #{N}>;
    var n = 0u;
    for (var i = 0u; i < #{M}u; i += 1u) {
        if ((kept >> i) & 1u) == 1u && n < #{N}u {
            w[n] = inside[i / 4u][i % 4u];
            n += 1u;
        }
    }
    var g: array<f32, #{N}>;
#if N > 8
    race(&w, r, &g);
#else
    recursion(&w, r, &g);
#endif
    n = 0u;
    for (var i = 0u; i < #{M}u; i += 1u) {
        if ((kept >> i) & 1u) == 1u && n < #{N}u {
            s[i / 4u][i % 4u] = g[n];
            sum += g[n];
            n += 1u;
        }
    }
#endif
#endif
    for (var q = 0u; q < QUADS; q += 1u) {
        s[q] -= outside[q] * (sum / r);
    }
    return s;
}

#if N > 8
fn race(w: ptr<function, array<f32, #{N}>>, r: f32, g: ptr<function, array<f32, #{N}>>) {
    var probability = 0.0;
    var ratio: array<f32, #{N}>;
    for (var k = 0u; k < NODES; k += 1u) {
        let t = exp(LN_T_FIRST + LN_T_STEP * f32(k));
        var density = t * exp(-min(r * t, 80.0));
        for (var j = 0u; j < #{N}u; j += 1u) {
            let x = min((*w)[j] * t, 80.0);
            // 1 - e^-x, by its series where the subtraction would cancel
            let absent = exp(-x);
            let tail = 0.041666668 - x * (0.008333334 - x * 0.0013888889);
            let small = x * (1.0 - x * (0.5 - x * (0.16666667 - x * tail)));
            let arrived = select(1.0 - absent, small, x < 0.3);
            ratio[j] = x * absent / max(arrived, 1.0e-37);
            density *= arrived;
        }
        probability += density;
        for (var j = 0u; j < #{N}u; j += 1u) {
            (*g)[j] += density * ratio[j];
        }
    }
    for (var j = 0u; j < #{N}u; j += 1u) {
        (*g)[j] /= max(probability, 1.0e-37);
    }
}
#else
#if N > 2
fn recursion(w: ptr<function, array<f32, #{N}>>, r: f32, g: ptr<function, array<f32, #{N}>>) {
    var f: array<f32, SUBSETS>;
    var v: array<f32, SUBSETS>;
    for (var t = 0u; t < SUBSETS - 1u; t += 1u) {
        var left = r; // D(T)
        var chance = select(0.0, 1.0, t == 0u);
        var time = 0.0;
        for (var j = 0u; j < #{N}u; j += 1u) {
            let before = t & ~(1u << j);
            let weight = (*w)[j];
            if before == t {
                left += weight;
            } else {
                chance += weight * f[before];
                time += weight * v[before];
            }
        }
        f[t] = chance / left;
        v[t] = (f[t] + time) / left;
    }
    var probability = 0.0;
    for (var j = 0u; j < #{N}u; j += 1u) {
        let before = (SUBSETS - 1u) & ~(1u << j);
        probability += (*w)[j] * f[before];
        (*g)[j] = r * (*w)[j] * v[before];
    }
    for (var j = 0u; j < #{N}u; j += 1u) {
        (*g)[j] /= max(probability, 1.0e-37);
    }
}
#endif
#endif
