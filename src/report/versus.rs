//! Several runs side by side: quality against time and memory, and which runs no other beats in both.

use serde::Serialize;

use super::Run;

/// A run as a point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Number of the run on the page, from 0.
    pub run: usize,
    /// What it cost: seconds, or bytes of device memory.
    pub cost: f64,
    /// Perplexity of the result.
    pub perplexity: f64,
    /// Whether no other run is at least as good in both and better in one.
    pub front: bool,
}

/// Runs against each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Versus {
    /// By seconds.
    pub time: Vec<Point>,
    /// Which: "method_seconds", until the mask was there, or where not all runs have them "seconds", of the whole run.
    pub time_of: &'static str,
    /// By the peak of device memory.
    pub memory: Vec<Point>,
    /// Why the runs may not be comparable.
    pub notes: Vec<String>,
}

impl Versus {
    /// Of the runs of a page.
    pub(super) fn of(runs: &[Run]) -> Self {
        let mut notes = Vec::new();
        let measured = |run: &Run| {
            let dense = run.result("dense")?;
            Some((dense["perplexity"].as_f64()?, dense["windows"].as_u64(), dense["window"].as_u64()))
        };
        let all: Vec<_> = runs.iter().filter_map(measured).collect();
        if all.len() < runs.len() {
            notes.push(
                "Runs without a measured dense model are in the table only, or may not be comparable.".into(),
            );
        }
        let differ = all.windows(2).any(|pair| match pair {
            // The last digits differ between adapters.
            [a, b] => (a.0 / b.0 - 1.0).abs() > 1e-3 || (a.1, a.2) != (b.1, b.2),
            _ => false,
        });
        if differ {
            notes.push("The runs were not measured on the same windows of the same text and model: their perplexities cannot be compared.".into());
        }
        if runs.iter().any(|run| run.info["resumed"] == true) {
            notes.push("Seconds of a resumed run are those since it was resumed.".into());
        }
        let all_have = runs.iter().all(|run| run.info["method_seconds"].is_number());
        let time_of = if all_have { "method_seconds" } else { "seconds" };
        let points = |cost: &dyn Fn(&Run) -> Option<f64>| {
            let all = runs.iter().enumerate().filter_map(|(i, run)| {
                let perplexity = run.result("result")?["perplexity"].as_f64()?;
                Some(Point { run: i, cost: cost(run)?, perplexity, front: false })
            });
            front(all.collect())
        };
        Self {
            time: points(&|run| run.info[time_of].as_f64()),
            time_of,
            memory: points(&|run| run.info["memory"]["peak"].as_f64()),
            notes,
        }
    }
}

/// Marks the Pareto front, and sorts by cost.
fn front(mut points: Vec<Point>) -> Vec<Point> {
    let beaten = |p: &Point| {
        points.iter().any(|q| {
            q.cost <= p.cost
                && q.perplexity <= p.perplexity
                && (q.cost < p.cost || q.perplexity < p.perplexity)
        })
    };
    let marks: Vec<bool> = points.iter().map(|p| !beaten(p)).collect();
    points.iter_mut().zip(marks).for_each(|(point, mark)| point.front = mark);
    points.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.perplexity.total_cmp(&b.perplexity)));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let point = |run, cost, perplexity| Point { run, cost, perplexity, front: false };
        let found = front(vec![
            point(0, 10.0, 20.0),
            point(1, 5.0, 30.0),
            point(2, 10.0, 25.0),
            point(3, 6.0, 30.0),
            point(4, 20.0, 12.0),
        ]);
        let on: Vec<usize> = found.iter().filter(|p| p.front).map(|p| p.run).collect();
        assert_eq!(on, [1, 0, 4]);
        assert!(found.windows(2).all(|pair| pair[0].cost <= pair[1].cost));
        // Equal ones do not beat each other.
        assert!(front(vec![point(0, 1.0, 1.0), point(1, 1.0, 1.0)]).iter().all(|p| p.front));
    }
}
