//! The folder beside its source: the same files, tensors, types and shapes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::export::copy::{is_weights, list_others};
use crate::export::hf::{REPORT, not_copied};
use crate::export::{PackedFolder, PackedFormat};
use crate::fsio::shown;
use crate::model::{Checkpoint, Shard, read_json_object};

use super::{Entries, Problem, VerifyError};

/// More than any real config.json.
const LIMIT_JSON: u64 = 16 << 20;

/// Adds what differs in the layout of the weight files and in all other files.
pub(super) fn compare(
    folder: &Checkpoint,
    source: &Checkpoint,
    problems: &mut Vec<Problem>,
) -> Result<Entries, VerifyError> {
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
    let mut entries = other_files(folder, source, &not_copied(source), None, problems)?;
    let weights = |c: &Checkpoint, of: &Checkpoint| -> Vec<String> {
        names(c).into_iter().filter(|n| !names(of).contains(n)).collect()
    };
    entries.removed.extend(weights(source, folder));
    entries.added.extend(weights(folder, source));
    Ok(entries)
}

/// The same for a folder of a packed format: every tensor of the source, packed or not, and nothing else.
pub(super) fn compare_packed(
    folder: &PackedFolder,
    source: &Checkpoint,
    problems: &mut Vec<Problem>,
) -> Result<Entries, VerifyError> {
    let files = folder.files();
    let projections = folder.config().projections();
    let shapes: BTreeMap<&String, [usize; 2]> =
        projections.iter().map(|p| (&p.name, [p.rows, p.cols])).collect();
    let mut add = |place: &str, what: String| {
        problems.push(Problem { place: place.into(), row: None, group: None, what });
    };
    for entry in source.files().iter().flat_map(Shard::entries) {
        let told = format!("{} {:?}", entry.dtype, entry.shape);
        let own = match (folder.packed(&entry.name), files.entry(&entry.name)) {
            // Its shape is that of config.json.
            (Some(dtype), _) => {
                format!("{dtype} {:?}", shapes.get(&entry.name).copied().unwrap_or_default())
            }
            (None, Some((_, own))) => format!("{} {:?}", own.dtype, own.shape),
            (None, None) => {
                add(&entry.name, "is missing; the source has it".into());
                continue;
            }
        };
        if own != told {
            add(&entry.name, format!("is {own}, in the source {told}"));
        }
    }
    for shard in files.files() {
        for entry in shard.entries() {
            if !folder.is_part(&entry.name) && source.entry(&entry.name).is_none() {
                add(&entry.name, format!("is in {}, but not in the source", shard.file_name()));
            }
        }
    }
    let mut skip = not_copied(source);
    skip.push("model.safetensors.index.json".into());
    other_files(files, source, &skip, Some(folder.format()), problems)
}

/// All files but weights. `packed` is the format, one file of which says how the weights are packed, which an entry of its own may do.
fn other_files(
    folder: &Checkpoint,
    source: &Checkpoint,
    skip: &[PathBuf],
    packed: Option<PackedFormat>,
    problems: &mut Vec<Problem>,
) -> Result<Entries, VerifyError> {
    let mut entries = Entries::default();
    let mut add = |place: &Path, what: &str| {
        problems.push(Problem { place: shown(place), row: None, group: None, what: what.into() });
        shown(place)
    };
    let described = packed.map(PackedFormat::description);
    let of_source = list_others(source.folder(), skip)?;
    for relative in &of_source.copied {
        let (own, other) = (folder.folder().join(relative), source.folder().join(relative));
        if !own.is_file() {
            entries.removed.push(add(relative, "is missing; the source has it"));
        } else if described.is_some_and(|name| relative == Path::new(name)) {
            if !same_but_for_packing(&own, &other)? {
                entries.changed.push(add(relative, "differs from the source's in more than the packing"));
            }
        } else if !same_bytes(&own, &other)? {
            entries.changed.push(add(relative, "differs from the source's"));
        }
    }
    entries.left_out = of_source.left_out.iter().map(|path| shown(path)).collect();
    let weights = folder.files().iter().map(|shard| PathBuf::from(shard.file_name())).collect::<Vec<_>>();
    let own = list_others(folder.folder(), &weights)?;
    for relative in own.copied.iter().filter(|path| !of_source.copied.contains(path)) {
        let written = relative.as_path() == Path::new(REPORT)
            || packed.is_some_and(|format| format.writes().iter().any(|name| relative == Path::new(name)));
        match written {
            true => entries.of_the_export.push(shown(relative)),
            false => entries.added.push(add(relative, "is not in the source, and no export writes it")),
        }
    }
    for relative in &own.left_out {
        match is_weights(relative) {
            true => {
                entries.added.push(add(relative, "is another weight file, which a loader may prefer"));
            }
            false => entries.not_compared.push(shown(relative)),
        }
    }
    Ok(entries)
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

/// Whether two configurations are the same but for the entry that a packed format adds.
fn same_but_for_packing(own: &Path, source: &Path) -> Result<bool, VerifyError> {
    let read = |path| read_json_object(path, LIMIT_JSON, "check that it may be read");
    let mut own = read(own)?;
    own.shift_remove("quantization_config");
    Ok(own == read(source)?)
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
