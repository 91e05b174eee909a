//! `maskwright prune`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::context::Context;
use super::output::{profile, table};
use super::plan::show_plan;
use super::{CliError, Outcome, help};
use crate::kernel::Kernels;
use crate::prune::ProjectionReport;
use crate::report::{Live, Server};
use crate::run::{EvalRow, Finished, Observer, RunPlan, RunSpec, Task};

#[derive(clap::Args)]
#[command(after_help = help::PRUNE)]
pub(super) struct Args {
    /// Print what memory and about what time the run would take, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Show the report in the browser while the run goes on; on this machine only, unless another address is given
    /// [default: it is not shown; without an address 127.0.0.1:8350]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:8350")]
    serve: Option<String>,
    #[command(flatten)]
    spec: RunSpec,
}

pub(super) fn run(context: &Context, args: Args) -> Result<Outcome, CliError> {
    let Args { dry_run, json, serve, spec } = args;
    let spec = RunSpec { device: context.device.clone(), ..spec };
    if dry_run {
        let plan = RunPlan::of_shape(spec, context)?;
        warn_of_unused(context, &plan);
        let gpu = context.open()?;
        let kernels = Kernels::new(&gpu, context.preset(&gpu)?);
        let resources = plan.resources(&kernels)?;
        if plan.permutes() {
            context.note(|| {
                "--permute comes first: one pass of the dense model over some of the windows, layer by layer, and a search on the host".into()
            });
        }
        show_plan(context, &plan, &kernels, &resources, json)?;
        plan.check(&resources)?;
        return Ok(Outcome::Done);
    }
    let served = Served::new(context, &spec, serve.as_deref())?;
    let plan = RunPlan::new(spec, &served)?;
    warn_of_unused(context, &plan);
    let finished = plan.execute()?;
    if let Some(run) = &finished.run {
        if json {
            println!("{run}");
        } else {
            print(&finished);
        }
    }
    if let Some(times) = &finished.profile {
        eprintln!("{}", profile(times));
    }
    Ok(finished.outcome)
}

fn warn_of_unused(context: &Context, plan: &RunPlan<'_>) {
    for (option, what) in plan.unused() {
        context.warn(&format!("--{option} does nothing in this run: it is for {what}"));
    }
}

/// The terminal, and the page of `--serve`.
struct Served<'a> {
    context: &'a Context,
    live: Option<Arc<Live>>,
}

impl<'a> Served<'a> {
    /// Takes the address and begins to answer there.
    fn new(context: &'a Context, spec: &RunSpec, address: Option<&str>) -> Result<Self, CliError> {
        let folder = spec.out.as_ref().or(spec.resume.as_ref());
        let Some((address, folder)) = address.zip(folder) else { return Ok(Self { context, live: None }) };
        let server = Server::bind(address)?;
        context.note(|| format!("the report is shown at {}", server.url()));
        let live = Arc::new(Live::new(folder, &spec.to_toml()));
        server.start(live.clone());
        Ok(Self { context, live: Some(live) })
    }
}

impl Observer for Served<'_> {
    fn stop(&self) -> bool {
        self.context.stop()
    }

    fn guard(&self) {
        self.context.guard();
    }

    fn note(&self, text: &str) {
        Observer::note(self.context, text);
    }

    fn task(&self, what: &str, total: u64) -> Box<dyn Task> {
        self.context.task(what, total)
    }

    fn began(&self, info: &Map<String, Value>) {
        if let Some(live) = &self.live {
            live.tell(Value::Object(info.clone()));
        }
    }
}

fn row(row: &EvalRow) -> Vec<String> {
    let to_dense = row.kl_to_dense.map_or(String::new(), |kl| format!("{kl:.5}"));
    let top1 = row.top1_agreement.map_or(String::new(), |a| format!("{:.1} %", 100.0 * a));
    vec![row.model.to_string(), format!("{:.4}", row.perplexity), format!("{:.5}", row.nll), to_dense, top1]
}

fn print(finished: &Finished) {
    if let Some(first) = finished.results.first() {
        let cells: Vec<Vec<String>> = finished.results.iter().map(row).collect();
        let head = ["model", "perplexity", "nats/token", "KL to dense", "top-1 as dense"];
        println!("{}", table(&head, &cells));
        println!("{} windows of {} tokens", first.windows, first.window);
    }
    let mean = |of: fn(&ProjectionReport) -> Option<f64>| {
        let values: Vec<f64> = finished.reports.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    if let Some(error) = mean(|r| r.error) {
        let start = mean(|r| r.start).map_or(String::new(), |s| format!("{s:.5} under the start mask, "));
        let repaired = mean(|r| r.repaired).map_or(String::new(), |r| format!(", {r:.5} after the repair"));
        println!("output error of the projections, mean: {start}{error:.5} under the mask{repaired}");
    }
    if let Some(changed) = finished.groups_changed {
        println!("{changed} of {} groups differ from the start mask", finished.groups);
    }
    if finished.weights_changed {
        println!(
            "kept weights were changed (--repair, --joint): the written model is not bit-identical where it is kept"
        );
    }
    println!("written: {}", finished.folder.display());
}
