//! `maskwright devices`.

use super::context::Context;
use super::output::table;
use super::{CliError, Outcome, help};
use crate::gpu::list_adapters;
use crate::run::bytes;

#[derive(clap::Args)]
#[command(after_help = help::DEVICES)]
pub(super) struct Args {
    /// Print one JSON array instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    let adapters = list_adapters(context.device.device.as_deref())?;
    if args.json {
        println!("{}", serde_json::json!(adapters));
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = adapters
        .iter()
        .map(|a| {
            let mark = if a.chosen { "*" } else { " " };
            vec![
                format!("{mark} {}", a.index),
                a.name.clone(),
                a.backend.clone(),
                a.kind.clone(),
                a.driver.clone(),
            ]
        })
        .collect();
    println!("{}", table(&["  #", "name", "backend", "kind", "driver"], &rows));
    for a in &adapters {
        println!();
        println!("{} {}: {}", a.index, a.name, if a.chosen { "used" } else { "not used" });
        println!("  why                {}", a.reason);
        println!("  largest binding    {}", bytes(a.max_binding_bytes));
        println!("  largest buffer     {}", bytes(a.max_buffer_bytes));
        println!("  workgroup memory   {}", bytes(u64::from(a.workgroup_bytes)));
        println!("  invocations        {}", a.max_invocations);
        println!("  subgroup size      {} to {}", a.subgroup.0, a.subgroup.1);
        let features = if a.features.is_empty() { "none".to_string() } else { a.features.join(", ") };
        println!("  features used      {features}");
    }
    Ok(Outcome::Done)
}
