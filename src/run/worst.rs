//! `windows.json` of a run: what the evaluation says of every window, and the tokens whose loss rose most.

use std::path::Path;

use serde_json::{Value, json};

use super::RunError;
use crate::calib::Windows;
use crate::eval::{Comparison, Rise};
use crate::model::Tokenizer;

/// Tokens that are shown.
const WORST: usize = 20;
/// Tokens of context on each side.
const AROUND: usize = 12;

/// What `windows.json` says of `found` on the windows of `text`.
pub(super) fn windows_json(
    text: &Path,
    windows: &Windows,
    found: &Comparison,
    tokenizer: &Tokenizer,
) -> Result<Value, RunError> {
    let worst = found
        .worst(WORST)
        .iter()
        .filter_map(|rise| windows.get(rise.window).map(|ids| in_context(tokenizer, ids, rise)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "text": text.display().to_string(),
        "window": windows.window(),
        "windows": windows.count(),
        "loss": {"dense": found.dense.window_means, "result": found.model.window_means},
        "kl_to_dense": found.kl_means,
        "worst": worst,
    }))
}

/// A token of the window `ids` with the text around it.
fn in_context(tokenizer: &Tokenizer, ids: &[u32], rise: &Rise) -> Result<Value, RunError> {
    let at = rise.position.min(ids.len().saturating_sub(1));
    let around = &ids[at.saturating_sub(AROUND)..(at + 1 + AROUND).min(ids.len())];
    let [before, token, after] = parts(tokenizer, around, at.min(AROUND))?;
    Ok(json!({
        "window": rise.window,
        "position": rise.position,
        "id": ids.get(at),
        "token": token,
        "before": before,
        "after": after,
        "dense": rise.dense,
        "result": rise.model,
        "rise": rise.by(),
    }))
}

/// The text of `ids` before token `at`, the token's own, and the text behind it. A token's text depends on its neighbours (spaces,
/// characters of several tokens), so it is what it adds to the text before it, as far as that is so.
fn parts(tokenizer: &Tokenizer, ids: &[u32], at: usize) -> Result<[String; 3], RunError> {
    let (before, token) = ids.split_at(at.min(ids.len()));
    let after = token.get(1..).unwrap_or_default();
    let token = &token[..token.len() - after.len()];
    let first = tokenizer.decode(before)?;
    let both = tokenizer.decode(&[before, token].concat())?;
    let all = tokenizer.decode(ids)?;
    let added = |longer: &str, shorter: &str, alone: &[u32]| match longer.strip_prefix(shorter) {
        Some(rest) => Ok(rest.to_string()),
        None => tokenizer.decode(alone),
    };
    let mut text = added(&both, &first, token)?;
    let rest = added(&all, &both, after)?;
    if text.is_empty() {
        // A special token, or a part of a character.
        text = token.first().and_then(|id| tokenizer.spelling(*id)).unwrap_or_default();
    }
    Ok([first, text, rest])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    #[test]
    fn a_token_in_its_context() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village");
        let tokenizer = Tokenizer::open(&folder, &Architecture::read(&folder).unwrap()).unwrap();
        let text = std::fs::read_to_string(folder.join("heldout.txt")).unwrap();
        let ids = tokenizer.encode(&text.chars().take(300).collect::<String>()).unwrap();
        let whole = tokenizer.decode(&ids[..40]).unwrap();
        for at in [0, 1, 17, 39] {
            let found = parts(&tokenizer, &ids[..40], at).unwrap();
            assert!(!found[1].is_empty());
            assert!(whole.contains(found.concat().trim_start()) || at == 0, "{at}: {found:?} in {whole:?}");
        }
        let rise = Rise { window: 0, position: 30, dense: 0.5, model: 2.0 };
        let json = in_context(&tokenizer, &ids[..40], &rise).unwrap();
        assert_eq!((&json["position"], &json["rise"]), (&30.into(), &1.5.into()));
        let shown = |key: &str| json[key].as_str().unwrap().to_owned();
        assert!(whole.ends_with(&(shown("before") + &shown("token") + &shown("after"))));
    }
}
