// Causal attention with grouped query heads, without a T x T matrix:
//   o[h, :, i] = sum_{j <= i} softmax_j(scale * q[h, :, i] . k[h / group, :, j]) v[h / group, :, j]
//
// One invocation holds four queries (a vec4 of tokens) of one head and walks the keys of their window in steps of KEYS,
// with a running maximum and sum. The addresses of keys and values are the same for the whole workgroup. The output
// is its own accumulator in memory: an invocation alone touches its HEAD_DIM x 4 values.
//
// With the def LSE also the log-sum-exp of the scaled scores of each query, which the backward pass recomputes the softmax from:
//   lse[h, i] = ln sum_{j <= i} exp(scale * q[h, :, i] . k[h / group, :, j])
//
// With CAP a score s is cap * tanh(s / cap), with WINDOW only keys with i - j < reach count (shared/attention.wgsl), and blocks of keys
// that no query of the tile sees are left out.
//
// q, o [heads * HEAD_DIM, t4], k, v [kv_heads * HEAD_DIM, t4], lse [heads, t4], vec4 over tokens; a window is window4 * 4 tokens.
// Dispatch: [ceil(window4 / LANES) * windows, heads, 1]. KEYS in {16, 32}.

#import maskwright::attention::{NEG, LOWEST, capped, first_seen, sees}

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
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;      // [heads * HEAD_DIM, t4]
#ifdef LSE
@group(0) @binding(5) var<storage, read_write> lse: array<vec4<f32>>;    // [heads, t4]
#endif

const D = #{HEAD_DIM}u;

// Column c of the result: query vector times component c of four keys.
fn outer(query: vec4<f32>, keys: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(query * keys.x, query * keys.y, query * keys.z, query * keys.w);
}

// Scores from products; those of keys that the query does not see become NEG. `key` is the first of the four keys, `query` the
// first of the queries.
fn causal(products: mat4x4<f32>, key: u32, query: u32) -> mat4x4<f32> {
    let i = vec4<u32>(query) + vec4<u32>(0u, 1u, 2u, 3u);
    let neg = vec4<f32>(NEG);
    let s = capped(products, p.cap);
    return mat4x4<f32>(
        select(neg, s[0], sees(i, key, p.reach)), select(neg, s[1], sees(i, key + 1u, p.reach)),
        select(neg, s[2], sees(i, key + 2u, p.reach)), select(neg, s[3], sees(i, key + 3u, p.reach)));
}

fn max4(s: mat4x4<f32>) -> vec4<f32> {
    return max(max(s[0], s[1]), max(s[2], s[3]));
}

fn exp4(s: mat4x4<f32>, m: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(exp(s[0] - m), exp(s[1] - m), exp(s[2] - m), exp(s[3] - m));
}

fn sum4(s: mat4x4<f32>) -> vec4<f32> {
    return (s[0] + s[1]) + (s[2] + s[3]);
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

    var m = vec4<f32>(LOWEST);
    var l = vec4<f32>();
    for (var key = start; key < end; key += #{KEYS}u) {
        // Vec4s of keys beyond the window are masked by the causal test; their index is only kept inside the buffer.
        let kt = first + key / 4u;
        let k0 = min(kt + 0u, last);
        var s0 = mat4x4<f32>();
        let k1 = min(kt + 1u, last);
        var s1 = mat4x4<f32>();
        let k2 = min(kt + 2u, last);
        var s2 = mat4x4<f32>();
        let k3 = min(kt + 3u, last);
        var s3 = mat4x4<f32>();
#if KEYS > 16
        let k4 = min(kt + 4u, last);
        var s4 = mat4x4<f32>();
        let k5 = min(kt + 5u, last);
        var s5 = mat4x4<f32>();
        let k6 = min(kt + 6u, last);
        var s6 = mat4x4<f32>();
        let k7 = min(kt + 7u, last);
        var s7 = mat4x4<f32>();
#endif
        for (var d = 0u; d < D; d += 1u) {
            let x = q[(head + d) * p.t4 + qt] * p.scale;
            let row = (kv + d) * p.t4;
            s0 += outer(x, k[row + k0]);
            s1 += outer(x, k[row + k1]);
            s2 += outer(x, k[row + k2]);
            s3 += outer(x, k[row + k3]);
#if KEYS > 16
            s4 += outer(x, k[row + k4]);
            s5 += outer(x, k[row + k5]);
            s6 += outer(x, k[row + k6]);
            s7 += outer(x, k[row + k7]);
#endif
        }
        s0 = causal(s0, key + 0u, query);
        s1 = causal(s1, key + 4u, query);
        s2 = causal(s2, key + 8u, query);
        s3 = causal(s3, key + 12u, query);
#if KEYS > 16
        s4 = causal(s4, key + 16u, query);
        s5 = causal(s5, key + 20u, query);
        s6 = causal(s6, key + 24u, query);
        s7 = causal(s7, key + 28u, query);
#endif
        var top = m;
        top = max(top, max4(s0));
        top = max(top, max4(s1));
        top = max(top, max4(s2));
        top = max(top, max4(s3));
#if KEYS > 16
        top = max(top, max4(s4));
        top = max(top, max4(s5));
        top = max(top, max4(s6));
        top = max(top, max4(s7));
#endif
        let fix = exp(m - top);
        m = top;
        l *= fix;
        s0 = exp4(s0, m);
        l += sum4(s0);
        s1 = exp4(s1, m);
        l += sum4(s1);
        s2 = exp4(s2, m);
        l += sum4(s2);
        s3 = exp4(s3, m);
        l += sum4(s3);
#if KEYS > 16
        s4 = exp4(s4, m);
        l += sum4(s4);
        s5 = exp4(s5, m);
        l += sum4(s5);
        s6 = exp4(s6, m);
        l += sum4(s6);
        s7 = exp4(s7, m);
        l += sum4(s7);
#endif
        if live {
            for (var d = 0u; d < D; d += 1u) {
                let at = (head + d) * p.t4 + qt;
                let row = (kv + d) * p.t4;
                var sum = vec4<f32>();
                if key > start {
                    sum = o[at] * fix;
                }
                sum += s0 * v[row + k0];
                sum += s1 * v[row + k1];
                sum += s2 * v[row + k2];
                sum += s3 * v[row + k3];
#if KEYS > 16
                sum += s4 * v[row + k4];
                sum += s5 * v[row + k5];
                sum += s6 * v[row + k6];
                sum += s7 * v[row + k7];
#endif
                o[at] = sum;
            }
        }
    }
    if live {
        let scale = 1.0 / l;
        for (var d = 0u; d < D; d += 1u) {
            o[(head + d) * p.t4 + qt] *= scale;
        }
#ifdef LSE
        lse[wg.y * p.t4 + qt] = m + log(l);
#endif
    }
}
