//! What `quantization_config` in config.json says about how the weights are stored.

use serde_json::{Map, Value};

use super::clip;

/// Whether the weights are stored as they are in spite of a `quantization_config`: one of compressed-tensors (llm-compressor) that
/// quantizes nothing and packs nothing, as is written with a model that was only made sparse.
///
/// # Errors
/// How they are stored instead, such as `gptq, 4 bits`.
pub fn stored_plain(quantization_config: &Value) -> Result<(), String> {
    let map = match quantization_config {
        Value::Null => return Ok(()),
        Value::Object(map) if map.is_empty() => return Ok(()),
        Value::Object(map) => map,
        other => return Err(format!("`quantization_config` {}", clip(&other.to_string(), 80))),
    };
    match method(map).as_str() {
        "compressed-tensors" => compressed_tensors(map),
        other => Err(described(other, bits(map))),
    }
}

/// The method's name.
fn method(map: &Map<String, Value>) -> String {
    let word = |key: &str| map.get(key).and_then(Value::as_str).map(|word| clip(word, 40));
    if let Some(named) = word("quant_method") {
        return named;
    }
    // bitsandbytes wrote none for a while.
    let on = |key: &str| map.get(key) == Some(&Value::Bool(true));
    if on("load_in_4bit") || on("load_in_8bit") {
        return "bitsandbytes".into();
    }
    // Neither did compressed-tensors at its beginning.
    if map.contains_key("config_groups") || map.contains_key("sparsity_config") {
        return "compressed-tensors".into();
    }
    word("quant_algo").unwrap_or_else(|| "a method without a name".into())
}

/// Bits of a weight, where it is said.
fn bits(map: &Map<String, Value>) -> Option<u64> {
    let on = |key: &str| map.get(key) == Some(&Value::Bool(true));
    let said = ["bits", "w_bit", "nbits", "weight_bits"].iter().find_map(|key| map.get(*key)?.as_u64());
    said.or_else(|| on("load_in_4bit").then_some(4)).or_else(|| on("load_in_8bit").then_some(8))
}

fn described(method: &str, bits: Option<u64>) -> String {
    bits.map_or_else(|| method.to_string(), |bits| format!("{method}, {bits} bits"))
}

fn compressed_tensors(map: &Map<String, Value>) -> Result<(), String> {
    let word = |value: Option<&Value>| value.and_then(Value::as_str).map(|word| clip(word, 40));
    let format = word(map.get("format"));
    let name = |format: &Option<String>| {
        format
            .as_ref()
            .map_or("compressed-tensors".to_string(), |format| format!("compressed-tensors, {format}"))
    };
    let groups = match map.get("config_groups") {
        None | Some(Value::Null) => None,
        Some(Value::Object(groups)) => groups.values().next(),
        Some(other) => {
            return Err(format!("compressed-tensors, `config_groups` {}", clip(&other.to_string(), 80)));
        }
    };
    if let Some(group) = groups {
        return Err(described(&name(&format), group["weights"]["num_bits"].as_u64()));
    }
    if map.get("kv_cache_scheme").is_some_and(|scheme| !scheme.is_null()) {
        return Err("compressed-tensors, quantized keys and values".into());
    }
    let sparse = match map.get("sparsity_config") {
        None | Some(Value::Null) => None,
        Some(Value::Object(sparse)) if sparse.is_empty() => None,
        Some(sparse) => word(sparse.get("format")).or_else(|| Some("an unknown format".into())),
    };
    match (&format, &sparse) {
        (_, Some(sparse)) if sparse != "dense" => Err(name(&Some(sparse.clone()))),
        // Without groups nothing is quantized, whatever format would be used for it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn methods_are_named() {
        for (config, expected) in [
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), "gptq, 4 bits"),
            (json!({"quant_method": "awq", "bits": 4, "version": "gemm"}), "awq, 4 bits"),
            (json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}), "bitsandbytes, 4 bits"),
            (
                json!({"quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": true}),
                "bitsandbytes, 8 bits",
            ),
            (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), "fp8"),
            (json!({"quant_method": "mxfp4", "modules_to_not_convert": []}), "mxfp4"),
            (json!({"quant_algo": "NVFP4"}), "NVFP4"),
            (json!({"anything": 1}), "a method without a name"),
            (json!("int8"), "`quantization_config` \"int8\""),
            (
                json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}),
                "compressed-tensors, pack-quantized, 4 bits",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "dense",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}),
                "compressed-tensors, dense, 8 bits",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {},
                "sparsity_config": {"format": "sparse-24-bitmask"}}),
                "compressed-tensors, sparse-24-bitmask",
            ),
            (
                json!({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}),
                "compressed-tensors, quantized keys and values",
            ),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": []}),
                "compressed-tensors, `config_groups` []",
            ),
            (
                json!({"quant_method": "compressed-tensors", "sparsity_config": 3}),
                "compressed-tensors, an unknown format",
            ),
        ] {
            assert_eq!(stored_plain(&config), Err(expected.to_string()), "{config}");
        }
        let long = stored_plain(&json!({"quant_method": "x".repeat(10_000)})).unwrap_err();
        assert!(long.len() < 100, "{long}");
    }

    #[test]
    fn sparse_models_with_plain_weights_are_told_apart() {
        for config in [
            json!(null),
            json!({}),
            json!({"quant_method": "compressed-tensors", "format": "dense"}),
            json!({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "ignore": [],
                "kv_cache_scheme": null, "quantization_status": "compressed",
                "sparsity_config": {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5, "targets": ["Linear"]}}),
            json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}}),
            json!({"config_groups": null, "sparsity_config": {"format": "dense"}}),
        ] {
            assert_eq!(stored_plain(&config), Ok(()), "{config}");
        }
    }
}
