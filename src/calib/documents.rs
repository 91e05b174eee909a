//! Documents, one a line: each line is a JSON object with a string `text`; what else it holds is skipped.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_json::error::Category;

use super::CalibError;

/// The lines of a file, all of them checked. They stay JSON, since few of millions of documents may be wanted.
#[derive(Debug)]
pub(super) struct Documents {
    path: PathBuf,
    content: String,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    /// Where it is in the content.
    place: Range<usize>,
    /// Its number in the file, the first being 1.
    number: usize,
    /// Bytes of its document's text.
    bytes: usize,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

impl Documents {
    /// Checks every line of `content`, which was read from `path`. Blank lines are no documents.
    ///
    /// # Errors
    /// [`CalibError::Document`] names the first bad line; [`CalibError::Empty`] when no document has anything but white space.
    pub(super) fn parse(path: &Path, content: String) -> Result<Self, CalibError> {
        let (mut lines, mut blank) = (Vec::new(), true);
        // Some editors begin a file with a byte order mark.
        let body = content.strip_prefix('\u{feff}').unwrap_or(&content);
        let mut start = content.len() - body.len();
        for (i, line) in body.split('\n').enumerate() {
            let (place, number) = (start..start + line.len(), i + 1);
            start = place.end + 1;
            if line.trim().is_empty() {
                continue;
            }
            let text = text_of(path, number, line)?;
            blank &= text.trim().is_empty();
            lines.push(Line { place, number, bytes: text.len() });
        }
        if blank {
            return Err(CalibError::Empty { path: path.into() });
        }
        Ok(Self { path: path.into(), content, lines })
    }

    /// Where they were read from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are, at least 1.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The text of document `i`, which must be below [`Self::len`].
    pub(super) fn text(&self, i: usize) -> Result<Cow<'_, str>, CalibError> {
        let line = &self.lines[i];
        text_of(&self.path, line.number, &self.content[line.place.clone()])
    }

    /// All documents, those with the longest texts (in bytes) first.
    pub(super) fn longest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.lines.len()).collect();
        order.sort_by_key(|&i| Reverse(self.lines[i].bytes));
        order
    }
}

fn text_of<'a>(path: &Path, number: usize, line: &'a str) -> Result<Cow<'a, str>, CalibError> {
    // serde would also take an array for a struct.
    let parsed = if line.trim_start().starts_with('[') {
        Err("it is an array, not an object".into())
    } else {
        serde_json::from_str::<Document<'_>>(line).map_err(|e| problem(line, &e))
    };
    match parsed {
        Ok(document) => Ok(document.text),
        Err(problem) => Err(CalibError::Document { path: path.into(), line: number, problem }),
    }
}

/// What is wrong with a line, in better words than serde's, who thinks of it as line 1 of a text.
fn problem(line: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    if error.classify() != Category::Data {
        return format!("it is not JSON ({message} at column {})", error.column());
    }
    match serde_json::from_str(line) {
        Ok(Value::Object(object)) => match object.get("text") {
            None => "it has no `text`".into(),
            Some(Value::String(_)) => format!("it is ambiguous ({message})"),
            Some(other) => format!("its `text` is {}, not a string", kind(other)),
        },
        Ok(other) => format!("it is {}, not an object", kind(&other)),
        Err(_) => format!("it is not JSON ({message})"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> Result<Documents, String> {
        Documents::parse(Path::new("some/docs.jsonl"), content.into()).map_err(|e| e.to_string())
    }

    #[test]
    fn texts_are_found_among_other_fields_and_blank_lines_are_skipped() {
        let content = concat!(
            "\u{feff}{\"url\": {\"text\": 1}, \"text\": \"one\"}\r\n",
            " \n\n",
            "{\"text\": \"\"}\n",
            "  {\"text\": \"two \\\"lines\\\"\\nof \\u00fcber\\ud83d\\ude00\", \"n\": [1, null]}",
        );
        let documents = parse(content).unwrap();
        let texts: Vec<_> = (0..documents.len()).map(|i| documents.text(i).unwrap()).collect();
        assert_eq!(texts, ["one", "", "two \"lines\"\nof \u{fc}ber\u{1f600}"]);
        assert_eq!(documents.longest_first(), [2, 0, 1]);
        assert_eq!(documents.lines[1].number, 4);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        for (line, problem) in [
            ("{\"text\": \"cut o", "it is not JSON (EOF while parsing a string at column 15)"),
            ("{\"text\": \"a\"} {\"text\": \"b\"}", "it is not JSON (trailing characters at column 15)"),
            ("once upon a time", "it is not JSON (expected value at column 1)"),
            ("{\"text\": \"\\ud800\"}", "it is not JSON ("),
            ("{\"content\": \"a\"}", "it has no `text`;"),
            ("{\"text\": 7}", "its `text` is a number, not a string;"),
            ("{\"text\": null}", "its `text` is null, not a string;"),
            ("{\"text\": [\"a\"]}", "its `text` is an array, not a string;"),
            ("{\"text\": \"a\", \"text\": \"b\"}", "it is ambiguous (duplicate field `text`);"),
            ("\"text\"", "it is a string, not an object;"),
            ("[\"text\"]", "it is an array, not an object;"),
            ("[", "it is an array, not an object;"),
            ("7", "it is a number, not an object;"),
        ] {
            let text = parse(&format!("{{\"text\": \"fine\"}}\n\n{line}\n")).unwrap_err();
            assert!(text.starts_with(&format!("some/docs.jsonl, line 3: {problem}")), "{text}");
            assert!(text.ends_with("such as {\"text\": \"Once upon a time\"}"), "{text}");
        }
        let deep = format!("{{\"text\": \"a\", \"x\": {}", "[".repeat(100_000));
        assert!(parse(&deep).unwrap_err().contains("line 1: it is not JSON ("));
    }

    #[test]
    fn documents_without_any_text_are_empty() {
        for content in ["{\"text\": \"\"}\n{\"text\": \" \\n\"}\n", "\n \n"] {
            let text = parse(content).unwrap_err();
            assert!(text.contains("docs.jsonl is empty"), "{text}");
        }
    }
}
