// The diagonal of H + lambda I in the place of that of H:
//
//   h[i, i] = (h[i, i] == 0 ? 1 : h[i, i]) + lambda      a zero is that of an input that never varies (a dead one)
//
// h [rows, stride], of which row 0 is row `first` of H.
// Dispatch: rows invocations, the grid folded into two dimensions.

struct Params {
    rows: u32,
    stride: u32,
    first: u32,
    lambda: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> h: array<f32>;    // [rows, stride]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.rows {
        let at = i * p.stride + p.first + i;
        // The bits are compared, since a driver may take subnormal numbers for zeros and the host does not.
        let dead = (bitcast<u32>(h[at]) & 0x7fffffffu) == 0u;
        h[at] = select(h[at], 1.0, dead) + p.lambda;
    }
}
