//! The gradients of the losses against f64, and the f64 gradients against central differences of the forward
//! twins.

mod common;
mod reference;

use common::differences::{check_differences, even};
use common::{Random, Worst, activation, commands, gpu, kernels, offered, presets, read, untouched, vector};
use maskwright::gpu::GpuError;
use maskwright::kernel::{
    Activation, DIVERGENCE, Kernels, Layout, LogSum, Rows, Softmax, VOCAB_STATE, agrees,
};
use reference::Twin;

fn all(x: &Activation, rows: usize, t4: usize) -> Rows<'_> {
    x.rows(0, rows, t4).expect("rows")
}

/// `sum upstream * value`: a loss behind a forward twin.
fn against(upstream: &[f32], forward: &Twin) -> f64 {
    upstream.iter().zip(&forward.value).map(|(&u, &v)| f64::from(u) * v).sum()
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
    for cap in [None, Some(1.5)] {
        let gradient = reference::vocab_gradient(&x, &targets, 0.75, tokens, cap);
        check_differences("vocab_gradient", &x, &gradient.value, |x| {
            against(&scored, &reference::vocab_reduce(x, &targets, tokens, cap).loss)
        });
        let kl = |x: &[f32]| reference::vocab_kl(x, &other, &targets, 0.75, tokens, [cap, Some(1.75)]).0;
        check_differences("vocab_kl", &x, &kl(&x)[0].value, |x| 0.75 * against(&upstream, &kl(x)[1]));
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
                    .squared_error(&mut c, [yr, tr], weighted.then_some(&on_gpu), 0.3, &errors, layout)
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
    fn new(
        kernels: &Kernels<'static>,
        logits: &[f32],
        cuts: &[usize],
        targets: &[u32],
        cap: Option<f32>,
    ) -> Self {
        let tokens = targets.len();
        let t4 = tokens / 4;
        let state = activation(gpu(), VOCAB_STATE, t4, &untouched(VOCAB_STATE * tokens));
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
                    all(&state, VOCAB_STATE, t4),
                    cap,
                )
                .expect("vocab_reduce");
            pieces.push((first, rows, piece));
            first += rows;
        }
        c.finish().expect("the state");
        Self { pieces, state, t4 }
    }

    fn state(&self) -> Rows<'_> {
        all(&self.state, VOCAB_STATE, self.t4)
    }

    /// The log-sum-exp of every token.
    fn sums(&self) -> Vec<LogSum> {
        let tokens = 4 * self.t4;
        let state = read(&mut commands(), self.state.buffer(), VOCAB_STATE * tokens);
        (0..tokens).map(|t| LogSum::of(&state, tokens, t)).collect()
    }

    /// Gradients in place by the divergence from `dense`; divergence and agreement of every token.
    fn diverge(
        &self,
        kernels: &Kernels<'static>,
        dense: &Self,
        targets: &[u32],
        caps: [Option<f32>; 2],
    ) -> (Vec<f64>, Vec<bool>) {
        let tokens = targets.len();
        let (mut c, on_gpu) = (commands(), vector(gpu(), targets));
        let kl = vector(gpu(), &vec![0.0f32; DIVERGENCE * tokens]);
        for (i, &(first, rows, _)) in self.pieces.iter().enumerate() {
            let (x, d) = (self.padded(i), dense.padded(i));
            let (state, dense_state) = (self.state(), dense.state());
            kernels
                .vocab_kl(
                    &mut c,
                    [x, d],
                    first..first + rows,
                    [Softmax { state, cap: caps[0] }, Softmax { state: dense_state, cap: caps[1] }],
                    &on_gpu,
                    (0.3, &kl),
                )
                .expect("vocab_kl");
        }
        let got = read(&mut c, &kl, DIVERGENCE * tokens);
        let (own, other) = (self.sums(), dense.sums());
        let divergence = |t: usize| match targets[t] {
            u32::MAX => 0.0,
            _ => own[t].divergence(&other[t], &got, tokens, t),
        };
        ((0..tokens).map(divergence).collect(), (0..tokens).map(|t| agrees(&got, tokens, t)).collect())
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
/// Kinds of logits, and a cap that bends them.
const KINDS: [(&str, Make, f32); 6] = [
    ("+-1", |r, _, _| r.value(1.0), 0.5),
    ("+-80", |r, _, _| r.value(80.0), 30.0),
    ("+-1e4", |r, _, _| r.value(1e4), 5e3),
    ("falling from 80", |_, row, vocab| 80.0 - 160.0 * row as f32 / vocab as f32, 30.0),
    ("all -1e4", |_, _, _| -1e4, 5e3),
    ("one among -1e30", |_, row, vocab| if row == vocab / 2 { 3.0 } else { -1e30 }, 30.0),
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
            for (kind, make, cap) in KINDS {
                let logits: Vec<f32> =
                    (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
                let targets = targets(&mut random, vocab, tokens);
                for cap in [None, Some(cap)] {
                    let want = reference::vocab_gradient(&logits, &targets, 0.3, tokens, cap);
                    for cut in cuts(vocab) {
                        let label = format!("{name} [{vocab}, {tokens}] {kind} in {cut:?}, cap {cap:?}");
                        let pieces = Pieces::new(&kernels, &logits, &cut, &targets, cap);
                        let (mut c, on_gpu) = (commands(), vector(gpu(), &targets));
                        for (i, &(first, rows, _)) in pieces.pieces.iter().enumerate() {
                            let (chunk, state) = (pieces.padded(i), pieces.state());
                            kernels
                                .vocab_gradient(
                                    &mut c,
                                    chunk,
                                    first..first + rows,
                                    &on_gpu,
                                    Softmax { state, cap },
                                    0.3,
                                )
                                .expect("vocab_gradient");
                        }
                        c.finish().expect("the gradient");
                        worst.check(&label, &pieces.read(&label), &want);
                    }
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
            for ((kind, make, cap), (distance, other)) in
                KINDS.iter().flat_map(|k| others.iter().map(move |o| (k, o)))
            {
                let logits: Vec<f32> =
                    (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
                let dense: Vec<f32> = logits.iter().map(|&x| other(&mut random, x)).collect();
                let targets = targets(&mut random, vocab, tokens);
                let cap = Some(*cap);
                for caps in [[None; 2], [cap; 2], [cap, None], [None, cap]] {
                    let (want, agree) = reference::vocab_kl(&logits, &dense, &targets, 0.3, tokens, caps);
                    for cut in cuts(vocab) {
                        let label = format!(
                            "{name} [{vocab}, {tokens}] {kind}, {distance}, in {cut:?}, caps {caps:?}"
                        );
                        let pieces = Pieces::new(&kernels, &logits, &cut, &targets, caps[0]);
                        let of_dense = Pieces::new(&kernels, &dense, &cut, &targets, caps[1]);
                        let (divergence, agreement) = pieces.diverge(&kernels, &of_dense, &targets, caps);
                        for (t, (got, [least, most])) in agreement.iter().zip(&agree).enumerate() {
                            // Ties count as agreement.
                            let sure = (*least > 0.0) == (*most > 0.0);
                            assert!(!sure || *got == (*most > 0.0), "{label}: agreement of token {t}: {got}");
                        }
                        worst[0].check(&label, &pieces.read(&label), &want[0]);
                        worst[1].check(&label, &divergence, &want[1]);
                        if *distance == "same" && caps[0] == caps[1] {
                            assert!(divergence.iter().all(|&d| d == 0.0), "{label}: {divergence:?}");
                        }
                    }
                }
            }
        }
    }
}

/// Losses and divergences over vocabularies of any size are right to 2e-6 nats: one running sum in f32 is off by 1e-4 at 150 000. Gradients
/// within their units.
#[test]
fn large_vocabularies_lose_no_digits() {
    let kinds: [(&str, Make); 3] = [
        ("random", |r, _, _| r.value(3.0) + r.value(3.0) + r.value(3.0)),
        ("alike but one", |_, row, vocab| if row == vocab / 3 { 9.3 } else { 1.0 / 3.0 }),
        ("rising slowly", |_, row, vocab| 12.0 * row as f32 / vocab as f32),
    ];
    let mut random = Random::new(9);
    let mut worst = Worst::new("gradients over large vocabularies", 4.0);
    let mut most = [0.0f64; 2];
    let tokens = 4;
    for vocab in [50_000, 150_000, 300_000, 700_000] {
        for (kind, make) in kinds {
            let logits: Vec<f32> =
                (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
            let dense: Vec<f32> = logits.iter().map(|&x| x + random.value(0.5)).collect();
            let targets = [17, vocab as u32 - 1, vocab as u32 / 2, 0];
            let want = reference::vocab_reduce(&logits, &targets, tokens, None).loss;
            let ([gradient, kl], _) = reference::vocab_kl(&logits, &dense, &targets, 0.3, tokens, [None; 2]);
            for name in offered(&["tile64", "rows16"]) {
                let kernels = kernels(name);
                let label = format!("{name}, {vocab} rows, {kind}");
                // Whole, and in pieces that no level of the sums divides.
                let cut = match name {
                    "tile64" => vec![vocab],
                    _ => vec![vocab / 5 + 3, vocab - vocab / 5 - 3],
                };
                let own = Pieces::new(&kernels, &logits, &cut, &targets, None);
                let other = Pieces::new(&kernels, &dense, &cut, &targets, None);
                let losses: Vec<f64> = own.sums().iter().map(LogSum::loss).collect();
                let (divergences, _) = own.diverge(&kernels, &other, &targets, [None; 2]);
                for (i, (got, want)) in [(&losses, &want), (&divergences, &kl)].into_iter().enumerate() {
                    for (got, want) in got.iter().zip(&want.value) {
                        let off = (got - want).abs();
                        most[i] = most[i].max(off);
                        assert!(off <= 2e-6, "{label}: {got} for {want}, off by {off:e}");
                    }
                }
                worst.check(&label, &own.read(&label), &gradient);
            }
        }
    }
    println!("losses are off by {:.1e} nats at most, divergences by {:.1e}", most[0], most[1]);
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let (wide, odd) = (all(&x, 16, 4), all(&x, 12, 4));
    let (state, small) = (all(&x, VOCAB_STATE, 4), vector(gpu(), &[0.0f32; 4]));
    let layout = Layout { windows: 1, length: 16 };
    let (v, mut c) = (x.buffer(), commands());
    let results = [
        kernels.squared_error(&mut c, [wide, odd], None, 1.0, v, layout),
        kernels.squared_error(&mut c, [wide, wide], None, 1.0, &small, layout),
        kernels.squared_error(&mut c, [wide, wide], Some(&small), 1.0, v, layout),
        kernels.squared_error(&mut c, [wide, wide], None, 1.0, v, Layout { windows: 2, length: 16 }),
        kernels.vocab_gradient(&mut c, wide, 0..17, v, Softmax { state, cap: None }, 1.0),
        kernels.vocab_gradient(&mut c, wide, 0..16, &small, Softmax { state, cap: None }, 1.0),
        kernels.vocab_gradient(&mut c, wide, 0..16, v, Softmax { state: odd, cap: None }, 1.0),
        kernels.vocab_gradient(&mut c, wide, 0..16, v, Softmax { state, cap: Some(-1.0) }, 1.0),
        kernels.vocab_kl(
            &mut c,
            [wide, odd],
            0..12,
            [Softmax { state, cap: None }, Softmax { state, cap: None }],
            v,
            (1.0, v),
        ),
        kernels.vocab_kl(
            &mut c,
            [wide, wide],
            0..16,
            [Softmax { state, cap: None }, Softmax { state: odd, cap: None }],
            v,
            (1.0, v),
        ),
        kernels.vocab_kl(
            &mut c,
            [wide, wide],
            0..16,
            [Softmax { state, cap: None }, Softmax { state, cap: None }],
            v,
            (1.0, &small),
        ),
        kernels.vocab_kl(
            &mut c,
            [wide, wide],
            0..16,
            [Softmax { state, cap: None }, Softmax { state, cap: Some(0.0) }],
            v,
            (1.0, v),
        ),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
    }
}
