// The nonlinearities of feed-forward layers and their slopes, as factors: f(x) = scale * value, f'(x) = scale * slope.
//
//   KIND 0  silu       x s(x),  s(x) = 1 / (1 + e^-x);  slope s (1 + x (1 - s))
//   KIND 1  gelu       x P(x),  P(x) = (1 + erf(x / sqrt(2))) / 2 the normal distribution;  slope P + x e^(-x^2 / 2) / sqrt(2 pi)
//   KIND 2  gelu_tanh  x (1 + tanh u) / 2 = x s(2u),  u = sqrt(2 / pi) (x + 0.044715 x^3);  slope s(2u) (1 + x (1 - s(2u)) (2u)')
//   KIND 3  relu       max(x, 0);  slope 1 for x > 0, else 0
//   KIND 4  relu2      max(x, 0)^2;  slope 2 max(x, 0)
//
// The logistic function in place of the hyperbolic tangent: it loses no digits where tanh comes near -1, and some drivers' tanh
// overflows. Its exponential is stopped at e^80 (it overflows beyond 88), since WGSL lets a driver assume that there are no infinities.
#define_import_path maskwright::activation

struct Parts {
    scale: vec4<f32>,
    value: vec4<f32>,
    slope: vec4<f32>,
}

#if KIND == 1
// z to the normal distribution of -z, z >= 0, and the density at z without its 1 / sqrt(2 pi).
// R(z) = e^(z^2 / 2) P(-z) falls smoothly like 1 / z. So with t = 1 / (1 + 0.35 z) it is t times a polynomial: the one of degree 8 that
// has R(z) / t at the Chebyshev nodes of t over z in 0..14 (solved for in 40 digits), within 6.4e-8 of R, relatively, with coefficients
// in f32. P(-z) is below 1e-44 beyond, so that no digits are lost in the tail either.
fn normal(z: vec4<f32>) -> mat2x4<f32> {
    let bell = exp(-0.5 * z * z);
    let t = 1.0 / (1.0 + 0.35 * z);
    var r = fma(t, vec4(-0.029679522), vec4(0.1465458303));
    r = fma(t, r, vec4(-0.2609612283));
    r = fma(t, r, vec4(0.1650509959));
    r = fma(t, r, vec4(-0.02704660827));
    r = fma(t, r, vec4(0.1071145876));
    r = fma(t, r, vec4(0.1194449168));
    r = fma(t, r, vec4(0.1399122981));
    r = fma(t, r, vec4(0.1396187126));
    return mat2x4<f32>(bell * (t * r), bell);
}
#endif

fn activated(x: vec4<f32>) -> vec4<f32> {
#if KIND == 0
    return x / (1.0 + exp(min(-x, vec4<f32>(80.0))));
#endif
#if KIND == 1
    let low = normal(min(abs(x), vec4<f32>(16.0)))[0];
    return x * select(low, 1.0 - low, x > vec4<f32>());
#endif
#if KIND == 2
    // e^(-2u) is 0 or beyond e^80 where |x| > 16.
    let v = clamp(x, vec4<f32>(-16.0), vec4<f32>(16.0));
    return x / (1.0 + exp(min(-1.5957691 * (v + 0.044715 * v * v * v), vec4<f32>(80.0))));
#endif
#if KIND == 3
    return max(x, vec4<f32>());
#endif
#if KIND == 4
    let m = max(x, vec4<f32>());
    return m * m;
#endif
}

fn parts(x: vec4<f32>) -> Parts {
    let one = vec4<f32>(1.0);
#if KIND == 0
    let e = exp(min(-x, vec4<f32>(80.0)));
    let s = 1.0 / (1.0 + e);
    // e s is 1 - s without the cancellation at large x.
    return Parts(s, x, 1.0 + x * (e * s));
#endif
#if KIND == 1
    let z = min(abs(x), vec4<f32>(16.0));
    let of_z = normal(z);
    let p = select(of_z[0], 1.0 - of_z[0], x > vec4<f32>());
    return Parts(one, x * p, p + 0.3989422804 * sign(x) * z * of_z[1]);
#endif
#if KIND == 2
    let v = clamp(x, vec4<f32>(-16.0), vec4<f32>(16.0));
    let e = exp(min(-1.5957691 * (v + 0.044715 * v * v * v), vec4<f32>(80.0)));
    let s = 1.0 / (1.0 + e);
    return Parts(s, x, 1.0 + v * (e * s) * (1.5957691 * (1.0 + 0.134145 * v * v)));
#endif
#if KIND == 3
    return Parts(one, max(x, vec4<f32>()), select(vec4<f32>(), one, x > vec4<f32>()));
#endif
#if KIND == 4
    let m = max(x, vec4<f32>());
    return Parts(one, m * m, 2.0 * m);
#endif
}
