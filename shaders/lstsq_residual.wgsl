// Start, or fresh start, of the conjugate gradients that repair the kept weights of each row (src/kernel/lstsq.rs):
//
//   r = q + lambda c  on the kept columns, 0 on the others     the true residual, with q = c H just computed
//   p = inverse * r                                            the first direction
//   state = (r . p, c . q + lambda |c_S|^2, c . q at the start, c . q)        S: the kept columns
//
// c is the change that a row's weights have undergone: w where pruned, minus the change of the kept ones elsewhere; so c . q
// is the row's error, and the second number its damped error. Where a fresh start finds an error above the first one (rounding, of a row with nothing to gain), the
// kept weights of the row go back to what they were.
//
// c, q, r, p [n, k4] vec4, inverse [k4] vec4, bits [all rows, words], state [n]. One workgroup per row, sums by a fixed tree.
// Dispatch: one workgroup per row, the grid folded into two dimensions.

struct Params {
    n: u32,
    k4: u32,
    words: u32,    // mask words per row
    bit_row: u32,  // row of the mask that row 0 is
    c_first: u32,  // vec4 of c at which row 0 starts
    start: u32,    // 1: nothing is in the state yet
    lambda: f32,
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

var<workgroup> sh_sum: array<vec2<f32>, #{LANES}>;
var<workgroup> sh_state: vec4<f32>;

fn kept(row: u32, k: u32) -> vec4<bool> {
    let word = bits[(p.bit_row + row) * p.words + k / 8u] >> ((k % 8u) * 4u);
    return (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = wg.y * grid.x + wg.x;
    let rc = min(row, p.n - 1u);
    // The state passes through workgroup memory, which the barriers order; a storage buffer they do not.
    if lane == 0u {
        sh_state = state[rc];
    }
    var sum = vec2<f32>();
    for (var k = lane; k < p.k4; k += #{LANES}u) {
        let c = change[p.c_first + rc * p.k4 + k];
        let on = select(vec4<f32>(), c, kept(rc, k));
        sum += vec2(dot(c, product[rc * p.k4 + k]), dot(on, on));
    }
    sh_sum[lane] = sum;
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    workgroupBarrier();
    let error = sh_sum[0].x;
    let damped = error + p.lambda * sh_sum[0].y;
    let before = select(sh_state.z, error, p.start != 0u);
    let worse = error > before;
    workgroupBarrier();

    // A workgroup behind the last row touches nothing.
    let end = select(0u, p.k4, row < p.n);
    var size = 0.0;
    for (var k = lane; k < end; k += #{LANES}u) {
        let i = row * p.k4 + k;
        let on = kept(row, k);
        let c = change[p.c_first + i];
        var r = select(vec4<f32>(), product[i] + p.lambda * c, on);
        if worse {
            change[p.c_first + i] = select(c, vec4<f32>(), on);
            r = vec4<f32>();
        }
        let y = inverse[k] * r;
        residual[i] = r;
        direction[i] = y;
        size += dot(r, y);
    }
    sh_sum[lane] = vec2(size, 0.0);
    for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sh_sum[lane] += sh_sum[lane + half];
        }
    }
    if lane == 0u && row < p.n {
        state[row] = vec4<f32>(sh_sum[0].x, select(damped, before, worse), before, min(error, before));
    }
}
