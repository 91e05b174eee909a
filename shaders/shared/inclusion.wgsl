// Inclusion probabilities of a random subset of #{N} of the #{M} keys of a group, and the gradient by the keys. N >= 2: for N = 1 both
// laws are the softmax (shared/soft.wgsl). Keys a are in units of ln 2; layout of a span as in shared/soft.wgsl.
//
// RELAXATION 1, fixed size: P(S) proportional to exp(sum of a over S), the law of greatest entropy with these inclusion probabilities
// (conditional Poisson sampling; SIMPLE, Ahmed et al., "SIMPLE: A gradient estimator for k-subset sampling", ICLR 2023). With t halfway
// between the N-th and the (N+1)-th greatest key and r = e^-|a - t|, key i contributes the factor
//     alpha_i + beta_i z,   (r, 1) where a > t,   (1, r) elsewhere,
// and with c0, c1 the coefficients of z^N and z^(N-1) of the product of all other factors
//     pi_i = beta_i c1 / (alpha_i c0 + beta_i c1),
//     d pi_i along g = r_i (g_i c0 c1 + c1' c0 - c1 c0') / (alpha_i c0 + beta_i c1)^2.
// The Jacobian is a covariance matrix, so the derivative of pi along g is the gradient of <g, pi>. c0' and c1' come from the same products
// in dual numbers, alpha' = -g r, beta' = g r (of what is r). All terms are positive, no coefficient is above 2^M, the denominator is at least
// 1; gaps so wide that r is 0 in f32 (over 87) make pi 0 or 1 and the gradient 0.
// Products: a lane of the quads is a part of QUADS keys, R the product of the three other lanes, O of the others of the own lane.
//
// RELAXATION 2, draws (N = 2): two keys one after the other without replacement, each by the softmax of those that are left (Plackett and
// Luce; the law of MaskPro). With e = 2^(a - second), S its sum, o_j the sum of the others of j, w_j = e_j / (S o_j):
//     pi_i = e_i (1 / S + sum_{j != i} w_j),
//     d pi_i / d a_k = -e_i e_k sum_{j != i, k} u_j  (i != k),   u_j = w_j (1 / S + 1 / o_j):
// the terms of j = i and j = k cancel. Symmetric, and rows add up to 0, so again the gradient is
//     d_k = e_k sum_{i != k} e_i (g_k - g_i) sum_{j != i, k} u_j.
#define_import_path maskwright::inclusion
#import maskwright::soft::{QUADS, sums, others, second, total, within}

#if RELAXATION == 1
// A number for each lane; DUAL with its derivative along g.
#ifdef DUAL
struct Number {
    v: vec4<f32>,
    d: vec4<f32>,
}

fn times(a: Number, b: Number) -> Number {
    return Number(a.v * b.v, a.v * b.d + a.d * b.v);
}

fn plus(a: Number, b: Number) -> Number {
    return Number(a.v + b.v, a.d + b.d);
}

// That of the next lane.
fn turn(a: Number) -> Number {
    return Number(a.v.yzwx, a.d.yzwx);
}

fn constant(v: vec4<f32>) -> Number {
    return Number(v, vec4<f32>());
}
#else
struct Number {
    v: vec4<f32>,
}

fn times(a: Number, b: Number) -> Number {
    return Number(a.v * b.v);
}

fn plus(a: Number, b: Number) -> Number {
    return Number(a.v + b.v);
}

fn turn(a: Number) -> Number {
    return Number(a.v.yzwx);
}

fn constant(v: vec4<f32>) -> Number {
    return Number(v);
}
#endif

// Four keys from the greatest on.
fn descending(v: vec4<f32>) -> vec4<f32> {
    let high = max(v.xy, v.zw);
    let low = min(v.xy, v.zw);
    let inner = vec2(min(high.x, high.y), max(low.x, low.y));
    return vec4(max(high.x, high.y), max(inner.x, inner.y), min(inner.x, inner.y), min(low.x, low.y));
}

// Halfway between the N-th and the (N+1)-th greatest key. Two descending halves, one of them reversed: the greater of each pair are
// the upper half of all, the lesser the lower half.
fn threshold(v: array<vec4<f32>, QUADS>) -> f32 {
    var s: array<vec4<f32>, QUADS>;
#if M == 4
    s[0] = descending(v[0]);
#else
    let a = descending(v[0]);
    let b = descending(v[1]).wzyx;
    s[0] = descending(max(a, b));
    s[1] = descending(min(a, b));
#if M == 16
    let c = descending(v[2]);
    let d = descending(v[3]).wzyx;
    let e = descending(min(c, d)).wzyx;
    let f = descending(max(c, d)).wzyx;
    let high = array<vec4<f32>, 2>(max(s[0], e), max(s[1], f));
    let low = array<vec4<f32>, 2>(min(s[0], e), min(s[1], f));
    s[0] = descending(max(high[0], high[1]));
    s[1] = descending(min(high[0], high[1]));
    s[2] = descending(max(low[0], low[1]));
    s[3] = descending(min(low[0], low[1]));
#endif
#endif
    return 0.5 * (s[(#{N}u - 1u) / 4u][(#{N}u - 1u) % 4u] + s[#{N}u / 4u][#{N}u % 4u]);
}

// Polynomials by their coefficients, from the constant on.
fn linear_linear(a: array<Number, 2>, b: array<Number, 2>) -> array<Number, 3> {
    return array<Number, 3>(times(a[0], b[0]), plus(times(a[0], b[1]), times(a[1], b[0])), times(a[1], b[1]));
}

fn linear_square(a: array<Number, 2>, b: array<Number, 3>) -> array<Number, 4> {
    return array<Number, 4>(times(a[0], b[0]), plus(times(a[0], b[1]), times(a[1], b[0])),
        plus(times(a[0], b[2]), times(a[1], b[1])), times(a[1], b[2]));
}

fn square_square(a: array<Number, 3>, b: array<Number, 3>) -> array<Number, 5> {
    return array<Number, 5>(times(a[0], b[0]), plus(times(a[0], b[1]), times(a[1], b[0])),
        plus(plus(times(a[0], b[2]), times(a[1], b[1])), times(a[2], b[0])),
        plus(times(a[1], b[2]), times(a[2], b[1])), times(a[2], b[2]));
}

const LANE: u32 = QUADS + 1u;
const TWO_LANES: u32 = 2u * QUADS + 1u;

// A coefficient of the product of two lanes.
fn of_two(a: array<Number, LANE>, b: array<Number, LANE>, at: i32) -> Number {
    var x = a;
    var y = b;
    var sum: Number;
    for (var l = 0; l < i32(LANE); l += 1) {
        let k = at - l;
        if k >= 0 && k < i32(LANE) {
            sum = plus(sum, times(x[k], y[l]));
        }
    }
    return sum;
}

fn of_three(a: array<Number, TWO_LANES>, b: array<Number, LANE>, at: i32) -> Number {
    var x = a;
    var y = b;
    var sum: Number;
    for (var l = 0; l < i32(LANE); l += 1) {
        let k = at - l;
        if k >= 0 && k < i32(TWO_LANES) {
            sum = plus(sum, times(x[k], y[l]));
        }
    }
    return sum;
}

fn turned(a: array<Number, LANE>) -> array<Number, LANE> {
    var x = a;
    for (var k = 0u; k < LANE; k += 1u) {
        x[k] = turn(x[k]);
    }
    return x;
}

// Coefficients N - QUADS to N of the product of the other lanes.
fn other_lanes(own: array<Number, LANE>) -> array<Number, LANE> {
    let one = turned(own);
    let two = turned(one);
    let three = turned(two);
    var pair: array<Number, TWO_LANES>;
    for (var k = 0u; k < TWO_LANES; k += 1u) {
        pair[k] = of_two(one, two, i32(k));
    }
    var out: array<Number, LANE>;
    for (var k = 0u; k < LANE; k += 1u) {
        out[k] = of_three(pair, three, #{N} - i32(QUADS) + i32(k));
    }
    return out;
}

// (c0, c1) of every key.
fn without(f: array<array<Number, 2>, QUADS>) -> array<array<Number, 2>, QUADS> {
#if M == 4
    let r = other_lanes(f[0]);
    return array<array<Number, 2>, QUADS>(array<Number, 2>(r[1], r[0]));
#else
#if M == 8
    let r = other_lanes(linear_linear(f[0], f[1]));
    return array<array<Number, 2>, QUADS>(
        array<Number, 2>(plus(times(f[1][0], r[2]), times(f[1][1], r[1])), plus(times(f[1][0], r[1]), times(f[1][1], r[0]))),
        array<Number, 2>(plus(times(f[0][0], r[2]), times(f[0][1], r[1])), plus(times(f[0][0], r[1]), times(f[0][1], r[0]))));
#else
    let a = linear_linear(f[0], f[1]);
    let b = linear_linear(f[2], f[3]);
    let r = other_lanes(square_square(a, b));
    return array<array<Number, 2>, QUADS>(
        joined(linear_square(f[1], b), r), joined(linear_square(f[0], b), r),
        joined(linear_square(f[3], a), r), joined(linear_square(f[2], a), r));
#endif
#endif
}

#if M == 16
fn joined(o: array<Number, 4>, r: array<Number, LANE>) -> array<Number, 2> {
    return array<Number, 2>(
        plus(plus(times(o[0], r[4]), times(o[1], r[3])), plus(times(o[2], r[2]), times(o[3], r[1]))),
        plus(plus(times(o[0], r[3]), times(o[1], r[2])), plus(times(o[2], r[1]), times(o[3], r[0]))));
}
#endif

#ifdef DUAL
// d <g, mask> / d keys, for keys in natural units.
fn inclusion_gradient(keys: array<vec4<f32>, QUADS>, g: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    let t = vec4(threshold(keys));
    var a = keys;
    var along = g;
    var r: array<vec4<f32>, QUADS>;
    var f: array<array<Number, 2>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        r[q] = exp2(-abs(a[q] - t));
        let kept = a[q] > t;
        let slope = r[q] * along[q];
        f[q][0] = Number(select(vec4(1.0), r[q], kept), select(vec4<f32>(), -slope, kept));
        f[q][1] = Number(select(r[q], vec4(1.0), kept), select(slope, vec4<f32>(), kept));
    }
    var c = without(f);
    for (var q = 0u; q < QUADS; q += 1u) {
        let c0 = c[q][0];
        let c1 = c[q][1];
        let share = vec4(1.0) / (f[q][0].v * c0.v + f[q][1].v * c1.v);
        let p0 = c0.v * share;
        let p1 = c1.v * share;
        along[q] = r[q] * (p0 * (along[q] * p1 + c1.d * share) - p1 * (c0.d * share));
    }
    return along;
}
#endif

// The soft mask of a span of keys.
fn inclusion_mask(keys: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    let t = vec4(threshold(keys));
    var a = keys;
    var f: array<array<Number, 2>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        let r = exp2(-abs(a[q] - t));
        let kept = a[q] > t;
        f[q][0] = constant(select(vec4(1.0), r, kept));
        f[q][1] = constant(select(r, vec4(1.0), kept));
    }
    var c = without(f);
    for (var q = 0u; q < QUADS; q += 1u) {
        let yes = f[q][1].v * c[q][1].v;
        a[q] = yes / (f[q][0].v * c[q][0].v + yes);
    }
    return a;
}
#endif

#if RELAXATION == 2
// The greatest key is at most 2^TOP times the second: behind a wider gap (44) the others' odds are below any rounding.
const TOP: f32 = 64.0;

fn powers(keys: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    let base = second(keys);
    var e = keys;
    for (var q = 0u; q < QUADS; q += 1u) {
        e[q] = exp2(min(e[q] - base, vec4(TOP)));
    }
    return e;
}

fn inclusion_mask(keys: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    var e = powers(keys);
    let share = vec4(1.0) / sums(e);
    var o = others(e);
    var w: array<vec4<f32>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        w[q] = e[q] * share / o[q];
    }
    var rest = others(w);
    for (var q = 0u; q < QUADS; q += 1u) {
        e[q] *= share + rest[q];
    }
    return e;
}

fn inclusion_gradient(keys: array<vec4<f32>, QUADS>, g: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    var e = powers(keys);
    let share = vec4(1.0) / sums(e);
    var o = others(e);
    var along = g;
    var u: array<vec4<f32>, QUADS>;
    var all: array<vec4<f32>, QUADS>;
    var three: array<vec4<f32>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        let back = vec4(1.0) / o[q];
        u[q] = e[q] * share * back * (share + back);
        all[q] = total(u[q]);
        three[q] = within(u[q]);
    }
    var d: array<vec4<f32>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        // i in the quad of k
        var rest: vec4<f32>;
        for (var s = 0u; s < QUADS; s += 1u) {
            if s != q {
                rest += all[s];
            }
        }
        let v = u[q];
        let x = e[q];
        let h = along[q];
        var sum = x.yzwx * (h - h.yzwx) * (v.zwxy + v.wxyz + rest)
            + x.zwxy * (h - h.zwxy) * (v.yzwx + v.wxyz + rest)
            + x.wxyz * (h - h.wxyz) * (v.yzwx + v.zwxy + rest);
#if M > 4
        // i in another quad
        for (var s = 0u; s < QUADS; s += 1u) {
            if s != q {
                var near = three[q];
                for (var other = 0u; other < QUADS; other += 1u) {
                    if other != q && other != s {
                        near += all[other];
                    }
                }
                let y = e[s];
                let k = along[s];
                let w = three[s];
                sum += y * (h - k) * (near + w) + y.yzwx * (h - k.yzwx) * (near + w.yzwx)
                    + y.zwxy * (h - k.zwxy) * (near + w.zwxy) + y.wxyz * (h - k.wxyz) * (near + w.wxyz);
            }
        }
#endif
        d[q] = x * sum;
    }
    return d;
}
#endif
