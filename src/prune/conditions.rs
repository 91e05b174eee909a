//! All that the masks of an unfinished run depend on: it goes on only where all of it is as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::learn::{Residency, Stage};
use super::{OneShotOptions, Selection};
use crate::calib::Windows;
use crate::model::{Checkpoint, ModelError, sha256_hex};
use crate::nn::Sizes;

/// What a run, or a stage of one, was begun with. Hashes are SHA-256. Not in it, since masks do not depend on them: where the
/// model lies, the adapter as far as the preset is the same, what is measured and shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Conditions {
    version: String,
    #[serde(rename = "config.json")]
    config: String,
    #[serde(rename = "tokenizer.json", skip_serializing_if = "Option::is_none")]
    tokenizer: Option<String>,
    /// Of every tensor of the source, by its name.
    tensors: BTreeMap<String, String>,
    projections: String,
    /// Of the order of the channels, of a model that was permuted.
    #[serde(skip_serializing_if = "Option::is_none")]
    permutation: Option<String>,
    /// The options of the walk.
    #[serde(skip_serializing_if = "Option::is_none")]
    walk: Option<Map<String, Value>>,
    #[serde(rename = "start mask", skip_serializing_if = "Option::is_none")]
    start_mask: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<String>,
    preset: String,
    #[serde(flatten)]
    windows: Option<SeenWindows>,
    #[serde(flatten)]
    stage: Option<OfStage>,
}

/// The calibration windows and how they go through the model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct SeenWindows {
    windows: usize,
    window: usize,
    #[serde(rename = "calibration tokens")]
    tokens: String,
    #[serde(rename = "windows in a batch")]
    together: usize,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct OfStage {
    stage: Map<String, Value>,
    blocks: Value,
}

/// Fields of an options type; numbers as text, since not all come back from JSON as they went.
fn fields(options: &impl Serialize) -> Map<String, Value> {
    let text = |value: Value| match value {
        Value::Number(_) | Value::Object(_) | Value::Array(_) => value.to_string().into(),
        other => other,
    };
    match json!(options) {
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, text(value))).collect(),
        _ => Map::new(),
    }
}

impl Conditions {
    /// Of a run on the model in `folder`, before windows and stages are known. Reads every tensor.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn new(
        folder: &Path,
        checkpoint: &Checkpoint,
        selection: &Selection,
        preset: &str,
    ) -> Result<Self, ModelError> {
        let hash = |name: &str| fs::read(folder.join(name)).ok().map(|bytes| sha256_hex(&bytes));
        let names: Vec<&str> = selection.pruned.iter().map(|(_, p)| p.name.as_str()).collect();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            config: hash("config.json").unwrap_or_default(),
            tokenizer: hash("tokenizer.json"),
            tensors: checkpoint.stored_hashes(),
            projections: sha256_hex(names.join("\n").as_bytes()),
            permutation: checkpoint.permutation().map(String::from),
            walk: None,
            start_mask: None,
            segments: None,
            preset: preset.into(),
            windows: None,
            stage: None,
        })
    }

    /// With the options of the walk over the blocks.
    pub fn walk(&mut self, options: &OneShotOptions) {
        self.walk = Some(fields(options));
    }

    /// With the mask file that is started from.
    pub fn start_mask(&mut self, path: &Path) {
        self.start_mask = Some(sha256_hex(&fs::read(path).unwrap_or_default()));
    }

    /// With the way in which windows are taken from the text.
    pub fn segments(&mut self, name: &str) {
        self.segments = Some(name.into());
    }

    /// With the windows, and how they go through the model.
    pub fn windows(&mut self, windows: &Windows, sizes: &Sizes) {
        self.windows = Some(SeenWindows {
            windows: windows.count(),
            window: windows.window(),
            tokens: sha256_hex(bytemuck::cast_slice(windows.tokens())),
            together: sizes.layout.windows,
        });
    }

    /// Those of a stage of this run.
    pub fn of_stage(&self, stage: &Stage, residency: Residency, windows: &Windows, sizes: &Sizes) -> Self {
        let mut of_stage = self.clone();
        of_stage.stage = Some(OfStage { stage: fields(stage), blocks: json!(residency) });
        of_stage.windows(windows, sizes);
        of_stage
    }

    /// The first difference from what a run `was` begun with, in words.
    pub(super) fn difference_from(&self, was: &Self) -> Option<String> {
        if was.preset != self.preset {
            return Some(format!(
                "it was begun with preset {}, now it is {}, whose sums are rounded otherwise; add --preset {} where this device \
                 runs it",
                was.preset, self.preset, was.preset
            ));
        }
        let (mut old, mut new) = (json!(was), json!(self));
        // What is like another option in the words of users comes before the tensors.
        let tensors = [&mut old, &mut new].map(|value| value["tensors"].take());
        difference("", &old, &new).or_else(|| {
            let [old, new] = tensors.map(|value| value.as_object().cloned().unwrap_or_default());
            let other = |(name, hash): &(&String, &Value)| old.get(*name) != Some(*hash);
            let name = new
                .iter()
                .find(other)
                .map(|(name, _)| name)
                .or_else(|| old.keys().find(|n| !new.contains_key(*n)));
            name.map(|name| format!("{name} of the model is not the one that it was begun with"))
        })
    }
}

/// The first value that differs, in words; `name` is that of the map.
fn difference(name: &str, was: &Value, now: &Value) -> Option<String> {
    let (Value::Object(old), Value::Object(new)) = (was, now) else {
        return (was != now).then(|| match (was, now) {
            (Value::Null, _) => format!("it was begun without {name}, now it is {now}"),
            (_, Value::Null) => format!("it was begun with {name} {was}, now there is none"),
            _ => format!("it was begun with {name} {was}, now it is {now}"),
        });
    };
    let keys = new.keys().chain(old.keys().filter(|key| !new.contains_key(*key)));
    let of = |key: &String| (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
    keys.map(|key| (key, of(key))).find_map(|(key, (was, now))| difference(key, was, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let a = json!({ "windows": 128, "walk": { "method": "descent" } });
        assert_eq!(difference("", &a, &a), None);
        let b = json!({ "windows": 64, "walk": { "method": "descent" } });
        assert_eq!(difference("", &a, &b).unwrap(), "it was begun with windows 128, now it is 64");
        let c = json!({ "windows": 128, "walk": { "method": "ria" } });
        assert_eq!(
            difference("", &a, &c).unwrap(),
            "it was begun with method \"descent\", now it is \"ria\""
        );
        let d = json!({ "windows": 128 });
        assert_eq!(
            difference("", &d, &json!({})).unwrap(),
            "it was begun with windows 128, now there is none"
        );
        assert_eq!(difference("", &json!({}), &d).unwrap(), "it was begun without windows, now it is 128");
    }
}
