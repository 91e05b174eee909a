// out[r] = sum_j a[r, j] b[r, j]: with a = the change of the weights and b = its product with the Gram matrix, the squared
// output error of each row.
//
// a, b [n, k4] vec4, out [rows]. One workgroup per row: each invocation adds a fixed set of columns, then a fixed tree.
// Dispatch: one workgroup per row, the grid folded into two dimensions.

struct Params {
    n: u32,
    k4: u32,
    out_row: u32,  // element of out that row 0 is
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;      // [n, k4]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;      // [n, k4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;    // [rows]

var<workgroup> sh_sum: array<f32, #{LANES}>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = wg.y * grid.x + wg.x;
    let rc = min(row, p.n - 1u);
    var sum = 0.0;
    for (var k = lane; k < p.k4; k += #{LANES}u) {
        sum += dot(a[rc * p.k4 + k], b[rc * p.k4 + k]);
    }
    sh_sum[lane] = sum;
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    if lane == 0u && row < p.n {
        out[p.out_row + row] = sh_sum[0];
    }
}
