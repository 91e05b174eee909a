//! What `sparsity_report.json` says.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::export::hf::REPORT;
use crate::mask::Pattern;
use crate::model::read_json_object;

use super::VerifyError;

/// More than any report: 200 bytes a projection.
const LIMIT: u64 = 64 << 20;

/// The part of the report that a check needs.
pub(super) struct Sidecar {
    pub(super) pattern: Pattern,
    /// Projections without a mask.
    pub(super) dense: BTreeSet<String>,
    /// Whether kept weights were re-fitted.
    pub(super) refitted: bool,
}

impl Sidecar {
    /// The report of a folder, if it has one.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, VerifyError> {
        let path = dir.join(REPORT);
        if !path.exists() {
            return Ok(None);
        }
        let map = read_json_object(&path, LIMIT, "check that it may be read")?;
        let bad = |problem: &str| VerifyError::Report { path: path.clone(), problem: problem.into() };
        let pattern = map.get("pattern").and_then(Value::as_str).ok_or_else(|| bad("it has no `pattern`"))?;
        let pattern = pattern.parse().map_err(|_| bad("its `pattern` is not N:M"))?;
        let lines = map.get("projections").and_then(Value::as_array);
        let lines = lines.ok_or_else(|| bad("it has no list `projections`"))?;
        let mut dense = BTreeSet::new();
        for line in lines {
            match (line.get("name").and_then(Value::as_str), line.get("masked").and_then(Value::as_bool)) {
                (Some(name), Some(false)) => dense.insert(name.to_string()),
                (Some(_), Some(true)) => false,
                _ => return Err(bad("an entry of `projections` has no `name` or `masked`")),
            };
        }
        let kept = map.get("kept_weights").and_then(Value::as_str).unwrap_or("");
        Ok(Some(Self { pattern, dense, refitted: kept.starts_with("re-fitted") }))
    }
}
