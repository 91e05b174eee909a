// out[row + i] = h[i, row + i]: the diagonal of some rows of a square matrix.
//
// h [n, stride] f32, out [size]. Dispatch: n invocations, the grid folded into two dimensions.

struct Params {
    n: u32,
    stride: u32,
    row: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.n {
        out[p.row + i] = h[i * p.stride + p.row + i];
    }
}
