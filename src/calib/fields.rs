//! The text of a document that is a JSON value: a string, or messages that the model's chat template makes a text of.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use super::options::FIELDS;
use super::{CalibError, TextOptions};
use crate::model::clip;

/// A document's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Whether a chat template made it, which writes the special tokens itself.
    pub(super) chat: bool,
}

/// What is wrong with a document.
#[derive(Debug)]
pub(super) enum Wrong {
    /// In words about "it".
    Document(String),
    /// It is the model's template.
    Other(CalibError),
}

impl From<String> for Wrong {
    fn from(problem: String) -> Self {
        Self::Document(problem)
    }
}

/// Takes texts out of values. Messages need the chat template of the model in `folder`, which is read when the first are met.
pub(super) struct Fields<'a> {
    pub(super) options: &'a TextOptions,
    folder: Option<PathBuf>,
    template: Option<ChatTemplate>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(options: &'a TextOptions, folder: Option<PathBuf>) -> Self {
        Self { options, folder, template: None }
    }

    /// The text of a document.
    pub(super) fn piece(&mut self, document: &Value) -> Result<Piece, Wrong> {
        match document {
            Value::Object(object) => {
                let (key, value) = self.chosen(object)?;
                self.content(&key, value)
            }
            other => Err(format!("it is {}, not an object", kind(other)).into()),
        }
    }

    fn chosen<'v>(&self, object: &'v Map<String, Value>) -> Result<(String, &'v Value), Wrong> {
        if let Some(field) = &self.options.field {
            let found = object
                .get(field)
                .ok_or_else(|| format!("it has no `{field}`, which --field names; {}", keys(object)))?;
            return Ok((field.clone(), found));
        }
        let found = FIELDS.iter().find_map(|key| Some((key.to_string(), object.get(*key)?)));
        Ok(found.ok_or_else(|| {
            format!("it has no `text`, `content` or `messages`; {}; --field NAME takes another", keys(object))
        })?)
    }

    /// The text of a field's value.
    pub(super) fn content(&mut self, key: &str, value: &Value) -> Result<Piece, Wrong> {
        match value {
            Value::String(text) => Ok(Piece { text: text.clone(), chat: false }),
            Value::Array(messages) if messages.iter().all(is_message) && !messages.is_empty() => {
                Ok(Piece { text: self.render(value)?, chat: true })
            }
            Value::Array(messages) if key == "messages" => {
                let what = if messages.is_empty() { "is empty" } else { "holds what is no message" };
                Err(format!("its `{key}` {what}; a message is an object with `role` and `content`").into())
            }
            other => Err(format!("its `{key}` is {}, not a string", kind(other)).into()),
        }
    }

    fn render(&mut self, messages: &Value) -> Result<String, Wrong> {
        let template = match &mut self.template {
            Some(template) => template,
            empty => {
                let Some(folder) = &self.folder else {
                    return Err(
                        "it has messages, and there is no model whose chat template makes a text of them"
                            .to_string()
                            .into(),
                    );
                };
                empty.insert(ChatTemplate::open(folder).map_err(Wrong::Other)?)
            }
        };
        template
            .render(messages)
            .map_err(|problem| format!("the chat template refuses its messages: {problem}").into())
    }
}

fn is_message(value: &Value) -> bool {
    value.get("role").is_some_and(Value::is_string)
}

/// What keys there are, for a message.
fn keys(object: &Map<String, Value>) -> String {
    let all: Vec<String> = object.keys().take(8).map(|key| clip(key, 40)).collect();
    match all.is_empty() {
        true => "it is empty".into(),
        false => format!("it has {}", all.join(", ")),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
