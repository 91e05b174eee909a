// A step of Adam (Kingma and Ba 2014) with decoupled weight decay (AdamW, Loshchilov and Hutter 2019), and states of 16 bits.
//
// STATE = 0: parameters and moments in f32. STATE = 1: two f16 to a word, low half first. There the second moment is kept as its
// root (its square would underflow), and both moments times MOMENT_SCALE, so that roots from 1e-12 to 1 are held; larger
// ones are cut to 1. Parameters and roots are rounded up or down at random, with the odds that make the mean right: a step below
// half a unit would be lost for ever by rounding to nearest. The first moment changes by a tenth a step and is rounded to nearest.
#define_import_path maskwright::adam

const MOMENT_SCALE: f32 = 65536.0;
// Fourth word of the Philox counter: apart from the streams of the samplers.
const ROUNDING: u32 = 17u;
const LARGEST: f32 = 65504.0;

struct Adam {
    beta_m: f32,
    beta_v: f32,
    rate: f32, // rate / (1 - beta_m^step)
    root: f32, // 1 / sqrt(1 - beta_v^step)
    eps: f32,
    left: f32, // 1 - rate * decay
    step: u32,
    pad: u32,
}

struct Stepped {
    x: vec4<f32>,
    m: vec4<f32>,
    v: vec4<f32>,
}

fn adam_step(a: Adam, x: vec4<f32>, m: vec4<f32>, v: vec4<f32>, g: vec4<f32>) -> Stepped {
    let m1 = a.beta_m * m + (1.0 - a.beta_m) * g;
    let v1 = a.beta_v * v + (1.0 - a.beta_v) * (g * g);
    let x1 = a.left * x - a.rate * m1 / (sqrt(v1) * a.root + a.eps);
    return Stepped(x1, m1, v1);
}

fn to_halves(x: vec4<f32>) -> vec2<u32> {
    let c = clamp(x, vec4(-LARGEST), vec4(LARGEST));
    return vec2(pack2x16float(c.xy), pack2x16float(c.zw));
}

// To one of the two neighbours in f16; 13 random bits per value.
fn stochastic(x: vec4<f32>, random: vec4<u32>) -> vec2<u32> {
    let bits = random & vec4(0x1fffu);
    let word = bitcast<vec4<u32>>(x);
    let normal = bitcast<vec4<f32>>((word + bits) & vec4(0xffffe000u));
    // below 2^-14 the neighbours are 2^-24 apart
    let small = floor(x * 16777216.0 + vec4<f32>(bits) / 8192.0) / 16777216.0;
    return to_halves(select(normal, small, abs(x) < vec4(0.000061035156)));
}
