// The soft top-#{N} of a group of #{M} keys and its gradient (the relaxation of Xie and Ermon, "Reparameterizable subset
// sampling via continuous relaxations", IJCAI 2019, which RoI trains masks with):
//
//     repeat N times:  mu = softmax(a),   mask += mu,   a += removal * log(1 - mu)
//
// All logarithms are base 2 (a in units of ln 2). Nothing is clamped away and nothing cancels:
// - e = 2^(a - second), relative to the second greatest key, the greatest at most 2^TOP. So 1 - mu, the others' share of the
//   sum, is never 0: for the greatest key its numerator is at least 1, for all others it contains the greatest.
// - log(1 - mu) of a greatest key that is more than TOP above the second is log2(others) - (a - second): the clamped bits are
//   subtracted again. It is right for gaps of any size, and so the key that won is removed and not chosen twice.
// - The derivative of log(1 - mu_i) is -mu_i by key i and mu_i e_j / (sum of the others of i) by key j: both at most 1.
//
// A span is max(M, 4) keys in quads: one group, or two groups of M = 2 side by side.
#define_import_path maskwright::soft

#if M > 4
const QUADS: u32 = #{M}u / 4u;
#else
const QUADS: u32 = 1u;
#endif

const TOP: f32 = 100.0;

// The sum of each key's group.
fn sums(v: array<vec4<f32>, QUADS>) -> vec4<f32> {
#if M == 2
    return v[0] + v[0].yxwz;
#else
    var t = v[0];
#if M > 4
    t += v[1];
#endif
#if M > 8
    t += v[2] + v[3];
#endif
    let s = t.xy + t.zw;
    return vec4(s.x + s.y);
#endif
}

fn total(v: vec4<f32>) -> vec4<f32> {
    let s = v.xy + v.zw;
    return vec4(s.x + s.y);
}

fn within(v: vec4<f32>) -> vec4<f32> {
    return v.yzwx + (v.zwxy + v.wxyz);
}

// The sum of the other keys of each key's group.
fn others(v: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
#if M == 2
    return array<vec4<f32>, QUADS>(v[0].yxwz);
#else
#if M == 4
    return array<vec4<f32>, QUADS>(within(v[0]));
#else
#if M == 8
    return array<vec4<f32>, QUADS>(within(v[0]) + total(v[1]), within(v[1]) + total(v[0]));
#else
    let a = total(v[0]);
    let b = total(v[1]);
    let c = total(v[2]);
    let d = total(v[3]);
    return array<vec4<f32>, QUADS>(
        within(v[0]) + (b + (c + d)), within(v[1]) + (a + (c + d)),
        within(v[2]) + (d + (a + b)), within(v[3]) + (c + (a + b)));
#endif
#endif
#endif
}

// The greatest and the second greatest of a quad.
fn top_two(v: vec4<f32>) -> vec2<f32> {
    let high = max(v.xy, v.zw);
    let low = min(v.xy, v.zw);
    return vec2(max(high.x, high.y), max(min(high.x, high.y), max(low.x, low.y)));
}

fn merge(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2(max(a.x, b.x), max(min(a.x, b.x), max(a.y, b.y)));
}

// The second greatest key of each key's group.
fn second(v: array<vec4<f32>, QUADS>) -> vec4<f32> {
#if M == 2
    return min(v[0], v[0].yxwz);
#else
    var t = top_two(v[0]);
#if M > 4
    t = merge(t, top_two(v[1]));
#endif
#if M > 8
    t = merge(t, merge(top_two(v[2]), top_two(v[3])));
#endif
    return vec4(t.y);
#endif
}

// The soft mask of a span of keys.
fn soft_mask(keys: array<vec4<f32>, QUADS>, removal: f32) -> array<vec4<f32>, QUADS> {
    var a = keys;
    var mask: array<vec4<f32>, QUADS>;
    for (var k = 0u; k < #{N}u; k += 1u) {
        let base = second(a);
        var e: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            e[q] = exp2(min(a[q] - base, vec4(TOP)));
        }
        let share = vec4(1.0) / sums(e);
        for (var q = 0u; q < QUADS; q += 1u) {
            mask[q] += e[q] * share;
        }
        if k + 1u < #{N}u {
            var o = others(e);
            for (var q = 0u; q < QUADS; q += 1u) {
                a[q] += removal * (log2(o[q] * share) - max(a[q] - base - vec4(TOP), vec4<f32>()));
            }
        }
    }
    return mask;
}

// d <g, mask> / d keys, for keys in natural units (the gradient by `keys` as given, times ln 2).
fn soft_gradient(keys: array<vec4<f32>, QUADS>, removal: f32, g: array<vec4<f32>, QUADS>) -> array<vec4<f32>, QUADS> {
    var a = keys;
    var rounds: array<vec4<f32>, #{N}u * QUADS>;
    for (var k = 0u; k < #{N}u; k += 1u) {
        let base = second(a);
        var e: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            e[q] = exp2(min(a[q] - base, vec4(TOP)));
            rounds[k * QUADS + q] = e[q];
        }
        if k + 1u < #{N}u {
            let share = vec4(1.0) / sums(e);
            var o = others(e);
            for (var q = 0u; q < QUADS; q += 1u) {
                a[q] += removal * (log2(o[q] * share) - max(a[q] - base - vec4(TOP), vec4<f32>()));
            }
        }
    }
    var gradient = g;
    var d: array<vec4<f32>, QUADS>;
    for (var back = 1u; back <= #{N}u; back += 1u) {
        let k = #{N}u - back;
        var e: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            e[q] = rounds[k * QUADS + q];
        }
        let share = vec4(1.0) / sums(e);
        var o = others(e);
        var drawn: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            drawn[q] = e[q] * share * gradient[q];
        }
        var rest = others(drawn);
        var step: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            step[q] = e[q] * share * (gradient[q] * (o[q] * share) - rest[q]);
        }
        if back > 1u {
            var t: array<vec4<f32>, QUADS>;
            for (var q = 0u; q < QUADS; q += 1u) {
                t[q] = d[q] * (e[q] * share) / o[q];
            }
            var passed = others(t);
            for (var q = 0u; q < QUADS; q += 1u) {
                step[q] += removal * (e[q] * passed[q] - e[q] * share * d[q]);
            }
        }
        for (var q = 0u; q < QUADS; q += 1u) {
            d[q] += step[q];
        }
    }
    return d;
}
