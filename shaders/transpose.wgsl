// out[c, r] = scale * x[r, c], by blocks of 4 x 4; columns that pad a window read as zero.
//
// x [4 * rows4, cols4] vec4, out [4 * cols4, rows4] vec4; both may be parts of larger matrices.
// Dispatch: rows4 * cols4 invocations, neighbours along the columns of x, the grid folded into two dimensions.

struct Params {
    rows4: u32,
    cols4: u32,
    x_at: u32,        // vec4 at which row 0 starts
    x_stride: u32,    // vec4s from one row to the next
    out_at: u32,
    out_stride: u32,
    window4: u32,     // padded window length / 4, 0 = no windows
    length: u32,      // real columns of a window
    col4: u32,        // first vec4 of columns, counted from the start of the first window
    scale: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.rows4 * p.cols4 {
        let row4 = i / p.cols4;
        let col4 = i % p.cols4;
        let source = p.x_at + row4 * 4u * p.x_stride + col4;
        var block = transpose(mat4x4<f32>(
            x[source], x[source + p.x_stride], x[source + 2u * p.x_stride], x[source + 3u * p.x_stride]));
        if p.window4 > 0u {
            let position = (p.col4 + col4) % p.window4 * 4u;
            if position >= p.length { block[0] = vec4<f32>(); }
            if position + 1u >= p.length { block[1] = vec4<f32>(); }
            if position + 2u >= p.length { block[2] = vec4<f32>(); }
            if position + 3u >= p.length { block[3] = vec4<f32>(); }
        }
        let to = p.out_at + col4 * 4u * p.out_stride + row4;
        out[to] = block[0] * p.scale;
        out[to + p.out_stride] = block[1] * p.scale;
        out[to + 2u * p.out_stride] = block[2] * p.scale;
        out[to + 3u * p.out_stride] = block[3] * p.scale;
    }
}
