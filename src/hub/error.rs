//! The one error type of the hub layer.

use std::io;
use std::path::PathBuf;

use crate::fsio::FsError;
use crate::model::ModelError;

/// What can go wrong on the way to a model of the hub. No message holds a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The cache cannot be written.
    #[error(transparent)]
    Write(#[from] FsError),
    /// A file of the cache cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There is no home folder.
    #[error("there is no place for the cache of the hub: set HF_HOME to a folder that may be written to")]
    NoCache,
    /// A revision with characters that none has.
    #[error("{revision:?} can be no revision; give a branch, a tag or a commit")]
    Revision {
        /// What was given.
        revision: String,
    },
    /// A token with characters that none has.
    #[error(
        "{from} holds no token of the hub; a token is one word such as hf_abc, made at https://huggingface.co/settings/tokens"
    )]
    Token {
        /// The variable or file.
        from: String,
    },
    /// A file of the cache says something that cannot be.
    #[error(
        "{path} does not hold a commit of 40 hexadecimal digits; remove it, and the model is looked up again"
    )]
    Ref {
        /// The file.
        path: PathBuf,
    },
    /// A cache folder without the revision.
    #[error("{folder} is a folder of the hub's cache, but has no snapshot of {revision}; there are: {there}")]
    NoSnapshot {
        /// The folder.
        folder: PathBuf,
        /// What was asked for.
        revision: String,
        /// What there is.
        there: String,
    },
    /// Not in the cache, and the network may not be asked.
    #[error(
        "{name} ({revision}) is neither a folder here nor in the cache {cache}, and HF_HUB_OFFLINE forbids to download it; unset that, or give a folder"
    )]
    Offline {
        /// The model.
        name: String,
        /// Its revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Not in the cache, and this build cannot ask the network.
    #[error(
        "{name} ({revision}) is neither a folder here nor in the cache {cache}, and this build cannot download: it was made without the feature `hub`; download the model with `hf download {name}`, or give a folder"
    )]
    NoNetwork {
        /// The model.
        name: String,
        /// Its revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The server could not be asked.
    #[error(
        "cannot reach {endpoint}: {problem}; look at the connection, and at HTTPS_PROXY and HF_ENDPOINT if they are set. A folder with the model needs no network"
    )]
    Unreachable {
        /// The address of the hub.
        endpoint: String,
        /// What went wrong.
        problem: String,
    },
    /// No such model, or one that not everybody may see.
    #[error(
        "there is no model {name} at {endpoint} that can be read, and no folder of that name here; look at the spelling{hint}"
    )]
    NotFound {
        /// The model.
        name: String,
        /// The address of the hub.
        endpoint: String,
        /// What else it may be.
        hint: &'static str,
    },
    /// A model whose terms must be accepted.
    #[error("{name} is gated: accept its terms at {page}, and {hint}")]
    Gated {
        /// The model.
        name: String,
        /// Where.
        page: String,
        /// About the token.
        hint: &'static str,
    },
    /// The token is not accepted.
    #[error(
        "{endpoint} does not accept the token that was given (HF_TOKEN, or the file of `hf auth login`); make a new one at https://huggingface.co/settings/tokens"
    )]
    Refused {
        /// The address of the hub.
        endpoint: String,
    },
    /// No such branch, tag or commit.
    #[error("{name} has no revision {revision}; give a branch, a tag or a commit of {page} with --revision")]
    NoRevision {
        /// The model.
        name: String,
        /// What was asked for.
        revision: String,
        /// Where they are listed.
        page: String,
    },
    /// The model is there, but not as safetensors.
    #[error("{name} has no safetensors weights{found}; {remedy}")]
    NoSafetensors {
        /// The model.
        name: String,
        /// What there is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A file that the model must have.
    #[error("{name} ({revision}) has no {file}; it is no model in Hugging Face layout")]
    NoFile {
        /// The model.
        name: String,
        /// Its revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// An answer that cannot be understood.
    #[error(
        "{address} gave an answer that is not the hub's: {problem}; look at HF_ENDPOINT and proxies, or try again later"
    )]
    Answer {
        /// What was asked.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// A download that did not come to its end.
    #[error(
        "the download of {file} broke off at {done} of {bytes} bytes: {problem}; the same command goes on from there"
    )]
    BrokeOff {
        /// The file.
        file: String,
        /// What is here.
        done: u64,
        /// All of it.
        bytes: u64,
        /// What happened.
        problem: String,
    },
    /// What came is not what was sent.
    #[error("{file} came damaged: {problem}; it was removed, the same command downloads it again")]
    Damaged {
        /// The file.
        file: String,
        /// What does not fit.
        problem: String,
    },
}

impl HubError {
    /// A file or folder of the cache that the system refuses.
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "for downloads"))]
    pub(super) fn os(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Write(FsError::os(action, path, source))
    }
}
