//! `maskwright variance`.

use std::path::PathBuf;

use super::calib_args::CalibArgs;
use super::context::{DeviceArgs, Model};
use super::memory::planned;
use super::method_args::{Learning, MaskProArgs, SelectArgs, StartArgs};
use super::output::{Progress, show_profile, table, with_profile};
use super::walk::WalkArgs;
use super::{CliError, Outcome, help};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::nn::{Decoder, DecoderWeights, Embedding, MemoryPlan};
use crate::prune::maskpro::{self, Learner};
use crate::prune::select;
use crate::prune::variance::{measure, plan};

#[derive(clap::Args)]
#[command(after_help = help::VARIANCE)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME
    model: PathBuf,
    /// Calibration text: a text file; .jsonl, .json or .parquet of documents with a `text`, `content` or `messages`; a folder of these; .gz and .zst work, too
    #[arg(long, value_name = "FILE")]
    calib: PathBuf,
    /// Sampled gradients that are counted
    #[arg(long, value_name = "N", default_value_t = 200)]
    samples: u32,
    /// Sampled gradients before them that only warm up the tracker
    #[arg(long, value_name = "N", default_value_t = 100)]
    warm_up: u32,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    // Their headings hold for what comes behind them.
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    windows: CalibArgs,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    walk: WalkArgs,
    #[command(flatten)]
    learn: MaskProArgs,
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Result<Outcome, CliError> {
    args.learn.check(true, &args.start)?;
    if !args.walk.keeps_weights() {
        return Err(CliError::Usage("variance changes no weights: leave --repair out".into()));
    }
    let learn = &args.learn;
    let unread = [
        ("--steps", !learn.steps.is_empty()),
        ("--rate", !learn.rate.is_empty()),
        ("--draws", learn.draws.is_some()),
    ];
    for (option, _) in unread.iter().filter(|(_, given)| *given) {
        log::warn!("{option} does nothing here: no step is made");
    }
    let model = Model::open_checked(device, &args.model)?;
    let selection =
        select(&model.config, args.select.pattern, &args.select.only, args.select.skip_indivisible)?;
    let windows = args.windows.maskpro().read(&model, &args.calib, &args.windows.texts.options())?;
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let sizes = maskpro::sizes(&model.config, windows.window(), args.learn.batch(), kernels.limits());
    let scratch =
        kernels.scratch_bytes(DecoderWeights::largest_projection(&model.checkpoint, &model.config)?);
    let own = maskpro::plan(&model.checkpoint, &model.config, &selection, &sizes, scratch)?;
    let plan = plan(own, maskpro::host_plan(&selection, windows.tokens().len()), &selection);
    args.walk
        .memory
        .allows(&plan, ["use a smaller --batch, or a shorter --window", "use fewer --windows"])?;
    let mut commands = Commands::new(&gpu)?;
    let learning = Learning {
        device,
        model: &model,
        walk: &args.walk,
        selection: &selection,
        pattern: args.select.pattern,
        windows: &windows,
        batch: args.learn.batch(),
    };
    // Nothing is kept: a signal ends it at once.
    let start = args.start.masks(&learning, &kernels, &std::sync::Arc::default())?;
    let Some(start) = start else {
        return Ok(Outcome::Interrupted);
    };
    let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
    let options = args.learn.options(args.select.pattern, args.windows.seed);
    let mut learner = Learner::new(
        &decoder,
        &mut commands,
        (&selection, &start.masks),
        &windows,
        options.clone(),
        |p, mask| start.logits(&model, &options, p, mask),
        |_, _| (),
    )?;
    let total = u64::from(args.warm_up) + u64::from(args.samples);
    let mut progress = Progress::new("samples", total, device.quiet);
    let rows = measure(&mut learner, args.select.pattern, args.warm_up, args.samples, |n| {
        progress.at(u64::from(n), String::new);
    })?;
    progress.end();
    if args.json {
        let walk = start.plan.map(|walk| MemoryPlan { gpu: walk.gpu, host: walk.host });
        let plan = walk.unwrap_or_default().or(plan);
        let out = serde_json::json!({ "samples": args.samples, "adapter": gpu.describe(), "estimators": rows,
            "memory": planned(&plan, &gpu) });
        println!("{}", with_profile(out, device, &gpu));
        return Ok(Outcome::Done);
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.estimator.to_string(),
                format!("{:.4e}", r.mean_norm),
                format!("{:.4e}", r.standard_error),
                format!("{:.4e}", r.variance),
                format!("{:.5}", r.advantage_mean),
                format!("{:.5}", r.advantage_sd),
            ]
        })
        .collect();
    let header = ["estimator", "|mean|", "s.e. of mean", "variance", "advantage", "its s.d."];
    println!("{}", table(&header, &cells));
    show_profile(device, &gpu, args.json);
    Ok(Outcome::Done)
}
