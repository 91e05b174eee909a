//! The decoder's other kernels against f64: rotary embedding, attention, vocabulary reduction, peak.
//! Three presets have every kernel and tile shape of these: `tile64`, any of `rows*` and any of `lanes*`.

mod common;
mod reference;

use common::{
    HEAD_SIZES, Random, Worst, activation, commands, gpu, kernels, kinds_of_attention, presets, read,
    same_bits, untouched, vector,
};
use maskwright::gpu::GpuError;
use maskwright::kernel::{Activation, Heads, Kernels, Layout, LogSum, Preset, Rotary, VOCAB_STATE};
use reference::Twin;

/// Lanes of the element-wise kernels under a preset.
fn lanes(kernels: &Kernels<'_>) -> usize {
    if kernels.preset().name == "tile64" { 256 } else { 64 }
}

fn all(x: &Activation, rows: usize, t4: usize) -> maskwright::kernel::Rows<'_> {
    x.rows(0, rows, t4).expect("rows")
}

/// `[2, turned / 2, padded window]` of the usual frequencies, all times `scale`.
fn rope_table(turned: usize, layout: Layout, scale: f64) -> Vec<f32> {
    let (half, window) = (turned / 2, 4 * layout.window4());
    let angle = |i: usize| {
        let frequency = 10_000f64.powf(-((i / window) as f64) / half as f64);
        frequency * (i % window) as f64
    };
    let cos = (0..half * window).map(|i| (scale * angle(i).cos()) as f32);
    cos.chain((0..half * window).map(|i| (scale * angle(i).sin()) as f32)).collect()
}

/// Heads that turn wholly and in part, in halves and in neighbours, by rotations and by scaled ones; `rope_backward` is the transpose:
/// it takes back what `rope` did, but for the square of the scale.
#[test]
fn rope() {
    let mut worst = Worst::new("rope", 2.0);
    let mut back = Worst::new("rope_backward", 2.0);
    let mut random = Random::new(2);
    for name in presets() {
        let kernels = kernels(name);
        for (heads, head_dim, turned, windows, length) in [
            (1, 2, 2, 1, 1),
            (1, 8, 8, 3, 5),
            (2, 24, 24, 1, 64),
            (7, 128, 128, 2, 37),
            (3, 20, 20, 5, 13),
            (1, 64, 64, 1, 129),
            (2, 3, 2, 2, 3),
            (3, 20, 8, 5, 13),
            (2, 80, 20, 1, 37),
        ] {
            for (interleaved, scale) in [(false, 1.0), (true, 1.0), (false, 1.25), (true, 0.75)] {
                let layout = Layout { windows, length };
                let (rows, tokens, window) = (heads * head_dim, 4 * layout.t4(), 4 * layout.window4());
                let x = random.values(rows * tokens, 3.0);
                let table = rope_table(turned, layout, scale);
                let (rotary, twin) = (
                    Rotary { head_dim, turned, interleaved },
                    reference::Rotary { head_dim, turned, interleaved },
                );
                let on_gpu = activation(gpu(), rows, layout.t4(), &x);
                let (mut c, on_table) = (commands(), vector(gpu(), &table));
                let what = all(&on_gpu, rows, layout.t4());
                let label = format!("{name} {heads} heads, {rotary:?}, {windows} x {length}, times {scale}");
                kernels.rope(&mut c, what, rotary, &on_table, layout).expect("rope");
                let turned = read(&mut c, on_gpu.buffer(), x.len());
                worst.check(&label, &turned, &reference::rope(&x, &table, twin, window, tokens));
                kernels.rope_backward(&mut c, what, rotary, &on_table, layout).expect("rope_backward");
                let got = read(&mut c, on_gpu.buffer(), x.len());
                let want = reference::rope_backward(&turned, &table, twin, window, tokens);
                back.check(&label, &got, &want);
                let whole = |i: usize| i / tokens % head_dim < rotary.turned;
                for (i, (got, x)) in got.iter().zip(&x).enumerate() {
                    let x = if whole(i) { f64::from(*x) * scale * scale } else { f64::from(*x) };
                    assert!((f64::from(*got) - x).abs() < 1e-5, "{label}: element {i} is not taken back");
                }
            }
        }
    }
}

/// One attention call: what came out, what should, and which tokens are real.
fn attend(kernels: &Kernels<'static>, h: Heads, layout: Layout, scale: f32, seed: u64) -> (Vec<f32>, Twin) {
    let (t4, tokens, window) = (layout.t4(), 4 * layout.t4(), 4 * layout.window4());
    let mut random = Random::new(seed);
    let mut make = |rows: usize, scale: f32| {
        let mut x = random.values(rows * tokens, scale);
        // Padding holds numbers of its own; no real token may see them.
        for (i, v) in x.iter_mut().enumerate() {
            if i % tokens % window >= layout.length {
                *v *= 50.0;
            }
        }
        x
    };
    let (queries, keys) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let (q, k, v) = (make(queries, scale), make(keys, scale), make(keys, 1.0));
    let on = |rows: usize, x: &[f32]| activation(gpu(), rows, t4, x);
    let (qa, ka, va) = (on(queries, &q), on(keys, &k), on(keys, &v));
    let oa = on(queries, &untouched(q.len()));
    let mut c = commands();
    let rows = (all(&qa, queries, t4), all(&ka, keys, t4), all(&va, keys, t4), all(&oa, queries, t4));
    kernels.attention(&mut c, [rows.0, rows.1, rows.2], rows.3, None, h, layout).expect("attention");
    let got = read(&mut c, oa.buffer(), q.len());
    (got, reference::attention(&q, &k, &v, h, window, tokens))
}

/// `attention` and `attention_lanes`: groups of query heads, head sizes (18 is no multiple of four), windows around the tiles
/// (32, 64 and 128 queries, 16, 32 and 64 keys), padded windows, and scores from flat to one-hot: up to 1e4, where exponentials
/// without a reference point overflow.
#[test]
fn attention() {
    let mut worst = Worst::new("attention", 2.0);
    let h = Heads::new;
    for name in presets() {
        let kernels = kernels(name);
        let layouts = [
            (1, 1),
            (3, 2),
            (2, 31),
            (1, 32),
            (1, 33),
            (2, 37),
            (1, 61),
            (1, 65),
            (1, 127),
            (2, 128),
            (1, 129),
            (1, 150),
        ];
        for (i, (windows, length)) in layouts.into_iter().enumerate() {
            for (heads, scale) in [
                (h(2, 1, 8), 1.0),
                (h(6, 2, 8), 8.0),
                (h(2, 2, 64), 40.0),
                (h(3, 1, 20), 4.0),
                (h(2, 1, 18), 1.0),
            ] {
                let layout = Layout { windows, length };
                let (got, want) = attend(&kernels, heads, layout, scale, i as u64);
                let window = 4 * layout.window4();
                let label = format!("{name} {heads:?} {windows} x {length} scale {scale}");
                worst.check_where(&label, &got, &want, |i| i % want.width % window < length);
                assert!(got.iter().all(|v| v.is_finite()), "{label}: a padded token is not finite");
            }
        }
        let (got, want) = attend(&kernels, h(7, 1, 128), Layout { windows: 2, length: 44 }, 2.0, 99);
        worst.check(&format!("{name} 7 heads of 128"), &got, &want);
    }
}

/// Scales, caps and windows, alone and together, over lengths around the vec4s and tiles.
#[test]
fn attention_with_caps_and_windows() {
    let mut worst = Worst::new("attention with caps and windows", 2.0);
    for name in presets() {
        let kernels = kernels(name);
        for (i, (windows, length)) in [(2, 1), (3, 5), (2, 33), (1, 67), (2, 130)].into_iter().enumerate() {
            let mut kinds = kinds_of_attention(Heads::new(4, 2, 8), length);
            kinds.push(Heads { cap: Some(5.0), window: Some(9), ..Heads::new(2, 1, 18) });
            for heads in kinds {
                let layout = Layout { windows, length };
                let (got, want) = attend(&kernels, heads, layout, 3.0, i as u64);
                let window = 4 * layout.window4();
                let label = format!("{name} {heads:?} {windows} x {length}");
                worst.check_where(&label, &got, &want, |i| i % want.width % window < length);
                assert!(got.iter().all(|v| v.is_finite()), "{label}: a padded token is not finite");
            }
        }
    }
}

/// A window that leaves no key out changes no bit.
#[test]
fn a_window_of_all_tokens_is_none() {
    for name in presets() {
        let (heads, layout) = (Heads::new(2, 1, 8), Layout { windows: 2, length: 37 });
        let all = |heads| attend(&kernels(name), heads, layout, 2.0, 1).0;
        same_bits(name, &all(Heads { window: Some(37), ..heads }), &all(heads));
    }
}

/// Every head size, and the largest in the variant that has most in its registers.
#[test]
fn attention_of_every_head_size() {
    let mut worst = Worst::new("attention of every head size", 2.0);
    assert_eq!(
        Heads::new(6, 2, 64),
        Heads { heads: 6, kv_heads: 2, head_dim: 64, scale: 0.125, cap: None, window: None }
    );
    for name in presets() {
        let kernels = kernels(name);
        for head_dim in HEAD_SIZES {
            let plain = Heads::new(2, 1, head_dim);
            let bent = (head_dim == 256).then_some(Heads { cap: Some(5.0), window: Some(21), ..plain });
            for heads in [Some(plain), bent].into_iter().flatten() {
                let (got, want) = attend(&kernels, heads, Layout { windows: 1, length: 40 }, 1.0, 3);
                worst.check(&format!("{name} {heads:?}"), &got, &want);
            }
        }
    }
}

/// Scores of 1e30: nothing to compare with, but no overflow of the running maximum either.
#[test]
fn attention_of_absurd_scores_is_finite() {
    for name in presets() {
        let heads = Heads::new(2, 1, 8);
        let bent = Heads { cap: Some(20.0), ..heads };
        for heads in [heads, Heads { window: Some(5), ..heads }, bent, Heads { window: Some(1), ..bent }] {
            let (got, _) = attend(&kernels(name), heads, Layout { windows: 1, length: 60 }, 1e15, 5);
            assert!(got.iter().all(|v| v.is_finite() && v.abs() <= 50.0), "{name} {heads:?}");
        }
    }
}

/// The log-sum-exp of every token after all `pieces` of the vocabulary.
fn reduce(
    kernels: &Kernels<'static>,
    logits: &[f32],
    targets: &[u32],
    pieces: &[usize],
    cap: Option<f32>,
) -> Vec<LogSum> {
    let tokens = targets.len();
    let t4 = tokens / 4;
    let target_buffer = vector(gpu(), targets);
    let state = activation(gpu(), VOCAB_STATE, t4, &untouched(VOCAB_STATE * tokens));
    let mut c = commands();
    let mut first = 0;
    for &rows in pieces {
        let piece = activation(gpu(), rows, t4, &logits[first * tokens..(first + rows) * tokens]);
        let (logits, state) = (all(&piece, rows, t4), all(&state, VOCAB_STATE, t4));
        kernels.vocab_reduce(&mut c, logits, first, &target_buffer, state, cap).expect("vocab_reduce");
        first += rows;
    }
    assert_eq!(first * tokens, logits.len());
    let got = read(&mut c, state.buffer(), VOCAB_STATE * tokens);
    (0..tokens).map(|t| LogSum::of(&got, tokens, t)).collect()
}

/// Logits of every size, in any order, whole and in pieces, with and without a cap; targets in every piece, at its edges, and none.
/// Without a cap the maximum and the target's logit are exact: their units are zero.
#[test]
fn vocab_reduce() {
    let mut worst = Worst::new("vocab_reduce", 4.0);
    let mut worst_loss = Worst::new("vocab_reduce, loss", 4.0);
    let mut worst_logit = Worst::new("vocab_reduce, capped logits", 4.0);
    let mut random = Random::new(5);
    type Make = fn(&mut Random, usize, usize) -> f32;
    let kinds: [(&str, Make); 7] = [
        ("+-1", |r, _, _| r.value(1.0)),
        ("+-80", |r, _, _| r.value(80.0)),
        ("+-1e4", |r, _, _| r.value(1e4)),
        ("rising to 1e4", |_, row, vocab| 1e4 * (row as f32 + 1.0) / vocab as f32),
        ("falling from 80", |_, row, vocab| 80.0 - 160.0 * row as f32 / vocab as f32),
        ("all -1e4", |_, _, _| -1e4),
        ("one among -1e30", |_, row, vocab| if row == vocab / 2 { 3.0 } else { -1e30 }),
    ];
    for name in presets() {
        let kernels = kernels(name);
        for (vocab, t4) in [(1, 1), (3, 7), (4, 8), (5, 9), (63, 15), (64, 16), (65, 17), (257, 3), (1031, 2)]
        {
            let tokens = 4 * t4;
            for (kind, make) in kinds {
                let logits: Vec<f32> =
                    (0..vocab * tokens).map(|i| make(&mut random, i / tokens, vocab)).collect();
                let mut targets: Vec<u32> = (0..tokens).map(|_| random.below(vocab) as u32).collect();
                (targets[0], targets[1], targets[2]) = (u32::MAX, 0, vocab as u32 - 1);
                let mut cuts = vec![vec![vocab]];
                if vocab > 4 {
                    (targets[3], targets[tokens - 1]) = (3, 4);
                    cuts.extend([vec![1, 3, vocab - 4], vec![vocab - 1, 1]]);
                }
                for (pieces, cap) in
                    cuts.iter().flat_map(|c| [None, Some(30.0), Some(0.5)].map(|cap| (c, cap)))
                {
                    let label = format!("{name} [{vocab}, {tokens}] {kind} in {pieces:?}, cap {cap:?}");
                    let got = reduce(&kernels, &logits, &targets, pieces, cap);
                    let all = |of: fn(&LogSum) -> f64| got.iter().map(of).collect::<Vec<_>>();
                    let want = reference::vocab_reduce(&logits, &targets, tokens, cap);
                    worst_logit.check(&format!("{label}: maximum"), &all(|s| s.top), &want.max);
                    worst_logit.check(&format!("{label}: target"), &all(|s| s.target), &want.target);
                    // The twin's is taken from the greatest logit.
                    worst.check(&label, &all(|s| s.sum * (s.near - s.top).exp()), &want.sum);
                    worst_loss.check(&label, &all(LogSum::loss), &want.loss);
                }
            }
        }
    }
}

/// The peak measurement computes what it claims to, and counts its operations.
#[test]
fn peak() {
    let mut worst = Worst::new("peak", 1.0);
    for name in presets() {
        let kernels = kernels(name);
        let (lanes, workgroups, steps) = (lanes(&kernels), 5, 40);
        let count = workgroups * lanes;
        let out = activation(gpu(), count, 1, &untouched(4 * count));
        let mut c = commands();
        let flops = kernels.peak(&mut c, &out, workgroups as u32, steps).expect("peak");
        // 16 vec4 multiply-adds a step
        assert_eq!(flops, 16.0 * 4.0 * 2.0 * f64::from(steps) * count as f64);
        let got = read(&mut c, out.buffer(), count);
        worst.check(name, &got, &reference::peak(steps, lanes, count));
        assert!(
            kernels.peak(&mut c, &out, 4 * workgroups as u32 + 1, 1).is_err(),
            "more invocations than room"
        );
    }
}

/// The tile shapes of these kernels differ only between the presets that are tested above.
#[test]
fn presets_are_covered() {
    for preset in Preset::all() {
        let known = ["tile64", "rows", "lanes"].iter().any(|family| preset.name.starts_with(family));
        assert!(known, "add {} to presets() in tests/common", preset.name);
    }
}

/// Shapes that do not fit are errors of the call.
#[test]
fn wrong_shapes_are_refused() {
    let kernels = kernels("rows16");
    let x = activation(gpu(), 16, 4, &vec![0.5; 16 * 16]);
    let (wide, odd) = (all(&x, 16, 4), all(&x, 12, 4));
    let small = vector(gpu(), &[0.0f32; 4]);
    let layout = Layout { windows: 1, length: 16 };
    let heads = |heads, kv_heads| Heads::new(heads, kv_heads, 8);
    let turning = |turned| Rotary { head_dim: 8, turned, interleaved: true };
    let mut c = commands();
    let results = [
        kernels.rope(&mut c, odd, Rotary::halves(8), x.buffer(), layout),
        kernels.rope(&mut c, wide, Rotary::halves(8), &small, layout),
        kernels.rope(&mut c, wide, Rotary::halves(8), x.buffer(), Layout { windows: 1, length: 20 }),
        kernels.rope(&mut c, wide, Rotary::halves(0), x.buffer(), layout),
        kernels.rope(&mut c, wide, turning(7), x.buffer(), layout),
        kernels.rope(&mut c, wide, turning(10), x.buffer(), layout),
        kernels.rope_backward(&mut c, wide, turning(0), x.buffer(), layout),
        kernels.attention(&mut c, [wide, wide, wide], wide, None, heads(2, 0), layout),
        kernels.attention(&mut c, [wide, odd, odd], wide, None, heads(2, 1), layout),
        kernels.attention(
            &mut c,
            [wide, wide, wide],
            wide,
            None,
            heads(2, 2),
            Layout { windows: 2, length: 16 },
        ),
        kernels.attention(
            &mut c,
            [wide, wide, wide],
            wide,
            None,
            Heads { window: Some(0), ..heads(2, 2) },
            layout,
        ),
        kernels.attention(
            &mut c,
            [wide, wide, wide],
            wide,
            None,
            Heads { cap: Some(0.0), ..heads(2, 2) },
            layout,
        ),
        kernels.attention(
            &mut c,
            [wide, wide, wide],
            wide,
            None,
            Heads { scale: f32::NAN, ..heads(2, 2) },
            layout,
        ),
        kernels.vocab_reduce(&mut c, wide, 0, &small, all(&x, VOCAB_STATE, 4), None),
        kernels.vocab_reduce(&mut c, wide, 0, x.buffer(), wide, None),
        kernels.vocab_reduce(&mut c, wide, 0, x.buffer(), all(&x, VOCAB_STATE, 4), Some(0.0)),
        kernels.vocab_reduce(&mut c, wide, 0, x.buffer(), all(&x, VOCAB_STATE, 4), Some(f32::NAN)),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert!(matches!(error, GpuError::Shape { .. }), "call {i}: {error}");
    }
}
