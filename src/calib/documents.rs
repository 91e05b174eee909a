//! Documents: the lines of a file of JSON lines, the elements of a JSON array, the rows of a table, the files of a folder.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::CalibError;
use super::fields::{Fields, Piece, Wrong, kind};
use crate::model::{MESSAGE, clip};

/// Documents, all of them checked.
#[derive(Debug)]
pub(super) struct Documents {
    path: PathBuf,
    /// The file where its lines stay JSON, since few of millions of documents may be wanted; else empty.
    content: String,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    place: Place,
    /// Bytes of its text.
    bytes: usize,
}

#[derive(Debug)]
enum Place {
    /// A line of the content that holds a `text`, and its number in the file, the first being 1.
    Line(Range<usize>, usize),
    /// The text itself.
    Own(Piece),
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// A document's text on its way to the tokenizer.
pub(super) struct Text<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether its special tokens are written in it.
    pub(super) chat: bool,
}

impl Documents {
    /// Checks every line of `content`, which was read from `path`. Blank lines are no documents.
    ///
    /// # Errors
    /// [`CalibError::Document`] names the first bad line; [`CalibError::Empty`] when no document has anything but white space.
    pub(super) fn parse(path: &Path, content: String, fields: &mut Fields<'_>) -> Result<Self, CalibError> {
        let mut items = Vec::new();
        // Some editors begin a file with a byte order mark.
        let body = content.strip_prefix('\u{feff}').unwrap_or(&content);
        let mut start = content.len() - body.len();
        for (i, line) in body.split('\n').enumerate() {
            let (place, number) = (start..start + line.len(), i + 1);
            start = place.end + 1;
            if line.trim().is_empty() {
                continue;
            }
            items.push(item(path, number, place, line, fields)?);
        }
        Self { path: path.into(), content, items }.not_blank()
    }

    /// The elements of a JSON array: objects, or texts.
    ///
    /// # Errors
    /// [`CalibError::Array`], and [`CalibError::Element`] with the first bad element.
    pub(super) fn parse_array(
        path: &Path,
        content: &str,
        fields: &mut Fields<'_>,
    ) -> Result<Self, CalibError> {
        let mut out = Self::empty(path);
        let mut failed = None;
        let elements = Elements { path, fields, into: &mut out, failed: &mut failed };
        let mut parser = serde_json::Deserializer::from_str(content);
        let parsed = elements.deserialize(&mut parser).and_then(|()| parser.end());
        match (failed, parsed) {
            (Some(error), _) => Err(error),
            (None, Err(e)) => {
                let problem = clip(&e.to_string(), MESSAGE);
                Err(CalibError::Array { path: path.into(), problem })
            }
            (None, Ok(())) => out.not_blank(),
        }
    }

    pub(super) fn empty(path: &Path) -> Self {
        Self { path: path.into(), content: String::new(), items: Vec::new() }
    }

    /// Adds a document.
    pub(super) fn push(&mut self, piece: Piece) {
        self.items.push(Item { bytes: piece.text.len(), place: Place::Own(piece) });
    }

    /// Adds the documents of another file.
    ///
    /// # Errors
    /// What its lines give.
    pub(super) fn append(&mut self, other: Self) -> Result<(), CalibError> {
        for i in 0..other.len() {
            let text = other.text(i)?;
            self.push(Piece { chat: text.chat, text: text.text.into_owned() });
        }
        Ok(())
    }

    /// Refuses documents that are nothing but white space together.
    pub(super) fn not_blank(self) -> Result<Self, CalibError> {
        for i in 0..self.len() {
            if !self.text(i)?.text.trim().is_empty() {
                return Ok(self);
            }
        }
        Err(CalibError::Empty { path: self.path })
    }

    /// Where they were read from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are, at least 1.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Bytes of all their texts.
    pub(super) fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes as u64).sum()
    }

    /// The text of document `i`, which must be below [`Self::len`].
    pub(super) fn text(&self, i: usize) -> Result<Text<'_>, CalibError> {
        match &self.items[i].place {
            Place::Own(piece) => Ok(Text { text: Cow::Borrowed(&piece.text), chat: piece.chat }),
            Place::Line(place, number) => {
                let line = &self.content[place.clone()];
                let text = plain(line).map_err(|e| document(&self.path, *number, problem(line, &e)))?;
                Ok(Text { text, chat: false })
            }
        }
    }

    /// All documents, those with the longest texts (in bytes) first.
    pub(super) fn longest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(|&i| Reverse(self.items[i].bytes));
        order
    }
}

fn document(path: &Path, line: usize, problem: String) -> CalibError {
    CalibError::Document { path: path.into(), line, problem }
}

/// The `text` of a line.
fn plain(line: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    serde_json::from_str::<Document<'_>>(line).map(|document| document.text)
}

fn item(
    path: &Path,
    number: usize,
    place: Range<usize>,
    line: &str,
    fields: &mut Fields<'_>,
) -> Result<Item, CalibError> {
    // serde would also take an array for a struct.
    if line.trim_start().starts_with('[') {
        return Err(document(path, number, "it is an array, not an object".into()));
    }
    // By far the most common, and read again without being kept.
    let usual = fields.options.field.as_deref().is_none_or(|field| field == "text");
    let error = match plain(line) {
        Ok(text) if usual => return Ok(Item { bytes: text.len(), place: Place::Line(place, number) }),
        Ok(_) => None,
        Err(e) => Some(e),
    };
    let value: Value = serde_json::from_str(line).map_err(|e| document(path, number, problem(line, &e)))?;
    if let Some(e) = error.filter(|_| usual && value.get("text").is_some_and(Value::is_string)) {
        return Err(document(path, number, problem(line, &e)));
    }
    match fields.piece(&value) {
        Ok(piece) => Ok(Item { bytes: piece.text.len(), place: Place::Own(piece) }),
        Err(Wrong::Document(problem)) => Err(document(path, number, problem)),
        Err(Wrong::Other(error)) => Err(error),
    }
}

/// What is wrong with a line, in better words than serde's, who thinks of it as line 1 of a text.
fn problem(line: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    if error.classify() != Category::Data {
        return format!("it is not JSON ({message} at column {})", error.column());
    }
    match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(_)) => format!("it is ambiguous ({message})"),
        Ok(other) => format!("it is {}, not an object", kind(&other)),
        Err(_) => format!("it is not JSON ({message})"),
    }
}

/// Takes an array apart, one element in memory at a time.
struct Elements<'e, 'f> {
    path: &'e Path,
    fields: &'e mut Fields<'f>,
    into: &'e mut Documents,
    /// What was wrong with an element: serde has no room for it.
    failed: &'e mut Option<CalibError>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of documents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(value) = all.next_element::<Value>()? {
            number += 1;
            let piece = match value {
                Value::String(text) => Ok(Piece { text, chat: false }),
                value => self.fields.piece(&value),
            };
            let error = match piece {
                Ok(piece) => {
                    self.into.push(piece);
                    continue;
                }
                Err(Wrong::Document(problem)) => {
                    CalibError::Element { path: self.path.into(), what: "element", number, problem }
                }
                Err(Wrong::Other(error)) => error,
            };
            *self.failed = Some(error);
            return Err(serde::de::Error::custom("a bad element"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calib::TextOptions;

    fn parse(content: &str) -> Result<Documents, String> {
        parse_with(content, &TextOptions::default())
    }

    fn parse_with(content: &str, options: &TextOptions) -> Result<Documents, String> {
        let mut fields = Fields::new(options, None);
        Documents::parse(Path::new("some/docs.jsonl"), content.into(), &mut fields).map_err(|e| e.to_string())
    }

    fn texts(documents: &Documents) -> Vec<Cow<'_, str>> {
        (0..documents.len()).map(|i| documents.text(i).unwrap().text).collect()
    }

    #[test]
    fn texts_are_found_among_other_fields_and_blank_lines_are_skipped() {
        let content = concat!(
            "\u{feff}{\"url\": {\"text\": 1}, \"text\": \"one\"}\r\n",
            " \n\n",
            "{\"text\": \"\"}\n",
            "  {\"text\": \"two \\\"lines\\\"\\nof \\u00fcber\\ud83d\\ude00\", \"n\": [1, null]}\n",
            "{\"content\": \"c\", \"body\": \"b\"}\n",
        );
        let documents = parse(content).unwrap();
        assert_eq!(texts(&documents), ["one", "", "two \"lines\"\nof \u{fc}ber\u{1f600}", "c"]);
        assert_eq!(documents.longest_first(), [2, 0, 3, 1]);
        assert!(matches!(documents.items[1].place, Place::Line(_, 4)));
        let body = TextOptions { field: Some("body".into()), column: None };
        let documents = parse_with("{\"text\": \"t\", \"body\": \"b\"}\n{\"body\": \"c\"}", &body).unwrap();
        assert_eq!(texts(&documents), ["b", "c"]);
        let text = parse_with("{\"text\": \"t\"}", &body).unwrap_err();
        assert!(text.contains("it has no `body`, which --field names; it has text"), "{text}");
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        for (line, problem) in [
            ("{\"text\": \"cut o", "it is not JSON (EOF while parsing a string at column 15)"),
            ("{\"text\": \"a\"} {\"text\": \"b\"}", "it is not JSON (trailing characters at column 15)"),
            ("once upon a time", "it is not JSON (expected value at column 1)"),
            ("{\"text\": \"\\ud800\"}", "it is not JSON ("),
            ("{\"body\": \"a\"}", "it has no `text`, `content` or `messages`; it has body;"),
            ("{}", "it has no `text`, `content` or `messages`; it is empty;"),
            ("{\"text\": 7}", "its `text` is a number, not a string;"),
            ("{\"text\": null}", "its `text` is null, not a string;"),
            ("{\"text\": [\"a\"]}", "its `text` is an array, not a string;"),
            (
                "{\"messages\": []}",
                "its `messages` is empty; a message is an object with `role` and `content`;",
            ),
            ("{\"messages\": [1]}", "its `messages` holds what is no message;"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
                "it has messages, and there is no model",
            ),
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

    #[test]
    fn arrays_hold_objects_or_texts() {
        let parse = |content: &str| {
            let options = TextOptions::default();
            let parsed =
                Documents::parse_array(Path::new("d.json"), content, &mut Fields::new(&options, None));
            parsed
                .map(|d| texts(&d).into_iter().map(Cow::into_owned).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        let all = parse("[\"a\", {\"text\": \"b\", \"n\": {}},\n {\"content\": \"c\"}]").unwrap();
        assert_eq!(all, ["a", "b", "c"]);
        for (content, problem) in [
            ("[\"a\", {\"b\": 1}]", "d.json, element 2: it has no `text`, `content` or `messages`; it has b"),
            ("[[]]", "d.json, element 1: it is an array, not an object"),
            ("[\"a\",", "d.json is not a whole JSON array: EOF"),
            ("[\"a\"] x", "d.json is not a whole JSON array: trailing characters"),
            ("[]", "d.json is empty"),
        ] {
            let text = parse(content).unwrap_err();
            assert!(text.starts_with(problem), "{text}");
        }
    }
}
