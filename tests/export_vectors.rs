//! The packed layouts against vectors that the reference implementations made.
#![cfg_attr(not(have_shared), allow(dead_code))]

use std::fs;
use std::path::{Path, PathBuf};

use maskwright::export::{ct24, torch24};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors")
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(vectors().join(path)).unwrap()).unwrap()
}

/// The bytes of a tensor in a vector.
fn bytes(tensor: &Value) -> Vec<u8> {
    let hex = tensor["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn dtype(case: &Value) -> Dtype {
    serde_json::from_value(case.clone()).unwrap()
}

fn shape(case: &Value) -> [usize; 2] {
    serde_json::from_value(case["shape"].clone()).unwrap()
}

/// Floats equal as numbers: -0.0 is 0.
fn same_values(dtype: Dtype, a: &[u8], b: &[u8]) -> bool {
    let size = dtype.bitsize() / 8;
    let plain = |x: &[u8]| match dtype {
        Dtype::I8 => x.to_vec(),
        _ if x[size - 1] & 0x7f == 0 && x[..size - 1].iter().all(|&b| b == 0) => vec![0; size],
        _ => x.to_vec(),
    };
    a.len() == b.len() && a.chunks(size).zip(b.chunks(size)).all(|(x, y)| plain(x) == plain(y))
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn torch24_is_what_the_helper_of_torch_writes() {
    let all = json("cutlass/cutlass24.json");
    let (mut equal, mut rejected) = (0, Vec::new());
    for case in all["cases"].as_array().unwrap() {
        let (dtype, [rows, cols]) = (dtype(&case["dtype"]), shape(case));
        if case.get("error").is_some() {
            let dense = vec![0; rows * cols * dtype.bitsize() / 8];
            rejected.push(torch24::pack(dtype, rows, cols, &dense).unwrap_err().to_string());
            continue;
        }
        let dense = bytes(&case["dense"]);
        let done = torch24::pack(dtype, rows, cols, &dense).unwrap();
        assert_eq!(done.packed, bytes(&case["packed"]), "{dtype} {rows} x {cols} {}", case["kind"]);
        assert_eq!(done.meta, bytes(&case["meta"]), "{dtype} {rows} x {cols} {}", case["kind"]);
        assert_eq!([rows, done.meta_cols], shape(&case["meta"]));
        let back = torch24::unpack(dtype, rows, cols, &done.packed, &done.meta).unwrap();
        assert_eq!(same_values(dtype, &back, &dense), case["roundtrip_value_equal"].as_bool().unwrap());
        equal += 1;
    }
    assert_eq!((equal, rejected.len()), (13, 2));
    assert!(rejected[0].contains("96 x 80") && rejected[1].contains("16 x 32"), "{rejected:?}");
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn ct24_is_what_compressed_tensors_writes() {
    let all = json("ct/ct_sparse.json");
    let (mut equal, mut negative_zero, mut other_format) = (0, 0, 0);
    for case in all["cases"].as_array().unwrap() {
        if case["format"] != "sparse-24-bitmask" {
            other_format += 1;
            continue;
        }
        let (dtype, [rows, cols]) = (dtype(&case["dtype"]), shape(case));
        let dense = bytes(&case["dense"]);
        let done = ct24::encode(dtype, rows, cols, &dense).unwrap();
        let back = ct24::decode(dtype, rows, cols, &done.compressed, &done.bitmask).unwrap();
        assert!(same_values(dtype, &back, &dense));
        let expected = &case["compressed"];
        let same =
            done.compressed == bytes(&expected["compressed"]) && done.bitmask == bytes(&expected["bitmask"]);
        if dtype == Dtype::F8_E4M3 && case["kind"] == "degenerate" {
            // The reference ranks the byte 0x80 above zero in the one group that holds negative zeros. Nothing else differs.
            assert!(!same);
            let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(x, y)| x != y).count();
            assert_eq!(differ(&done.bitmask, &bytes(&expected["bitmask"])), 1);
            negative_zero += 1;
            continue;
        }
        assert!(same, "{dtype} {rows} x {cols} {}", case["kind"]);
        equal += 1;
    }
    assert_eq!((equal, negative_zero, other_format), (24, 1, 25));
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn ct24_decodes_a_whole_file() {
    let read = |name: &str| fs::read(vectors().join("ct").join(name)).unwrap();
    let (packed, dense) = (read("ct24_bf16_16x16.safetensors"), read("dense_bf16_16x16.safetensors"));
    let (packed, dense) =
        (SafeTensors::deserialize(&packed).unwrap(), SafeTensors::deserialize(&dense).unwrap());
    let part = |name: &str| packed.tensor(&format!("model.layers.0.mlp.up_proj.{name}")).unwrap();
    let weight = dense.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
    let back = ct24::decode(Dtype::BF16, 16, 16, part("compressed").data(), part("bitmask").data()).unwrap();
    assert_eq!(back, weight.data());
    let done = ct24::encode(Dtype::BF16, 16, 16, weight.data()).unwrap();
    assert_eq!(
        (done.compressed.as_slice(), done.bitmask.as_slice()),
        (part("compressed").data(), part("bitmask").data())
    );
}

#[test]
fn damaged_layouts_are_refused() {
    let dense = vec![0u8; 32 * 64 * 2];
    let done = torch24::pack(Dtype::F16, 32, 64, &dense).unwrap();
    assert!(torch24::unpack(Dtype::F16, 32, 64, &done.packed[1..], &done.meta).is_err());
    assert!(torch24::unpack(Dtype::F16, 32, 64, &done.packed, &vec![0; done.meta.len()]).is_err());
    assert!(torch24::pack(Dtype::I64, 32, 64, &dense).is_err());
    assert!(torch24::pack(Dtype::F16, 0, 64, &[]).is_err());
    assert!(torch24::pack(Dtype::F16, usize::MAX / 32 * 32, 64, &dense).is_err());
    let done = ct24::encode(Dtype::F16, 32, 64, &dense).unwrap();
    assert!(ct24::decode(Dtype::F16, 32, 64, &done.compressed, &vec![0xff; done.bitmask.len()]).is_err());
    assert!(ct24::encode(Dtype::F16, 32, 64, &vec![1; dense.len()]).is_err());
    assert!(ct24::encode(Dtype::F16, 1, 6, &[0; 12]).is_err());
}
