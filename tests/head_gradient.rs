//! The head's loss and gradient against f64, of a model with tied and one with an output matrix of its own, the vocabulary in
//! pieces; and the f64 gradient against central differences.

mod common;
mod reference;

use common::differences::{check_differences, even};
use common::model::Model;
use common::{Random, Worst, activation, commands, gpu, kernels, open, presets, read, untouched};
use maskwright::gpu::GpuOptions;
use maskwright::kernel::{Activation, Layout};
use maskwright::nn::{Batch, HeadLoss, HeadPass, HeadSpace, HeadWeights, NnError, Sizes};
use reference::Head;

fn floats(model: &Model, name: &str) -> Vec<f32> {
    model.checkpoint.tensor(name).expect("a tensor").to_f32()
}

/// What the tests need of a model's head.
struct Fixture {
    model: Model,
    gain: Vec<f32>,
    output: Vec<f32>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let model = Model::fixture(name);
        let gain = floats(&model, &format!("{}.weight", model.config.final_norm_module()));
        let output = floats(&model, &model.config.output_name());
        Self { model, gain, output }
    }

    fn twin(&self) -> Head<'_> {
        Head { gain: &self.gain, eps: self.model.config.norm.eps, output: &self.output }
    }

    fn batch(&self, random: &mut Random, layout: Layout) -> Batch {
        let vocab = self.model.config.vocab_size;
        let ids = (0..layout.windows * layout.length).map(|_| random.below(vocab) as u32).collect();
        Batch { ids, layout }
    }
}

/// The next token within the window, for the padded tokens of a batch.
fn targets(batch: &Batch) -> Vec<u32> {
    let (window, length) = (4 * batch.layout.window4(), batch.layout.length);
    let next = |i: usize| {
        let (w, at) = (i / window, i % window);
        if at + 1 < length { batch.ids[w * length + at + 1] } else { u32::MAX }
    };
    (0..batch.layout.windows * window).map(next).collect()
}

const FIXTURES: [&str; 2] = ["llama_gqa_f32", "mistral_bf16"];

#[test]
fn twin_against_differences() {
    let mut random = Random::new(1);
    for name in FIXTURES {
        let fixture = Fixture::open(name);
        let count = 8 * fixture.gain.len();
        let (x, dense) = (even(&mut random, count, 2.0), random.values(count, 2.0));
        let batch = fixture.batch(&mut random, Layout { windows: 1, length: 7 });
        let targets = targets(&batch);
        for dense in [None, Some(dense.as_slice())] {
            let loss = |x: &[f32]| {
                let twin = fixture.twin().gradient(x, dense, &targets, 0.25);
                0.25 * if dense.is_some() { &twin.kl } else { &twin.nll }.iter().sum::<f64>()
            };
            let twin = fixture.twin().gradient(&x, dense, &targets, 0.25);
            check_differences(&format!("{name} {}", dense.is_some()), &x, &twin.d_x.value, loss);
        }
    }
}

#[test]
fn gradient_of_the_head() {
    let mut worst = Worst::new("gradient of the head", 0.5);
    let mut random = Random::new(2);
    for name in FIXTURES {
        let fixture = Fixture::open(name);
        let config = &fixture.model.config;
        assert_eq!(config.tie_word_embeddings, name == FIXTURES[0]);
        assert!(!config.vocab_size.is_multiple_of(4), "a piece of the vocabulary is padded");
        let hidden = config.hidden_size;
        let weights = HeadWeights::upload(gpu(), &fixture.model.checkpoint, config).expect("weights");
        for (preset, rows) in presets().into_iter().flat_map(|p| [(p, 38), (p, 1000)]) {
            let kernels = kernels(preset);
            // Room for more windows than there are.
            let largest = Layout { windows: 4, length: 21 };
            let mut sizes = Sizes::new(config, largest, gpu().max_binding_bytes());
            sizes.vocab_rows = rows.min(config.vocab_size);
            let batch = fixture.batch(&mut random, Layout { windows: 3, length: 21 });
            let (t4, targets) = (batch.layout.t4(), targets(&batch));
            let count = hidden * 4 * t4;
            let (x, dense) = (random.values(count, 3.0), random.values(count, 3.0));
            let scale = 1.0 / 60.0;
            for kl in [false, true] {
                let space = HeadSpace::training(gpu(), config, &sizes, kl).expect("room");
                let head = HeadPass { kernels: &kernels, config, weights: &weights, ws: &space };
                let on = |v: &[f32]| activation(gpu(), hidden, t4, v);
                let [xa, da, normed, out] =
                    [on(&x), on(&dense), on(&untouched(count)), on(&untouched(count))];
                let [xa, da, normed, out] = [&xa, &da, &normed, &out];
                let all = |a| Activation::rows(a, 0, hidden, t4).expect("rows");
                let loss = if kl { HeadLoss::Kl { dense: all(da) } } else { HeadLoss::CrossEntropy };
                let mut c = commands();
                // Twice: nothing is left over from the batch before.
                for _ in 0..2 {
                    let losses = head
                        .gradient(&mut c, &batch, all(xa), all(normed), all(out), (loss, scale))
                        .expect("a gradient");
                    let label = format!("{name} {preset}, {rows} rows at once, kl {kl}");
                    let want = fixture.twin().gradient(&x, kl.then_some(&dense), &targets, scale);
                    worst.check(&label, &read(&mut c, out.buffer(), count), &want.d_x);
                    let near = |got: &[f64], want: &[f64]| {
                        assert_eq!(got.len(), 60);
                        let off = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
                        assert!(off < 1e-5, "{label}: a loss is off by {off}");
                    };
                    near(&losses.tokens.nll, &want.nll);
                    assert_eq!(losses.kl.is_some(), kl);
                    if let Some(got) = &losses.kl {
                        near(got, &want.kl);
                    }
                    let of = if kl { &want.kl } else { &want.nll };
                    assert!((losses.mean() - of.iter().sum::<f64>() / 60.0).abs() < 1e-5, "{label}");
                    let plain = head.losses(&mut c, &batch, all(xa), all(normed)).expect("losses");
                    near(&plain.nll, &losses.tokens.nll);
                }
            }
        }
    }
}

/// The plan's bytes are those that are allocated.
#[test]
fn bytes_of_the_space() {
    let gpu = open(GpuOptions::default());
    for name in FIXTURES {
        let model = Model::fixture(name);
        for (rows, kl) in [(38, false), (38, true), (1000, true)] {
            let mut sizes = Sizes::new(&model.config, Layout { windows: 3, length: 21 }, 1 << 20);
            sizes.vocab_rows = rows.min(model.config.vocab_size);
            let before = gpu.memory_in_use();
            let space = HeadSpace::training(&gpu, &model.config, &sizes, kl).expect("room");
            let taken = gpu.memory_in_use() - before;
            assert_eq!(taken, HeadSpace::training_bytes(&model.config, &sizes, kl), "{name} {rows} {kl}");
            drop(space);
        }
    }
}

/// A space that was made for less says so.
#[test]
fn spaces_without_room_are_refused() {
    let fixture = Fixture::open(FIXTURES[0]);
    let (config, layout) = (&fixture.model.config, Layout { windows: 1, length: 8 });
    let weights = HeadWeights::upload(gpu(), &fixture.model.checkpoint, config).expect("weights");
    let sizes = Sizes::new(config, layout, gpu().max_binding_bytes());
    let (hidden, kernels) = (config.hidden_size, kernels("rows16"));
    let batch = fixture.batch(&mut Random::new(3), layout);
    let buffers = [(); 4].map(|()| activation(gpu(), hidden, 2, &vec![1.0; hidden * 8]));
    let [x, dense, normed, d_x] = [0, 1, 2, 3].map(|i| buffers[i].rows(0, hidden, 2).expect("rows"));
    let spaces = [HeadSpace::new(gpu(), &sizes), HeadSpace::training(gpu(), config, &sizes, false)];
    for (space, loss) in spaces.into_iter().zip([HeadLoss::CrossEntropy, HeadLoss::Kl { dense }]) {
        let space = space.expect("room");
        let head = HeadPass { kernels: &kernels, config, weights: &weights, ws: &space };
        let result = head.gradient(&mut commands(), &batch, x, normed, d_x, (loss, 1.0));
        assert!(matches!(result, Err(NnError::Gpu(_))));
    }
}
