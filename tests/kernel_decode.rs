//! The kernels of decoding token by token against f64: copies of columns, attention of one token over a cache.

mod common;
mod reference;

use common::{
    HEAD_SIZES, Random, Worst, activation, commands, gpu, kernels, kinds_of_attention, presets, read,
    same_bits, untouched,
};
use maskwright::gpu::GpuError;
use maskwright::kernel::{Activation, Cached, Columns, Heads, Rows};

/// All rows of an activation of so many columns, its windows, and where in them.
fn columns(x: &Activation, [tokens, window, at]: [usize; 3]) -> Columns<'_> {
    Columns { rows: x.rows(0, x.shape().0, tokens / 4).expect("rows"), window, at }
}

fn whole(x: &Activation) -> Rows<'_> {
    let (rows, t4) = x.shape();
    x.rows(0, rows, t4).expect("rows")
}

/// Bit for bit, into the middle of windows, and nothing else touched.
#[test]
fn copy_columns() {
    let mut random = Random::new(1);
    for name in presets() {
        let kernels = kernels(name);
        for (rows, windows, length, from, to) in [
            (1, 1, 1, [4, 4, 0], [4, 4, 3]),
            (5, 3, 1, [4, 1, 0], [60, 20, 7]),
            (3, 2, 7, [16, 8, 1], [40, 20, 13]),
            (64, 5, 3, [40, 8, 5], [20, 4, 0]),
            (2, 4, 0, [16, 4, 0], [16, 4, 0]),
        ] {
            let (a, b) = (random.values(rows * from[0], 3.0), random.values(rows * to[0], 3.0));
            let (source, target) =
                (activation(gpu(), rows, from[0] / 4, &a), activation(gpu(), rows, to[0] / 4, &b));
            let mut c = commands();
            kernels
                .copy_columns(&mut c, columns(&source, from), columns(&target, to), windows, length)
                .expect("copy_columns");
            let got = read(&mut c, target.buffer(), b.len());
            let want = reference::copy_columns((&a, from), (&b, to), windows, length);
            same_bits(&format!("{name} {rows} rows, {windows} x {length}"), &got, &want);
        }
    }
}

/// Caches shorter and longer than a block of 32 or 128 keys, groups of query heads, head sizes that are no multiple of a block, and scores from
/// flat to one-hot.
#[test]
fn attention_step() {
    let mut worst = Worst::new("attention_step", 2.0);
    let h = Heads::new;
    for name in presets() {
        for (i, cache) in
            [(1, 4, 1), (3, 8, 2), (2, 32, 31), (1, 32, 32), (5, 36, 33), (2, 132, 129), (1, 300, 300)]
                .into_iter()
                .enumerate()
        {
            for (heads, scale) in [
                (h(2, 1, 8), 1.0),
                (h(6, 2, 20), 8.0),
                (h(2, 2, 64), 40.0),
                (h(4, 1, 128), 2.0),
                (h(2, 1, 18), 1.0),
            ] {
                step(&mut worst, name, heads, cache, scale, i as u64);
            }
        }
    }
}

/// Scales, caps and windows, alone and together; and every head size.
#[test]
fn attention_step_with_caps_and_windows() {
    let mut worst = Worst::new("attention_step with caps and windows", 2.0);
    let bent = |head_dim| Heads { cap: Some(5.0), window: Some(21), ..Heads::new(2, 1, head_dim) };
    for name in presets() {
        for cache in [(2, 4, 1), (3, 8, 5), (2, 36, 33), (1, 68, 67), (2, 132, 130), (1, 300, 299)] {
            for heads in kinds_of_attention(Heads::new(4, 2, 8), cache.2) {
                step(&mut worst, name, heads, cache, 3.0, 1);
            }
            step(&mut worst, name, bent(18), cache, 6.0, 1);
        }
        for head_dim in HEAD_SIZES {
            step(&mut worst, name, Heads::new(2, 1, head_dim), (2, 40, 38), 1.0, 2);
        }
        step(&mut worst, name, bent(256), (2, 40, 38), 1.0, 2);
    }
}

/// One call for (sequences, columns of each in the cache, seen ones).
fn step(
    worst: &mut Worst,
    name: &str,
    heads: Heads,
    (sequences, window, seen): (usize, usize, usize),
    scale: f32,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let (q4, kv4) = (sequences.div_ceil(4), sequences * window / 4);
    let (queries, keys) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let q = random.values(queries * 4 * q4, scale);
    let (mut k, mut v) = (random.values(keys * 4 * kv4, scale), random.values(keys * 4 * kv4, 1.0));
    // No token that is not seen counts: neither those to come nor those before the window.
    let first = heads.window.map_or(0, |near| seen.saturating_sub(near));
    for (i, x) in k.iter_mut().chain(&mut v).enumerate() {
        if !(first..seen).contains(&(i % (4 * kv4) % window)) {
            *x = f32::NAN;
        }
    }
    let on = |rows, t4, x: &[f32]| activation(gpu(), rows, t4, x);
    let (qa, ka, va) = (on(queries, q4, &q), on(keys, kv4, &k), on(keys, kv4, &v));
    let oa = on(queries, q4, &untouched(q.len()));
    let mut c = commands();
    let (q_rows, k_rows, v_rows, o_rows) = (whole(&qa), whole(&ka), whole(&va), whole(&oa));
    kernels(name)
        .attention_step(&mut c, [q_rows, k_rows, v_rows], o_rows, heads, Cached { sequences, window, seen })
        .expect("attention_step");
    let got = read(&mut c, oa.buffer(), q.len());
    let want = reference::attention_step([&q, &k, &v], heads, sequences, 4 * q4, window, seen);
    let label = format!("{name} {heads:?} {sequences} x {seen} of {window} scale {scale}");
    worst.check_where(&label, &got, &want, |i| i % (4 * q4) < sequences);
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let (wide, odd) = (x.rows(0, 16, 4).expect("rows"), x.rows(0, 12, 4).expect("rows"));
    let heads = |heads, kv_heads| Heads::new(heads, kv_heads, 8);
    let columns = |rows, window, at| Columns { rows, window, at };
    let mut c = commands();
    let copies = [
        kernels.copy_columns(&mut c, columns(wide, 8, 0), columns(odd, 8, 0), 1, 1),
        kernels.copy_columns(&mut c, columns(wide, 8, 6), columns(wide, 8, 0), 2, 3),
        kernels.copy_columns(&mut c, columns(wide, 8, 0), columns(wide, 8, 4), 2, 5),
    ];
    // Keys and values, the result; sequences, columns of a window, tokens seen.
    let blind = Heads { window: Some(0), ..heads(2, 2) };
    let steps = [
        (wide, wide, heads(2, 0), [1, 16, 4]),
        (odd, wide, heads(2, 1), [1, 16, 4]),
        (wide, wide, heads(2, 2), [1, 16, 0]),
        (wide, wide, heads(2, 2), [1, 16, 17]),
        (wide, wide, heads(2, 2), [3, 8, 8]),
        (wide, odd, heads(2, 2), [1, 16, 4]),
        (wide, wide, blind, [1, 16, 4]),
    ]
    .map(|(kv, o, heads, [sequences, window, seen])| {
        kernels.attention_step(&mut c, [wide, kv, kv], o, heads, Cached { sequences, window, seen })
    });
    let results = copies.into_iter().chain(steps);
    for (i, result) in results.enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
    }
}
