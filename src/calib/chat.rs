//! A model's chat template: messages become the text that the model was trained on. Rendered as transformers does, with jinja2's settings
//! (`trim_blocks`, `lstrip_blocks`), its extra functions, and Python's methods of strings, lists and dictionaries.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value as Jinja};
use serde_json::{Map, Value};

use super::CalibError;
use crate::model::{MESSAGE, clip, read_json_object, read_limited};

/// More than any template.
const LIMIT_BYTES: u64 = 16 << 20;
/// Steps that a template may take for one conversation: a template comes from outside and may be made to run for ever.
const FUEL: u64 = 10_000_000;
/// Its name in messages of the library.
const NAME: &str = "chat_template";
/// Tokens that templates write, by their keys in tokenizer_config.json.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// A template, ready to render.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, or `chat_template` in `chat_template.json` or `tokenizer_config.json`.
    pub(super) fn open(folder: &Path) -> Result<Self, CalibError> {
        let remedy = "check that it may be read";
        let config = folder.join("tokenizer_config.json");
        let config_map = match config.is_file() {
            true => read_json_object(&config, LIMIT_BYTES, remedy)?,
            false => Map::new(),
        };
        let (alone, wrapped) = (folder.join("chat_template.jinja"), folder.join("chat_template.json"));
        let (path, text) = if alone.is_file() {
            let bytes = read_limited(&alone, LIMIT_BYTES, remedy)?;
            (alone, Some(String::from_utf8_lossy(&bytes).into_owned()))
        } else if wrapped.is_file() {
            let map = read_json_object(&wrapped, LIMIT_BYTES, remedy)?;
            (wrapped, map.get("chat_template").and_then(chosen))
        } else {
            (config, config_map.get("chat_template").and_then(chosen))
        };
        let Some(text) = text else {
            return Err(CalibError::NoTemplate { folder: folder.into() });
        };
        let token = |key: &str| {
            let value = config_map.get(key)?;
            // An added token is an object.
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.to_string(), Value::from(text)))
        };
        let tokens = TOKENS.iter().filter_map(|key| token(key)).collect();
        Self::new(path, text, tokens)
    }

    fn new(path: PathBuf, text: String, tokens: Map<String, Value>) -> Result<Self, CalibError> {
        let broken = |e: Error| CalibError::Template { path: path.clone(), problem: told(&e) };
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // A date would make the same text another one every day.
        environment.add_function("strftime_now", |_: String| "26 Jul 2024".to_string());
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation(&text)).map_err(broken)?;
        Ok(Self { environment, tokens })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template says.
    pub(super) fn render(&self, messages: &Value) -> Result<String, String> {
        let mut context = self.tokens.clone();
        context.insert("messages".into(), messages.clone());
        context.insert("add_generation_prompt".into(), false.into());
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        let template = self.environment.get_template(NAME).map_err(|e| told(&e))?;
        template.render(Jinja::from(Serde(&context))).map_err(|e| told(&e))
    }
}

/// One line of an error of the library.
fn told(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let text = match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    };
    clip(&text.replace('\n', " "), MESSAGE)
}

/// A template, or the one named `default` of several.
fn chosen(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(all) => {
            let named = |name: &str| all.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name));
            Some(named("default").or(all.first())?.get("template")?.as_str()?.to_string())
        }
        _ => None,
    }
}

/// JSON as Python writes it, which does not escape what HTML would need.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::InvalidOperation, e.to_string());
    let value = serde_json::to_value(value).map_err(failed)?;
    match indent {
        None => Ok(python_json(&value)),
        Some(_) => serde_json::to_string_pretty(&value).map_err(failed),
    }
}

/// With a space behind each comma and colon, as `json.dumps`.
fn python_json(value: &Value) -> String {
    match value {
        Value::Array(all) => format!("[{}]", all.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| {
                format!("{}: {}", Value::from(key.as_str()), python_json(value))
            };
            format!("{{{}}}", map.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// transformers has a block `generation` that marks what an assistant says; it changes nothing in the text.
fn without_generation(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(end) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(end + 2);
        out.push_str(before);
        match tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['%', '}', '-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str, messages: Value) -> Result<String, String> {
        let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let template = ChatTemplate::new("t".into(), template.into(), tokens.as_object().unwrap().clone());
        template.map_err(|e| e.to_string())?.render(&messages)
    }

    /// Templates in the manner of well-known ones; the expected texts are what jinja2 makes of them.
    #[test]
    fn messages_become_the_text_that_jinja2_makes() {
        let talk = json!([{"role": "user", "content": " Hi <b> "}, {"role": "assistant", "content": "Yes"}]);
        let chatml = "{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}\n    \
                      {{- '<|im_end|>\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}x{% endif %}";
        assert_eq!(
            render(chatml, talk.clone()).unwrap(),
            "<|im_start|>user\nHi <b><|im_end|>\n\n<|im_start|>assistant\nYes<|im_end|>\n\n"
        );
        let llama = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]\
                     {% elif m['role'] == 'assistant' %}{% generation %}{{ ' ' ~ m.content ~ eos_token }}{% endgeneration %}\
                     {% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}";
        assert_eq!(render(llama, talk.clone()).unwrap(), "<s>[INST] Hi <b> [/INST] Yes</s>");
        let refused = render(llama, json!([{"role": "system", "content": "x"}])).unwrap_err();
        assert!(refused.starts_with("only user and assistant"), "{refused}");
        let tools = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index0 %}{% endfor %}{{ ns.n }}\
                     {{ messages[0] | tojson }}{% if tools %}x{% endif %}{{ messages[1:] | length }}{{ messages[-1]['role'].upper() }}";
        assert_eq!(
            render(tools, talk).unwrap(),
            "1{\"role\": \"user\", \"content\": \" Hi <b> \"}1ASSISTANT"
        );
    }

    #[test]
    fn bad_templates_are_told_and_endless_ones_end() {
        let text = render("{% for %}", json!([])).unwrap_err();
        assert!(text.contains("t is not a usable chat template"), "{text}");
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(render(endless, json!([])).is_err());
        assert!(render("{{ messages.nothing.at_all }}", json!([])).is_err());
    }
}
