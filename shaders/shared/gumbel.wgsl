// Gumbel noise in fixed point, by integer arithmetic only: the same word gives the same noise on every vendor, so the same
// logits give the same mask. (f32 logarithms would not do: WGSL allows them 2^-21 of error, and near ties would flip.)
//
//     u = (2 * word + 1) / 2^33,    g = -ln(-ln u),    returned as g * 2^24 (Q8.24), g in [-3.14, 22.88]
//
// With x = 2 * min(word, ~word) + 1 (32 bits, odd) and y = 33 - log2(x), in [1, 33]:
//     word <  2^31 (u < 1/2):  -ln u = ln2 * y,                        g = ln2 * (-log2(ln2) - log2(y))
//     word >= 2^31:  d = 1 - u = x / 2^33,  -ln u = d * exp(h(d)),     g = ln2 * (y - h(d) / ln2)
// where h(d) = ln(-ln(1 - d) / d) is smooth, so that u near 1 loses nothing. Both logarithms and h are polynomials of degree
// 9 through the Chebyshev nodes of [0, 1]: log2(1 + t) = t * LOG(t) to 2.7e-8 and h((1 - t) / 2) / ln2 = H0 - t * H(t) to 7e-9.
// The signs of their coefficients alternate, so Horner's scheme stays in unsigned numbers:
// c0 - t * (c1 - t * (c2 - ...)). Absolute error of g: below 2^-23 (measured by the twin's tests, src/mask/gumbel.rs).
#define_import_path maskwright::gumbel

#import maskwright::philox::mul_hi4

// Logits live in [-LOGIT_LIMIT, LOGIT_LIMIT]: with the noise they fill Q8.24. mask_update keeps them there.
const LOGIT_LIMIT: f32 = 100.0;

// One step of Horner's scheme: c - t * p; t is Q0.32, c and p are Q1.31.
fn horner(c: vec4<u32>, t: vec4<u32>, p: vec4<u32>) -> vec4<u32> {
    return c - mul_hi4(t, p);
}

// Noise of four words, Q8.24.
fn gumbel4(word: vec4<u32>) -> vec4<i32> {
    let one = vec4(1u);
    let upper = word >= vec4(0x80000000u);
    let x = min(word, ~word) * 2u + one;

    // t * LOG(t), Q1.31, for the mantissa 1 + t of x
    let n = countLeadingZeros(x);
    let t = (x << n) << one;
    var p = vec4(15881505u);
    p = horner(vec4(90076221u), t, p);
    p = horner(vec4(240157550u), t, p);
    p = horner(vec4(421419940u), t, p);
    p = horner(vec4(591033053u), t, p);
    p = horner(vec4(769441393u), t, p);
    p = horner(vec4(1032250055u), t, p);
    p = horner(vec4(1549064809u), t, p);
    p = horner(vec4(3098163904u), t, p);
    // y = 33 - (31 - n) - log2(1 + t), Q6.26
    let y = ((n + vec4(2u)) << vec4(26u)) - ((mul_hi4(t, p) + vec4(16u)) >> vec4(5u));

    // The second polynomial: H for the upper half, LOG of y's mantissa for the lower. Lanes take both branches anyway, so
    // the coefficients are selected, not the results.
    let m = countLeadingZeros(y);
    let a = select((y << m) << one, ~x, upper);
    p = select(vec4(15881505u), vec4(4209957u), upper);
    p = horner(select(vec4(90076221u), vec4(24053907u), upper), a, p);
    p = horner(select(vec4(240157550u), vec4(64928765u), upper), a, p);
    p = horner(select(vec4(421419940u), vec4(116345950u), upper), a, p);
    p = horner(select(vec4(591033053u), vec4(168819583u), upper), a, p);
    p = horner(select(vec4(769441393u), vec4(231298418u), upper), a, p);
    p = horner(select(vec4(1032250055u), vec4(333883951u), upper), a, p);
    p = horner(select(vec4(1549064809u), vec4(559719274u), upper), a, p);
    p = horner(select(vec4(3098163904u), vec4(1371541816u), upper), a, p);
    let s = (mul_hi4(a, p) + vec4(16u)) >> vec4(5u);

    // g / ln2 + 8, Q6.26: the 8 keeps it positive. 31623953 = H0, 35484911 = -log2(ln2) in Q.26; log2(y) = 5 - m + s.
    let g = select(
        ((m + vec4(3u)) << vec4(26u)) + vec4(35484911u) - s,
        y + vec4((8u << 26u) - 31623953u) + s,
        upper,
    );
    // times ln2 (2977044472 = ln2 * 2^32), rounded to Q8.24, less 8 * ln2
    return vec4<i32>((mul_hi4(g, vec4(2977044472u)) + vec4(2u)) >> vec4(2u)) - vec4(93032640);
}

// Logits in Q8.24. Scaling by a power of two is exact and the conversion truncates towards zero, so the result depends on
// no rounding mode.
fn fixed4(logits: vec4<f32>) -> vec4<i32> {
    return vec4<i32>(clamp(logits, vec4(-LOGIT_LIMIT), vec4(LOGIT_LIMIT)) * 16777216.0);
}
