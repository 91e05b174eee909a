//! Decoding token by token gives the logits of the whole window at once, for every family, dense and under masks.

mod common;
mod reference;

use common::model::{Expected, FIXTURES, Model, forward};
use common::{commands, gpu, preset, presets};
use maskwright::kernel::Kernels;
use maskwright::nn::{DENSE, Generator, MaskBank, NnError};

/// Largest difference of a logit, relative to the largest logit: sums run in another order than in the whole window.
const TOLERANCE: f32 = 2e-5;

/// The first `prompt` tokens at once, the others one by one.
fn fixture(name: &str) {
    assert!(FIXTURES.contains(&name));
    let (model, expected) = (Model::fixture(name), Expected::of(name));
    let (batch, masks) = (expected.batch(), expected.masks(&model.config));
    let (windows, length) = (batch.layout.windows, batch.layout.length);
    for preset_name in presets() {
        for (what, set) in [("dense", None), ("masked", Some(&masks))] {
            let want = forward(gpu(), &preset(preset_name), &model, &batch, set).logits;
            let top = want.iter().flatten().fold(0.0f32, |top, v| top.max(v.abs()));
            let kernels = Kernels::new(gpu(), preset(preset_name));
            let weights = model.upload(gpu());
            let decoder = model.decoder(&kernels, &weights);
            let bank = set.map(|set| MaskBank::upload(gpu(), &model.config, set).expect("room"));
            let refs = bank.as_ref().map(MaskBank::refs);
            for prompt in [1, 5] {
                let mut c = commands();
                let mut generator =
                    Generator::new(&decoder, refs.as_deref().unwrap_or(DENSE), windows, length)
                        .unwrap_or_else(|e| panic!("{e}"));
                let mut worst = 0.0f32;
                for seen in prompt..=length {
                    let token = |w: usize| batch.ids[w * length + seen - 1];
                    let got = if seen == prompt {
                        let ids: Vec<u32> =
                            batch.ids.chunks(length).flat_map(|w| w[..prompt].to_vec()).collect();
                        generator.prompt(&mut c, &ids)
                    } else {
                        generator.step(&mut c, &(0..windows).map(token).collect::<Vec<_>>())
                    };
                    let got = got.unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!((got.len(), generator.seen()), (windows, seen));
                    for (w, logits) in got.iter().enumerate() {
                        for (g, e) in logits.iter().zip(&want[w * length + seen - 1]) {
                            worst = worst.max((g - e).abs() / top);
                        }
                    }
                }
                let label = format!("{name} {preset_name} {what}, prompt of {prompt}");
                println!("{label}: off by {worst:.1e} of the largest logit");
                assert!(worst <= TOLERANCE, "{label}: {worst:.1e}");
            }
        }
    }
}

every_fixture!(fixture);

/// More tokens than there is room for are an error, before anything runs.
#[test]
fn no_more_than_there_is_room_for() {
    let model = Model::fixture("llama_gqa_f32");
    let kernels = Kernels::new(gpu(), preset("rows16"));
    let weights = model.upload(gpu());
    let decoder = model.decoder(&kernels, &weights);
    let new = || Generator::new(&decoder, DENSE, 1, 3).expect("room");
    let mut c = commands();
    let full = |result: Result<_, NnError>| {
        let error = result.map(|_: Vec<Vec<f32>>| ()).expect_err("no room");
        assert!(matches!(error, NnError::Full { capacity: 3, .. }), "{error}");
    };
    full(new().prompt(&mut c, &[1, 2, 3, 4]));
    full(new().prompt(&mut c, &[]));
    let mut generator = new();
    generator.prompt(&mut c, &[1, 2]).expect("room");
    full(generator.prompt(&mut c, &[1]));
    full(generator.step(&mut c, &[1, 2]));
    generator.step(&mut c, &[1]).expect("room");
    full(generator.step(&mut c, &[1]));
}
