// Soft cap of logits: cap tanh(x / cap), and its slope 1 - tanh(x / cap)^2.
//
// The hyperbolic tangent of its own making, since drivers' overflow, or lose the digits of small arguments: up to 1/2 an odd polynomial
// (u + u^3 times the one of degree 3 in u^2 that has (tanh u - u) / u^3 at the Chebyshev nodes of u^2 in 0..1/4; within 5.5e-8,
// relatively), beyond it 1 - 2 / (e^2u + 1). Written with fma, so that all kernels round it alike: vocab_kl.wgsl looks for the logit
// that is vocab_reduce.wgsl's maximum.
#define_import_path maskwright::cap

fn tanh_of(x: vec4<f32>) -> vec4<f32> {
    // tanh is 1 in f32 from 9.1 on.
    let u = min(abs(x), vec4<f32>(16.0));
    let s = u * u;
    var r = fma(s, vec4(0.01798874441), vec4(-0.05338711064));
    r = fma(s, r, vec4(0.1333047649));
    r = fma(s, r, vec4(-0.3333331108));
    let near = fma(u * s, r, u);
    let far = 1.0 - 2.0 / (exp(2.0 * u) + 1.0);
    return sign(x) * select(far, near, u < vec4<f32>(0.5));
}

fn capped(x: vec4<f32>, cap: f32) -> vec4<f32> {
    return cap * tanh_of(x / cap);
}

fn cap_slope(x: vec4<f32>, cap: f32) -> vec4<f32> {
    let h = tanh_of(x / cap);
    return fma(-h, h, vec4<f32>(1.0));
}
