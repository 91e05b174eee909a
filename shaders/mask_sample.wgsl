// One strict #{N}:#{M} mask of a tensor, drawn from its logits.
//
//     kept(group) = the #{N} greatest of  logit_i + gumbel_i,  ties to the lower index
//
// which has exactly the law of #{N} draws without replacement from softmax(logits of the group). All in integers: equal
// logits, seed, step and projection give equal bits on every vendor (the twin is src/mask/gumbel.rs).
//
// Noise of weight i of a group: word i % 4 of Philox4x32-10 with
//     counter = (step, projection, group, i / 4),   key = (seed_lo, seed_hi),
// group counted row by row over the whole tensor, so that row chunks of a tensor draw the same mask as the whole.
//
// Shapes: logits [rows, cols] f32 (cols % M == 0), bits [rows, words_per_row] u32, words_per_row = ceil(cols / 32), bit c % 32
//         of word c / 32, tail bits 0.
// Dispatch: one invocation per word of bits, rows * words_per_row in all, workgroups of WG folded into two dimensions.
// Needs: finite logits; those beyond +-100 count as +-100.

#import maskwright::philox::philox4x32
#import maskwright::gumbel::{fixed4, gumbel4}
#import maskwright::groups::{QUADS, flat_index, top}

struct Params {
    // of this dispatch
    rows: u32,
    cols: u32,
    words_per_row: u32,
    // row of the tensor that is row 0 here
    first_row: u32,
    // of row 0, in elements of the bound logits; a multiple of 4 (of 2 for M = 2)
    logits_offset: u32,
    // of row 0, in words of the bound bits
    words_offset: u32,
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#if M == 2
@group(0) @binding(1) var<storage, read> logits: array<vec2<f32>>;
#else
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
#endif
@group(0) @binding(2) var<storage, read_write> bits: array<u32>;

// Key of four weights; `at` is the first one's element in the bound logits.
fn keys(at: u32, noise: vec4<i32>) -> vec4<i32> {
#if M == 2
    return vec4(fixed4(vec4(logits[at / 2u], 0.0, 0.0)).xy + noise.xy, vec2(-0x7fffffff));
#else
    return fixed4(logits[at / 4u]) + noise;
#endif
}

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i < params.rows * params.words_per_row {
        let row = i / params.words_per_row;
        let col = (i - row * params.words_per_row) * 32u;
        let groups = min(32u, params.cols - col) / #{M}u;
        let at = params.logits_offset + row * params.cols + col;
        let group = (params.first_row + row) * (params.cols / #{M}u) + col / #{M}u;
        let seed = vec2(params.seed_lo, params.seed_hi);
        var word = 0u;
        for (var g = 0u; g < groups; g += 1u) {
            var k: array<vec4<i32>, QUADS>;
            for (var q = 0u; q < QUADS; q += 1u) {
                let random = philox4x32(vec4(params.step, params.projection, group + g, q), seed);
                k[q] = keys(at + g * #{M}u + q * 4u, gumbel4(random));
            }
            word |= top(k) << (g * #{M}u);
        }
        bits[params.words_offset + i] = word;
    }
}
