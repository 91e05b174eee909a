//! Builds small model folders, whole or broken, in a temporary folder.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use maskwright::export::hf::{self, Summary};
use maskwright::export::{ExportError, MaskedModel};
use maskwright::mask::{BitMask, MaskFile, MaskSet, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint, Overlay, Shard};
use maskwright::prune::Selection;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A temporary folder that is removed at the end of the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        Self::below(std::env::temp_dir())
    }

    /// In memory where the system has a place for that: flushing files is then no work.
    pub fn in_memory() -> Self {
        Self::below(if Self::has_memory() { "/dev/shm".into() } else { std::env::temp_dir() })
    }

    /// Whether there is such a place.
    pub fn has_memory() -> bool {
        Path::new("/dev/shm").is_dir()
    }

    fn below(folder: PathBuf) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("maskwright-host-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tensor in the making.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

pub type Tensors = BTreeMap<String, Tensor>;

/// config.json of a tiny Llama: 2 blocks, hidden 16, 4 heads over 2 kv heads, vocabulary 12.
pub fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": null, "tie_word_embeddings": true, "bos_token_id": 1
    })
}

/// `config()` with some keys replaced.
pub fn config_with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

pub fn write_config(dir: &Path, config: &Value) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// The tensors that a configuration calls for, with small numbers of changing sign; blocks take turns in type.
pub fn tensors(config: &Architecture) -> Tensors {
    let mut state = 1u32;
    let mut all = Tensors::new();
    for spec in config.tensors() {
        let count = spec.shape.iter().product::<usize>();
        let dtype = match spec.name.as_str() {
            name if name.contains(".0.") => Dtype::F16,
            name if name.contains(".1.") => Dtype::BF16,
            _ => Dtype::F32,
        };
        let mut data = Vec::new();
        for _ in 0..count {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let value = (state >> 16) as f32 / 65536.0 - 0.5;
            match dtype {
                Dtype::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                Dtype::BF16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => data.extend(value.to_le_bytes()),
            }
        }
        all.insert(spec.name, Tensor { dtype, shape: spec.shape, data });
    }
    all
}

pub fn write_safetensors(path: &Path, tensors: &Tensors) {
    let views =
        tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// Splits tensors over two shards, block 1 in the second, and writes the index.
pub fn write_shards(dir: &Path, tensors: &Tensors) {
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let shard_of = |name: &str| usize::from(name.contains(".1."));
    for (i, file) in names.iter().enumerate() {
        let part = tensors.iter().filter(|(n, _)| shard_of(n) == i).map(|(n, t)| (n.clone(), t.clone()));
        write_safetensors(&dir.join(file), &part.collect());
    }
    let map: BTreeMap<&str, &str> = tensors.keys().map(|n| (n.as_str(), names[shard_of(n)])).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A tokenizer that knows the words w0 .. w{words - 1} with those ids, and opens a text with id 1.
pub fn write_tokenizer(dir: &Path, words: u32, opening: u32) {
    let vocab: BTreeMap<String, u32> = (0..words).map(|i| (format!("w{i}"), i)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "open", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"open": {"id": "open", "ids": [opening], "tokens": ["w1"]}}
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A whole tiny model folder in one file; its configuration.
pub fn model(dir: &Path) -> Architecture {
    write_config(dir, &config());
    let config = Architecture::read(dir).unwrap();
    write_safetensors(&dir.join("model.safetensors"), &tensors(&config));
    write_tokenizer(dir, 12, 1);
    config
}

/// The message of the error that opening the folder's weights must give.
pub fn open_error(dir: &Path, config: &Architecture) -> String {
    Checkpoint::open(dir, config).expect_err("a broken model must not open").to_string()
}

/// Checks that a message holds each of the parts.
#[track_caller]
pub fn mentions(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} should mention {part:?}");
    }
}

/// The masks that keep the largest weights.
pub fn magnitude_masks(checkpoint: &Checkpoint, selection: &Selection, pattern: Pattern) -> MaskSet {
    let mut set = MaskSet::new(pattern);
    for (_, p) in &selection.pruned {
        let weights = checkpoint.tensor(&p.name).unwrap().to_f32();
        let mask = BitMask::top_n(p.rows, p.cols, pattern, |row, out| {
            out.iter_mut().zip(&weights[row * p.cols..]).for_each(|(s, w)| *s = w.abs());
        });
        set.masks.insert(p.name.clone(), mask.unwrap());
    }
    set
}

/// Magnitude masks of every projection.
pub fn masks(checkpoint: &Checkpoint, config: &Architecture, pattern: Pattern) -> MaskSet {
    let mut set = MaskSet::new(pattern);
    for p in config.projections() {
        let weight = checkpoint.tensor(&p.name).unwrap();
        let mask = BitMask::top_n(p.rows, p.cols, pattern, |r, scores| {
            assert!(weight.row_f32(r, scores));
            scores.iter_mut().for_each(|s| *s = s.abs());
        });
        set.masks.insert(p.name, mask.unwrap());
    }
    set
}

/// Writes the masked model, dense with zeros; the seed in its report is 7.
pub fn export_hf(
    checkpoint: &Checkpoint,
    config: &Architecture,
    masks: &MaskSet,
    out: &Path,
) -> Result<Summary, ExportError> {
    let (tensors, provenance) = (&Overlay::new(checkpoint), &Provenance::new("magnitude", 7));
    hf::write(&MaskedModel { tensors, config, masks, provenance }, out)
}

/// A model in two shards, the folder `dense`, and a magnitude mask of all its projections but `left`, the file `mask`. The
/// columns of down_proj do not fit torch24.
pub fn packable(dir: &Path, pattern: Pattern, left: &[&str]) -> Architecture {
    let source = dir.join("dense");
    let sizes = json!({ "hidden_size": 64, "intermediate_size": 96, "head_dim": 16 });
    write_config(&source, &config_with(sizes));
    let config = Architecture::read(&source).unwrap();
    write_shards(&source, &tensors(&config));
    let checkpoint = Checkpoint::open(&source, &config).unwrap();
    let mut set = masks(&checkpoint, &config, pattern);
    set.masks.retain(|name, _| !left.contains(&name.as_str()));
    let file = MaskFile::new(set, Provenance::new("magnitude", 3), &checkpoint).unwrap();
    file.write(&dir.join("mask")).unwrap();
    config
}

/// Changes the stored bytes of a tensor of a folder.
#[track_caller]
pub fn edit_tensor(folder: &Path, tensor: &str, mut change: impl FnMut(&mut [u8])) {
    let mut edited = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let shard = Shard::open(&path).unwrap();
        let Some(entry) = shard.entries().iter().find(|e| e.name == tensor) else { continue };
        let mut bytes = fs::read(&path).unwrap();
        let start = shard.header_bytes().len();
        change(&mut bytes[start + entry.begin..start + entry.end]);
        fs::write(&path, bytes).unwrap();
        edited += 1;
    }
    assert!(edited > 0, "{tensor} is in no file");
}
