//! The keys of a config.json: each is read through here, so that one that nothing has read is known.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::model::{ActivationKind, Dtype, ModelError, clip};

/// Sane upper bounds. They keep every product of two sizes far inside 64 bits and refuse nonsense early.
pub(super) const MAX_VOCAB: usize = 1 << 24;
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_LAYERS: usize = 1 << 12;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_HEAD_DIM: usize = 1 << 10;
pub(super) const MAX_POSITIONS: usize = 1 << 31;

/// The keys with the path for messages. A key with the value null counts as missing.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
    /// In front of the names of keys in messages: `text_config.` of a nested object.
    section: String,
    /// What a key is called in this family's files, where that is not its usual name.
    aliases: &'static [(&'static str, &'static str)],
    /// What sizes are where the file does not say.
    sizes: &'static [(&'static str, usize)],
    seen: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    /// The keys of `map`, which stands in `path`.
    pub(crate) fn new(map: &'a Map<String, Value>, path: &'a Path) -> Self {
        let (section, seen) = (String::new(), RefCell::new(BTreeSet::new()));
        Self { map, path, section, aliases: &[], sizes: &[], seen }
    }

    /// The same keys with a family's own names and default sizes.
    #[must_use]
    pub(super) fn with(
        self,
        aliases: &'static [(&'static str, &'static str)],
        sizes: &'static [(&'static str, usize)],
    ) -> Self {
        Self { aliases, sizes, ..self }
    }

    /// The keys of a nested object.
    pub(super) fn nested(&self, key: &str) -> Result<Option<Keys<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let section = format!("{}{key}.", self.section);
                Ok(Some(Keys { section, ..Keys::new(map, self.path) }))
            }
            Some(other) => Err(self.wrong(key, "an object".into(), other)),
        }
    }

    /// A value that is not null. The key counts as understood from now on.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        let name = self.own(key);
        self.seen.borrow_mut().insert(name.into());
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// What the key is called in this family's files.
    fn own<'k>(&self, key: &'k str) -> &'k str {
        self.aliases.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| *own)
    }

    /// Whether the key is there, if only as null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(self.own(key))
    }

    /// An error that says what a key must be.
    pub(super) fn wrong(&self, key: &str, expected: String, found: impl fmt::Display) -> ModelError {
        // A value may be a whole document.
        let mut found = clip(&found.to_string(), 80);
        if found.is_empty() {
            found = "nothing".into();
        }
        let key = format!("{}{}", self.section, self.own(key));
        ModelError::Config { path: self.path.into(), key, expected, found }
    }

    /// An error that says what is not supported.
    pub(super) fn unsupported(&self, what: impl Into<String>, remedy: &str) -> ModelError {
        ModelError::Unsupported {
            path: PathBuf::from(self.path),
            what: clip(&what.into(), 120),
            remedy: remedy.into(),
        }
    }

    /// The `model_type`.
    pub(super) fn model_type(&self) -> Result<&'a str, ModelError> {
        let path = || self.path.into();
        match self.get("model_type").map(|v| v.as_str()) {
            Some(Some(name)) => Ok(name),
            Some(None) => {
                Err(ModelError::Family { path: path(), found: "(no text)".into(), known: super::known() })
            }
            None => {
                Err(ModelError::Family { path: path(), found: "(none given)".into(), known: super::known() })
            }
        }
    }

    /// The error for a model type that is not supported.
    pub(super) fn unknown_family(&self, name: &str) -> ModelError {
        let found = format!("{:?}", clip(name, 80));
        ModelError::Family { path: self.path.into(), found, known: super::known() }
    }

    /// `torch_dtype`, or `dtype` as it is called since transformers 5.
    pub(super) fn dtype(&self) -> Option<Dtype> {
        let (old, new) = (self.get("torch_dtype"), self.get("dtype"));
        match old.or(new)?.as_str()? {
            "float32" => Some(Dtype::F32),
            "float16" => Some(Dtype::F16),
            "bfloat16" => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// A required size in `1..=max`.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        match self.size_or(key, max)? {
            Some(size) => Ok(size),
            None => Err(self.wrong(key, format!("an integer from 1 to {max}"), "")),
        }
    }

    /// A size in `1..=max`. Where the key is missing, what is usual in the family, or nothing; where it is null, nothing.
    pub(super) fn size_or(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else {
            let usual = self.sizes.iter().find(|(name, _)| *name == key && !self.has(key));
            return Ok(usual.map(|(_, size)| *size));
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(key, format!("an integer from 1 to {max}"), value)),
        }
    }

    /// A finite number, or nothing.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) if n.is_finite() => Ok(Some(n)),
                _ => Err(self.wrong(key, "a number".into(), value)),
            },
        }
    }

    /// A number above 0, at most `max`, or what it is where the key is missing.
    pub(super) fn positive(&self, key: &str, default: f64, max: f64) -> Result<f64, ModelError> {
        let n = self.number(key)?.unwrap_or(default);
        if n > 0.0 && n <= max {
            Ok(n)
        } else {
            Err(self.wrong(key, format!("above 0 and at most {max}"), n))
        }
    }

    /// A number above 0; nothing where the key is null, `missing` where it is missing.
    pub(super) fn cap(&self, key: &str, missing: Option<f32>) -> Result<Option<f32>, ModelError> {
        match self.number(key)? {
            None => Ok(missing.filter(|_| !self.has(key))),
            Some(n) if n > 0.0 && n < 1e9 => Ok(Some(n as f32)),
            Some(n) => Err(self.wrong(key, "above 0".into(), n)),
        }
    }

    /// A truth value, `default` where missing.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, "true or false".into(), other)),
        }
    }

    /// A nonlinearity by the names that transformers knows it by; `default` where the key is missing.
    pub(super) fn activation(
        &self,
        key: &str,
        default: ActivationKind,
    ) -> Result<ActivationKind, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_str() {
            Some("silu" | "swish") => Ok(ActivationKind::Silu),
            Some("gelu") => Ok(ActivationKind::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_tanh" | "gelu_fast") => {
                Ok(ActivationKind::GeluTanh)
            }
            Some("relu") => Ok(ActivationKind::Relu),
            Some("relu2") => Ok(ActivationKind::Relu2),
            _ => {
                let remedy = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu and relu2 are";
                Err(self.unsupported(format!("`{}{key}` {value}", self.section), remedy))
            }
        }
    }

    /// A list of names, one for each of `count` blocks, such as `layer_types`; nothing where the key is missing.
    pub(super) fn names(&self, key: &str, count: usize) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let names = value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        match names {
            Some(names) if names.len() == count => Ok(Some(names)),
            _ => Err(self.wrong(key, format!("a list of {count} names"), value)),
        }
    }

    /// A list of numbers, one for each of `count` blocks; nothing where the key is missing.
    pub(super) fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let numbers = value.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
        match numbers {
            Some(numbers) if numbers.len() == count => Ok(Some(numbers)),
            _ => Err(self.wrong(key, format!("a list of {count} numbers"), value)),
        }
    }

    /// Passes over keys that do not change what is computed, each with the reason.
    pub(super) fn pass_over(&self, keys: &[(&str, &str)]) {
        self.seen.borrow_mut().extend(keys.iter().map(|(key, _)| String::from(*key)));
    }

    /// Passes over keys that say what is computed anyway, and refuses them where they say anything else.
    pub(super) fn only(&self, keys: &[(&str, &str)]) -> Result<(), ModelError> {
        for (key, expected) in keys {
            let Some(value) = self.get(key) else { continue };
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            let number = |text: &str| text.parse::<f64>().ok();
            if text != *expected && (number(&text).is_none() || number(&text) != number(expected)) {
                let what = format!("`{}{key}` {}", self.section, clip(&value.to_string(), 40));
                return Err(self.unsupported(what, &format!("only {expected} is")));
            }
        }
        Ok(())
    }

    /// Passes over a number under just this name, which says what is computed anyway, and refuses it where it says anything else.
    pub(super) fn only_number(&self, key: &str, fits: impl Fn(f64) -> bool) -> Result<(), ModelError> {
        self.seen.borrow_mut().insert(key.into());
        match self.map.get(key) {
            Some(value) if !value.is_null() && !value.as_f64().is_some_and(fits) => {
                let what = format!("`{}{key}` {}", self.section, clip(&value.to_string(), 40));
                let remedy = "in this family another key says it, which says something else";
                Err(self.unsupported(what, remedy))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a key that nobody has read, that is not known to be harmless and that switches something on.
    pub(super) fn refuse_unread(&self, harmless: &[(&str, &str)]) -> Result<(), ModelError> {
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        let known = |key: &str| {
            key.starts_with('_')
                || self.seen.borrow().contains(key)
                || harmless.iter().any(|(k, _)| *k == key)
        };
        match self.map.iter().find(|(key, value)| !known(key) && !off(value)) {
            None => Ok(()),
            Some((key, value)) => {
                let what =
                    format!("the key `{}{}` ({})", self.section, clip(key, 60), clip(&value.to_string(), 40));
                let remedy =
                    "it may change what the model computes; where it does not, remove it from config.json";
                Err(self.unsupported(what, remedy))
            }
        }
    }
}
