//! An order of columns in which groups of M keep more of their score under N:M.
//!
//! A round pairs all groups and makes the best exchange of two columns between the two of each pair, where it gains; a sweep is as many rounds
//! as bring every group together with every other one. Sweeps follow until they gain next to nothing.

use std::collections::BTreeSet;

use super::exchange::{self, Exchange, Group, Judged, TILE};
use super::stop::Stop;
use crate::mask::Pattern;
use crate::model::{Order, in_parallel};

/// Sweeps, at most.
const SWEEPS: usize = 40;
/// A sweep that gains less than this share of what is kept is the last.
const LITTLE: f64 = 2e-5;

/// Fewer scores than these are looked at sooner by one thread than others begin.
const WORTH_THREADS: usize = 1 << 20;
/// Gains below this, of a score whose sum is at least 1, are rounding.
const LEAST: f64 = 1e-9;
/// Where a sweep looks at fewer scores than these by this many times, kicks follow, each with sweeps behind it.
const KICKS: usize = 1 << 29;
const MOST_KICKS: usize = 64;

/// Scores, column by column, each of a multiple of [`TILE`] rows, of which the last may be zeros.
pub(super) struct Columns {
    columns: Vec<Vec<f32>>,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Column `order[i]` comes to place `i`.
    pub(super) order: Order,
    /// Score that was kept in the order as it was.
    pub(super) before: f64,
    /// Score that is kept.
    pub(super) after: f64,
    /// All of the score.
    pub(super) total: f64,
}

impl Columns {
    /// Room for the scores of `rows` rows of `cols` columns.
    pub(super) fn new(cols: usize, rows: usize) -> Self {
        Self { columns: vec![Vec::with_capacity(rows.next_multiple_of(TILE)); cols] }
    }

    /// Puts a row behind those that are there.
    pub(super) fn push(&mut self, row: &[f32], scale: f32) {
        self.columns.iter_mut().zip(row).for_each(|(column, score)| column.push(score * scale));
    }

    /// Fills the last tile with zeros.
    pub(super) fn pad(&mut self) {
        self.columns.iter_mut().for_each(|column| column.resize(column.len().next_multiple_of(TILE), 0.0));
    }

    fn group<const M: usize>(&self, channels: &[u32]) -> Group<'_, M> {
        std::array::from_fn(|i| channels.get(i).map_or(&[][..], |c| self.column(*c)))
    }

    fn column(&self, channel: u32) -> &[f32] {
        self.columns.get(channel as usize).map_or(&[], Vec::as_slice)
    }

    /// What an order keeps.
    pub(super) fn kept(&self, order: &[u32], pattern: Pattern) -> f64 {
        let groups: Vec<&[u32]> = order.chunks_exact(pattern.m()).collect();
        let of = |group: &&[u32]| {
            let columns: Vec<&[f32]> = group.iter().map(|c| self.column(*c)).collect();
            exchange::kept(&columns, pattern.n())
        };
        in_parallel(&groups, of).iter().sum()
    }

    /// The sum of all scores.
    fn total(&self) -> f64 {
        self.columns.iter().flatten().map(|s| f64::from(*s)).sum()
    }

    /// Looks for a better order; `wide` works on the pairs of a round on all cores, for a search that is alone. The same for the same
    /// `seed`, unless `stop` ends it early.
    pub(super) fn search(&self, pattern: Pattern, (seed, wide): (u64, bool), stop: &Stop<'_>) -> Found {
        let order: Order = (0..self.columns.len() as u32).collect();
        let before = self.kept(&order, pattern);
        let order = match pattern.m() {
            2 => self.sweeps::<2>(order, pattern.n(), (seed, wide), stop),
            4 => self.sweeps::<4>(order, pattern.n(), (seed, wide), stop),
            8 => self.sweeps::<8>(order, pattern.n(), (seed, wide), stop),
            16 => self.sweeps::<16>(order, pattern.n(), (seed, wide), stop),
            _ => order,
        };
        let after = self.kept(&order, pattern);
        Found { order, before, after, total: self.total() }
    }

    fn sweeps<const M: usize>(
        &self,
        order: Order,
        n: usize,
        (seed, wide): (u64, bool),
        stop: &Stop<'_>,
    ) -> Order {
        let mut state = State::<M> {
            scores: self,
            n,
            wide,
            stop,
            random: Random(seed),
            thresholds: vec![(Vec::new(), 0.0); order.len()],
            sweep: 0,
            changed: vec![0; order.len() / M],
            order,
        };
        state.judge((0..state.order.len() / M).collect());
        let little = LITTLE * self.total();
        state.settle(little);
        let rows = self.columns.first().map_or(0, Vec::len);
        // Only the pairs of the few groups that a kick changes are looked at again.
        let kick = (16 * M * state.order.len() * rows).max(1);
        for _ in 0..(KICKS / kick).min(MOST_KICKS) {
            let (order, changed) = (state.order.clone(), state.changed.clone());
            if state.kick() + state.settle(0.0) <= 0.0 {
                state.back_to(order);
                state.changed = changed;
            }
        }
        state.order
    }
}

/// A search under way.
struct State<'a, const M: usize> {
    scores: &'a Columns,
    n: usize,
    wide: bool,
    stop: &'a Stop<'a>,
    random: Random,
    order: Order,
    /// Thresholds and losses of each column in its group, by its channel.
    thresholds: Vec<(Vec<f32>, f64)>,
    /// The number of the present sweep, or of the last one.
    sweep: u32,
    /// The sweep in which, or behind which, each group changed last.
    changed: Vec<u32>,
}

impl<const M: usize> State<'_, M> {
    fn channels(&self, group: usize) -> &[u32] {
        self.order.get(group * M..(group + 1) * M).unwrap_or(&[])
    }

    /// Works on all of `items`, on all cores where this search has them to itself.
    fn each<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let rows = self.scores.columns.first().map_or(0, Vec::len);
        let worth = self.wide && items.len() * rows * M * M >= WORTH_THREADS;
        if worth { in_parallel(items, work) } else { items.iter().map(work).collect() }
    }

    /// Whether two groups may not have met as they are: those that did not change from the sweep before on have.
    fn is_news(&self, groups: &[usize; 2]) -> bool {
        groups.iter().any(|g| self.changed.get(*g).is_none_or(|changed| changed + 1 >= self.sweep))
    }

    /// Brings back an order, of which few groups differ from the present one.
    fn back_to(&mut self, order: Order) {
        let differ = |g: &usize| order.get(g * M..(g + 1) * M) != self.order.get(g * M..(g + 1) * M);
        let groups: Vec<usize> = (0..order.len() / M).filter(differ).collect();
        self.order = order;
        self.judge(groups);
    }

    /// Finds the thresholds of the columns of these groups, which have changed.
    fn judge(&mut self, groups: Vec<usize>) {
        for group in &groups {
            if let Some(changed) = self.changed.get_mut(*group) {
                *changed = self.sweep;
            }
        }
        let found = self.each(&groups, |group| {
            let group = self.scores.group::<M>(self.channels(*group));
            exchange::thresholds(&group, self.n)
        });
        for (group, found) in groups.into_iter().zip(found) {
            for (i, found) in found.into_iter().enumerate() {
                let channel = self.order.get(group * M + i).map(|c| *c as usize);
                if let Some(slot) = channel.and_then(|c| self.thresholds.get_mut(c)) {
                    *slot = found;
                }
            }
        }
    }

    fn judged(&self, group: usize) -> Judged<'_, M> {
        let channels = self.channels(group);
        let of = |i: usize| channels.get(i).and_then(|c| self.thresholds.get(*c as usize));
        Judged {
            scores: self.scores.group(channels),
            thresholds: std::array::from_fn(|i| of(i).map_or(&[][..], |(t, _)| t)),
            losses: std::array::from_fn(|i| of(i).map_or(0.0, |(_, loss)| *loss)),
        }
    }

    /// Sweeps until that gains little; returns what it gains.
    fn settle(&mut self, little: f64) -> f64 {
        let mut gained = 0.0;
        for _ in 0..SWEEPS {
            let more = self.sweep();
            gained += more;
            if more <= little {
                break;
            }
        }
        gained
    }

    /// Exchanges some columns at random, as a way out of an order that no single exchange makes better; returns what that gains, which is
    /// mostly a loss.
    fn kick(&mut self) -> f64 {
        let columns = self.order.len() as u64;
        let mut changed = BTreeSet::new();
        let before = self.order.clone();
        for _ in 0..2 {
            let [a, b] = [0; 2].map(|_: usize| (self.random.next() % columns.max(1)) as usize);
            if a / M != b / M {
                self.order.swap(a, b);
                changed.extend([a / M, b / M]);
            }
        }
        let kept = |order: &Order| {
            let groups = changed.iter().map(|g| order.get(g * M..(g + 1) * M).unwrap_or(&[]));
            groups.map(|group| exchange::kept(&self.scores.group::<M>(group), self.n)).sum::<f64>()
        };
        let gained = kept(&self.order) - kept(&before);
        self.judge(changed.into_iter().collect());
        gained
    }

    /// Brings every group together with every other one; returns what that gains.
    fn sweep(&mut self) -> f64 {
        let groups = self.order.len() / M;
        // One stays, the others go around; an odd one out rests.
        let mut ring: Vec<usize> = (0..groups.next_multiple_of(2)).collect();
        self.random.shuffle(&mut ring);
        self.sweep += 1;
        let mut gained = 0.0;
        for _ in 1..ring.len() {
            if (self.stop)() {
                return 0.0;
            }
            let facing = ring.iter().take(ring.len() / 2).zip(ring.iter().rev());
            let facing = facing.map(|(a, b)| [*a, *b]).filter(|pair| pair.iter().all(|g| *g < groups));
            let pairs: Vec<[usize; 2]> = facing.filter(|pair| self.is_news(pair)).collect();
            let found: Vec<Exchange> =
                self.each(&pairs, |[a, b]| exchange::best(&self.judged(*a), &self.judged(*b)));
            let mut changed = Vec::new();
            for ([a, b], (gain, i, j)) in pairs.into_iter().zip(found) {
                if gain > LEAST {
                    self.order.swap(a * M + i, b * M + j);
                    gained += gain;
                    changed.extend([a, b]);
                }
            }
            self.judge(changed);
            if let Some(rest) = ring.get_mut(1..) {
                rest.rotate_right(1);
            }
        }
        gained
    }
}

/// Random numbers for the order in which groups meet (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}
