// Backward pass of causal attention with grouped query heads, from the saved log-sum-exp, for software drivers with subgroups of
// SUBGROUP lanes: what attention_backward_q.wgsl and attention_backward_kv.wgsl do, in one kernel.
//   p[i, j] = exp(scale * q_i . k_j - lse_i),  ds[i, j] = p[i, j] (d_o_i . v_j - delta_i)
//   d_q_i = scale * sum_j ds[i, j] k_j,  d_k_j = scale * sum_i ds[i, j] q_i,  d_v_j = sum_i p[i, j] d_o_i
//
// Two kernels would make p and ds twice: seven products instead of five, and more loads, which such a driver runs lane by lane
// (see attention_lanes.wgsl). Here a workgroup, one subgroup, has a window of one key head and walks through its blocks of 64
// queries x 64 keys, query head after query head, so that all three sums are its own without atomics. A lane holds two vec4
// of queries, a and b, and for d_k and d_v two vec4 of keys, 0 and 1; in between p and ds are turned, from lanes along
// queries to lanes along keys. The sums are in memory, and each element is only touched by one invocation.
// The price is fewer workgroups, which a software driver has processors for all the same.
//
// There is no ninth binding for delta (attention_delta.wgsl): it comes in the first row of each head of d_q, and a lane takes it
// from there before it writes its first sums.
//
// With CAP and WINDOW (attention.wgsl) p is that of the capped scores s, and ds[i, j] is also multiplied with 1 - (s / cap)^2.
//
// q, d_o, d_q [heads * dim, t4], k, v, d_k, d_v [kv_heads * dim, t4], lse [heads, t4], vec4 over tokens; a window is
// window4 * 4 tokens.
// Dispatch: [windows, kv_heads, 1]. SUBGROUP = 8, dim a multiple of four.

#import maskwright::attention::{NEG, capped, first_seen, sloped}

struct Params {
    t4: u32,       // windows * window4
    window4: u32,  // padded window length / 4
    group: u32,    // query heads per key head
    tiles: u32,    // not used
    scale: f32,    // what q . k is multiplied with
    dim: u32,      // head_dim: no constant, since this kernel takes seconds to compile
    cap: f32,      // of the scores, with CAP
    reach: u32,    // how many keys a query sees, itself included, with WINDOW
}

// Of four queries and a block of 32 keys; column c of matrix i belongs to key 4 i + c. Turned: of four keys and 32 queries.
struct Scores {
    s0: mat4x4<f32>,
    s1: mat4x4<f32>,
    s2: mat4x4<f32>,
    s3: mat4x4<f32>,
    s4: mat4x4<f32>,
    s5: mat4x4<f32>,
    s6: mat4x4<f32>,
    s7: mat4x4<f32>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;            // [heads * dim, t4]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;            // [kv_heads * dim, t4]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;            // [kv_heads * dim, t4]
@group(0) @binding(4) var<storage, read> d_o: array<vec4<f32>>;          // [heads * dim, t4]
@group(0) @binding(5) var<storage, read> lse: array<vec4<f32>>;          // [heads, t4]
@group(0) @binding(6) var<storage, read_write> d_q: array<vec4<f32>>;    // [heads * dim, t4]
@group(0) @binding(7) var<storage, read_write> d_k: array<vec4<f32>>;    // [kv_heads * dim, t4]
@group(0) @binding(8) var<storage, read_write> d_v: array<vec4<f32>>;    // [kv_heads * dim, t4]

// Four features, from the one at vec4 `at` on, of a vec4 of tokens: a column each.
fn queries(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(q[at], q[at + p.t4], q[at + 2u * p.t4], q[at + 3u * p.t4]) * p.scale;
}

fn keys(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(k[at], k[at + p.t4], k[at + 2u * p.t4], k[at + 3u * p.t4]);
}

fn gradients(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(d_o[at], d_o[at + p.t4], d_o[at + 2u * p.t4], d_o[at + 3u * p.t4]);
}

fn values(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(v[at], v[at + p.t4], v[at + 2u * p.t4], v[at + 3u * p.t4]);
}

// The matrix of one lane.
fn lane0(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 0u), subgroupBroadcast(m[1], 0u),
                       subgroupBroadcast(m[2], 0u), subgroupBroadcast(m[3], 0u));
}
fn lane1(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 1u), subgroupBroadcast(m[1], 1u),
                       subgroupBroadcast(m[2], 1u), subgroupBroadcast(m[3], 1u));
}
fn lane2(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 2u), subgroupBroadcast(m[1], 2u),
                       subgroupBroadcast(m[2], 2u), subgroupBroadcast(m[3], 2u));
}
fn lane3(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 3u), subgroupBroadcast(m[1], 3u),
                       subgroupBroadcast(m[2], 3u), subgroupBroadcast(m[3], 3u));
}
fn lane4(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 4u), subgroupBroadcast(m[1], 4u),
                       subgroupBroadcast(m[2], 4u), subgroupBroadcast(m[3], 4u));
}
fn lane5(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 5u), subgroupBroadcast(m[1], 5u),
                       subgroupBroadcast(m[2], 5u), subgroupBroadcast(m[3], 5u));
}
fn lane6(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 6u), subgroupBroadcast(m[1], 6u),
                       subgroupBroadcast(m[2], 6u), subgroupBroadcast(m[3], 6u));
}
fn lane7(m: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(m[0], 7u), subgroupBroadcast(m[1], 7u),
                       subgroupBroadcast(m[2], 7u), subgroupBroadcast(m[3], 7u));
}

// What four features add to the products of queries x with the keys of all lanes, y.
fn add_products(s: Scores, x: mat4x4<f32>, y: mat4x4<f32>) -> Scores {
    return Scores(
        s.s0 + x * transpose(lane0(y)),
        s.s1 + x * transpose(lane1(y)),
        s.s2 + x * transpose(lane2(y)),
        s.s3 + x * transpose(lane3(y)),
        s.s4 + x * transpose(lane4(y)),
        s.s5 + x * transpose(lane5(y)),
        s.s6 + x * transpose(lane6(y)),
        s.s7 + x * transpose(lane7(y)));
}

// Whether the keys at `key` are seen by queries that see the keys before `seen`.
fn sees(key: u32, seen: vec4<u32>) -> vec4<bool> {
#ifdef WINDOW
    return (vec4<u32>(key) < seen) & (seen <= vec4<u32>(key + p.reach));
#else
    return vec4<u32>(key) < seen;
#endif
}

// Probabilities of four keys from their scores. `key` is the first of them; each query sees the keys before `seen`.
fn weights4(s: mat4x4<f32>, key: u32, seen: vec4<u32>, log_sum: vec4<f32>) -> mat4x4<f32> {
    let neg = vec4<f32>(NEG);
    let zero = vec4<f32>();
    return mat4x4<f32>(
        exp(select(neg, min(s[0] - log_sum, zero), sees(key, seen))),
        exp(select(neg, min(s[1] - log_sum, zero), sees(key + 1u, seen))),
        exp(select(neg, min(s[2] - log_sum, zero), sees(key + 2u, seen))),
        exp(select(neg, min(s[3] - log_sum, zero), sees(key + 3u, seen))));
}

fn weights(s: Scores, key: u32, seen: vec4<u32>, log_sum: vec4<f32>) -> Scores {
    return Scores(weights4(s.s0, key + 0u, seen, log_sum),
                  weights4(s.s1, key + 4u, seen, log_sum),
                  weights4(s.s2, key + 8u, seen, log_sum),
                  weights4(s.s3, key + 12u, seen, log_sum),
                  weights4(s.s4, key + 16u, seen, log_sum),
                  weights4(s.s5, key + 20u, seen, log_sum),
                  weights4(s.s6, key + 24u, seen, log_sum),
                  weights4(s.s7, key + 28u, seen, log_sum));
}

// Gradients of the scores from probabilities and their gradients.
fn score_gradients4(w: mat4x4<f32>, g: mat4x4<f32>, minus: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(w[0] * (g[0] - minus), w[1] * (g[1] - minus), w[2] * (g[2] - minus), w[3] * (g[3] - minus));
}

fn score_gradients(w: Scores, g: Scores, minus: vec4<f32>) -> Scores {
    return Scores(score_gradients4(w.s0, g.s0, minus),
                  score_gradients4(w.s1, g.s1, minus),
                  score_gradients4(w.s2, g.s2, minus),
                  score_gradients4(w.s3, g.s3, minus),
                  score_gradients4(w.s4, g.s4, minus),
                  score_gradients4(w.s5, g.s5, minus),
                  score_gradients4(w.s6, g.s6, minus),
                  score_gradients4(w.s7, g.s7, minus));
}

fn capped_of(s: Scores) -> Scores {
    return Scores(capped(s.s0, p.cap), capped(s.s1, p.cap), capped(s.s2, p.cap), capped(s.s3, p.cap),
                  capped(s.s4, p.cap), capped(s.s5, p.cap), capped(s.s6, p.cap), capped(s.s7, p.cap));
}

// Gradients g of the capped scores s become those of the scores before.
fn sloped_of(g: Scores, s: Scores) -> Scores {
    return Scores(sloped(g.s0, s.s0, p.cap), sloped(g.s1, s.s1, p.cap), sloped(g.s2, s.s2, p.cap), sloped(g.s3, s.s3, p.cap),
                  sloped(g.s4, s.s4, p.cap), sloped(g.s5, s.s5, p.cap), sloped(g.s6, s.s6, p.cap), sloped(g.s7, s.s7, p.cap));
}

fn choose(a: mat4x4<f32>, b: mat4x4<f32>, second: bool) -> mat4x4<f32> {
    return mat4x4<f32>(select(a[0], b[0], second), select(a[1], b[1], second),
                       select(a[2], b[2], second), select(a[3], b[3], second));
}

// The matrix of my number, transposed.
fn turn(lane: u32, m0: mat4x4<f32>, m1: mat4x4<f32>, m2: mat4x4<f32>, m3: mat4x4<f32>,
        m4: mat4x4<f32>, m5: mat4x4<f32>, m6: mat4x4<f32>, m7: mat4x4<f32>) -> mat4x4<f32> {
    let odd = (lane & 1u) != 0u;
    let two = (lane & 2u) != 0u;
    let low = choose(choose(m0, m1, odd), choose(m2, m3, odd), two);
    let high = choose(choose(m4, m5, odd), choose(m6, m7, odd), two);
    return transpose(choose(low, high, lane >= 4u));
}

// From lanes along queries to lanes along keys.
fn turned(s: Scores, lane: u32) -> Scores {
    return Scores(
        turn(lane, lane0(s.s0), lane0(s.s1), lane0(s.s2), lane0(s.s3), lane0(s.s4), lane0(s.s5), lane0(s.s6), lane0(s.s7)),
        turn(lane, lane1(s.s0), lane1(s.s1), lane1(s.s2), lane1(s.s3), lane1(s.s4), lane1(s.s5), lane1(s.s6), lane1(s.s7)),
        turn(lane, lane2(s.s0), lane2(s.s1), lane2(s.s2), lane2(s.s3), lane2(s.s4), lane2(s.s5), lane2(s.s6), lane2(s.s7)),
        turn(lane, lane3(s.s0), lane3(s.s1), lane3(s.s2), lane3(s.s3), lane3(s.s4), lane3(s.s5), lane3(s.s6), lane3(s.s7)),
        turn(lane, lane4(s.s0), lane4(s.s1), lane4(s.s2), lane4(s.s3), lane4(s.s4), lane4(s.s5), lane4(s.s6), lane4(s.s7)),
        turn(lane, lane5(s.s0), lane5(s.s1), lane5(s.s2), lane5(s.s3), lane5(s.s4), lane5(s.s5), lane5(s.s6), lane5(s.s7)),
        turn(lane, lane6(s.s0), lane6(s.s1), lane6(s.s2), lane6(s.s3), lane6(s.s4), lane6(s.s5), lane6(s.s6), lane6(s.s7)),
        turn(lane, lane7(s.s0), lane7(s.s1), lane7(s.s2), lane7(s.s3), lane7(s.s4), lane7(s.s5), lane7(s.s6), lane7(s.s7)));
}

// Sum over the tokens of all lanes, x, with these weights.
fn weighted(s: Scores, x: vec4<f32>) -> vec4<f32> {
    var sum = s.s0 * subgroupBroadcast(x, 0u);
    sum += s.s1 * subgroupBroadcast(x, 1u);
    sum += s.s2 * subgroupBroadcast(x, 2u);
    sum += s.s3 * subgroupBroadcast(x, 3u);
    sum += s.s4 * subgroupBroadcast(x, 4u);
    sum += s.s5 * subgroupBroadcast(x, 5u);
    sum += s.s6 * subgroupBroadcast(x, 6u);
    sum += s.s7 * subgroupBroadcast(x, 7u);
    return sum;
}

@compute @workgroup_size(#{SUBGROUP})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let first = wg.x * p.window4;                        // first vec4 of the window
    let kv = wg.y * p.dim * p.t4 + first;                    // vec4 at which the window starts in the first row of the key head
    let last = p.window4 - 1u;
    var h = 0u;
    loop {
        let head = wg.y * p.group + h;
        let start = head * p.dim * p.t4 + first;             // the same of the query head
        var tile = 0u;                                   // first vec4 of queries in the window
        loop {
            let live_a = tile + lane <= last;
            let live_b = tile + #{SUBGROUP}u + lane <= last;
            let a = min(tile + lane, last);
            let b = min(tile + #{SUBGROUP}u + lane, last);
            // A query sees the keys up to its own position. Lanes beyond the window must not count: they see none.
            let seen_a = select(vec4<u32>(), vec4<u32>(4u * a) + vec4<u32>(1u, 2u, 3u, 4u), live_a);
            let seen_b = select(vec4<u32>(), vec4<u32>(4u * b) + vec4<u32>(1u, 2u, 3u, 4u), live_b);
            let sum_a = lse[head * p.t4 + first + a];
            let sum_b = lse[head * p.t4 + first + b];
            var minus_a = vec4<f32>();
            var minus_b = vec4<f32>();
            if live_a { minus_a = d_q[start + a]; }
            if live_b { minus_b = d_q[start + b]; }
            // First vec4 of keys in the window. Blocks that no query of the tile sees are left out.
            let begin = first_seen(4u * tile, p.reach) / 64u * 16u;
            var block = begin;
            loop {
                let live_0 = block + lane <= last;
                let live_1 = block + #{SUBGROUP}u + lane <= last;
                let k0 = min(block + lane, last);
                let k1 = min(block + #{SUBGROUP}u + lane, last);
                var a0 = Scores();
                var a1 = Scores();
                var b0 = Scores();
                var b1 = Scores();
                var row_q = start;
                var row_k = kv;
                var d = 0u;
                loop {
                    let y0 = keys(row_k + k0);
                    let y1 = keys(row_k + k1);
                    let xa = queries(row_q + a);
                    let xb = queries(row_q + b);
                    a0 = add_products(a0, xa, y0);
                    b0 = add_products(b0, xb, y0);
                    a1 = add_products(a1, xa, y1);
                    b1 = add_products(b1, xb, y1);
                    row_q += 4u * p.t4;
                    row_k += 4u * p.t4;
                    d += 4u;
                    if d >= p.dim { break; }
                }
                let ca0 = capped_of(a0);
                a0 = weights(ca0, 4u * block, seen_a, sum_a);
                let ca1 = capped_of(a1);
                a1 = weights(ca1, 4u * block + 32u, seen_a, sum_a);
                let cb0 = capped_of(b0);
                b0 = weights(cb0, 4u * block, seen_b, sum_b);
                let cb1 = capped_of(b1);
                b1 = weights(cb1, 4u * block + 32u, seen_b, sum_b);
                let v0 = turned(a0, lane);
                let v1 = turned(a1, lane);
                let v2 = turned(b0, lane);
                let v3 = turned(b1, lane);
                // The first query head reaches a block of keys first in the block of queries on the diagonal.
                let fresh = h == 0u && tile == block;
                row_q = start;
                row_k = kv;
                d = 0u;
                loop {
                    let xa = d_o[row_q + a];
                    let xb = d_o[row_q + b];
                    var sum_0 = weighted(v0, xa) + weighted(v2, xb);
                    var sum_1 = weighted(v1, xa) + weighted(v3, xb);
                    if !fresh && live_0 { sum_0 += d_v[row_k + k0]; }
                    if !fresh && live_1 { sum_1 += d_v[row_k + k1]; }
                    if live_0 { d_v[row_k + k0] = sum_0; }
                    if live_1 { d_v[row_k + k1] = sum_1; }
                    row_q += p.t4;
                    row_k += p.t4;
                    d += 1u;
                    if d >= p.dim { break; }
                }
                var ga0 = Scores();
                var ga1 = Scores();
                var gb0 = Scores();
                var gb1 = Scores();
                row_q = start;
                row_k = kv;
                d = 0u;
                loop {
                    let y0 = values(row_k + k0);
                    let y1 = values(row_k + k1);
                    let xa = gradients(row_q + a);
                    let xb = gradients(row_q + b);
                    ga0 = add_products(ga0, xa, y0);
                    gb0 = add_products(gb0, xb, y0);
                    ga1 = add_products(ga1, xa, y1);
                    gb1 = add_products(gb1, xb, y1);
                    row_q += 4u * p.t4;
                    row_k += 4u * p.t4;
                    d += 4u;
                    if d >= p.dim { break; }
                }
                ga0 = sloped_of(score_gradients(a0, ga0, minus_a), ca0);
                ga1 = sloped_of(score_gradients(a1, ga1, minus_a), ca1);
                gb0 = sloped_of(score_gradients(b0, gb0, minus_b), cb0);
                gb1 = sloped_of(score_gradients(b1, gb1, minus_b), cb1);
                row_q = start;
                row_k = kv;
                d = 0u;
                loop {
                    let x0 = k[row_k + k0] * p.scale;
                    let x1 = k[row_k + k1] * p.scale;
                    var total_a = weighted(ga0, x0) + weighted(ga1, x1);
                    var total_b = weighted(gb0, x0) + weighted(gb1, x1);
                    if block > begin && live_a { total_a += d_q[row_q + a]; }
                    if block > begin && live_b { total_b += d_q[row_q + b]; }
                    if live_a { d_q[row_q + a] = total_a; }
                    if live_b { d_q[row_q + b] = total_b; }
                    row_q += p.t4;
                    row_k += p.t4;
                    d += 1u;
                    if d >= p.dim { break; }
                }
                let t0 = turned(ga0, lane);
                let t1 = turned(ga1, lane);
                let t2 = turned(gb0, lane);
                let t3 = turned(gb1, lane);
                row_q = start;
                row_k = kv;
                d = 0u;
                loop {
                    let xa = q[row_q + a] * p.scale;
                    let xb = q[row_q + b] * p.scale;
                    var sum_0 = weighted(t0, xa) + weighted(t2, xb);
                    var sum_1 = weighted(t1, xa) + weighted(t3, xb);
                    if !fresh && live_0 { sum_0 += d_k[row_k + k0]; }
                    if !fresh && live_1 { sum_1 += d_k[row_k + k1]; }
                    if live_0 { d_k[row_k + k0] = sum_0; }
                    if live_1 { d_k[row_k + k1] = sum_1; }
                    row_q += p.t4;
                    row_k += p.t4;
                    d += 1u;
                    if d >= p.dim { break; }
                }
                block += 16u;
                if block > tile { break; }
            }
            tile += 16u;
            if tile > last { break; }
        }
        h += 1u;
        if h >= p.group { break; }
    }
}
