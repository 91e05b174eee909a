// The most probable strict #{N}:#{M} mask: the #{N} greatest logits of each group, ties to the lower index.
//
// The logits are bound as bit patterns and compared as integers (sign-magnitude turned into two's complement, -0 counted
// as 0), so that no driver's treatment of subnormal numbers can change the order.
//
// Shapes: logits [rows, cols] f32 (cols % M == 0), bits [rows, words_per_row] u32, words_per_row = ceil(cols / 32), tail bits 0.
// Dispatch: one invocation per word of bits, rows * words_per_row in all, workgroups of WG folded into two dimensions.
// Needs: logits without NaN.

#import maskwright::groups::{QUADS, flat_index, top}

struct Params {
    rows: u32,
    cols: u32,
    words_per_row: u32,
    // of row 0, in elements of the bound logits; a multiple of 4 (of 2 for M = 2)
    logits_offset: u32,
    // of row 0, in words of the bound bits
    words_offset: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#if M == 2
@group(0) @binding(1) var<storage, read> logits: array<vec2<u32>>;
#else
@group(0) @binding(1) var<storage, read> logits: array<vec4<u32>>;
#endif
@group(0) @binding(2) var<storage, read_write> bits: array<u32>;

// Integers in the order of the numbers whose bit patterns are given.
fn ordered(pattern: vec4<u32>) -> vec4<i32> {
    let magnitude = vec4<i32>(pattern & vec4(0x7fffffffu));
    return select(magnitude, -magnitude, pattern >= vec4(0x80000000u));
}

fn keys(at: u32) -> vec4<i32> {
#if M == 2
    return vec4(ordered(vec4(logits[at / 2u], 0u, 0u)).xy, vec2(-0x7fffffff));
#else
    return ordered(logits[at / 4u]);
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
        var word = 0u;
        for (var g = 0u; g < groups; g += 1u) {
            var k: array<vec4<i32>, QUADS>;
            for (var q = 0u; q < QUADS; q += 1u) {
                k[q] = keys(at + g * #{M}u + q * 4u);
            }
            word |= top(k) << (g * #{M}u);
        }
        bits[params.words_offset + i] = word;
    }
}
