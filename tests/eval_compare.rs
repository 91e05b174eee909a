//! Models under a mask beside their dense selves, one block at a time, against what transformers computed.

mod common;
mod reference;

use common::model::{Expected, FIXTURES, Model};
use common::{commands, kernels, presets};
use maskwright::calib::Windows;
use maskwright::eval::Streamed;
use maskwright::nn::Embedding;

/// Logarithms of the probabilities of one token, and its most likely token.
fn log_softmax(logits: &[f32]) -> (Vec<f64>, usize) {
    let most = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("logits");
    let max = f64::from(logits[most]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    (logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect(), most)
}

/// Mean divergence and agreement of the predicted tokens, from the fixture's logits in f64.
fn expected(fixture: &Expected, vocab: usize, length: usize) -> (f64, f64) {
    let (dense, masked) = (fixture.f32("logits"), fixture.f32("logits_masked"));
    let (mut kl, mut agree, mut count) = (0.0, 0.0, 0.0);
    for (t, (d, q)) in dense.chunks_exact(vocab).zip(masked.chunks_exact(vocab)).enumerate() {
        if t % length == length - 1 {
            continue;
        }
        let ((d, top), (q, other)) = (log_softmax(d), log_softmax(q));
        kl += d.iter().zip(&q).map(|(d, q)| d.exp() * (d - q)).sum::<f64>();
        agree += f64::from(u8::from(top == other));
        count += 1.0;
    }
    (kl / count, agree / count)
}

#[test]
fn divergence_of_masked_models() {
    for name in FIXTURES {
        let (model, fixture) = (Model::fixture(name), Expected::of(name));
        let (batch, masks) = (fixture.batch(), fixture.masks(&model.config));
        let length = batch.layout.length;
        let windows = Windows::new(batch.ids.clone(), length).expect("windows");
        let (kl, top1) = expected(&fixture, model.config.vocab_size, length);
        let embedding = Embedding::new(&model.checkpoint, &model.config).expect("an embedding");
        for preset in presets() {
            let kernels = kernels(preset);
            let (config, tensors) = (&model.config, &model.checkpoint);
            let streamed = Streamed { kernels: &kernels, config, tensors, embedding: &embedding };
            let mut c = commands();
            let dense = streamed.streams(&mut c, &windows, &streamed, |_| ()).expect("streams");
            let count = batch.ids.len();
            let compare = |c: &mut _, set| streamed.compare(c, &windows, count, set, &dense, |_| ());
            let found = compare(&mut c, Some(&masks)).expect("a comparison");
            let off = (found.kl / kl - 1.0).abs();
            println!("{name} {preset}: divergence {} for {kl}, top-1 {}", found.kl, found.top1);
            assert!(off < 1e-4, "{name} {preset}: divergence {} for {kl}", found.kl);
            assert_eq!(found.top1, top1, "{name} {preset}");
            assert!(found.model.nll != found.dense.nll);
            let itself = compare(&mut c, None).expect("a comparison");
            assert_eq!((itself.kl, itself.top1), (0.0, 1.0), "{name} {preset}");
            assert_eq!((itself.model.nll, itself.dense.nll), (found.dense.nll, found.dense.nll));
        }
    }
}
