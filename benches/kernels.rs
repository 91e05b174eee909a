//! `cargo bench` (or `./x bench`): every kernel at one or more typical sizes, with GFLOP/s, GB/s and the share of a
//! measured multiply-add peak, as a table and as JSON.
//!
//! Options after `--`: `--size 768x768x768` (outputs, inputs, tokens of the products), `--device N|NAME`, `--preset NAME` (default: all presets for the products, the chosen one for the
//! rest), `--json FILE`, `--only TEXT`.
//! Times are device timestamps where the adapter has them, else wall time of one submit; the best of several runs counts.

use std::time::Instant;

use maskwright::gpu::{Buffer, Commands, Gpu, GpuError, GpuOptions};
use maskwright::kernel::{
    AbsSums, Activation, Adam, AdamState, AttentionGradient, DIVERGENCE, Descent, GramFactor, Heads, Kernels,
    Layout, Learn, Lstsq, LstsqOptions, LstsqScratch, MaskBuffer, Masking, Moments, Noise, Norm, Preset,
    Product, Relaxation, Rotary, SampleAt, Score, Soft, SoftPatterns, SoftTopN, Softmax, SparseGpt,
    SparseGptScratch, Square, StateType, VOCAB_STATE, Weight, choose_preset, f32_bytes,
};
use maskwright::mask::Pattern;
use maskwright::model::{ActivationKind, Dtype, NormKind, TensorView};

struct Row {
    kernel: String,
    shape: String,
    preset: &'static str,
    ms: f64,
    gflops: f64,
    gbytes: f64,
    share: f64,
}

struct Bench<'g> {
    gpu: &'g Gpu,
    peak: f64,
    rows: Vec<Row>,
    only: Option<String>,
}

/// Runs after the first (which compiles) that count; the best is reported.
const RUNS: usize = 7;

impl<'g> Bench<'g> {
    /// Times `record` and adds a row. All dispatches of the call count as one.
    fn run(
        &mut self,
        name: &str,
        shape: String,
        preset: &'static str,
        mut record: impl FnMut(&mut Commands<'g>) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        if self.only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            return Ok(());
        }
        let mut commands = Commands::new(self.gpu)?;
        let mut best = (f64::MAX, 0.0, 0.0);
        let mut parts = Vec::new();
        for run in 0..=RUNS {
            self.gpu.clear_profile();
            let started = Instant::now();
            record(&mut commands)?;
            commands.finish()?;
            let wall = started.elapsed().as_secs_f64();
            let profile = self.gpu.profile();
            let measured: f64 = profile.iter().map(|r| r.ms * 1e-3).sum();
            let seconds = if measured > 0.0 { measured } else { wall };
            let flops: f64 = profile.iter().map(|r| r.gflops * r.ms * 1e6).sum();
            let bytes: f64 = profile.iter().map(|r| r.gbytes * r.ms * 1e6).sum();
            if run > 0 && seconds < best.0 {
                best = (seconds, flops, bytes);
                parts = profile;
            }
        }
        self.add(name.to_string(), shape.clone(), preset, best);
        // A call of several kernels (a mask applied before the product) also shows each of them.
        if parts.len() > 1 {
            for p in parts {
                let seconds = p.ms * 1e-3;
                let sums = (seconds, p.gflops * seconds * 1e9, p.gbytes * seconds * 1e9);
                self.add(format!("  {}", p.kernel), shape.clone(), preset, sums);
            }
        }
        Ok(())
    }

    /// Adds and prints a row of (seconds, operations, bytes).
    fn add(&mut self, kernel: String, shape: String, preset: &'static str, sums: (f64, f64, f64)) {
        let gflops = sums.1 / sums.0 * 1e-9;
        let row = Row {
            kernel,
            shape,
            preset,
            ms: sums.0 * 1e3,
            gflops,
            gbytes: sums.2 / sums.0 * 1e-9,
            // The first row is the peak itself.
            share: if self.peak > 0.0 { gflops / self.peak } else { 1.0 },
        };
        println!(
            "{:24} {:26} {:8} {:9.3} ms {:9.2} GFLOP/s {:8.2} GB/s {:6.1} % of peak",
            row.kernel,
            row.shape,
            row.preset,
            row.ms,
            row.gflops,
            row.gbytes,
            100.0 * row.share
        );
        self.rows.push(row);
    }

    fn peak(&mut self, kernels: &Kernels<'g>) -> Result<(), GpuError> {
        let out = Activation::new(self.gpu, "bench:peak", 1, 1 << 16)?;
        let name = kernels.preset().name;
        self.run("peak", "1024 workgroups".into(), name, |c| kernels.peak(c, &out, 1024, 512).map(|_| ()))?;
        self.peak = self.rows.last().map_or(0.0, |r| r.gflops);
        Ok(())
    }

    fn products(&mut self, presets: &[Preset], sizes: &[(usize, usize, usize)]) -> Result<(), GpuError> {
        for &(n, k, t) in sizes {
            for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
                let weight = weight(self.gpu, n, k, dtype)?;
                let mask = mask(self.gpu, n, k)?;
                let x = filled(self.gpu, k, t / 4)?;
                let y = Activation::new(self.gpu, "bench:y", n, t / 4)?;
                for preset in presets {
                    let kernels = Kernels::new(self.gpu, preset.clone());
                    for masked in [false, true] {
                        let name = format!("matmul {dtype}{}", if masked { " masked" } else { "" });
                        self.run(&name, format!("{n} x {k} x {t}"), preset.name, |c| {
                            let mut p = Product::new(&weight, x.rows(0, k, t / 4)?, y.rows(0, n, t / 4)?);
                            p.mask = masked.then_some(&mask);
                            kernels.matmul(c, &p)
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn decoder_kernels(&mut self, kernels: &Kernels<'g>) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let layout = Layout { windows: 8, length: 256 };
        let (h, t4) = (768usize, layout.t4());
        let (x, y) = (filled(gpu, h, t4)?, Activation::new(gpu, "bench:out", h, t4)?);
        let gain = gpu.alloc_init("bench:gain", &vec![1.0f32; h])?;
        let shape = format!("{h} x {}", 4 * t4);
        self.run("rms_norm", shape.clone(), name, |c| {
            kernels.norm(c, x.rows(0, h, t4)?, &Norm::rms(&gain, 1e-5), y.rows(0, h, t4)?)
        })?;
        let layer = Norm { kind: NormKind::Layer, bias: Some(&gain), ..Norm::rms(&gain, 1e-5) };
        self.run("layer_norm", shape.clone(), name, |c| {
            kernels.norm(c, x.rows(0, h, t4)?, &layer, y.rows(0, h, t4)?)
        })?;
        let table = gpu.alloc("bench:table", 64 * 256 * 4)?;
        self.run("rope", format!("12 heads of 64 x {}", 4 * t4), name, |c| {
            kernels.rope(c, x.rows(0, h, t4)?, Rotary::halves(64), &table, layout)
        })?;
        self.attention(kernels, Heads::new(12, 4, 64), layout)?;
        // stories3M, in a batch of 16.
        let small = Layout { windows: 16, length: 256 };
        self.attention(kernels, Heads::new(6, 2, 32), small)?;
        self.run("swiglu", shape.clone(), name, |c| {
            kernels.gated(c, ActivationKind::Silu, y.rows(0, h, t4)?, x.rows(0, h, t4)?)
        })?;
        self.run("activate gelu", shape.clone(), name, |c| {
            kernels.activate(c, ActivationKind::Gelu, y.rows(0, h, t4)?)
        })?;
        let targets = gpu.alloc("bench:targets", 16 * t4 as u64)?;
        let state = Activation::new(gpu, "bench:state", VOCAB_STATE, t4)?;
        self.run("vocab_reduce", shape, name, |c| {
            kernels.vocab_reduce(c, x.rows(0, h, t4)?, 0, &targets, state.rows(0, VOCAB_STATE, t4)?, None)
        })
    }

    /// Forward and backward pass.
    fn attention(&mut self, kernels: &Kernels<'g>, heads: Heads, layout: Layout) -> Result<(), GpuError> {
        let (gpu, name, t4) = (self.gpu, kernels.preset().name, layout.t4());
        let (many, few) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let queries = || Ok::<_, GpuError>((filled(gpu, many, t4)?, filled(gpu, many, t4)?));
        let keys = || Ok::<_, GpuError>((filled(gpu, few, t4)?, filled(gpu, few, t4)?));
        let ((q, o), (d_o, d_q), (k, v), (d_k, d_v)) = (queries()?, queries()?, keys()?, keys()?);
        let (lse, delta) = (filled(gpu, heads.heads, t4)?, filled(gpu, heads.heads, t4)?);
        let shape = format!(
            "{}/{} heads of {}, {} x {}",
            heads.heads, heads.kv_heads, heads.head_dim, layout.windows, layout.length
        );
        self.run("attention", shape.clone(), name, |c| {
            let (q, k, v, o) =
                (q.rows(0, many, t4)?, k.rows(0, few, t4)?, v.rows(0, few, t4)?, o.rows(0, many, t4)?);
            kernels.attention(c, [q, k, v], o, Some(lse.rows(0, heads.heads, t4)?), heads, layout)
        })?;
        self.run("attention_backward", shape, name, |c| {
            let gradient = AttentionGradient {
                q: q.rows(0, many, t4)?,
                k: k.rows(0, few, t4)?,
                v: v.rows(0, few, t4)?,
                o: o.rows(0, many, t4)?,
                lse: lse.rows(0, heads.heads, t4)?,
                d_o: d_o.rows(0, many, t4)?,
                delta: delta.rows(0, heads.heads, t4)?,
                d_q: d_q.rows(0, many, t4)?,
                d_k: d_k.rows(0, few, t4)?,
                d_v: d_v.rows(0, few, t4)?,
            };
            kernels.attention_backward(c, &gradient, heads, layout)
        })
    }

    /// Gradients of 4096 tokens.
    fn backward_kernels(&mut self, kernels: &Kernels<'g>) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let layout = Layout { windows: 16, length: 256 };
        let (h, vocab, t4) = (192usize, 4096usize, layout.t4());
        let (x, y, z) = (filled(gpu, h, t4)?, filled(gpu, h, t4)?, filled(gpu, h, t4)?);
        let gain = gpu.alloc_init("bench:gain", &vec![1.0f32; h])?;
        let tokens = gpu.alloc("bench:tokens", 16 * t4 as u64)?;
        let shape = format!("{h} x {}", 4 * t4);
        self.run("rms_norm_backward", shape.clone(), name, |c| {
            let (x, d_y, d_x) = (x.rows(0, h, t4)?, y.rows(0, h, t4)?, z.rows(0, h, t4)?);
            kernels.norm_backward(c, x, &Norm::rms(&gain, 1e-5), d_y, d_x, true)
        })?;
        let layer = Norm { kind: NormKind::Layer, ..Norm::rms(&gain, 1e-5) };
        self.run("layer_norm_backward", shape.clone(), name, |c| {
            let (x, d_y, d_x) = (x.rows(0, h, t4)?, y.rows(0, h, t4)?, z.rows(0, h, t4)?);
            kernels.norm_backward(c, x, &layer, d_y, d_x, true)
        })?;
        self.run("swiglu_to", shape.clone(), name, |c| {
            kernels.gated_to(c, ActivationKind::Silu, x.rows(0, h, t4)?, y.rows(0, h, t4)?, z.rows(0, h, t4)?)
        })?;
        self.run("swiglu_backward", shape.clone(), name, |c| {
            kernels.gated_backward(
                c,
                ActivationKind::Silu,
                x.rows(0, h, t4)?,
                y.rows(0, h, t4)?,
                z.rows(0, h, t4)?,
            )
        })?;
        self.run("squared_error", shape, name, |c| {
            let (y, target) = (y.rows(0, h, t4)?, z.rows(0, h, t4)?);
            kernels.squared_error(c, [y, target], None, 0.5, &tokens, layout)
        })?;
        // Any state will do whose sums are not zero.
        let (logits, dense) = (filled(gpu, vocab, t4)?, filled(gpu, vocab, t4)?);
        let state = Activation::new(gpu, "bench:state", VOCAB_STATE, t4)?;
        gpu.upload(state.buffer(), 0, bytemuck::cast_slice(&vec![vocab as f32; VOCAB_STATE * 4 * t4]))?;
        let targets = gpu.alloc_init("bench:targets", &vec![1u32; 4 * t4])?;
        let shape = format!("vocabulary of {vocab} x {}", 4 * t4);
        self.run("vocab_reduce", shape.clone(), name, |c| {
            kernels.vocab_reduce(
                c,
                logits.rows(0, vocab, t4)?,
                0,
                &targets,
                state.rows(0, VOCAB_STATE, t4)?,
                None,
            )
        })?;
        self.run("vocab_gradient", shape.clone(), name, |c| {
            let (logits, state) = (logits.rows(0, vocab, t4)?, state.rows(0, VOCAB_STATE, t4)?);
            kernels.vocab_gradient(c, logits, 0..vocab, &targets, Softmax { state, cap: None }, 0.5)
        })?;
        let sums = gpu.alloc("bench:divergence", f32_bytes(DIVERGENCE, 4 * t4))?;
        self.run("vocab_kl", shape, name, |c| {
            let (x, d, s) =
                (logits.rows(0, vocab, t4)?, dense.rows(0, vocab, t4)?, state.rows(0, VOCAB_STATE, t4)?);
            kernels.vocab_kl(
                c,
                [x, d],
                0..vocab,
                [Softmax { state: s, cap: None }, Softmax { state: s, cap: None }],
                &targets,
                (0.5, &sums),
            )
        })
    }

    fn mask_kernels(&mut self, kernels: &Kernels<'g>) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        for (n, m) in [(2, 4), (1, 4), (4, 8), (8, 16)] {
            let Ok(pattern) = Pattern::new(n, m) else {
                continue;
            };
            let (rows, cols) = (1024usize, 1024usize);
            let logits = gpu.alloc("bench:logits", (rows * cols * 4) as u64)?;
            let mask = MaskBuffer::new(gpu, "bench:mask", rows, cols)?;
            let shape = format!("{pattern} of {rows} x {cols}");
            let at = SampleAt { seed: 1, step: 1, projection: 0 };
            self.run("mask_sample", shape.clone(), name, |c| {
                kernels.mask_sample(c, pattern, &logits, &mask, at)
            })?;
            self.run("mask_update", shape.clone(), name, |c| {
                kernels.mask_update(c, pattern, &logits, &mask, 0.01)
            })?;
            self.run("mask_top", shape.clone(), name, |c| kernels.mask_top(c, pattern, &logits, &mask))?;
            let buffer =
                || -> Result<Buffer, GpuError> { gpu.alloc("bench:moments", (rows * cols * 12) as u64) };
            let moments = Moments { sums: buffer()?, squares: buffer()? };
            self.run("score_moments", shape, name, |c| {
                kernels.score_moments(c, pattern, &logits, &mask, [0.1, 0.2, 0.3], &moments)
            })?;
        }
        Ok(())
    }

    fn one_shot_kernels(&mut self, kernels: &Kernels<'g>, n: usize) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let h = Square::new(gpu, "bench:gram", n)?;
        // Neighbouring inputs alike; positive definite.
        let entry = |i: usize| 0.5f32.powi((i / n).abs_diff(i % n).min(60) as i32);
        h.write(&mut Commands::new(gpu)?, &(0..n * n).map(entry).collect::<Vec<_>>())?;
        let factor = GramFactor::new(gpu, "bench:factor", n)?;
        self.run("factor", format!("{n} x {n}"), name, |c| kernels.factor(c, &h, 0.01, &factor).map(|_| ()))?;
        kernels.factor(&mut Commands::new(gpu)?, &h, 0.01, &factor)?;
        let panel = filled(gpu, n, n / 4)?;
        let arrived = filled(gpu, n, n / 4)?;
        let (mask, scratch) = (mask(gpu, n, n)?, SparseGptScratch::new(gpu, n, n)?);
        let job = SparseGpt {
            weights: panel.rows(0, n, n / 4)?,
            arrived: arrived.rows(0, n, n / 4)?,
            factor: &factor,
            pattern: Pattern::TWO_OF_FOUR,
            mask: &mask,
            first_row: 0,
        };
        self.run("sparsegpt", format!("2:4 of {n} x {n}"), name, |c| kernels.sparsegpt(c, &job, &scratch))
    }

    /// Gram matrix of 4096 tokens, and one sweep of descent from an arbitrary mask.
    fn gram_kernels(&mut self, kernels: &Kernels<'g>, n: usize) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let layout = Layout { windows: 16, length: 256 };
        let (x, h) = (filled(gpu, n, layout.t4())?, Square::new(gpu, "bench:gram", n)?);
        let scratch = kernels.gram_scratch(n, 4 * layout.t4())?;
        self.run("gram", format!("{n} x 4096"), name, |c| {
            kernels.gram(c, &[x.rows(0, n, layout.t4())?], layout, &scratch, &h)?;
            kernels.mirror(c, &h)
        })?;
        let (w, mask) = (weight(gpu, n, n, Dtype::F32)?, mask(gpu, n, n)?);
        let products = Activation::new(gpu, "bench:products", n, n / 4)?;
        let moves = Descent::moves(gpu, n)?;
        self.run("descent", format!("2:4 of {n} x {n}, a sweep"), name, |c| {
            let y = products.rows(0, n, n / 4)?;
            kernels.weight_times_square(c, &w, Some((&mask, true)), 0..n, &h, y)?;
            let pattern = Pattern::TWO_OF_FOUR;
            let sweep = Descent {
                weight: &w,
                h: &h,
                mask: &mask,
                pattern,
                rows: 0..n,
                products: &products,
                moves: &moves,
                pass: 0,
                sweeps: 1,
                tolerance: 1e-6,
            };
            kernels.descent(c, &sweep).map(|_| ())
        })
    }

    fn score_kernels(&mut self, kernels: &Kernels<'g>) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let (rows, cols) = (1024usize, 1024usize);
        let (w, bits) = (weight(gpu, rows, cols, Dtype::BF16)?, mask(gpu, rows, cols)?);
        let norms = gpu.alloc_init("bench:norms", &vec![1.0f32; cols])?;
        let sums = AbsSums::new(gpu, rows, cols)?;
        let shape = format!("2:4 of {rows} x {cols} bf16");
        self.run("abs_sums", shape.clone(), name, |c| kernels.abs_sums(c, &w, &sums))?;
        for (label, score) in [
            ("score_mask magnitude", Score::Magnitude),
            ("score_mask wanda", Score::Wanda(&norms)),
            ("score_mask ria", Score::Ria(&norms, &sums)),
        ] {
            self.run(label, shape.clone(), name, |c| {
                kernels.score_mask(c, &w, score, Pattern::TWO_OF_FOUR, &bits)
            })?;
        }
        let (rows, n) = (512usize, 512usize);
        let (weight, mask) = (weight(gpu, rows, n, Dtype::BF16)?, mask(gpu, rows, n)?);
        let h = Square::new(gpu, "bench:square", n)?;
        let values: Vec<f32> =
            (0..n * n).map(|i| if i / n == i % n { (i % 13) as f32 } else { 0.1 }).collect();
        h.write(&mut Commands::new(gpu)?, &values)?;
        let (scratch, out) = (LstsqScratch::new(gpu, rows, n)?, filled(gpu, rows, n / 4)?);
        let options = LstsqOptions { tolerance: 0.0, max_iterations: 8, ..LstsqOptions::default() };
        let job = Lstsq { weight: &weight, mask: &mask, rows: 0..rows, h: &h, options };
        self.run("lstsq", format!("8 steps of {rows} x {n}"), name, |c| {
            kernels.lstsq(c, &job, &scratch, out.rows(0, rows, n / 4)?).map(|_| ())
        })
    }

    /// A step of learning the masks of one projection by backpropagation, without the products.
    fn soft_kernels(&mut self, kernels: &Kernels<'g>, rows: usize, cols: usize) -> Result<(), GpuError> {
        let gpu = self.gpu;
        let name = kernels.preset().name;
        let w = weight(gpu, rows, cols, Dtype::F32)?;
        let bits = mask(gpu, rows, cols)?;
        let (out, turned) = (filled(gpu, rows, cols / 4)?, filled(gpu, cols, rows / 4)?);
        let gradient = filled(gpu, rows, cols / 4)?;
        let adam = Adam { rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 10 };
        let at = SampleAt { seed: 1, step: 1, projection: 0 };
        let logits: Vec<f32> = (0..rows * cols * 10).map(|i| ((i * 31) % 17) as f32 * 0.1).collect();
        let logits = gpu.alloc_init("bench:logits", &logits)?;
        let tall = |k: &Kernels<'g>, c: &mut Commands<'g>, masking: Masking<'_>, turn: bool| {
            let to = if turn { turned.rows(0, cols, rows / 4)? } else { out.rows(0, rows, cols / 4)? };
            k.effective(c, &w, masking, 0..rows, to, turn)
        };
        let shape = format!("{rows} x {cols} f32");
        for turn in [false, true] {
            let label = if turn { "effective transposed" } else { "effective" };
            self.run(&format!("{label} bits"), shape.clone(), name, |c| {
                tall(kernels, c, Masking::Bits(&bits), turn)
            })?;
        }
        for (n, m) in [(2, 4), (4, 8), (8, 16)] {
            let Ok(pattern) = Pattern::new(n, m) else {
                continue;
            };
            for noise in [None, Some(Noise { at, scale: 1.0 })] {
                let noisy = if noise.is_some() { " noise" } else { "" };
                let shape = format!("{pattern} of {shape}{noisy}");
                for state in [StateType::F32, StateType::F16] {
                    let moments = AdamState::new(gpu, "bench:moments", rows * cols, state)?;
                    for (law, relaxation) in [
                        ("rounds", Relaxation::Rounds { removal: 2.0 }),
                        ("fixed size", Relaxation::FixedSize),
                        ("draws", Relaxation::Draws),
                    ] {
                        if relaxation == Relaxation::Draws && n > Relaxation::MOST_DRAWS {
                            continue;
                        }
                        let top =
                            SoftTopN { pattern, logits: &logits, state, temperature: 0.5, relaxation, noise };
                        for turn in [false, true] {
                            let label = if turn { "effective transposed" } else { "effective" };
                            self.run(&format!("{label} {law} {state:?}"), shape.clone(), name, |c| {
                                tall(kernels, c, Masking::TopN(top), turn)
                            })?;
                        }
                        self.run(&format!("adam_mask {law} {state:?}"), shape.clone(), name, |c| {
                            let g = gradient.rows(0, rows, cols / 4)?;
                            let into = Learn::Step(&moments, adam);
                            kernels.learn_logits(c, &w, Soft::TopN(top), g, 0..rows, into)
                        })?;
                    }
                }
                if pattern.combinations() > SoftPatterns::MOST {
                    continue;
                }
                let soft = SoftPatterns { pattern, logits: &logits, temperature: 0.5, scale: 1.0, noise };
                for turn in [false, true] {
                    let label = if turn { "effective transposed" } else { "effective" };
                    self.run(&format!("{label} patterns"), shape.clone(), name, |c| {
                        tall(kernels, c, Masking::Patterns(soft), turn)
                    })?;
                }
                let values = rows * (cols / m) * pattern.combinations() as usize;
                let moments = AdamState::new(gpu, "bench:moments", values, StateType::F32)?;
                self.run("adam_patterns", shape.clone(), name, |c| {
                    let g = gradient.rows(0, rows, cols / 4)?;
                    let into = Learn::Step(&moments, adam);
                    kernels.learn_logits(c, &w, Soft::Patterns(soft, 1e-5), g, 0..rows, into)
                })?;
            }
        }
        self.run("prox24", shape.clone(), name, |c| kernels.prox24(c, &w, 0..rows, 1.0))?;
        let moments = AdamState::new(gpu, "bench:moments", rows * cols, StateType::F32)?;
        self.run("adam_weight", shape, name, |c| {
            let g = gradient.rows(0, rows, cols / 4)?;
            kernels.adam_weight(c, &w, Some(&bits), g, 0..rows, (&moments, adam))
        })
    }

    fn json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "kernel": r.kernel, "shape": r.shape, "preset": r.preset, "ms": r.ms,
                    "gflops": r.gflops, "gbytes": r.gbytes, "share_of_peak": r.share,
                })
            })
            .collect();
        serde_json::json!({
            "adapter": self.gpu.describe(),
            "commit": commit(),
            "version": env!("CARGO_PKG_VERSION"),
            "peak_gflops": self.peak,
            "rows": rows,
        })
    }
}

fn commit() -> Option<String> {
    let out = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}

fn weight(gpu: &Gpu, n: usize, k: usize, dtype: Dtype) -> Result<Weight, GpuError> {
    let value = |i: usize| ((i * 7919) % 31) as f32 * 0.01 - 0.15;
    let data: Vec<u8> = match dtype {
        Dtype::F64 => (0..n * k).flat_map(|i| f64::from(value(i)).to_le_bytes()).collect(),
        Dtype::F32 => (0..n * k).flat_map(|i| value(i).to_le_bytes()).collect(),
        Dtype::F16 => (0..n * k).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect(),
        Dtype::BF16 => (0..n * k).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
    };
    Weight::upload(gpu, "bench:weight", &TensorView { name: "bench", dtype, shape: &[n, k], data: &data })
}

fn mask(gpu: &Gpu, n: usize, k: usize) -> Result<MaskBuffer, GpuError> {
    let mask = MaskBuffer::new(gpu, "bench:mask", n, k)?;
    gpu.upload(mask.buffer(), 0, &vec![0x35u8; n * k.div_ceil(32) * 4])?;
    Ok(mask)
}

fn filled(gpu: &Gpu, rows: usize, t4: usize) -> Result<Activation, GpuError> {
    let x = Activation::new(gpu, "bench:x", rows, t4)?;
    let data: Vec<f32> = (0..rows * t4 * 4).map(|i| ((i * 31) % 17) as f32 * 0.1 - 0.8).collect();
    gpu.upload(x.buffer(), 0, bytemuck::cast_slice(&data))?;
    Ok(x)
}

fn option(args: &[String], name: &str) -> Option<String> {
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let gpu =
        Gpu::open(GpuOptions { device: option(&args, "--device"), profile: true, ..GpuOptions::default() })?;
    println!("adapter: {}", gpu.describe());
    let forced = option(&args, "--preset");
    let chosen = choose_preset(&gpu, forced.as_deref())?;
    println!("preset: {}", chosen.name);
    let presets = if forced.is_some() { vec![chosen.clone()] } else { Preset::offered(&gpu) };
    let kernels = Kernels::new(&gpu, chosen);
    let mut bench = Bench { gpu: &gpu, peak: 0.0, rows: Vec::new(), only: None };
    bench.peak(&kernels)?;
    bench.only = option(&args, "--only");
    // A GPU needs a larger product to fill it.
    let mut sizes = vec![(768, 768, 768)];
    if bench.peak > 500.0 {
        sizes.extend([(2048, 2048, 2048), (4096, 4096, 4096)]);
    }
    if let Some(size) = option(&args, "--size") {
        let parts: Vec<usize> = size.split('x').map(str::parse).collect::<Result<_, _>>()?;
        let &[n, k, t] = parts.as_slice() else {
            return Err("--size takes outputs x inputs x tokens, as 768x768x768".into());
        };
        sizes = vec![(n, k, t.next_multiple_of(4))];
    }
    bench.products(&presets, &sizes)?;
    bench.decoder_kernels(&kernels)?;
    bench.backward_kernels(&kernels)?;
    bench.mask_kernels(&kernels)?;
    for n in if bench.peak > 500.0 { vec![512, 4096] } else { vec![192, 512] } {
        bench.one_shot_kernels(&kernels, n)?;
        bench.gram_kernels(&kernels, n)?;
    }
    bench.score_kernels(&kernels)?;
    let (rows, cols) = if bench.peak > 500.0 { (4096, 4096) } else { (512, 192) };
    bench.soft_kernels(&kernels, rows, cols)?;
    if let Some(file) = option(&args, "--json") {
        std::fs::write(&file, format!("{:#}\n", bench.json()))?;
        println!("written: {file}");
    }
    Ok(())
}
