//! The little of a shell that the documents use: words, quotes, comments, lines that go on, variables before a command.

/// A line of a shell.
#[derive(Debug, Default, PartialEq)]
pub struct Words {
    /// `NAME=VALUE` before the command.
    pub variables: Vec<(String, String)>,
    pub command: Vec<String>,
}

impl Words {
    /// As one line, to tell commands apart.
    pub fn line(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={value}"));
        variables.chain(self.command.iter().cloned()).collect::<Vec<_>>().join(" ")
    }
}

/// Lines of which those that end in a backslash go on in the next, each with the number of its first, from 0.
pub fn joined(lines: &[String]) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (i, line) in lines.iter().enumerate() {
        let goes_on = line.ends_with('\\');
        let part = line.trim_end_matches('\\').trim();
        match out.last_mut().filter(|_| open) {
            Some((_, text)) => {
                text.push(' ');
                text.push_str(part);
            }
            None => out.push((i, part.into())),
        }
        open = goes_on;
    }
    out
}

/// The words of a line.
///
/// # Errors
/// An open quote, or more of a shell than is understood here.
pub fn split(line: &str) -> Result<Words, String> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('|' | '>' | '<' | ';' | '&' | '$' | '*' | '`', None) => {
                return Err(format!(
                    "{c} is more of a shell than is run here; a block `sh no-run` may have it: {line}"
                ));
            }
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("an open quote: {line}"));
    }
    words.extend(word);
    let is_variable = |word: &String| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let count = words.iter().take_while(|word| is_variable(word)).count();
    let command = words.split_off(count);
    let variables = words.iter().filter_map(|word| word.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Ok(Words { variables, command })
}
