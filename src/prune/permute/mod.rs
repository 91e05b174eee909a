//! Orders of channels under which an N:M mask loses less, at no cost when the model runs ([`crate::model::Permutation`]).
//!
//! An order is judged by what masks keep of the squared Wanda score. Inputs of o and down, and of all that reads the residual stream, are
//! the columns along which groups run; outputs may come in any order without a change of score. So the three kinds of orders do not depend
//! on each other, and each block's, each key head's and the one of the residual stream are searched by themselves.

mod exchange;
mod norms;
mod scores;
mod search;
mod stop;

pub use norms::{input_norms, norms_options, windows_for_norms};
pub use stop::Stop;

use serde::Serialize;

use super::{InputNorms, PruneError, Selection};
use crate::mask::Pattern;
use crate::model::{
    Architecture, BlockOrders, Channels, Checkpoint, Order, Permutation, ProjectionKind, in_parallel,
};
use scores::Scorer;
use search::{Columns, Found};

/// What orders to look for.
#[derive(Clone, PartialEq, Debug)]
pub struct PermuteOptions {
    /// Which channels may move.
    pub channels: Vec<Channels>,
    /// The pattern of the masks.
    pub pattern: Pattern,
    /// What the search draws with.
    pub seed: u64,
}

/// What the new orders of a kind of channels keep of the score, as shares of all of it (means over blocks and heads).
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Gain {
    /// `ffn`, `heads` or `residual`.
    pub channels: &'static str,
    /// In the order of the source.
    pub before: f64,
    /// In the new one.
    pub after: f64,
}

/// What a search came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Permuting {
    /// The orders.
    pub permutation: Permutation,
    /// What they gain.
    pub gains: Vec<Gain>,
    /// Channels that stay as they are, with the reason.
    pub left: Vec<(Channels, String)>,
}

/// One search: of a block's inner features, or of a key head's values.
enum Task {
    Ffn(usize),
    Heads(usize),
}

/// Looks for orders of the channels of a model whose projections of `selection` get masks. Runs on all cores of the host. Takes the score
/// matrix of one block for each core, 64 MiB at most, or that of the residual stream, 256 MiB at most, and as much again.
///
/// # Errors
/// A tensor that the checkpoint lacks; [`PruneError::Stopped`] where `stop` says so meanwhile.
pub fn permute(
    (config, checkpoint): (&Architecture, &Checkpoint),
    selection: &Selection,
    norms: Option<&InputNorms>,
    options: &PermuteOptions,
    stop: &Stop<'_>,
) -> Result<Permuting, PruneError> {
    let scorer = Scorer { config, checkpoint, selection, norms };
    let (mut wanted, mut left) = (Vec::new(), Vec::new());
    for channels in Channels::ALL.into_iter().filter(|c| options.channels.contains(c)) {
        match stays(&scorer, channels, options.pattern) {
            Some(reason) => left.push((channels, reason)),
            None => wanted.push(channels),
        }
    }
    let mut out = Permuting { permutation: Permutation::default(), gains: Vec::new(), left };
    let mut tasks = Vec::new();
    for block in 0..config.num_layers {
        let has = |channels, kind| wanted.contains(&channels) && scorer.selected(block, kind).is_some();
        tasks.extend(has(Channels::Ffn, ProjectionKind::Down).then_some(Task::Ffn(block)));
        tasks.extend(has(Channels::Heads, ProjectionKind::O).then_some(Task::Heads(block)));
    }
    if !tasks.is_empty() {
        out.permutation.blocks = vec![BlockOrders::default(); config.num_layers];
    }
    let done = in_parallel(&tasks, |task| run(&scorer, task, options, stop));
    let (mut ffn, mut heads) = (Vec::new(), Vec::new());
    for (task, found) in tasks.iter().zip(done) {
        let found = found?;
        let (block, sums) = match task {
            Task::Ffn(block) => (*block, &mut ffn),
            Task::Heads(block) => (*block, &mut heads),
        };
        let Some(orders) = out.permutation.blocks.get_mut(block) else { continue };
        let slot = match task {
            Task::Ffn(_) => &mut orders.ffn,
            Task::Heads(_) => &mut orders.heads,
        };
        *slot = Some(joined(&found));
        sums.extend(found);
    }
    if wanted.contains(&Channels::Residual) {
        let found = scorer.of_stream()?.search(options.pattern, (options.seed, true), stop);
        out.gains.extend(gain(Channels::Residual, std::slice::from_ref(&found)));
        out.permutation.residual = Some(found.order);
    }
    if stop() {
        return Err(PruneError::Stopped);
    }
    let of_blocks = [gain(Channels::Ffn, &ffn), gain(Channels::Heads, &heads)];
    out.gains.splice(0..0, of_blocks.into_iter().flatten());
    Ok(out)
}

/// Why channels stay as they are, in a model of which only some projections get masks.
fn stays(scorer: &Scorer<'_>, channels: Channels, pattern: Pattern) -> Option<String> {
    let (config, m) = (scorer.config, pattern.m());
    if let Some(reason) = config.binds(channels) {
        return Some(reason.into());
    }
    let count = config.channel_count(channels);
    if !count.is_multiple_of(m) {
        return Some(format!("there are {count} of them, which do not divide into groups of {m}"));
    }
    let pruned = |kind| scorer.selection.pruned.iter().any(|(_, p)| p.kind == kind);
    let read = match channels {
        Channels::Ffn => pruned(ProjectionKind::Down),
        Channels::Heads => pruned(ProjectionKind::O),
        Channels::Residual => !scorer.readers().is_empty(),
    };
    (!read).then(|| "nothing that reads them is pruned".into())
}

fn run(
    scorer: &Scorer<'_>,
    task: &Task,
    options: &PermuteOptions,
    stop: &Stop<'_>,
) -> Result<Vec<Found>, PruneError> {
    let (block, kind) = match task {
        Task::Ffn(block) => (*block, ProjectionKind::Down),
        Task::Heads(block) => (*block, ProjectionKind::O),
    };
    let Some(p) = scorer.selected(block, kind) else { return Ok(Vec::new()) };
    let all = match task {
        Task::Ffn(_) => vec![scorer.of_down(p)?],
        Task::Heads(_) => scorer.of_heads(p)?,
    };
    let seed = options.seed.wrapping_mul(1 << 20).wrapping_add(block as u64);
    let search = |columns: &Columns| columns.search(options.pattern, (seed, false), stop);
    Ok(all.iter().map(search).collect())
}

/// The orders of parts that follow each other, as one.
fn joined(parts: &[Found]) -> Order {
    let mut all = Order::new();
    for part in parts {
        let first = all.len() as u32;
        all.extend(part.order.iter().map(|channel| first + channel));
    }
    all
}

fn gain(channels: Channels, found: &[Found]) -> Option<Gain> {
    let share = |of: fn(&Found) -> f64| {
        found.iter().map(|f| of(f) / f.total.max(f64::MIN_POSITIVE)).sum::<f64>() / found.len() as f64
    };
    let (before, after) = (share(|f| f.before), share(|f| f.after));
    (!found.is_empty()).then(|| Gain { channels: channels.name(), before, after })
}
