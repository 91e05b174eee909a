//! What `prune --dry-run` shows: memory, item by item, and an estimate of the time.

use serde_json::json;

use super::context::DeviceArgs;
use super::output::table;
use super::prune::{Args, Method};
use super::walk::plan_rows;
use super::{CliError, Outcome};
use crate::gpu::Gpu;
use crate::kernel::{Kernels, product_rate};
use crate::model::{Config, Dtype, ModelError};
use crate::nn::{PlanItem, total};
use crate::prune::plan::{self, WalkPlan};
use crate::prune::{OneShotOptions, Selection};

/// The plan of a model of which only config.json is there, with the type that it names.
pub(super) fn dry_run_of_shape(
    device: &DeviceArgs,
    args: &Args,
    options: Option<OneShotOptions>,
) -> Result<Outcome, CliError> {
    let config = Config::read(&args.model)?;
    let selection = args.select(&config, device)?;
    let Some(options) = options.filter(|_| args.method != Method::Maskpro) else {
        let message =
            "without weights only the layer-by-layer methods can be planned: name one with --method";
        return Err(CliError::Usage(message.into()));
    };
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let choice = args.choice(&config);
    let carried = args.walk.carried(&gpu, &config, choice.windows, choice.window, None);
    let stored = config.dtype.unwrap_or(Dtype::F16);
    let dtype = |_: &str| -> Result<Dtype, ModelError> { Ok(stored) };
    let plan = plan::walk(&kernels, &config, &dtype, &selection, &options, Some(carried))?;
    device.note(|| format!("no weights in {}: planned for {stored}", args.model.display()));
    show_plan(device, args, &kernels, &selection, Some(&plan), None)?;
    args.walk.check(&plan, Some(carried)).map(|()| Outcome::Done)
}

/// Prints what will be allocated and how long it may take.
pub(super) fn show_plan(
    device: &DeviceArgs,
    args: &Args,
    kernels: &Kernels<'_>,
    selection: &Selection,
    walk: Option<&WalkPlan>,
    learning: Option<&[PlanItem]>,
) -> Result<(), CliError> {
    let gpu: &Gpu = kernels.gpu();
    let plan = largest(walk, learning);
    let seconds = match walk {
        Some(walk) if walk.flops > 0.0 => {
            let rate = product_rate(kernels)?;
            device.note(|| format!("measured: {:.1} GFLOP/s in products", rate * 1e-9));
            Some(walk.flops / rate)
        }
        _ => None,
    };
    if args.json {
        let out = json!({
            "plan": plan, "total": total(plan), "host": walk.map(|w| &w.host),
            "flops": walk.map(|w| w.flops), "seconds": seconds, "adapter": gpu.describe(),
        });
        println!("{out}");
        return Ok(());
    }
    match (walk, learning) {
        (Some(walk), Some(learning)) => {
            println!("{}", table(&["GPU memory of the start mask", "bytes"], &plan_rows(&walk.gpu)));
            println!("\n{}", table(&["GPU memory of the learning", "bytes"], &plan_rows(learning)));
        }
        _ => println!("{}", table(&["GPU memory until the mask is made", "bytes"], &plan_rows(plan))),
    }
    if let Some(walk) = walk {
        println!("\n{}", table(&["host memory", "bytes"], &plan_rows(&walk.host)));
    }
    println!("\n{} projections, {} weights under masks", selection.pruned.len(), selection.weights());
    if let (Some(walk), Some(seconds)) = (walk, seconds) {
        let blocks = (walk.flops / walk.block_flops.max(1.0)).round();
        println!(
            "layer by layer: {:.3e} operations a block, {blocks} blocks, about {}",
            walk.block_flops,
            duration(seconds)
        );
    }
    Ok(())
}

/// The larger of the two plans: they follow each other.
pub(super) fn largest<'a>(walk: Option<&'a WalkPlan>, learning: Option<&'a [PlanItem]>) -> &'a [PlanItem] {
    let walk = walk.map_or(&[][..], |w| &w.gpu);
    match learning {
        Some(learning) if total(learning) > total(walk) => learning,
        _ => walk,
    }
}

/// "3.2 s", "4 min", "2.5 h".
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
