//! config.json of the supported families, checked, and the tensors that it calls for.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ends::token_ids;
use super::{Dtype, Llama3, ModelError, ProjectionKind, Rope, clip, read_json_object};

/// More than any real config.json.
const LIMIT_BYTES: u64 = 16 << 20;
/// Sane upper bounds. They keep every product of two sizes far inside 64 bits and refuse nonsense early.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_POSITIONS: usize = 1 << 31;

/// The supported families.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// Llama 1 to 3.x, TinyLlama and the like: `model_type` `llama`.
    Llama,
    /// Mistral: Llama with an optional sliding window.
    Mistral,
    /// Qwen2 and 2.5: Llama with biases on q, k and v.
    Qwen2,
}

impl fmt::Display for Family {
    /// The `model_type` of config.json.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
        })
    }
}

/// What config.json says. All sizes are checked: not zero, below sane bounds, heads divisible by kv heads, even head_dim.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The family.
    pub family: Family,
    /// Rows of the embedding and of the output matrix.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Features of a head; even. Need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// The output matrix is the embedding, and no `lm_head.weight` is used.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v (`[out_features]` each).
    pub attention_bias: bool,
    /// A bias on o as well (Llama with `attention_bias`; never Qwen2).
    pub attention_output_bias: bool,
    /// The longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The reach of the attention in tokens where it is limited. Contexts up to this long are unaffected.
    pub sliding_window: Option<usize>,
    /// The token that opens a text, when there is one.
    pub bos_token_id: Option<u32>,
    /// The ids of the tokens that end a text (`eos_token_id`, an id or a list).
    pub eos_token_ids: Vec<u32>,
    /// The type that the weights are said to be stored in, where it is named and supported. The files decide.
    pub dtype: Option<Dtype>,
}

/// A tensor that a configuration calls for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl Config {
    /// Reads and checks `dir/config.json`.
    ///
    /// # Errors
    /// [`ModelError`] naming the key, what it must be and what it is.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let remedy = "give a model folder in Hugging Face layout (config.json, safetensors, tokenizer.json)";
        let map = read_json_object(&path, LIMIT_BYTES, remedy)?;
        Self::parse(&map, &path)
    }

    /// As [`Config::read`] for a folder whose `quantization_config` tells how its weights are packed: that entry is set aside
    /// and returned.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_packed(dir: &Path) -> Result<(Self, Option<Value>), ModelError> {
        let path = dir.join("config.json");
        let mut map = read_json_object(&path, LIMIT_BYTES, "give a folder that `export` wrote")?;
        let apart = map.shift_remove("quantization_config");
        Ok((Self::parse(&map, &path)?, apart))
    }

    /// Checks a parsed config.json; `path` is for messages.
    fn parse(map: &Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let keys = Keys { map, path };
        let family = keys.family()?;
        keys.refuse_unsupported()?;
        let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
        let num_heads = keys.size("num_attention_heads", MAX_HEADS)?;
        let num_kv_heads = keys.size_or("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_heads);
        if num_heads % num_kv_heads != 0 {
            let expected = format!("a divisor of `num_attention_heads`, {num_heads}");
            return Err(keys.wrong("num_key_value_heads", expected, num_kv_heads));
        }
        let head_dim = match keys.size_or("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                let expected =
                    format!("a divisor of `hidden_size`, {hidden_size}, as `head_dim` is not given");
                return Err(keys.wrong("num_attention_heads", expected, num_heads));
            }
        };
        if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
            return Err(keys.wrong("head_dim", format!("even and at most {MAX_HEAD_DIM}"), head_dim));
        }
        let llama_bias = family == Family::Llama && keys.flag("attention_bias")?;
        let eps = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(eps > 0.0 && eps < 0.1) {
            return Err(keys.wrong("rms_norm_eps", "between 0 and 0.1".into(), eps));
        }
        let max_position_embeddings = keys.size("max_position_embeddings", MAX_POSITIONS)?;
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size", MAX_VOCAB)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
            num_layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: eps as f32,
            rope: keys.rope()?,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            attention_bias: llama_bias || family == Family::Qwen2,
            attention_output_bias: llama_bias,
            max_position_embeddings,
            sliding_window: keys.sliding_window(family)?,
            bos_token_id: token_ids(keys.get("bos_token_id")).first().copied(),
            eos_token_ids: token_ids(keys.get("eos_token_id")),
            dtype: keys.dtype(),
        })
    }

    /// Every tensor that the model is made of, in the order of the computation. The output matrix is listed only
    /// where it is not the embedding.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut all = vec![spec(self.embedding_name().into(), &[self.vocab_size, self.hidden_size])];
        for block in 0..self.num_layers {
            all.push(spec(Self::input_norm_name(block), &[self.hidden_size]));
            for kind in ProjectionKind::ALL {
                if kind == ProjectionKind::Gate {
                    all.push(spec(Self::post_norm_name(block), &[self.hidden_size]));
                }
                let p = self.projection(block, kind);
                all.push(spec(p.name.clone(), &[p.rows, p.cols]));
                if self.has_bias(kind) {
                    all.push(spec(p.bias_name(), &[p.rows]));
                }
            }
        }
        all.push(spec(self.final_norm_name().into(), &[self.hidden_size]));
        if !self.tie_word_embeddings {
            all.push(spec(self.output_name().into(), &[self.vocab_size, self.hidden_size]));
        }
        all
    }

    /// Whether projections of this kind have a bias.
    pub fn has_bias(&self, kind: ProjectionKind) -> bool {
        match kind {
            ProjectionKind::Q | ProjectionKind::K | ProjectionKind::V => self.attention_bias,
            ProjectionKind::O => self.attention_output_bias,
            ProjectionKind::Gate | ProjectionKind::Up | ProjectionKind::Down => false,
        }
    }

    /// The embedding's tensor name, `[vocab_size, hidden_size]`.
    pub fn embedding_name(&self) -> &'static str {
        "model.embed_tokens.weight"
    }

    /// The tensor name of the output matrix, `[vocab_size, hidden_size]`: the embedding's where they are tied.
    pub fn output_name(&self) -> &'static str {
        if self.tie_word_embeddings { self.embedding_name() } else { "lm_head.weight" }
    }

    /// The final norm's tensor name, `[hidden_size]`.
    pub fn final_norm_name(&self) -> &'static str {
        "model.norm.weight"
    }

    /// The tensor name of the norm before the attention of a block, `[hidden_size]`.
    pub fn input_norm_name(block: usize) -> String {
        format!("model.layers.{block}.input_layernorm.weight")
    }

    /// The tensor name of the norm before the feed-forward layer of a block, `[hidden_size]`.
    pub fn post_norm_name(block: usize) -> String {
        format!("model.layers.{block}.post_attention_layernorm.weight")
    }
}

/// The keys of config.json with the path for messages. A key with the value null counts as missing.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: String, found: impl fmt::Display) -> ModelError {
        // A value may be a whole document.
        let mut found = clip(&found.to_string(), 80);
        if found.is_empty() {
            found = "nothing".into();
        }
        ModelError::Config { path: self.path.into(), key: key.into(), expected, found }
    }

    fn unsupported(&self, what: String, remedy: &str) -> ModelError {
        ModelError::Unsupported {
            path: PathBuf::from(self.path),
            what: clip(&what, 120),
            remedy: remedy.into(),
        }
    }

    fn family(&self) -> Result<Family, ModelError> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some(other) => {
                let found = format!("{:?}", clip(other, 80));
                Err(ModelError::Family { path: self.path.into(), found })
            }
            None => Err(ModelError::Family { path: self.path.into(), found: "(none given)".into() }),
        }
    }

    /// Refuses what would silently give other numbers.
    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        if self.get("quantization_config").is_some() {
            let remedy = "use an unquantized copy of the model (F32, F16 or BF16)";
            return Err(self.unsupported("a quantized model (`quantization_config`)".into(), remedy));
        }
        match self.get("hidden_act") {
            None => {}
            Some(Value::String(act)) if act == "silu" || act == "swish" => {}
            Some(other) => {
                return Err(self.unsupported(format!("`hidden_act` {other}"), "only silu is"));
            }
        }
        if self.flag("mlp_bias")? {
            let remedy = "only feed-forward layers without biases are";
            return Err(self.unsupported("`mlp_bias` true".into(), remedy));
        }
        if self.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            let remedy = "only a rotary embedding over the whole head is";
            return Err(self.unsupported("`partial_rotary_factor` other than 1".into(), remedy));
        }
        Ok(())
    }

    /// A required size in `1..=max`.
    /// `torch_dtype`, or `dtype` as it is called since transformers 5.
    fn dtype(&self) -> Option<Dtype> {
        match self.get("torch_dtype").or_else(|| self.get("dtype"))?.as_str()? {
            "float32" => Some(Dtype::F32),
            "float16" => Some(Dtype::F16),
            "bfloat16" => Some(Dtype::BF16),
            _ => None,
        }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        match self.size_or(key, max)? {
            Some(size) => Ok(size),
            None => Err(self.wrong(key, format!("an integer from 1 to {max}"), "")),
        }
    }

    /// A size in `1..=max`, or nothing where the key is missing.
    fn size_or(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(key, format!("an integer from 1 to {max}"), value)),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        number(self.map, key).map_err(|value| self.wrong(key, "a number".into(), value))
    }

    /// A truth value, false where missing.
    fn flag(&self, key: &str) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, "true or false".into(), other)),
        }
    }

    /// The reach of the attention. Mistral: `sliding_window`, which is 4096 where the key is missing altogether (the
    /// default of transformers' MistralConfig) and unlimited where it is null. Qwen2: only with `use_sliding_window`,
    /// and then taken for all blocks.
    fn sliding_window(&self, family: Family) -> Result<Option<usize>, ModelError> {
        let layers = self.get("layer_types").and_then(Value::as_array);
        if let Some(odd) = layers
            .into_iter()
            .flatten()
            .find(|v| !matches!(v.as_str(), Some("full_attention" | "sliding_attention")))
        {
            return Err(self.unsupported(
                format!("the layer type {odd}"),
                "only full_attention and sliding_attention are",
            ));
        }
        match family {
            Family::Llama => Ok(None),
            Family::Mistral if !self.map.contains_key("sliding_window") => Ok(Some(4096)),
            Family::Mistral => self.size_or("sliding_window", MAX_POSITIONS),
            Family::Qwen2 if self.flag("use_sliding_window")? => {
                Ok(Some(self.size_or("sliding_window", MAX_POSITIONS)?.unwrap_or(4096)))
            }
            Family::Qwen2 => Ok(None),
        }
    }

    /// Rotary embedding, from `rope_theta` and `rope_scaling`, or from `rope_parameters` (transformers 5), which holds both.
    fn rope(&self) -> Result<Rope, ModelError> {
        let object = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(key, "an object or null".into(), other)),
        };
        let (section, scaling) = match object("rope_parameters")? {
            Some(map) => ("rope_parameters", Some(map)),
            None => ("rope_scaling", object("rope_scaling")?),
        };
        let empty = Map::new();
        let part = Part { keys: self, section, map: scaling.unwrap_or(&empty) };
        let theta = match part.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        };
        if !(theta > 1.0 && theta < 1e18) {
            return Err(self.wrong("rope_theta", "between 1 and 1e18".into(), theta));
        }
        if part.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            let remedy = "only a rotary embedding over the whole head is";
            return Err(self.unsupported("`partial_rotary_factor` other than 1".into(), remedy));
        }
        // `type` is the older name of the key.
        let kind = ["rope_type", "type"].iter().find_map(|k| part.map.get(*k).filter(|v| !v.is_null()));
        let scaling = match kind.map(|v| v.as_str().unwrap_or("")) {
            Some("default") => None,
            None if part.map.values().any(Value::is_object) || part.map.contains_key("factor") => {
                return Err(self.wrong(&format!("{section}.rope_type"), "given".into(), ""));
            }
            None => None,
            Some("llama3") => Some(part.llama3()?),
            Some(_) => {
                let what = format!("`{section}` of type {}", kind.unwrap_or(&Value::Null));
                return Err(self.unsupported(what, "supported are none, default and llama3"));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

/// A number, nothing where the key is missing or null; the value itself where it is no finite number.
fn number<'v>(map: &'v Map<String, Value>, key: &str) -> Result<Option<f64>, &'v Value> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(n) if n.is_finite() => Ok(Some(n)),
            _ => Err(value),
        },
    }
}

/// The object that describes the rotary embedding.
struct Part<'a> {
    keys: &'a Keys<'a>,
    section: &'a str,
    map: &'a Map<String, Value>,
}

impl Part<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let name = || format!("{}.{key}", self.section);
        number(self.map, key).map_err(|value| self.keys.wrong(&name(), "a number".into(), value))
    }

    /// A required number that is at least `min`.
    fn at_least(&self, key: &str, min: f64) -> Result<f64, ModelError> {
        let name = format!("{}.{key}", self.section);
        let expected = format!("a number from {min} to 1e12");
        match self.number(key)? {
            Some(n) if n >= min && n <= 1e12 => Ok(n),
            Some(n) => Err(self.keys.wrong(&name, expected, n)),
            None => Err(self.keys.wrong(&name, expected, "")),
        }
    }

    fn llama3(&self) -> Result<Llama3, ModelError> {
        let scaling = Llama3 {
            factor: self.at_least("factor", 1.0)?,
            low_freq_factor: self.at_least("low_freq_factor", 1e-6)?,
            high_freq_factor: self.at_least("high_freq_factor", 1e-6)?,
            original_max_position_embeddings: self.at_least("original_max_position_embeddings", 1.0)?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            let name = format!("{}.high_freq_factor", self.section);
            let expected = format!("above `low_freq_factor`, {}", scaling.low_freq_factor);
            return Err(self.keys.wrong(&name, expected, scaling.high_freq_factor));
        }
        Ok(scaling)
    }
}
