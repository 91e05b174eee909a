//! The three policy-gradient estimators on a model whose masks can all be enumerated: the exact gradient is known, so that
//! "all unbiased, Var tracked <= Var residual < Var loss" (MaskPro, theorem 2) is checked and not believed.

mod host_fixture;
mod reference;

use std::collections::BTreeMap;

use host_fixture::{Scratch, config_with, magnitude_masks, tensors, write_config, write_safetensors};
use maskwright::calib::Windows;
use maskwright::gpu::{Commands, Gpu, GpuOptions};
use maskwright::kernel::{Kernels, Layout, Preset};
use maskwright::mask::soft::logits_of;
use maskwright::mask::{BitMask, MaskSet, Pattern};
use maskwright::model::{Architecture, Checkpoint};
use maskwright::nn::{Batch, Decoder, DecoderWeights, Embedding, MaskBank, Workspace};
use maskwright::prune::maskpro::{self, Estimator, Learner, Options};
use maskwright::prune::{select, variance};
use reference::law;
use serde_json::json;

const SCALE: f32 = 1.5;
const SAMPLES: u32 = 3000;
/// Windows of a minibatch; there are two minibatches.
const BATCH: usize = 4;

/// One block whose value projection is [2, 8]: four groups, 6^4 = 1296 masks.
fn tiny(dir: &Scratch) -> Architecture {
    let sizes = json!({
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2
    });
    write_config(dir.path(), &config_with(sizes));
    let config = Architecture::read(dir.path()).unwrap();
    let mut all = tensors(&config);
    for (name, tensor) in &mut all {
        // Small weights would make the loss flat: scale the stored f16 and f32 values up.
        let f = if name.contains("norm") { 2.0 } else { 4.0 };
        match tensor.dtype {
            safetensors::Dtype::F16 => tensor.data.chunks_exact_mut(2).for_each(|b| {
                let v = half::f16::from_le_bytes([b[0], b[1]]).to_f32() * f;
                b.copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
            }),
            _ => tensor.data.chunks_exact_mut(4).for_each(|b| {
                let v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]) * f;
                b.copy_from_slice(&v.to_le_bytes());
            }),
        }
    }
    write_safetensors(&dir.join("model.safetensors"), &all);
    config
}

/// Every mask of `groups` groups of 2:4 in a `[rows, cols]` tensor, as the kept sets of the groups.
fn all_masks(groups: usize) -> Vec<Vec<u32>> {
    let sets = law::kept_sets(2, 4);
    let mut out: Vec<Vec<u32>> = vec![Vec::new()];
    for _ in 0..groups {
        out = out.iter().flat_map(|m| sets.iter().map(|&s| [m.as_slice(), &[s]].concat())).collect();
    }
    out
}

fn to_bits(rows: usize, cols: usize, groups: &[u32]) -> BitMask {
    let mut mask = BitMask::zeros(rows, cols);
    for (g, &set) in groups.iter().enumerate() {
        for i in (0..4).filter(|i| set >> i & 1 == 1) {
            mask.set(g * 4 / cols, g * 4 % cols + i, true);
        }
    }
    mask
}

#[test]
fn estimators_are_unbiased_and_ordered() {
    let dir = Scratch::new();
    let config = tiny(&dir);
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    let gpu = Gpu::open(GpuOptions::default()).expect("an adapter is needed");
    println!("adapter: {}", gpu.describe());
    let kernels = Kernels::new(&gpu, Preset::of_kind(gpu.kind()));
    let weights = DecoderWeights::upload(&gpu, &checkpoint, &config, |_| ()).unwrap();
    let embedding = Embedding::new(&checkpoint, &config).unwrap();
    let decoder = Decoder { kernels: &kernels, config: &config, weights: &weights, embedding };
    let mut commands = Commands::new(&gpu).unwrap();

    let pattern = Pattern::new(2, 4).unwrap();
    let selection = select(&config, pattern, &["v_proj".to_string()], false).unwrap();
    let start = magnitude_masks(&checkpoint, &selection, pattern);
    let tokens: Vec<u32> = (0..2 * BATCH as u32 * 8).map(|i| (i * i * 7 + i / 3) % 12).collect();
    let windows = Windows::new(tokens, 8).unwrap();

    // The exact gradient: sum over all masks of P(m) f(m) d log P(m).
    let projection = &selection.pruned[0].1;
    let (rows, cols) = (projection.rows, projection.cols);
    let groups = rows * cols / 4;
    let start_mask = &start.masks[&projection.name];
    let logits: Vec<f64> = (0..rows * cols)
        .map(|i| if start_mask.get(i / cols, i % cols) { f64::from(SCALE) } else { 0.0 })
        .collect();
    let layout = Layout { windows: windows.count(), length: windows.window() };
    let sizes = maskpro::sizes(&config, layout.length, layout.windows, gpu.max_binding_bytes());
    let ws = Workspace::new(&gpu, &config, sizes).unwrap();
    let batch = Batch { ids: windows.tokens().to_vec(), layout };
    let bank = MaskBank::upload(&gpu, &config, &start).unwrap();
    let mut exact = vec![0.0; rows * cols];
    let mut spread = (f64::MAX, f64::MIN);
    for mask in all_masks(groups) {
        let set = MaskSet {
            pattern,
            masks: BTreeMap::from([(projection.name.clone(), to_bits(rows, cols, &mask))]),
        };
        bank.fill(&gpu, &config, &set).unwrap();
        let f = decoder.losses(&mut commands, &ws, &batch, &bank.refs()).unwrap().mean();
        spread = (spread.0.min(f), spread.1.max(f));
        let of = |g: usize| &logits[g * 4..g * 4 + 4];
        let p: f64 = (0..groups).map(|g| law::probability(of(g), mask[g])).product();
        for g in 0..groups {
            for (e, s) in exact[g * 4..].iter_mut().zip(law::score(of(g), mask[g])) {
                *e += p * f * s;
            }
        }
    }
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    println!("losses of all masks: {:.4} to {:.4}; |exact gradient| {:.5}", spread.0, spread.1, norm(&exact));
    assert!(spread.1 - spread.0 > 0.05, "the model does not depend on its mask");

    let options = Options {
        pattern,
        estimator: Estimator::Tracked,
        steps: 0,
        rate: 0.0,
        scale: SCALE,
        sharpness: None,
        batch: BATCH,
        alpha: 0.99,
        seed: 7,
    };
    let mut learner = Learner::new(
        &decoder,
        &mut commands,
        (&selection, &start),
        &windows,
        options,
        |_, mask| Ok(logits_of(mask, SCALE)),
        |_, _| (),
    )
    .unwrap();
    let rows = variance::measure(&mut learner, pattern, 500, SAMPLES, |_| ()).unwrap();
    for r in &rows {
        // The tracker holds 1 % of the current residual: its estimate is 0.99 of the gradient.
        let factor = if r.estimator == "tracked" { 0.99 } else { 1.0 };
        let off: Vec<f64> = r.mean.iter().zip(&exact).map(|(m, e)| m - factor * e).collect();
        println!(
            "{:9} variance {:.4e}  |mean - exact| {:.4e}  standard error {:.4e}",
            r.estimator,
            r.variance,
            norm(&off),
            r.standard_error
        );
        assert!(norm(&off) < 2.0 * r.standard_error, "{} is biased", r.estimator);
    }
    let v = |i: usize| rows[i].variance;
    assert!(v(1) < 0.5 * v(0), "the residual must scatter far less than the loss");
    assert!(v(2) < v(1), "the tracker must not add variance");
    // The sharpest estimate must see the gradient at all, or unbiasedness means nothing.
    assert!(rows[2].standard_error < 0.3 * norm(&exact));
}
