//! `maskwright eval --choices`.

use std::path::Path;

use serde_json::json;

use super::context::{DeviceArgs, Model};
use super::output::{Progress, show_profile, shown, table, with_profile};
use super::{CliError, Outcome};
use crate::calib::Question;
use crate::eval::{Accuracy, answer};
use crate::gpu::Commands;
use crate::kernel::Kernels;
use crate::model::Tokenizer;
use crate::nn::{Decoder, DecoderWeights, Embedding, MaskBank};

/// Answers the questions of a file.
pub(super) fn run(
    device: &DeviceArgs,
    folder: &Path,
    mask: Option<&Path>,
    questions: &Path,
    as_json: bool,
) -> Result<Outcome, CliError> {
    let model = Model::open_checked(device, folder)?;
    let tokenizer = Tokenizer::open(&model.folder, &model.config)?;
    let questions = Question::read_all(questions)?;
    let set = mask.map(|path| model.mask(path, None)).transpose()?;
    let gpu = device.open()?;
    let kernels = Kernels::new(&gpu, device.preset(&gpu)?);
    let started = std::time::Instant::now();
    let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
    let bank = match &set {
        Some(set) => MaskBank::upload(&gpu, &model.config, set)?,
        None => MaskBank::dense(&model.config),
    };
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
    let mut commands = Commands::new(&gpu)?;
    let candidates: usize = questions.iter().map(|q| q.choices.len()).sum();
    let mut bar = Progress::new("choices", candidates as u64, device.quiet);
    let progress = |done| bar.at(done as u64, String::new);
    let answered = answer(&decoder, &mut commands, &bank.refs(), &tokenizer, &questions, progress)?;
    bar.end();
    let Accuracy { acc, acc_norm } = Accuracy::of(&answered);
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        let likelihoods: Vec<_> = answered.iter().map(|a| &a.likelihoods).collect();
        let out = json!({
            "questions": questions.len(),
            "acc": acc.value,
            "acc_norm": acc_norm.value,
            "intervals_95": {"acc": [acc.low, acc.high], "acc_norm": [acc_norm.low, acc_norm.high]},
            "log_likelihoods": likelihoods,
            "adapter": gpu.describe(),
            "preset": kernels.preset().name,
            "seconds": seconds,
            "masked": set.is_some(),
        });
        println!("{}", with_profile(out, device, &gpu));
    } else {
        let cells = vec![questions.len().to_string(), shown(acc, 100.0, 2), shown(acc_norm, 100.0, 2)];
        println!("{}", table(&["questions", "acc, %", "acc_norm, %"], &[cells]));
        device.note(|| {
            format!(
                "for the harness's own tasks, on the written model:\n  lm_eval --model hf --model_args pretrained=MODEL,dtype=auto \
                 --tasks hellaswag,arc_easy,arc_challenge,piqa,winogrande --batch_size auto\n{seconds:.1} s"
            )
        });
    }
    show_profile(device, &gpu, as_json);
    Ok(Outcome::Done)
}
