// Exact group descent: lowers each row's squared error e = z^T H z over strict #{N}:#{M} masks, z = the row's pruned weights (0
// where kept), by the best change of one group at a time, groups left to right, sweep after sweep.
//
// With c = H z, the pattern s of a group costs   z_s^T H_gg z_s + 2 z_s^T (c_g - H_gg z_g)   on top of what the other groups make.
// For M <= 8 the cheapest of all patterns is taken, for M = 16 the best exchange of a pruned and a kept weight,
//   -2 w_i c_i + w_i^2 H_ii + 2 w_j c_j + w_j^2 H_jj - 2 w_i w_j H_ij,
// each when it gains more than `tolerance` of the row's error. A change moves c by its few columns of H; a group that keeps its
// pattern costs nothing more.
//
// One workgroup per row. Each lane looks at a group of its own (a "unit": one group, or two of M = 2 together); the first in
// order that gains moves, then only those after it look again, which is the same as looking at one after the other. Lane l owns the
// units l, l + LANES, ... of c, so c is never passed between lanes: it lies in workgroup memory where CHIP vec4s hold a row
// of it, else in storage.
// H is bound in row chunks: a dispatch treats the groups whose columns are the chunk's rows.
//
// W [rows, k4] packed by four, h [4 * units * UNIT4, k4], bits [rows, words], c [n, k4], moves [2, n]: changes of each row in this
// pass and in the one before. PATTERNS: combinations that the search walks through, of M <= 8. Dispatch: one workgroup per row, the grid folded into two dimensions.
#import maskwright::weights::{unpack}

// vec4s of a unit, and how many of its weights are pruned.
#if M == 16
const UNIT4: u32 = 4u;
const PRUNED: u32 = 16u - #{N}u;
#else
#if M == 8
const UNIT4: u32 = 2u;
const PRUNED: u32 = 8u - #{N}u;
#else
const UNIT4: u32 = 1u;
#if M == 4
const PRUNED: u32 = 4u - #{N}u;
#else
const PRUNED: u32 = 2u;
#endif
#endif
#endif
const NONE: u32 = 0xffffffffu;

struct Params {
    n: u32,          // rows of this dispatch
    row: u32,        // first of them in c and moves
    k4: u32,         // vec4s of a row
    w_first: u32,    // packed element of W at which the first row starts
    bit_row: u32,    // row of the mask that the first row is
    words: u32,      // mask words per row
    first4: u32,     // vec4 of a row at which the chunk's columns start
    units: u32,      // units of the chunk
    sweeps: u32,     // sweeps over the chunk, at most
    now: u32,        // element of moves where this pass counts, and
    before: u32,     // where the pass before did; equal = there was none
    tolerance: f32,  // smallest gain, of the row's error
    opens: u32,      // 1 = first chunk of the pass: counts start from 0
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#if WEIGHT == 0
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;                   // [rows, k4]
#else
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;                   // [rows, k4]
#endif
@group(0) @binding(2) var<storage, read> h: array<vec4<f32>>;                   // [chunk, k4]
@group(0) @binding(3) var<storage, read_write> bits: array<atomic<u32>>;        // [rows, words]
@group(0) @binding(4) var<storage, read_write> c: array<vec4<f32>>;             // [n, k4]
@group(0) @binding(5) var<storage, read_write> moves: array<u32>;               // [2, n]

#if CHIP > 0
var<workgroup> sh_c: array<vec4<f32>, #{CHIP}>;
#endif
var<workgroup> sh_sum: array<f32, #{LANES}>;
var<workgroup> sh_first: atomic<u32>;
var<workgroup> sh_winner: u32;
var<workgroup> sh_count: u32;
var<workgroup> sh_column: array<u32, 16>;
var<workgroup> sh_step: array<f32, 16>;
var<workgroup> sh_awake: u32;

fn product_at(at: u32, k: u32) -> vec4<f32> {
#if CHIP > 0
    return sh_c[k];
#else
    return c[at + k];
#endif
}

// Bits 4 * i.. of a word as a choice of four.
fn four(word: u32) -> vec4<bool> {
    return (vec4<u32>(word) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}

fn pick(v: vec4<f32>, word: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, four(word));
}

// The pruned weights among the 4 * UNIT4 of the unit whose vec4 number is k, as bits.
fn pruned_bits(row_word: u32, k: u32) -> u32 {
    let word = ~atomicLoad(&bits[row_word + k / 8u]);
    return (word >> ((k % 8u) * 4u)) & (0xffffffffu >> (32u - 4u * UNIT4));
}

// The next number with as many ones (Gosper).
fn next_pattern(s: u32) -> u32 {
    let low = s & (~s + 1u);
    let ripple = s + low;
    return ripple | (((s ^ ripple) >> 2u) >> firstTrailingBit(low));
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let r = wg.y * grid.x + wg.x;
    let rc = min(r, p.n - 1u);
    let w_row = p.w_first + rc * p.k4;
    let row_word = (p.bit_row + rc) * p.words;
    let c_row = (p.row + rc) * p.k4;
    if lane == 0u {
        let rested = p.before != p.now && moves[p.before + p.row + rc] == 0u;
        sh_awake = select(1u, 0u, rested || r >= p.n);
        atomicStore(&sh_first, NONE);
    }
    let awake = workgroupUniformLoad(&sh_awake);
    var total = 0u;
    if awake == 1u {
        // The row's error, and c on the chip. A lane's units start at `own`, so that the chunk's unit u is lane u % LANES's.
        let own = (lane + p.first4 / UNIT4) % #{LANES}u;
        var sum = 0.0;
        for (var u = own; u < p.k4 / UNIT4; u += #{LANES}u) {
            let s = pruned_bits(row_word, u * UNIT4);
            for (var q = 0u; q < UNIT4; q += 1u) {
                let k = u * UNIT4 + q;
                let product = c[c_row + k];
                sum += dot(pick(unpack(w[w_row + k]), s >> (4u * q)), product);
#if CHIP > 0
                sh_c[k] = product;
#endif
            }
        }
        sh_sum[lane] = sum;
        for (var half = #{LANES}u / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane < half {
                sh_sum[lane] += sh_sum[lane + half];
            }
        }
        let threshold = p.tolerance * max(workgroupUniformLoad(&sh_sum[0]), 0.0);

        for (var sweep = 0u; sweep < p.sweeps; sweep += 1u) {
            var moved = 0u;
            for (var base = 0u; base < p.units; base += #{LANES}u) {
                let u = min(base + lane, p.units - 1u);
                let k = p.first4 + u * UNIT4;
                var s = pruned_bits(row_word, k);
                let w0 = unpack(w[w_row + k]);
                // Row i of the unit's square of H, the first four columns, then the next.
                let hu = u * UNIT4 * 4u * p.k4 + k;
#if M < 16
                let h0 = mat4x4<f32>(h[hu], h[hu + p.k4], h[hu + 2u * p.k4], h[hu + 3u * p.k4]);
#endif
#if M == 8
                let w1 = unpack(w[w_row + k + 1u]);
                let hv = hu + 4u * p.k4;
                let h01 = mat4x4<f32>(h[hv], h[hv + p.k4], h[hv + 2u * p.k4], h[hv + 3u * p.k4]);
                let h1 = mat4x4<f32>(
                    h[hv + 1u], h[hv + p.k4 + 1u], h[hv + 2u * p.k4 + 1u], h[hv + 3u * p.k4 + 1u]);
#endif
#if M == 16
                let wv = array<vec4<f32>, 4>(w0, unpack(w[w_row + k + 1u]), unpack(w[w_row + k + 2u]), unpack(w[w_row + k + 3u]));
#endif
                var start = base;
                loop {
                    // This lane's best change: the pattern `best` in place of `s`.
                    var gain = 0.0;
                    var best = s;
                    if base + lane >= start && base + lane < p.units {
#if M == 16
                        // exchange[q] starts with what pruning each weight costs.
                        var prune: array<vec4<f32>, 4>;
                        var cv: array<vec4<f32>, 4>;
                        var diagonal: array<vec4<f32>, 4>;
                        for (var q = 0u; q < 4u; q += 1u) {
                            let at = hu + 4u * q * p.k4 + q;
                            cv[q] = product_at(c_row, k + q);
                            diagonal[q] = wv[q] * wv[q]
                                * vec4<f32>(h[at].x, h[at + p.k4].y, h[at + 2u * p.k4].z, h[at + 3u * p.k4].w);
                            prune[q] = 2.0 * wv[q] * cv[q] + diagonal[q];
                        }
                        for (var i = 0u; i < 16u; i += 1u) {
                            let iq = i / 4u;
                            let ic = i % 4u;
                            let wi = wv[iq][ic];
                            let back = diagonal[iq][ic] - 2.0 * wi * cv[iq][ic];
                            let out = (s >> i & 1u) == 1u;
                            for (var q = 0u; q < 4u; q += 1u) {
                                let cost = back + prune[q] - 2.0 * wi * wv[q] * h[hu + i * p.k4 + q];
                                for (var j = 0u; j < 4u; j += 1u) {
                                    if out && (s >> (4u * q + j) & 1u) == 0u && -cost[j] > gain {
                                        gain = -cost[j];
                                        best = s ^ (1u << i) ^ (1u << (4u * q + j));
                                    }
                                }
                            }
                        }
#else
                        var lowest = 0.0;
                        var current = 0.0;
#if M == 8
                        let z0 = pick(w0, s);
                        let z1 = pick(w1, s >> 4u);
                        let b0 = 2.0 * (product_at(c_row, k) - h0 * z0 - h01 * z1);
                        let b1 = 2.0 * (product_at(c_row, k + 1u) - transpose(h01) * z0 - h1 * z1);
                        current = dot(z0, h0 * z0 + 2.0 * (h01 * z1) + b0) + dot(z1, h1 * z1 + b1);
#else
                        let z0 = pick(w0, s);
                        let b0 = 2.0 * (product_at(c_row, k) - h0 * z0);
                        current = dot(z0, h0 * z0 + b0);
#endif
                        lowest = current;
                        var other = (1u << PRUNED) - 1u;
                        for (var i = 0u; i < #{PATTERNS}u; i += 1u) {
                            let y0 = pick(w0, other);
#if M == 8
                            let y1 = pick(w1, other >> 4u);
                            let cost = dot(y0, h0 * y0 + 2.0 * (h01 * y1) + b0) + dot(y1, h1 * y1 + b1);
#else
                            let cost = dot(y0, h0 * y0 + b0);
#endif
#if M == 2
                            let strict = countOneBits(other & 3u) == 1u;
#else
                            let strict = true;
#endif
                            if strict && cost < lowest {
                                lowest = cost;
                                best = other;
                            }
                            other = next_pattern(other);
                        }
                        gain = current - lowest;
#endif
                    }
                    if gain > threshold {
                        atomicMin(&sh_first, u);
                    }
                    workgroupBarrier();
                    if lane == 0u {
                        sh_winner = atomicExchange(&sh_first, NONE);
                    }
                    let winner = workgroupUniformLoad(&sh_winner);
                    if winner == NONE {
                        break;
                    }
                    if base + lane == winner {
                        let change = s ^ best;
                        var count = 0u;
                        for (var i = 0u; i < 4u * UNIT4; i += 1u) {
                            if (change >> i & 1u) == 1u {
                                var weight = w0[i % 4u];
#if M == 8
                                weight = select(w0, w1, i >= 4u)[i % 4u];
#endif
#if M == 16
                                weight = wv[i / 4u][i % 4u];
#endif
                                sh_column[count] = (u * UNIT4 * 4u + i) * p.k4;
                                sh_step[count] = select(-weight, weight, (best >> i & 1u) == 1u);
                                count += 1u;
                            }
                        }
                        sh_count = count;
                        atomicXor(&bits[row_word + k / 8u], change << ((k % 8u) * 4u));
                        s = best;
                    }
                    let count = workgroupUniformLoad(&sh_count);
                    // As many weights come in as go out: they are taken in pairs, whose steps stay in registers.
                    for (var i = 0u; i < count; i += 2u) {
                        let step0 = sh_step[i];
                        let step1 = sh_step[i + 1u];
                        let column0 = sh_column[i];
                        let column1 = sh_column[i + 1u];
                        for (var v = own; v < p.k4 / UNIT4; v += #{LANES}u) {
                            for (var q = 0u; q < UNIT4; q += 1u) {
                                let at = v * UNIT4 + q;
                                let moved_by = step0 * h[column0 + at] + step1 * h[column1 + at];
#if CHIP > 0
                                sh_c[at] += moved_by;
#else
                                c[c_row + at] += moved_by;
#endif
                            }
                        }
                    }
                    moved += 1u;
                    // The winner has the best pattern; after an exchange there may be another.
#if M == 16
                    start = winner;
#else
                    start = winner + 1u;
#endif
                    workgroupBarrier();
                }
            }
            total += moved;
            if moved == 0u {
                break;
            }
        }
#if CHIP > 0
        for (var u = own; u < p.k4 / UNIT4; u += #{LANES}u) {
            for (var q = 0u; q < UNIT4; q += 1u) {
                c[c_row + u * UNIT4 + q] = sh_c[u * UNIT4 + q];
            }
        }
#endif
    }
    if lane == 0u && r < p.n {
        let at = p.now + p.row + r;
        moves[at] = select(moves[at], 0u, p.opens == 1u) + total;
    }
}
