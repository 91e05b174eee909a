// errors[t] = w[t] sum_h (y[h, t] - target[h, t])^2  and its gradient in place,  y[h, t] = scale w[t] (y[h, t] - target[h, t]);
// both are zero for the tokens that pad a window.
//
// One token per reduction: an invocation holds a vec4 of tokens and walks its share of the features; the SLICES shares are
// added by a fixed tree in workgroup memory. The sum over tokens is left to the host, in f64.
// y, target [features, t4] vec4 over tokens; errors, w [t4] (without WEIGHTS all w are 1).
// Dispatch: [ceil(t4 / LANES), 1, 1], workgroup LANES x SLICES (SLICES a power of two; 1 on CPU adapters).

struct Params {
    features: u32,
    t4: u32,
    window4: u32,  // padded tokens of a window / 4
    length: u32,   // real tokens of a window
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;       // [features, t4]
@group(0) @binding(2) var<storage, read> goal: array<vec4<f32>>;          // [features, t4]
@group(0) @binding(3) var<storage, read_write> errors: array<vec4<f32>>;  // [t4]
#ifdef WEIGHTS
@group(0) @binding(4) var<storage, read> weights: array<vec4<f32>>;       // [t4]
#endif

#if SLICES > 1
var<workgroup> sh_sum: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let place = vec4<u32>(4u * (t % p.window4)) + vec4<u32>(0u, 1u, 2u, 3u);
    let real = place < vec4<u32>(p.length);
    let zero = vec4<f32>();
    var w = vec4<f32>(1.0);
#ifdef WEIGHTS
    w = weights[min(t, p.t4 - 1u)];
#endif
    var sum = vec4<f32>();
    if t < p.t4 {
        for (var h = local.y; h < p.features; h += #{SLICES}u) {
            let i = h * p.t4 + t;
            let off = y[i] - goal[i];
            sum += off * off;
            y[i] = select(zero, p.scale * w * off, real);
        }
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
    sum = sh_sum[at];
#endif
    if local.y == 0u && t < p.t4 {
        errors[t] = select(zero, w * sum, real);
    }
}
