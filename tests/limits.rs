//! Small adapters: weights in row chunks, feed-forward and vocabulary in pieces, the mask kernels' logits in row chunks, work cut
//! into short submits, grids of more workgroups than one dimension holds. Where the summation order stays the same the bits do.

mod common;
mod reference;

use common::model::{Expected, Model, Output, forward};
use common::{
    Matrix, Random, Worst, activation, gpu, open, pattern, preset, random_mask, read, same_bits, untouched,
    upload_mask, vector,
};
use maskwright::gpu::{Commands, Gpu, GpuError, GpuOptions, Work};
use maskwright::kernel::{Activation, Heads, KERNELS, Kernels, Layout, MaskBuffer, Product, SampleAt};
use maskwright::model::{ActivationKind, Dtype};
use maskwright::nn::{NnError, Sizes, Workspace};

const PRESETS: [&str; 2] = ["tile64", "rows16"];

fn limited(bytes: u64) -> Gpu {
    let gpu = open(GpuOptions { checked: true, max_binding_bytes: Some(bytes), ..Default::default() });
    assert_eq!(gpu.max_binding_bytes(), bytes, "the adapter takes the limit");
    gpu
}

/// A masked product with bias; equal arguments, equal numbers, whatever the device.
fn product(gpu: &Gpu, name: &str, m: &Matrix, t4: usize) -> Vec<f32> {
    let mut random = Random::new(11);
    let mask = upload_mask(gpu, &random_mask(m.rows, m.cols, &mut random));
    let bias = vector(gpu, &random.values(m.rows, 1.0));
    let x = activation(gpu, m.cols, t4, &random.values(m.cols * 4 * t4, 1.0));
    let y = activation(gpu, m.rows, t4, &untouched(m.rows * 4 * t4));
    let weight = m.upload(gpu);
    let kernels = Kernels::new(gpu, preset(name));
    let mut c = Commands::new(gpu).expect("commands");
    let product = Product {
        mask: Some(&mask),
        bias: Some(&bias),
        ..Product::new(&weight, x.rows(0, m.cols, t4).expect("x"), y.rows(0, m.rows, t4).expect("y"))
    };
    kernels.matmul(&mut c, &product).expect("a product");
    read(&mut c, y.buffer(), m.rows * 4 * t4)
}

/// A matrix of several chunks, of which none is a multiple of the tile: the same bits as in one piece.
#[test]
fn weights_in_row_chunks() {
    let small = limited(65_536);
    let mut random = Random::new(1);
    // 65 536 / (260 * 2) = 126 rows a chunk, 65 536 / (260 * 4) = 63
    for (dtype, rows) in [(Dtype::F16, 500), (Dtype::F32, 200)] {
        let matrix = Matrix::random(rows, 260, dtype, &mut random);
        assert!(matrix.bytes.len() > 3 * 65_536, "several chunks");
        for name in PRESETS {
            same_bits(
                &format!("{dtype} {name}"),
                &product(&small, name, &matrix, 7),
                &product(gpu(), name, &matrix, 7),
            );
        }
    }
}

/// Submits of 1 ms cut a product into pieces of rows: the same bits.
#[test]
fn products_in_short_submits() {
    let short = open(GpuOptions { checked: true, max_submit_ms: 1, ..Default::default() });
    let matrix = Matrix::random(300, 128, Dtype::BF16, &mut Random::new(2));
    let flops = 2.0 * 300.0 * 128.0 * 256.0;
    let most = Commands::new(&short).expect("commands").max_dispatch_flops();
    println!("{flops:e} operations, at most {most:e} in a dispatch");
    for name in PRESETS {
        same_bits(name, &product(&short, name, &matrix, 64), &product(gpu(), name, &matrix, 64));
    }
}

/// What a binding cannot hold is an error that names the tensor, before anything is computed.
#[test]
fn too_large_is_an_error() {
    let small = limited(4096);
    let shape = [2, 4096];
    let row = maskwright::model::TensorView {
        name: "wide",
        dtype: Dtype::F32,
        shape: &shape,
        data: &[0; 2 * 4 * 4096],
    };
    let errors = [
        Activation::new(&small, "activations:test", 257, 1).err(),
        maskwright::kernel::Weight::upload(&small, "weights:wide", &row).err(),
    ];
    for error in errors {
        let error = error.expect("refused");
        assert!(matches!(error, GpuError::BindingTooLarge { limit: 4096, .. }), "{error}");
    }
    assert!(Activation::new(&small, "activations:test", 256, 1).is_ok());
    let error = small.alloc("weights:enormous", u64::MAX - 15).err().expect("refused");
    assert!(matches!(&error, GpuError::OutOfMemory { label, .. } if label == "weights:enormous"), "{error}");
    let model = Model::fixture("mistral_bf16");
    let sizes = Sizes::new(&model.config, Layout { windows: 2, length: 37 }, 4096);
    match Workspace::new(&small, &model.config, sizes) {
        Err(NnError::Gpu(GpuError::BindingTooLarge { label, .. })) => {
            assert!(label.starts_with("activations:"))
        }
        other => panic!("{:?}", other.err()),
    }
}

/// Compares two runs of a model; `None` = bit for bit, otherwise relative to the largest logit.
fn same_output(label: &str, got: &Output, want: &Output, tolerance: Option<f32>) {
    for (t, (g, w)) in got.logits.iter().zip(&want.logits).enumerate() {
        match tolerance {
            None => same_bits(&format!("{label} token {t}"), g, w),
            Some(tolerance) => {
                let size = w.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let off = g.iter().zip(w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
                assert!(off <= tolerance, "{label} token {t}: logits differ by {off:e} of the largest");
            }
        }
    }
    for (i, (g, w)) in got.losses.nll.iter().zip(&want.losses.nll).enumerate() {
        assert!((g - w).abs() <= 2e-5, "{label} loss {i}: {g} for {w}");
    }
}

/// A decoder of which no tensor fits a binding: output matrix and feed-forward weights in chunks, feed-forward layer and
/// vocabulary in pieces.
#[test]
fn decoder_in_pieces() {
    let (model, expected) = (Model::fixture("mistral_bf16"), Expected::of("mistral_bf16"));
    let masks = expected.masks(&model.config);
    let mut batch = expected.batch();
    batch.layout.windows = 1;
    batch.ids.truncate(batch.layout.length);
    // 64 rows of 40 (padded) tokens; the intermediate size is 112, the vocabulary 130, the widest weights 14 and 16 KiB
    let small = limited(10_240);
    let sizes = Sizes::new(&model.config, batch.layout, 10_240);
    assert_eq!((sizes.ffn_rows, sizes.vocab_rows), (64, 64), "pieces");
    for name in PRESETS {
        for masks in [None, Some(&masks)] {
            let label = format!("{name} masks {}", masks.is_some());
            let got = forward(&small, &preset(name), &model, &batch, masks);
            let want = forward(gpu(), &preset(name), &model, &batch, masks);
            // The second piece of the feed-forward layer is added to the sum of the first.
            same_output(&label, &got, &want, Some(2e-6));
        }
    }
}

/// Only the vocabulary in pieces and weights in chunks: the logits keep their bits.
#[test]
fn vocabulary_in_pieces() {
    let (model, expected) = (Model::fixture("llama3_rope_f16"), Expected::of("llama3_rope_f16"));
    let mut batch = expected.batch();
    batch.layout.windows = 1;
    batch.ids.truncate(batch.layout.length);
    // 122 rows of 40 tokens hold the 120 features of the feed-forward layer; the logits are cut by hand
    let (limit, kernels) = (19_520, Kernels::new(gpu(), preset("tile64")));
    let mut sizes = Sizes::new(&model.config, batch.layout, limit);
    assert_eq!((sizes.ffn_rows, sizes.vocab_rows), (120, 110));
    sizes.vocab_rows = 37;
    let weights = model.upload(gpu());
    let decoder = model.decoder(&kernels, &weights);
    let ws = Workspace::new(gpu(), &model.config, sizes).expect("room");
    let mut c = common::commands();
    let got = Output {
        logits: decoder.logits(&mut c, &ws, &batch, &[]).expect("logits"),
        losses: decoder.losses(&mut c, &ws, &batch, &[]).expect("losses"),
    };
    same_output("tile64", &got, &forward(gpu(), &preset("tile64"), &model, &batch, None), None);
}

/// A real model under 64 KiB a binding, where the largest matrices are cut and so is the feed-forward layer.
#[test]
#[cfg_attr(not(have_shared), ignore = "needs ../shared")]
fn real_model_in_64_kib() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260K");
    let model = Model::open(&folder);
    let mut random = Random::new(3);
    let layout = Layout { windows: 2, length: 128 };
    let ids = (0..256).map(|_| random.below(model.config.vocab_size) as u32).collect();
    let batch = maskwright::nn::Batch { ids, layout };
    let sizes = Sizes::new(&model.config, layout, 65_536);
    assert!(sizes.ffn_rows < model.config.intermediate_size && sizes.vocab_rows < model.config.vocab_size);
    let got = forward(&limited(65_536), &preset("rows16"), &model, &batch, None);
    same_output("rows16", &got, &forward(gpu(), &preset("rows16"), &model, &batch, None), Some(5e-6));
}

/// Sampling, top-N and update of logits that are cut in row chunks: bit for bit as in one piece.
#[test]
fn mask_kernels_in_row_chunks() {
    let small = limited(65_536);
    let at = SampleAt { seed: 7, step: 8, projection: 9 };
    let run = |gpu: &Gpu, (n, m): (usize, usize), rows: usize, cols: usize| {
        let kernels = Kernels::new(gpu, preset("tile64"));
        let logits = vector(gpu, &Random::new(4).values(rows * cols, 3.0));
        let masks = [0, 1].map(|_| MaskBuffer::new(gpu, "test:mask", rows, cols).expect("room"));
        let mut c = Commands::new(gpu).expect("commands");
        let p = pattern(n, m);
        kernels.mask_sample(&mut c, p, &logits, &masks[0], at).expect("sample");
        kernels.mask_update(&mut c, p, &logits, &masks[0], 0.75).expect("update");
        kernels.mask_top(&mut c, p, &logits, &masks[1]).expect("top");
        let words = masks.map(|m| c.read::<u32>(m.buffer(), 0, rows * m.words_per_row()).expect("words"));
        (words, read(&mut c, &logits, rows * cols))
    };
    for (p, rows, cols) in [((2, 4), 120, 516), ((1, 2), 77, 998), ((4, 8), 40, 1000)] {
        assert!(rows * cols * 4 > 2 * 65_536, "several chunks");
        let (got, want) = (run(&small, p, rows, cols), run(gpu(), p, rows, cols));
        assert!(got.0 == want.0, "{p:?}: masks differ");
        same_bits(&format!("{p:?}: logits"), &got.1, &want.1);
    }
}

/// A device with few workgroups in a dimension, so that grids are folded as large ones are.
fn folding() -> Gpu {
    let few =
        common::open(GpuOptions { checked: true, max_workgroups: Some(FEW as u32), ..Default::default() });
    assert_eq!(few.max_workgroups() as usize, FEW);
    few
}

const FEW: usize = 255;

/// More workgroups than a dimension has: the grid is folded into two, and nothing is done twice or left out.
#[test]
fn folded_grids() {
    let few = folding();
    let gpu = || &few;
    let kernels = Kernels::new(gpu(), preset("rows16"));
    let mut c = Commands::new(gpu()).expect("commands");

    // gated: one invocation per vec4, 64 a workgroup
    let (features, t4) = (65, 260);
    let count = features * 4 * t4;
    assert!(features * t4 > FEW * 64);
    let mut random = Random::new(5);
    let (gate, up) = (random.values(count, 3.0), random.values(count, 3.0));
    let (ga, ua) = (activation(gpu(), features, t4, &gate), activation(gpu(), features, t4, &up));
    let (g, u) = (ga.rows(0, features, t4).expect("rows"), ua.rows(0, features, t4).expect("rows"));
    kernels.gated(&mut c, ActivationKind::Silu, g, u).expect("gated");
    let got = read(&mut c, ga.buffer(), count);
    Worst::new("gated, folded", 8.0).check(
        "gated",
        &got,
        &reference::gated(ActivationKind::Silu, &gate, &up),
    );
    drop((ga, ua));

    // row_dot: one workgroup per row
    let rows = FEW + 70;
    let x = random.values(rows * 4, 1.0);
    let (xa, out) = (activation(gpu(), rows, 1, &x), vector(gpu(), &untouched(rows)));
    let all = xa.rows(0, rows, 1).expect("rows");
    kernels.row_dot(&mut c, all, all, &out, 0).expect("row_dot");
    let want = reference::row_dot(&x, &x, 4);
    Worst::new("row_dot, folded", 2.0).check("row_dot", &read(&mut c, &out, rows), &want);
}

/// The same for the masked copy of a tall matrix, a row of one vec4 each.
#[test]
fn folded_mask_apply() {
    let source = KERNELS.iter().find(|k| k.name == "mask_apply").expect("in the table");
    let few = folding();
    let gpu = || &few;
    let rows = FEW * 64 + 640;
    let weights: Vec<[u16; 4]> = (0..rows).map(|r| [r as u16 | 1, 2, 3, (r >> 16) as u16 | 4]).collect();
    let bits: Vec<u32> = (0..rows as u32).map(|r| r % 16).collect();
    let (w, b) = (vector(gpu(), &weights), vector(gpu(), &bits));
    let out = gpu().alloc("test:out", rows as u64 * 8).expect("room");
    let pipeline =
        gpu().pipeline(source.name, source.source, &vec![("WEIGHT", 1), ("LANES", 64)]).expect("it compiles");
    let params = [rows as u32, 1, 1, 0, 0, 0, 0, 0];
    let grid = [(rows as u32 / 64).div_ceil(2), 2, 1];
    let mut c = Commands::new(gpu()).expect("commands");
    c.dispatch(&pipeline, &params, &[w.all(), b.all(), out.all()], grid, Work::default())
        .expect("mask_apply");
    let got: Vec<[u16; 4]> = c.read(&out, 0, rows).expect("the result");
    for r in 0..rows {
        let want: [u16; 4] = std::array::from_fn(|i| if bits[r] >> i & 1 == 1 { weights[r][i] } else { 0 });
        assert_eq!(got[r], want, "row {r}");
    }
}

/// A batch of no tokens reaches no kernel.
#[test]
fn empty_batches_do_nothing() {
    let kernels = Kernels::new(gpu(), preset("rows16"));
    let x = activation(gpu(), 16, 1, &[1.0; 64]);
    let none = x.rows(0, 16, 0).expect("no tokens");
    let layout = Layout { windows: 0, length: 4 };
    let heads = Heads::new(2, 2, 8);
    let mut c = common::commands();
    kernels.attention(&mut c, [none, none, none], none, None, heads, layout).expect("nothing");
    kernels.gated(&mut c, ActivationKind::Silu, none, none).expect("nothing");
    c.finish().expect("nothing");
    same_bits("unchanged", &read(&mut c, x.buffer(), 64), &[1.0; 64]);
}
