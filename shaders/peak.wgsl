// Multiply-add peak: every invocation runs `steps` rounds of 16 independent vec4 multiply-adds in registers.
// 16 * 4 * 2 operations a round. out [invocations] keeps the result alive. Dispatch: [workgroups, 1, 1].

struct Params {
    steps: u32,
    scale: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wg.x * #{LANES}u + lane;
    let a = vec4<f32>(p.scale);
    let b = vec4<f32>(f32(lane));
    var c = mat4x4<f32>(b, b, b, b);
    var d = c;
    var e = c;
    var f = c;
    for (var s = 0u; s < p.steps; s += 1u) {
        c = mat4x4<f32>(fma(c[0], a, b), fma(c[1], a, b), fma(c[2], a, b), fma(c[3], a, b));
        d = mat4x4<f32>(fma(d[0], a, b), fma(d[1], a, b), fma(d[2], a, b), fma(d[3], a, b));
        e = mat4x4<f32>(fma(e[0], a, b), fma(e[1], a, b), fma(e[2], a, b), fma(e[3], a, b));
        f = mat4x4<f32>(fma(f[0], a, b), fma(f[1], a, b), fma(f[2], a, b), fma(f[3], a, b));
    }
    let sum = (c[0] + c[1] + c[2] + c[3]) + (d[0] + d[1] + d[2] + d[3]) + (e[0] + e[1] + e[2] + e[3])
        + (f[0] + f[1] + f[2] + f[3]);
    out[i] = sum.x + sum.y + sum.z + sum.w;
}
