//! tokenizer.json: every id must have an embedding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maskwright::model::{Architecture, Tokenizer};

const CONFIG: &[u8] =
    br#"{"model_type": "llama", "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}"#;

fuzz_target!(|bytes: &[u8]| {
    maskwright_fuzz::file("config.json", CONFIG);
    maskwright_fuzz::file("tokenizer.json", bytes);
    let config = Architecture::read(maskwright_fuzz::folder()).expect("a valid configuration");
    let Ok(tokenizer) = Tokenizer::open(maskwright_fuzz::folder(), &config) else { return };
    if let Ok(ids) = tokenizer.encode("w3 w5, unknown \u{e9} 12.") {
        assert!(ids.iter().all(|&id| id < 12), "{ids:?}");
    }
});
