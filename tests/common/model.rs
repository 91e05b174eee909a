//! Opening the models of `tests/fixtures` and what transformers computed from them.

use std::path::{Path, PathBuf};

use maskwright::gpu::{Commands, Gpu};
use maskwright::kernel::{Activation, Kernels, Layout, Preset, Rows};
use maskwright::mask::{BitMask, MaskSet, Pattern};
use maskwright::model::{Architecture, Checkpoint};
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
    pub config: Architecture,
    pub checkpoint: Checkpoint,
}

impl Model {
    pub fn open(folder: &Path) -> Self {
        let config = Architecture::read(folder).unwrap_or_else(|e| panic!("{e}"));
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

/// The folder of one of the models of every family (tests/fixtures/README.md).
pub fn family_folder(name: &str) -> PathBuf {
    fixtures().join("families").join(name)
}

/// The names of all of them.
pub fn family_models() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures().join("families")).expect("tests/fixtures/families");
    let folders = folders.map(|entry| entry.expect("an entry")).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

/// `expected/NAME.safetensors`.
pub struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    pub fn of(name: &str) -> Self {
        Self::open(&fixtures().join("expected").join(format!("{name}.safetensors")))
    }

    /// Of one of the models of every family.
    pub fn of_family(name: &str) -> Self {
        Self::open(&family_folder(name).join("expected.safetensors"))
    }

    fn open(path: &Path) -> Self {
        Self { bytes: std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
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

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.read(name, i64::from_le_bytes).into_iter().map(|id| id as u32).collect()
    }

    /// The two windows.
    pub fn batch(&self) -> Batch {
        let shape = self.file().tensor("input_ids").expect("input_ids").shape().to_vec();
        Batch { ids: self.ids("input_ids"), layout: Layout { windows: shape[0], length: shape[1] } }
    }

    /// The masks of all projections.
    pub fn masks(&self, config: &Architecture) -> MaskSet {
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

/// All of an activation that was made for this.
pub fn whole(of: &Activation) -> Rows<'_> {
    let (rows, t4) = of.shape();
    of.rows(0, rows, t4).expect("rows")
}

/// `[windows, length, features]` as `[features, t]`.
pub fn feature_major(values: &[f32], features: usize, layout: Layout) -> Vec<f32> {
    let mut out = vec![0.0; features * 4 * layout.t4()];
    for (token, row) in values.chunks_exact(features).enumerate() {
        let t = token / layout.length * 4 * layout.window4() + token % layout.length;
        for (f, &v) in row.iter().enumerate() {
            out[f * 4 * layout.t4() + t] = v;
        }
    }
    out
}

/// `[features, t]` as `[windows, length, features]`.
pub fn token_major(values: &[f32], features: usize, layout: Layout) -> Vec<f32> {
    let mut out = Vec::new();
    for token in 0..layout.windows * layout.length {
        let t = token / layout.length * 4 * layout.window4() + token % layout.length;
        out.extend((0..features).map(|f| values[f * 4 * layout.t4() + t]));
    }
    out
}
