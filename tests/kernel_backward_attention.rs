//! The backward pass of attention against f64: `attention_delta`, `attention_backward_q`,
//! `attention_backward_kv`, `attention_backward_lanes`, and the log-sum-exp that `attention` and `attention_lanes` leave for them.

mod common;
mod reference;

use common::{
    Random, Worst, activation, commands, gpu, kernels, kinds_of_attention, presets, read, untouched,
};
use maskwright::gpu::GpuError;
use maskwright::kernel::{Activation, AttentionGradient, Heads, Kernels, Layout, Rows};
use reference::{AttentionCase, Twin};

/// Inputs of one case on the host, `[features, tokens]`.
struct Inputs {
    heads: Heads,
    layout: Layout,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

impl Inputs {
    /// Values up to `scale` (`q`, `k`) and 1. Padding holds numbers of its own, except for `d_o`, which is 0 there.
    fn random(heads: Heads, layout: Layout, scale: f32, seed: u64) -> Self {
        let (tokens, window) = (4 * layout.t4(), 4 * layout.window4());
        let mut random = Random::new(seed);
        let mut make = |heads_of: usize, scale: f32, padding: f32| {
            let mut x = random.values(heads_of * heads.head_dim * tokens, scale);
            for (i, v) in x.iter_mut().enumerate() {
                if i % tokens % window >= layout.length {
                    *v *= padding;
                }
            }
            x
        };
        let (q, k) = (make(heads.heads, scale, 50.0), make(heads.kv_heads, scale, 50.0));
        let (v, d_o) = (make(heads.kv_heads, 1.0, 50.0), make(heads.heads, 1.0, 0.0));
        Self { heads, layout, q, k, v, d_o }
    }

    fn case(&self) -> AttentionCase<'_> {
        AttentionCase {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            d_o: &self.d_o,
            heads: self.heads,
            window: 4 * self.layout.window4(),
            tokens: 4 * self.layout.t4(),
        }
    }

    /// What the forward pass makes, by its twin.
    fn output(&self) -> Twin {
        let c = self.case();
        reference::attention(c.q, c.k, c.v, c.heads, c.window, c.tokens)
    }
}

fn rounded(twin: &Twin) -> Vec<f32> {
    twin.value.iter().map(|&v| v as f32).collect()
}

/// The device's log-sum-exp, d_q, d_k and d_v; and delta where it is not kept in d_q.
struct Got {
    lse: Vec<f32>,
    delta: Vec<f32>,
    gradients: [Vec<f32>; 3],
}

/// Forward and backward pass. All outputs hold NaN before.
fn run(kernels: &Kernels<'static>, x: &Inputs) -> Got {
    let (h, t4, tokens) = (x.heads, x.layout.t4(), 4 * x.layout.t4());
    let (many, few) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let on = |rows: usize, data: &[f32]| activation(gpu(), rows, t4, data);
    let empty = |rows: usize| on(rows, &untouched(rows * tokens));
    let (q, k, v, d_o) = (on(many, &x.q), on(few, &x.k), on(few, &x.v), on(many, &x.d_o));
    let (o, lse, delta) = (empty(many), empty(h.heads), empty(h.heads));
    let (d_q, d_k, d_v) = (empty(many), empty(few), empty(few));
    fn all(x: &Activation, rows: usize, t4: usize) -> Rows<'_> {
        x.rows(0, rows, t4).expect("rows")
    }
    let gradient = AttentionGradient {
        q: all(&q, many, t4),
        k: all(&k, few, t4),
        v: all(&v, few, t4),
        o: all(&o, many, t4),
        lse: all(&lse, h.heads, t4),
        d_o: all(&d_o, many, t4),
        delta: all(&delta, h.heads, t4),
        d_q: all(&d_q, many, t4),
        d_k: all(&d_k, few, t4),
        d_v: all(&d_v, few, t4),
    };
    let mut c = commands();
    let g = &gradient;
    kernels.attention(&mut c, [g.q, g.k, g.v], g.o, Some(g.lse), h, x.layout).expect("attention");
    kernels.attention_backward(&mut c, g, h, x.layout).expect("attention_backward");
    let gradients =
        [(&d_q, many), (&d_k, few), (&d_v, few)].map(|(a, n)| read(&mut c, a.buffer(), n * tokens));
    let [lse, delta] = [&lse, &delta].map(|a| read(&mut c, a.buffer(), h.heads * tokens));
    Got { lse, delta, gradients }
}

/// The twin against central differences of the forward twin, extrapolated to step 0 (Richardson). Inputs are multiples of
/// 1/256, so that inputs and steps are exact in f32.
#[test]
fn the_twin_is_the_derivative_of_the_forward_twin() {
    let bent = Heads { scale: 0.7, cap: Some(1.5), ..Heads::new(4, 2, 4) };
    for (heads, windows, length) in [
        (Heads::new(2, 1, 4), 2, 7),
        (Heads::new(2, 2, 8), 1, 9),
        (Heads::new(6, 2, 2), 1, 4),
        (bent, 1, 6),
        (Heads { window: Some(3), ..Heads::new(2, 1, 4) }, 2, 7),
        (Heads { window: Some(2), ..bent }, 2, 5),
    ] {
        let mut x = Inputs::random(heads, Layout { windows, length }, 2.0, 7);
        for values in [&mut x.q, &mut x.k, &mut x.v] {
            values.iter_mut().for_each(|v| *v = (*v % 2.0 * 256.0).round() / 256.0);
        }
        let want = reference::attention_backward_lanes(x.case());
        // sum of d_o * o
        let loss =
            |x: &Inputs| -> f64 { x.output().value.iter().zip(&x.d_o).map(|(o, d)| o * f64::from(*d)).sum() };
        let field: [fn(&mut Inputs) -> &mut Vec<f32>; 3] = [|x| &mut x.q, |x| &mut x.k, |x| &mut x.v];
        for (name, (field, want)) in ["d_q", "d_k", "d_v"].iter().zip(field.iter().zip(&want)) {
            for i in 0..want.value.len() {
                let value = field(&mut x)[i];
                let mut slope = |step: f32| {
                    field(&mut x)[i] = value + step;
                    let above = loss(&x);
                    field(&mut x)[i] = value - step;
                    let below = loss(&x);
                    field(&mut x)[i] = value;
                    (above - below) / (2.0 * f64::from(step))
                };
                let (coarse, fine) = (slope(1.0 / 512.0), slope(1.0 / 1024.0));
                let got = (4.0 * fine - coarse) / 3.0;
                let error = (got - want.value[i]).abs();
                assert!(error < 1e-8, "{heads:?} {name}[{i}]: {} for a slope of {got}", want.value[i]);
            }
        }
    }
}

/// Groups of query heads and none, head sizes (18 is no multiple of four), windows around the tiles (32, 64 and 128 queries or
/// keys, steps of 16), padded windows, and scores from flat to one-hot.
#[test]
fn attention_backward() {
    let mut worst = Worst::new("attention_backward", 1.0);
    let mut worst_lse = Worst::new("log-sum-exp", 2.0);
    let mut worst_delta = Worst::new("attention_delta", 2.0);
    let h = Heads::new;
    for (i, (heads, windows, length, scale)) in [
        (h(2, 1, 8), 1, 1, 1.0),
        (h(2, 1, 8), 3, 2, 1.0),
        (h(6, 2, 8), 2, 31, 8.0),
        (h(3, 1, 32), 2, 37, 1.0),
        (h(2, 2, 32), 1, 64, 3.0),
        (h(6, 2, 32), 2, 65, 2.0),
        (h(2, 1, 18), 1, 33, 1.0),
        (h(2, 2, 18), 2, 61, 4.0),
        (h(2, 2, 64), 1, 32, 40.0),
        (h(4, 2, 64), 2, 70, 1.0),
        (h(3, 3, 8), 1, 127, 1.0),
        (h(2, 1, 8), 2, 128, 4.0),
        (h(4, 1, 8), 1, 129, 1.0),
        (h(2, 1, 32), 1, 150, 1.5),
        (h(3, 1, 128), 2, 22, 1.0),
        (h(2, 2, 128), 1, 44, 0.5),
    ]
    .into_iter()
    .enumerate()
    {
        let layout = Layout { windows, length };
        let x = Inputs::random(heads, layout, scale, i as u64);
        let case = x.case();
        let real = |i: usize| i % case.tokens % case.window < length;
        let lse = reference::log_sum_exp(case);
        let delta = reference::attention_delta(&rounded(&x.output()), &x.d_o, heads.head_dim, case.tokens);
        let [d_k, d_v] = reference::attention_backward_kv(case);
        let want = [reference::attention_backward_q(case), d_k, d_v];
        for name in presets() {
            let got = run(&kernels(name), &x);
            let label = format!("{name} {heads:?} {windows} x {length} scale {scale}");
            worst_lse.check_where(&format!("{label} lse"), &got.lse, &lse, real);
            if !(name.starts_with("lanes") && heads.head_dim % 4 == 0) {
                // Its error is that of the output on the device too, as large as what the units below allow; where the
                // softmax is flat it is not.
                if scale <= 1.0 {
                    worst_delta.check_where(&format!("{label} delta"), &got.delta, &delta, real);
                }
            }
            for ((tensor, got), want) in ["d_q", "d_k", "d_v"].iter().zip(&got.gradients).zip(&want) {
                worst.check_where(&format!("{label} {tensor}"), got, want, real);
                let padding = got.iter().enumerate().filter(|&(i, _)| !real(i));
                assert!(padding.into_iter().all(|(_, &v)| v == 0.0), "{label} {tensor}: padding is not 0");
            }
        }
    }
}

/// Scales, caps and windows, alone and together, over lengths around the vec4s and tiles; and large heads.
#[test]
fn attention_backward_with_caps_and_windows() {
    let mut worst = Worst::new("attention_backward with caps and windows", 1.0);
    let mut cases = Vec::new();
    for (windows, length) in [(2, 1), (3, 5), (2, 33), (1, 67), (1, 130)] {
        let layout = Layout { windows, length };
        cases.extend(kinds_of_attention(Heads::new(4, 2, 8), length).into_iter().map(|h| (h, layout, 2.0)));
    }
    let bent = |head_dim| Heads { cap: Some(5.0), window: Some(21), ..Heads::new(2, 1, head_dim) };
    cases.push((bent(18), Layout { windows: 1, length: 67 }, 4.0));
    let layout = Layout { windows: 1, length: 36 };
    // The sizes up to 128 that are not here are in the test above; nothing but the length of loops depends on them.
    cases.extend([80, 192, 256].map(|head_dim| (Heads::new(2, 1, head_dim), layout, 1.0)));
    cases.push((bent(256), layout, 1.0));
    let mut worst_lse = Worst::new("log-sum-exp with caps and windows", 2.0);
    for (i, (heads, layout, scale)) in cases.into_iter().enumerate() {
        let x = Inputs::random(heads, layout, scale, i as u64);
        let case = x.case();
        let real = |i: usize| i % case.tokens % case.window < layout.length;
        let lse = reference::log_sum_exp(case);
        let want = reference::attention_backward_lanes(case);
        for name in presets() {
            let got = run(&kernels(name), &x);
            let label = format!("{name} {heads:?} {layout:?} scale {scale}");
            worst_lse.check_where(&format!("{label} lse"), &got.lse, &lse, real);
            for ((tensor, got), want) in ["d_q", "d_k", "d_v"].iter().zip(&got.gradients).zip(&want) {
                worst.check_where(&format!("{label} {tensor}"), got, want, real);
                let mut padding = got.iter().enumerate().filter(|&(i, _)| !real(i));
                assert!(padding.all(|(_, &v)| v == 0.0), "{label} {tensor}: padding is not 0");
            }
        }
    }
}

/// Scores of 1e30: nothing to compare with, but no overflow either.
#[test]
fn gradients_of_absurd_scores_are_finite() {
    let heads = Heads::new(2, 1, 8);
    for heads in [heads, Heads { window: Some(5), ..heads }, Heads { cap: Some(20.0), ..heads }] {
        let x = Inputs::random(heads, Layout { windows: 1, length: 60 }, 1e15, 5);
        for name in presets() {
            let got = run(&kernels(name), &x);
            let mut all = got.lse.iter().chain(got.gradients.iter().flatten());
            assert!(all.all(|v| v.is_finite()), "{name} {heads:?}");
        }
    }
}

/// Shapes that do not fit are errors of the call; nothing to do is none.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let rows = |n: usize| x.rows(0, n, 4).expect("rows");
    let (wide, narrow, two) = (rows(16), rows(8), rows(2));
    let good = AttentionGradient {
        q: wide,
        k: narrow,
        v: narrow,
        o: wide,
        lse: two,
        d_o: wide,
        delta: two,
        d_q: wide,
        d_k: narrow,
        d_v: narrow,
    };
    let (heads, layout) = (Heads::new(2, 1, 8), Layout { windows: 1, length: 16 });
    let mut c = commands();
    let mut refused = |g: &AttentionGradient<'_>, heads: Heads, layout: Layout| {
        let error = kernels.attention_backward(&mut c, g, heads, layout).expect_err("a wrong shape");
        assert!(matches!(error, GpuError::Shape { .. }), "{error}");
    };
    refused(&good, Heads { kv_heads: 0, ..heads }, layout);
    refused(&good, Heads { kv_heads: 2, ..heads }, layout);
    refused(&good, Heads { window: Some(0), ..heads }, layout);
    refused(&good, Heads { cap: Some(-1.0), ..heads }, layout);
    refused(&good, heads, Layout { length: 20, ..layout });
    refused(&AttentionGradient { lse: wide, ..good }, heads, layout);
    refused(&AttentionGradient { delta: narrow, ..good }, heads, layout);
    refused(&AttentionGradient { d_q: narrow, ..good }, heads, layout);
    refused(&AttentionGradient { d_v: wide, ..good }, heads, layout);
    let mut c = commands();
    let lse = kernels.attention(&mut c, [wide, narrow, narrow], wide, Some(narrow), heads, layout);
    assert!(matches!(lse, Err(GpuError::Shape { .. })));
    let empty = x.rows(0, 16, 0).expect("rows");
    let (few, lse) = (x.rows(0, 8, 0).expect("rows"), x.rows(0, 2, 0).expect("rows"));
    let nothing = AttentionGradient {
        q: empty,
        k: few,
        v: few,
        o: empty,
        lse,
        d_o: empty,
        delta: lse,
        d_q: empty,
        d_k: few,
        d_v: few,
    };
    kernels.attention_backward(&mut c, &nothing, heads, Layout { windows: 0, length: 16 }).expect("nothing");
}
