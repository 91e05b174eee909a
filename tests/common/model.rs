//! Opening the models of `tests/fixtures` and what transformers computed from them.

use std::path::{Path, PathBuf};

use maskwright::gpu::{Commands, Gpu};
use maskwright::kernel::{Kernels, Layout, Preset};
use maskwright::mask::{BitMask, MaskSet, Pattern};
use maskwright::model::{Checkpoint, Config};
use maskwright::nn::{Batch, Decoder, DecoderWeights, Embedding, MaskBank, Sizes, TokenLoss, Workspace};
use safetensors::SafeTensors;

/// The random models, one per family and storage format (tests/fixtures/README.md).
pub const FIXTURES: [&str; 5] =
    ["llama_gqa_f32", "llama3_rope_f16", "mistral_bf16", "qwen2_bf16", "llama_mha_hd128_f16"];

/// A test for each of [`FIXTURES`] that calls `$check` with its name.
#[macro_export]
macro_rules! every_fixture {
    ($check:ident) => {
        #[test]
        fn llama_f32_tied_grouped_queries() {
            $check("llama_gqa_f32");
        }
        #[test]
        fn llama3_f16_scaled_rope_shards() {
            $check("llama3_rope_f16");
        }
        #[test]
        fn mistral_bf16() {
            $check("mistral_bf16");
        }
        #[test]
        fn qwen2_bf16_biases() {
            $check("qwen2_bf16");
        }
        #[test]
        fn llama_f16_heads_of_128() {
            $check("llama_mha_hd128_f16");
        }
    };
}

pub struct Model {
    pub config: Config,
    pub checkpoint: Checkpoint,
}

impl Model {
    pub fn open(folder: &Path) -> Self {
        let config = Config::read(folder).unwrap_or_else(|e| panic!("{e}"));
        let checkpoint = Checkpoint::open(folder, &config).unwrap_or_else(|e| panic!("{e}"));
        Self { config, checkpoint }
    }

    pub fn fixture(name: &str) -> Self {
        Self::open(&fixtures().join("models").join(name))
    }

    pub fn upload(&self, gpu: &Gpu) -> DecoderWeights {
        DecoderWeights::upload(gpu, &self.checkpoint, &self.config, |_| ()).expect("room for the weights")
    }

    pub fn decoder<'g, 'm>(
        &'m self,
        kernels: &'m Kernels<'g>,
        weights: &'m DecoderWeights,
    ) -> Decoder<'g, 'm> {
        let embedding = Embedding::new(&self.checkpoint, &self.config).expect("an embedding");
        Decoder { kernels, config: &self.config, weights, embedding }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `expected/NAME.safetensors`.
pub struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    pub fn of(name: &str) -> Self {
        let path = fixtures().join("expected").join(format!("{name}.safetensors"));
        Self { bytes: std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file")
    }

    fn read<const N: usize, T>(&self, name: &str, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(N).map(|c| from(c.try_into().expect("whole elements"))).collect()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.read(name, f32::from_le_bytes)
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<Vec<f32>> {
        self.file().tensor(name).is_ok().then(|| self.f32(name))
    }

    /// The two windows.
    pub fn batch(&self) -> Batch {
        let shape = self.file().tensor("input_ids").expect("input_ids").shape().to_vec();
        let ids = self.read("input_ids", i64::from_le_bytes).into_iter().map(|id| id as u32).collect();
        Batch { ids, layout: Layout { windows: shape[0], length: shape[1] } }
    }

    /// The masks of all projections.
    pub fn masks(&self, config: &Config) -> MaskSet {
        let mut set = MaskSet::new(Pattern::new(2, 4).expect("2:4"));
        for p in config.projections() {
            let words = self.read(&format!("mask.{}", p.name), u32::from_le_bytes);
            let mask =
                BitMask::from_words(p.rows, p.cols, words).unwrap_or_else(|e| panic!("{}: {e}", p.name));
            set.masks.insert(p.name, mask);
        }
        set.check().expect("strict masks");
        set
    }
}

/// Logits and losses of one batch.
pub struct Output {
    /// `[tokens, vocab]`.
    pub logits: Vec<Vec<f32>>,
    pub losses: TokenLoss,
}

/// Runs `batch` through `model` on `gpu`, dense or under `masks`.
pub fn forward(gpu: &Gpu, preset: &Preset, model: &Model, batch: &Batch, masks: Option<&MaskSet>) -> Output {
    let kernels = Kernels::new(gpu, preset.clone());
    let weights = model.upload(gpu);
    let decoder = model.decoder(&kernels, &weights);
    let sizes = Sizes::new(&model.config, batch.layout, gpu.max_binding_bytes());
    let ws = Workspace::new(gpu, &model.config, sizes).unwrap_or_else(|e| panic!("{e}"));
    let bank = match masks {
        Some(set) => MaskBank::upload(gpu, &model.config, set).expect("room for the masks"),
        None => MaskBank::dense(&model.config),
    };
    let mut c = Commands::new(gpu).expect("a command stream");
    let logits = decoder.logits(&mut c, &ws, batch, &bank.refs()).unwrap_or_else(|e| panic!("{e}"));
    let losses = decoder.losses(&mut c, &ws, batch, &bank.refs()).unwrap_or_else(|e| panic!("{e}"));
    Output { logits, losses }
}
