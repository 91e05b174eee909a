// out[row + r] = sum_j |W[r, j]|: the row sums of RIA.
//
// W [rows, k4] packed by four (shared/weights.wgsl), padding elements 0; out [all rows]. One workgroup per row: each
// invocation adds a fixed set of columns, then a fixed tree.
// Dispatch: one workgroup per row, the grid folded into two dimensions.
#import maskwright::weights::{unpack}

struct Params {
    rows: u32,  // of the chunk
    k4: u32,
    row: u32,   // row of the weight that the chunk's row 0 is
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;            // [rows, k4]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;            // [rows, k4]
#endif
@group(0) @binding(2) var<storage, read_write> out: array<f32>;        // [all rows]

var<workgroup> sh_sum: array<f32, #{LANES}>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = wg.y * grid.x + wg.x;
    let rc = min(row, p.rows - 1u);
    var sum = 0.0;
    for (var k = lane; k < p.k4; k += #{LANES}u) {
        sum += dot(abs(unpack(w[rc * p.k4 + k])), vec4(1.0));
    }
    sh_sum[lane] = sum;
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    if lane == 0u && row < p.rows {
        out[p.row + row] = sh_sum[0];
    }
}
