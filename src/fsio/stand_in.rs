//! What lies in the place of a file: a pointer of Git LFS, the page of a server that refused a download, something that is no plain file.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::place::kind;

/// Answers of the Hugging Face hub that are saved under the name of the file that was asked for.
const ANSWERS: [&str; 5] = [
    "Entry not found",
    "Repository not found",
    "Revision not found",
    "Invalid username or password",
    "Access to model ",
];
/// More bytes than an answer in place of a file has.
const MAX_ANSWER: usize = 4096;

/// What a file holds in place of what its name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StandIn {
    /// The pointer that Git keeps in place of a large file.
    LfsPointer,
    /// A web page.
    Html,
    /// What a server answers that refuses: JSON or a line of text.
    Answer,
}

impl StandIn {
    /// What the first bytes of a file, or all of a short one, show it to be in place of the file itself.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
        if start.starts_with(b"version https://git-lfs.github.com/spec/")
            || start.starts_with(b"version https://hawser.github.com/spec/")
        {
            return Some(Self::LfsPointer);
        }
        let small: Vec<u8> = start.iter().take(16).map(u8::to_ascii_lowercase).collect();
        if small.starts_with(b"<!doctype html")
            || small.starts_with(b"<html>")
            || small.starts_with(b"<html ")
        {
            return Some(Self::Html);
        }
        let text = (bytes.len() <= MAX_ANSWER).then(|| std::str::from_utf8(start).ok()).flatten()?;
        if ANSWERS.iter().any(|answer| text.starts_with(answer)) {
            return Some(Self::Answer);
        }
        // An object of little more than an error.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        let has = |keys: &[&str]| keys.iter().any(|key| object.contains_key(*key));
        // A document that is a text may say something of errors, too.
        let refused = has(&["error", "errors"]) && !has(&["text", "content", "messages"]);
        (refused && object.len() <= 4).then_some(Self::Answer)
    }

    /// What it is, as the end of a sentence that begins with the file's name.
    pub fn what(self) -> &'static str {
        match self {
            Self::LfsPointer => "is a Git LFS pointer, not the file itself",
            Self::Html => "is a web page in HTML, not the file itself",
            Self::Answer => "is the answer of a server that refused it, not the file itself",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::LfsPointer => "fetch it with `git lfs pull`",
            Self::Html | Self::Answer => {
                "download it again, from its own address, and where it is private or gated with a token"
            }
        }
    }
}

/// Opens a plain file, or what links to one; does not wait for a pipe.
///
/// # Errors
/// What the system refuses, and in words what it is that is no plain file.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other(format!("it is {}, not a plain file", kind(&found))));
    }
    File::open(path)
}
