//! Answers chosen by likelihood, as lm-evaluation-harness defines `acc` and `acc_norm`.

use super::Estimate;
use crate::calib::Question;
use crate::gpu::Commands;
use crate::kernel::{Layout, cut};
use crate::model::{ModelError, Tokenizer};
use crate::nn::{Batch, Decoder, Masks, NnError, Sizes, Workspace};

/// Texts are padded to a multiple of this.
const STEP: usize = 32;

/// A context with one of its answers behind it.
#[derive(Clone, Debug)]
struct Candidate {
    /// At least one token of the context, then those of the answer.
    ids: Vec<u32>,
    /// How many of them are the answer's.
    answer: usize,
}

impl Candidate {
    /// Tokens as lm-evaluation-harness makes them: a space in between, blanks at the context's end go to the answer, and the answer is what
    /// the whole text has behind as many tokens as the context alone. Cut from the left to `most` tokens.
    fn new(tokenizer: &Tokenizer, context: &str, choice: &str, most: usize) -> Result<Self, ModelError> {
        let head = context.trim_end();
        let mut ids = tokenizer.encode(&format!("{context} {choice}"))?;
        let before = tokenizer.encode(head)?.len().min(ids.len());
        let answer = ids.len() - before;
        ids.drain(..ids.len().saturating_sub(most));
        // The first token has nothing to be predicted from.
        Ok(Self { answer: answer.min(ids.len().saturating_sub(1)), ids })
    }
}

/// What was chosen for a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Log-likelihood of every choice given the context, in nats.
    pub likelihoods: Vec<f64>,
    /// Whether the likeliest is the right one.
    pub acc: bool,
    /// The same with each log-likelihood over the characters of its choice.
    pub acc_norm: bool,
}

impl Answered {
    fn new(question: &Question, likelihoods: Vec<f64>) -> Self {
        let chosen = |score: &dyn Fn(usize) -> f64| {
            let best = (0..likelihoods.len()).map(score).fold(f64::NEG_INFINITY, f64::max);
            (0..likelihoods.len()).position(|i| score(i) == best) == Some(question.answer)
        };
        let length = |i: usize| question.choices[i].chars().count() as f64;
        let (acc, acc_norm) = (chosen(&|i| likelihoods[i]), chosen(&|i| likelihoods[i] / length(i)));
        Self { likelihoods, acc, acc_norm }
    }
}

/// Shares of right answers.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// By log-likelihood.
    pub acc: Estimate,
    /// By log-likelihood over characters.
    pub acc_norm: Estimate,
}

impl Accuracy {
    /// Of all questions, intervals by a bootstrap over them.
    pub fn of(answered: &[Answered]) -> Self {
        let share = |right: fn(&Answered) -> bool| {
            let column: Vec<f64> = answered.iter().map(|a| f64::from(u8::from(right(a)))).collect();
            Estimate::of([&column], |[mean]| mean)
        };
        Self { acc: share(|a| a.acc), acc_norm: share(|a| a.acc_norm) }
    }
}

/// Answers `questions` under `masks`; `progress` is called with the number of candidates done.
///
/// # Errors
/// What the tokenizer or the device reports; a token outside the vocabulary; a loss that is not finite.
pub fn answer<'g>(
    decoder: &Decoder<'g, '_>,
    c: &mut Commands<'g>,
    masks: Masks<'_>,
    tokenizer: &Tokenizer,
    questions: &[Question],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Answered>, NnError> {
    // Learned positions are all there are; others end where the model was made to, and padding may stand behind.
    let longest = decoder.config.max_position_embeddings;
    let reach = if decoder.config.positions.is_some() { longest } else { usize::MAX };
    // The last token is predicted, not read.
    let most = reach.min(longest + 1);
    let mut candidates = Vec::new();
    for question in questions {
        for choice in &question.choices {
            candidates.push(Candidate::new(tokenizer, &question.context, choice, most)?);
        }
    }
    let mut likelihoods = vec![0.0; candidates.len()];
    // Texts of about one length together, the longest first: a device without room says so at once.
    let padded = |i: &usize| candidates[*i].ids.len().max(2).next_multiple_of(STEP).min(reach);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(padded(i)));
    let (config, gpu) = (decoder.config, decoder.kernels.gpu());
    let limits = gpu.limits();
    let mut done = 0;
    for group in order.chunk_by(|a, b| padded(a) == padded(b)) {
        let length = padded(&group[0]);
        let together = cut::together(length, group.len());
        let windows = Sizes::windows_that_fit(config, length, together, limits);
        let ws = Workspace::new(gpu, config, Sizes::new(config, Layout { windows, length }, limits))?;
        for batch in group.chunks(windows) {
            let layout = Layout { windows: batch.len(), length };
            let mut ids = vec![0; layout.windows * length];
            for (&i, window) in batch.iter().zip(ids.chunks_exact_mut(length)) {
                window[..candidates[i].ids.len()].copy_from_slice(&candidates[i].ids);
            }
            let losses = decoder.losses(c, &ws, &Batch { ids, layout }, masks)?;
            for (&i, window) in batch.iter().zip(losses.nll.chunks_exact(length - 1)) {
                let Candidate { ids, answer } = &candidates[i];
                let end = ids.len().saturating_sub(1);
                likelihoods[i] = -window[end - answer..end].iter().sum::<f64>();
            }
            done += batch.len();
            progress(done);
        }
    }
    let mut rest = likelihoods.into_iter();
    Ok(questions.iter().map(|q| Answered::new(q, rest.by_ref().take(q.choices.len()).collect())).collect())
}

#[cfg(test)]
mod tests {
    use super::{Accuracy, Answered};
    use crate::calib::Question;

    /// The longer answer is the less likely one, but not by the character.
    #[test]
    fn length_counts_in_acc_norm() {
        let question =
            Question { context: "x".into(), choices: vec!["ab".into(), "äöüß".into()], answer: 1 };
        let found = Answered::new(&question, vec![-3.0, -4.0]);
        assert_eq!((found.acc, found.acc_norm), (false, true));
        let other = Answered::new(&Question { answer: 0, ..question.clone() }, vec![-3.0, -4.0]);
        assert_eq!((other.acc, other.acc_norm), (true, false));
        // The first of equals.
        assert!(!Answered::new(&question, vec![-4.0, -4.0]).acc);
        let all = Accuracy::of(&[found, other.clone(), other.clone(), other]);
        assert_eq!((all.acc.value, all.acc_norm.value), (0.75, 0.25));
    }
}
