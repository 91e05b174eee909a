//! Copying the files of a model folder that are not weights.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::fsio::{self, FsError};

use super::ExportError;

/// More nesting than any model folder has.
const MAX_DEPTH: usize = 8;

/// Endings of files that hold weights. Those that are not the shards being masked are other copies of the *dense* weights:
/// a loader that prefers them would silently run the dense model, so they are left out.
const WEIGHTS: [&str; 12] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "h5", "msgpack", "onnx", "onnx_data", "npz"];

/// What was copied and what was left out, relative to the source folder, sorted.
#[derive(Default, Debug)]
pub struct Copied {
    /// Copied unchanged.
    pub copied: Vec<PathBuf>,
    /// Other copies of the dense weights, and hidden folders.
    pub left_out: Vec<PathBuf>,
}

/// Copies what [`list_others`] says to copy.
pub fn copy_others(source: &Path, target: &Path, skip: &[PathBuf]) -> Result<Copied, ExportError> {
    let list = list_others(source, skip)?;
    for relative in &list.copied {
        let to = target.join(relative);
        if let Some(parent) = to.parent() {
            fsio::create_folder(parent)?;
        }
        one(&source.join(relative), &to)?;
    }
    Ok(list)
}

/// What a copy takes along: everything under `source` except `skip` (relative paths), other weight files, and folders
/// whose name starts with a dot. Links to files are followed (the Hugging Face cache is made of them), links to folders
/// are not.
///
/// # Errors
/// [`ExportError::Read`] and [`ExportError::TooDeep`].
pub fn list_others(source: &Path, skip: &[PathBuf]) -> Result<Copied, ExportError> {
    let mut done = Copied::default();
    folder(source, Path::new(""), skip, &mut done, 0)?;
    done.copied.sort();
    done.left_out.sort();
    Ok(done)
}

fn folder(
    source: &Path,
    below: &Path,
    skip: &[PathBuf],
    done: &mut Copied,
    depth: usize,
) -> Result<(), ExportError> {
    let here = source.join(below);
    let fail = |source| ExportError::Read { path: here.clone(), source };
    if depth > MAX_DEPTH {
        return Err(ExportError::TooDeep { path: here });
    }
    for entry in fs::read_dir(&here).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let relative = below.join(entry.file_name());
        if skip.contains(&relative) {
            continue;
        }
        let path = entry.path();
        let unreadable = |source| ExportError::Read { path: path.clone(), source };
        let kind = entry.file_type().map_err(unreadable)?;
        let file = fs::metadata(&path).map_err(unreadable)?.is_file();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if kind.is_dir() && !hidden {
            folder(source, &relative, skip, done, depth + 1)?;
        } else if file && !is_weights(&relative) {
            done.copied.push(relative);
        } else {
            done.left_out.push(relative);
        }
    }
    Ok(())
}

/// Whether a file holds weights, by its name.
pub fn is_weights(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    // The index of another format's shards goes with them; `model.safetensors.index.json` does not.
    let index = name.ends_with(".bin.index.json") || name.ends_with(".h5.index.json");
    index || name.rsplit_once('.').is_some_and(|(_, ending)| WEIGHTS.contains(&ending))
}

/// Copies one file and flushes it. Read and written in pieces, so that an error names the right side.
fn one(from: &Path, to: &Path) -> Result<(), ExportError> {
    let unreadable = |source| ExportError::Read { path: from.into(), source };
    let mut input = File::open(from).map_err(unreadable)?;
    let mut buffer = vec![0; 1 << 18];
    fsio::write_atomic(to, |output| {
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => output.put(buffer.get(..n).unwrap_or(&[]))?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(e)),
            }
        }
    })
}

/// Whether `out` is `source` or lies in it. Follows links, as far as the path exists yet.
pub fn inside(source: &Path, out: &Path) -> Result<bool, ExportError> {
    let source = source.canonicalize().map_err(|e| ExportError::Read { path: source.into(), source: e })?;
    let absolute = std::path::absolute(out).map_err(|e| FsError::os("write", out, e))?;
    let existing = absolute.ancestors().find_map(|p| p.canonicalize().ok());
    Ok(existing.is_some_and(|p| p.starts_with(&source)))
}
