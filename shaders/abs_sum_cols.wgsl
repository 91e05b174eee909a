// out[j] (+)= sum_r |W[r, j]|: the column sums of RIA, chunk after chunk of rows.
//
// An invocation holds four columns and walks its share of the rows; the SLICES shares are added by a fixed tree in workgroup
// memory. W [rows, k4] packed by four (shared/weights.wgsl), out [k4] vec4; the first chunk overwrites, the others add.
// Dispatch: [ceil(k4 / LANES), 1, 1], workgroup LANES x SLICES (SLICES a power of two; 1 on CPU adapters).
#import maskwright::weights::{unpack}

struct Params {
    rows: u32,  // of the chunk
    k4: u32,
    add: u32,   // 0: overwrites out
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;            // [rows, k4]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;            // [rows, k4]
#endif
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;    // [k4]

#if SLICES > 1
var<workgroup> sh_sum: array<vec4<f32>, #{INVOCATIONS}>;
#endif

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let k = wg.x * #{LANES}u + local.x;
    let kc = min(k, p.k4 - 1u);
    var sum = vec4<f32>();
    for (var r = local.y; r < p.rows; r += #{SLICES}u) {
        sum += abs(unpack(w[r * p.k4 + kc]));
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
    if k < p.k4 && local.y == 0u {
        if p.add != 0u {
            sum += out[k];
        }
        out[k] = sum;
    }
}
