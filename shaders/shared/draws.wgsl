// The law of #{N} draws without replacement from the softmax of the #{M} logits of a group, M <= 8, over the sets T of weights that
// are drawn so far, as bits.
//
// With rates w_i = exp(logit_i - c), R(T) = sum of w outside T, a draw behind T takes i outside T with the chance w_i / R(T). F(T), the
// chance that T are the first |T| draws, and what a draw brings from each T on, follow one behind the other:
//     f(T) = F(T) / R(T),   f({}) = 1 / R({}),   f(T) = sum_{i in T} w_i f(T \ i) / R(T)
//     P(i is drawn) = sum over T without i, |T| < N, of w_i f(T)
// All terms are positive. The reference c is the (N + 1)-th greatest logit: of the N + 1 greatest one is outside any T of at most N, so
// R(T) >= 1 whatever the logits are. Gaps above TOP count as TOP: at most N logits are that far above, and the chance that one of them is
// not drawn is below e^-TOP either way.
#define_import_path maskwright::draws

const TOP: f32 = 40.0;
// Behind the last set of N - 1 weights, and of N.
const OPEN: u32 = (((1u << (#{N}u - 1u)) - 1u) << (#{M}u - #{N}u + 1u)) + 1u;
const CLOSED: u32 = (((1u << #{N}u) - 1u) << (#{M}u - #{N}u)) + 1u;

fn drawn(taken: u32, i: u32) -> bool {
    return (taken >> i & 1u) == 1u;
}

fn rates(logits: array<f32, #{M}>) -> array<f32, #{M}> {
    var x = logits;
    var reference = 0.0;
    for (var i = 0u; i < #{M}u; i += 1u) {
        var above = 0u;
        for (var j = 0u; j < #{M}u; j += 1u) {
            above += select(0u, 1u, x[j] > x[i] || (x[j] == x[i] && j < i));
        }
        reference = select(reference, x[i], above == #{N}u);
    }
    for (var i = 0u; i < #{M}u; i += 1u) {
        x[i] = exp(min(x[i] - reference, TOP));
    }
    return x;
}

// f of all sets of fewer than N weights; what else is in the array is not written.
fn open_sets(rates: array<f32, #{M}>) -> array<f32, OPEN> {
    var w = rates;
    var f: array<f32, OPEN>;
    for (var t = 0u; t < OPEN; t += 1u) {
        if countOneBits(t) < #{N}u {
            var left = 0.0;
            var chance = select(0.0, 1.0, t == 0u);
            for (var i = 0u; i < #{M}u; i += 1u) {
                if drawn(t, i) {
                    chance += w[i] * f[t & ~(1u << i)];
                } else {
                    left += w[i];
                }
            }
            f[t] = chance / left;
        }
    }
    return f;
}

// The chance of each weight to be drawn.
fn inclusion(rates: array<f32, #{M}>) -> array<f32, #{M}> {
    var w = rates;
    var f = open_sets(rates);
    var sum: array<f32, #{M}>;
    for (var t = 0u; t < OPEN; t += 1u) {
        if countOneBits(t) < #{N}u {
            for (var i = 0u; i < #{M}u; i += 1u) {
                sum[i] += select(f[t], 0.0, drawn(t, i));
            }
        }
    }
    for (var i = 0u; i < #{M}u; i += 1u) {
        sum[i] = min(w[i] * sum[i], 1.0);
    }
    return sum;
}
