//! Mask files: what is accepted must be strict and come back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maskwright::mask::MaskFile;

fuzz_target!(|bytes: &[u8]| {
    let path = maskwright_fuzz::file("mask.safetensors", bytes);
    let Ok(file) = MaskFile::read(&path) else { return };
    file.set.check().expect("a strict mask");
    let again = maskwright_fuzz::folder().join("again.safetensors");
    file.write(&again).expect("a mask that was read can be written");
    assert!(MaskFile::read(&again).expect("a mask that was written can be read") == file);
});
