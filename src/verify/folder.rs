//! The folder beside its source: the same files, tensors, types and shapes.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::export::copy::{is_weights, list_others};
use crate::export::hf::not_copied;
use crate::model::{Checkpoint, Shard};

use super::{Problem, VerifyError};

/// Adds what differs in the layout of the weight files and in all other files.
pub(super) fn compare(
    folder: &Checkpoint,
    source: &Checkpoint,
    problems: &mut Vec<Problem>,
) -> Result<(), VerifyError> {
    let mut add = |place: String, what: String| {
        problems.push(Problem { place, row: None, group: None, what });
    };
    let names = |c: &Checkpoint| c.files().iter().map(|s| s.file_name().to_string()).collect::<Vec<_>>();
    for name in names(source).into_iter().filter(|n| !names(folder).contains(n)) {
        add(name, "is a weight file of the source that is missing here".into());
    }
    for shard in folder.files() {
        let Some(other) = source.files().iter().find(|s| s.file_name() == shard.file_name()) else {
            add(shard.file_name().into(), "is a weight file that the source does not have".into());
            continue;
        };
        if let Some((tensor, what)) = layout(shard, other) {
            add(tensor, what);
        }
    }
    let list = list_others(source.folder(), &not_copied(source))?;
    for relative in &list.copied {
        let (own, other) = (folder.folder().join(relative), source.folder().join(relative));
        if !own.is_file() {
            add(relative.display().to_string(), "is missing; the source has it".into());
        } else if !same_bytes(&own, &other)? {
            add(relative.display().to_string(), "differs from the source's".into());
        }
    }
    for relative in list_others(folder.folder(), &not_copied(folder))?.left_out {
        if is_weights(&relative) {
            add(relative.display().to_string(), "is another weight file, which a loader may prefer".into());
        }
    }
    Ok(())
}

/// The first tensor in which the layout of two files differs.
fn layout(own: &Shard, source: &Shard) -> Option<(String, String)> {
    let file = own.file_name();
    let (a, b) = (own.entries(), source.entries());
    for (x, y) in a.iter().zip(b) {
        if x.name != y.name {
            return Some((x.name.clone(), format!("is in {file} where the source has {}", y.name)));
        }
        if (x.dtype, &x.shape) != (y.dtype, &y.shape) {
            let what = format!("is {} {:?}, in the source {} {:?}", x.dtype, x.shape, y.dtype, y.shape);
            return Some((x.name.clone(), what));
        }
    }
    match (a.get(b.len()), b.get(a.len())) {
        (Some(more), _) => Some((more.name.clone(), format!("is in {file}, but not in the source's"))),
        (_, Some(less)) => Some((less.name.clone(), format!("is missing in {file}; the source has it"))),
        _ => None,
    }
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool, VerifyError> {
    let open = |path: &Path| {
        let fail = |source| VerifyError::Read { path: path.into(), source };
        let file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        Ok::<_, VerifyError>((BufReader::new(file), size))
    };
    let ((mut one, size), (mut two, other)) = (open(a)?, open(b)?);
    if size != other {
        return Ok(false);
    }
    let (mut p, mut q) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut left = size;
    while left > 0 {
        let n = left.min(p.len() as u64) as usize;
        let (p, q) = (p.get_mut(..n).unwrap_or(&mut []), q.get_mut(..n).unwrap_or(&mut []));
        one.read_exact(p).map_err(|source| VerifyError::Read { path: a.into(), source })?;
        two.read_exact(q).map_err(|source| VerifyError::Read { path: b.into(), source })?;
        if p != q {
            return Ok(false);
        }
        left -= n as u64;
    }
    Ok(true)
}
