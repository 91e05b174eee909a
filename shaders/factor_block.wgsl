// A diagonal block A = R R^T with R upper triangular, and D = R^-1 in its place: one step of a blocked Cholesky factorisation that
// starts at the last row.
//
// For j = last .. 0:  R_jj = sqrt(A_jj),  R_ij = A_ij / R_jj,  A_ik -= R_ij R_kj  (i <= k < j).
// Then column by column, from the diagonal up:  D_jj = 1 / R_jj,  D_ij = -D_ii sum_{i < k <= j} R_ik D_kj.
//
// h [.., stride4] vec4, of which the block's upper triangle is read; the whole block is written, with zeros below the
// diagonal, and zeros on its left, where updates by rectangles have left sums.
// out [rows, out_stride4] vec4, a copy of D.
// status [1]: 1 + the row of the first pivot that is not a positive normal number. Such a pivot counts as 1, so that no NaN
// spreads; what is computed from it is of no use.
//
// Workgroup memory: 64 x 64 f32 = 16 KiB. Below the diagonal lie A and then R, transposed, so that neighbouring invocations
// read neighbouring words in every step; on the diagonal the pivots, then D_jj; above it D, once R is complete.
// Dispatch: one workgroup. rows <= 64, a multiple of 4.

struct Params {
    rows: u32,
    at: u32,          // vec4 of h at which the block starts
    stride4: u32,
    row: u32,         // row of the whole matrix that row 0 is
    out_stride4: u32,
    left4: u32,       // vec4s on the left of the block
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> status: array<u32>;

const SIDE = 64u;
var<workgroup> sh: array<f32, 4096>;

// By the bits: a compiler may take it that there are no NaN.
fn usable(pivot: f32) -> bool {
    let bits = bitcast<u32>(pivot);
    return bits >= 0x00800000u && bits < 0x7f800000u;
}

fn inverse_root(pivot: f32) -> f32 {
    return 1.0 / sqrt(select(1.0, pivot, usable(pivot)));
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(local_invocation_index) lane: u32) {
    let side4 = p.rows / 4u;
    for (var e = lane; e < p.rows * side4; e += #{LANES}u) {
        let i = e / side4;
        let k = e % side4 * 4u;
        let value = h[p.at + i * p.stride4 + k / 4u];
        sh[(k + 0u) * SIDE + i] = value.x;
        sh[(k + 1u) * SIDE + i] = value.y;
        sh[(k + 2u) * SIDE + i] = value.z;
        sh[(k + 3u) * SIDE + i] = value.w;
    }
    for (var step = 0u; step < p.rows; step += 1u) {
        let j = p.rows - 1u - step;
        workgroupBarrier();
        // The pivot stays as it is until the end: all invocations read it.
        let pivot = sh[j * SIDE + j];
        let scale = inverse_root(pivot);
        if lane == 0u && !usable(pivot) && status[0] == 0u {
            status[0] = p.row + j + 1u;
        }
        for (var i = lane; i < j; i += #{LANES}u) {
            sh[j * SIDE + i] *= scale;
        }
        workgroupBarrier();
        for (var e = lane; e < j * SIDE; e += #{LANES}u) {
            let k = e / SIDE;
            let i = e % SIDE;
            if i <= k {
                sh[e] -= sh[j * SIDE + i] * sh[j * SIDE + k];
            }
        }
    }
    workgroupBarrier();
    for (var j = lane; j < p.rows; j += #{LANES}u) {
        sh[j * SIDE + j] = inverse_root(sh[j * SIDE + j]);
    }
    workgroupBarrier();
    // One column of D an invocation: it reads R, which all share, and its own column.
    for (var j = lane; j < p.rows; j += #{LANES}u) {
        for (var step = 0u; step < p.rows; step += 1u) {
            let i = p.rows - 1u - step;
            var sum = 0.0;
            for (var k = i + 1u; k < p.rows; k += 1u) {
                sum += sh[k * SIDE + i] * select(0.0, sh[k * SIDE + j], k <= j);
            }
            if i < j {
                sh[i * SIDE + j] = -sh[i * SIDE + i] * sum;
            }
        }
    }
    workgroupBarrier();
    for (var e = lane; e < p.rows * side4; e += #{LANES}u) {
        let i = e / side4;
        let k4 = e % side4;
        let at = i * SIDE + k4 * 4u;
        let value = vec4<f32>(sh[at], sh[at + 1u], sh[at + 2u], sh[at + 3u]);
        let upper = select(vec4<f32>(), value, k4 * 4u + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(i));
        h[p.at + i * p.stride4 + k4] = upper;
        out[i * p.out_stride4 + k4] = upper;
    }
    for (var e = lane; e < p.rows * p.left4; e += #{LANES}u) {
        h[p.at - p.left4 + e / p.left4 * p.stride4 + e % p.left4] = vec4<f32>();
    }
}
