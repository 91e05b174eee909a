//! The packed layouts against vectors that the reference implementations made.
#![cfg_attr(not(have_shared), allow(dead_code))]

mod host_fixture;

use std::fs;
use std::path::{Path, PathBuf};

use host_fixture::{
    Scratch, Tensor, export_hf, masks, write_safetensors as write_safetensors_as_the_library,
};
use maskwright::export::{MaskedModel, PackedFolder, ct24, sparse_bitmask, torch24};
use maskwright::mask::{BitMask, Pattern, Provenance, npz, rank};
use maskwright::model::{Architecture, Checkpoint, OutTensor, Overlay, write_safetensors};
use maskwright::verify::{Options, verify};
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
    let (mut equal, mut negative_zero) = (0, 0);
    for case in all["cases"].as_array().unwrap() {
        if case["format"] != "sparse-24-bitmask" {
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
    assert_eq!((equal, negative_zero), (24, 1));
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn sparse_bitmask_is_what_compressed_tensors_writes() {
    let all = json("ct/ct_sparse.json");
    let mut equal = 0;
    for case in all["cases"].as_array().unwrap() {
        if case["format"] != "sparse-bitmask" {
            continue;
        }
        let (dtype, [rows, cols]) = (dtype(&case["dtype"]), shape(case));
        let dense = bytes(&case["dense"]);
        let done = sparse_bitmask::encode(dtype, rows, cols, &dense).unwrap();
        let expected = &case["compressed"];
        let offsets: Vec<u8> = done.row_offsets.iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(
            done.compressed,
            bytes(&expected["compressed"]),
            "{dtype} {rows} x {cols} {}",
            case["kind"]
        );
        assert_eq!(done.bitmask, bytes(&expected["bitmask"]));
        assert_eq!(offsets, bytes(&expected["row_offsets"]));
        let back = sparse_bitmask::decode(dtype, rows, cols, &done).unwrap();
        assert!(same_values(dtype, &back, &dense));
        equal += 1;
    }
    assert_eq!(equal, 25);
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

/// The whole file: header, order and padding, too.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn a_whole_ct24_file_is_written() {
    let read = |name: &str| fs::read(vectors().join("ct").join(name)).unwrap();
    let dense = read("dense_bf16_16x16.safetensors");
    let dense = SafeTensors::deserialize(&dense).unwrap();
    let weight = dense.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
    let done = ct24::encode(Dtype::BF16, 16, 16, weight.data()).unwrap();
    let shape = [16i64.to_le_bytes(), 16i64.to_le_bytes()].concat();
    let name = |part: &str| format!("model.layers.0.mlp.up_proj.{part}");
    let [shape_name, values_name, bits_name] = ["shape", "compressed", "bitmask"].map(name);
    let tensors = [
        OutTensor { name: &shape_name, dtype: "I64", shape: vec![2, 1], data: &shape },
        OutTensor { name: &values_name, dtype: "BF16", shape: vec![16, 8], data: &done.compressed },
        OutTensor { name: &bits_name, dtype: "U8", shape: vec![16, 2], data: &done.bitmask },
    ];
    let dir = Scratch::new();
    let path = dir.join("ours.safetensors");
    let metadata = [("format".to_string(), Value::from("pt"))].into_iter().collect();
    write_safetensors(&path, metadata, &tensors).unwrap();
    assert_eq!(fs::read(&path).unwrap(), read("ct24_bf16_16x16.safetensors"));
}

/// A model as transformers and compressed-tensors write it, dense with zeros (`a_dense`) and as ct24 (`b_ct24`).
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn the_tiny_llama_is_written_as_its_libraries_do() {
    let (a, b) = (vectors().join("tiny_llama/a_dense"), vectors().join("tiny_llama/b_ct24"));
    let config = Architecture::read(&a).unwrap();
    let checkpoint = Checkpoint::open(&a, &config).unwrap();
    let set = masks(&checkpoint, &config, Pattern::TWO_OF_FOUR);
    let dir = Scratch::new();
    // Its zeros are where a mask puts them: nothing changes.
    export_hf(&checkpoint, &config, &set, &dir.join("hf")).unwrap();
    for entry in fs::read_dir(&a).unwrap() {
        let path = entry.unwrap().path();
        let own = dir.join("hf").join(path.file_name().unwrap());
        assert!(fs::read(&path).unwrap() == fs::read(own).unwrap(), "{}", path.display());
    }
    let options = Options { against: Some(&a), mask: Some(&set), ..Options::default() };
    assert!(verify(&dir.join("hf"), &options).unwrap().ok);

    // The reference has one shard, and a shard is made of each shard.
    let one = dir.join("one");
    fs::create_dir(&one).unwrap();
    fs::copy(a.join("config.json"), one.join("config.json")).unwrap();
    let tensors = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).unwrap();
        let tensor = Tensor { dtype: Dtype::BF16, shape: view.shape.to_vec(), data: view.data.to_vec() };
        (name.to_string(), tensor)
    });
    write_safetensors_as_the_library(&one.join("model.safetensors"), &tensors.collect());
    let single = Checkpoint::open(&one, &config).unwrap();
    let (tensors, provenance) = (&Overlay::new(&single), &Provenance::new("magnitude", 0));
    let model = MaskedModel { tensors, config: &config, masks: &set, provenance };
    ct24::write(&model, &dir.join("ct24")).unwrap();
    let (ours, theirs) = (dir.join("ct24/model.safetensors"), b.join("model.safetensors"));
    assert!(fs::read(ours).unwrap() == fs::read(theirs).unwrap());
    // All keys, in their order, and values; Python writes 1e-06 where we write 1e-6.
    let text = |folder: &Path| {
        let bytes = fs::read(folder.join("config.json")).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap().to_string()
    };
    assert_eq!(text(&dir.join("ct24")), text(&b));
    // And read back.
    let packed = PackedFolder::open(&b).unwrap().unwrap();
    for name in checkpoint.names() {
        assert!(*packed.weight(name).unwrap().1 == *checkpoint.tensor(name).unwrap().data, "{name}");
    }
    let options = Options { pattern: Some(Pattern::TWO_OF_FOUR), ..Options::default() };
    assert!(verify(&b, &options).unwrap().ok);
}

/// One mask in every form that packs bits.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn masks_are_packed_as_numpy_packs_them() {
    let all = json("mask/masks.json");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for (index, places) in all["pattern_order"].as_object().unwrap() {
        let bits = places.as_array().unwrap().iter().fold(0, |bits, p| bits | 1 << p.as_u64().unwrap());
        assert_eq!(rank::rank(Pattern::TWO_OF_FOUR, bits), index.parse::<u32>().unwrap());
    }
    let cases = all["cases"].as_array().unwrap();
    for case in cases {
        let [rows, cols] = shape(case);
        let lines = case["mask_rows"].as_array().unwrap();
        // The mask as a weight of ones and zeros.
        let dense: Vec<u8> =
            lines.iter().flat_map(|l| l.as_str().unwrap().bytes().map(|b| b - b'0')).collect();
        let mask = BitMask::top_n(rows, cols, Pattern::TWO_OF_FOUR, |r, scores| {
            scores.iter_mut().zip(&dense[r * cols..]).for_each(|(s, &bit)| *s = bit.into());
        })
        .unwrap();
        let hex_of = |key: &str| case[key].as_str().unwrap();
        assert_eq!(hex(&npz::packbits(&mask)), hex_of("numpy_packbits_flat_big_hex"));
        assert_eq!(hex(&rank::pack(&mask, Pattern::TWO_OF_FOUR).unwrap()), hex_of("base6_3_per_byte_hex"));
        let ct24 = ct24::encode(Dtype::I8, rows, cols, &dense).unwrap();
        assert_eq!(hex(&ct24.bitmask), hex_of("packbits_rows_little_hex"));
        let groups: Vec<u32> = mask.groups(Pattern::TWO_OF_FOUR).collect();
        let ranks: Vec<u32> = groups.iter().map(|&bits| rank::rank(Pattern::TWO_OF_FOUR, bits)).collect();
        assert_eq!(serde_json::json!(ranks), case["group_index_rowmajor"]);
        let nibbles: Vec<u8> = groups.iter().map(|&bits| torch24::nibble(bits as usize)).collect();
        let pairs: Vec<u8> = nibbles.chunks(2).map(|p| p[0] | p.get(1).unwrap_or(&0) << 4).collect();
        assert_eq!(hex(&pairs), hex_of("two_bit_pairs_nibble_hex"));
    }
    assert_eq!(cases.len(), 2);
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
