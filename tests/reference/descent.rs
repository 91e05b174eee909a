//! Exact group descent in f64, one group after the other.

use maskwright::mask::{BitMask, Pattern};

/// The pruned weights of row `r`.
fn pruned(w: &[f32], mask: &BitMask, r: usize) -> Vec<f64> {
    let n = mask.cols();
    (0..n).map(|j| if mask.get(r, j) { 0.0 } else { f64::from(w[r * n + j]) }).collect()
}

fn times(h: &[f32], z: &[f64]) -> Vec<f64> {
    h.chunks_exact(z.len()).map(|row| row.iter().zip(z).map(|(&h, z)| f64::from(h) * z).sum()).collect()
}

/// z^T H z of row `r`.
pub fn row_error(w: &[f32], h: &[f32], mask: &BitMask, r: usize) -> f64 {
    let z = pruned(w, mask, r);
    times(h, &z).iter().zip(&z).map(|(c, z)| c * z).sum()
}

/// Weights that are looked at together: a group, or two of M = 2.
fn unit(pattern: Pattern) -> usize {
    pattern.m().max(4)
}

/// All strict choices of pruned weights in a unit.
fn choices(pattern: Pattern) -> Vec<u32> {
    let (n, m) = (pattern.n() as u32, pattern.m() as u32);
    if m == 2 {
        return vec![0b0101, 0b0110, 0b1001, 0b1010];
    }
    (0..1u32 << m).filter(|s| s.count_ones() == m - n).collect()
}

/// The greatest lowering of the error by one change of unit `g`, and the unit's pruned bits that bring it. For M = 16 only
/// exchanges of two weights count, as on the device.
fn best_change(
    w: &[f64],
    h: &[f32],
    z: &[f64],
    c: &[f64],
    g: usize,
    pattern: Pattern,
    choices: &[u32],
) -> (f64, u32) {
    let (n, m) = (w.len(), unit(pattern));
    let at = g * m;
    let now = (0..m).filter(|&i| z[at + i] != 0.0).map(|i| 1u32 << i).sum::<u32>();
    let mut best = (0.0, now);
    for &s in choices {
        if m == 16 && (s ^ now).count_ones() != 2 {
            continue;
        }
        let change: Vec<f64> =
            (0..m).map(|i| (if s >> i & 1 == 1 { w[at + i] } else { 0.0 }) - z[at + i]).collect();
        let mut cost = 0.0;
        for i in 0..m {
            let inner: f64 = (0..m).map(|j| f64::from(h[(at + i) * n + at + j]) * change[j]).sum();
            cost += change[i] * (2.0 * c[at + i] + inner);
        }
        if -cost > best.0 {
            best = (-cost, s);
        }
    }
    best
}

/// The greatest gain of a single change of any unit of row `r`: at a fixed point there is none.
pub fn group_gain(w: &[f32], h: &[f32], mask: &BitMask, r: usize, pattern: Pattern) -> f64 {
    let n = mask.cols();
    let wide: Vec<f64> = w[r * n..(r + 1) * n].iter().map(|&v| f64::from(v)).collect();
    let (z, choices) = (pruned(w, mask, r), choices(pattern));
    let c = times(h, &z);
    (0..n / unit(pattern)).map(|g| best_change(&wide, h, &z, &c, g, pattern, &choices).0).fold(0.0, f64::max)
}

/// Improves a mask by sweeps over the groups of every row, until a sweep changes nothing or `sweeps` are done. No weight may be 0.
pub fn descent(
    w: &[f32],
    h: &[f32],
    start: &BitMask,
    pattern: Pattern,
    sweeps: usize,
    tolerance: f64,
) -> BitMask {
    let (n, m) = (start.cols(), unit(pattern));
    let choices = choices(pattern);
    let mut mask = start.clone();
    for r in 0..mask.rows() {
        let wide: Vec<f64> = w[r * n..(r + 1) * n].iter().map(|&v| f64::from(v)).collect();
        let mut z = pruned(w, &mask, r);
        let mut c = times(h, &z);
        let threshold = tolerance * c.iter().zip(&z).map(|(c, z)| c * z).sum::<f64>();
        for _ in 0..sweeps {
            let mut moved = false;
            for g in 0..n / m {
                // Exchanges go on in a group until none helps.
                loop {
                    let (gain, s) = best_change(&wide, h, &z, &c, g, pattern, &choices);
                    if gain <= threshold {
                        break;
                    }
                    for i in 0..m {
                        let j = g * m + i;
                        let value = if s >> i & 1 == 1 { wide[j] } else { 0.0 };
                        for k in 0..n {
                            c[k] += (value - z[j]) * f64::from(h[j * n + k]);
                        }
                        z[j] = value;
                        mask.set(r, j, value == 0.0);
                    }
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
    mask
}
