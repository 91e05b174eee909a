//! `maskwright eval --choices`.

use std::path::Path;

use serde_json::{Value, json};

use super::context::Context;

use super::output::{masked, planned, show_profile, shown, table, with_profile};
use super::{CliError, Outcome};
use crate::calib::Question;
use crate::eval::{Accuracy, Answered, Candidates, plan};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::model::Tokenizer;
use crate::nn::{Decoder, DecoderWeights, Embedding, MaskBank};
use crate::run::{MemorySpec, PermutationSpec, Task};

/// Answers the questions of a file.
pub(super) fn run(
    context: &Context,
    folder: &Path,
    mask: Option<(&Path, &PermutationSpec)>,
    questions: &Path,
    memory: &MemorySpec,
    as_json: bool,
) -> Result<Outcome, CliError> {
    let mut model = context.checked_model(folder)?;
    if let Some((mask, permutation)) = mask {
        model.in_order_of(mask, permutation, &std::env::temp_dir(), context)?;
    }
    let tokenizer = Tokenizer::open(&model.folder, &model.config)?;
    let questions = Question::read_all(questions)?;
    let set = mask.map(|(path, _)| model.mask(path, None, context)).transpose()?;
    let gpu = context.open()?;
    let kernels = Kernels::new(&gpu, context.preset(&gpu)?);
    let started = std::time::Instant::now();
    let (checkpoint, config) = (&model.checkpoint, &model.config);
    let candidates = Candidates::new(config, gpu.limits(), &tokenizer, &questions)?;
    let (sizes, masked) = (candidates.sizes(), masked(config, set.as_ref()));
    let plan = plan::resident(&kernels, checkpoint, config, &masked, &sizes, candidates.tokens())?;
    memory.allows(&plan, ["use shorter questions"; 2])?;
    let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
    let bank = match &set {
        Some(set) => MaskBank::upload(&gpu, &model.config, set)?,
        None => MaskBank::dense(&model.config),
    };
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
    let mut commands = Commands::new(&gpu)?;
    let mut bar = context.progress("choices", candidates.len() as u64);
    let progress = |done| bar.at(done as u64, &String::new);
    let answered = candidates.answer(&decoder, &mut commands, &bank.refs(), progress)?;
    drop(bar);
    let accuracy = Accuracy::of(&answered);
    let shares = [
        ("acc", accuracy.acc),
        ("acc_norm", accuracy.acc_norm),
        ("acc_bytes", accuracy.acc_bytes),
        ("acc_tokens", accuracy.acc_tokens),
    ];
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        let each = |of: fn(&Answered) -> Value| answered.iter().map(of).collect::<Vec<_>>();
        let mut out = json!({
            "questions": questions.len(),
            "log_likelihoods": each(|a| json!(a.likelihoods)),
            "tokens": each(|a| json!(a.tokens)),
            "adapter": gpu.describe(),
            "preset": kernels.preset().name,
            "seconds": seconds,
            "masked": set.is_some(),
            "memory": planned(&plan, &gpu),
        });
        for (name, share) in shares {
            out[name] = share.value.into();
            out["intervals_95"][name] = json!([share.low, share.high]);
        }
        println!("{}", with_profile(out, &context.device, &gpu));
    } else {
        let head =
            std::iter::once("questions".to_string()).chain(shares.map(|(name, _)| format!("{name}, %")));
        let cells = std::iter::once(questions.len().to_string())
            .chain(shares.map(|(_, share)| shown(share, 100.0, 2)))
            .collect();
        let head: Vec<String> = head.collect();
        println!("{}", table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &[cells]));
        context.note(|| {
            format!(
                "for the harness's own tasks, on the written model:\n  lm_eval --model hf --model_args pretrained=MODEL,dtype=auto \
                 --tasks hellaswag,arc_easy,arc_challenge,piqa,winogrande --batch_size auto\n{seconds:.1} s"
            )
        });
    }
    show_profile(&context.device, &gpu, as_json);
    Ok(Outcome::Done)
}
