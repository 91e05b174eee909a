// Attention of one new token of each sequence over the keys and values of its sequence so far, the new one included:
//   o[h, :, w] = sum_{j < seen} softmax_j(scale * q[h, :, w] . k[h / group, :, w * window + j]) v[h / group, :, w * window + j]
//
// A workgroup has one head of one sequence and walks the keys in blocks of 4 * WG, with a running maximum and sum: first a lane has four
// keys, then a lane has features of the result. The result is its own accumulator in memory; a lane alone touches its features.
//
// q, o [heads * HEAD_DIM, q_tokens] f32; k, v [kv_heads * HEAD_DIM, kv4] vec4 over tokens, a sequence has window4 * 4 of them. seen >= 1.
// With CAP and WINDOW as in attention.wgsl.
// Dispatch: [sequences, heads, 1].

#import maskwright::attention::{NEG, LOWEST, capped4, first_seen, visible}

struct Params {
    q_tokens: u32,
    kv4: u32,
    window4: u32,
    seen: u32,
    group: u32,    // query heads per key head
    scale: f32,    // what q . k is multiplied with
    cap: f32,      // of the scores, with CAP
    reach: u32,    // how many keys are seen, with WINDOW
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> o: array<f32>;

const D = #{HEAD_DIM}u;

// Scores of a block of keys, then their exponentials.
var<workgroup> block: array<vec4<f32>, #{WG}>;

// Which of the four tokens from `token` on are seen by the last one.
fn seen_of(token: u32) -> vec4<bool> {
    return visible(vec4<u32>(token) + vec4<u32>(0u, 1u, 2u, 3u), p.seen - 1u, p.reach);
}

@compute @workgroup_size(#{WG})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let sequence = wg.x;
    let head = wg.y * D;
    let kv = (wg.y / p.group) * D;
    let first = sequence * p.window4;
    let begin = first_seen(p.seen - 1u, p.reach) / 4u;   // first vec4 of keys
    let seen4 = (p.seen + 3u) / 4u;

    var m = LOWEST;
    var l = 0.0;
    for (var start = begin; start < seen4; start += #{WG}u) {
        let live = min(#{WG}u, seen4 - start);
        var s = vec4<f32>(NEG);
        if lane < live {
            var sum = vec4<f32>();
            for (var d = 0u; d < D; d += 1u) {
                let x = q[(head + d) * p.q_tokens + sequence] * p.scale;
                sum += x * k[(kv + d) * p.kv4 + first + start + lane];
            }
            // What lies behind the last token is not even a number.
            s = select(s, capped4(sum, p.cap), seen_of(4u * (start + lane)));
        }
        block[lane] = s;
        workgroupBarrier();
        var top4 = vec4<f32>(m);
        for (var i = 0u; i < live; i += 1u) {
            top4 = max(top4, block[i]);
        }
        let top = max(max(top4.x, top4.y), max(top4.z, top4.w));
        workgroupBarrier();
        block[lane] = exp(s - top);
        workgroupBarrier();
        let fix = exp(m - top);
        m = top;
        var l4 = vec4<f32>();
        for (var i = 0u; i < live; i += 1u) {
            l4 += block[i];
        }
        l = l * fix + dot(l4, vec4<f32>(1.0));
        for (var d = lane; d < D; d += #{WG}u) {
            let row = (kv + d) * p.kv4 + first + start;
            var sum = vec4<f32>();
            for (var i = 0u; i < live; i += 1u) {
                let values = select(vec4<f32>(), v[row + i], seen_of(4u * (start + i)));
                sum += block[i] * values;
            }
            let at = (head + d) * p.q_tokens + sequence;
            var before = 0.0;
            if start > begin {
                before = o[at] * fix;
            }
            o[at] = before + dot(sum, vec4<f32>(1.0));
        }
        workgroupBarrier();
    }
    for (var d = lane; d < D; d += #{WG}u) {
        o[(head + d) * p.q_tokens + sequence] /= l;
    }
}
