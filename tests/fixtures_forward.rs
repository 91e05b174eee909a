//! The decoder against transformers: random models of every family logit by logit, real models by their perplexity.

mod common;
mod reference;

use common::model::{Expected, FIXTURES, Model, Output, forward};
use common::{gpu, preset, presets};

/// Largest difference of a logit, relative to the spread (standard deviation) of the model's logits. Both sides compute in f32,
/// in different orders: the bound is seven times the largest seen (7.3e-6).
const LOGIT_TOLERANCE: f64 = 5e-5;
/// Largest difference of a token's loss, in nats (seen: 8e-6).
const LOSS_TOLERANCE: f64 = 1e-4;

fn spread(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Compares with the tensors `logits` and `nll` (or `logits_masked`, `nll_masked`); returns the worst differences.
fn compare(label: &str, got: &Output, expected: &Expected, suffix: &str) -> (f64, f64) {
    let logits = expected.f32(&format!("logits{suffix}"));
    let spread = spread(&logits);
    let flat: Vec<f32> = got.logits.iter().flatten().copied().collect();
    assert_eq!(flat.len(), logits.len(), "{label}: number of logits");
    let off = |(i, (&g, &w)): (usize, (&f32, &f32))| (i, (f64::from(g) - f64::from(w)).abs() / spread);
    let worst = |a: (usize, f64), b: (usize, f64)| if b.1 > a.1 || b.1.is_nan() { b } else { a };
    let (at, logit) = flat.iter().zip(&logits).enumerate().map(off).fold((0, 0.0), worst);
    let vocab = got.logits[0].len();
    assert!(
        logit <= LOGIT_TOLERANCE,
        "{label}: token {} logit {}: {} for {}, off by {logit:.2e} of the spread {spread:.3}",
        at / vocab,
        at % vocab,
        flat[at],
        logits[at]
    );
    let nll = expected.f32(&format!("nll{suffix}"));
    assert_eq!(got.losses.nll.len(), nll.len(), "{label}: number of losses");
    let mut loss = 0.0f64;
    for (i, (&g, &w)) in got.losses.nll.iter().zip(&nll).enumerate() {
        let off = (g - f64::from(w)).abs();
        assert!(off <= LOSS_TOLERANCE, "{label}: loss {i}: {g} for {w}");
        loss = loss.max(off);
    }
    (logit, loss)
}

/// Dense and under the fixtures' masks, for both kinds of preset.
fn fixture(name: &str) {
    assert!(FIXTURES.contains(&name));
    let (model, expected) = (Model::fixture(name), Expected::of(name));
    let (batch, masks) = (expected.batch(), expected.masks(&model.config));
    for preset_name in presets() {
        for (what, masks, suffix) in [("dense", None, ""), ("masked", Some(&masks), "_masked")] {
            let label = format!("{name} {preset_name} {what}");
            let got = forward(gpu(), &preset(preset_name), &model, &batch, masks);
            let (logit, loss) = compare(&label, &got, &expected, suffix);
            println!("{label}: logits off by {logit:.1e} of their spread, losses by {loss:.1e}");
        }
    }
}

every_fixture!(fixture);

/// Masks matter at all: the masked fixtures are no copy of the dense ones.
#[test]
fn masked_and_dense_differ() {
    for name in FIXTURES {
        let expected = Expected::of(name);
        let (dense, masked) = (expected.f32("logits"), expected.f32("logits_masked"));
        let apart = dense.iter().zip(&masked).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(apart > 1e3 * LOGIT_TOLERANCE * spread(&dense), "{name}: {apart}");
    }
}

/// A token beyond the vocabulary is an error that names it.
#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    use maskwright::kernel::Kernels;
    use maskwright::nn::{DENSE, NnError, Sizes, Workspace};
    let model = Model::fixture("mistral_bf16");
    let mut batch = Expected::of("mistral_bf16").batch();
    batch.ids[40] = 130;
    let kernels = Kernels::new(gpu(), preset("rows16"));
    let weights = model.upload(gpu());
    let sizes = Sizes::new(&model.config, batch.layout, gpu().max_binding_bytes());
    let ws = Workspace::new(gpu(), &model.config, sizes).expect("room");
    let error = model.decoder(&kernels, &weights).losses(&mut common::commands(), &ws, &batch, DENSE);
    assert!(matches!(error, Err(NnError::Token { token: 130, vocab: 130 })), "{:?}", error.err());
}

/// Perplexity of the first windows of 256 tokens of the validation text, against transformers in f32:
/// `python tests/interop/check_hf_model.py ../shared/models/NAME --text ../shared/texts/tinystories-valid.txt --window 256
/// --windows N` (transformers 5.23.0, torch 2.15.0).
fn perplexity(name: &str, count: usize, preset_name: &str, expected: f64) {
    use maskwright::calib::{Windows, tokens_of_file};
    use maskwright::kernel::Kernels;
    use maskwright::model::Tokenizer;
    use maskwright::nn::DENSE;
    let shared = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = shared.join("models").join(name);
    let model = Model::open(&folder);
    let tokenizer = Tokenizer::open(&folder, &model.config).expect("a tokenizer");
    let tokens = tokens_of_file(&tokenizer, &shared.join("texts/tinystories-valid.txt")).expect("a text");
    let total = tokens.len();
    let windows = Windows::new(tokens, 256).expect("windows").first(count);
    let kernels = Kernels::new(gpu(), preset(preset_name));
    let weights = model.upload(gpu());
    let decoder = model.decoder(&kernels, &weights);
    let ws = maskwright::eval::workspace(&decoder, &windows, usize::MAX).expect("room");
    let mut c = common::commands();
    let result = maskwright::eval::perplexity(&decoder, &mut c, &ws, &windows, total, DENSE, |_| ());
    let got = result.unwrap_or_else(|e| panic!("{e}"));
    let off = got.perplexity / expected - 1.0;
    println!("{name} {preset_name}: perplexity {:.6} for {expected:.6}, off by {off:.1e}", got.perplexity);
    assert_eq!(got.windows, count);
    assert!(off.abs() <= 1e-4, "{name} {preset_name}: perplexity {} for {expected}", got.perplexity);
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn stories260k_perplexity() {
    for preset_name in presets() {
        perplexity("stories260K", 8, preset_name, 3.713_666_312);
    }
    perplexity("stories260K", 64, "rows16", 3.825_808_048);
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn stories3m_perplexity() {
    perplexity("stories3M", 4, "rows16", 3.658_760_414);
}

/// Logits that transformers computed in bf16, whose rounding is all that may differ: `vectors/tiny_llama/logits.json`.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn tiny_llama_logits_in_bf16() {
    use maskwright::kernel::Layout;
    use maskwright::nn::Batch;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors/tiny_llama");
    let text = std::fs::read(folder.join("logits.json")).expect("the vector");
    let told: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let list = |key: &str| told[key].as_array().expect("a list").clone();
    let ids: Vec<u32> = list("input_ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    let layout = Layout { windows: 1, length: ids.len() };
    let model = Model::open(&folder.join("a_dense"));
    let got = forward(gpu(), &preset("rows16"), &model, &Batch { ids, layout }, None);
    let rows = [("first_row_first8", got.logits.first()), ("last_row_first8", got.logits.last())];
    let mut worst = 0.0f64;
    for (key, row) in rows {
        for (ours, theirs) in row.expect("a token").iter().zip(list(key)) {
            worst = worst.max((f64::from(*ours) - theirs.as_f64().expect("a number")).abs());
        }
    }
    let spread = spread(&got.logits.concat());
    println!("off by {worst:.1e}, the spread is {spread:.3}");
    // bf16 has 8 bits: a few roundings of values of the spread's size.
    assert!(worst < 0.02 * spread, "off by {worst:.1e}, the spread is {spread:.3}");
}
