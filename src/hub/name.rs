//! Names on the hub, and whether a word is one.

use std::fmt;
use std::path::Path;

use super::HubError;

/// More characters than a name on the hub may have.
const MAX_PART: usize = 96;
/// More than any branch, tag or commit is called.
const MAX_REVISION: usize = 200;

/// `ORG/NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RepoName {
    org: String,
    name: String,
}

impl RepoName {
    /// Takes a word that can be a name on the hub, with the revision that may follow an `@`; none for all others.
    pub fn parse(word: &str) -> Option<(Self, Option<&str>)> {
        let word = word.strip_prefix("hf://").unwrap_or(word);
        let (word, revision) = match word.split_once('@') {
            Some((word, revision)) => (word, Some(revision)),
            None => (word, None),
        };
        let (org, name) = word.split_once('/')?;
        let whole = is_part(org) && is_part(name) && revision.is_none_or(|r| check_revision(r).is_ok());
        whole.then(|| (Self { org: org.into(), name: name.into() }, revision))
    }

    /// As [`RepoName::parse`] for a path that is no folder. A path below a folder that exists is a path, misspelt or not, so that a slip does
    /// not ask the network; `hf://` says that a name is meant all the same.
    pub fn of_path(path: &Path) -> Option<(Self, Option<&str>)> {
        let word = path.to_str()?;
        let (name, revision) = Self::parse(word)?;
        let local = !word.starts_with("hf://") && Path::new(&name.org).is_dir();
        (!local && !path.exists()).then_some((name, revision))
    }

    /// The name of its folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

/// One of the two parts: what the hub allows, which is also safe as the name of a folder and in an address.
fn is_part(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| matches!(c, '-' | '.');
    !part.is_empty()
        && part.len() <= MAX_PART
        && part.chars().all(allowed)
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// A revision becomes a part of a path and of an address.
pub(super) fn check_revision(revision: &str) -> Result<(), HubError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let plain = revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part != "..");
    if revision.len() <= MAX_REVISION && revision.chars().all(allowed) && plain {
        return Ok(());
    }
    Err(HubError::Revision { revision: crate::model::clip(revision, 80) })
}

/// Whether a revision is a whole commit.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (word, name, revision) in [
            ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", None),
            ("hf://a/b_c", "a/b_c", None),
            ("org/name@v1.0", "org/name", Some("v1.0")),
            ("org/name@refs/pr/3", "org/name", Some("refs/pr/3")),
        ] {
            let (found, at) = RepoName::parse(word).unwrap();
            assert_eq!((found.to_string().as_str(), at), (name, revision));
        }
        for word in [
            "",
            "a",
            "/a/b",
            "a/b/c",
            "./a",
            "../a",
            "a/..",
            "a/.b",
            "a//b",
            "a/",
            "/b",
            "~/a",
            "a b/c",
            "a/b--c",
            "a\\b",
            "C:/b",
            "a/b@",
            "a/b@../c",
            "a/-b",
            "models--a--b",
            "\u{fc}/b",
        ] {
            assert_eq!(RepoName::parse(word), None, "{word}");
        }
        assert_eq!(RepoName::parse(&format!("a/{}", "b".repeat(97))), None);
        // `src` is a folder here.
        assert_eq!(RepoName::of_path(Path::new("src/no-such-thing")), None);
        assert!(RepoName::of_path(Path::new("hf://src/no-such-thing")).is_some());
        assert_eq!(RepoName::parse("a/b").unwrap().0.folder(), "models--a--b");
    }
}
