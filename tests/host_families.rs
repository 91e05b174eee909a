//! What the families make of config.json files: published ones, the fixtures', and such as must be refused; and the parts of tensors
//! by which fused and transposed projections are known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use maskwright::model::{
    ActivationKind, Architecture, Checkpoint, Gain, ModelError, NormKind, Part, ProjectionKind, QkSpread,
    RopeScaling, TensorPart, family_names,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A temporary model folder, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(config: &Value) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("maskwright-families-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        Self(path)
    }

    /// Adds a weight file whose tensors are a single byte each.
    fn with_tensors(self, names: &[&str]) -> Self {
        let entry = |(i, name): (usize, &&str)| {
            (String::from(*name), json!({"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}))
        };
        let header = Value::Object(names.iter().enumerate().map(entry).collect()).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; names.len()]);
        fs::write(self.0.join("model.safetensors"), bytes).unwrap();
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn json_of(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn published(name: &str) -> Value {
    json_of(&fixtures().join(format!("published/{name}.json")))
}

fn read(config: &Value) -> Result<Architecture, ModelError> {
    Architecture::read(&Folder::new(config).0)
}

/// The architecture of a published model.
fn model(name: &str) -> Architecture {
    read(&published(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A published configuration with some keys replaced; null takes a key away.
fn changed(name: &str, changes: Value) -> Value {
    let mut config = published(name);
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().shift_remove(key)),
            value => config[key] = value.clone(),
        }
    }
    config
}

#[track_caller]
fn refused(config: &Value, parts: &[&str]) {
    let text = read(config).expect_err("should be refused").to_string();
    for part in [&["config.json"], parts].concat() {
        assert!(text.contains(part), "{text:?} should mention {part:?}");
    }
}

fn parameters(of: &Architecture) -> usize {
    of.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
}

/// The numbers of parameters that transformers 5.23 counts for the same files.
#[test]
fn published_configurations_call_for_the_published_number_of_parameters() {
    let table = fs::read_to_string(fixtures().join("published/parameters.tsv")).unwrap();
    let mut families = BTreeSet::new();
    for line in table.lines() {
        let (name, count) = line.split_once('\t').unwrap();
        let config = published(name);
        if name == "opt-350m" {
            refused(&config, &["do_layer_norm_before"]);
            continue;
        }
        let of = read(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(parameters(&of).to_string(), count, "{name}");
        assert_eq!(config["model_type"], of.family, "{name}");
        families.insert(of.family);
    }
    let files = fs::read_dir(fixtures().join("published")).unwrap();
    let files = files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "json")).count();
    assert_eq!(table.lines().count(), files);
    let unpublished: Vec<_> = family_names().filter(|f| !families.contains(f)).collect();
    assert_eq!(
        unpublished,
        ["ministral3", "mistral3", "glm"],
        "families without a published configuration here"
    );
}

/// Numbers that are written on many pages.
#[test]
fn well_known_numbers_of_parameters() {
    for (name, count) in [
        ("smollm2-135m", 134_515_008),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
        ("gemma-2b", 2_506_172_416),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-3-1b-pt", 999_885_952),
        ("phi-2", 2_779_683_840),
        ("phi-3-mini-4k-instruct", 3_821_079_552),
        ("olmo-1b-hf", 1_176_764_416),
        ("gpt2", 124_439_808),
        ("pythia-1.4b", 1_414_647_808),
        ("opt-125m", 125_239_296),
    ] {
        assert_eq!(parameters(&model(name)), count, "{name}");
    }
}

#[test]
fn configurations_of_the_fixtures_are_read() {
    let mut seen = 0;
    for folder in ["models", "configs", "families"] {
        let Ok(entries) = fs::read_dir(fixtures().join(folder)) else { continue };
        for path in entries.map(|e| e.unwrap().path()).filter(|p| p.join("config.json").is_file()) {
            seen += 1;
            if path.ends_with("opt_350m") {
                refused(&json_of(&path.join("config.json")), &["do_layer_norm_before"]);
                continue;
            }
            let of = Architecture::read(&path).unwrap_or_else(|e| panic!("{e}"));
            if !path.join("model.safetensors").is_file() {
                continue;
            }
            let weights = Checkpoint::open(&path, &of).unwrap_or_else(|e| panic!("{e}"));
            // Nothing is left over but what is no part of the language model, or a copy of the embedding.
            let known: BTreeSet<String> = of.tensors().into_iter().map(|t| t.name).collect();
            let extra = |name: &&str| {
                let stays =
                    ["vision", "multi_modal", ".attn.bias", "masked_bias", "attention.bias", "inv_freq"];
                !known.contains(*name) && !stays.iter().any(|s| name.contains(s)) && *name != "lm_head.weight"
            };
            let left: Vec<_> = weights.names().filter(extra).collect();
            assert!(left.is_empty(), "{}: {left:?}", path.display());
            for p in of.projections() {
                assert_eq!(weights.tensor(&p.name).unwrap().shape, [p.rows, p.cols], "{}", p.name);
            }
        }
    }
    assert!(seen >= 9);
}

/// The blocks with a window.
fn windows(of: &Architecture) -> Vec<usize> {
    (0..of.num_layers).filter(|i| of.layers[*i].window.is_some()).collect()
}

#[test]
fn what_is_special_in_llamas() {
    let llama = model("llama-3.1-8b");
    assert!(matches!(llama.ropes[0].scaling, RopeScaling::Llama3(s) if s.factor == 8.0));
    assert_eq!((llama.rotary.turned, llama.norm.kind, llama.norm.gain), (128, NormKind::Rms, Gain::Plain));
    assert_eq!((llama.attention.scale, llama.max_position_embeddings), (1.0 / 128f32.sqrt(), 131_072));
    let biased = read(&changed("llama-3-8b", json!({"attention_bias": true, "mlp_bias": true}))).unwrap();
    assert_eq!(biased.biases, ProjectionKind::ALL);
    // A window of its own where the key is missing, none where it is null.
    assert_eq!(model("mistral-7b-v0.1").layers[31].window, Some(4096));
    assert_eq!(model("mistral-7b-v0.3").layers[31].window, None);
    let missing =
        read(&changed("mistral-7b-v0.3", json!({"sliding_window": null, "num_key_value_heads": null})));
    let missing = missing.unwrap();
    assert_eq!((missing.layers[31].window, missing.num_kv_heads), (Some(4096), 8));
    let ministral = model("ministral-8b-instruct-2410");
    assert_eq!((ministral.layers[0].window, ministral.layers[1].window), (None, Some(32_768)));
    let qwen = model("qwen2.5-7b");
    assert_eq!((qwen.biases.as_slice(), windows(&qwen).len()), (&ProjectionKind::ALL[..3], 0));
    let sliding = json!({"use_sliding_window": true, "max_window_layers": 20, "sliding_window": 100});
    let sliding = read(&changed("qwen2.5-7b", sliding)).unwrap();
    assert_eq!(windows(&sliding), (20..28).collect::<Vec<_>>());
    let qwen = model("qwen3-0.6b");
    assert_eq!(
        (qwen.head_dim, qwen.query_rows(), qwen.qk_norm.unwrap().spread),
        (128, 2048, QkSpread::Shared)
    );
    assert!(qwen.biases.is_empty() && qwen.tie_word_embeddings);
    let smol = model("smollm3-3b");
    let still: Vec<usize> = (0..36).filter(|i| smol.layers[*i].rope.is_none()).collect();
    assert_eq!(still, [3, 7, 11, 15, 19, 23, 27, 31, 35]);
    assert_eq!(read(&changed("smollm3-3b", json!({"no_rope_layers": null}))).unwrap().layers, smol.layers);
    let granite = model("granite-3.1-2b-base");
    assert_eq!(
        (granite.scales.embedding, granite.scales.residual, granite.scales.logits),
        (12.0, 0.22, 0.125)
    );
    assert_eq!(granite.attention.scale, 1.0 / 64.0);
    let unsaid = read(&changed("granite-3.1-2b-base", json!({"attention_multiplier": null}))).unwrap();
    assert_eq!(unsaid.attention.scale, 1.0);
}

#[test]
fn what_is_special_in_gemmas() {
    let gemma = model("gemma-2b");
    assert_eq!((gemma.norm.gain, gemma.scales.embedding), (Gain::OnePlus, 2048f32.sqrt()));
    // The file says gelu.
    assert_eq!(gemma.feed_forward.activation, ActivationKind::GeluTanh);
    assert!(gemma.tie_word_embeddings);
    let gemma = model("gemma-2-27b");
    assert_eq!((gemma.attention.cap, gemma.logit_cap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma.attention.scale, 1.0 / 12.0);
    assert_eq!(windows(&gemma), (0..46).step_by(2).collect::<Vec<_>>());
    assert_eq!(gemma.block.norms().count(), 4);
    let gemma = model("gemma-3-1b-pt");
    assert_eq!((gemma.attention.cap, gemma.logit_cap), (None, None));
    let full: Vec<usize> = (0..26).filter(|i| gemma.layers[*i].window.is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    let ropes: Vec<_> = gemma.layers[4..6].iter().map(|l| gemma.ropes[l.rope.unwrap()].theta).collect();
    assert_eq!((ropes, gemma.layers[0].window), (vec![1e4, 1e6], Some(512)));
    assert_eq!(gemma.qk_norm.unwrap().gain, Gain::OnePlus);
    let gemma = model("gemma-3-27b-it");
    assert_eq!((gemma.ropes[0].scaling.clone(), gemma.ropes[1].scaling.clone()), {
        (RopeScaling::Linear { factor: 8.0 }, RopeScaling::None)
    });
    assert_eq!(gemma.eos_token_ids, [1, 106]);
    assert_eq!(gemma.embedding_name(), "language_model.model.embed_tokens.weight");
    assert_eq!(gemma.output_name(), gemma.embedding_name());
    // As transformers 5 writes it.
    let nested = json!({
        "rope_scaling": null, "rope_theta": null, "rope_local_base_freq": null,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    });
    let gemma = read(&changed("gemma-3-1b-pt", nested)).unwrap();
    assert_eq!((gemma.ropes[0].theta, gemma.ropes[1].theta), (1e6, 5e3));
    assert_eq!(gemma.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
}

#[test]
fn what_is_special_in_families_with_other_norms() {
    let olmo = model("olmo-1.7-7b-hf");
    assert_eq!((olmo.norm.kind, olmo.norm.gain, olmo.norm.bias), (NormKind::Layer, Gain::None, false));
    assert_eq!((olmo.attention.clip, olmo.tensors().len()), (Some(8.0), 2 + 32 * 7));
    let olmo = model("olmo-2-1124-7b");
    let norms: Vec<_> = olmo.block.norms().collect();
    assert_eq!(norms, ["post_attention_layernorm", "post_feedforward_layernorm"]);
    assert!(olmo.block.attention_in.is_none() && olmo.block.feed_forward_in.is_none());
    assert_eq!(olmo.qk_norm.unwrap().spread, QkSpread::Whole);
    let olmo = model("olmo-3-1025-7b");
    let full: Vec<usize> = (0..32).filter(|i| olmo.layers[*i].window.is_none()).collect();
    assert_eq!(full, [3, 7, 11, 15, 19, 23, 27, 31]);
    assert!(matches!(olmo.ropes[olmo.layers[3].rope.unwrap()].scaling, RopeScaling::Yarn(_)));
    assert_eq!(olmo.ropes[olmo.layers[2].rope.unwrap()].scaling, RopeScaling::None);
    let stable = model("stablelm-2-12b");
    assert_eq!((stable.rotary.turned, stable.head_dim, stable.block.parallel), (40, 160, true));
    let tensors = stable.tensors();
    assert!(tensors.iter().any(|t| t.name == "model.layers.0.self_attn.q_layernorm.norms.31.weight"));
    assert!(!tensors.iter().any(|t| t.name.contains("post_attention_layernorm")));
    assert_eq!(model("stablelm-2-1_6b").biases, ProjectionKind::ALL[..3]);
    let star = model("starcoder2-3b");
    assert_eq!((star.kinds_count(), star.biases.len(), star.tie_word_embeddings), (6, 6, true));
    assert_eq!(star.projections()[5].name, "model.layers.0.mlp.c_proj.weight");
    let command = model("c4ai-command-r-plus");
    assert!(command.block.parallel && command.rotary.interleaved && !command.norm.bias);
    assert_eq!((command.qk_norm.unwrap().spread, command.norm.kind), (QkSpread::Matrix, NormKind::Layer));
    let command = model("c4ai-command-r7b-12-2024");
    assert_eq!((command.scales.logits, command.layers[3].rope, command.layers[3].window), (0.25, None, None));
    assert_eq!((command.layers[2].rope, command.layers[2].window), (Some(0), Some(4096)));
    let glm = model("glm-4-9b-0414");
    assert_eq!((glm.rotary.turned, glm.rotary.interleaved, glm.block.norms().count()), (64, true, 4));
    assert_eq!(glm.biases, ProjectionKind::ALL[..3]);
    assert!(model("glm-4-32b-0414").biases.is_empty());
}

#[test]
fn what_is_special_in_phis() {
    let phi = model("phi-2");
    assert_eq!((phi.rotary.turned, phi.block.parallel, phi.output_bias), (32, true, true));
    assert_eq!(phi.projections()[3].name, "model.layers.0.self_attn.dense.weight");
    assert_eq!(phi.final_norm_module(), "model.final_layernorm");
    let phi = model("phi-4-mini-instruct");
    assert_eq!((phi.rotary.turned, phi.head_dim), (96, 128));
    let RopeScaling::LongRope { original, long, attention_factor, .. } = &phi.ropes[0].scaling else {
        panic!()
    };
    assert_eq!((*original, long.len()), (4096.0, 48));
    assert!((attention_factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
    let k = phi.projections()[1].clone();
    assert_eq!((k.name.as_str(), k.stored.as_str()), {
        ("model.layers.0.self_attn.qkv_proj.k.weight", "model.layers.0.self_attn.qkv_proj.weight")
    });
    assert_eq!(k.place.part, Some(Part { first: 3072, run: 1024, stride: 1024, of: 5120 }));
    let up = &phi.projections()[5];
    assert_eq!(
        (up.name.as_str(), up.place.part.unwrap().first),
        ("model.layers.0.mlp.gate_up_proj.up.weight", 8192)
    );
    // Parts that lie together need no memory of their own.
    assert!(phi.parts().iter().all(|part| part.range(2).is_some()));
    assert_eq!(model("phi-3-mini-4k-instruct").layers[0].window, Some(2047));
}

#[test]
fn what_is_special_in_gpts() {
    let pythia = model("pythia-160m");
    assert_eq!((pythia.rotary.turned, pythia.head_dim, pythia.biases.len()), (16, 64, 6));
    assert!(pythia.block.parallel && pythia.block.feed_forward_in.is_some());
    let part = Some(Part { first: 64, run: 64, stride: 192, of: 2304 });
    assert_eq!(pythia.projections()[1].place.part, part);
    assert_eq!(pythia.output_name(), "embed_out.weight");
    let gpt = model("gpt2");
    assert!(gpt.layers[0].rope.is_none() && gpt.positions.is_some() && gpt.ropes.is_empty());
    assert_eq!((gpt.intermediate_size, gpt.feed_forward.activation), (3072, ActivationKind::GeluTanh));
    let v = &gpt.projections()[2];
    assert_eq!((v.name.as_str(), v.stored.as_str()), ("h.0.attn.c_attn.v.weight", "h.0.attn.c_attn.weight"));
    assert!(v.place.transposed && v.place.part.unwrap().first == 1536);
    let shapes: BTreeMap<String, Vec<usize>> = gpt.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
    assert_eq!(
        (&shapes["wpe.weight"], &shapes["h.3.attn.c_attn.weight"]),
        (&vec![1024, 768], &vec![768, 2304])
    );
    let unscaled = json!({"scale_attn_weights": false, "n_inner": 100});
    let unscaled = read(&changed("gpt2", unscaled)).unwrap();
    assert_eq!((unscaled.attention.scale, unscaled.intermediate_size), (1.0, 100));
    let opt = model("opt-125m");
    assert_eq!((opt.positions.unwrap().offset, opt.feed_forward.activation), (2, ActivationKind::Relu));
    assert_eq!(opt.positions_name().unwrap(), "model.decoder.embed_positions.weight");
    assert_eq!(opt.projections()[4].name, "model.decoder.layers.0.fc1.weight");
    assert_eq!(read(&changed("opt-125m", json!({"enable_bias": false}))).unwrap().biases, []);
}

#[test]
fn the_queries_of_ministral_3_grow() {
    let mut config = changed("mistral-7b-v0.3", json!({"model_type": "ministral3", "rope_theta": null}));
    config["rope_parameters"] = json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    });
    config["max_position_embeddings"] = json!(262_144);
    let of = read(&config).unwrap();
    assert_eq!((of.max_position_embeddings, of.ropes[0].attention_factor()), (262_144, 1.0));
    let growth = of.attention.growth.unwrap();
    assert_eq!((growth.at(16_383), growth.at(16_384)), (1.0, 1.0 + 0.1 * 2f64.ln()));
    config["rope_parameters"].as_object_mut().unwrap().shift_remove("llama_4_scaling_beta");
    refused(&config, &["llama_4_scaling_beta"]);
}

/// The model is found under whatever prefix it lies.
/// The language part of a model that also sees is a Mistral, also where nothing says so, or a Ministral 3.
#[test]
fn the_language_part_of_mistral_3_is_one_of_two() {
    let mut text = published("mistral-7b-v0.1");
    let alone = read(&text).unwrap();
    let whole = |text: &Value| json!({"model_type": "mistral3", "eos_token_id": 7, "text_config": text});
    let seeing = read(&whole(&text)).unwrap();
    assert_eq!((seeing.family, alone.family), ("mistral3", "mistral"));
    assert_eq!((windows(&seeing), seeing.ropes.len()), (windows(&alone), alone.ropes.len()));
    assert_eq!((&seeing.eos_token_ids[..], seeing.tie_word_embeddings), (&[7][..], true));
    assert_eq!(seeing.names.prefix, "language_model.model.");
    text.as_object_mut().unwrap().shift_remove("model_type");
    assert_eq!(windows(&read(&whole(&text)).unwrap()), windows(&alone));
    text["model_type"] = json!("llama");
    refused(&whole(&text), &["text_config.model_type", "llama", "mistral"]);
    refused(&json!({"model_type": "mistral3"}), &["text_config"]);
}

#[test]
fn names_follow_the_weights() {
    let named = |config: &Value, tensors: &[&str]| {
        let of = Architecture::read(&Folder::new(config).with_tensors(tensors).0).unwrap();
        (of.embedding_name(), of.output_name())
    };
    let pair = |a: &str, b: &str| (String::from(a), String::from(b));
    let pythia = published("pythia-160m");
    let both = pair("gpt_neox.embed_in.weight", "embed_out.weight");
    assert_eq!(named(&pythia, &["gpt_neox.embed_in.weight", "embed_out.weight"]), both);
    assert_eq!(named(&pythia, &["gpt_neox.embed_in.weight"]), both);
    let new = pair("gpt_neox.embed_in.weight", "lm_head.weight");
    assert_eq!(named(&pythia, &["gpt_neox.embed_in.weight", "lm_head.weight"]), new);
    for (name, embedding) in [
        ("gpt2", "wte.weight"),
        ("gpt2", "transformer.wte.weight"),
        ("opt-125m", "model.decoder.embed_tokens.weight"),
        ("opt-125m", "decoder.embed_tokens.weight"),
        ("gemma-3-4b-it", "language_model.model.embed_tokens.weight"),
        ("gemma-3-4b-it", "model.language_model.embed_tokens.weight"),
    ] {
        assert_eq!(named(&published(name), &[embedding]), pair(embedding, embedding));
    }
    let untied = changed("gemma-3-4b-it", json!({"tie_word_embeddings": false}));
    let found = named(&untied, &["model.language_model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(found.1, "lm_head.weight");
}

#[test]
fn what_is_not_understood_is_named() {
    let all: Vec<&str> = family_names().collect();
    refused(
        &changed("llama-3-8b", json!({"model_type": "mixtral"})),
        &[&["mixtral"], all.as_slice()].concat(),
    );
    refused(&changed("llama-3-8b", json!({"num_local_experts": 8})), &["num_local_experts", "(8)"]);
    refused(
        &changed("gpt2", json!({"scale_attn_by_inverse_layer_idx": true})),
        &["scale_attn_by_inverse_layer_idx"],
    );
    refused(&changed("phi-2", json!({"qk_layernorm": true})), &["qk_layernorm"]);
    refused(
        &changed("gemma-2b", json!({"use_bidirectional_attention": true})),
        &["use_bidirectional_attention"],
    );
    refused(&changed("llama-3-8b", json!({"attention_sinks": true})), &["attention_sinks"]);
    refused(&changed("opt-125m", json!({"word_embed_proj_dim": 512})), &["word_embed_proj_dim", "768"]);
    refused(&changed("opt-125m", json!({"_remove_final_layer_norm": true})), &["_remove_final_layer_norm"]);
    refused(&changed("starcoder2-3b", json!({"norm_type": "rms_norm"})), &["norm_type", "layer_norm"]);
    refused(
        &changed("c4ai-command-r7b-12-2024", json!({"use_parallel_block": false})),
        &["use_parallel_block"],
    );
    refused(&changed("c4ai-command-r7b-12-2024", json!({"rotary_pct": 0.5})), &["rotary_pct", "only 1 is"]);
    refused(&changed("phi-4-mini-instruct", json!({"lm_head_bias": true})), &["lm_head_bias"]);
    let mut seeing = published("gemma-3-4b-it");
    seeing["text_config"]["num_experts"] = json!(4);
    refused(&seeing, &["text_config.num_experts"]);
    seeing["text_config"] = Value::Null;
    refused(&seeing, &["text_config", "an object"]);
    // Every key, and under every family, is either read or named.
    for name in ["gpt2", "opt-125m", "pythia-160m", "gemma-3-1b-pt", "olmo-3-1025-7b", "glm-4-9b-0414"] {
        refused(&changed(name, json!({"a_new_thing": 1})), &["a_new_thing"]);
        read(&changed(name, json!({"a_new_thing": false, "_a_note": 1}))).unwrap();
    }
}

#[test]
fn wrong_values_are_named_with_what_they_must_be() {
    // By the names that the file has.
    refused(&changed("gpt2", json!({"n_embd": 0})), &["`n_embd`", "an integer from 1"]);
    refused(&changed("gpt2", json!({"n_layer": null})), &["`n_layer`"]);
    refused(&changed("gpt2", json!({"hidden_size": 768})), &["`hidden_size`"]);
    refused(&changed("opt-125m", json!({"ffn_dim": null})), &["`ffn_dim`"]);
    refused(&changed("pythia-160m", json!({"rotary_pct": 2.0})), &["`rotary_pct`", "at most 1"]);
    refused(&changed("pythia-160m", json!({"rope_theta": 100.0})), &["rope_theta"]);
    let copies = json!({"rope_theta": 10000, "partial_rotary_factor": 0.25});
    read(&changed("pythia-160m", copies)).unwrap();
    refused(&changed("pythia-160m", json!({"partial_rotary_factor": 0.5})), &["`partial_rotary_factor` 0.5"]);
    refused(&changed("pythia-160m", json!({"num_key_value_heads": 4})), &["num_key_value_heads"]);
    refused(&changed("stablelm-3b-4e1t", json!({"head_dim": 64})), &["head_dim", "80"]);
    refused(&changed("phi-2", json!({"partial_rotary_factor": 0.39})), &["partial_rotary_factor", "even"]);
    refused(&changed("llama-3-8b", json!({"partial_rotary_factor": 0.5})), &["partial_rotary_factor"]);
    refused(&changed("ministral-8b-instruct-2410", json!({"head_dim": null})), &["head_dim"]);
    refused(&changed("gemma-2-2b", json!({"final_logit_softcapping": -1})), &["final_logit_softcapping"]);
    refused(&changed("gemma-2-2b", json!({"layer_types": ["full_attention"]})), &["layer_types", "26"]);
    refused(&changed("smollm3-3b", json!({"no_rope_layers": [1, 0]})), &["no_rope_layers", "36"]);
    let mut null = published("gemma-2-2b");
    null["sliding_window"] = Value::Null;
    refused(&null, &["sliding_window", "slide"]);
    let mixed: Vec<&str> =
        (0..32).map(|i| if i == 0 { "full_attention" } else { "sliding_attention" }).collect();
    refused(&changed("mistral-7b-v0.1", json!({"layer_types": mixed})), &["layer_types"]);
    refused(
        &changed("qwen2.5-7b", json!({"layer_types": vec!["sliding_attention"; 28]})),
        &["use_sliding_window"],
    );
}

#[test]
fn rotary_objects_that_do_not_fit_the_family_are_named() {
    let by_kind = json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}});
    refused(&changed("llama-3-8b", by_kind), &["rope_parameters.full_attention", "one rotary embedding"]);
    let flat = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
    for name in ["gemma-3-1b-pt", "olmo-3-1025-7b"] {
        refused(&changed(name, flat.clone()), &["rope_parameters.rope_type", "sliding_attention"]);
    }
    refused(
        &changed("olmo-3-1025-7b", json!({"rope_theta": 1e4})),
        &["rope_theta", "500000", "rope_parameters"],
    );
    refused(&changed("llama-3-8b", json!({"rope_scaling": {"type": "mrope"}})), &["mrope", "yarn"]);
    let section = json!({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}});
    refused(&changed("qwen2.5-7b", section), &["rope_scaling.mrope_section"]);
    let short = json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}});
    refused(&changed("phi-3-mini-4k-instruct", short), &["short_factor", "48"]);
    let negative = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": -1.0}});
    refused(&changed("llama-3-8b", negative), &["rope_scaling.attention_factor", "above 0"]);
    // The older key wins where both are there.
    let both = json!({
        "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
    });
    let both = read(&changed("llama-3-8b", both)).unwrap();
    assert_eq!(
        (both.ropes[0].theta, both.ropes[0].scaling.clone()),
        (5e5, RopeScaling::Linear { factor: 2.0 })
    );
}

/// Numbers by transformers 5.23 (`ROPE_INIT_FUNCTIONS`), in f32.
#[test]
fn frequencies_are_those_of_transformers() {
    let tiny = json!({
        "model_type": "llama", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 4096,
    });
    let rope = |changes: Value| {
        let mut config = tiny.clone();
        changes.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        let of = read(&config).unwrap();
        (of.ropes[0].clone(), of.rotary.turned)
    };
    let check = |changes: Value, length: usize, factor: f64, expected: &[f64]| {
        let (rope, turned) = rope(changes.clone());
        let found = rope.frequencies(turned, length);
        assert_eq!(found.len(), expected.len(), "{changes}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 3e-7, "{changes} at {length}: {found} {expected}");
        }
        assert!((rope.attention_factor() - factor).abs() < 1e-12, "{changes}: {}", rope.attention_factor());
    };
    let plain = [1.0, 0.316227764, 0.1, 0.0316227786, 0.01, 0.00316227786, 0.001, 0.000316227786];
    check(json!({}), 10, 1.0, &plain);
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 3.0}});
    check(linear, 10, 1.0, &plain.map(|f| f / 3.0));
    let dynamic =
        json!({"rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 512}});
    check(dynamic.clone(), 4096, 1.0, &plain);
    let grown = [
        1.0,
        0.240649298,
        0.0579120778,
        0.013936501,
        0.00335380924,
        0.000807091768,
        0.000194226057,
        4.67403661e-05,
    ];
    check(dynamic, 10_000, 1.0, &grown);
    let llama3 = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }});
    let slowed =
        [1.0, 0.316227764, 0.1, 0.0316227786, 0.00308676064, 0.000395284733, 0.000125, 3.95284733e-05];
    check(llama3, 10, 1.0, &slowed);
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}});
    let ramp = [1.0, 0.316227764, 0.08125, 0.0197642371, 0.004375, 0.000790569466, 0.00025, 7.90569466e-05];
    check(yarn, 10, 1.138629436111989, &ramp);
    let sharp = json!({"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16, "beta_slow": 2,
        "truncate": false, "mscale": 0.7, "mscale_all_dim": 1.0,
    }});
    let ramp = [1.0, 0.316227764, 0.1, 0.0187018048, 0.0025, 0.000790569466, 0.00025, 7.90569466e-05];
    check(sharp, 10, 0.9634746568860826, &ramp);
    // The length beside the object wins.
    let beside = json!({
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "original_max_position_embeddings": 1024,
        },
        "original_max_position_embeddings": 512,
    });
    let ramp = [1.0, 0.25693506, 0.0625, 0.0138349654, 0.0025, 0.000790569466, 0.00025, 7.90569466e-05];
    check(beside, 10, 1.25, &ramp);
    for kind in ["longrope", "su", "yarn"] {
        let long = json!({
            "model_type": "phi3", "original_max_position_embeddings": 512, "partial_rotary_factor": 0.5,
            "rope_scaling": {
                "type": kind, "short_factor": [1.0, 1.1, 1.4, 2.0], "long_factor": [1.5, 3.0, 6.0, 9.0],
            },
        });
        let (factor, short) = (1.1547005383792515, [1.0, 0.0909090936, 0.00714285718, 0.0005]);
        check(long.clone(), 512, factor, &short);
        check(long, 513, factor, &[0.666666687, 0.0333333351, 0.00166666671, 0.000111111112]);
    }
}

/// A stored tensor whose elements are their own numbers.
fn numbered(count: usize) -> Vec<u8> {
    (0..count as u16).flat_map(u16::to_le_bytes).collect()
}

fn numbers(bytes: &[u8]) -> Vec<usize> {
    bytes.chunks_exact(2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))).collect()
}

/// The numbers that a part should have: `outputs` in this order, of a tensor with `of` of them.
fn expected(outputs: &[usize], inputs: usize, of: usize, transposed: bool) -> Vec<usize> {
    let element = |o: usize, i: usize| if transposed { i * of + o } else { o * inputs + i };
    outputs.iter().flat_map(|&o| (0..inputs).map(move |i| element(o, i))).collect()
}

#[test]
fn parts_of_tensors_are_taken_out_and_put_back() {
    let inputs = 5;
    let heads = |first: usize| Some(Part { first, run: 2, stride: 6, of: 18 });
    let rows = |first, run, of| Some(Part { first, run, stride: run, of });
    let cases: [(Option<Part>, bool, Vec<usize>, bool); 8] = [
        (None, false, (0..6).collect(), true),
        (None, true, (0..6).collect(), false),
        (rows(3, 4, 12), false, (3..7).collect(), true),
        (rows(3, 4, 12), true, (3..7).collect(), false),
        (heads(2), false, vec![2, 3, 8, 9, 14, 15], false),
        (heads(2), true, vec![2, 3, 8, 9, 14, 15], false),
        // One head lies together.
        (Some(Part { first: 2, run: 2, stride: 6, of: 6 }), false, vec![2, 3], true),
        (rows(0, 6, 6), false, (0..6).collect(), true),
    ];
    for (part, transposed, outputs, together) in cases {
        let of = part.map_or(outputs.len(), |p| p.of);
        for shape in [vec![outputs.len(), inputs], vec![outputs.len()]] {
            let width = shape.get(1).copied().unwrap_or(1);
            // A bias lies as it is.
            let transposed = transposed && shape.len() == 2;
            let name = format!("{part:?} {transposed} {shape:?}");
            let it = TensorPart { name: "a".into(), stored: "b".into(), shape, part, transposed };
            let stored = numbered(of * width);
            let own = it.gather(&stored, 2);
            assert_eq!(numbers(&own), expected(&outputs, width, of, transposed), "{name}");
            assert_eq!(it.stored_outputs(), of, "{name}");
            assert_eq!(
                (0..outputs.len()).map(|i| it.stored_output(i)).collect::<Vec<_>>(),
                outputs,
                "{name}"
            );
            // A bias lies together also where only the transposition parts the weight.
            let together = together || (part.is_none_or(|p| p.stride == p.run) && !transposed);
            assert_eq!(it.range(2).is_some(), together, "{name}");
            if let Some(range) = it.range(2) {
                assert_eq!(stored[range], own, "{name}");
            }
            // What it does not hold stays.
            let mut put = vec![0xff; stored.len()];
            it.scatter(&own, &mut put, 2);
            assert_eq!(it.gather(&put, 2), own, "{name}");
            let touched = put.iter().filter(|b| **b != 0xff).count();
            assert_eq!(touched, own.len(), "{name}");
        }
    }
}

/// The parts of every published model that has some cover each stored tensor once.
#[test]
fn parts_cover_their_tensors() {
    for name in ["gpt2", "pythia-160m", "phi-4-mini-instruct", "glm-4-9b-0414"] {
        let of = model(name);
        let stored: BTreeMap<String, Vec<usize>> =
            of.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
        let mut outputs: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for part in of.parts() {
            let shape = &stored[&part.stored];
            let mut own = part.shape.clone();
            own[0] = part.stored_outputs();
            if part.transposed {
                own.reverse();
            }
            assert_eq!(shape, &own, "{name} {}", part.name);
            let of_part = (0..part.shape[0]).map(|i| part.stored_output(i));
            outputs.entry(part.stored.clone()).or_default().extend(of_part);
        }
        for (tensor, mut found) in outputs {
            let count = found.len();
            found.sort_unstable();
            found.dedup();
            assert_eq!(
                (found.len(), found.first(), found.last()),
                (count, Some(&0), Some(&(count - 1))),
                "{tensor}"
            );
        }
    }
}
