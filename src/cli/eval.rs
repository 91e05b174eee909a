//! `maskwright eval`.

use std::path::{Path, PathBuf};

use super::context::{DeviceArgs, Model};
use super::output::{Progress, profile};
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::eval::{Comparison, Perplexity, Streamed, perplexity, workspace};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::nn::{Decoder, DecoderWeights, Embedding, MaskBank};

#[derive(clap::Args)]
#[command(
    after_help = "The text is tokenised once, cut into windows that do not overlap, and the tail is dropped; the result is exp of \
the mean of the window means (the convention of GPTQ, SparseGPT and Wanda).

With --against both models pass one block at a time; also printed are the divergence KL(DENSE || MODEL), a mean over the predicted
tokens in nats, and for how many of them both models have the same most likely token.

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
    /// Folder of the dense model, to measure how far MODEL is from it
    #[arg(long, value_name = "DENSE")]
    against: Option<PathBuf>,
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
    let dense = args.against.as_ref().map(|folder| against(&model, folder, args, &windows)).transpose()?;
    if let Some(n) = args.windows {
        windows = windows.first(n);
    }
    let set = args.mask.as_ref().map(|path| model.mask(path)).transpose()?;
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let started = std::time::Instant::now();
    let text = (&windows, tokens);
    let (result, compared) = match &dense {
        None => (resident(device, &kernels, &model, text, set.as_ref())?, None),
        Some(dense) => {
            let found = compare(device, &kernels, (&model, dense), text, set.as_ref())?;
            (found.model.clone(), Some(found))
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let mut out = serde_json::json!(result);
        if let Some(found) = &compared {
            out["dense_perplexity"] = found.dense.perplexity.into();
            out["kl_to_dense"] = found.kl.into();
            out["top1_agreement"] = found.top1.into();
        }
        out["adapter"] = gpu.describe().into();
        out["preset"] = kernels.preset().name.into();
        out["seconds"] = seconds.into();
        out["masked"] = set.is_some().into();
        println!("{out}");
    } else {
        println!("perplexity {:.5}", result.perplexity);
        if let Some(found) = &compared {
            println!(
                "KL to dense {:.5} nats per token, the most likely token is that of the dense model for {:.2} % (perplexity of the \
                 dense model {:.5})",
                found.kl,
                100.0 * found.top1,
                found.dense.perplexity
            );
        }
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

/// Opens the dense model, and holds its vocabulary and its tokens against those of `model`.
fn against(model: &Model, folder: &Path, args: &Args, windows: &Windows) -> Result<Model, CliError> {
    let dense = Model::open_checked(folder)?;
    let (own, other) = (model.config.vocab_size, dense.config.vocab_size);
    let same = own == other && dense.windows(&args.text, args.window)?.0.tokens() == windows.tokens();
    if !same {
        let what = match own == other {
            true => "their tokenizers cut the text differently".to_string(),
            false => format!("their vocabularies have {other} and {own} tokens"),
        };
        let (dense, model) = (folder.display(), args.model.display());
        return Err(CliError::Usage(format!(
            "{dense} and {model} cannot be compared: {what}; --against takes a model with the same tokenizer and vocabulary"
        )));
    }
    Ok(dense)
}

/// Perplexity with all blocks on the device.
fn resident(
    device: &DeviceArgs,
    kernels: &Kernels<'_>,
    model: &Model,
    text: (&Windows, usize),
    set: Option<&MaskSet>,
) -> Result<Perplexity, CliError> {
    let (gpu, (windows, tokens)) = (kernels.gpu(), text);
    let weights = DecoderWeights::upload(gpu, &model.checkpoint, &model.config, |_| ())?;
    let bank = match set {
        Some(set) => MaskBank::upload(gpu, &model.config, set)?,
        None => MaskBank::dense(&model.config),
    };
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let decoder = Decoder { kernels, config: &model.config, weights: &weights, embedding };
    let ws = workspace(&decoder, windows, usize::MAX)?;
    let mut commands = Commands::new(gpu)?;
    let mut progress = Progress::new("windows", windows.count() as u64, device.quiet);
    let result = perplexity(&decoder, &mut commands, &ws, windows, tokens, &bank.refs(), |done| {
        progress.at(done as u64, String::new);
    })?;
    progress.end();
    Ok(result)
}

/// A model beside the dense one, block by block.
fn compare(
    device: &DeviceArgs,
    kernels: &Kernels<'_>,
    (model, dense): (&Model, &Model),
    (windows, tokens): (&Windows, usize),
    set: Option<&MaskSet>,
) -> Result<Comparison, CliError> {
    let embeddings = [
        Embedding::new(&model.checkpoint, &model.config)?,
        Embedding::new(&dense.checkpoint, &dense.config)?,
    ];
    let own =
        Streamed { kernels, config: &model.config, tensors: &model.checkpoint, embedding: &embeddings[0] };
    let other =
        Streamed { kernels, config: &dense.config, tensors: &dense.checkpoint, embedding: &embeddings[1] };
    let mut commands = Commands::new(kernels.gpu())?;
    let mut bar = Progress::new("dense", dense.config.num_layers as u64, device.quiet);
    let streams = other.streams(&mut commands, windows, &own, |n| bar.at(n as u64, String::new))?;
    bar.end();
    let mut bar = Progress::new("model", model.config.num_layers as u64, device.quiet);
    let progress = |n| bar.at(n as u64, String::new);
    let found = own.compare(&mut commands, windows, tokens, set, &streams, progress)?;
    bar.end();
    Ok(found)
}
