//! What the exchange of two columns between two groups gains.
//!
//! A row keeps the N largest scores of each group of M. With one column taken away, and a score `s` put in its place, the group keeps
//!
//! ```text
//! T - max(x, a) + max(t, s)        t = b where x >= a, else a
//! ```
//!
//! of that row, where `T` is what it keeps now, `x` the score that is taken away, `a` the N-th and `b` the (N + 1)-th largest. So all M x M
//! exchanges between two groups cost two maxima and two additions a row each, for every pattern alike. What depends on one group alone,
//! `t` of each column and the sums of `max(x, a)`, changes only when the group does.

/// Rows that are worked on together.
pub(super) const TILE: usize = 128;
/// Sums that run beside each other, so that the order of additions does not depend on how wide a processor's registers are.
const LANES: usize = 8;

/// Scores of a tile of rows.
type Rows = [f32; TILE];

/// Columns of a group, each with as many rows as [`TILE`] divides.
pub(super) type Group<'a, const M: usize> = [&'a [f32]; M];

/// The columns of a group and what exchanges with it are judged by.
pub(super) struct Judged<'a, const M: usize> {
    /// Its scores.
    pub(super) scores: Group<'a, M>,
    /// `t` of each column.
    pub(super) thresholds: Group<'a, M>,
    /// The sum over the rows of `max(x, a)`, of each column.
    pub(super) losses: [f64; M],
}

/// An exchange: the gain, and which column of the first and of the second group.
pub(super) type Exchange = (f64, usize, usize);

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Sums of the larger of each two of `a` and `b`, and of `c` and `d`.
#[inline(always)]
fn sum_of_larger([a, b]: [&Rows; 2], [c, d]: [&Rows; 2]) -> f32 {
    let mut sums = [0f32; LANES];
    for first in (0..TILE).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let at = first + lane;
            *sum += larger(a[at], b[at]) + larger(c[at], d[at]);
        }
    }
    sums.iter().sum()
}

/// The thresholds `t` of each column of a group, and the sums of `max(x, a)`.
pub(super) fn thresholds<const M: usize>(columns: &Group<'_, M>, n: usize) -> [(Vec<f32>, f64); M] {
    let rows = columns.first().map_or(0, |column| column.len());
    let mut out: [(Vec<f32>, f64); M] = std::array::from_fn(|_| (Vec::with_capacity(rows), 0.0));
    let mut scores = [[0f32; TILE]; M];
    for first in (0..rows).step_by(TILE) {
        for (own, column) in scores.iter_mut().zip(columns) {
            if let Some(found) = column.get(first..first + TILE) {
                own.copy_from_slice(found);
            }
        }
        let (last, next) = boundary(&scores, n);
        for (x, (thresholds, loss)) in scores.iter().zip(&mut out) {
            let mut t = [0f32; TILE];
            for at in 0..TILE {
                // Without a branch, which no processor predicts.
                let kept = u32::from(x[at] >= last[at]).wrapping_neg();
                t[at] = f32::from_bits(next[at].to_bits() & kept | last[at].to_bits() & !kept);
            }
            thresholds.extend_from_slice(&t);
            // Twice the same.
            *loss += f64::from(sum_of_larger([x, &last], [x, &last])) / 2.0;
        }
    }
    out
}

/// The N-th and the (N + 1)-th largest of each row.
fn boundary<const M: usize>(scores: &[Rows; M], n: usize) -> (Rows, Rows) {
    let mut sorted = *scores;
    // The largest of those behind it comes to each place in turn.
    for place in 0..=n.min(M - 1) {
        for at in (place + 1..M).rev() {
            let (mut upper, mut lower) = (sorted[at - 1], sorted[at]);
            for row in 0..TILE {
                let (a, b) = (upper[row], lower[row]);
                // Two comparisons on their own, which compilers do not turn into a branch.
                upper[row] = a.max(b);
                lower[row] = a.min(b);
            }
            (sorted[at - 1], sorted[at]) = (upper, lower);
        }
    }
    let at = |i: usize| sorted.get(i).copied().unwrap_or([0.0; TILE]);
    (at(n.wrapping_sub(1)), at(n))
}

/// The best exchange of a column of `a` and one of `b`. The gain may be negative. The same to the bit on every processor: [`LANES`] sums run
/// beside each other on all.
pub(super) fn best<const M: usize>(a: &Judged<'_, M>, b: &Judged<'_, M>) -> Exchange {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what it is compiled for.
        return unsafe { best_wide(a, b) };
    }
    best_of(a, b)
}

/// [`best_of`] with registers of eight numbers, in half the time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn best_wide<const M: usize>(a: &Judged<'_, M>, b: &Judged<'_, M>) -> Exchange {
    best_of(a, b)
}

#[inline(always)]
fn best_of<const M: usize>(a: &Judged<'_, M>, b: &Judged<'_, M>) -> Exchange {
    let mut best = (f64::NEG_INFINITY, 0, 0);
    for i in 0..M {
        let (t, x) = (a.thresholds[i].as_chunks().0, a.scores[i].as_chunks().0);
        for j in 0..M {
            let (y, u) = (b.scores[j].as_chunks().0, b.thresholds[j].as_chunks().0);
            let mut kept = 0f64;
            // A loop, and no iterator's sum, which would be a function of its own for narrow registers.
            for (((t, x), y), u) in t.iter().zip(x).zip(y).zip(u) {
                kept += f64::from(sum_of_larger([t, y], [u, x]));
            }
            let gain = kept - a.losses[i] - b.losses[j];
            if gain > best.0 {
                best = (gain, i, j);
            }
        }
    }
    best
}

/// What a group keeps in all rows.
pub(super) fn kept(columns: &[&[f32]], n: usize) -> f64 {
    let rows = columns.first().map_or(0, |column| column.len());
    let mut row = Vec::with_capacity(columns.len());
    let mut sum = 0.0;
    for at in 0..rows {
        row.clear();
        row.extend(columns.iter().map(|column| column.get(at).copied().unwrap_or(0.0)));
        row.sort_unstable_by(|a, b| b.total_cmp(a));
        sum += row.iter().take(n).map(|s| f64::from(*s)).sum::<f64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every gain is what the two groups keep with the columns exchanged, less what they keep now.
    #[test]
    fn gains_are_differences() {
        fn check<const M: usize>(n: usize) {
            let mut state = 7u64;
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                // Ties among them.
                ((state >> 40) % 40) as f32 / 8.0
            };
            let columns: Vec<Vec<f32>> =
                (0..2 * M).map(|_| (0..2 * TILE).map(|_| draw()).collect()).collect();
            let whole: Vec<&[f32]> = columns.iter().map(Vec::as_slice).collect();
            let (a, b) = whole.split_at(M);
            let (first, second): (Group<'_, M>, Group<'_, M>) =
                (a.try_into().unwrap(), b.try_into().unwrap());
            let now = kept(a, n) + kept(b, n);
            let mut most = f64::NEG_INFINITY;
            for i in 0..M {
                for j in 0..M {
                    let (mut x, mut y) = (a.to_vec(), b.to_vec());
                    (x[i], y[j]) = (b[j], a[i]);
                    most = most.max(kept(&x, n) + kept(&y, n) - now);
                }
            }
            let (t, u) = (thresholds(&first, n), thresholds(&second, n));
            fn judged<'a, const M: usize>(
                scores: Group<'a, M>,
                t: &'a [(Vec<f32>, f64); M],
            ) -> Judged<'a, M> {
                Judged {
                    scores,
                    thresholds: std::array::from_fn(|i| &t[i].0[..]),
                    losses: std::array::from_fn(|i| t[i].1),
                }
            }
            let (gain, i, j) = best(&judged(first, &t), &judged(second, &u));
            let (mut x, mut y) = (a.to_vec(), b.to_vec());
            (x[i], y[j]) = (b[j], a[i]);
            assert!((kept(&x, n) + kept(&y, n) - now - gain).abs() < 1e-3, "{n}:{M}");
            assert!((gain - most).abs() < 1e-3, "{n}:{M}: {gain}, {most}");
        }
        check::<2>(1);
        check::<4>(1);
        check::<4>(2);
        check::<4>(3);
        check::<8>(4);
        check::<16>(8);
        check::<16>(12);
    }
}
