//! `maskwright export` and `maskwright apply-mask`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::context::Context;
use super::{CliError, Outcome, help};
use crate::export::{ExportError, MaskedModel, ct24, hf, torch24};
use crate::folder::RunPaths;
use crate::fsio::{OutputFile, check_folder, shown};
use crate::mask::{MaskFile, npz};
use crate::model::Overlay;
use crate::run::{Model, PermutationSpec, room_near};

#[derive(clap::Args)]
#[command(after_help = help::EXPORT)]
pub(super) struct ExportArgs {
    /// The dense model: a folder in Hugging Face layout, or its name on the hub, ORG/NAME
    model: PathBuf,
    /// The mask file: of a run, or MaskLLM's .npz
    #[arg(long, value_name = "FILE")]
    mask: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Hf)]
    format: Format,
    /// A new folder; for `mask` and `maskllm-npz` a file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Re-fitted weights: a safetensors file, or a folder of them [default: those of the run that the mask lies in, if it changed any]
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    permutation: PermutationSpec,
    /// Replace a file that is there already; for `mask` and `maskllm-npz`
    #[arg(long)]
    force: bool,
    /// Allow ct24, which is read by compressed-tensors 0.9.0 to 0.14.0.1 with transformers up to 5.10.0, and by vLLM 0.7.2 to 0.18.1.
    /// Newer transformers with compressed-tensors 0.15.0 or newer load it without an error and with random weights; vLLM 0.19.0
    /// and newer refuse it
    #[arg(long)]
    legacy_ct24: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Hf,
    Mask,
    MaskllmNpz,
    Torch24,
    Ct24,
}

impl ExportArgs {
    /// Whether a file or a folder can be written as asked, before anything is read for it; the file, where it is one.
    fn check_destination(&self, model: &Model) -> Result<Option<OutputFile>, CliError> {
        if matches!(self.format, Format::Mask | Format::MaskllmNpz) {
            let inputs = [Some(model.folder.as_path()), Some(self.mask.as_path()), run_of(&self.mask)];
            let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
            return Ok(Some(OutputFile::check(&self.out, &inputs, self.force)?));
        }
        if self.force {
            let message =
                "--force replaces a file, and this format writes a folder: give a new one with --out";
            return Err(CliError::Usage(message.into()));
        }
        if self.format == Format::Hf {
            hf::check_destination(&model.checkpoint, &self.out)?;
        } else {
            hf::check_copied(&model.checkpoint, &self.out)?;
        }
        check_folder(&self.out)?;
        Ok(None)
    }
}

pub(super) fn export(context: &Context, args: &ExportArgs) -> Result<Outcome, CliError> {
    if args.format == Format::Ct24 && !args.legacy_ct24 {
        return Err(CliError::Usage(format!(
            "{}; give --legacy-ct24 to write it all the same",
            ct24::WARNING
        )));
    }
    let mut model = context.model(&args.model)?;
    let output = args.check_destination(&model)?;
    model.in_order_of(&args.mask, &args.permutation, &room_near(&args.out), context)?;
    let file = model.mask_file(&args.mask, None)?;
    model.warn_of_sources(&file, &args.mask, context)?;
    if let Some(output) = output {
        if args.weights.is_some() {
            return Err(CliError::Usage(
                "--weights has no use with a format that holds only the mask".into(),
            ));
        }
        match args.format {
            Format::MaskllmNpz => {
                npz::write(&file, &model.config.projections(), &output)?;
                if file.permutation.is_some() {
                    log::warn!(
                        "{} cannot say that its masks are for a permuted model: keep permutation.safetensors beside it, and give it \
                         with --permutation",
                        args.out.display()
                    );
                }
            }
            _ => {
                let MaskFile { set, provenance, .. } = file.into_file()?;
                MaskFile::new(set, provenance, &model.checkpoint)?.write(&output)?;
            }
        }
        match args.json {
            true => println!("{}", json!({ "written": shown(&args.out) })),
            false => println!("written: {}", args.out.display()),
        }
        return Ok(Outcome::Done);
    }
    let mut tensors = Overlay::new(&model.checkpoint);
    let sources = match &args.weights {
        Some(path) => vec![path.clone()],
        None => refitted(&args.mask)?,
    };
    for path in &sources {
        for shard in shards(path)? {
            tensors.add(&shard)?;
        }
        context.note(|| format!("re-fitted weights are taken from {}", path.display()));
    }
    let write = match args.format {
        Format::Torch24 => torch24::write,
        Format::Ct24 => ct24::write,
        Format::Hf | Format::Mask | Format::MaskllmNpz => hf::write,
    };
    let masked =
        MaskedModel { tensors: &tensors, config: &model.config, masks: &file, provenance: &file.provenance };
    let summary = write(&masked, &args.out)?;
    match args.json {
        true => println!("{}", told(&summary)),
        false => print(&summary),
    }
    if args.format == Format::Ct24 {
        log::warn!("{}", ct24::WARNING);
    }
    Ok(Outcome::Done)
}

/// A summary as JSON.
fn told(summary: &hf::Summary) -> Value {
    let dense: Vec<Value> =
        summary.stored_dense.iter().map(|(name, reason)| json!({ "name": name, "reason": reason })).collect();
    json!({
        "written": shown(&summary.folder),
        "projection_weights": summary.projection_weights,
        "pruned_weights": summary.pruned_weights,
        "weight_bytes": summary.weight_bytes,
        "stored_dense": dense,
    })
}

fn print(summary: &hf::Summary) {
    for (name, reason) in &summary.stored_dense {
        println!("stored dense: {name}: {reason}");
    }
    println!(
        "{} of {} projection weights are zero; {} bytes of weights",
        summary.pruned_weights, summary.projection_weights, summary.weight_bytes
    );
    println!("written: {}", summary.folder.display());
}

/// The folder of the run that a mask lies in, where it lies in one.
fn run_of(mask: &Path) -> Option<&Path> {
    let folder = mask.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ["run.json", "metrics.jsonl"].iter().any(|name| folder.join(name).is_file()).then_some(folder)
}

/// Where the run that the mask lies in keeps re-fitted weights: in its model, or in the files of its blocks, of which those of later
/// stages replace earlier ones.
fn refitted(mask: &Path) -> Result<Vec<PathBuf>, CliError> {
    let run = RunPaths::new(mask.parent().unwrap_or(Path::new("")));
    let Ok(text) = fs::read(run.run()) else { return Ok(Vec::new()) };
    let told: Value = serde_json::from_slice(&text).map_err(|e| {
        CliError::Usage(format!(
            "{} cannot be parsed: {e}; copy the mask out of that folder",
            run.run().display()
        ))
    })?;
    if told.get("kept_weights_changed") != Some(&Value::Bool(true)) {
        return Ok(Vec::new());
    }
    let model = run.model();
    if model.is_dir() {
        return Ok(vec![model]);
    }
    let stages = told["options"]["stages"].as_array().map_or(0, Vec::len);
    let blocks = (1..=stages).map(|number| run.stage(number).blocks());
    let found: Vec<PathBuf> = std::iter::once(run.blocks()).chain(blocks).filter(|p| p.is_dir()).collect();
    if found.is_empty() {
        return Err(CliError::Usage(format!(
            "the run {} changed kept weights, but they are not there any more; name them with --weights, or copy the mask out \
             of that folder to use it with the dense weights",
            run.root().display()
        )));
    }
    Ok(found)
}

/// A file, or the safetensors files of a folder, sorted.
fn shards(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let fail = |source| ExportError::Read { path: path.into(), source };
    let mut all = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        if file.extension().is_some_and(|e| e == "safetensors") {
            all.push(file);
        }
    }
    all.sort();
    if all.is_empty() {
        return Err(CliError::Usage(format!(
            "{} has no .safetensors files to take weights from",
            path.display()
        )));
    }
    Ok(all)
}

#[derive(clap::Args)]
#[command(after_help = help::APPLY_MASK)]
pub(super) struct ApplyArgs {
    /// A model folder whose projections have the mask's shapes, or its name on the hub, ORG/NAME
    checkpoint: PathBuf,
    /// The mask file: of a run, or MaskLLM's .npz
    #[arg(long, value_name = "FILE")]
    mask: PathBuf,
    /// A new folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    permutation: PermutationSpec,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn apply(context: &Context, args: &ApplyArgs) -> Result<Outcome, CliError> {
    let mut model = context.model(&args.checkpoint)?;
    hf::check_destination(&model.checkpoint, &args.out)?;
    check_folder(&args.out)?;
    model.in_order_of(&args.mask, &args.permutation, &room_near(&args.out), context)?;
    let file = model.mask_file(&args.mask, None)?;
    let differing = file.differing_sources(&model.checkpoint)?.len();
    let tensors = Overlay::new(&model.checkpoint);
    let nonzero = hf::nonzero_pruned(&tensors, &file)?;
    let masked =
        MaskedModel { tensors: &tensors, config: &model.config, masks: &file, provenance: &file.provenance };
    let summary = hf::write(&masked, &args.out)?;
    if args.json {
        let mut out = told(&summary);
        out["nonzero_pruned"] = nonzero.into();
        out["differing_tensors"] = differing.into();
        out["source_tensors"] = file.sources.len().into();
        println!("{out}");
        return Ok(Outcome::Done);
    }
    let made_for = match file.sources.len() {
        0 => "the mask file does not say which tensors it was made for".into(),
        all => format!("{differing} of {all} tensors differ from those that the mask was made for"),
    };
    println!("{made_for}; {nonzero} pruned weights were not zero");
    print(&summary);
    Ok(Outcome::Done)
}
