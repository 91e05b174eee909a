// Gradient of the queries in causal attention with grouped query heads (attention.wgsl), from the saved log-sum-exp
// (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithm 4):
//   p[i, j] = exp(scale * q_i . k_j - lse_i),  ds[i, j] = p[i, j] (d_o_i . v_j - delta_i)
//   d_q_i = scale * sum_{j <= i} ds[i, j] k_j
//
// As in attention.wgsl an invocation holds a vec4 of queries of one head and walks the keys of their window, here in steps of
// 16; d_q is its own accumulator in memory. No probability is above 1, whatever the rounding of scores of 1e30.
//
// With CAP and WINDOW (attention.wgsl) p is that of the capped scores s, and ds[i, j] is also multiplied with 1 - (s / cap)^2.
//
// q, d_o, d_q [heads * HEAD_DIM, t4], k, v [kv_heads * HEAD_DIM, t4], lse, delta [heads, t4], vec4 over tokens; a window is
// window4 * 4 tokens.
// Dispatch: [ceil(window4 / LANES) * windows, heads, 1].

#import maskwright::attention::{NEG, capped, first_seen, sees, sloped}

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
@group(0) @binding(7) var<storage, read_write> d_q: array<vec4<f32>>;    // [heads * HEAD_DIM, t4]

const D = #{HEAD_DIM}u;

// Column c: mine times component c of other.
fn outer(mine: vec4<f32>, other: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(mine * other.x, mine * other.y, mine * other.z, mine * other.w);
}

// Probabilities of four keys, the first of them `key`, from their scores; 0 of those that the query does not see.
fn weights(s: mat4x4<f32>, key: u32, query: u32, log_sum: vec4<f32>) -> mat4x4<f32> {
    let i = vec4<u32>(query) + vec4<u32>(0u, 1u, 2u, 3u);
    let neg = vec4<f32>(NEG);
    let zero = vec4<f32>();
    return mat4x4<f32>(
        exp(select(neg, min(s[0] - log_sum, zero), sees(i, key, p.reach))),
        exp(select(neg, min(s[1] - log_sum, zero), sees(i, key + 1u, p.reach))),
        exp(select(neg, min(s[2] - log_sum, zero), sees(i, key + 2u, p.reach))),
        exp(select(neg, min(s[3] - log_sum, zero), sees(i, key + 3u, p.reach))));
}

// Gradients of the products of four keys, the first of them `key`, from the products and the gradients of the probabilities.
fn product_gradients(products: mat4x4<f32>, key: u32, query: u32, log_sum: vec4<f32>, g: mat4x4<f32>, minus: vec4<f32>) -> mat4x4<f32> {
    let s = capped(products, p.cap);
    let w = weights(s, key, query, log_sum);
    let ds = mat4x4<f32>(w[0] * (g[0] - minus), w[1] * (g[1] - minus), w[2] * (g[2] - minus), w[3] * (g[3] - minus));
    return sloped(ds, s, p.cap);
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (wg.x / p.tiles) * p.window4;            // first vec4 of the window
    let tile = (wg.x % p.tiles) * #{LANES}u;             // first vec4 of queries in the window
    let mine = tile + lane;
    let live = mine < p.window4;
    let query = min(mine, p.window4 - 1u) * 4u;          // position of the first of my queries
    let qt = first + query / 4u;
    let head = wg.y * D;
    let kv = (wg.y / p.group) * D;
    let start = first_seen(tile * 4u, p.reach) / 4u * 4u;   // no key before it is seen by any query of the tile
    let end = min(tile + #{LANES}u, p.window4) * 4u;     // and none from here on
    let last = p.t4 - 1u;
    let log_sum = lse[wg.y * p.t4 + qt];
    let minus = delta[wg.y * p.t4 + qt];

    for (var key = start; key < end; key += 16u) {
        // Vec4s of keys beyond the window are masked by the causal test; their index is only kept inside the buffer.
        let kt = first + key / 4u;
        let k0 = min(kt, last);
        let k1 = min(kt + 1u, last);
        let k2 = min(kt + 2u, last);
        let k3 = min(kt + 3u, last);
        var s0 = mat4x4<f32>();
        var s1 = mat4x4<f32>();
        var s2 = mat4x4<f32>();
        var s3 = mat4x4<f32>();
        var g0 = mat4x4<f32>();
        var g1 = mat4x4<f32>();
        var g2 = mat4x4<f32>();
        var g3 = mat4x4<f32>();
        for (var d = 0u; d < D; d += 1u) {
            let at = (head + d) * p.t4 + qt;
            let x = q[at] * p.scale;
            let e = d_o[at];
            let row = (kv + d) * p.t4;
            s0 += outer(x, k[row + k0]);
            s1 += outer(x, k[row + k1]);
            s2 += outer(x, k[row + k2]);
            s3 += outer(x, k[row + k3]);
            g0 += outer(e, v[row + k0]);
            g1 += outer(e, v[row + k1]);
            g2 += outer(e, v[row + k2]);
            g3 += outer(e, v[row + k3]);
        }
        s0 = product_gradients(s0, key, query, log_sum, g0, minus);
        s1 = product_gradients(s1, key + 4u, query, log_sum, g1, minus);
        s2 = product_gradients(s2, key + 8u, query, log_sum, g2, minus);
        s3 = product_gradients(s3, key + 12u, query, log_sum, g3, minus);
        if live {
            for (var d = 0u; d < D; d += 1u) {
                let at = (head + d) * p.t4 + qt;
                let row = (kv + d) * p.t4;
                var sum = s0 * k[row + k0];
                sum += s1 * k[row + k1];
                sum += s2 * k[row + k2];
                sum += s3 * k[row + k3];
                sum *= p.scale;
                if key > start {
                    sum += d_q[at];
                }
                d_q[at] = sum;
            }
        }
    }
}
