//! The documents of the repository, taken apart: fenced blocks, inline code, links, headings.

pub mod commands;
pub mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// A document.
pub struct Document {
    /// Its path in the repository, with slashes.
    pub name: String,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// The number of the line with its fence.
    pub line: usize,
    /// What stands behind the fence: `sh`, `sh no-run`, `text`.
    pub info: String,
    /// Its lines.
    pub lines: Vec<String>,
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents: the guide first, since it begins at the beginning, then the README, then the others by name.
pub fn all() -> Vec<Document> {
    let mut paths = Vec::new();
    for folder in ["docs", "models", "tests/interop", "tests/fixtures", "benches/peers"] {
        let entries = fs::read_dir(repository().join(folder)).expect("a folder of the repository");
        let names = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
        paths.extend(names.filter(|n| n.ends_with(".md")).map(|n| format!("{folder}/{n}")));
    }
    paths.sort();
    let first = ["docs/guide.md", "README.md"];
    paths.retain(|path| !first.contains(&path.as_str()));
    let names = first.iter().map(ToString::to_string).chain(paths);
    let read = |name: String| {
        let text = fs::read_to_string(repository().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Document { name, text }
    };
    names.map(read).collect()
}

impl Document {
    pub fn path(&self) -> PathBuf {
        repository().join(&self.name)
    }

    /// "docs/guide.md:12".
    pub fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.name)
    }

    pub fn blocks(&self) -> Vec<Block> {
        self.split().0
    }

    /// Lines outside of fenced blocks, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        self.split().1
    }

    fn split(&self) -> (Vec<Block>, Vec<(usize, &str)>) {
        let (mut blocks, mut prose) = (Vec::new(), Vec::new());
        let mut open: Option<Block> = None;
        for (i, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (fence, &mut open) {
                (Some(info), None) => {
                    open = Some(Block { line: i + 1, info: info.trim().into(), lines: Vec::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.lines.push(line.into()),
                (None, None) => prose.push((i + 1, line)),
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.name);
        (blocks, prose)
    }

    /// Inline code outside of fenced blocks, with its line. It may be broken over lines.
    pub fn code(&self) -> Vec<(usize, String)> {
        let mut out = Vec::new();
        let mut open: Option<(usize, String)> = None;
        for (number, line) in self.prose() {
            // A paragraph ends everything.
            if line.trim().is_empty() || line.starts_with("    ") {
                open = None;
                continue;
            }
            for (i, part) in line.split('`').enumerate() {
                if i > 0 {
                    match open.take() {
                        Some(span) => out.push(span),
                        None => open = Some((number, String::new())),
                    }
                }
                if let Some((_, span)) = &mut open {
                    span.push_str(part);
                }
            }
            if let Some((_, span)) = &mut open {
                span.push(' ');
            }
        }
        out
    }

    /// Targets of links, with their lines; not those to other hosts.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut out = Vec::new();
        for (number, line) in self.prose() {
            // Every second part is code.
            for part in line.split('`').step_by(2) {
                let targets = part.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
                out.extend(targets.map(|(target, _)| (number, target.to_string())));
            }
            // Link texts may hold code: then the bracket and the target lie in one part, which is covered above.
        }
        out.retain(|(_, target)| !target.contains("://"));
        out
    }

    /// The anchors that GitHub gives to the headings.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
        let mut out: Vec<String> = Vec::new();
        for (_, line) in headings {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let same = out.iter().filter(|a| **a == anchor).count();
            out.push(if same == 0 { anchor } else { format!("{anchor}-{same}") });
        }
        out
    }
}
