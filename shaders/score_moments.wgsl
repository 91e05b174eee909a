// First and second moments of the gradient estimates of one tensor, for `variance`: with the score s = d log P(S) / d logits of one
// sampled mask and the advantages a_e of three estimators e (loss, residual, tracked),
//
//     sum_e += a_e * s,    sum_of_squares_e += (a_e * s)^2     for each weight.
//
// The sums are read back and divided by the number of samples on the host. Plain f32 sums: good for thousands of samples.
//
// Shapes: logits [rows, cols] f32 (cols % M == 0); bits [rows, words_per_row] u32; sums and squares [3, rows, cols] f32 each, in the
//         order loss, residual, tracked, zeroed before the first sample. The whole tensor is bound: this is for small models.
// Dispatch: one invocation per group, rows * cols / M in all, workgroups of WG folded into two dimensions.
// Needs: finite logits and advantages; exactly N bits per group.

#import maskwright::groups::{QUADS, flat_index}
#import maskwright::score::score

struct Params {
    rows: u32,
    cols: u32,
    words_per_row: u32,
    advantage_loss: f32,
    advantage_residual: f32,
    advantage_tracked: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#if M == 2
@group(0) @binding(1) var<storage, read> logits: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> squares: array<vec2<f32>>;
#else
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> squares: array<vec4<f32>>;
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
        let word = bits[row * params.words_per_row + col / 32u];
        let kept = (word >> (col % 32u)) & ((1u << #{M}u) - 1u);
        let advantages = vec3(params.advantage_loss, params.advantage_residual, params.advantage_tracked);
        var l: array<vec4<f32>, QUADS>;
#if M == 2
        l[0] = vec4(logits[i], vec2(-1.0e30));
        let s = score(l, kept);
        let tensor = params.rows * groups_per_row;
        for (var e = 0u; e < 3u; e += 1u) {
            let x = advantages[e] * s[0].xy;
            sums[e * tensor + i] += x;
            squares[e * tensor + i] += x * x;
        }
#else
        for (var q = 0u; q < QUADS; q += 1u) {
            l[q] = logits[i * QUADS + q];
        }
        let s = score(l, kept);
        let tensor = params.rows * groups_per_row * QUADS;
        for (var e = 0u; e < 3u; e += 1u) {
            for (var q = 0u; q < QUADS; q += 1u) {
                let x = advantages[e] * s[q];
                sums[e * tensor + i * QUADS + q] += x;
                squares[e * tensor + i * QUADS + q] += x * x;
            }
        }
#endif
    }
}
