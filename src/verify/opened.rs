//! A folder of any of the formats, opened.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::export::PackedFolder;
use crate::model::{Architecture, Checkpoint, Dtype, TensorPart, TensorView, in_parallel};

use super::VerifyError;
use super::tensor::{Found, Job, Stored, Weights};

/// The mapped files of a folder.
pub(super) enum Opened {
    /// Dense with zeros.
    Dense(Architecture, Checkpoint),
    /// With packed projections.
    Packed(PackedFolder),
}

impl Opened {
    pub(super) fn open(dir: &Path) -> Result<Self, VerifyError> {
        if let Some(packed) = PackedFolder::open(dir)? {
            return Ok(Self::Packed(packed));
        }
        let config = Architecture::read(dir)?;
        let files = Checkpoint::open(dir, &config)?;
        Ok(Self::Dense(config, files))
    }

    pub(super) fn config(&self) -> &Architecture {
        match self {
            Self::Dense(config, _) => config,
            Self::Packed(packed) => packed.config(),
        }
    }

    pub(super) fn files(&self) -> &Checkpoint {
        match self {
            Self::Dense(_, files) => files,
            Self::Packed(packed) => packed.files(),
        }
    }

    /// The type and the dense bytes of a tensor; unpacks one that is packed.
    pub(super) fn weight(&self, name: &str) -> Result<(Dtype, Cow<'_, [u8]>), VerifyError> {
        match self {
            Self::Dense(_, files) => {
                let view = files.tensor(name)?;
                Ok((view.dtype, Cow::Borrowed(view.data)))
            }
            Self::Packed(packed) => {
                packed.weight(name).map_err(|source| VerifyError::Layout { tensor: name.into(), source })
            }
        }
    }

    pub(super) fn format(&self) -> &'static str {
        match self {
            Self::Dense(..) => "dense",
            Self::Packed(packed) => packed.format().name(),
        }
    }

    /// Checks every tensor; by name, in no particular order.
    pub(super) fn check(&self, job: &Job<'_>, source: Option<&Checkpoint>) -> Vec<(String, Found)> {
        match self {
            Self::Dense(_, files) => {
                let sources = source.map(entries).unwrap_or_default();
                let all: Vec<_> = entries(files).into_iter().collect();
                let found = in_parallel(&all, |(place, stored)| {
                    check_stored(job, (files, stored), (source, sources.get(place).copied()))
                });
                found.into_iter().flatten().collect()
            }
            Self::Packed(packed) => check_packed(packed, job, source),
        }
    }
}

/// Checks a stored tensor, or each of the projections that lie in it.
fn check_stored(
    job: &Job<'_>,
    (files, stored): (&Checkpoint, &Stored<'_>),
    (source, of_source): (Option<&Checkpoint>, Option<Stored<'_>>),
) -> Vec<(String, Found)> {
    let name = &stored.entry.name;
    let part = |part: &TensorPart| {
        let found = match (files.tensor(&part.name), part.shape.as_slice()) {
            (Ok(view), &[rows, cols]) => {
                let like = |s: &TensorView<'_>| s.dtype == view.dtype && s.shape == view.shape;
                let source = source.and_then(|s| s.tensor(&part.name).ok()).filter(like);
                let (name, dtype, data) = (view.name, view.dtype, view.data);
                let weights = Weights { name, dtype, shape: [rows, cols], data, unpacked: false };
                job.projection(&weights, source.map(|s| s.data))
            }
            _ => job.tensor(stored, of_source),
        };
        (part.name.clone(), found)
    };
    let parts: Vec<_> = files.parts_of(name).map(part).collect();
    if parts.is_empty() { vec![(name.clone(), job.tensor(stored, of_source))] } else { parts }
}

/// Every tensor of every file, by file and name.
fn entries(checkpoint: &Checkpoint) -> BTreeMap<(&str, &str), Stored<'_>> {
    let mut all = BTreeMap::new();
    for shard in checkpoint.files() {
        for entry in shard.entries() {
            all.insert((shard.file_name(), entry.name.as_str()), Stored { shard, entry });
        }
    }
    all
}

fn check_packed(packed: &PackedFolder, job: &Job<'_>, source: Option<&Checkpoint>) -> Vec<(String, Found)> {
    let of_source = |name: &str| {
        let (shard, entry) = source?.entry(name)?;
        Some(Stored { shard, entry })
    };
    let all: Vec<Stored<'_>> =
        entries(packed.files()).into_values().filter(|s| !packed.is_part(&s.entry.name)).collect();
    let found = in_parallel(&all, |stored| {
        check_stored(job, (packed.files(), stored), (source, of_source(&stored.entry.name)))
    });
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    // One after another: each takes the memory of a whole weight.
    for (name, &shape) in &job.shapes {
        let Some(dtype) = packed.packed(name) else { continue };
        let source = source.and_then(|s| s.tensor(name).ok());
        let source = source.filter(|s| s.dtype == dtype && s.shape == shape).map(|s| s.data);
        let result = match packed.weight(name) {
            Ok((dtype, data)) => {
                let weights = Weights { name, dtype, shape, data: &data, unpacked: true };
                job.projection(&weights, source)
            }
            Err(error) => job.broken(name, shape, dtype, error),
        };
        found.push((name.clone(), result));
    }
    found
}
