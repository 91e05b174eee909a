//! The rotary embedding in a config.json: `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5), which holds both, for
//! all blocks or, in some families, by the kind of their attention.

use std::fmt;

use serde_json::{Map, Value};

use super::keys::{Keys, MAX_POSITIONS};
use crate::model::rope::{Llama3, Rope, RopeScaling, Yarn};
use crate::model::{Architecture, ModelError};

/// The kinds of blocks by which some families tell rotary embeddings apart.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The object that describes a rotary embedding.
pub(super) struct Part<'a, 'k> {
    keys: &'k Keys<'a>,
    section: String,
    map: Map<String, Value>,
}

/// The keys within the object that are understood.
const UNDERSTOOD: [&str; 18] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "finetuned",
    "max_position_embeddings",
];

impl<'a> Keys<'a> {
    /// An object, or nothing.
    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(key, "an object or null".into(), other)),
        }
    }

    /// The object for all blocks.
    pub(super) fn rope_part(&self) -> Result<Part<'a, '_>, ModelError> {
        let (old, new) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        // The older key counts where both are there, as in transformers.
        let (section, map) = match (old.filter(|map| !map.is_empty()), new) {
            (None, Some(map)) => ("rope_parameters", map.clone()),
            (old, None | Some(_)) => ("rope_scaling", old.cloned().unwrap_or_default()),
        };
        match KINDS.iter().find(|kind| map.contains_key(**kind)) {
            None => Ok(Part { keys: self, section: section.into(), map }),
            Some(kind) => {
                let expected = "absent: the blocks of this family have one rotary embedding".into();
                Err(self.wrong(
                    &format!("{section}.{kind}"),
                    expected,
                    map.get(*kind).unwrap_or(&Value::Null),
                ))
            }
        }
    }

    /// The object for blocks of the kind `kind`. `rope_scaling`, the older key, is that of full attention.
    pub(super) fn rope_part_of(&self, kind: &str) -> Result<Part<'a, '_>, ModelError> {
        let (old, new) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        if let Some((key, value)) = new.into_iter().flatten().find(|(key, _)| !KINDS.contains(&key.as_str()))
        {
            let expected = format!("absent: here are only objects for {} and {}", KINDS[0], KINDS[1]);
            return Err(self.wrong(&format!("rope_parameters.{key}"), expected, value));
        }
        let mut section = format!("rope_parameters.{kind}");
        let mut map = match new.and_then(|new| new.get(kind)) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(own)) => own.clone(),
            Some(other) => return Err(self.wrong(&section, "an object".into(), other)),
        };
        if let Some(old) = old.filter(|_| kind == KINDS[0]) {
            section = "rope_scaling".into();
            map.extend(old.clone());
        }
        Ok(Part { keys: self, section, map })
    }
}

impl Part<'_, '_> {
    /// How many of a head's features turn, where the share `usual` does if the file does not say. In families without such a share
    /// it may only be 1.
    pub(super) fn turned(&self, head_dim: usize, usual: Option<f64>) -> Result<usize, ModelError> {
        let top = self.keys.number("partial_rotary_factor")?;
        let share = self.number("partial_rotary_factor")?.or(top);
        let wrong =
            |expected: &str, found| Err(self.keys.wrong("partial_rotary_factor", expected.into(), found));
        match (usual, share) {
            (None, Some(share)) if share != 1.0 => wrong("1 or absent in this family", share),
            (None, _) => Ok(head_dim),
            (Some(usual), share) => {
                let share = share.unwrap_or(usual);
                if !(share > 0.0 && share <= 1.0) {
                    return wrong("above 0 and at most 1", share);
                }
                let turned = (head_dim as f64 * share) as usize;
                if turned < 2 || !turned.is_multiple_of(2) {
                    return wrong(
                        &format!("a share of `head_dim`, {head_dim}, that is even and not 0"),
                        share,
                    );
                }
                Ok(turned)
            }
        }
    }

    /// The rotary embedding, whose base is that of the object, else that under `key`, else `usual`. `of` has the sizes. `own` are the
    /// keys in the object that the family itself reads.
    pub(super) fn rope(
        &self,
        of: &Architecture,
        key: Option<&str>,
        usual: f64,
        own: &[&str],
    ) -> Result<Rope, ModelError> {
        let top = key.map(|key| self.keys.number(key)).transpose()?.flatten();
        let theta = self.number("rope_theta")?.or(top).unwrap_or(usual);
        if !(theta > 1.0 && theta < 1e18) {
            return Err(self.keys.wrong(key.unwrap_or("rope_theta"), "between 1 and 1e18".into(), theta));
        }
        Ok(Rope { theta, scaling: self.scaling(of, own)? })
    }

    /// A finite number of the object, or nothing.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) if n.is_finite() => Ok(Some(n)),
                _ => Err(self.wrong(key, "a number", value)),
            },
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: impl fmt::Display) -> ModelError {
        self.keys.wrong(&format!("{}.{key}", self.section), expected.into(), found)
    }

    /// A required number that is at least `min`.
    pub(super) fn at_least(&self, key: &str, min: f64) -> Result<f64, ModelError> {
        let expected = format!("a number from {min} to 1e12");
        match self.number(key)? {
            Some(n) if n >= min && n <= 1e12 => Ok(n),
            Some(n) => Err(self.wrong(key, &expected, n)),
            None => Err(self.wrong(key, &expected, "")),
        }
    }

    /// The context length before the rescaling.
    fn original(&self, of: &Architecture) -> Result<f64, ModelError> {
        // The one beside the object counts where both are there, as in transformers.
        let top = self.keys.size_or("original_max_position_embeddings", MAX_POSITIONS)?.map(|n| n as f64);
        let n = top.or(self.number("original_max_position_embeddings")?);
        let n = n.unwrap_or(of.max_position_embeddings as f64);
        if (2.0..=1e12).contains(&n) {
            Ok(n)
        } else {
            Err(self.wrong("original_max_position_embeddings", "a number from 2 to 1e12", n))
        }
    }

    fn scaling(&self, of: &Architecture, own: &[&str]) -> Result<RopeScaling, ModelError> {
        // Also where the kind of rescaling has no use for it.
        self.keys.pass_over(&[("original_max_position_embeddings", "read where the rescaling asks for it")]);
        let known = |key: &str| UNDERSTOOD.contains(&key) || own.contains(&key);
        if let Some((key, value)) = self.map.iter().find(|(key, value)| !known(key) && !value.is_null()) {
            return Err(self.wrong(key, "absent: what it does is not known", value));
        }
        // `type` is the older name of the key.
        let kind = ["rope_type", "type"].iter().find_map(|k| self.map.get(*k).filter(|v| !v.is_null()));
        match kind.map(|v| v.as_str().unwrap_or("")) {
            Some("default") => Ok(RopeScaling::None),
            None if self.map.contains_key("factor") => Err(self.wrong("rope_type", "given", "")),
            None => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.at_least("factor", 1.0)? }),
            Some("llama3") => self.llama3(of),
            Some("dynamic") => {
                let factor = self.at_least("factor", 1.0)?;
                Ok(RopeScaling::Dynamic { factor, original: of.max_position_embeddings as f64 })
            }
            // `su`, and `yarn` with its lists of factors, are its older names.
            Some("longrope" | "su") => self.longrope(of),
            Some("yarn") if self.map.contains_key("short_factor") => self.longrope(of),
            Some("yarn") => self.yarn(of),
            Some(_) => {
                let what = format!("`{}` of type {}", self.section, kind.unwrap_or(&Value::Null));
                let remedy = "supported are default, linear, llama3, dynamic, yarn and longrope";
                Err(self.keys.unsupported(what, remedy))
            }
        }
    }

    fn llama3(&self, of: &Architecture) -> Result<RopeScaling, ModelError> {
        let scaling = Llama3 {
            factor: self.at_least("factor", 1.0)?,
            low_freq_factor: self.at_least("low_freq_factor", 1e-6)?,
            high_freq_factor: self.at_least("high_freq_factor", 1e-6)?,
            original_max_position_embeddings: self.original(of)?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            let expected = format!("above `low_freq_factor`, {}", scaling.low_freq_factor);
            return Err(self.wrong("high_freq_factor", &expected, scaling.high_freq_factor));
        }
        Ok(RopeScaling::Llama3(scaling))
    }

    fn yarn(&self, of: &Architecture) -> Result<RopeScaling, ModelError> {
        let original = self.original(of)?;
        let factor = match self.number("factor")? {
            Some(_) => self.at_least("factor", 1.0)?,
            None => of.max_position_embeddings as f64 / original,
        };
        // arXiv 2309.00071, end of section 3.4, with transformers' two further constants.
        let scale = |times: f64| if factor <= 1.0 { 1.0 } else { 0.1 * times * factor.ln() + 1.0 };
        let attention_factor = match (
            self.number("attention_factor")?,
            self.number("mscale")?,
            self.number("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => scale(one) / scale(all),
            _ => scale(1.0),
        };
        let attention_factor = self.sane_factor(attention_factor)?;
        let truncate = match self.map.get("truncate") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => return Err(self.wrong("truncate", "true or false", other)),
        };
        let beta_fast = self.number("beta_fast")?.filter(|b| *b != 0.0).unwrap_or(32.0);
        let beta_slow = self.number("beta_slow")?.filter(|b| *b != 0.0).unwrap_or(1.0);
        if !(beta_fast > 0.0 && beta_slow > 0.0 && beta_fast >= beta_slow) {
            return Err(self.wrong("beta_fast", "at least `beta_slow`, both above 0", beta_fast));
        }
        Ok(RopeScaling::Yarn(Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor }))
    }

    /// What cosines and sines are multiplied with, if it can be.
    fn sane_factor(&self, factor: f64) -> Result<f64, ModelError> {
        if factor > 0.0 && factor < 1e6 {
            Ok(factor)
        } else {
            Err(self.wrong("attention_factor", "above 0 and below 1e6, given or by the other keys", factor))
        }
    }

    fn longrope(&self, of: &Architecture) -> Result<RopeScaling, ModelError> {
        let original = self.original(of)?;
        let list = |key: &str| {
            let expected = format!("a list of {} numbers above 0", of.rotary.turned / 2);
            let value = self.map.get(key).unwrap_or(&Value::Null);
            let numbers: Option<Vec<f64>> =
                value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
            match numbers {
                Some(n) if n.len() == of.rotary.turned / 2 && n.iter().all(|x| *x > 0.0) => Ok(n),
                _ => Err(self.wrong(key, &expected, value)),
            }
        };
        let factor = self.number("factor")?.unwrap_or(of.max_position_embeddings as f64 / original);
        let attention_factor = match self.number("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let attention_factor = self.sane_factor(attention_factor)?;
        Ok(RopeScaling::LongRope {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original,
            attention_factor,
        })
    }
}
