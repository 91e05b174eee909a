//! `maskwright prune`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::context::{DeviceArgs, Model};
use super::method_args::{MaskProArgs, SelectArgs, Start, StartArgs, norms};
use super::output::{Progress, bytes, profile, table};
use super::{CliError, Outcome};
use crate::calib::Windows;
use crate::eval::{perplexity, workspace};
use crate::export;
use crate::gpu::{Commands, PARAMS_BYTES, READ_PIECE};
use crate::kernel::Kernels;
use crate::mask::{MaskFile, MaskSet, Provenance};
use crate::nn::{DENSE, Decoder, DecoderWeights, Embedding, MaskBank, PlanItem, total};
use crate::prune::maskpro::{self, Learner};
use crate::prune::{EvalRow, InputNorms, RunFolder, Score, Selection, score_masks, select};

/// What chooses the mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Method {
    /// Keep the largest weights
    Magnitude,
    /// Keep the largest weight times input norm (Wanda)
    Wanda,
    /// Learn by policy gradient on the model's loss (MaskPro)
    Maskpro,
}

#[derive(clap::Args)]
#[command(
    after_help = "Writes into --out: mask.safetensors, model/ (the masked model in Hugging Face layout), metrics.jsonl and run.json.
Ctrl-C ends the learning and writes the mask learned so far (exit code 130).

Example:
  maskwright prune models/village --calib models/village/calib.txt --method maskpro --steps 500 \\
      --logits 8 --rate 20 --batch 8 --eval models/village/heldout.txt --out runs/first"
)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout
    model: PathBuf,
    /// Calibration text (not needed by magnitude without --eval)
    #[arg(long, value_name = "FILE")]
    calib: Option<PathBuf>,
    /// What chooses the mask
    #[arg(long, value_enum, default_value_t = Method::Maskpro)]
    method: Method,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    learn: MaskProArgs,
    /// Folder of the run; must be new or empty
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Do not write the masked model
    #[arg(long)]
    no_model: bool,
    /// Text on which dense, start and result are measured at the end
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Tokens of an evaluation window
    #[arg(long, default_value_t = 256)]
    eval_window: usize,
    /// Only the first windows of the evaluation text
    #[arg(long, value_name = "N")]
    eval_windows: Option<usize>,
    /// Print the memory plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Mean residual, in nats per token, from which a run is said to diverge: runs that learned stayed far below 0.2, those
/// that passed it did not come back (docs/maskpro.md).
const RUNAWAY: f64 = 0.5;

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Result<Outcome, CliError> {
    args.learn.check()?;
    let model = Model::open_checked(&args.model)?;
    let selection =
        select(&model.config, args.select.pattern, &args.select.only, args.select.skip_indivisible)?;
    for name in &selection.skipped {
        device.note(|| format!("left dense: {name}"));
    }
    let calib = match (&args.calib, args.method) {
        (Some(text), _) => Some(model.windows(text, args.learn.window)?.0.first(args.learn.windows)),
        (None, Method::Magnitude) => None,
        (None, _) => {
            let message = format!("--method {:?} needs --calib TEXT", args.method).to_lowercase();
            return Err(CliError::Usage(message));
        }
    };
    let eval = match &args.eval {
        Some(text) => {
            let (windows, tokens) = model.windows(text, args.eval_window)?;
            Some((windows.first(args.eval_windows.unwrap_or(usize::MAX)), tokens))
        }
        None => None,
    };
    let job = Job { device, args, model: &model, selection: &selection, calib, eval };
    if args.dry_run {
        return job.dry_run();
    }
    let Some(out) = &args.out else {
        return Err(CliError::Usage("--out DIR is needed".into()));
    };
    // Before any work, so that a folder that cannot be written costs nothing.
    if !args.no_model {
        export::hf::check_destination(&model.checkpoint, out)?;
    }
    let folder = RunFolder::create(out)?;
    job.run(folder)
}

/// One `prune`, with everything that needs no device opened and checked.
struct Job<'a> {
    device: &'a DeviceArgs,
    args: &'a Args,
    model: &'a Model,
    selection: &'a Selection,
    calib: Option<Windows>,
    eval: Option<(Windows, usize)>,
}

impl Job<'_> {
    fn plan(&self, kernels: &Kernels<'_>) -> Result<Vec<PlanItem>, CliError> {
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let limit = kernels.gpu().max_binding_bytes();
        let (window, batch) = (self.args.learn.window, self.args.learn.batch);
        let weights = || DecoderWeights::plan(checkpoint, config);
        Ok(match (self.args.method, &self.calib) {
            (Method::Maskpro, _) => {
                let sizes = maskpro::sizes(config, window, batch, limit);
                let scratch = kernels.scratch_bytes(DecoderWeights::largest_projection(checkpoint, config)?);
                maskpro::plan(checkpoint, config, self.selection, &sizes, scratch)?
            }
            (Method::Wanda, Some(windows)) => {
                let used = self.args.start.norm_windows.unwrap_or(usize::MAX).min(windows.count());
                let sizes = crate::eval::sizes(config, used, window, usize::MAX, limit);
                let norms = PlanItem::new("statistics", InputNorms::device_bytes(config));
                let widest = config.hidden_size.max(config.intermediate_size) as u64 * 4;
                let staging = PlanItem::new("staging", PARAMS_BYTES + widest.min(READ_PIECE));
                vec![weights()?, norms, sizes.plan(), staging]
            }
            // Magnitude needs no device but for the evaluation.
            _ => vec![weights()?, PlanItem::new("staging", PARAMS_BYTES)],
        })
    }

    fn dry_run(&self) -> Result<Outcome, CliError> {
        let gpu = self.device.open()?;
        let kernels = Kernels::new(&gpu, self.device.preset(&gpu)?);
        let plan = self.plan(&kernels)?;
        if self.args.json {
            println!("{}", json!({ "plan": plan, "total": total(&plan), "adapter": gpu.describe() }));
            return Ok(Outcome::Done);
        }
        let mut rows: Vec<Vec<String>> =
            plan.iter().map(|i| vec![i.item.to_string(), i.bytes.to_string()]).collect();
        rows.push(vec!["total".into(), total(&plan).to_string()]);
        println!("{}", table(&["GPU memory until the mask is made", "bytes"], &rows));
        println!(
            "{} projections, {} weights under masks",
            self.selection.pruned.len(),
            self.selection.weights()
        );
        Ok(Outcome::Done)
    }

    fn run(&self, mut folder: RunFolder) -> Result<Outcome, CliError> {
        let started = Instant::now();
        let (config, checkpoint) = (&self.model.config, &self.model.checkpoint);
        let gpu = self.device.open()?;
        let kernels = Kernels::new(&gpu, self.device.preset(&gpu)?);
        let plan = self.plan(&kernels)?;
        self.device.note(|| format!("plan: {} of GPU memory", bytes(total(&plan))));
        let weights = DecoderWeights::upload(&gpu, checkpoint, config, |_| ())?;
        let embedding = Embedding::new(checkpoint, config)?;
        let decoder = Decoder { kernels: &kernels, config, weights: &weights, embedding };
        let mut commands = Commands::new(&gpu)?;
        let pattern = self.args.select.pattern;

        let mut outcome = Outcome::Done;
        let mut start = None;
        let masks = match (self.args.method, &self.calib) {
            (Method::Wanda, Some(windows)) => {
                let only = self.args.start.norm_windows;
                let norms = norms(self.device, &decoder, &mut commands, windows, only, usize::MAX)?;
                score_masks(checkpoint, self.selection, pattern, Score::Wanda(&norms))?
            }
            (Method::Maskpro, Some(windows)) => {
                let from = self.args.start.masks(
                    self.device,
                    self.model,
                    &decoder,
                    &mut commands,
                    self.selection,
                    pattern,
                    windows,
                    // No more than the learner's own passes take, so that the plan holds.
                    self.args.learn.batch,
                )?;
                let (masks, ended) = self.learn(&mut folder, &decoder, &mut commands, &from, windows)?;
                outcome = ended;
                start = Some(from.masks);
                masks
            }
            _ => score_masks(checkpoint, self.selection, pattern, Score::Magnitude)?,
        };
        let learned_peak = gpu.memory_peak();
        let learned_items = gpu.memory_items();
        masks.check()?;
        let provenance =
            Provenance::new(format!("{:?}", self.args.method).to_lowercase(), self.args.learn.seed);
        MaskFile::new(masks.clone(), provenance.clone(), checkpoint)?.write(&folder.mask())?;
        if !self.args.no_model {
            export::hf::write(checkpoint, config, &masks, &provenance, &folder.model())?;
        }
        let table = self.measure(&decoder, &mut commands, start.as_ref(), &masks)?;
        let changed = start.as_ref().map(|s| groups_changed(s, &masks));
        let run = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": gpu.describe(),
            "preset": kernels.preset().name,
            "model": self.args.model,
            "calib": self.args.calib,
            "method": format!("{:?}", self.args.method).to_lowercase(),
            "options": self.args.learn.options(pattern),
            "start": self.args.start.name(),
            "windows": self.calib.as_ref().map(Windows::count),
            "window": self.args.learn.window,
            "only": self.args.select.only,
            "left_dense": self.selection.skipped,
            "interrupted": matches!(outcome, Outcome::Interrupted),
            "groups_changed": changed,
            "results": table,
            "memory": { "plan": plan, "plan_total": total(&plan), "peak": learned_peak, "at_peak": learned_items },
            "seconds": started.elapsed().as_secs_f64(),
        });
        let path = folder.path().to_path_buf();
        folder.finish(&run)?;
        if self.args.json {
            println!("{run}");
        } else {
            self.print(&table, changed);
            println!("written: {}", path.display());
        }
        if self.device.profile {
            eprintln!("{}", profile(&gpu));
        }
        Ok(outcome)
    }

    fn learn<'g>(
        &self,
        folder: &mut RunFolder,
        decoder: &Decoder<'g, '_>,
        commands: &mut Commands<'g>,
        start: &Start,
        windows: &Windows,
    ) -> Result<(MaskSet, Outcome), CliError> {
        let options = self.args.learn.options(self.args.select.pattern);
        let steps = options.steps;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        // The second Ctrl-C does not wait for what is written after the first.
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })?;
        let gpu = decoder.kernels.gpu();
        self.device.note(|| "building pipelines".into());
        let building = Instant::now();
        let minibatches = windows.count() / options.batch.max(1);
        let mut bar = Progress::new("start losses", minibatches as u64, self.device.quiet);
        let mut learner = Learner::new(
            decoder,
            commands,
            self.selection,
            &start.masks,
            windows,
            options.clone(),
            |p, mask| start.logits(self.model, &options, p, mask),
            |n, _| {
                if n == 0 {
                    let seconds = building.elapsed().as_secs_f64();
                    self.device
                        .note(|| format!("{} pipelines built in {seconds:.1} s", gpu.pipelines_built()));
                }
                bar.at(n as u64, String::new);
            },
        )?;
        bar.end();
        let mut bar = Progress::new("steps", u64::from(steps), self.device.quiet);
        let mut changed = 0;
        let mut counted = Instant::now();
        let mut mean = 0.0;
        let mut warned = false;
        let mut outcome = Outcome::Done;
        for i in 1..=steps {
            if stop.load(Ordering::SeqCst) {
                outcome = Outcome::Interrupted;
                break;
            }
            let at = Instant::now();
            let step = learner.step()?;
            mean += (step.residual - mean) / f64::from(i.min(50));
            if mean > RUNAWAY && !warned {
                warned = true;
                log::warn!(
                    "step {i}: drawn masks lose {mean:.2} nats more than the start mask, and the run seems to diverge; \
                     stop it with Ctrl-C and use a lower --rate or --alpha, or higher --logits"
                );
            }
            let mut line = json!(step);
            line["seconds"] = at.elapsed().as_secs_f64().into();
            // Counting takes a read-back of all bits, so it happens once in a while.
            if i == steps || i % 50 == 0 && counted.elapsed().as_secs_f64() > 1.0 {
                changed = learner.groups_changed()?;
                counted = Instant::now();
                line["groups_changed"] = changed.into();
            }
            folder.metric(&line)?;
            bar.at(u64::from(i), || {
                format!(
                    "loss {:.4} residual {:+.4} tracker {:+.4} changed {changed}",
                    step.loss, mean, step.tracker
                )
            });
        }
        bar.end();
        if matches!(outcome, Outcome::Interrupted) {
            self.device.note(|| "interrupted: writing the mask learned so far".into());
        }
        Ok((learner.masks()?, outcome))
    }

    /// Dense, start and result on the evaluation text.
    fn measure<'g>(
        &self,
        decoder: &Decoder<'g, '_>,
        commands: &mut Commands<'g>,
        start: Option<&MaskSet>,
        result: &MaskSet,
    ) -> Result<Vec<EvalRow>, CliError> {
        let Some((windows, tokens)) = &self.eval else {
            return Ok(Vec::new());
        };
        let ws = workspace(decoder, windows, usize::MAX)?;
        let gpu = decoder.kernels.gpu();
        let bank = MaskBank::upload(gpu, decoder.config, result)?;
        let mut rows = Vec::new();
        let models = [("dense", None), ("start", start), ("result", Some(result))];
        for (model, set) in models {
            let masks = match (set, model) {
                (None, "dense") => None,
                (None, _) => continue,
                (Some(set), _) => {
                    bank.fill(gpu, decoder.config, set)?;
                    Some(bank.refs())
                }
            };
            let mut bar = Progress::new(model, windows.count() as u64, self.device.quiet);
            let masks = masks.as_deref().unwrap_or(DENSE);
            let p = perplexity(decoder, commands, &ws, windows, *tokens, masks, |n| {
                bar.at(n as u64, String::new)
            })?;
            bar.end();
            rows.push(EvalRow {
                model,
                perplexity: p.perplexity,
                nll: p.nll,
                windows: p.windows,
                window: p.window,
            });
        }
        Ok(rows)
    }

    fn print(&self, rows: &[EvalRow], changed: Option<u64>) {
        if !rows.is_empty() {
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|r| vec![r.model.to_string(), format!("{:.4}", r.perplexity), format!("{:.5}", r.nll)])
                .collect();
            println!("{}", table(&["model", "perplexity", "nats/token"], &cells));
            println!("{} windows of {} tokens", rows[0].windows, rows[0].window);
        }
        if let Some(changed) = changed {
            let groups = self.selection.weights() / self.args.select.pattern.m() as u64;
            println!("{changed} of {groups} groups differ from the start mask");
        }
    }
}

fn groups_changed(a: &MaskSet, b: &MaskSet) -> u64 {
    let pairs = a.masks.iter().filter_map(|(name, mask)| Some((mask, b.masks.get(name)?)));
    pairs.map(|(x, y)| x.groups_changed(y, a.pattern)).sum()
}
