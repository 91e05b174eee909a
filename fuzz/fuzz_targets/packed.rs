//! The packed layouts: what decodes must encode and decode to the same again, but for the sign of zero.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maskwright::export::{ct24, torch24};
use safetensors::Dtype;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[layout, kind, rows, cols], rest)) = bytes.split_first_chunk::<4>() else { return };
    let dtypes = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::I8];
    let dtype = dtypes[usize::from(kind) % dtypes.len()];
    let (rows, cols) = (usize::from(rows), usize::from(cols) * 4);
    let values = (rows * cols / 2 * (dtype.bitsize() / 8)).min(rest.len());
    let (values, places) = rest.split_at(values);
    if layout & 1 == 0 {
        let Ok(dense) = torch24::unpack(dtype, rows, cols, values, places) else { return };
        let again = torch24::pack(dtype, rows, cols, &dense).expect("what was packed packs");
        let back = torch24::unpack(dtype, rows, cols, &again.packed, &again.meta).expect("and unpacks");
        same(dtype, &dense, &back);
    } else {
        let Ok(dense) = ct24::decode(dtype, rows, cols, values, places) else { return };
        let again = ct24::encode(dtype, rows, cols, &dense).expect("what was packed packs");
        let back = ct24::decode(dtype, rows, cols, &again.compressed, &again.bitmask).expect("and unpacks");
        same(dtype, &dense, &back);
    }
});

fn same(dtype: Dtype, a: &[u8], b: &[u8]) {
    let size = dtype.bitsize() / 8;
    let zero = |x: &[u8]| {
        x.split_last().is_some_and(|(last, rest)| {
            rest.iter().all(|&b| b == 0) && (*last == 0 || (*last == 0x80 && dtype != Dtype::I8))
        })
    };
    assert_eq!(a.len(), b.len());
    for (a, b) in a.chunks_exact(size).zip(b.chunks_exact(size)) {
        assert!(a == b || (zero(a) && zero(b)), "{a:?} became {b:?}");
    }
}
