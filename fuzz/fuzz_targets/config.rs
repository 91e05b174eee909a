//! config.json: sizes that are accepted must not overflow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maskwright::model::Architecture;

fuzz_target!(|bytes: &[u8]| {
    maskwright_fuzz::file("config.json", bytes);
    let Ok(config) = Architecture::read(maskwright_fuzz::folder()) else { return };
    for spec in config.tensors() {
        let elements = spec.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        assert!(elements.and_then(|n| n.checked_mul(4)).is_some_and(|n| n > 0), "{spec:?}");
    }
});
