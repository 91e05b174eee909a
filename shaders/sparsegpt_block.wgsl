// SparseGPT in a block of 16 columns (Frantar & Alistarh 2023, arXiv 2301.00774): the #{N}:#{M} mask by w^2 / U_jj^2, and the error of
// every pruned weight moved to the columns on its right.
//
// For each column j of the block, from left to right:
//   at the first column of a group, the #{N} of its columns with the greatest |w_k / U_kk| are kept, ties to the lower index
//   e_j = w_j / U_jj where pruned, 0 where kept
//   w_k -= e_j U_jk for the block's k > j, and w_j = 0 where pruned
// The columns behind the block get -e U[block, k] by a product later, for which -e is written out. Columns whose diagonal of H
// is zero (dead inputs) count as weights of 0.
//
// Within four columns e is a chain of divisions; what the four do to others is one matrix x vector. Quotients are compared as
// integers, which for positive numbers have the same order.
//
// w [rows, w_stride] vec4, u [.., u_stride] vec4 (upper triangular, zeros below), diagonal [n] (bit patterns of f32),
// errors [rows, e_stride] vec4, bits [.., words].
// Dispatch: one invocation per row, workgroups of WG folded into two dimensions. cols <= 16, a multiple of 4 and of M.

#import maskwright::groups::{QUADS, flat_index, top}

struct Params {
    rows: u32,
    cols: u32,
    w_at: u32,      // vec4 at which row 0 of the block starts, and from one row to the next
    w_stride: u32,
    u_at: u32,
    u_stride: u32,
    e_at: u32,
    e_stride: u32,
    d_at: u32,      // vec4 of the diagonal
    word_at: u32,   // mask word of row 0
    words: u32,     // mask words per row
    shift: u32,     // bit of the word at which the block starts, 0 or 16; the block that starts a word clears it
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> u: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> diagonal: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> errors: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> bits: array<u32>;

// Rows 4 r .. 4 r + 3 and columns 4 c .. 4 c + 3 of the block of U, a row of U to each column of the result, so that
// `part * e` is the sum over the rows.
fn part(r: u32, c: u32) -> mat4x4<f32> {
    let at = p.u_at + 4u * r * p.u_stride + c;
    return mat4x4<f32>(u[at], u[at + p.u_stride], u[at + 2u * p.u_stride], u[at + 3u * p.u_stride]);
}

fn load(at: u32, q: u32) -> vec4<f32> {
    let dead = (diagonal[p.d_at + q] & vec4<u32>(0x7fffffffu)) == vec4<u32>();
    return select(w[at + q], vec4<f32>(), dead);
}

// Integers in the order of |value / pivot|.
fn keys(value: vec4<f32>, m: mat4x4<f32>) -> vec4<i32> {
    let pivots = vec4<f32>(m[0].x, m[1].y, m[2].z, m[3].w);
    return bitcast<vec4<i32>>(value / pivots) & vec4<i32>(0x7fffffff);
}

fn kept(bits: u32) -> vec4<bool> {
    return (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}

// e of four columns, of which the bits mark the kept ones.
fn errors_of(value: vec4<f32>, m: mat4x4<f32>, bits: u32) -> vec4<f32> {
    let keep = kept(bits);
    let x = select(value.x / m[0].x, 0.0, keep.x);
    let y = select((value.y - x * m[0].y) / m[1].y, 0.0, keep.y);
    let z = select((value.z - x * m[0].z - y * m[1].z) / m[2].z, 0.0, keep.z);
    let last = select((value.w - x * m[0].w - y * m[1].w - z * m[2].w) / m[3].w, 0.0, keep.w);
    return vec4<f32>(x, y, z, last);
}

// Four columns after their own errors.
fn settled(value: vec4<f32>, m: mat4x4<f32>, e: vec4<f32>, bits: u32) -> vec4<f32> {
    return select(vec4<f32>(), value - m * e, kept(bits));
}

#if M == 2
// The second pair is chosen after the first one's errors.
fn choose(value: vec4<f32>, m: mat4x4<f32>) -> u32 {
    let none = vec2<i32>(-0x7fffffff);
    let first = top(array<vec4<i32>, QUADS>(vec4<i32>(keys(value, m).xy, none)));
    let later = value - m * errors_of(value, m, first | 12u);
    return first | (top(array<vec4<i32>, QUADS>(vec4<i32>(keys(later, m).zw, none))) << 2u);
}
#endif
#if M == 4
fn choose(value: vec4<f32>, m: mat4x4<f32>) -> u32 {
    return top(array<vec4<i32>, QUADS>(keys(value, m)));
}
#endif

@compute @workgroup_size(#{WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i < p.rows {
        let at = p.w_at + i * p.w_stride;
        let e_at = p.e_at + i * p.e_stride;
        var w0 = load(at, 0u);
        var w1 = vec4<f32>();
        var w2 = vec4<f32>();
        var w3 = vec4<f32>();
        if p.cols > 4u { w1 = load(at, 1u); }
        if p.cols > 8u { w2 = load(at, 2u); }
        if p.cols > 12u { w3 = load(at, 3u); }

        let m0 = part(0u, 0u);
#if M <= 4
        var word = choose(w0, m0);
#else
#if M == 8
        var word = top(array<vec4<i32>, QUADS>(keys(w0, m0), keys(w1, part(1u, 1u))));
#else
        var word = top(array<vec4<i32>, QUADS>(
            keys(w0, m0), keys(w1, part(1u, 1u)), keys(w2, part(2u, 2u)), keys(w3, part(3u, 3u))));
#endif
#endif
        let e0 = errors_of(w0, m0, word);
        w[at] = settled(w0, m0, e0, word);
        errors[e_at] = -e0;

        if p.cols > 4u {
            let m1 = part(1u, 1u);
            w1 -= part(0u, 1u) * e0;
#if M <= 4
            word |= choose(w1, m1) << 4u;
#endif
            let e1 = errors_of(w1, m1, word >> 4u);
            w[at + 1u] = settled(w1, m1, e1, word >> 4u);
            errors[e_at + 1u] = -e1;

            if p.cols > 8u {
                let m2 = part(2u, 2u);
                w2 -= part(0u, 2u) * e0 + part(1u, 2u) * e1;
                if p.cols > 12u {
                    w3 -= part(0u, 3u) * e0 + part(1u, 3u) * e1;
                }
#if M <= 4
                word |= choose(w2, m2) << 8u;
#endif
#if M == 8
                word |= top(array<vec4<i32>, QUADS>(keys(w2, m2), keys(w3, part(3u, 3u)))) << 8u;
#endif
                let e2 = errors_of(w2, m2, word >> 8u);
                w[at + 2u] = settled(w2, m2, e2, word >> 8u);
                errors[e_at + 2u] = -e2;

                if p.cols > 12u {
                    let m3 = part(3u, 3u);
                    w3 -= part(2u, 3u) * e2;
#if M <= 4
                    word |= choose(w3, m3) << 12u;
#endif
                    let e3 = errors_of(w3, m3, word >> 12u);
                    w[at + 3u] = settled(w3, m3, e3, word >> 12u);
                    errors[e_at + 3u] = -e3;
                }
            }
        }
        let to = p.word_at + i * p.words;
        if p.shift == 0u {
            bits[to] = word;
        } else {
            bits[to] |= word << p.shift;
        }
    }
}
