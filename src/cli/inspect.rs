//! `maskwright inspect`.

use std::path::PathBuf;

use super::context::Context;
use super::output::table;
use super::{CliError, Outcome, help};
use crate::hub::Need;
use crate::mask::Pattern;
use crate::run::beside;
use crate::verify::{Agreement, Inspection, Row, inspect};

#[derive(clap::Args)]
#[command(after_help = help::INSPECT)]
pub(super) struct Args {
    /// A mask file (of a run, or MaskLLM's .npz), a model folder (dense, torch24 or ct24) or its name on the hub, or the folder of a run
    path: PathBuf,
    /// Another one, to compare with
    other: Option<PathBuf>,
    /// Model folder that an .npz file is for, or its name on the hub; its config.json says the shapes [default: the other one of the two]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    let path = context.model_or_file(&args.path, Need::Whole)?;
    let other = args.other.as_ref().map(|path| context.model_or_file(path, Need::Whole)).transpose()?;
    let model = args.model.as_ref().map(|path| context.model_folder(path, Need::Shape)).transpose()?;
    let found = inspect(&path, other.as_deref(), model.as_deref())?;
    match args.json {
        true => println!("{}", serde_json::json!(found)),
        false => show(&found),
    }
    Ok(Outcome::Done)
}

fn show(found: &Inspection) {
    let pattern = |p: Option<Pattern>| p.map_or("none".to_string(), |p| p.to_string());
    let percent = |fraction: f64| format!("{:.2}", 100.0 * fraction);
    let compared = found.agreement.is_some();
    let row = |row: &Row| {
        let weights = row.rows as f64 * row.cols as f64;
        let size = format!("{} x {}", row.rows, row.cols);
        let zero = percent(1.0 - row.kept as f64 / weights.max(1.0));
        let mut cells = vec![row.name.clone(), size, pattern(row.pattern), zero];
        if compared {
            let cell =
                |f: fn(&Agreement) -> f64| row.agreement.as_ref().map_or("-".into(), |a| percent(f(a)));
            cells.extend([cell(Agreement::groups_fraction), cell(Agreement::shared_fraction)]);
        }
        cells
    };
    let mut header = vec!["projection", "size", "pattern", "zero %"];
    if compared {
        header.extend(["same groups %", "shared %"]);
    }
    println!("{}\n", table(&header, &found.projections.iter().map(row).collect::<Vec<_>>()));
    let method = found.method.as_ref().map_or(String::new(), |m| format!(", method {m}"));
    println!(
        "{} ({}{method}): {}, {} projections, {} % of {} weights are zero",
        found.path.display(),
        found.kind,
        found.pattern.map_or("no usual pattern".into(), |p| p.to_string()),
        found.projections.len(),
        percent(1.0 - found.kept as f64 / found.weights.max(1) as f64),
        found.weights
    );
    if let Some(hash) = &found.permutation {
        let beside = beside(&found.path);
        let there = match beside.is_file() {
            true => format!("by {}", beside.display()),
            false => "its permutation.safetensors is not beside it".into(),
        };
        println!("the channels of its model are permuted, {there} (SHA-256 {hash})");
    }
    if found.other_order {
        println!("the two are for different orders of channels: what they share means nothing");
    }
    if let Some(agreement) = &found.agreement {
        println!(
            "{} % of the groups are the same, {} % of the kept weights are shared",
            percent(agreement.groups_fraction()),
            percent(agreement.shared_fraction())
        );
    }
    if let Some(first) = found.only_in_one.first() {
        println!("{} projections are in only one of the two, the first is {first}", found.only_in_one.len());
    }
}
