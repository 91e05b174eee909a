// Effective weights in f32, as they lie or transposed: W, W under a bit mask, or W times a soft mask made from logits on the way.
//
//   MASKING 0  W
//           1  W where the bit is 1, else +0.0;                                bits [rows, words]
//           2  W * soft top-N of gain * logit + noise * Gumbel;                logits [rows, cols] f32 (STATE 0) or f16 (STATE 1)
//              RELAXATION 0  softmaxes in rounds, 1  a subset of fixed size, 2  draws
//           3  W * sum_k y_k S_k, y = softmax(gain * logit + noise * Gumbel);  logits [rows, groups, COUNT] f32
// The formulas are in shared/soft.wgsl, shared/inclusion.wgsl and shared/patterns.wgsl; gain and noise contain 1 / (temperature * ln 2).
// Noise: word i % 4 of Philox4x32-10 with the counter (step, projection, quad, 16), quad = row * k4 + col / 4 over the whole tensor,
// for pattern k of a group word k % 4 with (step, projection, group, 32 + k / 4).
//
// W [rows, k4] packed by four (shared/weights.wgsl); out [rows, k4] vec4, or TRANSPOSED [cols, ceil(rows / 4)] vec4, absent rows 0.
// Dispatch: one invocation per span of max(M, 4) columns of a row (TRANSPOSED: of 4 rows), the grid folded into two dimensions.
// Needs: finite logits.

#import maskwright::weights::{unpack, keep}
#import maskwright::soft::{QUADS, soft_mask}
#if RELAXATION > 0
#import maskwright::inclusion::inclusion_mask
#endif
#import maskwright::patterns::{PAIRS, SLOTS, add_noise, soften, mixed}
#import maskwright::philox::philox4x32
#import maskwright::gumbel::gumbel4

struct Params {
    rows: u32,
    cols: u32,
    k4: u32,
    w_first: u32,    // packed element of W at which row 0 starts
    out_at: u32,     // vec4 of out at which row 0 starts
    out_stride: u32,
    out_rows: u32,   // TRANSPOSED: rows of out to write, at least cols
    first_row: u32,  // row of the tensor that row 0 is
    words: u32,      // mask words per row
    state_at: u32,   // element of the bound logits at which row 0 starts
    state_stride: u32, // elements of a row
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
    gain: f32,
    noise: f32,      // times a noise in Q8.24
    removal: f32,    // RELAXATION 0
    fours: u32,      // of the combinations of a group: ceil(COUNT / 4)
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
#if MASKING == 1
@group(0) @binding(3) var<storage, read> bits: array<u32>;
#endif
#if MASKING == 2
#if STATE == 0
#if M == 2
@group(0) @binding(3) var<storage, read> logits: array<vec2<f32>>;
#else
@group(0) @binding(3) var<storage, read> logits: array<vec4<f32>>;
#endif
#else
#if M == 2
@group(0) @binding(3) var<storage, read> logits: array<u32>;
#else
@group(0) @binding(3) var<storage, read> logits: array<vec2<u32>>;
#endif
#endif

fn logits_of(row: u32, k: u32) -> vec4<f32> {
    let at = p.state_at + row * p.state_stride;
#if M == 2
    // where a row ends in half a quad, the other half is any group of the row
    let one = at + 2u * k;
    let two = min(one + 1u, at + p.state_stride - 1u);
#if STATE == 0
    return vec4(logits[one], logits[two]);
#else
    return vec4(unpack2x16float(logits[one]), unpack2x16float(logits[two]));
#endif
#else
#if STATE == 0
    return logits[at + k];
#else
    let packed = logits[at + k];
    return vec4(unpack2x16float(packed.x), unpack2x16float(packed.y));
#endif
#endif
}

fn masks(row: u32, span: u32) -> array<vec4<f32>, QUADS> {
    var a: array<vec4<f32>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        let k = span * QUADS + q;
        a[q] = logits_of(row, k) * p.gain;
#ifdef NOISE
        let counter = vec4(p.step, p.projection, (p.first_row + row) * p.k4 + k, 16u);
        a[q] += vec4<f32>(gumbel4(philox4x32(counter, vec2(p.seed_lo, p.seed_hi)))) * p.noise;
#endif
    }
#if RELAXATION == 0
    return soft_mask(a, p.removal);
#else
    return inclusion_mask(a);
#endif
}
#endif
#if MASKING == 3
@group(0) @binding(3) var<storage, read> logits: array<vec2<f32>>;

fn group_mask(row: u32, group: u32) -> array<vec4<f32>, QUADS> {
    var y: array<vec2<f32>, SLOTS>;
    let at = p.state_at + row * p.state_stride + group * PAIRS;
    for (var k = 0u; k < PAIRS; k += 1u) {
        y[k] = logits[at + k] * p.gain;
    }
#ifdef NOISE
    let number = (p.first_row + row) * (p.cols / #{M}u) + group;
    add_noise(&y, vec3(p.step, p.projection, number), vec2(p.seed_lo, p.seed_hi), p.noise, p.fours);
#endif
    soften(&y);
    return mixed(&y);
}

fn masks(row: u32, span: u32) -> array<vec4<f32>, QUADS> {
#if M == 2
    let last = p.cols / 2u - 1u;
    let one = group_mask(row, 2u * span);
    let two = group_mask(row, min(2u * span + 1u, last));
    return array<vec4<f32>, QUADS>(vec4(one[0].xy, two[0].xy));
#else
    return group_mask(row, span);
#endif
}
#endif

fn weights_of(row: u32, span: u32) -> array<vec4<f32>, QUADS> {
    var out: array<vec4<f32>, QUADS>;
#if MASKING >= 2
    var soft = masks(row, span);
#endif
    for (var q = 0u; q < QUADS; q += 1u) {
        let k = span * QUADS + q;
        var packed = w[p.w_first + row * p.k4 + k];
#if MASKING == 1
        packed = keep(packed, bits[(p.first_row + row) * p.words + k / 8u] >> ((k % 8u) * 4u));
#endif
        out[q] = unpack(packed);
#if MASKING >= 2
        out[q] *= soft[q];
#endif
    }
    return out;
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    let spans = p.k4 / QUADS;
#ifdef TRANSPOSED
    if i < (p.rows + 3u) / 4u * spans {
        let row4 = i / spans;
        let span = i - row4 * spans;
        var block: array<vec4<f32>, 4u * QUADS>;
        for (var r = 0u; r < 4u; r += 1u) {
            let row = row4 * 4u + r;
            var values = weights_of(min(row, p.rows - 1u), span);
            for (var q = 0u; q < QUADS; q += 1u) {
                block[4u * q + r] = select(vec4<f32>(), values[q], row < p.rows);
            }
        }
        for (var q = 0u; q < QUADS; q += 1u) {
            let turned = transpose(mat4x4<f32>(block[4u * q], block[4u * q + 1u], block[4u * q + 2u], block[4u * q + 3u]));
            let col = (span * QUADS + q) * 4u;
            let to = p.out_at + col * p.out_stride + row4;
            out[to] = turned[0];
            if col + 1u < p.out_rows { out[to + p.out_stride] = turned[1]; }
            if col + 2u < p.out_rows { out[to + 2u * p.out_stride] = turned[2]; }
            if col + 3u < p.out_rows { out[to + 3u * p.out_stride] = turned[3]; }
        }
    }
#else
    if i < p.rows * spans {
        let row = i / spans;
        let span = i - row * spans;
        var values = weights_of(row, span);
        for (var q = 0u; q < QUADS; q += 1u) {
            out[p.out_at + row * p.out_stride + span * QUADS + q] = values[q];
        }
    }
#endif
}
