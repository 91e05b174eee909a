//! The steps of a stage of learning, column by column.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Points that a curve keeps at most: more than a screen shows, and few enough for a page that opens at once.
const MOST: usize = 4000;

/// The numbers of a step that are drawn or shown, in the order of the page.
const COLUMNS: [&str; 7] =
    ["loss", "residual", "tracker", "advantage", "temperature", "groups_changed", "seconds"];

/// What the steps of one stage say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Number of the stage, from 1; none for a run without stages.
    pub stage: Option<u64>,
    /// What it was.
    pub title: String,
    /// Steps told.
    pub steps: usize,
    /// Only every so many of them are here.
    pub every: usize,
    /// Running number of each step, from 1, blocks one behind another.
    pub step: Vec<usize>,
    /// The block that each step trained.
    pub block: Vec<Option<u64>>,
    /// Numbers by name; those that no step has are left out.
    pub columns: BTreeMap<&'static str, Vec<Option<f64>>>,
}

impl Curves {
    /// The curves of all stages that `lines`, the steps among the metrics, tell of. `title` names a stage.
    pub(super) fn of(lines: &[Value], title: impl Fn(Option<u64>) -> String) -> Vec<Self> {
        let mut stages: Vec<(Option<u64>, Vec<&Value>)> = Vec::new();
        for line in lines {
            let stage = line["stage"].as_u64();
            match stages.iter_mut().find(|(of, _)| *of == stage) {
                Some((_, lines)) => lines.push(line),
                None => stages.push((stage, vec![line])),
            }
        }
        stages.into_iter().map(|(stage, lines)| Self::stage(stage, title(stage), &lines)).collect()
    }

    fn stage(stage: Option<u64>, title: String, lines: &[&Value]) -> Self {
        let every = lines.len().div_ceil(MOST).max(1);
        let last = lines.len().saturating_sub(1);
        let taken: Vec<(usize, &Value)> = lines
            .iter()
            .copied()
            .enumerate()
            .filter(|(i, line)| i.is_multiple_of(every) || *i == last || !line["groups_changed"].is_null())
            .collect();
        let column = |name: &'static str| {
            let values: Vec<Option<f64>> = taken.iter().map(|(_, line)| line[name].as_f64()).collect();
            values.iter().any(Option::is_some).then_some((name, values))
        };
        Self {
            stage,
            title,
            steps: lines.len(),
            every,
            step: taken.iter().map(|(i, _)| i + 1).collect(),
            block: taken.iter().map(|(_, line)| line["block"].as_u64()).collect(),
            columns: COLUMNS.into_iter().filter_map(column).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_come_apart_by_stage_and_keep_their_blocks() {
        let line =
            |stage: u64, block: Option<u64>, loss: f64| json!({"stage": stage, "block": block, "loss": loss});
        let lines =
            [line(1, Some(0), 0.5), line(1, Some(0), 0.25), line(1, Some(1), 0.75), line(2, None, 3.0)];
        let found = Curves::of(&lines, |stage| format!("{stage:?}"));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].steps, found[0].step.as_slice()), (3, &[1, 2, 3][..]));
        assert_eq!(found[0].block, [Some(0), Some(0), Some(1)]);
        assert_eq!(found[0].columns.keys().collect::<Vec<_>>(), [&"loss"]);
        assert_eq!(found[0].columns["loss"], [Some(0.5), Some(0.25), Some(0.75)]);
        assert_eq!((found[1].title.as_str(), found[1].block[0]), ("Some(2)", None));
    }

    #[test]
    fn long_runs_are_thinned_and_say_so() {
        let lines: Vec<Value> = (0..10_001).map(|i| json!({"step": i, "loss": i})).collect();
        let found = Curves::of(&lines, |_| String::new()).remove(0);
        assert_eq!((found.steps, found.every), (10_001, 3));
        assert!(found.step.len() <= MOST);
        assert_eq!((found.step[1], found.step.last()), (4, Some(&10_001)));
        assert_eq!(found.columns["loss"][1], Some(3.0));
    }
}
