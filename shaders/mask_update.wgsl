// The policy-gradient step of MaskPro on one tensor's logits, fused with the score of the sampled mask:
//
//     logit_i <- clamp(logit_i + step_size * d log P(S) / d logit_i, +-100)
//
// P(S) is the unordered probability of the group's kept set S (shared/score.wgsl has the formulas); step_size is
// -rate * advantage, one number for the whole model. The clamp keeps the logits in the range of the sampler's fixed point.
//
// Shapes: logits [rows, cols] f32 (cols % M == 0), updated in place; bits [rows, words_per_row] u32 as mask_sample wrote them.
// Dispatch: one invocation per group, rows * cols / M in all, workgroups of WG folded into two dimensions.
// Needs: finite logits and step_size; exactly N bits per group.

#import maskwright::gumbel::LOGIT_LIMIT
#import maskwright::groups::{QUADS, flat_index}
#import maskwright::score::score

struct Params {
    // of this dispatch
    rows: u32,
    cols: u32,
    words_per_row: u32,
    // of row 0, in elements of the bound logits; a multiple of 4 (of 2 for M = 2)
    logits_offset: u32,
    // of row 0, in words of the bound bits
    words_offset: u32,
    // -rate * advantage
    step_size: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#if M == 2
@group(0) @binding(1) var<storage, read_write> logits: array<vec2<f32>>;
#else
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>;
#endif
@group(0) @binding(2) var<storage, read> bits: array<u32>;

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    let groups_per_row = params.cols / #{M}u;
    if i < params.rows * groups_per_row {
        let row = i / groups_per_row;
        let col = (i - row * groups_per_row) * #{M}u;
        let word = bits[params.words_offset + row * params.words_per_row + col / 32u];
        let kept = (word >> (col % 32u)) & ((1u << #{M}u) - 1u);
        let at = params.logits_offset + i * #{M}u;
        var l: array<vec4<f32>, QUADS>;
#if M == 2
        // the other half of the quad: two weights that are never drawn
        l[0] = vec4(logits[at / 2u], vec2(-1.0e30));
        let s = score(l, kept);
        logits[at / 2u] = clamp(l[0].xy + params.step_size * s[0].xy, vec2(-LOGIT_LIMIT), vec2(LOGIT_LIMIT));
#else
        for (var q = 0u; q < QUADS; q += 1u) {
            l[q] = logits[at / 4u + q];
        }
        let s = score(l, kept);
        for (var q = 0u; q < QUADS; q += 1u) {
            logits[at / 4u + q] = clamp(l[q] + params.step_size * s[q], vec4(-LOGIT_LIMIT), vec4(LOGIT_LIMIT));
        }
#endif
    }
}
