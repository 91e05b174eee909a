// d_x[h, t] += r g[h] d_y[h, t] - x[h, t] r^3 / H sum_i g[i] d_y[i, t] x[i, t],  r = 1 / sqrt(mean_h x[h, t]^2 + eps)
//
// The gradient of rms_norm.wgsl with respect to its input, added to what d_x has (the residual connection around the norm).
// As there, one token per reduction: an invocation holds a vec4 of tokens and walks its share of the features; the SLICES
// shares of both sums are added by a fixed tree in workgroup memory.
// x, d_y, d_x [features, t4] vec4 over tokens, g [features].
// Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (SLICES a power of two; 1 on CPU adapters).

struct Params {
    features: u32,
    t4: u32,
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [features, t4]
@group(0) @binding(2) var<storage, read> g: array<f32>;                  // [features]
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;          // [features, t4]
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<f32>>;    // [features, t4]

#if SLICES > 1
var<workgroup> sh_square: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_dot: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    var square = vec4<f32>();
    var dot = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let v = x[h * p.t4 + tc];
        square += v * v;
        dot += v * (g[h] * d_y[h * p.t4 + tc]);
    }
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
    sh_square[at] = square;
    sh_dot[at] = dot;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_square[at] += sh_square[at + half * #{LANES}u];
            sh_dot[at] += sh_dot[at + half * #{LANES}u];
        }
    }
    workgroupBarrier();
    square = sh_square[local.x];
    dot = sh_dot[local.x];
#endif
    let features = f32(p.features);
    let r = inverseSqrt(square / features + p.eps);
    // In this order: r^3 alone leaves the range of f32 earlier.
    let along = ((dot / features * r) * r) * r;
    if t < p.t4 {
        for (var h = local.y; h < p.features; h += #{SLICES}u) {
            let i = h * p.t4 + t;
            d_x[i] += r * (g[h] * d_y[i]) - x[i] * along;
        }
    }
}
