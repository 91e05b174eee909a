//! safetensors files: what is accepted must have ranges that fit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maskwright::model::Shard;

fuzz_target!(|bytes: &[u8]| {
    let path = maskwright_fuzz::file("model.safetensors", bytes);
    let Ok(shard) = Shard::open(&path) else { return };
    let mut data = 0;
    for entry in shard.entries() {
        let elements: usize = entry.shape.iter().product();
        assert_eq!(shard.data(entry).len() * 8, elements * entry.dtype.bitsize());
        data += shard.data(entry).len();
    }
    assert_eq!(shard.header_bytes().len() + data, bytes.len());
});
