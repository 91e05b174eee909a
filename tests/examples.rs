//! The examples, as they stand, on the embedded model with few windows and steps.

#[path = "../examples/best.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod best;
mod cli_tools;
#[path = "../examples/custom_objective.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod custom_objective;
mod host_fixture;
#[path = "../examples/learn_mask.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod learn_mask;
#[path = "../examples/score_mask.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod score_mask;

#[path = "../examples/walk_blocks.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod walk_blocks;

use cli_tools::{succeeds, village};
use host_fixture::Scratch;
use maskwright::mask::MaskFile;

#[test]
fn a_mask_is_learned_written_and_read() {
    let dir = Scratch::new();
    let out = dir.join("masked");
    let [dense, start, learned] =
        learn_mask::learn_mask(&village(), &out, 16, 30).expect("a mask is learned");
    assert!(1.0 < dense && dense < learned && learned < start, "{dense} {start} {learned}");

    let mask = out.join("mask.safetensors");
    let shares = score_mask::score_mask(&village(), &mask).expect("a mask file");
    assert_eq!(shares.len(), 35);
    assert!(shares.iter().all(|(_, share)| (0.5..0.95).contains(share)), "{shares:?}");
    let file = MaskFile::read(&mask).expect("a mask file");
    assert_eq!((file.provenance.method.as_str(), file.set.pattern.to_string()), ("relaxed", "2:4".into()));

    succeeds(args!["verify", out.join("model"), "--against", village()]);
}

#[test]
fn the_best_recipe_is_a_run() {
    let dir = Scratch::new();
    let out = dir.join("run");
    let finished = best::best(&village(), &out, 8, 3, Some(16)).expect("a run");
    let [dense, start, result] = &finished.results[..] else { panic!("{:?}", finished.results) };
    // So few steps need not gain anything; they lose nothing.
    assert!(dense.perplexity < result.perplexity && result.perplexity <= start.perplexity);
    succeeds(args![
        "verify",
        out.join("model"),
        "--against",
        village(),
        "--mask",
        out.join("mask.safetensors")
    ]);
}

#[test]
fn blocks_are_walked() {
    let found = walk_blocks::largest_weights(&village()).expect("a model");
    assert_eq!(found.len(), 35);
    assert!(found.iter().all(|(_, largest)| *largest > 0.0));
}

#[test]
fn an_objective_of_ones_own_is_learned() {
    let losses = custom_objective::custom_objective(&village(), 16, 12).expect("a mask is learned");
    assert_eq!(losses.len(), 5);
    for [before, after] in losses {
        assert!(after < 0.95 * before, "{after} from {before}");
    }
}
