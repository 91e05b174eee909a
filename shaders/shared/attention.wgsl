// Attention scores: which keys a query sees, and the soft cap.
//   CAP: a score s becomes cap * tanh(s / cap), which is slope 1 - (capped / cap)^2 for its gradient
//   WINDOW: the query at i sees of the keys j <= i only those with i - j < reach
// Without these defs the functions give back what they get, and every key up to the query is seen.
#define_import_path maskwright::attention

const NEG: f32 = -3.0e38;   // the score of a key that is not seen. Not -inf: WGSL lets a driver assume that there are no infinities

// The running maximum before the first key. With a window the first block of keys may hold none that a query sees; its maximum
// then stays as it was, and the exponentials must be exp(NEG - LOWEST) = 0, where exp(NEG - NEG) would count each key as 1.
#ifdef WINDOW
const LOWEST: f32 = -1.0e38;
#else
const LOWEST: f32 = NEG;
#endif

// Of the queries at these positions, which see the key.
fn sees(query: vec4<u32>, key: u32, reach: u32) -> vec4<bool> {
#ifdef WINDOW
    return (vec4<u32>(key) <= query) & (query < vec4<u32>(key + reach));
#else
    return vec4<u32>(key) <= query;
#endif
}

// The keys at these positions, which of them the query sees.
fn visible(key: vec4<u32>, query: u32, reach: u32) -> vec4<bool> {
#ifdef WINDOW
    return (key <= vec4<u32>(query)) & (vec4<u32>(query) < key + vec4<u32>(reach));
#else
    return key <= vec4<u32>(query);
#endif
}

// The first key that the query sees.
fn first_seen(query: u32, reach: u32) -> u32 {
#ifdef WINDOW
    return max(query + 1u, reach) - reach;
#else
    return 0u;
#endif
}

// WGSL allows its tanh an absolute error of 1e-5, and on some drivers it overflows. Here: near 0 an odd polynomial
// (interpolated at the Chebyshev nodes of x^2 in 0..1/4, 5.5e-8 of the value off at most), elsewhere from an exponential that
// cannot overflow. From 15 on the result is 1 in f32.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let a = min(abs(x), vec4<f32>(15.0));
    let z = a * a;
    let near = a + a * z * (-0.33333311 + z * (0.13330476 + z * (-0.05338711 + z * 0.01798874)));
    let e = exp(-2.0 * a);
    let size = select((1.0 - e) / (1.0 + e), near, a < vec4<f32>(0.5));
    return select(-size, size, x >= vec4<f32>());
}

fn capped4(s: vec4<f32>, cap: f32) -> vec4<f32> {
#ifdef CAP
    return cap * tanh4(s / cap);
#else
    return s;
#endif
}

fn capped(s: mat4x4<f32>, cap: f32) -> mat4x4<f32> {
#ifdef CAP
    return mat4x4<f32>(capped4(s[0], cap), capped4(s[1], cap), capped4(s[2], cap), capped4(s[3], cap));
#else
    return s;
#endif
}

fn sloped4(gradient: vec4<f32>, s: vec4<f32>, cap: f32) -> vec4<f32> {
    let t = s / cap;
    return gradient * ((1.0 - t) * (1.0 + t));
}

// Gradients of scores before the cap from those of the capped scores `s`.
fn sloped(gradient: mat4x4<f32>, s: mat4x4<f32>, cap: f32) -> mat4x4<f32> {
#ifdef CAP
    return mat4x4<f32>(sloped4(gradient[0], s[0], cap), sloped4(gradient[1], s[1], cap),
                       sloped4(gradient[2], s[2], cap), sloped4(gradient[3], s[3], cap));
#else
    return gradient;
#endif
}
