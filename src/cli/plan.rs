//! What `prune --dry-run` shows: memory, item by item, and an estimate of the time.

use serde_json::json;

use super::CliError;
use super::context::Context;
use super::output::{plan_rows, table};
use crate::kernel::{Kernels, product_rate};
use crate::nn::total;
use crate::run::{Resources, RunPlan, bytes};

/// Prints what will be allocated and how long it may take: of the walk, and of what is learned behind it.
pub(super) fn show_plan(
    context: &Context,
    run: &RunPlan<'_>,
    kernels: &Kernels<'_>,
    resources: &Resources,
    as_json: bool,
) -> Result<(), CliError> {
    if let Some((folder, dtype)) = run.shape() {
        context.note(|| format!("planned for weights in {dtype}, by {}/config.json", folder.display()));
    }
    let Resources { walk, stages, measuring, .. } = resources;
    let (walk, plan) = (walk.as_ref(), resources.largest());
    let walk_flops = walk.map(|w| w.flops).filter(|flops| *flops > 0.0);
    let rate = match walk_flops.or(stages.iter().find_map(|s| s.flops)) {
        Some(_) => {
            let rate = product_rate(kernels)?;
            context.note(|| format!("measured: {:.1} GFLOP/s in products", rate * 1e-9));
            Some(rate)
        }
        None => None,
    };
    let written = run.written_bytes()?;
    let seconds = walk_flops.zip(rate).map(|(flops, rate)| flops / rate);
    if as_json {
        let out = json!({
            "plan": plan, "total": total(plan), "host": walk.map(|w| &w.host),
            "flops": walk.map(|w| w.flops), "seconds": seconds,
            "walk": walk.map(|w| &w.gpu),
            "measuring": measuring,
            "written": written,
            "stages": stages.iter().map(|s| s.json(rate)).collect::<Vec<_>>(),
            "adapter": kernels.gpu().describe(),
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
    println!(
        "{} projections, {} weights under masks",
        run.selection().pruned.len(),
        run.selection().weights()
    );
    if let Some(written) = written {
        println!("the masked model takes {} on the disk", bytes(written));
    }
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

/// "3.2 s", "4 min", "2.5 h".
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
