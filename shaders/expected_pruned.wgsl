// The expected pruned weights of rows whose masks are drawn: z = W * (1 - inclusion probability), the mask's law that of #{N} draws
// without replacement from the softmax of each group's logits (MaskPro).
//
// M <= 8: exact (shared/draws.wgsl). M = 16: the mean over `draws` draws of the chance of each weight to be pruned given the noise of the
// others (shared/arrivals.wgsl): without bias, and expected_step makes the same draws again.
//
// W [rows, k4] packed by four (shared/weights.wgsl); logits [rows, cols] f32; out [rows, k4] vec4, of which some columns are
// written; with CHANGE their new values less the old ones go to change [rows, columns / 4] vec4.
// Dispatch: one invocation per span of max(M, 4) columns of a row, the grid folded into two dimensions.
// Needs: finite logits within +-100.

#import maskwright::weights::unpack
#import maskwright::groups::{QUADS, flat_index}
#if M == 16
#import maskwright::arrivals::draw
#else
#import maskwright::draws::{rates, inclusion}
#if M == 4
#import maskwright::draws::pair_inclusion
#endif
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
    first_span: u32, // of a row that is written,
    spans: u32,      // and their number
    change_at: u32,  // vec4 of change at which row 0 starts
    pad0: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
#endif
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
#ifdef CHANGE
@group(0) @binding(4) var<storage, read_write> change: array<vec4<f32>>;
#endif

// q: vec4 of the columns that are written.
fn put(row: u32, q: u32, value: vec4<f32>) {
    let k = p.out_at + row * p.k4 + p.first_span * QUADS + q;
#ifdef CHANGE
    change[p.change_at + row * p.spans * QUADS + q] = value - out[k];
#endif
    out[k] = value;
}

#if M < 16
fn pruned(at: u32) -> array<f32, #{M}> {
    var l: array<f32, #{M}>;
    for (var i = 0u; i < #{M}u; i += 1u) {
        l[i] = logits[at + i];
    }
#if PAIR == 1
    let four = pair_inclusion(vec4(l[0], l[1], l[2], l[3]));
    var kept = array<f32, #{M}>(four.x, four.y, four.z, four.w);
#else
    var kept = inclusion(rates(l));
#endif
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
    if i < p.rows * p.spans {
        let row = i / p.spans;
        let nth = i - row * p.spans;
        let span = p.first_span + nth;
        let at = p.logits_at + row * p.cols;
        let k = p.w_first + row * p.k4 + span * QUADS;
#if M == 2
        // where a row ends in half a four, the other half is any group of the row: the weights there are 0
        var one = pruned(at + 4u * span);
        var two = pruned(at + min(4u * span + 2u, p.cols - 2u));
        put(row, nth, vec4(one[0], one[1], two[0], two[1]) * unpack(w[k]));
#else
#if M == 16
        var l: array<vec4<f32>, QUADS>;
        for (var q = 0u; q < QUADS; q += 1u) {
            let j = at + 16u * span + 4u * q;
            l[q] = vec4(logits[j], logits[j + 1u], logits[j + 2u], logits[j + 3u]);
        }
        var share: array<vec4<f32>, QUADS>;
        let group = (p.first_row + row) * (p.cols / 16u) + span;
        for (var d = 0u; d < p.draws; d += 1u) {
            var drawn = draw(l, vec3(p.step, p.projection, group), vec2(p.seed_lo, p.seed_hi), d);
            for (var q = 0u; q < QUADS; q += 1u) {
                share[q] += exp(-drawn.odds[q]);
            }
        }
        let mean = 1.0 / f32(p.draws);
        for (var q = 0u; q < QUADS; q += 1u) {
            put(row, QUADS * nth + q, mean * share[q] * unpack(w[k + q]));
        }
#else
        var share = pruned(at + #{M}u * span);
        for (var q = 0u; q < QUADS; q += 1u) {
            let four = vec4(share[4u * q], share[4u * q + 1u], share[4u * q + 2u], share[4u * q + 3u]);
            put(row, QUADS * nth + q, four * unpack(w[k + q]));
        }
#endif
#endif
    }
}
