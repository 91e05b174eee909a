//! `maskwright generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::context::Context;

use super::output::{masked, planned, show_profile, with_profile};
use super::{CliError, Outcome, help, signals};
use crate::eval::{Choice, Continuation, Generation, generate, plan};
use crate::fsio::{Destination, OutputFile, shown};
use crate::gpu::{Commands, DeviceKind};
use crate::hub::Need;
use crate::kernel::{Kernels, cut, f32_bytes};
use crate::model::{Architecture, OpenText, Tokenizer};
use crate::nn::{DENSE, Decoder, DecoderWeights, Embedding, Generator, MaskBank, Masks, MemoryPlan};
use crate::run::{MemorySpec, Model, Observer, PermutationSpec, Task, bytes};

/// Bytes of keys and values that sequences written together may take.
const CACHE_BYTES: u64 = 1 << 30;
/// The most sequences written together.
const TOGETHER: usize = 128;
/// The same on a software driver, which more make no faster: texts are finished, and kept when a signal comes, sooner.
const TOGETHER_ON_CPU: usize = 32;

#[derive(clap::Args)]
#[command(after_help = help::GENERATE)]
pub(super) struct Args {
    /// Model folder in Hugging Face layout, or its name on the hub, ORG/NAME
    model: PathBuf,
    /// Text to continue [default: none, a new text is begun]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: String,
    /// Mask file to apply, a run's or MaskLLM's .npz [default: none, the weights as they are]
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    #[command(flatten)]
    permutation: PermutationSpec,
    /// Tokens behind the prompt, at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    /// 0 takes the most likely token; above, tokens are drawn from the softmax over the temperature
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write texts to this file (.jsonl) [default: one text is shown]
    #[arg(long, value_name = "FILE", requires = "count")]
    out: Option<PathBuf>,
    /// Replace a file that is there already
    #[arg(long, requires = "out")]
    force: bool,
    /// Texts to write; needed with --out
    #[arg(long, value_name = "N", requires = "out", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Continue behind a prompt that ends with a token which ends texts; without it such tokens are left out
    #[arg(long)]
    past_end: bool,
    #[command(flatten)]
    memory: MemorySpec,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Args {
    fn choice(&self) -> Result<Choice, CliError> {
        match self.temperature {
            0.0 => Ok(Choice::Greedy),
            t if t > 0.0 && t.is_finite() => Ok(Choice::Sampled { temperature: t, seed: self.seed }),
            t => Err(CliError::Usage(format!("--temperature {t}: 0 or a positive number is needed"))),
        }
    }

    /// The file of texts, checked before any work; none where a text is shown.
    fn corpus(&self, model: &Path) -> Result<Option<Corpus>, CliError> {
        let (Some(path), Some(count)) = (&self.out, self.count) else { return Ok(None) };
        if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl")) {
            let path = path.display();
            return Err(CliError::Usage(format!("--out {path}: JSON lines are written, name it .jsonl")));
        }
        if matches!(self.choice()?, Choice::Greedy) && count > 1 {
            let message =
                format!("{count} texts without --temperature would be the same one: use --temperature 1");
            return Err(CliError::Usage(message));
        }
        let inputs: Vec<&Path> = std::iter::once(model).chain(self.mask.as_deref()).collect();
        let file = OutputFile::check(path, &inputs, self.force)?;
        signals::guard();
        Ok(Some(Corpus { file, count }))
    }
}

/// Texts for a file.
struct Corpus {
    file: OutputFile,
    count: u32,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Outcome, CliError> {
    let choice = args.choice()?;
    args.memory.check()?;
    let folder = context.model_folder(&args.model, Need::Whole)?;
    let corpus = args.corpus(&folder)?;
    let mut model = context.checked_model(&folder)?;
    if let Some(mask) = &args.mask {
        model.in_order_of(mask, &args.permutation, &std::env::temp_dir(), context)?;
    }
    let tokenizer = Tokenizer::open(&model.folder, &model.config)?;
    let ends = model.config.end_tokens(&model.folder)?;
    let prompt = prompt_ids(&model, &tokenizer, &ends, &args.prompt, args.past_end)?;
    let set = args.mask.as_ref().map(|path| model.mask(path, None, context)).transpose()?;
    model.warn_of_long("the prompt and --tokens", prompt.len() + args.tokens as usize, context);
    let gpu = context.open()?;
    let kernels = Kernels::new(&gpu, context.preset(&gpu)?);
    let masked = masked(&model.config, set.as_ref());
    let together = together(context, &kernels, args, &model.config, prompt.len());
    let texts = (together, prompt.len(), args.tokens as usize);
    let plan = plan::generation(&kernels, &model.checkpoint, &model.config, &masked, texts)?;
    args.memory.allows(&plan, ["use fewer --tokens, or a shorter --prompt"; 2])?;
    let weights = DecoderWeights::upload(&gpu, &model.checkpoint, &model.config, |_| ())?;
    let embedding = Embedding::new(&model.checkpoint, &model.config)?;
    let bank = set.as_ref().map(|set| MaskBank::upload(&gpu, &model.config, set)).transpose()?;
    let masks = bank.as_ref().map(MaskBank::refs);
    let decoder = Decoder { kernels: &kernels, config: &model.config, weights: &weights, embedding };
    let what = Generation { tokens: args.tokens as usize, ends: &ends, choice, first: 0 };
    let (tokenizer, prompt) = (&tokenizer, &prompt[..]);
    let writer = Writer { context, args, decoder: &decoder, tokenizer, prompt, what, together, plan };
    let outcome = match &corpus {
        Some(corpus) => writer.corpus(corpus, masks.as_deref().unwrap_or(DENSE))?,
        None => writer.show(masks.as_deref()).map(|()| Outcome::Done)?,
    };
    show_profile(&context.device, &gpu, args.json);
    Ok(outcome)
}

/// The ids of the prompt: what the tokenizer makes of it, or the opening token where that is nothing. Tokens that end a text are left
/// out at its end unless `past_end`: the template's own without a word.
fn prompt_ids(
    model: &Model,
    tokenizer: &Tokenizer,
    ends: &[u32],
    text: &str,
    past_end: bool,
) -> Result<Vec<u32>, CliError> {
    let open = tokenizer.encode_open(text)?;
    let opening = open.opening();
    let OpenText { mut ids, closing, .. } = open;
    let spelling = |id: u32| tokenizer.spelling(id).unwrap_or_else(|| id.to_string());
    if let Some(&first) = ids[..opening].last()
        && ids.get(opening) == Some(&first)
    {
        log::warn!(
            "the prompt begins with {}, which the tokenizer puts there by itself: the model reads it twice; leave it out of --prompt",
            spelling(first)
        );
    }
    if past_end {
        ids.extend(closing);
    } else {
        // One that opens a text may end others, too.
        let written = ids.iter().skip(opening).rposition(|id| !ends.contains(id));
        let kept = opening + written.map_or(0, |last| last + 1);
        let kept = kept.max(usize::from(ids.first().copied() == model.config.bos_token_id));
        if let Some(&end) = ids.get(kept) {
            log::warn!(
                "the prompt ends with {}, which ends a text: left out; --past-end continues behind it",
                spelling(end)
            );
        }
        ids.truncate(kept);
    }
    match (ids.is_empty(), model.config.bos_token_id) {
        (false, _) => Ok(ids),
        (true, Some(opening)) => Ok(vec![opening]),
        (true, None) => Err(CliError::Usage(
            "this model has no token that opens a text: give the first words with --prompt".into(),
        )),
    }
}

/// What texts are written with.
struct Writer<'a, 'g, 'm> {
    context: &'a Context,
    args: &'a Args,
    decoder: &'a Decoder<'g, 'm>,
    tokenizer: &'a Tokenizer,
    prompt: &'a [u32],
    what: Generation<'a>,
    /// Texts that are written at a time into a file.
    together: usize,
    plan: MemoryPlan,
}

impl Writer<'_, '_, '_> {
    /// One text, and under a mask a second.
    fn show(&self, masked: Option<Masks<'_>>) -> Result<(), CliError> {
        let gpu = self.decoder.kernels.gpu();
        let mut commands = Commands::new(gpu)?;
        let variants = [("dense", Some(DENSE)), ("masked", masked)];
        let mut all = serde_json::Map::new();
        for (name, masks) in variants {
            let Some(masks) = masks else { continue };
            let started = std::time::Instant::now();
            let mut bar = self.context.progress(name, self.what.tokens as u64);
            let progress = |done: usize, _: &[Continuation]| {
                bar.at(done as u64, &String::new);
                ControlFlow::Continue(())
            };
            let out = generate(self.decoder, &mut commands, masks, self.prompt, 1, self.what, progress)?;
            drop(bar);
            let seconds = started.elapsed().as_secs_f64();
            for Continuation { ids, ended } in out {
                let text = self.text(&ids)?;
                if self.args.json {
                    let value =
                        serde_json::json!({"text": text, "ids": ids, "ended": ended, "seconds": seconds});
                    all.insert(name.into(), value);
                    continue;
                }
                if masked.is_some() {
                    println!("[{name}]");
                }
                println!("{text}");
                self.context.note(|| format!("{} tokens in {seconds:.1} s", ids.len()));
            }
        }
        if self.args.json {
            all.insert("prompt_ids".into(), self.prompt.into());
            all.insert("memory".into(), planned(&self.plan, gpu));
            all.insert("adapter".into(), gpu.describe().into());
            all.insert("preset".into(), self.decoder.kernels.preset().name.into());
            println!("{}", with_profile(all.into(), &self.context.device, gpu));
        }
        Ok(())
    }

    /// Prompt and continuation as one text.
    fn text(&self, ids: &[u32]) -> Result<String, CliError> {
        Ok(self.tokenizer.decode(&[self.prompt, ids].concat())?)
    }

    /// Texts into a file. What is finished when a signal comes is kept, in the order in which it would stand in the whole file.
    fn corpus(&self, corpus: &Corpus, masks: Masks<'_>) -> Result<Outcome, CliError> {
        let Corpus { file, count } = corpus;
        let (count, length) = (*count, self.what.tokens);
        let stopped = || self.context.stop();
        let mut ends = self.what.ends.to_vec();
        ends.extend(self.decoder.config.bos_token_id);
        let mut commands = Commands::new(self.decoder.kernels.gpu())?;
        let mut bar = self.context.progress("tokens", u64::from(count) * length as u64);
        let (mut first, mut texts, mut tokens) = (0, 0u32, 0);
        let mut out = file.begin()?;
        while first < count && !stopped() {
            let sequences = self.together.min((count - first) as usize);
            let prompts = self.prompt.repeat(sequences);
            let what = Generation { ends: &ends, first, ..self.what };
            let before = u64::from(first) * length as u64;
            let progress = |done: usize, _: &[Continuation]| {
                bar.at(before + (done * sequences) as u64, &|| format!("{first} texts of {count}"));
                if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let made = generate(self.decoder, &mut commands, masks, &prompts, sequences, what, progress)?;
            for continuation in made.iter().filter(|c| c.ended || c.ids.len() == length) {
                let line = serde_json::json!({"text": self.text(&continuation.ids)?});
                out.put(format!("{line}\n").as_bytes())?;
                texts += 1;
                tokens += continuation.ids.len();
            }
            first += sequences as u32;
        }
        drop(bar);
        let (path, interrupted) = (file.path(), texts < count);
        if interrupted && texts == 0 {
            self.context.note(|| "interrupted before a text was finished: nothing is written".into());
            return Ok(Outcome::Interrupted);
        }
        out.commit()?;
        if interrupted {
            self.context.note(|| format!("interrupted: {texts} of {count} texts are finished and kept"));
        }
        match self.args.json {
            true => {
                let gpu = self.decoder.kernels.gpu();
                let out = serde_json::json!({"texts": texts, "tokens": tokens, "written": shown(path), "interrupted": interrupted,
                    "memory": planned(&self.plan, gpu)});
                println!("{}", with_profile(out, &self.context.device, gpu));
            }
            false => println!("{texts} texts, {tokens} tokens: {}", path.display()),
        }
        Ok(if interrupted { Outcome::Interrupted } else { Outcome::Done })
    }
}

/// How many sequences are written together: one, or as many for a file as have room.
fn together(
    context: &Context,
    kernels: &Kernels<'_>,
    args: &Args,
    config: &Architecture,
    prompt: usize,
) -> usize {
    let Some(count) = args.count else { return 1 };
    let gpu = kernels.gpu();
    let capacity = prompt + args.tokens as usize;
    let most = if gpu.kind() == DeviceKind::Cpu { TOGETHER_ON_CPU } else { TOGETHER };
    let all = Generator::plan(config, 1, capacity).bytes;
    let one = f32_bytes(config.num_kv_heads * config.head_dim, capacity.next_multiple_of(4));
    let bound = cut::fitting(most, one, gpu.limits().piece(), 1);
    let together = cut::fitting(bound, all, CACHE_BYTES, 1).min(count as usize);
    context
        .note(|| format!("{together} texts at a time, {} of keys and values", bytes(all * together as u64)));
    together
}
