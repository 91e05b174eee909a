//! What the tests on a device share: one opened device per test binary, reproducible inputs, tensors on the device, and the
//! comparison with the f64 twins of `tests/reference`.
#![allow(dead_code)] // every test binary uses a part of it

pub mod differences;
pub mod model;

use std::io::Write;
use std::sync::OnceLock;

use half::{bf16, f16};
use maskwright::gpu::{Buffer, Commands, Gpu, GpuOptions};
use maskwright::kernel::{Activation, Heads, Kernels, MaskBuffer, Preset, Weight};
use maskwright::mask::{BitMask, Pattern};
use maskwright::model::{Dtype, TensorView};

use crate::reference::Twin;

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// The device of this test binary, with the shader compiler's bounds checks. No adapter is a failure, never a pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| open(GpuOptions { checked: true, ..Default::default() }))
}

/// Opens a device of its own and shows which one it is, whether or not the test's output is captured.
pub fn open(options: GpuOptions) -> Gpu {
    let gpu = Gpu::open(options).unwrap_or_else(|e| panic!("these tests need an adapter: {e}"));
    let binary =
        std::env::current_exe().ok().and_then(|p| Some(p.file_stem()?.to_string_lossy().into_owned()));
    let limit =
        gpu.options().max_binding_bytes.map(|b| format!(", bindings of {b} bytes")).unwrap_or_default();
    // The print macros are captured by the test harness, the stream itself is not.
    let line = format!("{}: adapter {}{limit}\n", binary.unwrap_or_default(), gpu.describe());
    std::io::stderr().lock().write_all(line.as_bytes()).expect("standard error");
    gpu
}

pub fn preset(name: &str) -> Preset {
    Preset::named(name).expect("a preset")
}

/// Those of the presets that this device runs.
pub fn offered(names: &[&'static str]) -> Vec<&'static str> {
    let here = Preset::offered(gpu());
    names.iter().copied().filter(|name| here.iter().any(|p| p.name == *name)).collect()
}

/// One preset of each family, as far as this device runs them: within a family only the rows of a product differ.
pub fn presets() -> Vec<&'static str> {
    offered(&["tile64", "rows16", "lanes32"])
}

pub fn kernels(name: &str) -> Kernels<'static> {
    Kernels::new(gpu(), preset(name))
}

pub fn commands() -> Commands<'static> {
    Commands::new(gpu()).expect("a command stream")
}

/// SplitMix64 (Steele, Lea, Flood 2014): reproducible on every machine, no state beyond one word.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    /// Uniform in `[-scale, scale)`.
    pub fn value(&mut self, scale: f32) -> f32 {
        ((self.word() >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32 * scale
    }

    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.value(scale)).collect()
    }
}

/// A matrix in one of the stored types, and what its elements are as f32.
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub dtype: Dtype,
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
}

impl Matrix {
    /// Rounds `values` to `dtype`.
    pub fn new(rows: usize, cols: usize, dtype: Dtype, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols);
        let mut bytes = Vec::new();
        let mut rounded = Vec::with_capacity(values.len());
        for &v in values {
            match dtype {
                Dtype::F32 => {
                    bytes.extend(v.to_le_bytes());
                    rounded.push(v);
                }
                Dtype::F16 => {
                    bytes.extend(f16::from_f32(v).to_le_bytes());
                    rounded.push(f16::from_f32(v).to_f32());
                }
                Dtype::BF16 => {
                    bytes.extend(bf16::from_f32(v).to_le_bytes());
                    rounded.push(bf16::from_f32(v).to_f32());
                }
                // Narrowed where it is uploaded.
                Dtype::F64 => {
                    bytes.extend(f64::from(v).to_le_bytes());
                    rounded.push(v);
                }
            }
        }
        Self { rows, cols, dtype, bytes, values: rounded }
    }

    pub fn random(rows: usize, cols: usize, dtype: Dtype, random: &mut Random) -> Self {
        Self::new(rows, cols, dtype, &random.values(rows * cols, 1.0))
    }

    pub fn upload(&self, gpu: &Gpu) -> Weight {
        let shape = [self.rows, self.cols];
        let view = TensorView { name: "test", dtype: self.dtype, shape: &shape, data: &self.bytes };
        Weight::upload(gpu, "test:weight", &view).expect("room")
    }
}

/// Half of the bits set, in no pattern: the products do not ask for one.
pub fn random_mask(rows: usize, cols: usize, random: &mut Random) -> BitMask {
    let mut mask = BitMask::zeros(rows, cols);
    for r in 0..rows {
        for c in 0..cols {
            mask.set(r, c, random.word() >> 63 == 1);
        }
    }
    mask
}

pub fn upload_mask(gpu: &Gpu, mask: &BitMask) -> MaskBuffer {
    MaskBuffer::upload(gpu, "test:mask", mask).expect("room")
}

/// `[rows, 4 * t4]` on the device.
pub fn activation(gpu: &Gpu, rows: usize, t4: usize, data: &[f32]) -> Activation {
    assert_eq!(data.len(), rows * 4 * t4);
    let out = Activation::new(gpu, "test:activation", rows, t4).expect("room");
    gpu.upload(out.buffer(), 0, bytemuck::cast_slice(data)).expect("an upload");
    out
}

pub fn vector<T: bytemuck::NoUninit>(gpu: &Gpu, data: &[T]) -> Buffer {
    gpu.alloc_init("test:vector", data).expect("room")
}

pub fn read(c: &mut Commands<'_>, buffer: &Buffer, count: usize) -> Vec<f32> {
    c.read(buffer, 0, count).expect("the result comes back")
}

/// NaN: what an output buffer holds before a kernel that must not read it.
pub fn untouched(count: usize) -> Vec<f32> {
    vec![f32::NAN; count]
}

/// Head sizes of models: no kernel may have room for some only.
pub const HEAD_SIZES: [usize; 8] = [32, 64, 80, 96, 112, 128, 192, 256];

/// Kinds of attention beside the usual one, for sequences of so many tokens: a scale, a cap that bends the scores slightly and one that
/// flattens them, windows from one key on, of whole vec4s and not, that leave out one key and none, and all at once.
pub fn kinds_of_attention(heads: Heads, length: usize) -> Vec<Heads> {
    let scaled = |scale| Heads { scale, ..heads };
    let capped = |cap| Heads { cap: Some(cap), ..heads };
    let near = |window| Heads { window: Some(window), ..heads };
    let mut out =
        vec![scaled(0.1), capped(30.0), capped(0.5), near(1), near(6), near(length), near(length + 3)];
    out.extend([16, 37].map(near));
    out.extend((length > 2).then(|| near(length - 1)));
    out.push(Heads { scale: 0.2, cap: Some(3.0), window: Some(7), ..heads });
    out.push(Heads { scale: 0.4, cap: Some(8.0), window: Some(34), ..heads });
    out
}

pub fn pattern(n: usize, m: usize) -> Pattern {
    Pattern::new(n, m).expect("a pattern")
}

/// The largest error of a test in units of its twin; shown at the end, with `--nocapture`.
pub struct Worst {
    name: &'static str,
    tolerance: f64,
    worst: f64,
}

impl Worst {
    pub fn new(name: &'static str, tolerance: f64) -> Self {
        Self { name, tolerance, worst: 0.0 }
    }

    /// Compares elementwise; fails with the worst element. Tokens that `counts` rejects are not compared.
    #[track_caller]
    pub fn check_where<T: Copy + Into<f64>>(
        &mut self,
        label: &str,
        got: &[T],
        want: &Twin,
        counts: impl Fn(usize) -> bool,
    ) {
        assert_eq!(got.len(), want.value.len(), "{label}: number of values");
        let mut at = None;
        let mut most = 0.0;
        for (i, &g) in got.iter().enumerate().filter(|&(i, _)| counts(i)) {
            let error = (g.into() - want.value[i]).abs();
            let units = if error == 0.0 { 0.0 } else { error / want.unit[i] };
            // NaN, on either side, is the worst of all.
            let units = if units.is_nan() { f64::INFINITY } else { units };
            if at.is_none() || units > most {
                (at, most) = (Some(i), units);
            }
        }
        self.worst = self.worst.max(most);
        let Some(i) = at else { return };
        assert!(
            most <= self.tolerance,
            "{label}: worst at index {i} (row {}, column {} of {}): {} for {}, off by {most:.3} units of {:e}, where {} are \
             allowed",
            i / want.width,
            i % want.width,
            want.width,
            got[i].into(),
            want.value[i],
            want.unit[i],
            self.tolerance
        );
    }

    #[track_caller]
    pub fn check<T: Copy + Into<f64>>(&mut self, label: &str, got: &[T], want: &Twin) {
        self.check_where(label, got, want, |_| true);
    }
}

impl Drop for Worst {
    fn drop(&mut self) {
        println!("{}: worst error {:.3} of {} units", self.name, self.worst, self.tolerance);
    }
}

/// Fails at the first element whose bits differ.
#[track_caller]
pub fn same_bits(label: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{label}: number of values");
    if let Some(i) = (0..got.len()).find(|&i| got[i].to_bits() != want[i].to_bits()) {
        panic!("{label}: index {i}: {:e} for {:e}", got[i], want[i]);
    }
}

/// Which test file checks each kernel against its twin. `tests/portability.rs` holds the list against the kernel table.
pub const TESTED: &[(&str, &str)] = &[
    ("abs_sum_cols", "kernel_score.rs"),
    ("abs_sum_rows", "kernel_score.rs"),
    ("activate", "kernel_activation.rs"),
    ("activate_backward", "kernel_activation.rs"),
    ("adam_mask", "kernel_adam.rs"),
    ("adam_patterns", "kernel_adam.rs"),
    ("adam_weight", "kernel_adam.rs"),
    ("add_scaled", "kernel_activation.rs"),
    ("attention", "kernel_decoder.rs"),
    ("attention_backward_kv", "kernel_backward_attention.rs"),
    ("attention_backward_lanes", "kernel_backward_attention.rs"),
    ("attention_backward_q", "kernel_backward_attention.rs"),
    ("attention_delta", "kernel_backward_attention.rs"),
    ("attention_lanes", "kernel_decoder.rs"),
    ("attention_step", "kernel_decode.rs"),
    ("clamp_backward", "kernel_activation.rs"),
    ("clamp_to", "kernel_activation.rs"),
    ("copy_columns", "kernel_decode.rs"),
    ("descent", "kernel_descent.rs"),
    ("damp", "kernel_factor.rs"),
    ("diagonal", "kernel_gram.rs"),
    ("effective", "kernel_soft.rs"),
    ("expected_pruned", "kernel_expected.rs"),
    ("expected_step", "kernel_expected.rs"),
    ("factor_block", "kernel_factor.rs"),
    ("gated", "kernel_activation.rs"),
    ("gated_backward", "kernel_activation.rs"),
    ("lstsq_residual", "kernel_lstsq.rs"),
    ("lstsq_step", "kernel_lstsq.rs"),
    ("mask_apply", "kernel_matmul.rs"),
    ("mask_sample", "kernel_mask.rs"),
    ("mask_top", "kernel_mask.rs"),
    ("mask_update", "kernel_mask.rs"),
    ("matmul_lanes", "kernel_matmul.rs"),
    ("matmul_rows", "kernel_matmul.rs"),
    ("matmul_tile", "kernel_matmul.rs"),
    ("mirror", "kernel_gram.rs"),
    ("norm", "kernel_norm.rs"),
    ("norm_backward", "kernel_norm.rs"),
    ("norm_backward_lanes", "kernel_norm.rs"),
    ("norm_lanes", "kernel_norm.rs"),
    ("peak", "kernel_decoder.rs"),
    ("prox24", "kernel_prox.rs"),
    ("rope", "kernel_decoder.rs"),
    ("row_dot", "kernel_panel.rs"),
    ("score_mask", "kernel_score.rs"),
    ("score_moments", "kernel_mask.rs"),
    ("sparsegpt_block", "kernel_sparsegpt.rs"),
    ("spread", "kernel_panel.rs"),
    ("squared_error", "kernel_backward_elementwise.rs"),
    ("transpose", "kernel_gram.rs"),
    ("vocab_gradient", "kernel_backward_elementwise.rs"),
    ("vocab_kl", "kernel_backward_elementwise.rs"),
    ("vocab_reduce", "kernel_decoder.rs"),
];
