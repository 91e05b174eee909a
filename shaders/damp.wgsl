// Makes of a copy of the symmetric matrix H the upper triangle of H + lambda I, zeros below it, before it is factored in place.
//
//   h[i, i] = (h[i, i] == 0 ? 1 : h[i, i]) + lambda      a zero on the diagonal is an input that never varies (a dead one)
//   h[i, j] = 0 for j < i
//
// h [rows, stride4] vec4, of which row 0 is row `first` of H.
// Dispatch: rows * stride4 invocations, the grid folded into two dimensions.

struct Params {
    rows: u32,
    stride4: u32,
    first: u32,
    lambda: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>;    // [rows, stride4]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.rows * p.stride4 {
        let row = p.first + i / p.stride4;
        let col = i % p.stride4 * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        if col.x <= row {
            let value = h[i];
            // The bits are compared, since a driver may take subnormal numbers for zeros and the host does not.
            let dead = (bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu)) == vec4<u32>();
            let damped = select(value, vec4<f32>(1.0), dead) + p.lambda;
            h[i] = select(select(value, vec4<f32>(), col < vec4<u32>(row)), damped, col == vec4<u32>(row));
        }
    }
}
