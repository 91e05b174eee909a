//! How fast `export` and `verify` are beside `cp`, on the same disk in one run.
//!
//! `cargo bench --profile dev --bench export_throughput -- FOLDER [BLOCKS] [ROUNDS]` makes a Llama-shaped f16 model of BLOCKS blocks (0.4 GB
//! each; 9 make 4 GB) in a new folder below FOLDER, which takes three times its size there, and removes it at the end.

use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use maskwright::export::{MaskedModel, hf};
use maskwright::mask::{BitMask, MaskSet, Pattern, Provenance};
use maskwright::model::{Architecture, Checkpoint, Overlay};
use maskwright::verify::{Options, verify};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(folder) = args.first() else {
        println!("give a folder on the disk to measure, and the number of blocks (9 make 4 GB)");
        return Ok(());
    };
    let blocks = args.get(1).map_or(Ok(9), |n| n.parse())?;
    let rounds: usize = args.get(2).map_or(Ok(3), |n| n.parse())?;
    let dir = Path::new(folder).join(format!("maskwright-throughput-{}", std::process::id()));
    let result = measure(&dir, blocks, rounds);
    fs::remove_dir_all(&dir)?;
    result
}

fn measure(dir: &Path, blocks: usize, rounds: usize) -> Result<()> {
    let source = dir.join("source");
    fs::create_dir_all(&source)?;
    let config = write_model(&source, blocks)?;
    let checkpoint = Checkpoint::open(&source, &config)?;
    let gigabytes = checkpoint.files().iter().map(|s| s.len() as f64).sum::<f64>() / 1e9;
    let mut masks = MaskSet::new(Pattern::TWO_OF_FOUR);
    for p in config.projections() {
        let word = |i: usize| [0x3333_3333, 0x5a5a_5a5a, 0x9c9c_9c9c][i % 3];
        let words = (0..p.rows * p.cols / 32).map(word).collect();
        masks.masks.insert(p.name, BitMask::from_words(p.rows, p.cols, words)?);
    }
    let (copy, out) = (dir.join("copy"), dir.join("out"));
    let mut best = [f64::MAX; 3];
    for round in 0..rounds {
        for folder in [&copy, &out] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        let mut seconds = [0.0; 3];
        let started = Instant::now();
        let copied = Command::new("cp").arg("-r").arg("--reflink=never").args([&source, &copy]).status()?;
        let synced = Command::new("sync").arg("-f").arg(&copy).status()?;
        if !copied.success() || !synced.success() {
            return Err("cp failed".into());
        }
        seconds[0] = started.elapsed().as_secs_f64();
        fs::remove_dir_all(&copy)?;
        let started = Instant::now();
        let model = MaskedModel {
            tensors: &Overlay::new(&checkpoint),
            config: &config,
            masks: &masks,
            provenance: &Provenance::new("bench", 0),
        };
        hf::write(&model, &out)?;
        seconds[1] = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let options = Options { mask: Some(&masks), against: Some(&source), ..Options::default() };
        let verdict = verify(&out, &options)?;
        seconds[2] = started.elapsed().as_secs_f64();
        if !verdict.ok {
            return Err(format!("{:?}", verdict.problems).into());
        }
        println!(
            "round {round}: cp {:.1} s, export {:.1} s, verify {:.1} s",
            seconds[0], seconds[1], seconds[2]
        );
        best.iter_mut().zip(seconds).for_each(|(best, s)| *best = best.min(s));
    }
    println!("{gigabytes:.2} GB, best of {rounds}:");
    for (what, seconds) in ["cp and sync", "export", "verify --against --mask"].iter().zip(best) {
        println!(
            "{what:<24} {seconds:6.2} s  {:5.2} GB/s  {:.2} of cp",
            gigabytes / seconds,
            best[0] / seconds
        );
    }
    Ok(())
}

fn write_model(dir: &Path, blocks: usize) -> Result<Architecture> {
    let text = json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": blocks, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "bos_token_id": 1
    });
    fs::write(dir.join("config.json"), text.to_string())?;
    let config = Architecture::read(dir)?;
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for spec in config.tensors() {
        let begin = end;
        end += 2 * spec.shape.iter().product::<usize>();
        header.insert(spec.name, json!({"dtype": "F16", "shape": spec.shape, "data_offsets": [begin, end]}));
    }
    let mut header = json!(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(dir.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // No number is zero, infinite or NaN.
    let numbers = (0..1 << 19).map(|i: u32| 0x2c00 | (i.wrapping_mul(2_654_435_761) >> 20) as u16);
    let pattern: Vec<u8> = numbers.flat_map(u16::to_le_bytes).collect();
    let mut left = end;
    while left > 0 {
        let n = left.min(pattern.len());
        file.write_all(&pattern[..n])?;
        left -= n;
    }
    file.into_inner()?.sync_all()?;
    Ok(config)
}
