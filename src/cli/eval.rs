//! `maskwright eval`.

use std::path::PathBuf;

use super::context::{DeviceArgs, Model};
use super::output::{Progress, profile};
use super::{CliError, Outcome};
use crate::eval::{perplexity, workspace};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::nn::{Decoder, DecoderWeights, Embedding, MaskBank};

#[derive(clap::Args)]
#[command(
    after_help = "The text is tokenised once, cut into windows that do not overlap, and the tail is dropped; the result is exp of \
the mean of the window means (the convention of GPTQ, SparseGPT and Wanda).

Example:
  maskwright eval models/village --text models/village/heldout.txt --window 128 --json"
)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout
    model: PathBuf,
    /// Text file to measure on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Mask file to apply
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Only the first windows of the text
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Result<Outcome, CliError> {
    let model = Model::open_checked(&args.model)?;
    let (mut windows, tokens) = model.windows(&args.text, args.window)?;
    if let Some(n) = args.windows {
        windows = windows.first(n);
    }
    let set = args.mask.as_ref().map(|path| model.mask(path)).transpose()?;
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
    let bank = match &set {
        Some(set) => MaskBank::upload(&gpu, &model.config, set)?,
        None => MaskBank::dense(&model.config),
    };
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
    let ws = workspace(&decoder, &windows, usize::MAX)?;
    let mut commands = Commands::new(&gpu)?;
    let mut progress = Progress::new("windows", windows.count() as u64, device.quiet);
    let started = std::time::Instant::now();
    let result = perplexity(&decoder, &mut commands, &ws, &windows, tokens, &bank.refs(), |done| {
        progress.at(done as u64, String::new);
    })?;
    progress.end();
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let mut out = serde_json::json!(result);
        out["adapter"] = gpu.describe().into();
        out["preset"] = kernels.preset().name.into();
        out["seconds"] = seconds.into();
        out["masked"] = set.is_some().into();
        println!("{out}");
    } else {
        println!("perplexity {:.5}", result.perplexity);
        println!(
            "{} windows of {} tokens ({} tokens in the text), {:.5} nats per token, {seconds:.1} s",
            result.windows, result.window, result.tokens, result.nll
        );
    }
    if device.profile {
        eprintln!("{}", profile(&gpu));
    }
    Ok(Outcome::Done)
}
