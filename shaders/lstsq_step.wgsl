// One step of the conjugate gradients that repair the kept weights of each row (src/kernel/lstsq.rs), with q = p H just
// computed, A p = q + lambda p on the kept columns and 0 on the others:
//
//   alpha = r . y / p . A p,  c -= alpha p,  r -= alpha A p,  y = inverse * r,  beta = r . y / (r . y before),  p = y + beta p
//
// state.x = r . y; state.y = the row's damped error, which a step lowers by alpha r . y; state.z = its error at the start. A row
// rests once r . y has fallen to tolerance2 of state.y; and when p . A p is no more than what rounding leaves of p . D p (D =
// 1 / inverse, the diagonal of A): state.x then becomes negative.
//
// q, c, r, p [n, k4] vec4, inverse [k4] vec4, bits [all rows, words], state [n]. One workgroup per row; an invocation reads and
// writes its own columns only; sums by a fixed tree.
// Dispatch: one workgroup per row, the grid folded into two dimensions.

struct Params {
    n: u32,
    k4: u32,
    words: u32,    // mask words per row
    bit_row: u32,  // row of the mask that row 0 is
    c_first: u32,  // vec4 of c at which row 0 starts
    lambda: f32,
    tolerance2: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> bits: array<u32>;
@group(0) @binding(2) var<storage, read> inverse: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> change: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> direction: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>;

// What the damped error is worth at least, of the error at the start: f32 does not know it better.
const FLOOR: f32 = 0x1p-20;
// Below this share the curvature along a direction is rounding: about 4 roundings of f32.
const NOISE: f32 = 0x1p-22;

var<workgroup> sh_sum: array<vec2<f32>, #{LANES}>;
var<workgroup> sh_state: vec4<f32>;

// A p from q and p.
fn applied(row: u32, k: u32) -> vec4<f32> {
    let word = bits[(p.bit_row + row) * p.words + k / 8u] >> ((k % 8u) * 4u);
    let i = row * p.k4 + k;
    let on = (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
    return select(vec4<f32>(), product[i] + p.lambda * direction[i], on);
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = wg.y * grid.x + wg.x;
    // The state passes through workgroup memory, which the barriers order; a storage buffer they do not.
    if lane == 0u {
        sh_state = state[min(row, p.n - 1u)];
    }
    workgroupBarrier();
    let before = sh_state;
    let moving = row < p.n && before.x > p.tolerance2 * before.y;
    // The same for the whole workgroup: a row at rest reads and writes nothing.
    let end = select(0u, p.k4, moving);

    var sum = vec2<f32>();
    for (var k = lane; k < end; k += #{LANES}u) {
        let d = direction[row * p.k4 + k];
        let scale = inverse[k];
        // A direction is 0 where inverse is.
        let diagonal = 1.0 / select(scale, vec4(1.0), scale == vec4<f32>());
        sum += vec2(dot(d, applied(row, k)), dot(d * diagonal, d));
    }
    sh_sum[lane] = sum;
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    workgroupBarrier();
    let curvature = sh_sum[0];
    let flat = !(curvature.x > NOISE * curvature.y);
    var alpha = 0.0;
    if moving && !flat {
        alpha = before.x / curvature.x;
    }
    workgroupBarrier();

    var size = 0.0;
    for (var k = lane; k < end; k += #{LANES}u) {
        let i = row * p.k4 + k;
        change[p.c_first + i] -= alpha * direction[i];
        let r = residual[i] - alpha * applied(row, k);
        residual[i] = r;
        size += dot(r, inverse[k] * r);
    }
    sh_sum[lane] = vec2(size, 0.0);
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    workgroupBarrier();
    size = sh_sum[0].x;
    var beta = 0.0;
    if moving {
        beta = size / before.x;
    }
    for (var k = lane; k < end; k += #{LANES}u) {
        let i = row * p.k4 + k;
        direction[i] = inverse[k] * residual[i] + beta * direction[i];
    }
    if lane == 0u && moving {
        let damped = max(before.y - alpha * before.x, FLOOR * before.z);
        state[row] = vec4<f32>(select(size, -before.x, flat), damped, before.zw);
    }
}
