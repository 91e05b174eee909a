// Copies runs of columns (tokens) of one activation into another, such as new keys into a cache:
//   to[r, w * to_window + to_at + i] = from[r, w * from_window + from_at + i]   for r < rows, w < windows, i < length
//
// from [rows, from_tokens], to [rows, to_tokens] f32.
// Dispatch: rows * windows * length invocations, the grid folded into two dimensions.

struct Params {
    count: u32,        // rows * windows * length
    columns: u32,      // windows * length
    length: u32,
    from_tokens: u32,
    from_window: u32,  // tokens from one window to the next
    from_at: u32,
    to_tokens: u32,
    to_window: u32,
    to_at: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> from_columns: array<f32>;      // [rows, from_tokens]
@group(0) @binding(2) var<storage, read_write> to_columns: array<f32>;  // [rows, to_tokens]

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let n = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if n < p.count {
        let row = n / p.columns;
        let column = n % p.columns;
        let w = column / p.length;
        let i = column % p.length;
        to_columns[row * p.to_tokens + w * p.to_window + p.to_at + i] =
            from_columns[row * p.from_tokens + w * p.from_window + p.from_at + i];
    }
}
