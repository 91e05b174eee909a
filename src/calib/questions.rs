//! Questions with several answers to choose from, one a line.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::CalibError;
use crate::model::read_named;

/// More than any file of questions has.
const LIMIT_BYTES: u64 = 1 << 30;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What stands before the answers; not blank.
    pub context: String,
    /// The answers, at least two, none of them empty.
    pub choices: Vec<String>,
    /// Which one is right.
    pub answer: usize,
}

#[derive(Deserialize)]
struct Line {
    context: String,
    choices: Vec<String>,
    answer: Value,
}

impl Question {
    /// Reads JSON lines `{"context": "...", "choices": ["...", "..."], "answer": 0}`; the answer is a number, from 0, or the text of a choice.
    /// Other keys are skipped, and so are blank lines.
    ///
    /// # Errors
    /// A file that cannot be read, [`CalibError::NotUtf8`], [`CalibError::Empty`], and [`CalibError::Question`] with the first bad line.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, CalibError> {
        let bytes = read_named(path, LIMIT_BYTES, "give JSON lines with context, choices and answer")?;
        let text = String::from_utf8(bytes)
            .map_err(|e| CalibError::NotUtf8 { path: path.into(), at: e.utf8_error().valid_up_to() })?;
        let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
        let all: Vec<Self> = lines
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| {
                Self::parse(line).map_err(|problem| CalibError::Question {
                    path: path.into(),
                    line: i + 1,
                    problem,
                })
            })
            .collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(CalibError::Empty { path: path.into() });
        }
        Ok(all)
    }

    fn parse(line: &str) -> Result<Self, String> {
        let Line { context, choices, answer } = serde_json::from_str(line).map_err(|e| e.to_string())?;
        if context.trim().is_empty() {
            return Err("its `context` is blank".into());
        }
        if choices.len() < 2 || choices.iter().any(String::is_empty) {
            return Err("its `choices` must be two or more texts that are not empty".into());
        }
        let found = match &answer {
            Value::String(text) => choices.iter().position(|c| c == text),
            other => other.as_u64().and_then(|i| usize::try_from(i).ok()).filter(|i| *i < choices.len()),
        };
        match found {
            Some(answer) => Ok(Self { context, choices, answer }),
            None => Err(format!(
                "its `answer` is {answer}, neither a number below {} nor one of the choices",
                choices.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Question;

    #[test]
    fn answers_are_numbers_or_texts() {
        let line = |answer: &str| {
            Question::parse(&format!(
                r#"{{"id": 7, "context": "The sky is", "choices": ["blue", "red"], "answer": {answer}}}"#
            ))
        };
        assert_eq!(line("1").unwrap().answer, 1);
        assert_eq!(line("\"blue\"").unwrap().answer, 0);
        for bad in ["2", "-1", "\"green\"", "null", "0.5", "[0]"] {
            assert!(line(bad).unwrap_err().contains("answer"), "{bad}");
        }
        for (bad, word) in [
            (r#"{"context": " ", "choices": ["a", "b"], "answer": 0}"#, "context"),
            (r#"{"context": "x", "choices": ["a"], "answer": 0}"#, "choices"),
            (r#"{"context": "x", "choices": ["a", ""], "answer": 0}"#, "choices"),
            (r#"{"context": "x", "choices": ["a", "b"]}"#, "answer"),
            ("[]", "invalid"),
        ] {
            assert!(Question::parse(bad).unwrap_err().contains(word), "{bad}");
        }
    }
}
