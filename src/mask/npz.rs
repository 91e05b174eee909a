//! MaskLLM's mask file, `mask_compressed.npz`: what `numpy.savez_compressed` writes, a zip file with a member
//! `<parameter name>.mask.npy` for each projection, of type U8 and one dimension: `numpy.packbits` of the mask `[out, in]`,
//! flattened, the first weight in the highest bit, 1 = kept.
//!
//! The file says neither the shapes, which come from the model, nor the pattern, which is found in the masks. A projection
//! that stays dense has a mask of ones.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::fsio::{self, AtomicFile, Destination, FsError, open_plain};
use crate::model::{ModelError, Projection, clip};

use super::census::Census;
use super::{BitMask, MaskError, MaskSet, Masks, Pattern, npy};

const SUFFIX: &str = ".mask";
const MEMBER: &str = ".mask.npy";
const REMEDY: &str = "check that the file exists and may be read";

/// Whether a file is a zip file, by its first bytes.
///
/// # Errors
/// What the system refuses.
pub fn is_npz(path: &Path) -> Result<bool, ModelError> {
    let mut start = Vec::new();
    let read = open_plain(path).and_then(|file| file.take(4).read_to_end(&mut start));
    read.map_err(|source| ModelError::Read { path: path.into(), source, remedy: REMEDY })?;
    Ok(start == b"PK\x03\x04" || start == b"PK\x05\x06")
}

/// `numpy.packbits` of the flattened mask: the first weight in the highest bit, missing bits of the last byte 0.
pub fn packbits(mask: &BitMask) -> Vec<u8> {
    let (rows, cols) = (mask.rows(), mask.cols());
    let mut out = Vec::with_capacity((rows * cols).div_ceil(8));
    let (mut pending, mut filled) = (0u32, 0);
    for row in mask.words().chunks_exact(mask.words_per_row().max(1)) {
        let bytes = row.iter().flat_map(|word| word.to_le_bytes());
        for (i, byte) in bytes.take(cols.div_ceil(8)).enumerate() {
            let bits = (cols - 8 * i).min(8);
            pending = pending << bits | u32::from(byte.reverse_bits() >> (8 - bits));
            filled += bits;
            if filled >= 8 {
                filled -= 8;
                out.push((pending >> filled) as u8);
                pending &= (1 << filled) - 1;
            }
        }
    }
    if filled > 0 {
        out.push((pending << (8 - filled)) as u8);
    }
    out
}

/// The mask of `rows x cols` that [`packbits`] gives `bytes` for.
///
/// # Errors
/// In words: a wrong number of bytes, padding that is not 0.
pub fn unpackbits(rows: usize, cols: usize, bytes: &[u8]) -> Result<BitMask, String> {
    let expected = packed_len(rows, cols);
    if expected != Some(bytes.len()) {
        return Err(wrong_len(rows, cols, bytes.len()));
    }
    let per_row = cols.div_ceil(32);
    let mut words = vec![0u32; rows * per_row];
    let mut bytes = bytes.iter();
    let (mut pending, mut filled) = (0u32, 0);
    for row in words.chunks_exact_mut(per_row.max(1)) {
        for (i, bits) in (0..cols).step_by(8).map(|c| (cols - c).min(8)).enumerate() {
            if filled < bits {
                pending = pending << 8 | u32::from(*bytes.next().ok_or("it ends early")?);
                filled += 8;
            }
            filled -= bits;
            let byte = ((pending >> filled << (8 - bits)) as u8).reverse_bits();
            pending &= (1 << filled) - 1;
            if let Some(word) = row.get_mut(i / 4) {
                *word |= u32::from(byte) << (i % 4 * 8);
            }
        }
    }
    if pending != 0 {
        return Err("its padding is not 0".into());
    }
    BitMask::from_words(rows, cols, words).map_err(|e| e.to_string())
}

fn packed_len(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(cols).map(|bits| bits.div_ceil(8))
}

fn wrong_len(rows: usize, cols: usize, found: usize) -> String {
    let expected = packed_len(rows, cols).map_or("too many".into(), |n| n.to_string());
    format!(
        "a mask of {rows} x {cols} takes {expected} bytes, but it has {found}; it belongs to another model"
    )
}

/// Writes the masks of `projections`, in that order; a mask of ones for those without one. Takes the memory of one mask, packed.
/// Equal masks give equal files.
///
/// # Errors
/// As [`Masks::mask`]; [`MaskError::Write`].
pub fn write(
    masks: &dyn Masks,
    projections: &[Projection],
    to: &(impl Destination + ?Sized),
) -> Result<(), MaskError> {
    let path = to.path();
    // As Python's zipfile writes what numpy hands it.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(6))
        .last_modified_time(zip::DateTime::default())
        .large_file(true)
        .unix_permissions(0o600);
    let failed = |e: ZipError| match e {
        ZipError::Io(source) => FsError::os("write", path, source),
        other => FsError::os("write", path, io::Error::other(other)),
    };
    let refused = RefCell::new(None);
    let check = || refused.take().map_or(Ok(()), |source| Err(FsError::os("write", path, source)));
    fsio::write_atomic(to, |file| {
        let mut archive = ZipWriter::new(Sink { file, at: 0, end: 0, refused: &refused });
        for p in projections {
            let bytes = match masks.mask(&p.name)? {
                Some(mask) => packbits(&mask),
                None => packbits(&BitMask::ones(p.rows, p.cols)),
            };
            archive.start_file(format!("{}{MEMBER}", p.name), options).map_err(failed)?;
            for part in [npy::header(bytes.len()), bytes] {
                let done = archive.write_all(&part);
                done.map_err(|source| FsError::os("write", path, source))?;
            }
            check()?;
        }
        archive.finish().map_err(failed)?;
        Ok(check()?)
    })
}

/// Takes what the archive writes, and from the first refusal on nothing more: an archive that is dropped unfinished tries to finish
/// itself and prints what the system says.
struct Sink<'a> {
    file: &'a mut AtomicFile,
    at: u64,
    end: u64,
    refused: &'a RefCell<Option<io::Error>>,
}

impl Sink<'_> {
    /// Tries `work` unless something was refused before.
    fn attempt(&mut self, work: impl FnOnce(&mut AtomicFile) -> io::Result<()>) {
        let mut refused = self.refused.borrow_mut();
        if refused.is_none() {
            *refused = work(self.file).err();
        }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|file| file.write_all(bytes));
        self.at = self.at.saturating_add(bytes.len() as u64);
        self.end = self.end.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(|file| file.flush());
        Ok(())
    }
}

impl Seek for Sink<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        let at = self.at;
        self.attempt(|file| file.seek(SeekFrom::Start(at)).map(|_| ()));
        Ok(at)
    }
}

/// Reads the masks of a model's projections. A mask of ones counts as none. Without a `pattern` it is the one with the
/// smallest groups that all masks have. Memory: the masks, and one of them packed; each is as large as its projection says, and what
/// a member inflates to is not read beyond that.
///
/// # Errors
/// [`MaskError::File`]: no zip file, a member that is no mask or has another size, a projection without a mask, no or another
/// pattern. [`MaskError::NoProjection`].
pub(super) fn read(
    path: &Path,
    projections: &[Projection],
    pattern: Option<Pattern>,
) -> Result<MaskSet, MaskError> {
    let unusable = |problem: String| MaskError::File { path: path.into(), problem };
    let fail = |source| ModelError::Read { path: path.into(), source, remedy: REMEDY };
    let file = File::open(path).map_err(fail)?;
    let mut archive = ZipArchive::new(BufReader::new(file))
        .map_err(|e| unusable(format!("it is no whole zip file: {e}")))?;
    let by_name: BTreeMap<&str, &Projection> = projections.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut masks = BTreeMap::new();
    let mut dense = Vec::new();
    let mut census = Census::default();
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(|e| unusable(format!("member {i}: {e}")))?;
        let name = member.name().map_err(|e| unusable(format!("member {i}: {e}")))?.into_owned();
        let Some(parameter) = name.strip_suffix(MEMBER) else {
            return Err(unusable(format!(
                "{}: a member whose name does not end in {MEMBER}",
                clip(&name, 80)
            )));
        };
        let Some(p) = by_name.get(parameter) else {
            return Err(MaskError::NoProjection { tensor: clip(parameter, 80) });
        };
        let mask = read_member(&mut member, p.rows, p.cols)
            .map_err(|problem| unusable(format!("{}{SUFFIX}: {problem}", p.name)))?;
        if mask.count_ones() == p.rows as u64 * p.cols as u64 {
            dense.push(p.name.as_str());
            continue;
        }
        census.add(&mask);
        if pattern.is_none() && census.strict().is_none() {
            let kept = Census::of(&mask)
                .kept(4)
                .map_or(String::new(), |(fewest, most)| format!(" (it keeps {fewest} to {most} of every 4)"));
            return Err(unusable(format!(
                "{}{SUFFIX}{kept} and those before it have no pattern N:M in common, M being 2, 4, 8 or 16",
                p.name
            )));
        }
        masks.insert(p.name.clone(), mask);
    }
    let missing = |p: &&Projection| !masks.contains_key(&p.name) && !dense.contains(&p.name.as_str());
    let (first, count) = (projections.iter().find(missing), projections.iter().filter(missing).count());
    if let Some(first) = first {
        return Err(unusable(format!(
            "it has no {}{SUFFIX} ({count} of {} projections are missing); one that stays dense needs a mask of ones",
            first.name,
            projections.len()
        )));
    }
    let Some(pattern) = pattern.or_else(|| census.strict()) else {
        return Err(unusable("it prunes nothing: all its masks are ones".into()));
    };
    for (name, mask) in &masks {
        mask.check(pattern).map_err(|e| unusable(format!("{name}{SUFFIX}: {e}")))?;
    }
    Ok(MaskSet { pattern, masks })
}

/// One member, whose data must be that of a mask of `rows x cols`.
fn read_member<R: Read>(member: &mut ZipFile<'_, R>, rows: usize, cols: usize) -> Result<BitMask, String> {
    let expected = packed_len(rows, cols).ok_or_else(|| wrong_len(rows, cols, 0))?;
    // Of the declared size, so before anything is inflated.
    let most = (expected + npy::MAX_BYTES) as u64;
    if member.size() > most {
        return Err(wrong_len(rows, cols, usize::try_from(member.size()).unwrap_or(usize::MAX)));
    }
    // A member may inflate to more than it declares.
    let mut limited = member.take(most + 1);
    let told = npy::read_header(&mut limited)?;
    if told != expected {
        return Err(wrong_len(rows, cols, told));
    }
    let mut bytes = Vec::new();
    let mut data = limited.take(expected as u64 + 1);
    data.read_to_end(&mut bytes).map_err(|e| format!("it cannot be read: {e}"))?;
    unpackbits(rows, cols, &bytes)
}
