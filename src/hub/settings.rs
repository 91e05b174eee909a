//! The environment variables that Python's `huggingface_hub` reads, with the same meaning.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::HubError;

/// The hub.
const ENDPOINT: &str = "https://huggingface.co";
/// More bytes than any token has.
const MAX_TOKEN: usize = 1000;

/// Where the cache is and how the hub is asked.
#[derive(Clone, Default)]
pub struct Settings {
    /// The folder with a folder for each model; none where there is no home folder.
    pub cache: Option<PathBuf>,
    /// The address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<String>,
    /// Nothing is asked.
    pub offline: bool,
}

impl std::fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Those of the environment: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::Token`] for a token that can be none.
    pub fn of_environment() -> Result<Self, HubError> {
        let home = home();
        let hf_home = folder("HF_HOME", home.as_deref()).or_else(|| {
            let cache = folder("XDG_CACHE_HOME", home.as_deref());
            Some(cache.or_else(|| Some(home.as_ref()?.join(".cache")))?.join("huggingface"))
        });
        let cache =
            ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| folder(name, home.as_deref()));
        let cache = cache.or_else(|| Some(hf_home.as_ref()?.join("hub")));
        let endpoint = word("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let token_file = folder("HF_TOKEN_PATH", home.as_deref()).or_else(|| Some(hf_home?.join("token")));
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').into(),
            token: token(token_file.as_deref())?,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
        })
    }

    /// The cache's folder.
    ///
    /// # Errors
    /// [`HubError::NoCache`].
    pub(super) fn cache(&self) -> Result<PathBuf, HubError> {
        self.cache.clone().ok_or(HubError::NoCache)
    }
}

fn word(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

fn is_true(name: &str) -> bool {
    word(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

fn home() -> Option<PathBuf> {
    ["HOME", "USERPROFILE"].iter().filter_map(env::var_os).find(|value| !value.is_empty()).map(PathBuf::from)
}

/// A folder named by a variable; `~` stands for the home folder.
fn folder(name: &str, home: Option<&Path>) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    let path = PathBuf::from(value);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

/// `HF_TOKEN`, or what the file that `hf auth login` writes holds.
fn token(file: Option<&Path>) -> Result<Option<String>, HubError> {
    let (from, text) = match (word("HF_TOKEN").or_else(|| word("HUGGING_FACE_HUB_TOKEN")), file) {
        (Some(text), _) => ("HF_TOKEN".to_string(), text),
        (None, Some(path)) if !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") => match fs::read(path) {
            Ok(bytes) => (path.display().to_string(), String::from_utf8_lossy(&bytes).trim().to_string()),
            // Most often there is none, and what is public needs none.
            Err(_) => return Ok(None),
        },
        _ => return Ok(None),
    };
    if text.is_empty() {
        return Ok(None);
    }
    // It becomes a line of a request.
    if text.len() > MAX_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(HubError::Token { from });
    }
    Ok(Some(text))
}
