//! The gradients of norm, activation and losses against f64, and the f64 gradients against central differences of the forward
//! twins.

mod common;
mod reference;

use common::differences::{check_differences, even};
use common::{
    Random, Worst, activation, commands, gpu, kernels, presets, read, same_bits, untouched, vector,
};
use maskwright::gpu::GpuError;
use maskwright::kernel::{Activation, Kernels, Layout, Rows};
use reference::Twin;

fn all(x: &Activation, rows: usize, t4: usize) -> Rows<'_> {
    x.rows(0, rows, t4).expect("rows")
}

/// `sum upstream * value`: a loss behind a forward twin.
fn against(upstream: &[f32], forward: &Twin) -> f64 {
    upstream.iter().zip(&forward.value).map(|(&u, &v)| f64::from(u) * v).sum()
}

#[test]
fn twin_of_the_norm_against_differences() {
    let mut random = Random::new(1);
    for (features, tokens) in [(1, 2), (5, 3), (16, 2)] {
        let count = features * tokens;
        let (x, gain) = (even(&mut random, count, 2.0), random.values(features, 2.0));
        let (d_y, zero) = (random.values(count, 1.0), vec![0.0; count]);
        let twin = reference::rms_norm_backward(&x, &gain, 0.5, &d_y, &zero, tokens);
        check_differences(&format!("[{features}, {tokens}]"), &x, &twin.value, |x| {
            against(&d_y, &reference::rms_norm(x, &gain, 0.5, tokens))
        });
    }
}

#[test]
fn twin_of_the_activation_against_differences() {
    let mut random = Random::new(2);
    for scale in [1.0, 6.0] {
        let (gate, up) = (even(&mut random, 40, scale), even(&mut random, 40, 2.0));
        let d = random.values(40, 1.0);
        let [d_gate, d_up] = reference::swiglu_backward(&gate, &up, &d);
        check_differences("gate", &gate, &d_gate.value, |g| against(&d, &reference::swiglu(g, &up)));
        check_differences("up", &up, &d_up.value, |u| against(&d, &reference::swiglu(&gate, u)));
    }
}

#[test]
fn twins_of_the_losses_against_differences() {
    let mut random = Random::new(3);
    let (rows, tokens) = (9, 6);
    let (x, other) = (even(&mut random, rows * tokens, 2.0), random.values(rows * tokens, 2.0));
    let (weights, upstream) = (random.values(tokens, 1.0), vec![1.0; tokens]);
    let real = |t: usize| t != 3;
    let [gradient, _] = reference::squared_error(&x, &other, &weights, 0.75, real);
    check_differences("squared_error", &x, &gradient.value, |x| {
        0.375 * against(&upstream, &reference::squared_error(x, &other, &weights, 0.75, real)[1])
    });
    let targets = [4, 0, u32::MAX, 8, 3, 1];
    let scored: Vec<f32> = targets.iter().map(|&t| if t == u32::MAX { 0.0 } else { 0.75 }).collect();
    let gradient = reference::vocab_gradient(&x, &targets, 0.75, tokens);
    check_differences("vocab_gradient", &x, &gradient.value, |x| {
        against(&scored, &reference::vocab_reduce(x, &targets, tokens).loss)
    });
    let ([gradient, _], _) = reference::vocab_kl(&x, &other, &targets, 0.75, tokens);
    check_differences("vocab_kl", &x, &gradient.value, |x| {
        0.75 * against(&upstream, &reference::vocab_kl(x, &other, &targets, 0.75, tokens).0[1])
    });
}

/// `rms_norm_backward` and `rms_norm_backward_lanes`, also with activations that were allocated for more tokens.
#[test]
fn rms_norm_backward() {
    let mut worst = Worst::new("rms_norm_backward", 6.0);
    let mut random = Random::new(4);
    for name in presets() {
        let kernels = kernels(name);
        for (features, t4) in
            [(1, 1), (15, 7), (16, 8), (17, 9), (31, 15), (64, 16), (192, 33), (257, 17), (1031, 3)]
        {
            for (scale, eps) in [(1.0, 1e-5), (1e-4, 1e-5), (1e9, 1e-6), (1e-12, 1e-5)] {
                let count = features * 4 * t4;
                let mut x = random.values(count, scale);
                (0..features).for_each(|h| x[h * 4 * t4] = 0.0); // a token of zeros, as padding is
                let (gain, d_y) = (random.values(features, 2.0), random.values(count, 1.0));
                let spare = 4 * 5 * features;
                let before = [random.values(count, 1.0), untouched(spare)].concat();
                let on = |v: &[f32]| activation(gpu(), features, t4, v);
                let (xa, da) = (on(&x), on(&d_y));
                let out = activation(gpu(), features, t4 + 5, &before);
                let mut c = commands();
                let (xr, dr, to) = (all(&xa, features, t4), all(&da, features, t4), all(&out, features, t4));
                kernels
                    .rms_norm_backward(&mut c, xr, &vector(gpu(), &gain), eps, dr, to)
                    .expect("rms_norm_backward");
                let got = read(&mut c, out.buffer(), count + spare);
                let want = reference::rms_norm_backward(&x, &gain, eps, &d_y, &before[..count], 4 * t4);
                let label = format!("{name} [{features}, {}] x {scale:e}", 4 * t4);
                worst.check(&label, &got[..count], &want);
                assert!(got[count..].iter().all(|v| v.is_nan()), "{name}: written behind the tokens");
            }
        }
    }
}

/// `swiglu_to` has the bits of `swiglu`, and leaves its inputs as they are; `swiglu_backward` against its twin.
#[test]
fn swiglu_backward() {
    let mut worst = [Worst::new("swiglu_backward, gate", 8.0), Worst::new("swiglu_backward, up", 8.0)];
    let mut random = Random::new(5);
    for name in presets() {
        let kernels = kernels(name);
        for (features, t4) in [(1, 1), (1, 255), (1, 64), (257, 1), (13, 37)] {
            for scale in [1.0, 20.0, 90.0, 1e4] {
                let count = features * 4 * t4;
                let (gate, up) = (random.values(count, scale), random.values(count, 3.0));
                let d = random.values(count, 1.0);
                let on = |v: &[f32]| activation(gpu(), features, t4, v);
                let (ga, ua, da, out) = (on(&gate), on(&up), on(&d), on(&untouched(count)));
                let [g, u, d_inner, o] = [&ga, &ua, &da, &out].map(|a| all(a, features, t4));
                let label = format!("{name} [{features}, {}] x {scale}", 4 * t4);
                let mut c = commands();
                kernels.swiglu_to(&mut c, g, u, o).expect("swiglu_to");
                same_bits(&format!("{label}: gate"), &read(&mut c, ga.buffer(), count), &gate);
                let elsewhere = read(&mut c, out.buffer(), count);
                let copy = on(&gate);
                kernels.swiglu(&mut c, all(&copy, features, t4), u).expect("swiglu");
                same_bits(&label, &elsewhere, &read(&mut c, copy.buffer(), count));
                kernels.swiglu_backward(&mut c, g, u, d_inner).expect("swiglu_backward");
                let want = reference::swiglu_backward(&gate, &up, &d);
                for ((worst, on), want) in worst.iter_mut().zip([&ga, &ua]).zip(&want) {
                    worst.check(&label, &read(&mut c, on.buffer(), count), want);
                }
            }
        }
    }
}

/// Windows of every remainder, with and without weights; what the padding holds comes out nowhere.
#[test]
fn squared_error() {
    let mut worst = [Worst::new("squared_error, gradient", 1.0), Worst::new("squared_error, sum", 2.0)];
    let mut random = Random::new(6);
    for name in presets() {
        let kernels = kernels(name);
        for (features, windows, length) in
            [(1, 1, 1), (15, 3, 5), (16, 2, 64), (17, 1, 66), (100, 5, 7), (192, 3, 43), (1031, 2, 4)]
        {
            let layout = Layout { windows, length };
            let (t4, window) = (layout.t4(), 4 * layout.window4());
            let (tokens, real) = (4 * t4, |t: usize| t % window < length);
            let mut y = random.values(features * tokens, 2.0);
            let target = random.values(features * tokens, 2.0);
            (0..y.len()).filter(|i| !real(i % tokens)).for_each(|i| y[i] = f32::NAN);
            let weights = random.values(tokens, 2.0);
            for weighted in [false, true] {
                let ya = activation(gpu(), features, t4, &y);
                let ta = activation(gpu(), features, t4, &target);
                let errors = vector(gpu(), &untouched(tokens));
                let on_gpu = vector(gpu(), &weights);
                let mut c = commands();
                let (yr, tr) = (all(&ya, features, t4), all(&ta, features, t4));
                kernels
                    .squared_error(&mut c, yr, tr, weighted.then_some(&on_gpu), 0.3, &errors, layout)
                    .expect("squared_error");
                // The twin cannot have NaN times zero.
                let clean: Vec<f32> = y.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect();
                let ones = vec![1.0; tokens];
                let w = if weighted { &weights } else { &ones };
                let want = reference::squared_error(&clean, &target, w, 0.3, real);
                let label = format!("{name} {features} x {windows} windows of {length}, {weighted}");
                let got = [read(&mut c, ya.buffer(), y.len()), read(&mut c, &errors, tokens)];
                for ((worst, got), want) in worst.iter_mut().zip(&got).zip(&want) {
                    worst.check(&label, got, want);
                }
            }
        }
    }
}

/// Logits in pieces of the vocabulary, each on the device in a tensor of a multiple of four rows.
struct Pieces {
    pieces: Vec<(usize, usize, Activation)>,
    state: Activation,
    t4: usize,
}

impl Pieces {
    /// Uploads them, padding rows as NaN, and reduces them to the state.
    fn new(kernels: &Kernels<'static>, logits: &[f32], cuts: &[usize], targets: &[u32]) -> Self {
        let tokens = targets.len();
        let t4 = tokens / 4;
        let state = activation(gpu(), 3, t4, &untouched(3 * tokens));
        let (mut pieces, mut first, mut c) = (Vec::new(), 0, commands());
        for &rows in cuts {
            let mut data = logits[first * tokens..(first + rows) * tokens].to_vec();
            data.resize(rows.next_multiple_of(4) * tokens, f32::NAN);
            let piece = activation(gpu(), rows.next_multiple_of(4), t4, &data);
            kernels
                .vocab_reduce(
                    &mut c,
                    all(&piece, rows, t4),
                    first,
                    &vector(gpu(), targets),
                    all(&state, 3, t4),
                )
                .expect("vocab_reduce");
            pieces.push((first, rows, piece));
            first += rows;
        }
        c.finish().expect("the state");
        Self { pieces, state, t4 }
    }

    fn state(&self) -> Rows<'_> {
        all(&self.state, 3, self.t4)
    }

    /// Piece `i` with its padding.
    fn padded(&self, i: usize) -> Rows<'_> {
        all(&self.pieces[i].2, self.pieces[i].1.next_multiple_of(4), self.t4)
    }

    /// All rows of the vocabulary, after a look at the padding.
    fn read(&self, label: &str) -> Vec<f32> {
        let (mut c, mut out) = (commands(), Vec::new());
        for (_, rows, piece) in &self.pieces {
            let mut got = read(&mut c, piece.buffer(), rows.next_multiple_of(4) * 4 * self.t4);
            let padding = got.split_off(rows * 4 * self.t4);
            assert!(padding.iter().all(|v| v.to_bits() == 0), "{label}: padding is not zero");
            out.extend(got);
        }
        out
    }
}

/// Targets in every piece, at its edges, and none.
fn targets(random: &mut Random, vocab: usize, tokens: usize) -> Vec<u32> {
    let mut out: Vec<u32> = (0..tokens).map(|_| random.below(vocab) as u32).collect();
    (out[0], out[1], out[2]) = (u32::MAX, 0, vocab as u32 - 1);
    out[tokens - 1] = u32::MAX;
    out
}

type Make = fn(&mut Random, usize, usize) -> f32;
const KINDS: [(&str, Make); 6] = [
    ("+-1", |r, _, _| r.value(1.0)),
    ("+-80", |r, _, _| r.value(80.0)),
    ("+-1e4", |r, _, _| r.value(1e4)),
    ("falling from 80", |_, row, vocab| 80.0 - 160.0 * row as f32 / vocab as f32),
    ("all -1e4", |_, _, _| -1e4),
    ("one among -1e30", |_, row, vocab| if row == vocab / 2 { 3.0 } else { -1e30 }),
];
const VOCABULARIES: [(usize, usize); 7] = [(1, 1), (3, 7), (5, 9), (63, 15), (65, 17), (258, 3), (1031, 2)];

fn cuts(vocab: usize) -> Vec<Vec<usize>> {
    if vocab > 5 { vec![vec![vocab], vec![1, 3, vocab - 4], vec![vocab - 1, 1]] } else { vec![vec![vocab]] }
}

#[test]
fn vocab_gradient() {
    let mut worst = Worst::new("vocab_gradient", 4.0);
    let mut random = Random::new(7);
    for name in presets() {
        let kernels = kernels(name);
        for (vocab, t4) in VOCABULARIES {
            let tokens = 4 * t4;
            for (kind, make) in KINDS {
                let logits: Vec<f32> =
                    (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
                let targets = targets(&mut random, vocab, tokens);
                let want = reference::vocab_gradient(&logits, &targets, 0.3, tokens);
                for cut in cuts(vocab) {
                    let label = format!("{name} [{vocab}, {tokens}] {kind} in {cut:?}");
                    let pieces = Pieces::new(&kernels, &logits, &cut, &targets);
                    let (mut c, on_gpu) = (commands(), vector(gpu(), &targets));
                    for (i, &(first, rows, _)) in pieces.pieces.iter().enumerate() {
                        let (chunk, state) = (pieces.padded(i), pieces.state());
                        kernels
                            .vocab_gradient(&mut c, chunk, rows, first, &on_gpu, state, 0.3)
                            .expect("vocab_gradient");
                    }
                    c.finish().expect("the gradient");
                    worst.check(&label, &pieces.read(&label), &want);
                }
            }
        }
    }
}

#[test]
fn vocab_kl() {
    let mut worst = [Worst::new("vocab_kl, gradient", 4.0), Worst::new("vocab_kl, divergence", 4.0)];
    let mut random = Random::new(8);
    // Far from each other, near, and the same.
    type Other = fn(&mut Random, f32) -> f32;
    let others: [(&str, Other); 3] =
        [("far", |r, x| r.value(30.0) - x), ("near", |r, x| x + r.value(0.01)), ("same", |_, x| x)];
    for name in presets() {
        let kernels = kernels(name);
        for (vocab, t4) in VOCABULARIES {
            let tokens = 4 * t4;
            for ((kind, make), (distance, other)) in
                KINDS.iter().flat_map(|k| others.iter().map(move |o| (k, o)))
            {
                let logits: Vec<f32> =
                    (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
                let dense: Vec<f32> = logits.iter().map(|&x| other(&mut random, x)).collect();
                let targets = targets(&mut random, vocab, tokens);
                let (want, agree) = reference::vocab_kl(&logits, &dense, &targets, 0.3, tokens);
                for cut in cuts(vocab) {
                    let label = format!("{name} [{vocab}, {tokens}] {kind}, {distance}, in {cut:?}");
                    let pieces = Pieces::new(&kernels, &logits, &cut, &targets);
                    let of_dense = Pieces::new(&kernels, &dense, &cut, &targets);
                    let (mut c, on_gpu) = (commands(), vector(gpu(), &targets));
                    let kl = vector(gpu(), &vec![0.0f32; 2 * tokens]);
                    for (i, &(_, rows, _)) in pieces.pieces.iter().enumerate() {
                        let (x, d) = (pieces.padded(i), of_dense.padded(i));
                        let (state, dense_state) = (pieces.state(), of_dense.state());
                        kernels
                            .vocab_kl(&mut c, x, d, rows, state, dense_state, &on_gpu, 0.3, &kl)
                            .expect("vocab_kl");
                    }
                    let mut divergence = read(&mut c, &kl, 2 * tokens);
                    same_bits(&format!("{label}: agreement"), &divergence.split_off(tokens), &agree);
                    worst[0].check(&label, &pieces.read(&label), &want[0]);
                    worst[1].check(&label, &divergence, &want[1]);
                    if *distance == "same" {
                        same_bits(&label, &divergence, &vec![0.0; tokens]);
                    }
                }
            }
        }
    }
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let (wide, odd, none) = (all(&x, 16, 4), all(&x, 12, 4), x.rows(4, 12, 4).expect("rows"));
    let (state, small) = (all(&x, 3, 4), vector(gpu(), &[0.0f32; 4]));
    let layout = Layout { windows: 1, length: 16 };
    let (v, mut c) = (x.buffer(), commands());
    let results = [
        kernels.rms_norm_backward(&mut c, wide, &small, 1e-5, wide, wide),
        kernels.rms_norm_backward(&mut c, wide, v, 1e-5, odd, wide),
        kernels.rms_norm_backward(&mut c, odd, v, 1e-5, odd, none),
        kernels.swiglu_to(&mut c, wide, wide, odd),
        kernels.swiglu_backward(&mut c, wide, odd, wide),
        kernels.swiglu_backward(&mut c, odd, odd, none),
        kernels.squared_error(&mut c, wide, odd, None, 1.0, v, layout),
        kernels.squared_error(&mut c, wide, wide, None, 1.0, &small, layout),
        kernels.squared_error(&mut c, wide, wide, Some(&small), 1.0, v, layout),
        kernels.squared_error(&mut c, wide, wide, None, 1.0, v, Layout { windows: 2, length: 16 }),
        kernels.vocab_gradient(&mut c, wide, 17, 0, v, state, 1.0),
        kernels.vocab_gradient(&mut c, wide, 16, 0, &small, state, 1.0),
        kernels.vocab_gradient(&mut c, wide, 16, 0, v, odd, 1.0),
        kernels.vocab_kl(&mut c, wide, odd, 12, state, state, v, 1.0, v),
        kernels.vocab_kl(&mut c, wide, wide, 16, state, odd, v, 1.0, v),
        kernels.vocab_kl(&mut c, wide, wide, 16, state, state, v, 1.0, &small),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
    }
}
