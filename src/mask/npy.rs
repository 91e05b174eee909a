//! The header of a one-dimensional array of bytes in numpy's format (NEP 1).

use std::io::Read;

use crate::model::clip;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The data starts at a multiple of this.
const ALIGN: usize = 64;
/// Digits for which numpy leaves room, so that an array that grows keeps its header.
const DIGITS: usize = 21;
/// More than numpy itself reads without being asked twice.
const MAX_HEADER: usize = 10_000;

/// The longest header, with all that stands before it.
pub(super) const MAX_BYTES: usize = 12 + MAX_HEADER;

/// What stands before `len` bytes, as numpy 1.23 and later write it.
pub(super) fn header(len: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({len},), }}");
    let digits = len.to_string().len();
    text.extend(std::iter::repeat_n(' ', DIGITS.saturating_sub(digits)));
    let before = MAGIC.len() + 4;
    let padding = ALIGN - (before + text.len() + 1) % ALIGN;
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

/// Reads a header of version 1, 2 or 3 and returns the number of bytes that must follow.
///
/// # Errors
/// In words: no such header, another type, more than one dimension.
pub(super) fn read_header(from: &mut impl Read) -> Result<usize, String> {
    let mut exactly =
        |bytes: &mut [u8]| from.read_exact(bytes).map_err(|e| format!("its header cannot be read: {e}"));
    let mut start = [0u8; 8];
    exactly(&mut start)?;
    let Some(&[version, _]) = start.strip_prefix(MAGIC) else {
        return Err("it is no numpy array".into());
    };
    let length = match version {
        1 => {
            let mut length = [0; 2];
            exactly(&mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            exactly(&mut length)?;
            u32::from_le_bytes(length) as usize
        }
        other => return Err(format!("version {other} of numpy's format is not known")),
    };
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes, which cannot be"));
    }
    let mut text = vec![0; length];
    exactly(&mut text)?;
    parse(&String::from_utf8_lossy(&text))
}

/// The length in the text of a header.
fn parse(text: &str) -> Result<usize, String> {
    let value = |key: &str| {
        let rest = text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        rest.ok_or_else(|| format!("its header has no `{key}`"))
    };
    let descr = value("descr")?;
    if !["'|u1'", "'u1'", "'<u1'"].iter().any(|t| descr.starts_with(t)) {
        let found: String = descr.chars().take_while(|c| *c != ',').take(40).collect();
        return Err(format!("its type is {found}, expected '|u1' (packed bits)"));
    }
    let shape = value("shape")?.strip_prefix('(').and_then(|rest| Some(rest.split_once(')')?.0));
    let shape = shape.ok_or("its `shape` cannot be read")?;
    let sides: Vec<&str> = shape.split(',').map(str::trim).filter(|side| !side.is_empty()).collect();
    match sides[..] {
        [len] => len.parse().map_err(|_| format!("its `shape` is ({})", clip(shape, 80))),
        _ => Err(format!("its shape is ({}), expected one dimension", clip(shape, 80))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back() {
        for len in [0, 1, 32, 524288, usize::MAX] {
            let bytes = header(len);
            assert_eq!(bytes.len(), 128);
            assert_eq!(read_header(&mut bytes.as_slice()), Ok(len));
        }
    }

    #[test]
    fn other_arrays_are_refused() {
        let with = |text: &str| {
            let mut bytes = b"\x93NUMPY\x02\0".to_vec();
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
            read_header(&mut bytes.as_slice())
        };
        assert_eq!(with("{'descr': '|u1', 'fortran_order': True, 'shape': (7,)}"), Ok(7));
        for (text, part) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (7,)}", "'<f4'"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (7, 3)}", "one dimension"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': ()}", "one dimension"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (-7,)}", "(-7,)"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (7", "cannot be read"),
            ("{'descr': '|u1'}", "`shape`"),
            ("", "`descr`"),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(read_header(&mut &b"\x93NUMPX\x01\0\0\0"[..]).is_err());
        assert!(read_header(&mut &b"\x93NUMPY\x09\0\0\0"[..]).is_err());
        assert!(read_header(&mut &b"\x93NUMPY\x02\0\xff\xff\xff\xff"[..]).unwrap_err().contains("cannot be"));
        assert!(read_header(&mut &b"\x93NU"[..]).is_err());
    }
}
