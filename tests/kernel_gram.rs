//! Gram matrices against f64, made of `transpose` and products: pieces, padding, row chunks, many tokens; and products with
//! square matrices.

mod common;
mod reference;

use common::{
    Matrix, Random, Worst, activation, commands, gpu, kernels, open, preset, presets, random_mask, read,
    untouched, upload_mask,
};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{Kernels, Layout, Square};
use maskwright::model::Dtype;
use reference::Twin;

/// A device that binds few rows of a matrix at once.
fn limited(bytes: u64) -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(bytes), ..Default::default() })
}

fn square(gpu: &Gpu, c: &mut Commands<'_>, n: usize, values: &[f32]) -> Square {
    let h = Square::new(gpu, "test:square", n).expect("room");
    h.write(c, values).expect("a write");
    h
}

/// Gram matrix of `batches` batches of random inputs, and its twin. Inputs come in pieces of the given features.
fn gram(gpu: &Gpu, name: &str, pieces: &[usize], layout: Layout, batches: usize) -> (Vec<f32>, Twin) {
    let kernels = Kernels::new(gpu, preset(name));
    let mut c = Commands::new(gpu).expect("commands");
    let mut random = Random::new(7);
    let (n, tokens, window): (usize, _, _) = (pieces.iter().sum(), 4 * layout.t4(), 4 * layout.window4());
    let h = square(gpu, &mut c, n, &vec![0.0; n * n]);
    let scratch = kernels.gram_scratch(n, tokens).expect("room");
    let mut want = Twin::new(n);
    want.value = vec![0.0; n * n];
    for _ in 0..batches {
        let x = random.values(n * tokens, 1.0);
        let mut first = 0;
        let on_gpu: Vec<_> = pieces
            .iter()
            .map(|&rows| {
                let part = &x[first * tokens..(first + rows) * tokens];
                first += rows;
                activation(gpu, rows, layout.t4(), part)
            })
            .collect();
        let rows: Vec<_> =
            on_gpu.iter().zip(pieces).map(|(a, &n)| a.rows(0, n, layout.t4()).expect("rows")).collect();
        kernels.gram(&mut c, &rows, layout, &scratch, &h).expect("gram");
        want = reference::gram(&x, &want.value, n, window, layout.length);
    }
    kernels.mirror(&mut c, &h).expect("mirror");
    (h.read(&mut c).expect("the matrix"), want)
}

#[test]
fn shapes_pieces_padding() {
    let mut worst = Worst::new("gram", 2.0);
    for name in presets() {
        for (pieces, windows, length, batches) in [
            (&[4][..], 1, 1, 1),
            (&[64], 1, 64, 1),
            (&[68], 3, 5, 2),
            (&[12, 56, 4], 2, 131, 3),
            (&[132], 5, 53, 1),
            (&[192], 1, 257, 2),
        ] {
            let layout = Layout { windows, length };
            let (got, want) = gram(gpu(), name, pieces, layout, batches);
            worst.check(&format!("{name} {pieces:?} {windows} x {length}, {batches} batches"), &got, &want);
        }
    }
}

/// Chunks of 16 rows: the same matrix to the last bit, since no sum is cut differently.
#[test]
fn row_chunks() {
    let small = limited(16 * 4 * 72);
    for name in presets() {
        let layout = Layout { windows: 2, length: 7 };
        let (whole, _) = gram(gpu(), name, &[72], layout, 2);
        let (chunked, _) = gram(&small, name, &[32, 40], layout, 2);
        common::same_bits(name, &chunked, &whole);
    }
    assert!(matches!(Square::new(&small, "test:square", 80), Err(GpuError::BindingTooLarge { .. })));
    assert!(matches!(Square::new(&small, "test:square", 6), Err(GpuError::Shape { .. })));
}

/// 32 768 tokens in 8 batches: within 1e-6 of the Frobenius norm, also with inputs that are all positive, whose sums only grow.
#[test]
fn many_tokens() {
    let (n, layout) = (32, Layout { windows: 16, length: 256 });
    let kernels = kernels("rows16");
    let mut random = Random::new(3);
    for offset in [0.0, 1.0] {
        let mut c = commands();
        let h = square(gpu(), &mut c, n, &vec![0.0; n * n]);
        let scratch = kernels.gram_scratch(n, 4 * layout.t4()).expect("room");
        let mut want = vec![0.0; n * n];
        for _ in 0..8 {
            let mut x = random.values(n * 4 * layout.t4(), 1.0);
            x.iter_mut().for_each(|v| *v += offset);
            let on_gpu = activation(gpu(), n, layout.t4(), &x);
            let rows = [on_gpu.rows(0, n, layout.t4()).expect("rows")];
            kernels.gram(&mut c, &rows, layout, &scratch, &h).expect("gram");
            want = reference::gram(&x, &want, n, 256, 256).value;
        }
        kernels.mirror(&mut c, &h).expect("mirror");
        let got = h.read(&mut c).expect("the matrix");
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let difference: Vec<f64> = got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w).collect();
        let relative = norm(&difference) / norm(&want);
        println!("offset {offset}: {relative:.2e} of the Frobenius norm");
        assert!(relative < 1e-6, "{relative:e}");
    }
}

/// Padding holds infinities, which must not come in.
#[test]
fn padding_does_not_count() {
    let layout = Layout { windows: 3, length: 6 };
    let (n, tokens) = (8, 4 * layout.t4());
    let mut x = Random::new(5).values(n * tokens, 1.0);
    let want = reference::gram(&x, &vec![0.0; n * n], n, 8, 6);
    for (i, v) in x.iter_mut().enumerate() {
        if i % 8 >= 6 {
            *v = 1e30;
        }
    }
    let kernels = kernels("rows16");
    let mut c = commands();
    let on_gpu = activation(gpu(), n, layout.t4(), &x);
    let h = square(gpu(), &mut c, n, &vec![0.0; n * n]);
    let scratch = kernels.gram_scratch(n, tokens).expect("room");
    kernels
        .gram(&mut c, &[on_gpu.rows(0, n, layout.t4()).expect("rows")], layout, &scratch, &h)
        .expect("gram");
    kernels.mirror(&mut c, &h).expect("mirror");
    Worst::new("padding", 2.0).check("gram", &h.read(&mut c).expect("the matrix"), &want);
}

#[test]
fn transpose() {
    let mut worst = Worst::new("transpose", 0.0);
    for name in presets() {
        let kernels = kernels(name);
        for (rows, windows, length) in [(4, 1, 4), (12, 3, 5), (68, 2, 130), (8, 5, 64)] {
            let layout = Layout { windows, length };
            let (t4, window) = (layout.t4(), 4 * layout.window4());
            let x = Random::new(9).values(rows * 4 * t4, 1.0);
            let (from, to) = (
                activation(gpu(), rows, t4, &x),
                activation(gpu(), 4 * t4, rows / 4, &untouched(rows * 4 * t4)),
            );
            let (a, b) = (from.rows(0, rows, t4).expect("rows"), to.rows(0, 4 * t4, rows / 4).expect("rows"));
            for (what, real, scale) in [(None, window, -1.0), (Some((layout, 0)), length, 0.5)] {
                let mut c = commands();
                kernels.transpose(&mut c, a, b, 0, what, scale).expect("transpose");
                let want = reference::transpose(&x, 4 * t4, window, real, scale);
                let got = read(&mut c, to.buffer(), x.len());
                worst.check(&format!("{name} {rows} x {windows} x {length}"), &got, &want);
            }
        }
    }
}

#[test]
fn mirror_and_diagonal() {
    let small = limited(32 * 4 * 76);
    for gpu in [gpu(), &small] {
        for n in [4, 8, 60, 76] {
            let kernels = Kernels::new(gpu, preset("tile64"));
            let mut c = Commands::new(gpu).expect("commands");
            let values = Random::new(n as u64).values(n * n, 1.0);
            let h = square(gpu, &mut c, n, &values);
            let diagonal = gpu.alloc("test:diagonal", 4 * n as u64).expect("room");
            kernels.diagonal(&mut c, &h, &diagonal).expect("diagonal");
            kernels.mirror(&mut c, &h).expect("mirror");
            let mut worst = Worst::new("mirror", 0.0);
            worst.check("diagonal", &read(&mut c, &diagonal, n), &reference::diagonal(&values, n));
            let got = h.read(&mut c).expect("the matrix");
            worst.check("mirror", &got, &reference::mirror(&values, n));
            let copy = Square::new(gpu, "test:copy", n).expect("room");
            copy.copy_from(&mut c, &h).expect("a copy");
            common::same_bits("copy", &copy.read(&mut c).expect("the copy"), &got);
        }
    }
}

/// Both products with a square matrix, whole and in chunks.
#[test]
fn products_with_squares() {
    let small = limited(32 * 4 * 68);
    let mut worst = Worst::new("square", 2.0);
    for gpu in [gpu(), &small] {
        for name in presets() {
            let kernels = Kernels::new(gpu, preset(name));
            let mut random = Random::new(11);
            let mut c = Commands::new(gpu).expect("commands");
            let (rows, n) = (21, 68);
            let values = random.values(n * n, 1.0);
            let h = square(gpu, &mut c, n, &values);
            let m = Matrix::random(rows + 4, n, Dtype::F16, &mut random);
            let (weight, bits) = (m.upload(gpu), random_mask(rows + 4, n, &mut random));
            let mask = upload_mask(gpu, &bits);
            for complement in [false, true] {
                let y = activation(gpu, rows, n / 4, &untouched(rows * n));
                let out = y.rows(0, rows, n / 4).expect("rows");
                kernels
                    .weight_times_square(&mut c, &weight, Some((&mask, complement)), 3..3 + rows, &h, out)
                    .expect("a product");
                let kept = reference::mask_apply(&m.values, &bits);
                let used: Vec<f32> =
                    m.values.iter().zip(&kept).map(|(w, k)| if complement { w - k } else { *k }).collect();
                let twin = reference::Product {
                    w: &used,
                    cols: n,
                    outputs: 3..3 + rows,
                    inputs: 0..n,
                    x: &values,
                    tokens: n,
                    bias: None,
                    before: None,
                };
                let got = read(&mut c, y.buffer(), rows * n);
                worst.check(&format!("{name} weight, {complement}"), &got, &reference::matmul_rows(&twin));
                // The same from f32.
                let a = activation(gpu, rows + 4, n / 4, &used);
                let z = activation(gpu, rows, n / 4, &untouched(rows * n));
                let out = z.rows(0, rows, n / 4).expect("rows");
                kernels
                    .times_square(&mut c, a.rows(3, rows, n / 4).expect("rows"), &h, out)
                    .expect("a product");
                let got = read(&mut c, z.buffer(), rows * n);
                worst.check(&format!("{name} f32, {complement}"), &got, &reference::matmul_rows(&twin));
            }
        }
    }
}
