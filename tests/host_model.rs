//! Model folders on the host: what is read, and what is refused with which words.

mod host_fixture;

use std::fs;
use std::path::Path;

use host_fixture::{
    Scratch, config, config_with, mentions, model, open_error, tensors, write_config, write_safetensors,
    write_shards, write_tokenizer,
};
use maskwright::calib::{Windows, tokens_of_file};
use maskwright::model::{
    Architecture, Checkpoint, Dtype, ModelError, ProjectionKind, RopeScaling, Tokenizer, sha256_hex,
};
use serde_json::{Value, json};

fn read(config: &Value) -> Result<Architecture, ModelError> {
    let dir = Scratch::new();
    write_config(dir.path(), config);
    Architecture::read(dir.path())
}

#[track_caller]
fn refused(changes: Value, parts: &[&str]) {
    let text = read(&config_with(changes)).expect_err("should be refused").to_string();
    mentions(&text, &["config.json"]);
    mentions(&text, parts);
}

#[test]
fn families_and_their_peculiarities() {
    let llama = read(&config()).unwrap();
    let windows = |of: &Architecture| of.layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    assert_eq!((llama.family, llama.biases.len(), windows(&llama)), ("llama", 0, vec![None, None]));
    assert_eq!(llama.bos_token_id, Some(1));
    let biased = read(&config_with(json!({"attention_bias": true}))).unwrap();
    use ProjectionKind::{K, O, Q, V};
    assert_eq!(biased.biases, [Q, K, V, O]);
    let qwen = json!({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": false});
    let qwen = read(&config_with(qwen)).unwrap();
    assert_eq!((qwen.biases.as_slice(), windows(&qwen)), ([Q, K, V].as_slice(), vec![None, None]));
    assert!(
        qwen.tensors().iter().any(|t| t.name == "model.layers.1.self_attn.k_proj.bias" && t.shape == [8])
    );
    assert!(!qwen.tensors().iter().any(|t| t.name.ends_with("o_proj.bias")));
    let mut qwen = json!({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": true});
    assert_eq!(windows(&read(&config_with(qwen.clone())).unwrap()), [None, None], "28 blocks do not slide");
    qwen["max_window_layers"] = json!(1);
    assert_eq!(windows(&read(&config_with(qwen)).unwrap()), [None, Some(32)]);
    for (window, expected) in [(json!(32), Some(32)), (Value::Null, None)] {
        let mistral = config_with(json!({"model_type": "mistral", "sliding_window": window}));
        assert_eq!(windows(&read(&mistral).unwrap()), [expected, expected]);
    }
    let mistral = read(&config_with(json!({"model_type": "mistral"}))).unwrap();
    assert_eq!(windows(&mistral), [Some(4096), Some(4096)]);
}

#[test]
fn head_dim_and_kv_heads_have_defaults() {
    let without = config_with(json!({"head_dim": null, "num_key_value_heads": null}));
    let config = read(&without).unwrap();
    assert_eq!((config.head_dim, config.num_kv_heads), (4, 4));
    let wide = read(&config_with(json!({"head_dim": 8}))).unwrap();
    let q = &wide.projections()[0];
    assert_eq!((q.rows, q.cols, q.name.as_str()), (32, 16, "model.layers.0.self_attn.q_proj.weight"));
    assert_eq!(wide.tensors().len(), 1 + 2 * 9 + 1);
    assert_eq!(read(&config_with(json!({"tie_word_embeddings": false}))).unwrap().tensors().len(), 21);
}

#[test]
fn rotary_scaling_in_all_its_spellings() {
    let llama3 = |kind: &str| {
        json!({kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192})
    };
    let base = json!({"head_dim": 128, "rope_theta": 500000.0});
    let mut expected = config_with(base.clone());
    expected["rope_scaling"] = llama3("rope_type");
    let expected = read(&expected).unwrap();
    let mut old = config_with(base.clone());
    old["rope_scaling"] = llama3("type");
    assert_eq!(read(&old).unwrap(), expected);
    let mut new = config_with(json!({"head_dim": 128, "rope_theta": null}));
    new["rope_parameters"] = llama3("rope_type");
    new["rope_parameters"]["rope_theta"] = json!(500000.0);
    assert_eq!(read(&new).unwrap(), expected);
    // Values of transformers' _compute_llama3_parameters for these settings (Llama 3.1 8B), in f32.
    let inv = expected.ropes[0].frequencies(expected.rotary.turned, 1);
    assert_eq!(inv.len(), 64);
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 2e-6, "{a} {b}");
    for (i, expected) in LLAMA3_INV_FREQ {
        close(inv[i], expected);
    }
    let plain = read(&config_with(json!({"rope_scaling": {"rope_type": "default"}}))).unwrap();
    assert_eq!(plain.ropes[0].scaling, RopeScaling::None);
    let modern = json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000}});
    assert_eq!(read(&config_with(modern)).unwrap().ropes[0].theta, 5000.0);
    refused(
        json!({"rope_scaling": {"type": "spiral", "factor": 2.0}}),
        &["rope_scaling", "spiral", "llama3", "yarn"],
    );
    refused(json!({"rope_scaling": {"type": "linear"}}), &["rope_scaling.factor"]);
    refused(json!({"rope_scaling": {"factor": 2.0}}), &["rope_type"]);
    refused(json!({"rope_scaling": {"type": "llama3", "factor": 2.0}}), &["low_freq_factor"]);
    let mut swapped = llama3("rope_type");
    swapped["high_freq_factor"] = json!(1.0);
    refused(json!({"rope_scaling": swapped}), &["high_freq_factor", "above"]);
    refused(json!({"rope_scaling": "linear"}), &["rope_scaling"]);
    refused(json!({"rope_theta": -1}), &["rope_theta"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    refused(json!({"model_type": "bert"}), &["bert", "llama", "mistral", "qwen2"]);
    refused(json!({"model_type": null}), &["none given", "llama"]);
    refused(json!({"model_type": "mixtral"}), &["mixtral"]);
    refused(json!({"hidden_act": "mish"}), &["hidden_act", "mish", "silu"]);
    refused(json!({"residual_twist": 2}), &["residual_twist", "may change what the model computes"]);
    refused(
        json!({"quantization_config": {"quant_method": "gptq"}}),
        &["quantization_config", "unquantized"],
    );
    refused(json!({"mlp_bias": "yes"}), &["mlp_bias"]);
    refused(json!({"partial_rotary_factor": 1.5}), &["partial_rotary_factor"]);
    let odd = json!({"model_type": "qwen2", "layer_types": ["linear_attention"]});
    refused(odd, &["linear_attention"]);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        for bad in [json!(0), json!(-4), json!(1.5), json!("16"), json!(u64::MAX), Value::Null, json!([1])] {
            refused(json!({key: bad}), &[key, "an integer from 1 to"]);
        }
    }
    refused(json!({"num_key_value_heads": 3}), &["num_key_value_heads", "a divisor of", "4", "3"]);
    refused(json!({"head_dim": 5}), &["head_dim", "even"]);
    refused(json!({"head_dim": null, "hidden_size": 18}), &["num_attention_heads", "18"]);
    refused(json!({"rms_norm_eps": 0.0}), &["rms_norm_eps"]);
    refused(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings", "true or false"]);
    refused(json!({"vocab_size": "x".repeat(100_000)}), &["vocab_size"]);
}

#[test]
fn a_config_that_is_no_json_object_is_refused() {
    let dir = Scratch::new();
    mentions(
        &Architecture::read(dir.path()).unwrap_err().to_string(),
        &["config.json", "Hugging Face layout"],
    );
    for text in ["", "{", "[]", "\u{0}", "{\"model_type\": NaN}", &"[".repeat(100_000)] {
        fs::write(dir.join("config.json"), text).unwrap();
        mentions(&Architecture::read(dir.path()).unwrap_err().to_string(), &["config.json", "JSON"]);
    }
}

#[test]
fn one_file_and_shards_give_the_same_tensors() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let one = Checkpoint::open(dir.path(), &config).unwrap();
    one.check_finite(&config).unwrap();
    let sharded = Scratch::new();
    write_shards(sharded.path(), &tensors(&config));
    let two = Checkpoint::open(sharded.path(), &config).unwrap();
    assert_eq!((one.files().len(), two.files().len()), (1, 2));
    let names: Vec<String> = config.tensors().into_iter().map(|t| t.name).collect();
    for name in &names {
        let (a, b) = (one.tensor(name).unwrap(), two.tensor(name).unwrap());
        assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data));
    }
    let hashes = one.sha256(&names).unwrap();
    assert_eq!(hashes, two.sha256(&names).unwrap());
    assert_eq!(hashes[3], sha256_hex(one.tensor(&names[3]).unwrap().data));
    // FIPS 180-2, appendix B.1.
    assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(one.tensor("model.layers.1.mlp.up_proj.weight").unwrap().dtype, Dtype::BF16);
    assert!(matches!(one.tensor("nothing"), Err(ModelError::UnknownTensor { .. })));
}

#[test]
fn truncated_and_nonsense_weight_files_are_refused() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let path = dir.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for keep in [0, 1, 7, 8, 9, 100, 8 + header - 1, 8 + header, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..keep]).unwrap();
        mentions(&open_error(dir.path(), &config), &["model.safetensors", "not a whole", "again"]);
    }
    let with = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let huge =
        format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{0},{0}],\"data_offsets\":[0,4]}}}}", u64::MAX);
    let far =
        format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{0}],\"data_offsets\":[0,{0}]}}}}", u64::MAX - 7);
    for bytes in [
        [u64::MAX.to_le_bytes().to_vec(), b"{}".to_vec()].concat(),
        [(99_000_000u64).to_le_bytes().to_vec(), b"{}".to_vec()].concat(),
        vec![0; 8],
        vec![0xff; 4096],
        with("[]", 0),
        with("{", 0),
        with("{\"a\":1}", 0),
        with("{}", 4),
        with("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8),
        with("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4),
        with("{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
        with("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4),
        with(&huge, 4),
        with(&far, 0),
        with(&format!("{{\"a\":{}", "[".repeat(200_000)), 0),
    ] {
        fs::write(&path, &bytes).unwrap();
        mentions(&open_error(dir.path(), &config), &["model.safetensors", "again"]);
    }
    fs::write(&path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
    mentions(&open_error(dir.path(), &config), &["git lfs pull"]);
    // Any one changed byte of the header gives a model or an error, never a panic.
    for i in 0..8 + header {
        let mut bytes = whole.clone();
        bytes[i] ^= 1 << (i % 8);
        fs::write(&path, &bytes).unwrap();
        let _ = Checkpoint::open(dir.path(), &config);
    }
}

#[test]
fn an_index_that_does_not_fit_is_refused() {
    let dir = Scratch::new();
    write_config(dir.path(), &config());
    let config = Architecture::read(dir.path()).unwrap();
    mentions(&open_error(dir.path(), &config), &["neither model.safetensors nor"]);
    let all = tensors(&config);
    write_shards(dir.path(), &all);
    let index = dir.join("model.safetensors.index.json");
    let good = fs::read_to_string(&index).unwrap();

    // A tensor said to be in the other shard.
    let mut wrong: Value = serde_json::from_str(&good).unwrap();
    wrong["weight_map"]["model.norm.weight"] = json!("model-00002-of-00002.safetensors");
    fs::write(&index, wrong.to_string()).unwrap();
    let opened = Checkpoint::open(dir.path(), &config).unwrap();
    assert_eq!(opened.tensor("model.norm.weight").unwrap().data, all["model.norm.weight"].data);
    // One that is in none, one that the index does not name.
    wrong["weight_map"]["no.such.tensor"] = json!("model-00001-of-00002.safetensors");
    wrong["weight_map"].as_object_mut().unwrap().shift_remove("model.norm.weight");
    fs::write(&index, wrong.to_string()).unwrap();
    let opened = Checkpoint::open(dir.path(), &config).unwrap();
    assert_eq!(opened.tensor("model.norm.weight").unwrap().data, all["model.norm.weight"].data);
    assert!(opened.tensor("no.such.tensor").is_err());
    // Names that leave the folder.
    for evil in [
        json!("../model.safetensors"),
        json!("/etc/passwd"),
        json!("a\\b.safetensors"),
        json!("x.bin"),
        json!(3),
    ] {
        wrong["weight_map"]["model.norm.weight"] = evil;
        fs::write(&index, wrong.to_string()).unwrap();
        mentions(&open_error(dir.path(), &config), &["model.norm.weight", "plain name"]);
    }
    for text in ["{}", "{\"weight_map\": {}}", "{\"weight_map\": []}", "nonsense"] {
        fs::write(&index, text).unwrap();
        mentions(&open_error(dir.path(), &config), &["index.json", "download"]);
    }
    // A tensor that is in no file, whatever the index says.
    let mut less = all.clone();
    less.remove("model.norm.weight");
    write_shards(dir.path(), &less);
    fs::write(&index, &good).unwrap();
    mentions(&open_error(dir.path(), &config), &["model.norm.weight", "no weight file holds"]);
    write_shards(dir.path(), &all);

    fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap();
    let text = open_error(dir.path(), &config);
    mentions(&text, &["index.json", "model-00002-of-00002.safetensors", "missing", "download it"]);
}

#[test]
fn wrong_shapes_types_and_missing_tensors_are_refused() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let path = dir.join("model.safetensors");
    let good = tensors(&config);
    let name = "model.layers.1.mlp.down_proj.weight";

    let mut bad = good.clone();
    bad.get_mut(name).unwrap().shape = vec![24, 16];
    write_safetensors(&path, &bad);
    mentions(&open_error(dir.path(), &config), &[name, "has the shape [24, 16]", "calls for [16, 24]"]);

    let mut bad = good.clone();
    bad.get_mut(name).unwrap().dtype = safetensors::Dtype::I16;
    write_safetensors(&path, &bad);
    mentions(&open_error(dir.path(), &config), &[name, "I16", "BF16"]);

    let mut bad = good.clone();
    bad.remove(name);
    write_safetensors(&path, &bad);
    mentions(&open_error(dir.path(), &config), &[name, "no weight file holds"]);

    // Untied, the output matrix is called for.
    write_safetensors(&path, &good);
    let untied = Architecture { tie_word_embeddings: false, ..config };
    mentions(&open_error(dir.path(), &untied), &["lm_head.weight"]);
}

#[test]
fn weights_that_are_no_numbers_are_found_and_named() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let name = "model.layers.0.self_attn.o_proj.weight";
    let mut bad = tensors(&config);
    // f16 NaN at (3, 5) of 16 columns.
    bad.get_mut(name).unwrap().data[2 * (3 * 16 + 5)..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    write_safetensors(&dir.join("model.safetensors"), &bad);
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    let text = checkpoint.check_finite(&config).unwrap_err().to_string();
    mentions(&text, &[name, "NaN", "[3, 5]"]);
}

#[test]
fn tokenizers_must_fit_the_embedding() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let tokenizer = Tokenizer::open(dir.path(), &config).unwrap();
    // The file asks for a truncation to 3 tokens, which must not happen.
    assert_eq!(tokenizer.encode("w3 w4 w5 w6 other").unwrap(), [1, 3, 4, 5, 6, 0]);
    assert_eq!(tokenizer.vocab_size(), 12);

    write_tokenizer(dir.path(), 13, 1);
    let text = Tokenizer::open(dir.path(), &config).unwrap_err().to_string();
    mentions(&text, &["tokenizer.json", "13 embeddings", "has 12", "another model"]);
    write_tokenizer(dir.path(), 12, 99);
    let tokenizer = Tokenizer::open(dir.path(), &config).unwrap();
    mentions(&tokenizer.encode("w3").unwrap_err().to_string(), &["99", "12"]);

    // A template that names a token it has no id for, and a file that is cut off.
    write_tokenizer(dir.path(), 12, 1);
    let whole = fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    for text in [&whole.replace(r#""open":{"#, r#""close":{"#), &whole[..whole.len() - 40]] {
        assert_ne!(text, whole);
        fs::write(dir.join("tokenizer.json"), text).unwrap();
        let result = Tokenizer::open(dir.path(), &config).and_then(|t| t.encode("w3"));
        mentions(&result.unwrap_err().to_string(), &["tokenizer.json"]);
    }
    for text in ["", "{}", "null", "{\"model\": {\"type\": \"BPE\"}}"] {
        fs::write(dir.join("tokenizer.json"), text).unwrap();
        mentions(
            &Tokenizer::open(dir.path(), &config).unwrap_err().to_string(),
            &["tokenizer.json", "again"],
        );
    }
    // Fuzzing found that the library takes long for such a token.
    let long = json!([{ "id": 2, "content": "w".repeat(40_000), "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true }]);
    fs::write(
        dir.join("tokenizer.json"),
        whole.replace("\"added_tokens\":[]", &format!("\"added_tokens\":{long}")),
    )
    .unwrap();
    let text = Tokenizer::open(dir.path(), &config).unwrap_err().to_string();
    mentions(&text, &["tokenizer.json", "an added token has 40000 bytes"]);
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    mentions(
        &Tokenizer::open(dir.path(), &config).unwrap_err().to_string(),
        &["tokenizer.json", "AutoTokenizer"],
    );
}

#[test]
fn texts_must_be_texts() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let tokenizer = Tokenizer::open(dir.path(), &config).unwrap();
    let path = dir.join("text.txt");
    mentions(&tokens_of_file(&tokenizer, &path).unwrap_err().to_string(), &["text.txt", "cannot read"]);
    assert!(tokens_of_file(&tokenizer, dir.path()).is_err());
    for empty in ["", " \n\t\n"] {
        fs::write(&path, empty).unwrap();
        mentions(&tokens_of_file(&tokenizer, &path).unwrap_err().to_string(), &["text.txt", "empty"]);
    }
    fs::write(&path, b"w1 w2 \xff w3").unwrap();
    mentions(&tokens_of_file(&tokenizer, &path).unwrap_err().to_string(), &["text.txt", "UTF-8", "byte 6"]);
    fs::write(&path, "w2 w3 w4").unwrap();
    let tokens = tokens_of_file(&tokenizer, &path).unwrap();
    assert_eq!(tokens, [1, 2, 3, 4]);
    let text = Windows::new(tokens, 128).unwrap_err().to_string();
    mentions(&text, &["4 tokens", "128"]);
}

#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn real_models_open_and_their_token_counts_equal_transformers() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    for (name, count) in [("stories260K", 388_718), ("stories3M", 202_925)] {
        let dir = shared.join("models").join(name);
        let config = Architecture::read(&dir).unwrap();
        let checkpoint = Checkpoint::open(&dir, &config).unwrap();
        checkpoint.check_finite(&config).unwrap();
        let tokenizer = Tokenizer::open(&dir, &config).unwrap();
        let tokens = tokens_of_file(&tokenizer, &shared.join("texts/tinystories-valid.txt")).unwrap();
        assert_eq!(tokens.len(), count);
        assert_eq!(tokens[0], 1);
    }
    let dir = shared.join("vectors/tiny_llama/a_dense");
    let config = Architecture::read(&dir).unwrap();
    assert_eq!(Checkpoint::open(&dir, &config).unwrap().files().len(), 2);
}

/// (index, angular frequency); 29 to 34 lie between the two limits.
const LLAMA3_INV_FREQ: [(usize, f64); 8] = [
    (0, 1.000000000e+00),
    (10, 1.286873817e-01),
    (25, 5.940730684e-03),
    (30, 1.371893683e-03),
    (32, 5.248460220e-04),
    (34, 1.785077911e-04),
    (36, 7.784655463e-05),
    (63, 3.068925878e-07),
];

/// Weights in double precision, alone and among others, are read as f32.
#[test]
fn doubles_are_read_and_stay_doubles() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let mut all = tensors(&config);
    let name = "model.layers.0.mlp.down_proj.weight";
    let tensor = all.get_mut(name).unwrap();
    let values: Vec<f64> =
        (0..tensor.shape.iter().product::<usize>()).map(|i| 0.1 + i as f64 / 3.0).collect();
    tensor.dtype = safetensors::Dtype::F64;
    tensor.data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_safetensors(&dir.join("model.safetensors"), &all);
    let checkpoint = Checkpoint::open(dir.path(), &config).unwrap();
    checkpoint.check_finite(&config).unwrap();
    let view = checkpoint.tensor(name).unwrap();
    assert_eq!(view.dtype.to_string(), "F64");
    assert_eq!(view.to_f32(), values.iter().map(|&v| v as f32).collect::<Vec<_>>());
    // Written again, what is kept has its 64 bits.
    let masks = host_fixture::masks(&checkpoint, &config, maskwright::mask::Pattern::TWO_OF_FOUR);
    let out = dir.join("out");
    host_fixture::export_hf(&checkpoint, &config, &masks, &out).unwrap_err();
    let beside = Scratch::new();
    host_fixture::export_hf(&checkpoint, &config, &masks, &beside.join("out")).unwrap();
    let written = Checkpoint::open(&beside.join("out"), &config).unwrap();
    let (mask, after) = (masks.get(name).unwrap(), written.tensor(name).unwrap());
    assert_eq!(after.dtype.to_string(), "F64");
    for (i, (bytes, value)) in after.data.chunks(8).zip(&values).enumerate() {
        let kept = mask.get(i / mask.cols(), i % mask.cols());
        assert_eq!(bytes, if kept { *value } else { 0.0 }.to_le_bytes());
    }
    let options = maskwright::verify::Options { against: Some(dir.path()), ..Default::default() };
    let verdict = maskwright::verify::verify(&beside.join("out"), &options).unwrap();
    assert!(verdict.ok, "{:?}", verdict.problems);
}

/// As transformers 5: tied, but both stored with different values, are not tied; the output matrix alone is the embedding, too.
#[test]
fn an_output_matrix_beside_a_tied_embedding() {
    let dir = Scratch::new();
    let config = model(dir.path());
    let (embedding, output) = ("model.embed_tokens.weight", "lm_head.weight");
    let mut all = tensors(&config);
    all.insert(output.into(), all[embedding].clone());
    let path = dir.join("model.safetensors");
    write_safetensors(&path, &all);
    let (opened, checkpoint) = maskwright::model::open(dir.path()).unwrap();
    assert!(opened.tie_word_embeddings && !checkpoint.unties(&opened));

    all.get_mut(output).unwrap().data[2] ^= 1;
    write_safetensors(&path, &all);
    let (opened, checkpoint) = maskwright::model::open(dir.path()).unwrap();
    assert!(!opened.tie_word_embeddings && checkpoint.unties(&config));
    assert_eq!(opened.output_name(), output);

    let head = all[output].data.clone();
    all.remove(embedding);
    write_safetensors(&path, &all);
    let (opened, checkpoint) = maskwright::model::open(dir.path()).unwrap();
    assert!(opened.tie_word_embeddings);
    assert_eq!(checkpoint.tensor(embedding).unwrap().data, head);
}

#[test]
fn weights_and_tokenizers_of_other_kinds_name_the_command() {
    let dir = Scratch::new();
    let config = model(dir.path());
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    for (file, part) in [
        ("pytorch_model.bin", "AutoModelForCausalLM.from_pretrained"),
        ("model-Q4_K.gguf", "gguf_file=\"model-Q4_K.gguf\""),
        ("consolidated.00.pth", "torch.load(\"consolidated.00.pth\""),
        ("model.pt", "safetensors.torch"),
    ] {
        fs::write(dir.join(file), "x").unwrap();
        mentions(
            &open_error(dir.path(), &config),
            &["neither model.safetensors nor", &format!(", but {file}; "), part],
        );
        fs::remove_file(dir.join(file)).unwrap();
    }
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    fs::write(dir.join("tokenizer.model"), "x").unwrap();
    let text = Tokenizer::open(dir.path(), &config).unwrap_err().to_string();
    mentions(
        &text,
        &["no tokenizer.json, only tokenizer.model", "AutoTokenizer.from_pretrained", "save_pretrained"],
    );
}
