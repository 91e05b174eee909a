//! `maskwright eval`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::context::Context;

use super::output::{masked, planned, show_profile, shown, table, with_profile};
use super::{CliError, Outcome, choices, help};
use crate::calib::Windows;
use crate::eval::{OVERFLOW, Streamed, Summary, WindowMeans, perplexity, plan, sizes};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::mask::MaskSet;
use crate::nn::{Decoder, DecoderWeights, Embedding, MaskBank, MemoryPlan, Workspace};
use crate::run::{MemorySpec, Model, PermutationSpec, Task, TextSpec, at_least_one, tokens_of_window};

#[derive(clap::Args)]
#[command(after_help = help::EVAL)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME
    model: PathBuf,
    /// Text to measure on: a text file; .jsonl, .json or .parquet of documents with a `text`, `content` or `messages`; a folder of these; .gz and .zst work, too; may
    /// be given several times, needed but with --choices
    #[arg(long, value_name = "FILE", required_unless_present = "choices")]
    text: Vec<PathBuf>,
    /// Questions to answer in place of --text: JSON lines with context, choices and answer (a number from 0) [default: none]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "against", "windows"])]
    choices: Option<PathBuf>,
    /// Mask file to apply, a run's or MaskLLM's .npz [default: none, the weights as they are]
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Folder of the dense model, or its name on the hub, to measure how far MODEL is from it [default: MODEL alone]
    #[arg(long, value_name = "DENSE")]
    against: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = tokens_of_window())]
    window: usize,
    /// Only the first N windows of each text [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    windows: Option<usize>,
    #[command(flatten)]
    permutation: PermutationSpec,
    #[command(flatten)]
    texts: TextSpec,
    #[command(flatten)]
    memory: MemorySpec,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// The windows of all texts.
struct Texts {
    windows: Windows,
    /// Tokens of each text, the dropped tail included where all windows are taken, and its place among the windows.
    parts: Vec<(usize, Range<usize>)>,
}

impl Texts {
    fn read(context: &Context, model: &Model, args: &Args) -> Result<Self, CliError> {
        let (mut ids, mut parts) = (Vec::new(), Vec::new());
        let options = args.texts.options();
        for text in &args.text {
            let size = ("--window", args.window);
            let (windows, tokens) = model.windows(text, &options, size, args.windows, context)?;
            let first = ids.len() / args.window;
            parts.push((tokens, first..first + windows.count()));
            ids.extend_from_slice(windows.tokens());
        }
        Ok(Self { windows: Windows::new(ids, args.window)?, parts })
    }

    /// Tokens of all texts.
    fn tokens(&self) -> usize {
        self.parts.iter().map(|(tokens, _)| tokens).sum()
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    if let Some(questions) = &args.choices {
        let mask = args.mask.as_deref().map(|mask| (mask, &args.permutation));
        return choices::run(context, &args.model, mask, questions, &args.memory, args.json);
    }
    args.memory.check()?;
    let mut model = context.checked_model(&args.model)?;
    if let Some(mask) = &args.mask {
        model.in_order_of(mask, &args.permutation, &std::env::temp_dir(), context)?;
    }
    let texts = Texts::read(context, &model, args)?;
    let dense = args
        .against
        .as_ref()
        .map(|folder| against(context, &model, folder, args, &texts.windows))
        .transpose()?;
    let set = args.mask.as_ref().map(|path| model.mask(path, None, context)).transpose()?;
    let gpu = context.open()?;
    let kernels = Kernels::new(&gpu, context.preset(&gpu)?);
    let started = std::time::Instant::now();
    let text = (&texts.windows, texts.tokens());
    let (plan, means) = match &dense {
        None => resident(context, &kernels, &model, text, set.as_ref(), &args.memory)?,
        Some(dense) => compare(context, &kernels, (&model, dense), text, set.as_ref(), &args.memory)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    let all = means.summary(0..texts.windows.count());
    let each: Vec<_> = texts.parts.iter().map(|(_, which)| means.summary(which.clone())).collect();
    if args.json {
        let mut out = fields(&all, args.window, texts.tokens());
        if each.len() > 1 {
            let parts =
                args.text.iter().zip(&each).zip(&texts.parts).map(|((path, summary), (tokens, _))| {
                    let mut out = fields(summary, args.window, *tokens);
                    out["text"] = path.display().to_string().into();
                    out
                });
            out["texts"] = parts.collect();
        }
        if let Some(most) = args.windows {
            out["windows_asked"] = most.saturating_mul(each.len()).into();
        }
        out["adapter"] = gpu.describe().into();
        out["preset"] = kernels.preset().name.into();
        out["seconds"] = seconds.into();
        out["masked"] = set.is_some().into();
        out["memory"] = planned(&plan, &gpu);
        println!("{}", with_profile(out, &context.device, &gpu));
    } else {
        let mut rows: Vec<_> = args
            .text
            .iter()
            .zip(&each)
            .map(|(path, summary)| row(&path.display().to_string(), summary))
            .collect();
        if each.len() > 1 {
            rows.push(row("all", &all));
        }
        let head = ["text", "windows", "perplexity", "ratio", "dense", "KL to dense", "top-1 as dense, %"];
        let columns = if dense.is_some() { head.len() } else { 3 };
        println!("{}", table(&head[..columns], &rows));
        println!(
            "windows of {} tokens ({} tokens in all), {:.5} nats per token, {seconds:.1} s",
            args.window,
            texts.tokens(),
            all.nll
        );
        if each.iter().chain([&all]).any(Summary::overflows) {
            println!("{OVERFLOW}");
        }
    }
    show_profile(&context.device, &gpu, args.json);
    Ok(Outcome::Done)
}

/// As JSON, intervals as pairs.
fn fields(summary: &Summary, window: usize, tokens: usize) -> Value {
    let mut out = json!({
        "perplexity": summary.perplexity.value,
        "nll": summary.nll,
        "windows": summary.windows,
        "window": window,
        "tokens": tokens,
    });
    let mut intervals = json!({"perplexity": [summary.perplexity.low, summary.perplexity.high]});
    if let Some(beside) = &summary.beside {
        for (name, estimate) in [
            ("dense_perplexity", beside.dense),
            ("perplexity_ratio", beside.ratio),
            ("kl_to_dense", beside.kl),
            ("top1_agreement", beside.top1),
        ] {
            out[name] = estimate.value.into();
            intervals[name] = json!([estimate.low, estimate.high]);
        }
    }
    out["intervals_95"] = intervals;
    if summary.overflows() {
        // JSON has no infinity: what overflows is null.
        out["note"] = OVERFLOW.into();
    }
    out
}

/// As a row of the table.
fn row(text: &str, summary: &Summary) -> Vec<String> {
    let mut out = vec![text.to_string(), summary.windows.to_string(), shown(summary.perplexity, 1.0, 4)];
    if let Some(beside) = &summary.beside {
        out.push(shown(beside.ratio, 1.0, 4));
        out.push(format!("{:.4}", beside.dense.value));
        out.push(shown(beside.kl, 1.0, 5));
        out.push(shown(beside.top1, 100.0, 2));
    }
    out
}

/// Opens the dense model, and holds its vocabulary and its tokens against those of `model`.
fn against(
    context: &Context,
    model: &Model,
    folder: &Path,
    args: &Args,
    windows: &Windows,
) -> Result<Model, CliError> {
    let dense = context.checked_model(folder)?;
    let (own, other) = (model.config.vocab_size, dense.config.vocab_size);
    let same = own == other && Texts::read(context, &dense, args)?.windows == *windows;
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

/// What to change where an evaluation takes too much memory.
const REMEDIES: [&str; 2] = ["use a shorter --window", "use fewer --windows, or a shorter --window"];

/// Perplexity with all blocks on the device.
fn resident(
    context: &Context,
    kernels: &Kernels<'_>,
    model: &Model,
    (windows, tokens): (&Windows, usize),
    set: Option<&MaskSet>,
    memory: &MemorySpec,
) -> Result<(MemoryPlan, WindowMeans), CliError> {
    let (gpu, config) = (kernels.gpu(), &model.config);
    let sizes = sizes(config, windows.count(), windows.window(), usize::MAX, gpu.limits());
    let masked = masked(config, set);
    let ids = windows.tokens().len();
    let plan =
        plan::resident(kernels, &model.checkpoint, config, &masked, std::slice::from_ref(&sizes), ids)?;
    memory.allows(&plan, REMEDIES)?;
    let weights = DecoderWeights::upload(gpu, &model.checkpoint, config, |_| ())?;
    let bank = match set {
        Some(set) => MaskBank::upload(gpu, config, set)?,
        None => MaskBank::dense(config),
    };
    let embedding = Embedding::new(&model.checkpoint, config)?;
    let decoder = Decoder { kernels, config, weights: &weights, embedding };
    let ws = Workspace::new(gpu, config, sizes)?;
    let mut commands = Commands::new(gpu)?;
    let mut progress = context.progress("windows", windows.count() as u64);
    let result = perplexity(&decoder, &mut commands, &ws, windows, tokens, &bank.refs(), |done| {
        progress.at(done as u64, &String::new);
    })?;
    drop(progress);
    Ok((plan, result.into()))
}

/// A model beside the dense one, block by block.
fn compare(
    context: &Context,
    kernels: &Kernels<'_>,
    (model, dense): (&Model, &Model),
    (windows, tokens): (&Windows, usize),
    set: Option<&MaskSet>,
    memory: &MemorySpec,
) -> Result<(MemoryPlan, WindowMeans), CliError> {
    let embeddings = [
        Embedding::new(&model.checkpoint, &model.config)?,
        Embedding::new(&dense.checkpoint, &dense.config)?,
    ];
    let own =
        Streamed { kernels, config: &model.config, tensors: &model.checkpoint, embedding: &embeddings[0] };
    let other =
        Streamed { kernels, config: &dense.config, tensors: &dense.checkpoint, embedding: &embeddings[1] };
    let plan = own.plan(&other, &masked(&model.config, set), (windows.count(), windows.window()))?;
    memory.allows(&plan, REMEDIES)?;
    let mut commands = Commands::new(kernels.gpu())?;
    let mut bar = context.progress("dense", dense.config.num_layers as u64);
    let streams = other.streams(&mut commands, windows, &own, |n| bar.at(n as u64, &String::new))?;
    drop(bar);
    let mut bar = context.progress("model", model.config.num_layers as u64);
    let progress = |n| bar.at(n as u64, &String::new);
    let found = own.compare(&mut commands, windows, tokens, set, &streams, progress)?;
    drop(bar);
    Ok((plan, found.into()))
}
