// y[h, t] = x[h, t] * g[h] / sqrt(mean_h x[h, t]^2 + eps)
//
// One column of X (a token) per reduction; an invocation holds a vec4 of tokens and walks its share of the features; the
// SLICES shares of one token are added by a fixed tree in workgroup memory.
// x, y [features, t4] vec4 over tokens, g [features].
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
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;      // [features, t4]

#if SLICES > 1
var<workgroup> sh_sum: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    var sum = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let v = x[h * p.t4 + tc];
        sum += v * v;
    }
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
    sh_sum[at] = sum;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_sum[at] += sh_sum[at + half * #{LANES}u];
        }
    }
    workgroupBarrier();
    sum = sh_sum[local.x];
#endif
    let scale = inverseSqrt(sum / f32(p.features) + p.eps);
    if t < p.t4 {
        for (var h = local.y; h < p.features; h += #{SLICES}u) {
            let i = h * p.t4 + t;
            y[i] = x[i] * scale * g[h];
        }
    }
}
