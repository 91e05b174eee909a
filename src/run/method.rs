//! The methods by their names.

use serde::Serialize;

use crate::prune::OneShot;

/// What chooses the mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Keep the largest weights
    Magnitude,
    /// Keep the largest weight times input norm (Wanda)
    Wanda,
    /// Keep the largest relative weight times root of the input norm (RIA, without channel permutation)
    Ria,
    /// Prune group by group and pass the error on (SparseGPT); keeps the original weights unless --repair update
    Sparsegpt,
    /// Improve a start mask by exact group descent on each projection's output error
    Descent,
    /// Take the mask file of --start as it is, to repair the weights under it
    Given,
    /// Learn by policy gradient, forward only (MaskPro)
    Maskpro,
    /// Learn by backpropagation through a relaxed top N of one logit per weight
    Relaxed,
    /// Learn by backpropagation through a Gumbel softmax over the patterns of each group (MaskLLM)
    Maskllm,
    /// Train the weights under the 2:4 regulariser and take the largest of each group (ProxSparse); 2:4 only
    Proxsparse,
}

impl Method {
    /// The one-shot method, if it is one.
    pub fn one_shot(self) -> Option<OneShot> {
        Some(match self {
            Self::Magnitude => OneShot::Magnitude,
            Self::Wanda => OneShot::Wanda,
            Self::Ria => OneShot::Ria,
            Self::Sparsegpt => OneShot::SparseGpt,
            Self::Descent => OneShot::Descent,
            Self::Given => OneShot::Given,
            Self::Maskpro | Self::Relaxed | Self::Maskllm | Self::Proxsparse => return None,
        })
    }

    /// As on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A whole run in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Exact group descent: seconds to minutes
    Fast,
    /// Descent, then masks learned block by block, then on the whole model: what comes out best on held-out text
    Best,
}

impl Recipe {
    /// What chooses its mask.
    pub fn method(self) -> Method {
        match self {
            Self::Fast => Method::Descent,
            Self::Best => Method::Relaxed,
        }
    }

    /// As on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}
