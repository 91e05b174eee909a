//! npz files: their members mutated, and read by a slow second reader.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::mutate::Rng;

type Members = Vec<(String, Vec<u8>)>;

/// The members of an archive; none where it is no whole one.
fn members(bytes: &[u8]) -> Option<Members> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).ok()?;
    let mut all = Vec::new();
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).ok()?;
        let name = member.name().ok()?.into_owned();
        let mut data = Vec::new();
        // More than any mask here.
        member.by_ref().take(1 << 20).read_to_end(&mut data).ok()?;
        all.push((name, data));
    }
    Some(all)
}

fn archive(members: &Members, method: CompressionMethod) -> Option<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        writer.start_file(name.as_str(), SimpleFileOptions::default().compression_method(method)).ok()?;
        writer.write_all(data).ok()?;
    }
    Some(writer.finish().ok()?.into_inner())
}

/// A whole archive in which a member is another: its header, its bits, its name, its place, its size.
pub fn rebuilt(rng: &mut Rng, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut all = members(bytes)?;
    let (at, other) = (rng.below(all.len()), rng.below(all.len()));
    let (name, data) = all.get_mut(at)?;
    let place = rng.below(data.len());
    match rng.below(9) {
        0 => data.iter_mut().skip(place).take(1).for_each(|b| *b ^= 1 << (place % 8)),
        1 => data.iter_mut().skip(128).skip(place % 64).take(1).for_each(|b| *b = 0xff),
        2 => data.truncate(place),
        3 => data.extend([0; 8]),
        4 => {
            let (from, to) = *rng.pick(&[
                ("|u1", "<f4"),
                ("|u1", "|b1"),
                ("False", "True "),
                ("(", "(18446744073709551615"),
                (",)", ",2)"),
                ("'shape'", "'shade'"),
                ("\u{1}\0v", "\u{3}\0v"),
            ]);
            let text: String = data.iter().take(128).map(|&b| char::from(b)).collect();
            let head: Vec<u8> = text.replacen(from, to, 1).chars().map(|c| c as u8).collect();
            data.splice(..128.min(data.len()), head);
        }
        5 => *name = (*rng.pick(&["../x.mask.npy", "model.norm.weight.mask.npy", "a", ""])).into(),
        // Inflates to far more than it takes.
        6 => data.extend(vec![0; if rng.below(32) == 0 { 30 << 20 } else { 1 << 18 }]),
        7 => drop(all.remove(at)),
        _ => all.swap(at, other),
    }
    let method = *rng.pick(&[CompressionMethod::Deflated, CompressionMethod::Stored]);
    let out = archive(&all, method)?;
    // As it is stored it would be a large file.
    if out.len() > 1 << 20 { archive(&all, CompressionMethod::Deflated) } else { Some(out) }
}

/// The masks in a file, one truth value a weight, by parameter name.
pub fn masks(bytes: &[u8]) -> Result<BTreeMap<String, Vec<bool>>, String> {
    let mut all = BTreeMap::new();
    for (name, data) in members(bytes).ok_or("no archive")? {
        let parameter = name.strip_suffix(".mask.npy").ok_or("a name")?;
        let header = match data.get(6) {
            Some(1) => 10 + usize::from(u16::from_le_bytes([data[8], data[9]])),
            _ => 12 + u32::from_le_bytes([data[8], data[9], data[10], data[11]]) as usize,
        };
        let bits = data.get(header..).ok_or("no data")?;
        let kept = bits.iter().flat_map(|byte| (0..8).map(move |i| byte >> (7 - i) & 1 == 1)).collect();
        all.insert(parameter.to_string(), kept);
    }
    Ok(all)
}
