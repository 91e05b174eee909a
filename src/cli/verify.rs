//! `maskwright verify`.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::output::table;
use super::{CliError, Outcome, help};
use crate::export::hf;
use crate::hub::Need;
use crate::mask::{MaskReader, Masks, Pattern};
use crate::model::Permutation;
use crate::run::{beside, bytes, find, named_by};
use crate::verify::{self, Line, Options, Verdict, verify};

#[derive(clap::Args)]
#[command(after_help = help::VERIFY)]
pub(super) struct Args {
    /// Masked model folder, or its name on the hub, ORG/NAME: dense with zeros, torch24 or ct24
    folder: PathBuf,
    /// Folder of the dense model, or its name on the hub, to whose bytes kept weights and all other tensors and files must be equal [default: not compared]
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Mask file that the folder must have been made with [default: none]
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Permutation of a permuted model, by which the dense one is permuted to be compared [default: permutation.safetensors beside FOLDER,
    /// or beside the mask]
    #[arg(long, value_name = "FILE")]
    permutation: Option<PathBuf>,
    /// Pattern: keep N of M consecutive weights [default: the mask's, else that of sparsity_report.json]
    #[arg(long, value_name = "N:M")]
    pattern: Option<Pattern>,
    /// Kept weights were re-fitted: do not hold them against the dense model
    #[arg(long)]
    repaired: bool,
    /// Projections may be wholly dense, although neither the mask nor the report leaves them so
    #[arg(long)]
    allow_dense: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    let folder = context.model_folder(&args.folder, Need::Whole)?;
    let against = args.against.as_ref().map(|path| context.model_folder(path, Need::Whole)).transpose()?;
    let open = |path: &PathBuf| {
        let config = verify::config(&folder)?;
        Ok::<_, CliError>(MaskReader::open(path, &config.projections(), args.pattern)?)
    };
    let mask = args.mask.as_ref().map(open).transpose()?;
    let permutation = permutation(&folder, args)?;
    let options = Options {
        permutation: permutation.as_ref(),
        pattern: args.pattern,
        mask: mask.as_ref().map(|masks| masks as &dyn Masks),
        against: against.as_deref(),
        repaired: args.repaired,
        allow_dense: args.allow_dense,
    };
    let verdict = verify(&folder, &options)?;
    if args.json {
        println!("{}", serde_json::json!(verdict));
    } else {
        show(context, &verdict, args.repaired);
    }
    match verdict.problems.first() {
        None => Ok(Outcome::Done),
        Some(first) => Err(CliError::Verdict { first: first.to_string(), more: verdict.problems.len() - 1 }),
    }
}

/// The permutation that the source is to be compared in: that which the folder's report or the mask names.
fn permutation(folder: &Path, args: &Args) -> Result<Option<Permutation>, CliError> {
    if args.against.is_none() {
        return Ok(None);
    }
    let of_mask = args.mask.as_deref().map(named_by).transpose()?.flatten();
    let files: Vec<PathBuf> = match &args.permutation {
        Some(file) => vec![file.clone()],
        // A name like "." has no parent.
        None => {
            let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
            [whole.as_path()].into_iter().chain(args.mask.as_deref()).map(beside).collect()
        }
    };
    match (hf::permutation_of(folder).or(of_mask), &args.permutation) {
        (Some(hash), _) => Ok(find(&hash, folder, &files).map(Some)?),
        // One without a report.
        (None, Some(file)) => Ok(Some(Permutation::read(file)?)),
        (None, None) => Ok(None),
    }
}

fn show(context: &Context, verdict: &Verdict, repaired: bool) {
    let yes = |refused: &Option<String>| if refused.is_none() { "yes" } else { "no" }.to_string();
    let row = |line: &Line| {
        let weights = (line.rows as f64 * line.cols as f64).max(1.0);
        vec![
            line.name.clone(),
            format!("{} {} x {}", line.dtype, line.rows, line.cols),
            if line.dense { "dense".into() } else { format!("{:.2}", 100.0 * line.kept as f64 / weights) },
            line.short_groups.to_string(),
            line.violations.to_string(),
            yes(&line.backends.cutlass),
            yes(&line.backends.cusparselt),
            yes(&line.backends.tensorrt),
        ]
    };
    let rows: Vec<_> = verdict.projections.iter().map(row).collect();
    let header =
        ["projection", "stored", "kept %", "short groups", "wrong", "CUTLASS", "cuSPARSELt", "TensorRT"];
    println!("{}\n", table(&header, &rows));
    let size = &verdict.bytes;
    let form = |name: &str, n: u64| vec![name.to_string(), bytes(n)];
    let forms = [
        form("dense with zeros", size.dense),
        form("torch24", size.torch24),
        form("ct24", size.ct24),
        form("cuSPARSELt (estimate)", size.cusparselt_estimate),
        form("mask file", size.mask_file),
    ];
    println!("{}\n", table(&["the projections as", "bytes"], &forms));
    for problem in &verdict.problems {
        println!("{problem}");
    }
    let dense = verdict.projections.iter().filter(|l| l.dense).count();
    let masked = verdict.projections.len() - dense;
    let entries = &verdict.entries;
    for (what, paths) in [
        ("added", &entries.added),
        ("removed", &entries.removed),
        ("changed", &entries.changed),
        ("added, as exports write it", &entries.of_the_export),
        ("of the source, left out by exports", &entries.left_out),
        ("not compared", &entries.not_compared),
    ] {
        paths.iter().for_each(|path| println!("{what}: {path}"));
    }
    let what = match (verdict.compared, repaired) {
        (false, _) => "not held against a source",
        (true, true) => "kept weights not compared (--repaired), other tensors and files as in the source",
        (true, false) if entries.not_compared.is_empty() => {
            "kept weights and all other tensors and files as in the source, nothing else touched"
        }
        (true, false) => {
            "kept weights and all other tensors and files as in the source, but for what was not compared"
        }
    };
    match verdict.ok {
        true => {
            let packed = match verdict.format {
                "dense" => String::new(),
                format => format!(", {format}"),
            };
            println!(
                "right: {masked} projections are strictly {}, {dense} dense{packed}; {what}",
                verdict.pattern
            );
        }
        false => println!("wrong: {} tensors or files", verdict.problems.len()),
    }
    if !verdict.compared {
        context.note(|| {
            "give --against MODEL to check the kept weights and everything that is not pruned".into()
        });
    }
}
