//! The examples, as they stand, on the embedded model with few windows and steps.

mod cli_tools;
mod host_fixture;
#[path = "../examples/learn_mask.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod learn_mask;
#[path = "../examples/score_mask.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod score_mask;

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
