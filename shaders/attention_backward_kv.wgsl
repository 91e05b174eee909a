// Gradients of keys and values in causal attention with grouped query heads (attention.wgsl), from the saved log-sum-exp
// (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithm 4), with p and ds as in attention_backward_q.wgsl:
//   d_v_j = sum_{i >= j} p[i, j] d_o_i,  d_k_j = scale * sum_{i >= j} ds[i, j] q_i,  both over all query heads of the group
// (with the defs CAP and WINDOW, too).
//
// An invocation holds a vec4 of keys of one key head and walks the queries that see them in steps of 16, one query head after
// the other; d_k and d_v are its own accumulators in memory. The addresses of the queries are the same for the whole workgroup.
//
// q, d_o [heads * HEAD_DIM, t4], k, v, d_k, d_v [kv_heads * HEAD_DIM, t4], lse, delta [heads, t4], vec4 over tokens; a window is
// window4 * 4 tokens.
// Dispatch: [ceil(window4 / LANES) * windows, kv_heads, 1].

#import maskwright::attention::{NEG, capped, sloped, visible}

struct Params {
    t4: u32,       // windows * window4
    window4: u32,  // padded window length / 4
    group: u32,    // query heads per key head
    tiles: u32,    // ceil(window4 / LANES)
    scale: f32,    // what q . k is multiplied with
    pad: u32,
    cap: f32,      // of the scores, with CAP
    reach: u32,    // how many keys a query sees, itself included, with WINDOW
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;            // [heads * HEAD_DIM, t4]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;            // [kv_heads * HEAD_DIM, t4]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;            // [kv_heads * HEAD_DIM, t4]
@group(0) @binding(4) var<storage, read> d_o: array<vec4<f32>>;          // [heads * HEAD_DIM, t4]
@group(0) @binding(5) var<storage, read> lse: array<vec4<f32>>;          // [heads, t4]
@group(0) @binding(6) var<storage, read> delta: array<vec4<f32>>;        // [heads, t4]
@group(0) @binding(7) var<storage, read_write> d_k: array<vec4<f32>>;    // [kv_heads * HEAD_DIM, t4]
@group(0) @binding(8) var<storage, read_write> d_v: array<vec4<f32>>;    // [kv_heads * HEAD_DIM, t4]

const D = #{HEAD_DIM}u;

// Column c: mine times component c of other.
fn outer(mine: vec4<f32>, other: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(mine * other.x, mine * other.y, mine * other.z, mine * other.w);
}

// Probabilities of my keys in four queries, a column each, from the scores; `key` and `query` are the first positions. A query
// sees no key after it, and from position `end` on there is no query.
fn weights(s: mat4x4<f32>, key: u32, query: u32, end: u32, log_sum: vec4<f32>) -> mat4x4<f32> {
    let j = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    let neg = vec4<f32>(NEG);
    let zero = vec4<f32>();
    let real = vec4<bool>(query < end);   // windows are whole vec4s
    return mat4x4<f32>(
        exp(select(neg, min(s[0] - log_sum.x, zero), visible(j, query, p.reach) & real)),
        exp(select(neg, min(s[1] - log_sum.y, zero), visible(j, query + 1u, p.reach) & real)),
        exp(select(neg, min(s[2] - log_sum.z, zero), visible(j, query + 2u, p.reach) & real)),
        exp(select(neg, min(s[3] - log_sum.w, zero), visible(j, query + 3u, p.reach) & real)));
}

// Gradients of the scores, capped or not, from probabilities and their gradients.
fn score_gradients(w: mat4x4<f32>, g: mat4x4<f32>, minus: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(w[0] * (g[0] - minus.x), w[1] * (g[1] - minus.y), w[2] * (g[2] - minus.z), w[3] * (g[3] - minus.w));
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (wg.x / p.tiles) * p.window4;            // first vec4 of the window
    let tile = (wg.x % p.tiles) * #{LANES}u;             // first vec4 of keys in the window
    let mine = tile + lane;
    let live = mine < p.window4;
    let key = min(mine, p.window4 - 1u) * 4u;            // position of the first of my keys
    let kt = first + key / 4u;
    let kv = wg.y * D;
    let end = p.window4 * 4u;
    let start = tile * 4u;                               // no query before it sees any key of the tile
#ifdef WINDOW
    let stop = min(end, min(tile + #{LANES}u, p.window4) * 4u + p.reach - 1u);   // and none from here on
#else
    let stop = end;
#endif
    let last = p.t4 - 1u;

    for (var h = 0u; h < p.group; h += 1u) {
        let head = wg.y * p.group + h;
        for (var query = start; query < stop; query += 16u) {
            let qt = first + query / 4u;
            let q0 = min(qt, last);
            let q1 = min(qt + 1u, last);
            let q2 = min(qt + 2u, last);
            let q3 = min(qt + 3u, last);
            var s0 = mat4x4<f32>();
            var s1 = mat4x4<f32>();
            var s2 = mat4x4<f32>();
            var s3 = mat4x4<f32>();
            var g0 = mat4x4<f32>();
            var g1 = mat4x4<f32>();
            var g2 = mat4x4<f32>();
            var g3 = mat4x4<f32>();
            for (var d = 0u; d < D; d += 1u) {
                let at = (kv + d) * p.t4 + kt;
                let x = k[at] * p.scale;
                let e = v[at];
                let row = (head * D + d) * p.t4;
                s0 += outer(x, q[row + q0]);
                s1 += outer(x, q[row + q1]);
                s2 += outer(x, q[row + q2]);
                s3 += outer(x, q[row + q3]);
                g0 += outer(e, d_o[row + q0]);
                g1 += outer(e, d_o[row + q1]);
                g2 += outer(e, d_o[row + q2]);
                g3 += outer(e, d_o[row + q3]);
            }
            let sums = head * p.t4;
            let c0 = capped(s0, p.cap);
            s0 = weights(c0, key, query, end, lse[sums + q0]);
            let c1 = capped(s1, p.cap);
            s1 = weights(c1, key, query + 4u, end, lse[sums + q1]);
            let c2 = capped(s2, p.cap);
            s2 = weights(c2, key, query + 8u, end, lse[sums + q2]);
            let c3 = capped(s3, p.cap);
            s3 = weights(c3, key, query + 12u, end, lse[sums + q3]);
            g0 = sloped(score_gradients(s0, g0, delta[sums + q0]), c0, p.cap);
            g1 = sloped(score_gradients(s1, g1, delta[sums + q1]), c1, p.cap);
            g2 = sloped(score_gradients(s2, g2, delta[sums + q2]), c2, p.cap);
            g3 = sloped(score_gradients(s3, g3, delta[sums + q3]), c3, p.cap);
            if live {
                for (var d = 0u; d < D; d += 1u) {
                    let at = (kv + d) * p.t4 + kt;
                    let row = (head * D + d) * p.t4;
                    var sum_k = g0 * q[row + q0];
                    sum_k += g1 * q[row + q1];
                    sum_k += g2 * q[row + q2];
                    sum_k += g3 * q[row + q3];
                    sum_k *= p.scale;
                    var sum_v = s0 * d_o[row + q0];
                    sum_v += s1 * d_o[row + q1];
                    sum_v += s2 * d_o[row + q2];
                    sum_v += s3 * d_o[row + q3];
                    if h > 0u || query > start {
                        sum_k += d_k[at];
                        sum_v += d_v[at];
                    }
                    d_k[at] = sum_k;
                    d_v[at] = sum_v;
                }
            }
        }
    }
}
