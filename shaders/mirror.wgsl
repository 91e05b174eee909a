// h[j, i] = h[i, j] for i > j: completes a symmetric matrix of which the lower triangle was computed.
//
// h [n, stride4] vec4, of which the square of columns 4 * at4 .. 4 * at4 + n is mirrored. Each invocation moves one block of 4 x 4;
// blocks on the diagonal within themselves.
// Dispatch: (n / 4)^2 invocations, those of the upper triangle idle, the grid folded into two dimensions.

struct Params {
    n4: u32,
    stride4: u32,
    at4: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    let row4 = i / p.n4;
    let col4 = i % p.n4;
    if row4 < p.n4 && col4 <= row4 {
        let source = row4 * 4u * p.stride4 + p.at4 + col4;
        let block = mat4x4<f32>(h[source], h[source + p.stride4], h[source + 2u * p.stride4], h[source + 3u * p.stride4]);
        var mirrored = transpose(block);
        if row4 == col4 {
            // Columns of `block` are rows of h: below the diagonal they stay as they are.
            mirrored[1].x = block[1].x;
            mirrored[2].x = block[2].x;
            mirrored[2].y = block[2].y;
            mirrored[3].x = block[3].x;
            mirrored[3].y = block[3].y;
            mirrored[3].z = block[3].z;
        }
        let to = col4 * 4u * p.stride4 + p.at4 + row4;
        h[to] = mirrored[0];
        h[to + p.stride4] = mirrored[1];
        h[to + 2u * p.stride4] = mirrored[2];
        h[to + 3u * p.stride4] = mirrored[3];
    }
}
