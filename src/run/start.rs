//! Where a mask starts.

use std::path::Path;

use serde::Serialize;

use super::RunError;
use super::method::Method;
use crate::prune::{OneShot, StartMask};

/// Where a mask starts.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Start mask")]
pub struct StartSpec {
    /// Start mask of descent and of learning methods: magnitude, wanda, ria, of learning methods also sparsegpt or descent, or a
    /// mask file [default: wanda; of relaxed, maskllm and proxsparse descent]
    #[arg(long, value_name = "METHOD|FILE")]
    pub start: Option<String>,
    /// Calibration windows that a learning method's start mask is made from, and the layer objective [default: all of --windows]
    #[arg(long, value_name = "N")]
    pub start_windows: Option<usize>,
}

impl StartSpec {
    /// What `method` starts from: as given, or the method's default.
    pub(super) fn name(&self, method: Method) -> &str {
        let default = match method {
            Method::Relaxed | Method::Maskllm | Method::Proxsparse => "descent",
            _ => "wanda",
        };
        self.start.as_deref().unwrap_or(default)
    }

    /// The method that a start mask of this name is made by, or none for a file.
    pub(super) fn method(name: &str) -> Option<OneShot> {
        Some(match name {
            "magnitude" => OneShot::Magnitude,
            "wanda" => OneShot::Wanda,
            "ria" => OneShot::Ria,
            "sparsegpt" => OneShot::SparseGpt,
            "descent" => OneShot::Descent,
            _ => return None,
        })
    }

    /// The file, where the name is that of one.
    pub(super) fn file(name: &str) -> Option<&Path> {
        Self::method(name).is_none().then(|| name.as_ref())
    }

    /// What descent starts from.
    pub(super) fn of_descent(name: &str) -> Result<StartMask, RunError> {
        Ok(match Self::method(name) {
            Some(OneShot::Magnitude) => StartMask::Magnitude,
            Some(OneShot::Wanda) => StartMask::Wanda,
            Some(OneShot::Ria) => StartMask::Ria,
            None | Some(OneShot::Given) => StartMask::File,
            Some(OneShot::SparseGpt | OneShot::Descent) => {
                return Err(RunError::Options(format!(
                    "descent starts from magnitude, wanda, ria or a mask file; for {name} make its mask file first"
                )));
            }
        })
    }

    /// Windows that a learning method's start mask is made from, of `windows`.
    pub(super) fn windows(&self, windows: usize) -> usize {
        self.start_windows.unwrap_or(usize::MAX).min(windows)
    }
}
