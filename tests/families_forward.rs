//! Every family against transformers: logits dense and under masks, written text, and the gradients of a block, of the tiny random
//! models in tests/fixtures/families.

mod common;
mod reference;

use common::model::{
    Expected, Model, family_folder, family_models, feature_major, forward, token_major, whole,
};
use common::{commands, gpu, preset, presets};
use maskwright::gpu::Commands;
use maskwright::kernel::{Activation, Kernels, Masking};
use maskwright::mask::{BitMask, MaskSet, Pattern};
use maskwright::model::{Architecture, ProjectionKind};
use maskwright::nn::{
    BlockWeights, DENSE, Generator, GradientSink, NnError, Sizes, TrainPass, TrainSpace, WeightGradient,
};

/// Largest difference of a logit, relative to the spread (standard deviation) of the model's logits.
const LOGITS: f64 = 1e-4;
/// Largest relative error of a block's output and of its gradients, by their norm.
const GRADIENTS: f64 = 1e-3;

/// Families that are refused, with what the message names; the others must all pass.
const REFUSED: [(&str, &str); 1] = [("opt_350m", "do_layer_norm_before")];

/// The models that are not refused.
fn models() -> Vec<String> {
    family_models().into_iter().filter(|name| REFUSED.iter().all(|(refused, _)| refused != name)).collect()
}

/// The first and the last, in turn: the one of GPUs, and on a software driver the one that it uses. Each model goes through both, one of its two
/// cases through each; the kernels' own tests take all.
fn two_presets(turn: usize) -> [&'static str; 2] {
    let all = presets();
    let (first, last) = (all[0], all[all.len() - 1]);
    if turn.is_multiple_of(2) { [first, last] } else { [last, first] }
}

fn spread(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The two largest magnitudes of each four along the inputs; ties to the lower index.
fn magnitude(model: &Model) -> MaskSet {
    let pattern = Pattern::new(2, 4).expect("2:4");
    let mut set = MaskSet::new(pattern);
    for p in model.config.projections() {
        let weights = model.checkpoint.tensor(&p.name).expect("a weight").to_f32();
        let mut words = vec![0u32; p.rows * p.cols.div_ceil(32)];
        for (g, group) in weights.chunks_exact(4).enumerate() {
            let mut order = [0, 1, 2, 3];
            order.sort_by(|&a, &b| group[b].abs().total_cmp(&group[a].abs()));
            let (row, first) = (g * 4 / p.cols, g * 4 % p.cols);
            for &i in &order[..2] {
                words[row * p.cols.div_ceil(32) + (first + i) / 32] |= 1 << ((first + i) % 32);
            }
        }
        let mask = BitMask::from_words(p.rows, p.cols, words).expect("a mask");
        set.masks.insert(p.name, mask);
    }
    set.check().expect("strict masks");
    set
}

#[test]
fn what_is_refused_is_refused_by_name() {
    for (name, key) in REFUSED {
        let error = Architecture::read(&family_folder(name)).expect_err("is refused").to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn logits_dense_and_under_masks() {
    let mut failed = Vec::new();
    for (turn, name) in models().into_iter().enumerate() {
        let (model, expected) = (Model::open(&family_folder(&name)), Expected::of_family(&name));
        let (batch, masks) = (expected.batch(), magnitude(&model));
        let cases = [(None, ""), (Some(&masks), "_masked")];
        for ((masks, suffix), preset_name) in cases.into_iter().zip(two_presets(turn)) {
            let got = forward(gpu(), &preset(preset_name), &model, &batch, masks);
            let logits = expected.f32(&format!("logits{suffix}"));
            let spread = spread(&logits);
            let off = |(&g, &w): (&f32, &f32)| (f64::from(g) - f64::from(w)).abs() / spread;
            let flat: Vec<f32> = got.logits.concat();
            assert_eq!(flat.len(), logits.len(), "{name}");
            let worst = flat.iter().zip(&logits).map(off).fold(0.0, f64::max);
            let nll = expected.f32(&format!("nll{suffix}"));
            let off = |(g, &w): (&f64, &f32)| (g - f64::from(w)).abs();
            let loss = got.losses.nll.iter().zip(&nll).map(off).fold(0.0, f64::max);
            println!("{name}{suffix} {preset_name}: logits off by {worst:.1e}, losses by {loss:.1e}");
            if worst.is_nan() || worst > LOGITS || loss.is_nan() || loss > 3e-4 {
                failed.push(format!("{name}{suffix} {preset_name}: {worst:.1e}, {loss:.1e}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn greedy_text() {
    let mut failed = Vec::new();
    for name in models() {
        let (model, expected) = (Model::open(&family_folder(&name)), Expected::of_family(&name));
        let kernels = Kernels::new(gpu(), preset(presets()[0]));
        let weights = model.upload(gpu());
        let decoder = model.decoder(&kernels, &weights);
        let (prompt, greedy) = (expected.ids("prompt"), expected.ids("greedy"));
        let mut c = commands();
        let mut generator =
            Generator::new(&decoder, DENSE, 1, prompt.len() + greedy.len()).expect("room for the cache");
        let mut logits = generator.prompt(&mut c, &prompt).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut written = Vec::new();
        while written.len() < greedy.len() {
            let best = logits[0].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a token").0;
            written.push(best as u32);
            if written.len() < greedy.len() {
                logits = generator.step(&mut c, &[best as u32]).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
        if written != greedy {
            failed.push(format!("{name}: {written:?} for {greedy:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Gradients of the weights of a block.
struct Collect<'a, 'g> {
    kernels: &'a Kernels<'g>,
    gradients: Vec<Option<Activation>>,
}

impl<'g> GradientSink<'g> for Collect<'_, 'g> {
    fn wants(&self, _: ProjectionKind) -> bool {
        true
    }

    fn take(
        &mut self,
        c: &mut Commands<'g>,
        kind: ProjectionKind,
        g: WeightGradient<'_>,
    ) -> Result<(), NnError> {
        let all = whole(self.gradients[kind as usize].as_ref().expect("a projection"));
        let rows = all.part(g.first_output, g.d_y.count).columns(g.first_input / 4, g.xt.t4);
        Ok(self.kernels.weight_gradient(c, g.d_y, g.xt, rows, false)?)
    }
}

/// Error relative to the norm of what is wanted.
fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    (off / norm.max(1e-30)).sqrt()
}

#[test]
fn gradients_of_a_block() {
    let mut failed = Vec::new();
    for (turn, name) in models().into_iter().enumerate() {
        let (model, expected) = (Model::open(&family_folder(&name)), Expected::of_family(&name));
        let (config, index) = (&model.config, expected.ids("block_index")[0] as usize);
        let (hidden, layout) = (config.hidden_size, expected.batch().layout);
        let t4 = layout.t4();
        // The whole feed-forward layer at once, and in pieces as where little can be bound.
        for (preset_name, limit) in two_presets(turn).into_iter().zip([u64::MAX >> 32, 16 * t4 as u64 * 8]) {
            let sizes = Sizes::new(config, layout, limit);
            let kernels = Kernels::new(gpu(), preset(preset_name));
            let mut c = commands();
            let block = BlockWeights::upload(gpu(), &model.checkpoint, config, index).expect("room");
            let ws = TrainSpace::new(gpu(), config, &sizes).expect("room");
            let upload = |name: &str| {
                common::activation(gpu(), hidden, t4, &feature_major(&expected.f32(name), hidden, layout))
            };
            let (x, d) = (upload("block.x"), upload("block.d_y"));
            let y = common::activation(gpu(), hidden, t4, &common::untouched(hidden * 4 * t4));
            let linears = block.train_linears(|_| Masking::Dense);
            let pass = TrainPass { kernels: &kernels, config, ws: &ws, layout, block: &block, linears };
            pass.forward(&mut c, whole(&x), whole(&y)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut check = |what: &str, got: &[f32], want: &[f32]| {
                let error = error(got, want);
                if error.is_nan() || error > GRADIENTS {
                    failed.push(format!(
                        "{name} {preset_name}, pieces of {}, {what}: {error:.1e}",
                        sizes.ffn_rows
                    ));
                }
            };
            let got = common::read(&mut c, y.buffer(), hidden * 4 * t4);
            check("y", &token_major(&got, hidden, layout), &expected.f32("block.y"));
            let mut sink = Collect { kernels: &kernels, gradients: ProjectionKind::ALL.map(|_| None).into() };
            for p in config.block_projections(index) {
                sink.gradients[p.kind as usize] =
                    Some(Activation::new(gpu(), "test:gradient", p.rows, p.cols / 4).expect("room"));
            }
            pass.backward(&mut c, whole(&x), whole(&d), true, &mut sink).expect("backward");
            let got = common::read(&mut c, d.buffer(), hidden * 4 * t4);
            check("d_x", &token_major(&got, hidden, layout), &expected.f32("block.d_x"));
            let parts = config.parts();
            for p in config.block_projections(index) {
                let got = sink.gradients[p.kind as usize].as_ref().expect("a projection");
                let got = common::read(&mut c, got.buffer(), p.rows * p.cols);
                let mut want = expected.f32(&format!("block.grad.{}", p.stored));
                if let Some(part) = parts.iter().find(|part| part.name == p.name) {
                    let bytes = part.gather(bytemuck::cast_slice(&want), 4);
                    want =
                        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                }
                check(&p.name, &got, &want);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
