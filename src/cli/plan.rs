//! What `prune --dry-run` shows: memory, item by item, and an estimate of the time.

use std::path::Path;

use serde_json::json;

use super::context::DeviceArgs;
use super::method::Method;
use super::output::table;
use super::prune_args::Args;
use super::stage_flow::StagePlans;
use super::stage_plan::{StagePlan, Stored};
use super::walk::plan_rows;
use super::{CliError, Outcome};
use crate::gpu::Gpu;
use crate::kernel::{Kernels, product_rate};
use crate::model::{Architecture, Dtype};
use crate::nn::{MemoryPlan, PlanItem, total};
use crate::prune::learn::Stage;
use crate::prune::plan::{self, WalkPlan};
use crate::prune::{OneShotOptions, Selection};

/// The plan by a model's config.json alone, with the type that it names.
pub(super) fn dry_run_of_shape(
    device: &DeviceArgs,
    args: &Args,
    folder: &Path,
    options: Option<&OneShotOptions>,
    stages: &[Stage],
) -> Result<Outcome, CliError> {
    let config = Architecture::read(folder)?;
    let selection = args.select(&config, device)?;
    if args.method == Method::Maskpro && stages.is_empty() {
        let message = "--method maskpro on the model's loss cannot be planned without weights: add the weight files, or take \
             --objective block or another --method";
        return Err(CliError::Usage(message.into()));
    }
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let choice = args.choice(&config);
    let stored = Stored::All(config.dtype.unwrap_or(Dtype::F16));
    let carried = options.and_then(|o| args.carried(&kernels, &config, o, choice.windows, choice.window));
    let dtype = |name: &str| stored.of(name);
    let walk = options.map(|o| plan::walk(&kernels, &config, &dtype, &selection, o, carried)).transpose()?;
    let plans = StagePlans {
        kernels: &kernels,
        config: &config,
        stored,
        selection: &selection,
        args,
        windows: choice.windows,
        window: choice.window,
    };
    let learning = plans.all(stages)?;
    if let Stored::All(dtype) = stored {
        device.note(|| format!("planned for weights in {dtype}, by {}/config.json", folder.display()));
    }
    // The text that is measured on is not read for a plan by the shape.
    let plans = Plans { walk: walk.as_ref(), stages: &learning, measuring: None };
    show_plan(device, args, &kernels, &selection, plans)?;
    args.walk.check_all(walk.as_ref(), carried, &learning).map(|()| Outcome::Done)
}

/// What a run takes, part by part.
#[derive(Clone, Copy)]
pub(super) struct Plans<'a> {
    pub(super) walk: Option<&'a WalkPlan>,
    pub(super) stages: &'a [StagePlan],
    pub(super) measuring: Option<&'a MemoryPlan>,
}

/// Prints what will be allocated and how long it may take: of the walk, and of what is learned behind it.
pub(super) fn show_plan(
    device: &DeviceArgs,
    args: &Args,
    kernels: &Kernels<'_>,
    selection: &Selection,
    Plans { walk, stages, measuring }: Plans<'_>,
) -> Result<(), CliError> {
    let gpu: &Gpu = kernels.gpu();
    let plan = largest(walk, stages);
    let walk_flops = walk.map(|w| w.flops).filter(|flops| *flops > 0.0);
    let rate = match walk_flops.or(stages.iter().find_map(|s| s.flops)) {
        Some(_) => {
            let rate = product_rate(kernels)?;
            device.note(|| format!("measured: {:.1} GFLOP/s in products", rate * 1e-9));
            Some(rate)
        }
        None => None,
    };
    let seconds = walk_flops.zip(rate).map(|(flops, rate)| flops / rate);
    if args.json {
        let out = json!({
            "plan": plan, "total": total(plan), "host": walk.map(|w| &w.host),
            "flops": walk.map(|w| w.flops), "seconds": seconds,
            "walk": walk.map(|w| &w.gpu),
            "measuring": measuring,
            "stages": stages.iter().map(|s| s.json(rate)).collect::<Vec<_>>(),
            "adapter": gpu.describe(),
        });
        println!("{out}");
        return Ok(());
    }
    if let Some(walk) = walk {
        let until = if stages.is_empty() { "until the mask is made" } else { "of the start mask" };
        println!("{}", table(&[&format!("GPU memory {until}"), "bytes"], &plan_rows(&walk.gpu)));
        println!("\n{}\n", table(&["host memory", "bytes"], &plan_rows(&walk.host)));
    }
    for (i, stage) in stages.iter().enumerate() {
        let title = format!("GPU memory of stage {}: {}", i + 1, stage.name);
        println!("{}\n", table(&[&title, "bytes"], &plan_rows(&stage.gpu)));
        if !stage.host.is_empty() {
            println!("{}\n", table(&["host memory", "bytes"], &plan_rows(&stage.host)));
        }
    }
    if let Some(measuring) = measuring {
        println!("{}", table(&["GPU memory of measuring on --eval", "bytes"], &plan_rows(&measuring.gpu)));
        println!("\n{}\n", table(&["host memory", "bytes"], &plan_rows(&measuring.host)));
    }
    println!("{} projections, {} weights under masks", selection.pruned.len(), selection.weights());
    if let (Some(walk), Some(seconds)) = (walk, seconds) {
        let blocks = (walk.flops / walk.block_flops.max(1.0)).round();
        println!(
            "layer by layer: {:.3e} operations a block, {blocks} blocks, about {}",
            walk.block_flops,
            duration(seconds)
        );
    }
    for (i, stage) in stages.iter().enumerate() {
        if let Some((flops, rate)) = stage.flops.zip(rate) {
            println!("stage {}: {flops:.3e} operations, about {}", i + 1, duration(flops / rate));
        }
    }
    Ok(())
}

/// The largest of the plans: they follow each other.
pub(super) fn largest<'a>(walk: Option<&'a WalkPlan>, stages: &'a [StagePlan]) -> &'a [PlanItem] {
    let all = walk.map(|w| &w.gpu[..]).into_iter().chain(stages.iter().map(|s| &s.gpu[..]));
    // The first of equal ones.
    all.reduce(|most, plan| if total(plan) > total(most) { plan } else { most }).unwrap_or_default()
}

/// "3.2 s", "4 min", "2.5 h".
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
