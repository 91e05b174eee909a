//! Answers chosen by likelihood, as lm-evaluation-harness defines `acc` and `acc_norm`.

use super::Estimate;
use crate::calib::Question;
use crate::gpu::{Commands, Limits};
use crate::kernel::{Layout, cut};
use crate::model::{Architecture, OpenText, Tokenizer};
use crate::nn::{Batch, Decoder, Masks, NnError, Sizes, Workspace};

/// Texts are padded to a multiple of this.
const STEP: usize = 32;

/// A context with one of its answers behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    /// At least one token of the context, then those of the answer.
    ids: Vec<u32>,
    /// How many of them are the answer's: at least one.
    answer: usize,
}

impl Candidate {
    /// Tokens as lm-evaluation-harness makes them: a space in between, and blanks at the context's end go to the answer. The answer's
    /// tokens are those of the whole text that begin behind the context. Where there are none, since the last one of the context has the
    /// answer in it, both are encoded alone. What the tokenizer puts behind a text is no part of it. Cut from the left to `most` tokens,
    /// at least 2; `opening` stands for a context without tokens.
    fn new(
        tokenizer: &Tokenizer,
        opening: Option<u32>,
        context: &str,
        choice: &str,
        most: usize,
    ) -> Result<Self, NnError> {
        let head = context.trim_end();
        let text = format!("{context} {choice}");
        let OpenText { mut ids, starts, .. } = tokenizer.encode_open(&text)?;
        let own = starts.iter().position(|start| start.is_some_and(|start| start >= head.len()));
        let mut before = own.unwrap_or(ids.len());
        if own.is_none() {
            ids = tokenizer.encode_open(head)?.ids;
            before = ids.len();
            ids.extend(tokenizer.encode_bare(&text[head.len()..])?);
            if ids.len() == before {
                return Err(NnError::NoTokens { text: choice.into(), lacking: "no likelihood to measure" });
            }
        }
        if before == 0 {
            let lacking = "no opening token to stand for them";
            let opening = opening.ok_or_else(|| NnError::NoTokens { text: head.into(), lacking })?;
            ids.insert(0, opening);
            before = 1;
        }
        let answer = ids.len() - before;
        ids.drain(..ids.len().saturating_sub(most.max(2)));
        // The first token has nothing to be predicted from.
        Ok(Self { answer: answer.min(ids.len() - 1), ids })
    }
}

/// What was chosen for a question: the choice of the greatest score, the first of equals.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Log-likelihood of every choice given the context, in nats.
    pub likelihoods: Vec<f64>,
    /// Tokens of every choice.
    pub tokens: Vec<usize>,
    /// Whether the likeliest is the right one.
    pub acc: bool,
    /// The same with each log-likelihood over the characters of its choice.
    pub acc_norm: bool,
    /// The same over its bytes in UTF-8.
    pub acc_bytes: bool,
    /// The same over its tokens.
    pub acc_tokens: bool,
}

impl Answered {
    fn new(question: &Question, likelihoods: Vec<f64>, tokens: Vec<usize>) -> Self {
        let chosen = |length: &dyn Fn(usize) -> usize| {
            let score = |i: usize| likelihoods[i] / length(i) as f64;
            let best = (0..likelihoods.len()).map(score).fold(f64::NEG_INFINITY, f64::max);
            (0..likelihoods.len()).position(|i| score(i) == best) == Some(question.answer)
        };
        let (acc, acc_norm) = (chosen(&|_| 1), chosen(&|i| question.choices[i].chars().count()));
        let (acc_bytes, acc_tokens) = (chosen(&|i| question.choices[i].len()), chosen(&|i| tokens[i]));
        Self { likelihoods, tokens, acc, acc_norm, acc_bytes, acc_tokens }
    }
}

/// Shares of right answers.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// By log-likelihood.
    pub acc: Estimate,
    /// By log-likelihood over characters.
    pub acc_norm: Estimate,
    /// By log-likelihood over bytes.
    pub acc_bytes: Estimate,
    /// By log-likelihood over tokens.
    pub acc_tokens: Estimate,
}

impl Accuracy {
    /// Of all questions, intervals by a bootstrap over them.
    pub fn of(answered: &[Answered]) -> Self {
        let share = |right: fn(&Answered) -> bool| {
            let column: Vec<f64> = answered.iter().map(|a| f64::from(u8::from(right(a)))).collect();
            Estimate::of([&column], |[mean]| mean)
        };
        Self {
            acc: share(|a| a.acc),
            acc_norm: share(|a| a.acc_norm),
            acc_bytes: share(|a| a.acc_bytes),
            acc_tokens: share(|a| a.acc_tokens),
        }
    }
}

/// The candidates of all questions, in batches of about one length.
pub struct Candidates<'q> {
    questions: &'q [Question],
    all: Vec<Candidate>,
    /// Sizes of the batches, and the candidates that they are made of: the longest first, so that a device without room says so at once.
    groups: Vec<(Sizes, Vec<usize>)>,
}

impl<'q> Candidates<'q> {
    /// Tokenizes all choices of `questions`.
    ///
    /// # Errors
    /// What the tokenizer reports; [`NnError::NoTokens`].
    pub fn new(
        config: &Architecture,
        limits: impl Into<Limits>,
        tokenizer: &Tokenizer,
        questions: &'q [Question],
    ) -> Result<Self, NnError> {
        // Learned positions are all there are; others end where the model was made to, and padding may stand behind.
        let longest = config.max_position_embeddings;
        let reach = if config.positions.is_some() { longest } else { usize::MAX };
        // The last token is predicted, not read.
        let most = reach.min(longest + 1);
        let mut all = Vec::new();
        for question in questions {
            for choice in &question.choices {
                all.push(Candidate::new(tokenizer, config.bos_token_id, &question.context, choice, most)?);
            }
        }
        let limits = limits.into();
        let padded = |i: &usize| all[*i].ids.len().max(2).next_multiple_of(STEP).min(reach);
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(padded(i)));
        let group = |group: &[usize]| {
            let length = padded(&group[0]);
            let together = cut::together(length, group.len());
            let windows = Sizes::windows_that_fit(config, length, together, limits);
            (Sizes::new(config, Layout { windows, length }, limits), group.to_vec())
        };
        let groups = order.chunk_by(|a, b| padded(a) == padded(b)).map(group).collect();
        Ok(Self { questions, all, groups })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Tokens of all of them.
    pub fn tokens(&self) -> usize {
        self.all.iter().map(|candidate| candidate.ids.len()).sum()
    }

    /// Sizes of the batches, one after the other.
    pub fn sizes(&self) -> Vec<Sizes> {
        self.groups.iter().map(|(sizes, _)| sizes.clone()).collect()
    }

    /// Answers the questions under `masks`; `progress` is called with the number of candidates done.
    ///
    /// # Errors
    /// What the device reports; a token outside the vocabulary; a loss that is not finite.
    pub fn answer<'g>(
        self,
        decoder: &Decoder<'g, '_>,
        c: &mut Commands<'g>,
        masks: Masks<'_>,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Answered>, NnError> {
        let mut likelihoods = vec![0.0; self.all.len()];
        let mut done = 0;
        for (sizes, group) in self.groups {
            let Layout { windows, length } = sizes.layout;
            let ws = Workspace::new(decoder.kernels.gpu(), decoder.config, sizes)?;
            for batch in group.chunks(windows) {
                let layout = Layout { windows: batch.len(), length };
                let mut ids = vec![0; layout.windows * length];
                for (&i, window) in batch.iter().zip(ids.chunks_exact_mut(length)) {
                    window[..self.all[i].ids.len()].copy_from_slice(&self.all[i].ids);
                }
                let losses = decoder.losses(c, &ws, &Batch { ids, layout }, masks)?;
                for (&i, window) in batch.iter().zip(losses.nll.chunks_exact(length - 1)) {
                    let Candidate { ids, answer } = &self.all[i];
                    let end = ids.len().saturating_sub(1);
                    likelihoods[i] = -window[end - answer..end].iter().sum::<f64>();
                }
                done += batch.len();
                progress(done);
            }
        }
        let mut rest = likelihoods.into_iter().zip(self.all);
        let answered = self.questions.iter().map(|question| {
            let own = rest.by_ref().take(question.choices.len());
            let (likelihoods, tokens) =
                own.map(|(likelihood, candidate)| (likelihood, candidate.answer)).unzip();
            Answered::new(question, likelihoods, tokens)
        });
        Ok(answered.collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Accuracy, Answered, Candidate};
    use crate::calib::Question;
    use crate::model::{Architecture, Tokenizer};

    /// The longer answer is the less likely one, but not by the character or the byte; by the token it is.
    #[test]
    fn length_counts_but_in_acc() {
        let question =
            Question { context: "x".into(), choices: vec!["ab".into(), "äöüß".into()], answer: 1 };
        let other = Question { answer: 0, ..question.clone() };
        let of = |question, likelihoods, tokens| {
            let found = Answered::new(question, likelihoods, tokens);
            [found.acc, found.acc_norm, found.acc_bytes, found.acc_tokens]
        };
        assert_eq!(of(&question, vec![-3.0, -4.0], vec![2, 2]), [false, true, true, false]);
        assert_eq!(of(&other, vec![-3.0, -4.0], vec![2, 2]), [true, false, false, true]);
        // 1.5 a character and a byte; 2 a character and 1 a byte; 3 and 2 a token.
        assert_eq!(of(&question, vec![-3.0, -8.0], vec![1, 4]), [false, false, true, true]);
        // The first of equals.
        assert_eq!(of(&question, vec![-4.0, -4.0], vec![1, 1]), [false, true, true, false]);
        let all = [(&question, vec![-3.0, -4.0]), (&other, vec![-3.0, -4.0]), (&other, vec![-5.0, -4.0])]
            .map(|(question, likelihoods)| Answered::new(question, likelihoods, vec![2, 2]));
        let accuracy = Accuracy::of(&all);
        assert_eq!(accuracy.acc.value, 1.0 / 3.0);
        assert_eq!(accuracy.acc_norm.value, 1.0 / 3.0);
    }

    /// A tokenizer of whole words, of a word with the one behind it, and of a template around a text.
    fn tokenizer(folder: &std::path::Path) -> Tokenizer {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let vocab = json!({"<s>": 0, "</s>": 1, "Ġ": 2, "a": 3, "b": 4, "c": 5, "aĠ": 6, "aĠb": 7, "Ġb": 8});
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "normalizer": {"type": "Replace", "pattern": {"String": " ~"}, "content": ""},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                    "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]},
                },
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": [["a", "Ġ"], ["aĠ", "b"], ["Ġ", "b"]]},
        });
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
        let config = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 32});
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        Tokenizer::open(folder, &Architecture::read(folder).unwrap()).unwrap()
    }

    /// Special tokens behind the text are none of the answer's; an answer that was merged with its context, and one that the
    /// whole encoding cuts otherwise than the context alone.
    #[test]
    fn answers_have_tokens_of_their_own() {
        let folder = std::env::temp_dir().join(format!("maskwright-choices-{}", std::process::id()));
        let tokenizer = tokenizer(&folder);
        let of = |context: &str, choice: &str, most: usize| {
            Candidate::new(&tokenizer, Some(0), context, choice, most).map(|c| (c.ids, c.answer))
        };
        // "c b": nothing is merged across the border.
        assert_eq!(of("c", "b", 9).unwrap(), (vec![0, 5, 8], 1));
        assert_eq!(of("c", "cb", 9).unwrap(), (vec![0, 5, 2, 5, 4], 3));
        // "a b" is one token, which has the answer in it: encoded alone.
        assert_eq!(of("a", "b", 9).unwrap(), (vec![0, 3, 8], 1));
        // "a bb": the first token reaches into the answer, the second is its own.
        assert_eq!(of("a", "bb", 9).unwrap(), (vec![0, 7, 4], 1));
        // A blank at the end of the context goes to the answer.
        assert_eq!(of("c ", "c", 9).unwrap(), (vec![0, 5, 2, 2, 5], 3));
        // Cut from the left, never to nothing.
        assert_eq!(of("c", "cb", 3).unwrap(), (vec![2, 5, 4], 2));
        assert_eq!(of("c", "cb", 0).unwrap(), (vec![5, 4], 1));
        // An answer that is normalised away has no likelihood.
        let lost = of("c", "~", 9).unwrap_err().to_string();
        assert!(lost.contains("no tokens of \"~\""), "{lost}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
