//! Masked products against f64: every preset and storage format, edges of the tiles, ranges of inputs and outputs.

mod common;
mod reference;

use std::ops::Range;

use common::{
    DTYPES, Matrix, Random, Worst, activation, commands, gpu, kernels, offered, presets, random_mask, read,
    same_bits, upload_mask, vector,
};
use half::{bf16, f16};
use maskwright::gpu::{GpuError, Work};
use maskwright::kernel::{KERNELS, Kernels, Preset, Product};
use maskwright::mask::BitMask;
use maskwright::model::Dtype;
use reference::Twin;

/// Largest error allowed, in units of `sqrt(K) * eps * sum |w| |x|`.
const TOLERANCE: f64 = 2.0;

/// One product. `y` and `x` start at a row of a larger activation; what lies around must not change, or not matter.
struct Case {
    matrix: Matrix,
    mask: Option<BitMask>,
    complement: bool,
    bias: bool,
    accumulate: bool,
    outputs: Range<usize>,
    inputs: Range<usize>,
    t4: usize,
    x_first: usize,
    y_first: usize,
}

impl Case {
    fn new(n: usize, k: usize, t4: usize, dtype: Dtype, random: &mut Random) -> Self {
        Self {
            matrix: Matrix::random(n, k, dtype, random),
            mask: None,
            complement: false,
            bias: false,
            accumulate: false,
            outputs: 0..n,
            inputs: 0..k,
            t4,
            x_first: 0,
            y_first: 0,
        }
    }

    /// Mask, bias and accumulation at once.
    fn everything(mut self, random: &mut Random) -> Self {
        self.mask = Some(random_mask(self.matrix.rows, self.matrix.cols, random));
        (self.bias, self.accumulate) = (true, true);
        self
    }

    fn label(&self, kernels: &Kernels<'_>) -> String {
        format!(
            "{} {} [{}, {}] rows {:?} columns {:?} tokens {} mask {} complement {} bias {} accumulate {}",
            kernels.preset().name,
            self.matrix.dtype,
            self.matrix.rows,
            self.matrix.cols,
            self.outputs,
            self.inputs,
            4 * self.t4,
            self.mask.is_some(),
            self.complement,
            self.bias,
            self.accumulate
        )
    }

    /// Everything that is in the output's buffer afterwards, and what should be.
    fn run(&self, kernels: &Kernels<'static>, random: &mut Random) -> (Vec<f32>, Twin) {
        let (m, tokens) = (&self.matrix, 4 * self.t4);
        // Rows that pad the inputs to a multiple of four hold numbers: the weights there are zero.
        let used = self.inputs.len().next_multiple_of(4);
        let x = random.values((self.x_first + used) * tokens, 1.0);
        let bias = random.values(m.rows, 1.0);
        let y = random.values((self.y_first + self.outputs.len() + 2) * tokens, 1.0);
        let xs = activation(gpu(), self.x_first + used, self.t4, &x);
        let ys = activation(gpu(), self.y_first + self.outputs.len() + 2, self.t4, &y);
        let weight = m.upload(gpu());
        let mask = self.mask.as_ref().map(|mask| upload_mask(gpu(), mask));
        let biases = vector(gpu(), &bias);
        let product = Product {
            weight: &weight,
            mask: mask.as_ref(),
            complement: self.complement,
            bias: self.bias.then_some(&biases),
            outputs: self.outputs.clone(),
            inputs: self.inputs.clone(),
            x: xs.rows(self.x_first, used, self.t4).expect("rows of x"),
            y: ys.rows(self.y_first, self.outputs.len(), self.t4).expect("rows of y"),
            accumulate: self.accumulate,
        };
        let mut c = commands();
        kernels.matmul(&mut c, &product).expect("a product");
        let got = read(&mut c, ys.buffer(), y.len());

        let before = &y[self.y_first * tokens..][..self.outputs.len() * tokens];
        let twin = reference::Product {
            w: &m.values,
            cols: m.cols,
            outputs: self.outputs.clone(),
            inputs: self.inputs.clone(),
            x: &x[self.x_first * tokens..],
            tokens,
            bias: self.bias.then_some(&bias),
            before: self.accumulate.then_some(before),
        };
        // The complement is the product under the inverted mask.
        let used_mask = self.mask.as_ref().map(|mask| {
            let mut used = mask.clone();
            for r in 0..mask.rows() {
                (0..mask.cols()).for_each(|c| used.set(r, c, mask.get(r, c) != self.complement));
            }
            used
        });
        let unmasked = if kernels.preset().name.starts_with("lanes") {
            reference::matmul_lanes
        } else {
            reference::matmul_rows
        };
        let made = match (&used_mask, kernels.preset().name) {
            (mask, "tile64") => reference::matmul_tile(&twin, mask.as_ref()),
            (None, _) => unmasked(&twin),
            (Some(mask), _) => {
                let masked = reference::mask_apply(&m.values, mask);
                unmasked(&reference::Product { w: &masked, ..twin })
            }
        };
        let mut want = Twin::exact(&y, tokens);
        want.replace_rows(self.y_first, &made);
        (got, want)
    }

    fn check(&self, kernels: &Kernels<'static>, worst: &mut Worst, random: &mut Random) {
        let (got, want) = self.run(kernels, random);
        worst.check(&self.label(kernels), &got, &want);
    }
}

/// Rows, vec4s of tokens and inputs of a preset's tile.
fn tile(preset: &Preset) -> (usize, usize, usize) {
    match preset.name {
        "rows8" => (8, 8, 4),
        "rows16" => (16, 8, 4),
        "rows32" => (32, 8, 4),
        "lanes16" => (16, 16, 4),
        "lanes32" => (32, 16, 4),
        "tile64" => (64, 16, 16),
        other => panic!("the tile of preset {other} is not known to this test"),
    }
}

/// (outputs, inputs, vec4s of tokens): 1, tile - 1, tile, tile + 1, primes, asymmetric, inputs that pad, a long sum.
fn shapes(preset: &Preset) -> Vec<(usize, usize, usize)> {
    let (n, t, k) = tile(preset);
    vec![
        (1, 1, 1),
        (n - 1, k - 1, t - 1),
        (n, k, t),
        (n + 1, k + 1, t + 1),
        (2 * n + 1, 4, 1),
        (131, 67, 3),
        (3, 130, 2 * t + 5),
        (5, 1031, 2),
        (37, 254, 13),
    ]
}

/// `matmul_rows` and `matmul_lanes` (after `mask_apply`) and `matmul_tile` over the shapes, for every preset and storage format, without and with
/// mask, bias and accumulation.
#[test]
fn shapes_formats_presets() {
    let mut worst = Worst::new("matmul", TOLERANCE);
    let mut random = Random::new(1);
    for preset in Preset::offered(gpu()) {
        let kernels = kernels(preset.name);
        for dtype in DTYPES {
            for (n, k, t4) in shapes(&preset) {
                let plain = Case::new(n, k, t4, dtype, &mut random);
                plain.check(&kernels, &mut worst, &mut random);
                plain.everything(&mut random).check(&kernels, &mut worst, &mut random);
            }
        }
    }
}

/// Mask, bias and accumulation alone and in pairs.
#[test]
fn switches() {
    let mut worst = Worst::new("switches", TOLERANCE);
    let mut random = Random::new(2);
    for name in presets() {
        let kernels = kernels(name);
        for bits in 1..7 {
            let mut case = Case::new(70, 44, 19, Dtype::F16, &mut random).everything(&mut random);
            case.mask = case.mask.filter(|_| bits & 1 > 0);
            case.complement = bits % 4 == 1;
            (case.bias, case.accumulate) = (bits & 2 > 0, bits & 4 > 0);
            case.check(&kernels, &mut worst, &mut random);
        }
    }
}

/// Ranges of rows and columns, rows of larger activations: what lies outside keeps its bits.
#[test]
fn ranges() {
    let mut worst = Worst::new("ranges", TOLERANCE);
    let mut random = Random::new(3);
    for preset in Preset::offered(gpu()) {
        let kernels = kernels(preset.name);
        for (outputs, inputs) in
            [(0..70, 36..100), (5..69, 0..101), (69..70, 100..101), (33..34, 4..8), (1..66, 28..96)]
        {
            for all in [false, true] {
                let mut case = Case::new(70, 101, 5, Dtype::BF16, &mut random);
                (case.outputs, case.inputs) = (outputs.clone(), inputs.clone());
                (case.x_first, case.y_first) = (3, 2);
                if all {
                    case = case.everything(&mut random);
                }
                case.check(&kernels, &mut worst, &mut random);
            }
        }
    }
}

/// Nothing to make is no error.
#[test]
fn empty_range() {
    let mut random = Random::new(4);
    let mut case = Case::new(8, 8, 1, Dtype::F32, &mut random);
    case.outputs = 3..3;
    let (got, want) = case.run(&kernels("rows8"), &mut random);
    Worst::new("empty", 0.0).check("no outputs", &got, &want);
}

/// Equal inputs, equal bits: twice under each preset, and for `rows*` and `lanes*` under all of them (one invocation adds one
/// output in the same order whatever the number of rows beside it).
#[test]
fn same_bits_again() {
    let case = Case::new(67, 200, 9, Dtype::F16, &mut Random::new(5)).everything(&mut Random::new(6));
    let run = |name: &str| case.run(&kernels(name), &mut Random::new(7)).0;
    for name in ["tile64", "rows8"] {
        same_bits(name, &run(name), &run(name));
    }
    for name in offered(&["rows16", "rows32", "lanes16", "lanes32"]) {
        same_bits(name, &run(name), &run("rows8"));
    }
}

/// All 65 536 patterns of the two half formats, times one: the decoded weights, exactly. Infinities and NaN are not weights;
/// a driver may flush numbers below f32's or f16's normal range to zero.
#[test]
fn every_half_is_read_exactly() {
    const COLS: usize = 32;
    for (dtype, smallest) in [(Dtype::F16, 2f32.powi(-14)), (Dtype::BF16, f32::MIN_POSITIVE)] {
        let decode = |b: u16| match dtype {
            Dtype::F16 => f16::from_bits(b).to_f32(),
            _ => bf16::from_bits(b).to_f32(),
        };
        let patterns: Vec<u16> = (0..=u16::MAX).map(|b| if decode(b).is_finite() { b } else { 0 }).collect();
        let values: Vec<f32> = patterns.iter().map(|&b| decode(b)).collect();
        let bytes = patterns.iter().flat_map(|b| b.to_le_bytes()).collect();
        let rows = values.len() / COLS;
        let matrix = Matrix { rows, cols: COLS, dtype, bytes, values };
        let mut identity = vec![0.0; COLS * COLS];
        (0..COLS).for_each(|i| identity[i * COLS + i] = 1.0);
        for name in offered(&["tile64", "rows32", "lanes32"]) {
            let (weight, x) = (matrix.upload(gpu()), activation(gpu(), COLS, COLS / 4, &identity));
            let y = activation(gpu(), rows, COLS / 4, &common::untouched(rows * COLS));
            let mut c = commands();
            let (xs, ys) = (x.rows(0, COLS, COLS / 4), y.rows(0, rows, COLS / 4));
            let product = Product::new(&weight, xs.expect("x"), ys.expect("y"));
            kernels(name).matmul(&mut c, &product).expect("a product");
            let got = read(&mut c, y.buffer(), rows * COLS);
            let mut flushed = 0;
            for (i, (&g, &w)) in got.iter().zip(&matrix.values).enumerate() {
                // -0 becomes +0 in the sum
                let tiny = w != 0.0 && w.abs() < smallest && g == 0.0;
                flushed += usize::from(tiny);
                assert!(g == w || tiny, "{name} {dtype} pattern {:#06x}: {g:e} for {w:e}", patterns[i]);
            }
            println!("{name} {dtype}: {flushed} subnormal weights read as zero");
        }
    }
}

/// `mask_apply` alone, with a first row inside weight and mask: kept elements keep their bits (minus zero, subnormal and huge
/// ones too), the others are +0.
#[test]
fn mask_apply_keeps_bits() {
    let source = KERNELS.iter().find(|k| k.name == "mask_apply").expect("in the table");
    let mut random = Random::new(8);
    for (code, size) in [(0u32, 4usize), (1, 2), (2, 2)] {
        for (rows, cols, first, mask_first) in [(1, 4, 0, 0), (7, 36, 2, 3), (64, 128, 0, 1), (33, 500, 5, 9)]
        {
            let mask = random_mask(mask_first + rows, cols, &mut random);
            let all = (first + rows) * cols * size;
            let mut bytes: Vec<u8> = (0..all).map(|_| random.word() as u8).collect();
            for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
                if i % 5 == 0 {
                    // minus zero
                    element.fill(0);
                    element[size - 1] = 0x80;
                }
                if size == 4 && element[3] & 0x7f == 0x7f && element[2] & 0x80 != 0 {
                    element[3] ^= 0x40; // no NaN or infinity: an f32 may change on its way through a register
                }
            }
            let k4 = cols / 4;
            let count = (rows * k4) as u32;
            for lanes in [64, 256] {
                let defs = vec![("WEIGHT", code), ("LANES", lanes)];
                let pipeline =
                    gpu().pipeline(source.name, source.source, &defs).expect("mask_apply compiles");
                let (w, bits) = (vector(gpu(), &bytes), upload_mask(gpu(), &mask));
                let out = vector(gpu(), &vec![0xffu8; rows * cols * size + 16]);
                let words = bits.words_per_row() as u32;
                let params = [rows as u32, k4 as u32, words, mask_first as u32, (first * k4) as u32, 0, 0, 0];
                let mut c = commands();
                let bind = [w.all(), bits.buffer().all(), out.all()];
                let grid = [count.div_ceil(lanes), 1, 1];
                c.dispatch(&pipeline, &params, &bind, grid, Work::default()).expect("mask_apply");
                let got: Vec<u8> = c.read(&out, 0, rows * cols * size + 16).expect("the result");
                for (i, element) in got.chunks_exact(size).enumerate() {
                    let (r, col) = (i / cols, i % cols);
                    let at = ((first + r) * cols + col) * size;
                    if r >= rows {
                        assert!(element.iter().all(|&b| b == 0xff), "written behind the end");
                    } else if mask.get(mask_first + r, col) {
                        assert_eq!(
                            element,
                            &bytes[at..at + size],
                            "format {code} [{rows}, {cols}] ({r}, {col})"
                        );
                    } else {
                        assert!(
                            element.iter().all(|&b| b == 0),
                            "format {code} [{rows}, {cols}] ({r}, {col})"
                        );
                    }
                }
            }
        }
    }
}

/// Shapes that do not fit are an error of the call, not a panic and not a wild dispatch.
#[test]
fn wrong_shapes_are_refused() {
    let mut random = Random::new(9);
    let weight = Matrix::random(8, 12, Dtype::F32, &mut random).upload(gpu());
    let small = upload_mask(gpu(), &BitMask::ones(8, 8));
    let x = activation(gpu(), 16, 2, &random.values(16 * 8, 1.0));
    let y = activation(gpu(), 8, 2, &random.values(8 * 8, 1.0));
    let rows = |a: usize, n: usize, t4: usize| x.rows(a, n, t4).expect("rows of x");
    let out = |n: usize| y.rows(0, n, 2).expect("rows of y");
    let good = Product::new(&weight, rows(0, 12, 2), out(8));
    let bad = [
        ("fewer inputs", Product { x: rows(0, 8, 2), ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
        ("other tokens", Product { x: rows(0, 12, 1), ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
        ("fewer outputs", Product { y: out(7), ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
        ("rows beyond", Product { outputs: 1..9, ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
        ("columns beyond", Product { inputs: 4..16, ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
        ("odd start", Product { inputs: 2..6, ..Product::new(&weight, rows(0, 4, 2), out(8)) }),
        ("odd length", Product { inputs: 4..7, ..Product::new(&weight, rows(0, 4, 2), out(8)) }),
        ("other mask", Product { mask: Some(&small), ..Product::new(&weight, rows(0, 12, 2), out(8)) }),
    ];
    for name in ["tile64", "rows8"] {
        let kernels = kernels(name);
        let mut c = commands();
        kernels.matmul(&mut c, &good).expect("a product");
        for (what, product) in &bad {
            let error = kernels.matmul(&mut c, product).expect_err(what);
            assert!(matches!(error, GpuError::Shape { kernel: "matmul", .. }), "{what}: {error}");
        }
        c.finish().expect("the good product");
    }
    assert!(x.rows(1, 16, 2).is_err() && x.rows(0, 16, 3).is_err(), "more rows than there are");
}
