// The expected pruned weights of rows whose masks are drawn: z = W * (1 - inclusion probability), the mask's law that of #{N} draws
// without replacement from the softmax of each group's logits (MaskPro).
//
// M <= 8: exact (shared/draws.wgsl). M = 16: the mean over `draws` draws of the chance of each weight to be pruned given the noise of the
// others (shared/arrivals.wgsl): without bias, and expected_step makes the same draws again.
//
// W [rows, k4] packed by four (shared/weights.wgsl); logits [rows, cols] f32; out [rows, k4] vec4, of which the columns of the groups
// are written. Dispatch: one invocation per span of max(M, 4) columns of a row, the grid folded into two dimensions.
// Needs: finite logits within +-100.

#import maskwright::weights::unpack
#import maskwright::groups::{QUADS, flat_index}
#if M == 16
#import maskwright::arrivals::draw
#else
#import maskwright::draws::{rates, inclusion}
#endif

struct Params {
    rows: u32,
    cols: u32,
    k4: u32,
    w_first: u32,    // packed element of W at which row 0 starts
    logits_at: u32,  // element of the bound logits at which row 0 starts
    out_at: u32,     // vec4 of out at which row 0 starts
    first_row: u32,  // row of the tensor that row 0 is
    draws: u32,
    step: u32,
    projection: u32,
    seed_lo: u32,
    seed_hi: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

#if M < 16
fn pruned(at: u32) -> array<f32, #{M}> {
    var l: array<f32, #{M}>;
    for (var i = 0u; i < #{M}u; i += 1u) {
        l[i] = logits[at + i];
    }
    var kept = inclusion(rates(l));
    for (var i = 0u; i < #{M}u; i += 1u) {
        kept[i] = 1.0 - kept[i];
    }
    return kept;
}
#endif

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
#if M == 2
    let spans = p.k4;
#else
    let spans = p.cols / #{M}u;
#endif
    if i < p.rows * spans {
        let row = i / spans;
        let span = i - row * spans;
        let at = p.logits_at + row * p.cols;
#if M == 2
        // where a row ends in half a quad, the other half is any group of the row: the weights there are 0
        var one = pruned(at + 4u * span);
        var two = pruned(at + min(4u * span + 2u, p.cols - 2u));
        let share = vec4(one[0], one[1], two[0], two[1]);
        out[p.out_at + row * p.k4 + span] = share * unpack(w[p.w_first + row * p.k4 + span]);
#else
#if M == 16
        var l: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            let k = at + 16u * span + 4u * q;
            l[q] = vec4(logits[k], logits[k + 1u], logits[k + 2u], logits[k + 3u]);
        }
        var share: array<vec4<f32>, QUADS>;
        let group = (p.first_row + row) * spans + span;
        for (var d = 0u; d < p.draws; d += 1u) {
            let drawn = draw(l, vec3(p.step, p.projection, group), vec2(p.seed_lo, p.seed_hi), d);
            for (var q = 0u; q < QUADS; q += 1u) {
                share[q] += exp(-drawn.odds[q]);
            }
        }
        let mean = 1.0 / f32(p.draws);
        for (var q = 0u; q < QUADS; q += 1u) {
            let k = row * p.k4 + QUADS * span + q;
            out[p.out_at + k] = mean * share[q] * unpack(w[p.w_first + k]);
        }
#else
        var share = pruned(at + #{M}u * span);
        for (var q = 0u; q < QUADS; q += 1u) {
            let k = row * p.k4 + QUADS * span + q;
            let quad = vec4(share[4u * q], share[4u * q + 1u], share[4u * q + 2u], share[4u * q + 3u]);
            out[p.out_at + k] = quad * unpack(w[p.w_first + k]);
        }
#endif
#endif
    }
}
