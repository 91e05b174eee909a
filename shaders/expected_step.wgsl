// A step on the expected squared error of rows whose masks are drawn (MaskPro's law: #{N} draws without replacement from the softmax of
// each group's logits), in the metric of the Gram matrix H:
//
//     logit_i <- clamp(logit_i - rate * scale_row * d E[e] / d logit_i, +-100),   e = z H z,   z = the pruned weights of the row
//
// Groups are drawn independently, so with z' = E[z] and c = z' H the expected error depends on the law of group g by the cost of each
// of its patterns p, A_p = z_p H_gg z_p + 2 z_p (c_g - H_gg z'_g):   d E[e] / d logit_i = sum over p of A_p dP_p / dlogit_i.
//
// M <= 8: exact. With F and R of shared/draws.wgsl and V(T) = the expected cost when T are the first draws,
//     V(S) = A_S for |S| = N,   V(T) = sum_{i not in T} w_i V(T + i) / R(T),
//     d E[e] / d logit_i = sum over T without i, |T| < N, of (F(T) w_i / R(T)) (V(T + i) - V(T))
// (the derivative of a chain of softmaxes: each draw's, by the advantage of what it took).
//
// M = 16: the mean over `draws` draws of the derivative in which the noise of weight i is in expectation and that of the others as drawn
// (shared/arrivals.wgsl; local expectation gradients, Titsias and Lazaro-Gredilla, NIPS 2015):
//     u_i e^-u_i (A with i kept - A with i pruned):
// with i kept and pruned the masks differ by an exchange of two weights. z' is then the mean over the same draws (expected_pruned); a
// group's own part of it cancels in c_g - H_gg z'_g, so the estimate has no bias.
//
// W [rows, k4] packed by four; z and c [rows, k4] vec4 of a panel; h [chunk, k4]; logits [rows, cols] f32, in place; scales [rows] of
// the panel. H is bound in row chunks: a dispatch treats groups whose columns are among the chunk's rows.
// Dispatch: one invocation per group, the grid folded into two dimensions. Needs: finite logits within +-100; H symmetric.

#import maskwright::weights::unpack
#import maskwright::gumbel::LOGIT_LIMIT
#import maskwright::groups::{QUADS, flat_index}
#if M == 16
#import maskwright::arrivals::draw
#else
#import maskwright::draws::{OPEN, CLOSED, drawn, rates, open_sets}
#if M == 4
#import maskwright::draws::pair_gradient
#endif
#endif

struct Params {
    rows: u32,
    groups: u32,      // of a row that the dispatch treats,
    first_group: u32, // from this one on
    h_first: u32,     // row of H at which the bound chunk starts
    cols: u32,
    k4: u32,
    w_first: u32,     // packed element of W at which row 0 starts
    logits_at: u32,   // element of the bound logits at which row 0 starts
    panel_row: u32,   // row of the panel that row 0 is
    first_row: u32,   // row of the tensor that row 0 is
    draws: u32,
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
    rate: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
@group(0) @binding(2) var<storage, read> h: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> z: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> c: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> scales: array<f32>;
@group(0) @binding(6) var<storage, read_write> logits: array<f32>;

// The group's part of the vec4s k..; of M = 2 the half that the group is, and zeros.
fn part(v: vec4<f32>, group: u32) -> vec4<f32> {
#if M == 2
    return vec4(select(v.xy, v.zw, group % 2u == 1u), 0.0, 0.0);
#else
    return v;
#endif
}

fn among(bits: u32, q: u32) -> vec4<bool> {
    return (vec4(bits >> (q * 4u)) & vec4(1u, 2u, 4u, 8u)) != vec4(0u);
}

fn pick(v: vec4<f32>, bits: u32, q: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, among(bits, q));
}

#if M < 16
// Rows 4q.. of the group's square of H, the columns of its four s. For M = 2 there are two rows of two.
fn square(at: u32, q: u32, s: u32, group: u32) -> mat4x4<f32> {
    let first = at + 4u * q * p.k4 + s;
#if M == 2
    return mat4x4<f32>(part(h[first], group), part(h[first + p.k4], group), vec4<f32>(), vec4<f32>());
#else
    return mat4x4<f32>(h[first], h[first + p.k4], h[first + 2u * p.k4], h[first + 3u * p.k4]);
#endif
}

fn gradient(l: array<f32, #{M}>, k: u32, zk: u32, hk: u32, group: u32) -> array<f32, #{M}> {
    let w0 = part(unpack(w[k]), group);
    let z0 = part(z[zk], group);
    let h0 = square(hk, 0u, 0u, group);
#if M == 8
    let w1 = unpack(w[k + 1u]);
    let z1 = z[zk + 1u];
    let h1 = square(hk, 1u, 1u, group);
    // of the first four rows: times a vec4 of theirs it is one of the last four columns
    let h01 = square(hk, 0u, 1u, group);
    let b0 = 2.0 * (c[zk] - h0 * z0 - z1 * h01);
    let b1 = 2.0 * (c[zk + 1u] - h01 * z0 - h1 * z1);
#else
    let b0 = 2.0 * (part(c[zk], group) - h0 * z0);
#endif
#if PAIR == 1
    // Of a mask that keeps two the other two are pruned.
    let own = w0 * (w0 * vec4(h0[0].x, h0[1].y, h0[2].z, h0[3].w) + b0);
    let with_last = own.xyz + vec3(own.w) + 2.0 * w0.w * w0.xyz * h0[3].xyz;
    let with_next = own.xyx + own.yzz + 2.0 * w0.xyx * w0.yzz * vec3(h0[0].y, h0[1].z, h0[0].z);
    // Pruned: 23, 13, 12, and 03, 02, 01.
    let d4 = pair_gradient(vec4(l[0], l[1], l[2], l[3]), vec3(with_last.z, with_last.y, with_next.y),
        vec3(with_last.x, with_next.z, with_next.x));
    return array<f32, #{M}>(d4.x, d4.y, d4.z, d4.w);
#else
    var rate = rates(l);
    var f = open_sets(rate);
    var v: array<f32, CLOSED>;
    var d: array<f32, #{M}>;
    for (var back = 0u; back < CLOSED; back += 1u) {
        let t = CLOSED - 1u - back;
        let count = countOneBits(t);
        if count == #{N}u {
            let y0 = pick(w0, ~t, 0u);
#if M == 8
            let y1 = pick(w1, ~t, 1u);
            v[t] = dot(y0, h0 * y0 + b0) + dot(y1, h1 * y1 + 2.0 * (h01 * y0) + b1);
#else
            v[t] = dot(y0, h0 * y0 + b0);
#endif
        }
        if count < #{N}u {
            var left = 0.0;
            var sum = 0.0;
            for (var i = 0u; i < #{M}u; i += 1u) {
                if !drawn(t, i) {
                    left += rate[i];
                    sum += rate[i] * v[t | (1u << i)];
                }
            }
            let mean = sum / left;
            v[t] = mean;
            for (var i = 0u; i < #{M}u; i += 1u) {
                if !drawn(t, i) {
                    d[i] += f[t] * rate[i] * (v[t | (1u << i)] - mean);
                }
            }
        }
    }
    return d;
#endif
}
#else
fn gradient(l: array<vec4<f32>, QUADS>, k: u32, zk: u32, hk: u32, group: u32, number: u32) -> array<vec4<f32>, QUADS> {
    var weight: array<vec4<f32>, QUADS>;
    var alone: array<vec4<f32>, QUADS>; // w_i^2 H_ii
    for (var q = 0u; q < QUADS; q += 1u) {
        weight[q] = unpack(w[k + q]);
        let at = hk + 4u * q * p.k4 + q;
        let diagonal = vec4(h[at].x, h[at + p.k4].y, h[at + 2u * p.k4].z, h[at + 3u * p.k4].w);
        alone[q] = weight[q] * weight[q] * diagonal;
    }
    var sum: array<vec4<f32>, QUADS>;
    for (var n = 0u; n < p.draws; n += 1u) {
        var one = draw(l, vec3(p.step, p.projection, number), vec2(p.seed_lo, p.seed_hi), n);
        // 2 w (c + H_gg (z as drawn - z'))
        var slope: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            slope[q] = c[zk + q];
        }
        for (var i = 0u; i < 16u; i += 1u) {
            let own = select(weight[i / 4u][i % 4u], 0.0, (one.kept >> i & 1u) == 1u);
            let off = own - z[zk + i / 4u][i % 4u];
            for (var q = 0u; q < QUADS; q += 1u) {
                slope[q] += off * h[hk + i * p.k4 + q];
            }
        }
        for (var q = 0u; q < QUADS; q += 1u) {
            slope[q] *= 2.0 * weight[q];
        }
        let last = one.last;
        let next = one.next;
        let prune_last = alone[last / 4u][last % 4u] + slope[last / 4u][last % 4u];
        let keep_next = alone[next / 4u][next % 4u] - slope[next / 4u][next % 4u];
        let w_last = 2.0 * weight[last / 4u][last % 4u];
        let w_next = 2.0 * weight[next / 4u][next % 4u];
        for (var q = 0u; q < QUADS; q += 1u) {
            // kept instead of pruned: a kept weight goes out for the next, a pruned one comes in for the last
            let stays = w_next * weight[q] * h[hk + next * p.k4 + q] - (alone[q] + slope[q]) - keep_next;
            let comes = prune_last + (alone[q] - slope[q]) - w_last * weight[q] * h[hk + last * p.k4 + q];
            let u = one.odds[q];
            sum[q] += u * exp(-u) * select(comes, stays, among(one.kept, q));
        }
    }
    let mean = 1.0 / f32(p.draws);
    for (var q = 0u; q < QUADS; q += 1u) {
        sum[q] *= mean;
    }
    return sum;
}
#endif

fn step(at: u32, by: f32) {
    logits[at] = clamp(logits[at] - by, -LOGIT_LIMIT, LOGIT_LIMIT);
}

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i < p.rows * p.groups {
        let row = i / p.groups;
        let group = p.first_group + i - row * p.groups;
        let four = group * #{M}u / 4u;
        let at = p.logits_at + row * p.cols + group * #{M}u;
        let k = p.w_first + row * p.k4 + four;
        let zk = (p.panel_row + row) * p.k4 + four;
        let hk = (group * #{M}u - p.h_first) * p.k4 + four;
        let rate = p.rate * scales[p.panel_row + row];
#if M == 16
        var l: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            let j = at + 4u * q;
            l[q] = vec4(logits[j], logits[j + 1u], logits[j + 2u], logits[j + 3u]);
        }
        var d = gradient(l, k, zk, hk, group, (p.first_row + row) * (p.cols / 16u) + group);
        for (var j = 0u; j < 16u; j += 1u) {
            step(at + j, rate * d[j / 4u][j % 4u]);
        }
#else
        var l: array<f32, #{M}>;
        for (var j = 0u; j < #{M}u; j += 1u) {
            l[j] = logits[at + j];
        }
        var d = gradient(l, k, zk, hk, group);
        for (var j = 0u; j < #{M}u; j += 1u) {
            step(at + j, rate * d[j]);
        }
#endif
    }
}
