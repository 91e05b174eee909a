// Y[n, t] (+)= sum_k (W[n, k] * mask[n, k]) X[k, t] (+ bias[n]), the preset of GPUs.
//
// Tile 64 rows x 64 tokens, 16 inputs a step, 256 invocations of 4 rows x 4 tokens (one vec4 of tokens). The mask is
// applied while the weight tile is loaded, so the masked product costs what the dense one costs.
// Workgroup memory: weights transposed to [16][16 + 1] vec4 over rows (the pad keeps the four k of one load in different
// banks), inputs [16][16] vec4 over tokens: 8.4 KiB.
//
// W [n, k4] packed by four (shared/weights.wgsl), bits [rows, words], X [k, t4] vec4 over tokens, Y [n, t4], bias [n].
// Dispatch: [ceil(t4 / 16), ceil(n / 64), 1]. Edges: clamped loads, zeros for k beyond the end, guarded stores.
#import maskwright::weights::{unpack, keep}

struct Params {
    n: u32,        // rows of W and Y in this dispatch
    k4: u32,       // inputs / 4
    t4: u32,       // tokens / 4
    w_stride: u32, // packed elements from one row of W to the next
    w_first: u32,  // packed element at which row 0 starts (the input range may start inside a row)
    x_at: u32,     // vec4 of X at which row 0 starts, and from one row to the next
    x_stride: u32,
    y_at: u32,     // the same of Y
    y_stride: u32,
    bias_row: u32, // first element of bias
    pad0: u32,
    pad1: u32,
    bit_row: u32,  // row of the mask that row 0 of W is
    bit_k4: u32,   // input / 4 of the mask that input 0 is
    words: u32,    // mask words per row
    flip: u32,     // all ones: the bits mark the weights that do not count
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;            // [n, w_stride]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;            // [n, w_stride]
#endif
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;          // [k, t4]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;    // [n, t4]
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // [n]
#endif
#ifdef MASK
@group(0) @binding(5) var<storage, read> bits: array<u32>;             // [rows, words]
#endif

const STEP = 16u;             // inputs a step
const W_STRIDE = 17u;         // vec4 of rows per input, padded
var<workgroup> sh_w: array<vec4<f32>, 272>;
var<workgroup> sh_x: array<vec4<f32>, 256>;

fn load_w(row: u32, k: u32) -> vec4<f32> {
    let rc = min(row, p.n - 1u);
    let kc = min(k, p.k4 - 1u);
    var packed = w[p.w_first + rc * p.w_stride + kc];
#ifdef MASK
    let at = p.bit_k4 + kc;
    packed = keep(packed, (bits[(p.bit_row + rc) * p.words + at / 8u] ^ p.flip) >> ((at % 8u) * 4u));
#endif
    return select(vec4<f32>(), unpack(packed), k < p.k4);
}

fn store(r: u32, t: u32, value: vec4<f32>) {
    if r < p.n && t < p.t4 {
        let at = p.y_at + r * p.y_stride + t;
        var v = value;
#ifdef BIAS
        v += bias[p.bias_row + r];
#endif
#ifdef ACCUMULATE
        v += y[at];
#endif
        y[at] = v;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let lt = lane % 16u;           // vec4 of tokens in the tile
    let lr = lane / 16u;           // vec4 of rows in the tile; also the input this invocation loads of X
    let t = wg.x * 16u + lt;
    let tc = min(t, p.t4 - 1u);
    let r = wg.y * 64u;
    // The first 64 invocations each load a 4 x 4 block of W: neighbours read neighbouring inputs of one row.
    let wk = lane % 4u;
    let wr = lane / 4u;            // vec4 of rows
    var c0 = vec4<f32>();
    var c1 = vec4<f32>();
    var c2 = vec4<f32>();
    var c3 = vec4<f32>();
    for (var k = 0u; k < p.k4; k += STEP / 4u) {
        workgroupBarrier();
        if lane < 64u {
            let row = r + wr * 4u;
            let block = transpose(mat4x4<f32>(
                load_w(row, k + wk), load_w(row + 1u, k + wk), load_w(row + 2u, k + wk), load_w(row + 3u, k + wk)));
            let at = wk * 4u * W_STRIDE + wr;
            sh_w[at] = block[0];
            sh_w[at + W_STRIDE] = block[1];
            sh_w[at + 2u * W_STRIDE] = block[2];
            sh_w[at + 3u * W_STRIDE] = block[3];
        }
        let kx = min(k * 4u + lr, p.k4 * 4u - 1u);
        sh_x[lane] = x[p.x_at + kx * p.x_stride + tc];
        workgroupBarrier();
        for (var i = 0u; i < STEP; i += 4u) {
            let w0 = sh_w[(i + 0u) * W_STRIDE + lr];
            let x0 = sh_x[(i + 0u) * 16u + lt];
            let w1 = sh_w[(i + 1u) * W_STRIDE + lr];
            let x1 = sh_x[(i + 1u) * 16u + lt];
            let w2 = sh_w[(i + 2u) * W_STRIDE + lr];
            let x2 = sh_x[(i + 2u) * 16u + lt];
            let w3 = sh_w[(i + 3u) * W_STRIDE + lr];
            let x3 = sh_x[(i + 3u) * 16u + lt];
            c0 = fma(vec4<f32>(w0.x), x0, c0);
            c1 = fma(vec4<f32>(w0.y), x0, c1);
            c2 = fma(vec4<f32>(w0.z), x0, c2);
            c3 = fma(vec4<f32>(w0.w), x0, c3);
            c0 = fma(vec4<f32>(w1.x), x1, c0);
            c1 = fma(vec4<f32>(w1.y), x1, c1);
            c2 = fma(vec4<f32>(w1.z), x1, c2);
            c3 = fma(vec4<f32>(w1.w), x1, c3);
            c0 = fma(vec4<f32>(w2.x), x2, c0);
            c1 = fma(vec4<f32>(w2.y), x2, c1);
            c2 = fma(vec4<f32>(w2.z), x2, c2);
            c3 = fma(vec4<f32>(w2.w), x2, c3);
            c0 = fma(vec4<f32>(w3.x), x3, c0);
            c1 = fma(vec4<f32>(w3.y), x3, c1);
            c2 = fma(vec4<f32>(w3.z), x3, c2);
            c3 = fma(vec4<f32>(w3.w), x3, c3);
        }
    }
    let row = r + lr * 4u;
    store(row, t, c0);
    store(row + 1u, t, c1);
    store(row + 2u, t, c2);
    store(row + 3u, t, c3);
}
