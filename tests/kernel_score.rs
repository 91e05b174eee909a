//! One-shot masks on a device against f64: storage formats, patterns, row chunks, ties, zeros, folded grids.

mod common;
mod reference;

use common::{DTYPES, Matrix, Random, Worst, gpu, open, pattern, preset, presets, read, untouched, vector};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{AbsSums, Kernels, MaskBuffer, Score};
use maskwright::mask::{BitMask, Pattern};
use maskwright::model::Dtype;

const PATTERNS: [(usize, usize); 9] =
    [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (8, 16), (15, 16)];
/// One word with a tail, several words, more rows than a workgroup; of 16 columns each a few groups.
const SHAPES: [(usize, usize); 5] = [(1, 16), (3, 32), (37, 144), (70, 48), (5, 272)];

fn limited() -> Gpu {
    open(GpuOptions { checked: true, max_binding_bytes: Some(4 * 272 * 4), ..Default::default() })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Magnitude,
    Wanda,
    Ria,
}

/// The device's mask of `m`; the words held garbage before.
fn mask_of(gpu: &Gpu, preset_name: &str, m: &Matrix, h: &[f32], which: Which, pattern: Pattern) -> BitMask {
    let kernels = Kernels::new(gpu, preset(preset_name));
    let mut c = Commands::new(gpu).expect("commands");
    let weight = m.upload(gpu);
    let mask = MaskBuffer::new(gpu, "test:mask", m.rows, m.cols).expect("room");
    let count = m.rows * mask.words_per_row();
    c.write(mask.buffer(), 0, &vec![0xdead_beefu32; count]).expect("a write");
    let h = vector(gpu, h);
    let sums = AbsSums::new(gpu, m.rows + 3, m.cols + 4).expect("room");
    c.write(&sums.cols, 0, &untouched(m.cols + 4)).expect("a write");
    let score = match which {
        Which::Magnitude => Score::Magnitude,
        Which::Wanda => Score::Wanda(&h),
        Which::Ria => Score::Ria(&h, &sums),
    };
    if which == Which::Ria {
        kernels.abs_sums(&mut c, &weight, &sums).expect("sums");
    }
    kernels.score_mask(&mut c, &weight, score, pattern, &mask).expect("score_mask");
    let words = c.read(mask.buffer(), 0, count).expect("the mask");
    let mask = BitMask::from_words(m.rows, m.cols, words).expect("nothing behind the columns");
    mask.check(pattern).expect("a strict mask");
    mask
}

fn host_magnitude(m: &Matrix, pattern: Pattern) -> BitMask {
    let row = |r: usize, out: &mut [f32]| {
        for (out, w) in out.iter_mut().zip(&m.values[r * m.cols..]) {
            *out = w.abs();
        }
    };
    BitMask::top_n(m.rows, m.cols, pattern, row).expect("a mask")
}

#[test]
fn sums() {
    let small = limited();
    let mut worst = Worst::new("sums", 2.0);
    let mut random = Random::new(1);
    for gpu in [gpu(), &small] {
        for (name, dtype) in presets().into_iter().flat_map(|p| DTYPES.map(|d| (p, d))) {
            for (rows, cols) in [(1, 4), (3, 6), (17, 64), (130, 132), (31, 68)] {
                let kernels = Kernels::new(gpu, preset(name));
                let m = Matrix::random(rows, cols, dtype, &mut random);
                let sums = AbsSums::new(gpu, rows, cols).expect("room");
                let mut c = Commands::new(gpu).expect("commands");
                c.write(&sums.rows, 0, &untouched(rows)).expect("a write");
                c.write(&sums.cols, 0, &untouched(cols)).expect("a write");
                kernels.abs_sums(&mut c, &m.upload(gpu), &sums).expect("sums");
                let label = format!("{name} {dtype} {rows} x {cols}");
                let got = read(&mut c, &sums.rows, rows);
                worst.check(&format!("{label} rows"), &got, &reference::abs_sum_rows(&m.values, cols));
                let got = read(&mut c, &sums.cols, cols);
                worst.check(&format!("{label} columns"), &got, &reference::abs_sum_cols(&m.values, cols));
            }
        }
    }
}

/// Bit for bit the host's mask: few values with many ties, subnormal ones, zeros of both signs.
#[test]
fn score_mask_of_magnitudes() {
    let small = limited();
    let levels = [0.0, -0.0, 1e-40, -2e-40, 6e-8, -6e-8, 1e-3, 0.5, -0.5, 1.0, -1.0, 3e4];
    let mut random = Random::new(2);
    for gpu in [gpu(), &small] {
        for (dtype, (n, of)) in DTYPES.into_iter().flat_map(|d| PATTERNS.map(|p| (d, p))) {
            let pattern = pattern(n, of);
            for (rows, cols) in SHAPES.into_iter().chain([(2, 3 * of), (3, 7 * of)]) {
                let few: Vec<f32> = (0..rows * cols).map(|_| levels[random.below(levels.len())]).collect();
                let spread = random.values(rows * cols, 1.0);
                for values in [few, spread] {
                    let m = Matrix::new(rows, cols, dtype, &values);
                    let got = mask_of(gpu, "tile64", &m, &[1.0; 4], Which::Magnitude, pattern);
                    assert_eq!(got, host_magnitude(&m, pattern), "{dtype} {pattern} {rows} x {cols}");
                    let scores = reference::scores(&m.values, cols, None, false);
                    assert_eq!(got, reference::score_mask(&scores, cols, pattern), "the twin");
                }
            }
        }
    }
}

/// No exchange in a group raises the f64 score by more than rounding; most groups are those of f64 exactly.
#[test]
fn score_mask_of_norms() {
    let small = limited();
    let mut random = Random::new(3);
    let mut most = 0.0f64;
    for (gpu, name) in [(gpu(), "tile64"), (gpu(), "rows16"), (&small, "tile64")] {
        for (dtype, (n, of)) in DTYPES.into_iter().flat_map(|d| PATTERNS.map(|p| (d, p))) {
            let pattern = pattern(n, of);
            for (rows, cols) in SHAPES {
                let m = Matrix::random(rows, cols, dtype, &mut random);
                // Norms over ten orders of magnitude, some 0.
                let h: Vec<f32> = (0..cols)
                    .map(|_| match random.below(8) {
                        0 => 0.0,
                        _ => 10f32.powf(random.value(5.0)),
                    })
                    .collect();
                for which in [Which::Wanda, Which::Ria] {
                    let got = mask_of(gpu, name, &m, &h, which, pattern);
                    let scores = reference::scores(&m.values, cols, Some(&h), which == Which::Ria);
                    let gain = reference::best_exchange(&scores, cols, pattern, &got);
                    let allowed = 2.0 * reference::EPS * (4.0 + (rows.max(cols) as f64).sqrt());
                    let label = format!("{which:?} {name} {dtype} {pattern} {rows} x {cols}");
                    assert!(gain <= allowed, "{label}: an exchange gains {gain:e} of the score");
                    most = most.max(gain / allowed);
                    let want = reference::score_mask(&scores, cols, pattern);
                    // Norms of 0 tie exactly on both sides.
                    let differ = got.groups_changed(&want, pattern);
                    assert!(differ <= 2, "{label}: {differ} groups differ");
                }
            }
        }
    }
    println!("worst exchange: {most:.3} of what is allowed");
}

/// Equal scores go to the lower index; rows, columns, matrices and norms of zeros give masks, not NaN.
#[test]
fn ties_and_zeros() {
    let mut random = Random::new(4);
    for dtype in DTYPES {
        for (n, of) in PATTERNS {
            let pattern = pattern(n, of);
            let (rows, cols) = (9, 160);
            let few: Vec<f32> = (0..rows * cols).map(|_| (random.below(4) as f32 - 1.5) / 4.0).collect();
            let m = Matrix::new(rows, cols, dtype, &few);
            let magnitude = host_magnitude(&m, pattern);
            assert_eq!(mask_of(gpu(), "tile64", &m, &[7.3; 160], Which::Wanda, pattern), magnitude);
            let first = reference::score_mask(&vec![0.0; rows * cols], cols, pattern);
            let zero = Matrix::new(rows, cols, dtype, &vec![0.0; rows * cols]);
            for which in [Which::Wanda, Which::Ria] {
                assert_eq!(mask_of(gpu(), "tile64", &m, &[0.0; 160], which, pattern), first, "{which:?}");
                assert_eq!(mask_of(gpu(), "tile64", &zero, &[1.0; 160], which, pattern), first, "{which:?}");
            }
            // One row and some columns of zeros.
            let mut holes = random.values(rows * cols, 1.0);
            for (i, v) in holes.iter_mut().enumerate() {
                if i / cols == 4 || i % cols % 5 == 2 {
                    *v = 0.0;
                }
            }
            let m = Matrix::new(rows, cols, dtype, &holes);
            let h: Vec<f32> = (0..cols).map(|j| (j % 7) as f32).collect();
            let got = mask_of(gpu(), "tile64", &m, &h, Which::Ria, pattern);
            let scores = reference::scores(&m.values, cols, Some(&h), true);
            assert!(reference::best_exchange(&scores, cols, pattern, &got) < 1e-5, "{dtype} {pattern}");
        }
    }
}

/// More words than one dimension of the grid holds.
#[test]
fn folded_grid() {
    let pattern = Pattern::TWO_OF_FOUR;
    let few = open(GpuOptions { checked: true, max_workgroups: Some(255), ..Default::default() });
    let (rows, cols) = (255 * 64 + 77, 4);
    let mut random = Random::new(5);
    let values: Vec<f32> = (0..rows * cols).map(|_| random.below(256) as f32 - 128.0).collect();
    let m = Matrix::new(rows, cols, Dtype::BF16, &values);
    assert_eq!(
        mask_of(&few, "tile64", &m, &[1.0; 4], Which::Magnitude, pattern),
        host_magnitude(&m, pattern)
    );
}

#[test]
fn shapes_that_do_not_fit() {
    let kernels = common::kernels("tile64");
    let mut c = common::commands();
    let weight = Matrix::random(4, 12, Dtype::F32, &mut Random::new(6)).upload(gpu());
    let mask = |rows, cols| MaskBuffer::new(gpu(), "test:mask", rows, cols).expect("room");
    let h = vector(gpu(), &[1.0f32; 4]);
    let few = AbsSums::new(gpu(), 4, 4).expect("room");
    let shape = |r: Result<(), GpuError>| matches!(r, Err(GpuError::Shape { .. }));
    assert!(shape(kernels.score_mask(&mut c, &weight, Score::Magnitude, pattern(2, 4), &mask(4, 16))));
    assert!(shape(kernels.score_mask(&mut c, &weight, Score::Magnitude, pattern(2, 8), &mask(4, 12))));
    assert!(shape(kernels.score_mask(&mut c, &weight, Score::Wanda(&h), pattern(2, 4), &mask(4, 12))));
    assert!(shape(kernels.abs_sums(&mut c, &weight, &few)));
    assert_eq!(AbsSums::device_bytes(3, 5), 48);
}
