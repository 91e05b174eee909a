// Causal attention with grouped query heads, as in attention.wgsl, for software drivers with subgroups of SUBGROUP lanes:
//   o[h, :, i] = sum_{j <= i} softmax_j(scale * q[h, :, i] . k[h / group, :, j]) v[h / group, :, j]
//
// Such a driver runs every load and store as a loop over the lanes (see matmul_lanes.wgsl), so the lanes of the subgroup, which
// is the whole workgroup, share those of keys and values: lane l reads the l-th vec4 of a block of 32 keys, and
// `subgroupBroadcast` hands them round. An invocation holds two vec4 of queries of one head, a and b, and walks the keys of
// their window in steps of two blocks: one load then serves 64 products or more, and the output, which is its own accumulator
// in memory, is loaded and stored once in 64 keys. Loops test at their end: behind a test at the start such a driver runs the
// body once more, with all lanes off.
//
// With the def LSE also lse, and CAP and WINDOW, as there.
//
// q, o [heads * dim, t4], k, v [kv_heads * dim, t4], lse [heads, t4], vec4 over tokens; a window is window4 * 4 tokens.
// Dispatch: [ceil(window4 / 16) * windows, heads, 1]. SUBGROUP = 8, dim a multiple of four.

#import maskwright::attention::{NEG, LOWEST, capped, first_seen, sees}

struct Params {
    t4: u32,       // windows * window4
    window4: u32,  // padded window length / 4
    group: u32,    // query heads per key head
    tiles: u32,    // ceil(window4 / 16)
    scale: f32,    // what q . k is multiplied with
    dim: u32,      // head_dim: no constant, since this kernel takes seconds to compile
    cap: f32,      // of the scores, with CAP
    reach: u32,    // how many keys a query sees, itself included, with WINDOW
}

// Of four queries and a block of 32 keys; column c of matrix i belongs to key 4 i + c.
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
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;      // [heads * dim, t4]
#ifdef LSE
@group(0) @binding(5) var<storage, read_write> lse: array<vec4<f32>>;    // [heads, t4]
#endif

// Four features, from the one at vec4 `at` on, of a vec4 of tokens: a column each.
fn queries(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(q[at], q[at + p.t4], q[at + 2u * p.t4], q[at + 3u * p.t4]) * p.scale;
}

fn keys(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(k[at], k[at + p.t4], k[at + 2u * p.t4], k[at + 3u * p.t4]);
}

// What four features add to the scores of queries x, the keys of all lanes being y.
fn add_products(s: Scores, x: mat4x4<f32>, y: mat4x4<f32>) -> Scores {
    return Scores(
        s.s0 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 0u), subgroupBroadcast(y[1], 0u),
                                         subgroupBroadcast(y[2], 0u), subgroupBroadcast(y[3], 0u))),
        s.s1 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 1u), subgroupBroadcast(y[1], 1u),
                                         subgroupBroadcast(y[2], 1u), subgroupBroadcast(y[3], 1u))),
        s.s2 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 2u), subgroupBroadcast(y[1], 2u),
                                         subgroupBroadcast(y[2], 2u), subgroupBroadcast(y[3], 2u))),
        s.s3 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 3u), subgroupBroadcast(y[1], 3u),
                                         subgroupBroadcast(y[2], 3u), subgroupBroadcast(y[3], 3u))),
        s.s4 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 4u), subgroupBroadcast(y[1], 4u),
                                         subgroupBroadcast(y[2], 4u), subgroupBroadcast(y[3], 4u))),
        s.s5 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 5u), subgroupBroadcast(y[1], 5u),
                                         subgroupBroadcast(y[2], 5u), subgroupBroadcast(y[3], 5u))),
        s.s6 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 6u), subgroupBroadcast(y[1], 6u),
                                         subgroupBroadcast(y[2], 6u), subgroupBroadcast(y[3], 6u))),
        s.s7 + x * transpose(mat4x4<f32>(subgroupBroadcast(y[0], 7u), subgroupBroadcast(y[1], 7u),
                                         subgroupBroadcast(y[2], 7u), subgroupBroadcast(y[3], 7u))));
}

// Scores from products; those of keys that the query does not see become NEG. `key` is the first of the four keys, `query` the
// first of the queries.
fn causal4(products: mat4x4<f32>, key: u32, query: u32) -> mat4x4<f32> {
    let i = vec4<u32>(query) + vec4<u32>(0u, 1u, 2u, 3u);
    let neg = vec4<f32>(NEG);
    let s = capped(products, p.cap);
    return mat4x4<f32>(
        select(neg, s[0], sees(i, key, p.reach)), select(neg, s[1], sees(i, key + 1u, p.reach)),
        select(neg, s[2], sees(i, key + 2u, p.reach)), select(neg, s[3], sees(i, key + 3u, p.reach)));
}

fn causal(s: Scores, key: u32, query: u32) -> Scores {
    return Scores(causal4(s.s0, key, query), causal4(s.s1, key + 4u, query),
                  causal4(s.s2, key + 8u, query), causal4(s.s3, key + 12u, query),
                  causal4(s.s4, key + 16u, query), causal4(s.s5, key + 20u, query),
                  causal4(s.s6, key + 24u, query), causal4(s.s7, key + 28u, query));
}

fn max4(s: mat4x4<f32>) -> vec4<f32> {
    return max(max(s[0], s[1]), max(s[2], s[3]));
}

fn max_of(s: Scores) -> vec4<f32> {
    return max(max(max(max4(s.s0), max4(s.s1)), max(max4(s.s2), max4(s.s3))),
               max(max(max4(s.s4), max4(s.s5)), max(max4(s.s6), max4(s.s7))));
}

fn exp4(s: mat4x4<f32>, m: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(exp(s[0] - m), exp(s[1] - m), exp(s[2] - m), exp(s[3] - m));
}

fn exp_of(s: Scores, m: vec4<f32>) -> Scores {
    return Scores(exp4(s.s0, m), exp4(s.s1, m), exp4(s.s2, m), exp4(s.s3, m),
                  exp4(s.s4, m), exp4(s.s5, m), exp4(s.s6, m), exp4(s.s7, m));
}

fn sum4(s: mat4x4<f32>) -> vec4<f32> {
    return (s[0] + s[1]) + (s[2] + s[3]);
}

fn sum_of(s: Scores) -> vec4<f32> {
    return ((sum4(s.s0) + sum4(s.s1)) + (sum4(s.s2) + sum4(s.s3)))
         + ((sum4(s.s4) + sum4(s.s5)) + (sum4(s.s6) + sum4(s.s7)));
}

// Sum over the keys of weight times value, the values of all lanes being x.
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
    let first = (wg.x / p.tiles) * p.window4;            // first vec4 of the window
    let tile = (wg.x % p.tiles) * 16u;                   // first vec4 of queries in the window
    let mine_a = tile + lane;
    let mine_b = mine_a + #{SUBGROUP}u;
    let live_a = mine_a < p.window4;
    let live_b = mine_b < p.window4;
    let query_a = min(mine_a, p.window4 - 1u) * 4u;      // position of the first of my queries
    let query_b = min(mine_b, p.window4 - 1u) * 4u;
    let head = wg.y * p.dim;
    let kv = (wg.y / p.group) * p.dim;
    let begin = first_seen(tile * 4u, p.reach) / 4u * 4u;   // no key before it is seen by any query of the tile
    let end = min(tile + 16u, p.window4) * 4u;           // and none from here on
    let last = p.t4 - 1u;

    var top_a = vec4<f32>(LOWEST);
    var top_b = vec4<f32>(LOWEST);
    var total_a = vec4<f32>();
    var total_b = vec4<f32>();
    var key = begin;
    loop {
        // Vec4s of keys beyond the window are masked by the causal test; their index is only kept inside the buffer.
        let k0 = min(first + key / 4u + lane, last);
        let k1 = min(first + key / 4u + #{SUBGROUP}u + lane, last);
        var a0 = Scores();
        var a1 = Scores();
        var b0 = Scores();
        var b1 = Scores();
        var row_q = head * p.t4 + first;
        var row_k = kv * p.t4;
        var d = 0u;
        loop {
            let y0 = keys(row_k + k0);
            let y1 = keys(row_k + k1);
            let xa = queries(row_q + query_a / 4u);
            let xb = queries(row_q + query_b / 4u);
            a0 = add_products(a0, xa, y0);
            b0 = add_products(b0, xb, y0);
            a1 = add_products(a1, xa, y1);
            b1 = add_products(b1, xb, y1);
            row_q += 4u * p.t4;
            row_k += 4u * p.t4;
            d += 4u;
            if d >= p.dim { break; }
        }
        a0 = causal(a0, key, query_a);
        a1 = causal(a1, key + 32u, query_a);
        b0 = causal(b0, key, query_b);
        b1 = causal(b1, key + 32u, query_b);
        let new_a = max(top_a, max(max_of(a0), max_of(a1)));
        let new_b = max(top_b, max(max_of(b0), max_of(b1)));
        let fix_a = exp(top_a - new_a);
        let fix_b = exp(top_b - new_b);
        top_a = new_a;
        top_b = new_b;
        a0 = exp_of(a0, top_a);
        a1 = exp_of(a1, top_a);
        b0 = exp_of(b0, top_b);
        b1 = exp_of(b1, top_b);
        total_a = total_a * fix_a + (sum_of(a0) + sum_of(a1));
        total_b = total_b * fix_b + (sum_of(b0) + sum_of(b1));
        // The last step also divides.
        let done = key + 64u >= end;
        let scale_a = select(vec4<f32>(1.0), 1.0 / total_a, done);
        let scale_b = select(vec4<f32>(1.0), 1.0 / total_b, done);
        row_q = head * p.t4 + first;
        row_k = kv * p.t4;
        d = 0u;
        loop {
            let x0 = v[row_k + k0];
            let x1 = v[row_k + k1];
            let at_a = row_q + query_a / 4u;
            let at_b = row_q + query_b / 4u;
            var sum_a = vec4<f32>();
            var sum_b = vec4<f32>();
            if key > begin && live_a { sum_a = o[at_a] * fix_a; }
            if key > begin && live_b { sum_b = o[at_b] * fix_b; }
            sum_a += weighted(a0, x0) + weighted(a1, x1);
            sum_b += weighted(b0, x0) + weighted(b1, x1);
            if live_a { o[at_a] = sum_a * scale_a; }
            if live_b { o[at_b] = sum_b * scale_b; }
            row_q += p.t4;
            row_k += p.t4;
            d += 1u;
            if d >= p.dim { break; }
        }
        key += 64u;
        if done { break; }
    }
#ifdef LSE
    let at = wg.y * p.t4 + first;
    if live_a { lse[at + query_a / 4u] = top_a + log(total_a); }
    if live_b { lse[at + query_b / 4u] = top_b + log(total_b); }
#endif
}
