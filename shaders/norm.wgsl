// y[h, t] = n[h, t] g[h], and bias[h] more with BIAS; over the features h of a group of rows, the mean of them per token t,
//   n = x / sqrt(mean x^2 + eps),  with LAYER (x - mean x) / sqrt(mean (x - mean x)^2 + eps)
//
// One column of a group of X (a token, or one head of it) per reduction; an invocation holds a vec4 of tokens and walks its share of
// the features; the SLICES shares of one token are added by a fixed tree in workgroup memory.
//
// LAYER: the mean first, then the moments about it, since mean x^2 - (mean x)^2 has no digits left where the mean is large. What the
// rounded sum was off by shows as the first of these moments, and is added to the mean and taken from the second.
//
// x, y [groups * features, t4] vec4 over tokens; g, bias [features] with stride 0, [groups * features] with stride `features`.
// Dispatch: [ceil(t4 / LANES), groups, 1], workgroup LANES x SLICES (SLICES a power of two; 1 on CPU adapters).

struct Params {
    features: u32,  // of a group
    t4: u32,
    eps: f32,
    stride: u32,    // gains from one group to the next
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;            // [groups * features, t4]
@group(0) @binding(2) var<storage, read> g: array<f32>;                  // [features] or [groups * features]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;      // [groups * features, t4]
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;               // as g
#endif

#if SLICES > 1
var<workgroup> sh_sum: array<vec4<f32>, #{INVOCATIONS}>;
#ifdef LAYER
var<workgroup> sh_square: array<vec4<f32>, #{INVOCATIONS}>;
#endif
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    let features = f32(p.features);
    let first = wg.y * p.features * p.t4;
    let gains = wg.y * p.stride;
    var sum = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let v = x[first + h * p.t4 + tc];
#ifdef LAYER
        sum += v;
#else
        sum += v * v;
#endif
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
#ifdef LAYER
    let about = sum / features;
    var off = vec4<f32>();
    var square = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let d = x[first + h * p.t4 + tc] - about;
        off += d;
        square += d * d;
    }
#if SLICES > 1
    workgroupBarrier();
    sh_sum[at] = off;
    sh_square[at] = square;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_sum[at] += sh_sum[at + half * #{LANES}u];
            sh_square[at] += sh_square[at + half * #{LANES}u];
        }
    }
    workgroupBarrier();
    off = sh_sum[local.x];
    square = sh_square[local.x];
#endif
    off /= features;
    let mean = about + off;
    let scale = inverseSqrt(max(square / features - off * off, vec4<f32>()) + p.eps);
#else
    let scale = inverseSqrt(sum / features + p.eps);
#endif
    if t < p.t4 {
        for (var h = local.y; h < p.features; h += #{SLICES}u) {
            let i = first + h * p.t4 + t;
#ifdef LAYER
            let n = (x[i] - mean) * scale;
#else
            let n = x[i] * scale;
#endif
#ifdef BIAS
            y[i] = n * g[gains + h] + bias[gains + h];
#else
            y[i] = n * g[gains + h];
#endif
        }
    }
}
