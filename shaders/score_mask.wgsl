// The mask that keeps the #{N} highest scores of each group of #{M} weights, ties to the lower index. With h = diag(X X^T):
//
//   SCORE 0   |w|                                                      magnitude
//   SCORE 1   |w| sqrt(h_j)                                            Wanda (arXiv 2306.11695)
//   SCORE 2   (|w| / sum_j |w_rj| + |w| / sum_r |w_rj|) h_j^(1/4)      RIA with a = 1/2 (ICLR 2024), no channel permutation
//
// Scores are not negative, so their bit patterns as integers have their order. Magnitudes are the stored bits without the
// sign: nothing is computed, so no driver's rounding or treatment of subnormal numbers can change that mask.
//
// W [rows, k4] packed by four (shared/weights.wgsl), h [cols], row_sums [all rows], col_sums [cols];
// bits [all rows, words], bit c % 32 of word c / 32, the tail of a row 0. cols is a multiple of M.
// Dispatch: one invocation per word of the chunk's rows, workgroups of WG folded into two dimensions.
// Needs: weights, h and sums without NaN.

#import maskwright::groups::{QUADS, flat_index, top}
#import maskwright::weights::{unpack}

struct Params {
    rows: u32,     // of the chunk
    cols: u32,
    k4: u32,
    words: u32,    // mask words per row
    row: u32,      // row of the weight that the chunk's row 0 is
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
#if SCORE == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;              // [rows, k4], as bits
#else
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;              // [rows, k4]
#endif
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;              // [rows, k4]
#endif
@group(0) @binding(2) var<storage, read_write> bits: array<u32>;         // [all rows, words]
#if SCORE >= 1
@group(0) @binding(3) var<storage, read> h: array<vec4<f32>>;              // [k4]
#endif
#if SCORE == 2
@group(0) @binding(4) var<storage, read> row_sums: array<f32>;           // [all rows]
@group(0) @binding(5) var<storage, read> col_sums: array<vec4<f32>>;       // [k4]
#endif

// A row or column of zeros: 0 divided by the smallest normal number.
const TINY: f32 = 0x1p-126;

// Scores of the weights 4 * k .. 4 * k + 3 of a row, as integers in their order.
fn keys(row: u32, k: u32) -> vec4<i32> {
    let packed = w[row * p.k4 + k];
#if SCORE == 0
#if WEIGHT == 0
    return vec4<i32>(packed & vec4(0x7fffffffu));
#else
    return vec4<i32>(vec4(packed.x & 0x7fffu, (packed.x >> 16u) & 0x7fffu,
                          packed.y & 0x7fffu, (packed.y >> 16u) & 0x7fffu));
#endif
#else
    let size = abs(unpack(packed));
    let norm = sqrt(max(h[k], vec4<f32>()));
#if SCORE == 1
    let score = size * norm;
#else
    let relative = size / max(row_sums[p.row + row], TINY) + size / max(col_sums[k], vec4(TINY));
    let score = relative * sqrt(norm);
#endif
    // Without the sign bit: a product with -0 must not become the smallest integer.
    return vec4<i32>(bitcast<vec4<u32>>(score) & vec4(0x7fffffffu));
#endif
}

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i < p.rows * p.words {
        let row = i / p.words;
        let col = (i - row * p.words) * 32u;
        let groups = min(32u, p.cols - col) / #{M}u;
        var word = 0u;
        for (var g = 0u; g < groups; g += 1u) {
            var key: array<vec4<i32>, QUADS>;
#if M == 2
            // Two groups to a quad; the other half is filled with what never wins.
            let pair = keys(row, (col + g * 2u) / 4u);
            key[0] = vec4(select(pair.xy, pair.zw, g % 2u == 1u), vec2(-1));
#else
            for (var q = 0u; q < QUADS; q += 1u) {
                key[q] = keys(row, (col + g * #{M}u) / 4u + q);
            }
#endif
            word |= top(key) << (g * #{M}u);
        }
        bits[p.row * p.words + i] = word;
    }
}
