// out[h] += sum over real tokens of x[h, t]^2: the squared input norms of Wanda.
//
// One workgroup per feature; each invocation adds a fixed set of tokens, then a fixed tree in workgroup memory. Tokens at
// positions >= length of their window are padding and do not count.
// x [rows, t4] vec4 over tokens, out [rows]. Dispatch: one workgroup per row, the grid folded into two dimensions.

struct Params {
    rows: u32,
    t4: u32,
    window4: u32,  // padded window length / 4
    length: u32,   // real tokens of a window
    out_row: u32,  // element of out that row 0 adds to
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // [rows, t4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;      // [rows]

var<workgroup> sh_sum: array<f32, #{LANES}>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = wg.y * grid.x + wg.x;
    let rc = min(row, p.rows - 1u);
    var sum = 0.0;
    for (var t = lane; t < p.t4; t += #{LANES}u) {
        let v = x[rc * p.t4 + t];
        let position = vec4<u32>((t % p.window4) * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
        let real = select(vec4<f32>(), v, position < vec4<u32>(p.length));
        sum += dot(real, real);
    }
    sh_sum[lane] = sum;
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    if lane == 0u && row < p.rows {
        out[p.out_row + row] += sh_sum[0];
    }
}
