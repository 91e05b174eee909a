//! Where a model lost most beside the dense one.

use super::Comparison;

/// A predicted token whose loss rose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rise {
    /// Its window.
    pub window: usize,
    /// Its place in the window, from 0; the first token of a window is not predicted, so at least 1.
    pub position: usize,
    /// Loss of the dense model, in nats.
    pub dense: f32,
    /// Loss of the model.
    pub model: f32,
}

impl Rise {
    /// By how much the loss rose.
    pub fn by(&self) -> f32 {
        self.model - self.dense
    }
}

impl Comparison {
    /// The `count` tokens whose loss rose most, the worst first; of equal ones the first in the text.
    pub fn worst(&self, count: usize) -> Vec<Rise> {
        let predicted = self.model.window.saturating_sub(1).max(1);
        let [model, dense] = &self.losses;
        let mut all: Vec<Rise> = model
            .iter()
            .zip(dense)
            .enumerate()
            .map(|(i, (&model, &dense))| Rise {
                window: i / predicted,
                position: i % predicted + 1,
                dense,
                model,
            })
            .filter(|rise| rise.by() > 0.0)
            .collect();
        // Stable: equal ones stay in the order of the text.
        all.sort_by(|a, b| b.by().total_cmp(&a.by()));
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Perplexity;

    #[test]
    fn the_worst_tokens_come_first_with_their_places() {
        let losses = [vec![1.0, 5.0, 2.0, 3.0, 0.5, 9.0], vec![1.5, 1.0, 1.0, 2.0, 0.5, 1.0]];
        let perplexity = Perplexity::of(vec![0.0; 2], 8, 4);
        let found = Comparison {
            model: perplexity.clone(),
            dense: perplexity,
            kl: 0.0,
            top1: 0.0,
            kl_means: Vec::new(),
            top1_means: Vec::new(),
            losses,
        };
        let places = |count| found.worst(count).iter().map(|r| (r.window, r.position)).collect::<Vec<_>>();
        assert_eq!(places(3), [(1, 3), (0, 2), (0, 3)]);
        assert_eq!(places(9), [(1, 3), (0, 2), (0, 3), (1, 1)], "only those that rose");
        assert_eq!(found.worst(1)[0].by(), 8.0);
    }
}
