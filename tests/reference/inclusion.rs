//! Inclusion probabilities of random subsets of N keys, and their gradients, in f64: by definitions where the kernels have products.

use maskwright::kernel::Relaxation;

use super::soft::log_sum;

/// log of the sum of exp(sum of keys) over the subsets of `size` of the keys that `take` takes.
fn log_subsets(keys: &[f64], size: usize, take: impl Fn(usize) -> bool) -> f64 {
    let mut sums = vec![f64::NEG_INFINITY; size + 1];
    sums[0] = 0.0;
    for (_, a) in keys.iter().enumerate().filter(|&(i, _)| take(i)) {
        for k in (1..=size).rev() {
            sums[k] = log_sum(&[sums[k], sums[k - 1] + a], |_| true);
        }
    }
    sums[size]
}

/// exp(sum of a over S) as the probability of the subset S of N keys: of each key to be in it.
fn fixed_size(keys: &[f64], n: usize) -> Vec<f64> {
    let all = log_subsets(keys, n, |_| true);
    (0..keys.len()).map(|i| (keys[i] + log_subsets(keys, n - 1, |j| j != i) - all).exp()).collect()
}

/// The covariances of the memberships, times g.
fn fixed_size_gradient(keys: &[f64], n: usize, g: &[f64]) -> Vec<f64> {
    let m = keys.len();
    let all = log_subsets(keys, n, |_| true);
    let mean = fixed_size(keys, n);
    let mut d: Vec<f64> = (0..m)
        .map(|i| {
            let out = (log_subsets(keys, n, |j| j != i) - all).exp();
            g[i] * mean[i] * out
        })
        .collect();
    for i in 0..m {
        for j in 0..i {
            let both = if n < 2 {
                0.0
            } else {
                (keys[i] + keys[j] + log_subsets(keys, n - 2, |k| k != i && k != j) - all).exp()
            };
            let covariance = both - mean[i] * mean[j];
            d[i] += covariance * g[j];
            d[j] += covariance * g[i];
        }
    }
    d
}

/// Probability of drawing i first, and j behind it.
fn first_and_second(keys: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let m = keys.len();
    let all = log_sum(keys, |_| true);
    let first = keys.iter().map(|a| (a - all).exp()).collect();
    let second = (0..m)
        .map(|i| {
            let rest = log_sum(keys, |j| j != i);
            (0..m).map(|j| if j == i { 0.0 } else { (keys[j] - rest).exp() }).collect()
        })
        .collect();
    (first, second)
}

fn draws(keys: &[f64], n: usize) -> Vec<f64> {
    let (first, second) = first_and_second(keys);
    let mut out = first.clone();
    for (p, second) in first.iter().zip(&second).filter(|_| n == 2) {
        for (out, q) in out.iter_mut().zip(second) {
            *out += p * q;
        }
    }
    out
}

/// The sum over what is drawn of its probability, times g of what is drawn, times the derivative of its logarithm.
fn draws_gradient(keys: &[f64], n: usize, g: &[f64]) -> Vec<f64> {
    let m = keys.len();
    let (first, second) = first_and_second(keys);
    let of = |is: bool| if is { 1.0 } else { 0.0 };
    let mut d = vec![0.0; m];
    for i in 0..m {
        for k in (0..m).filter(|_| n == 1) {
            d[k] += first[i] * g[i] * (of(k == i) - first[k]);
        }
        for j in (0..m).filter(|&j| n == 2 && j != i) {
            let value = first[i] * second[i][j] * (g[i] + g[j]);
            for (k, d) in d.iter_mut().enumerate() {
                *d += value * (of(k == i) - first[k] + of(k == j) - second[i][k]);
            }
        }
    }
    d
}

/// Inclusion probabilities of the keys of a group.
pub fn inclusion(keys: &[f64], n: usize, relaxation: Relaxation) -> Vec<f64> {
    match relaxation {
        Relaxation::FixedSize => fixed_size(keys, n),
        Relaxation::Draws => draws(keys, n),
        Relaxation::Rounds { .. } => panic!("rounds are no probabilities"),
    }
}

/// d <g, inclusion(keys)> / d keys.
pub fn inclusion_gradient(keys: &[f64], n: usize, relaxation: Relaxation, g: &[f64]) -> Vec<f64> {
    match relaxation {
        Relaxation::FixedSize => fixed_size_gradient(keys, n, g),
        Relaxation::Draws => draws_gradient(keys, n, g),
        Relaxation::Rounds { .. } => panic!("rounds are no probabilities"),
    }
}
