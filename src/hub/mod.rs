//! Models by their names on the Hugging Face hub: from its local cache, in the layout that Python's `huggingface_hub` keeps, or downloaded
//! into it. No GPU.
//!
//! What is in the cache is taken as it is, without asking the network: a run then gives the same result as yesterday. Downloads, in `fetch` and
//! `remote`, are the crate feature `hub`.

mod cache;
mod error;
#[cfg(feature = "hub")]
mod fetch;
mod name;
#[cfg(feature = "hub")]
mod remote;
mod settings;

pub use cache::{Snapshot, is_cache_folder, snapshot_of_folder};
pub use error::HubError;
pub use name::RepoName;
pub use settings::Settings;

use cache::Cache;

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// What of a model is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Its configuration and tokenizer, no weights.
    Shape,
    /// All that a run reads.
    Whole,
}

/// Is told how a download goes.
pub trait Watch {
    /// Something to say once.
    fn note(&mut self, text: String);
    /// A file begins: its name and its bytes.
    fn file(&mut self, name: &str, bytes: u64);
    /// So many bytes of it are here.
    fn at(&mut self, bytes: u64);
}

/// The folder of a model, from the cache, or downloaded into it.
///
/// # Errors
/// [`HubError`]; of a download that broke off what came is kept, and the next call goes on from there.
pub fn snapshot(
    settings: &Settings,
    name: &RepoName,
    revision: Option<&str>,
    need: Need,
    watch: &mut dyn Watch,
) -> Result<Snapshot, HubError> {
    let revision = revision.unwrap_or(MAIN);
    name::check_revision(revision)?;
    let cache = Cache::new(settings.cache()?, name);
    let here = cache.find(revision)?;
    if let Some(here) = &here
        && here.holds(need)
    {
        return Ok(here.clone());
    }
    if settings.offline {
        // A part of a model is given as it is: what reads it names the file that is missing.
        return here.ok_or_else(|| HubError::Offline {
            name: name.to_string(),
            revision: revision.into(),
            cache: settings.cache().unwrap_or_default(),
        });
    }
    download(settings, &cache, name, revision, need, watch, here)
}

#[cfg(feature = "hub")]
fn download(
    settings: &Settings,
    cache: &Cache,
    name: &RepoName,
    revision: &str,
    need: Need,
    watch: &mut dyn Watch,
    _: Option<Snapshot>,
) -> Result<Snapshot, HubError> {
    let remote = remote::Remote::new(settings)?;
    fetch::Fetch { remote: &remote, cache, name, revision, need }.run(watch)
}

#[cfg(not(feature = "hub"))]
fn download(
    settings: &Settings,
    _: &Cache,
    name: &RepoName,
    revision: &str,
    _: Need,
    _: &mut dyn Watch,
    here: Option<Snapshot>,
) -> Result<Snapshot, HubError> {
    here.ok_or_else(|| HubError::NoNetwork {
        name: name.to_string(),
        revision: revision.into(),
        cache: settings.cache().unwrap_or_default(),
    })
}
