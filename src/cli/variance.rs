//! `maskwright variance`.

use std::path::PathBuf;

use super::context::Context;
use super::output::{planned, show_profile, table, with_profile};
use super::{CliError, Outcome, help};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::nn::{Decoder, DecoderWeights, Embedding, MemoryPlan};
use crate::prune::maskpro::{self, Learner};
use crate::prune::variance::{measure, plan};
use crate::run::{CalibSpec, Method, RunPlan, RunSpec, SelectSpec, StartSpec, Task, WalkSpec};

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
    /// Logits are this times the start mask [default: 10]
    #[arg(long, value_name = "SCALE")]
    logits: Option<f32>,
    /// Windows of a minibatch [default: 32]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Start logits from the scores of a magnitude or wanda start, as of `prune` [default: logits from the mask alone]
    #[arg(long, value_name = "T")]
    sharpness: Option<f32>,
    /// Smoothing of the residual's moving average, from 0 to below 1 [default: 0.99]
    #[arg(long, value_name = "SHARE")]
    alpha: Option<f64>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    // Their headings hold for what comes behind them.
    #[command(flatten)]
    select: SelectSpec,
    #[command(flatten)]
    windows: CalibSpec,
    #[command(flatten)]
    start: StartSpec,
    #[command(flatten)]
    walk: WalkSpec,
}

impl Args {
    /// The run whose gradients are measured.
    fn spec(self, context: &Context) -> RunSpec {
        let usual = RunSpec::new(self.model);
        let mut learn = usual.learn.clone();
        learn.logits = self.logits.into_iter().collect();
        learn.batch = self.batch;
        learn.maskpro.sharpness = self.sharpness;
        learn.maskpro.alpha = self.alpha;
        RunSpec {
            calib: Some(self.calib),
            method: Some(Method::Maskpro),
            select: self.select,
            windows: self.windows,
            start: self.start,
            walk: self.walk,
            learn,
            device: context.device.clone(),
            ..usual
        }
    }
}

pub(super) fn run(context: &Context, args: Args) -> Result<Outcome, CliError> {
    let shown = Shown { samples: args.samples, warm_up: args.warm_up, json: args.json };
    let mut run = RunPlan::new(args.spec(context), context)?;
    run.in_order_of_start()?;
    shown.measure(context, &run)
}

/// What is counted, and how it is shown.
struct Shown {
    samples: u32,
    warm_up: u32,
    json: bool,
}

impl Shown {
    fn measure(&self, context: &Context, run: &RunPlan<'_>) -> Result<Outcome, CliError> {
        let (args, model, options) = (self, run.model()?, run.policy());
        let (pattern, selection, windows) = (options.pattern, run.selection(), run.calibration()?);
        let gpu = context.open()?;
        let kernels = Kernels::new(&gpu, context.preset(&gpu)?);
        let sizes = maskpro::sizes(&model.config, windows.window(), options.batch, kernels.limits());
        let scratch =
            kernels.scratch_bytes(DecoderWeights::largest_projection(&model.checkpoint, &model.config)?);
        let own = maskpro::plan(&model.checkpoint, &model.config, selection, &sizes, scratch)?;
        let plan = plan(own, maskpro::host_plan(selection, windows.tokens().len()), selection);
        let remedies = ["use a smaller --batch, or a shorter --window", "use fewer --windows"];
        run.spec().walk.memory.allows(&plan, remedies)?;
        let resources = run.resources(&kernels)?;
        run.check(&resources)?;
        let mut commands = Commands::new(&gpu)?;
        // Nothing is kept: a signal ends it at once.
        let Some(start) = run.start(&kernels, &resources)? else {
            return Ok(Outcome::Interrupted);
        };
        let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
        let embedding = Embedding::new(&model.checkpoint, &model.config)?;
        let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
        let mut learner = Learner::new(
            &decoder,
            &mut commands,
            (selection, &start.masks),
            windows,
            options.clone(),
            |p, mask| start.logits(model, &options, p, mask),
            |_, _| (),
        )?;
        let total = u64::from(args.warm_up) + u64::from(args.samples);
        let mut progress = context.progress("samples", total);
        let rows = measure(&mut learner, pattern, args.warm_up, args.samples, |n| {
            progress.at(u64::from(n), &String::new);
        })?;
        drop(progress);
        if args.json {
            let walk = resources.walk.map(|walk| MemoryPlan { gpu: walk.gpu, host: walk.host });
            let plan = walk.unwrap_or_default().or(plan);
            let out = serde_json::json!({ "samples": args.samples, "adapter": gpu.describe(), "estimators": rows,
                "memory": planned(&plan, &gpu) });
            println!("{}", with_profile(out, &context.device, &gpu));
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
        show_profile(&context.device, &gpu, args.json);
        Ok(Outcome::Done)
    }
}
