// The gradient of norm.wgsl with respect to its input: with q = g d_y, n the normed x without gains, r its factor (n = x r, with LAYER
// (x - mean x) r), and means over the features of a group per token,
//   d_x = r (q - n mean(q n)),  with LAYER r (q - mean q - n mean(q n))
// With ACCUMULATE it is added to what d_x has (the residual connection around the norm).
//
// One token per reduction, as there: an invocation holds a vec4 of tokens and walks its share of the features; the SLICES shares of
// the sums are added by a fixed tree in workgroup memory. LAYER sums about the mean, as there.
// x, d_y, d_x [groups * features, t4] vec4 over tokens; g [features] with stride 0, [groups * features] with stride `features`.
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
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;          // [groups * features, t4]
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<f32>>;    // [groups * features, t4]

#if SLICES > 1
var<workgroup> sh_square: array<vec4<f32>, #{INVOCATIONS}>;
var<workgroup> sh_dot: array<vec4<f32>, #{INVOCATIONS}>;
#ifdef LAYER
var<workgroup> sh_off: array<vec4<f32>, #{INVOCATIONS}>;
#endif
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let tc = min(t, p.t4 - 1u);
    let features = f32(p.features);
    let first = wg.y * p.features * p.t4;
    let gains = wg.y * p.stride;
#if SLICES > 1
    let at = local.y * #{LANES}u + local.x;
#endif
#ifdef LAYER
    // Sums of x and of q. In an array of the second round each, so that no more workgroup memory is needed.
    var sum = vec4<f32>();
    var up = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let i = first + h * p.t4 + tc;
        sum += x[i];
        up += g[gains + h] * d_y[i];
    }
#if SLICES > 1
    sh_square[at] = sum;
    sh_dot[at] = up;
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_square[at] += sh_square[at + half * #{LANES}u];
            sh_dot[at] += sh_dot[at + half * #{LANES}u];
        }
    }
    workgroupBarrier();
    sum = sh_square[local.x];
    up = sh_dot[local.x];
    workgroupBarrier();
#endif
    let about = sum / features;
    var off = vec4<f32>();
#endif
    var square = vec4<f32>();
    var dot = vec4<f32>();
    for (var h = local.y; h < p.features; h += #{SLICES}u) {
        let i = first + h * p.t4 + tc;
#ifdef LAYER
        let v = x[i] - about;
        off += v;
#else
        let v = x[i];
#endif
        square += v * v;
        dot += v * (g[gains + h] * d_y[i]);
    }
#if SLICES > 1
    sh_square[at] = square;
    sh_dot[at] = dot;
#ifdef LAYER
    sh_off[at] = off;
#endif
    for (var half = #{SLICES}u / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local.y < half {
            sh_square[at] += sh_square[at + half * #{LANES}u];
            sh_dot[at] += sh_dot[at + half * #{LANES}u];
#ifdef LAYER
            sh_off[at] += sh_off[at + half * #{LANES}u];
#endif
        }
    }
    workgroupBarrier();
    square = sh_square[local.x];
    dot = sh_dot[local.x];
#ifdef LAYER
    off = sh_off[local.x];
#endif
#endif
#ifdef LAYER
    off /= features;
    let mean = about + off;
    let r = inverseSqrt(max(square / features - off * off, vec4<f32>()) + p.eps);
    dot -= off * up;
    up /= features;
#else
    let r = inverseSqrt(square / features + p.eps);
#endif
    // In this order: r^3 alone leaves the range of f32 earlier.
    let along = ((dot / features * r) * r) * r;
    if t < p.t4 {
        for (var h = local.y; h < p.features; h += #{SLICES}u) {
            let i = first + h * p.t4 + t;
#ifdef LAYER
            let d = r * (g[gains + h] * d_y[i] - up) - (x[i] - mean) * along;
#else
            let d = r * (g[gains + h] * d_y[i]) - x[i] * along;
#endif
#ifdef ACCUMULATE
            d_x[i] += d;
#else
            d_x[i] = d;
#endif
        }
    }
}
