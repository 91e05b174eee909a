//! What is known of every projection: a cell of a table of blocks and kinds of projections.

use serde::Serialize;
use serde_json::Value;

/// A projection.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// Tensor name.
    pub name: String,
    /// Its block.
    pub block: Option<u64>,
    /// Which one of the block's: "q_proj".
    pub kind: String,
    /// Output error under the start mask, a share of the output's energy.
    pub start: Option<f64>,
    /// Under the mask.
    pub error: Option<f64>,
    /// After the kept weights were re-fitted.
    pub repaired: Option<f64>,
    /// Groups of the mask.
    pub groups: Option<u64>,
    /// Groups that differ from the start mask.
    pub changed: Option<u64>,
    /// Seconds it took.
    pub seconds: Option<f64>,
}

/// Block and kind of "model.layers.3.self_attn.q_proj.weight".
fn place(name: &str) -> (Option<u64>, String) {
    let parts: Vec<&str> = name.split('.').filter(|part| *part != "weight").collect();
    let block = parts.iter().find_map(|part| part.parse().ok());
    (block, parts.last().map_or(name, |kind| *kind).to_string())
}

/// The cells of `projections`, lines or entries with a name and errors, with how far each mask `moved`. Of lines about the same
/// projection the last one counts.
pub(super) fn cells<'a>(projections: impl IntoIterator<Item = &'a Value>, moved: &'a [Value]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut at = std::collections::BTreeMap::new();
    for line in projections.into_iter().chain(moved) {
        let Some(name) = line["name"].as_str() else { continue };
        let index = *at.entry(name).or_insert_with(|| {
            let (block, kind) = place(name);
            cells.push(Cell { name: name.into(), block, kind, ..Cell::default() });
            cells.len() - 1
        });
        let Some(cell) = cells.get_mut(index) else { continue };
        let number = |key: &str, old: Option<f64>| line[key].as_f64().or(old);
        let count = |key: &str, old: Option<u64>| line[key].as_u64().or(old);
        cell.start = number("start", cell.start);
        cell.error = number("error", cell.error);
        cell.repaired = number("repaired", cell.repaired);
        cell.seconds = number("seconds", cell.seconds);
        cell.groups = count("groups", cell.groups);
        cell.changed = count("changed", count("groups_changed", cell.changed));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn projections_have_their_places() {
        let line = json!({"name": "model.layers.12.self_attn.q_proj.weight", "start": 0.5, "error": 0.25, "groups_changed": 3});
        let other = json!({"name": "lm_head.weight", "error": null});
        let moved = json!([{"name": "model.layers.12.self_attn.q_proj.weight", "groups": 10, "changed": 4}]);
        let found = cells([&line, &other], moved.as_array().unwrap());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].block, found[0].kind.as_str()), (Some(12), "q_proj"));
        assert_eq!((found[0].groups, found[0].changed), (Some(10), Some(4)));
        assert_eq!((found[0].start, found[0].error), (Some(0.5), Some(0.25)));
        assert_eq!((found[1].block, found[1].kind.as_str(), found[1].error), (None, "lm_head", None));
    }
}
