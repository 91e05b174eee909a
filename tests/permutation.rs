//! Channels in another order: the model computes the same, of every way in which projections and norms lie in files.

mod common;
mod host_fixture;
mod reference;

use std::path::Path;

use common::model::{Expected, Model, family_folder, forward};
use common::{gpu, preset, presets};
use host_fixture::Scratch;
use maskwright::mask::Pattern;
use maskwright::model::{Architecture, BlockOrders, Channels, Checkpoint, ModelError, Permutation};
use maskwright::prune::permute::{PermuteOptions, permute};
use maskwright::prune::select;

/// Largest difference of a logit, relative to the largest of the model's logits: rounding of sums in another order.
const LOGITS: f64 = 1e-5;

/// A model of each: biases on all projections; on q, k and v, with a tied embedding; four norms a block with gains one more than stored;
/// fused tensors; alternating ones, norms with mean and bias; stored transposed, with learned positions.
const MODELS: [&str; 6] = ["llama_bias", "qwen2", "gemma2", "phi3", "gpt_neox", "gpt2"];

/// Some order of `count` channels from `first` on, in runs of `run`.
fn order(count: usize, run: usize, seed: usize) -> Vec<u32> {
    let mut state = seed as u64 * 2 + 1;
    let mut out = Vec::new();
    for first in (0..count).step_by(run) {
        let mut own: Vec<u32> = (first as u32..(first + run) as u32).collect();
        for i in (1..own.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            own.swap(i, (state >> 33) as usize % (i + 1));
        }
        out.extend(own);
    }
    out
}

/// A permutation that moves these channels, in all blocks.
fn some(config: &Architecture, channels: &[Channels]) -> Permutation {
    let has = |c| channels.contains(&c);
    let block = |b: usize| BlockOrders {
        ffn: has(Channels::Ffn).then(|| order(config.intermediate_size, config.intermediate_size, 3 * b + 1)),
        heads: has(Channels::Heads).then(|| order(config.key_rows(), config.head_dim, 3 * b + 2)),
    };
    let blocks = (0..config.num_layers).map(block).collect();
    let residual = has(Channels::Residual).then(|| order(config.hidden_size, config.hidden_size, 77));
    Permutation { residual, blocks }
}

fn permuted(model: &Model, permutation: &Permutation, near: &Path) -> Model {
    let checkpoint = model.checkpoint.permuted(&model.config, permutation, near).expect("a permuted model");
    Model { config: model.config.clone(), checkpoint }
}

#[test]
fn logits_stay() {
    let scratch = Scratch::new();
    let near: &Path = &scratch.join("");
    let preset = preset(presets()[0]);
    use Channels::{Ffn, Heads, Residual};
    for name in MODELS {
        let (model, batch) = (Model::open(&family_folder(name)), Expected::of_family(name).batch());
        let of = |model: &Model| forward(gpu(), &preset, model, &batch, None).logits.concat();
        let before = of(&model);
        let most = before.iter().fold(0f64, |most, l| most.max(f64::from(l.abs())));
        for channels in [&[Ffn][..], &[Heads], &[Residual], &[Ffn, Heads, Residual]] {
            let permutation = some(&model.config, channels);
            assert_eq!(permutation.channels(), channels);
            let other = permuted(&model, &permutation, near);
            assert_eq!(other.checkpoint.permutation(), Some(permutation.hash().as_str()));
            let after = of(&other);
            let off =
                before.iter().zip(&after).fold(0f64, |worst, (a, b)| worst.max(f64::from((a - b).abs())));
            println!("{name} {channels:?}: {:.1e}", off / most);
            assert!(off / most < LOGITS, "{name} {channels:?}: logits are off by {:.1e}", off / most);
            // Something has moved, and comes back.
            assert_ne!(bytes(&model), bytes(&other), "{name} {channels:?}");
            assert_eq!(bytes(&permuted(&other, &permutation.inverse(), near)), bytes(&model));
        }
    }
}

fn bytes(model: &Model) -> Vec<Vec<u8>> {
    let file = |shard: &maskwright::model::Shard| -> Vec<u8> {
        shard.entries().iter().flat_map(|entry| shard.data(entry).to_vec()).collect()
    };
    model.checkpoint.files().iter().map(file).collect()
}

#[test]
fn files_come_back_and_damage_is_told() {
    let scratch = Scratch::new();
    let model = Model::open(&family_folder("gemma2"));
    let all = some(&model.config, &Channels::ALL);
    let path = scratch.join("permutation.safetensors");
    all.write(&path).expect("written");
    let read = Permutation::read(&path).expect("read");
    assert_eq!((read.hash(), &read), (all.hash(), &all));
    assert_eq!(read.problem(&model.config), None);
    assert_eq!(read.inverse().inverse(), read);
    let mut bytes = std::fs::read(&path).expect("bytes");
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    let other = scratch.join("other.safetensors");
    std::fs::write(&other, bytes).expect("written");
    let told = Permutation::read(&other).expect_err("damaged").to_string();
    assert!(told.contains("other.safetensors") && told.contains("`hash`"), "{told}");
    let told = Permutation::read(&family_folder("gemma2").join("model.safetensors")).expect_err("none");
    assert!(told.to_string().contains("maskwright-permutation"), "{told}");
}

#[test]
fn what_is_no_order_of_a_model_is_refused() {
    let model = Model::open(&family_folder("qwen2"));
    let config = &model.config;
    let refused = |change: &dyn Fn(&mut Permutation), word: &str| {
        let mut permutation = some(config, &Channels::ALL);
        change(&mut permutation);
        let told =
            model.checkpoint.permuted(config, &permutation, Path::new(".")).expect_err(word).to_string();
        assert!(matches!(permutation.problem(config), Some(problem) if told.contains(&problem)));
        assert!(told.contains(word), "{told}");
    };
    refused(&|p| p.residual = Some(vec![0; config.hidden_size]), "there twice");
    refused(&|p| p.blocks[0].ffn = Some(vec![0, 1]), "orders 2 channels");
    refused(&|p| p.blocks.push(BlockOrders::default()), "blocks");
    // From one key head to another.
    let last = config.key_rows() - 1;
    refused(&|p| p.blocks[0].heads.as_mut().expect("heads").swap(0, last), "out of place");
    let seeing = Architecture::read(&family_folder("gemma3")).expect("a model");
    let checkpoint = Checkpoint::open(&family_folder("gemma3"), &seeing).expect("weights");
    let all = some(&seeing, &[Channels::Residual]);
    let told = checkpoint.permuted(&seeing, &all, Path::new(".")).expect_err("bound");
    assert!(matches!(told, ModelError::Unfit { .. }) && told.to_string().contains("sees"), "{told}");
}

/// What is found keeps more of the score, for every pattern, and is the same for the same seed.
#[test]
fn searches_raise_what_is_kept() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village");
    let model = Model::open(&folder);
    for (n, m) in [(1, 2), (2, 4), (4, 8), (8, 16)] {
        let pattern = Pattern::new(n, m).expect("a pattern");
        let selection = select(&model.config, pattern, &[], false).expect("projections");
        let search = |seed| {
            let options = PermuteOptions { channels: Channels::ALL.to_vec(), pattern, seed };
            permute((&model.config, &model.checkpoint), &selection, None, &options, &|| false)
                .expect("orders")
        };
        let found = search(0);
        assert_eq!(found.permutation.problem(&model.config), None);
        if m == 4 {
            assert_eq!(found.permutation, search(0).permutation);
        }
        // A head of 16 is one group of 16.
        let channels: Vec<&str> = found.gains.iter().map(|g| g.channels).collect();
        assert_eq!(channels, ["ffn", "heads", "residual"]);
        for gain in &found.gains {
            println!("{pattern} {}: {:.4} -> {:.4}", gain.channels, gain.before, gain.after);
            assert!(gain.after <= 1.0 && gain.after > gain.before || m == 16 && gain.channels == "heads");
        }
    }
    let pattern = Pattern::new(2, 4).expect("2:4");
    let only = select(&model.config, pattern, &["down_proj".into()], false).expect("projections");
    let options = PermuteOptions { channels: Channels::ALL.to_vec(), pattern, seed: 0 };
    let found =
        permute((&model.config, &model.checkpoint), &only, None, &options, &|| false).expect("orders");
    assert_eq!(found.permutation.channels(), [Channels::Ffn]);
    assert_eq!(
        found.left.iter().map(|(channels, _)| *channels).collect::<Vec<_>>(),
        [Channels::Heads, Channels::Residual]
    );
}
