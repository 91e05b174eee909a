//! Copying the files of a model folder that are not weights.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::fsio::{self, FsError, StandIn};
use crate::model::ModelError;

use super::ExportError;

/// More nesting than any model folder has.
const MAX_DEPTH: usize = 8;

/// Endings of files that hold weights. Those that are not the shards being masked are other copies of the *dense* weights:
/// a loader that prefers them would silently run the dense model, so they are left out.
const WEIGHTS: [&str; 12] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "h5", "msgpack", "onnx", "onnx_data", "npz"];

/// Beginnings and endings of the files that loaders look for besides the weights: without one of them the copy would be another model.
const NEEDED: [&str; 8] = [
    "config",
    "generation_config",
    "token",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
];
const NEEDED_ENDINGS: [&str; 4] = ["py", "model", "jinja", "tiktoken"];

/// What was copied and what was left out, relative to the source folder, sorted.
#[derive(Default, Debug)]
pub struct Copied {
    /// Copied unchanged.
    pub copied: Vec<PathBuf>,
    /// Other copies of the dense weights, hidden folders, and what is no file.
    pub left_out: Vec<PathBuf>,
    /// What cannot be read, and why; also among those left out.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Those among the copied that are pointers of Git LFS.
    pub pointers: Vec<PathBuf>,
    /// Bytes of the copied together.
    pub bytes: u64,
}

impl Copied {
    /// Says in the log what is left out because it cannot be read, and which files are none.
    pub fn warn(&self) {
        for path in &self.pointers {
            log::warn!(
                "{} of the model folder {}, and is copied as it is; {}",
                path.display(),
                StandIn::LfsPointer.what(),
                StandIn::LfsPointer.remedy()
            );
        }
        for (path, problem) in &self.unreadable {
            log::warn!(
                "{} of the model folder is left out, since it cannot be read: {problem}",
                path.display()
            );
        }
    }
}

/// Copies what [`list_others`] says to copy.
pub fn copy_others(source: &Path, target: &Path, skip: &[PathBuf]) -> Result<Copied, ExportError> {
    let list = list_others(source, skip)?;
    list.warn();
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
/// are not. What cannot be read (a link to nothing, as the lock of an editor; the lost+found of a disk) is left out, too, unless loaders
/// look for a file of its name.
///
/// # Errors
/// [`ExportError::Read`] for the folder itself and for what loaders need, and [`ExportError::TooDeep`].
pub fn list_others(source: &Path, skip: &[PathBuf]) -> Result<Copied, ExportError> {
    let mut done = Copied::default();
    folder(source, Path::new(""), skip, &mut done, 0)?;
    done.copied.sort();
    done.left_out.sort();
    done.unreadable.sort();
    Ok(done)
}

/// Whether a file is a pointer of Git LFS.
fn is_pointer(file: File) -> bool {
    let mut start = Vec::new();
    file.take(256).read_to_end(&mut start).is_ok() && StandIn::of(&start) == Some(StandIn::LfsPointer)
}

/// Whether a loader looks for a file of this name.
fn is_needed(path: &Path) -> bool {
    // They look into the folder itself, not below it.
    let alone = path.components().count() == 1;
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let ends = |(_, ending): (&str, &str)| NEEDED_ENDINGS.contains(&ending);
    alone && (NEEDED.iter().any(|start| name.starts_with(start)) || name.rsplit_once('.').is_some_and(ends))
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
    let source_folder = source;
    let leave_out = |relative: PathBuf, source: io::Error, done: &mut Copied| {
        if is_needed(&relative) {
            return Err(ExportError::Read { path: source_folder.join(&relative), source });
        }
        done.unreadable.push((relative.clone(), source.to_string()));
        done.left_out.push(relative);
        Ok(())
    };
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
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let found = match entry.file_type().and_then(|kind| Ok((kind, fs::metadata(&path)?))) {
            Ok((kind, found)) => (kind.is_dir(), found.is_file().then_some(found.len())),
            Err(e) => {
                leave_out(relative, e, done)?;
                continue;
            }
        };
        match found {
            (true, _) if !hidden => match fs::read_dir(&path) {
                Ok(_) => folder(source, &relative, skip, done, depth + 1)?,
                Err(e) => leave_out(relative, e, done)?,
            },
            (_, Some(bytes)) if !is_weights(&relative) => match File::open(&path) {
                Ok(file) => {
                    if is_pointer(file) {
                        if is_needed(&relative) {
                            return Err(ModelError::StandIn { path, found: StandIn::LfsPointer }.into());
                        }
                        done.pointers.push(relative.clone());
                    }
                    done.copied.push(relative);
                    done.bytes = done.bytes.saturating_add(bytes);
                }
                Err(e) => leave_out(relative, e, done)?,
            },
            _ => done.left_out.push(relative),
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
