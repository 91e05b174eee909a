//! What a file holds by its name, decompressed and checked: one text, or documents.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::CalibError;
use super::documents::Documents;
use crate::model::read_limited;

/// More text than one file is meant to hold: plain text is tokenized in memory, at about a hundred bytes a character. A
/// shard of C4 has about 0.8e9 bytes. Holds for what is stored and for what that decompresses to.
const LIMIT_BYTES: u64 = 1 << 30;

/// The content of a file.
#[derive(Debug)]
pub(super) enum Source {
    /// One text, not blank.
    Text(String),
    /// One document a line, not all of them blank.
    Documents(Documents),
}

impl Source {
    /// Reads a file as its name says, whatever the case: JSON lines where it ends in .jsonl or .json, else plain text;
    /// either compressed where it ends in .gz.
    pub(super) fn read(path: &Path) -> Result<Self, CalibError> {
        Self::read_at_most(path, LIMIT_BYTES)
    }

    fn read_at_most(path: &Path, limit: u64) -> Result<Self, CalibError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let (name, compressed) = match name.strip_suffix(".gz") {
            Some(inner) => (inner, true),
            None => (name.as_str(), false),
        };
        let mut bytes = read_limited(
            path,
            limit,
            "give a text, or JSON lines with a `text` each (.jsonl); .gz works too",
        )?;
        if compressed {
            bytes = decompressed(path, &bytes, limit)?;
        }
        let text = String::from_utf8(bytes)
            .map_err(|e| CalibError::NotUtf8 { path: path.into(), at: e.utf8_error().valid_up_to() })?;
        if text.trim().is_empty() {
            return Err(CalibError::Empty { path: path.into() });
        }
        if name.ends_with(".jsonl") || name.ends_with(".json") {
            return Ok(Self::Documents(Documents::parse(path, text)?));
        }
        Ok(Self::Text(text))
    }
}

/// What a gzip file holds, all members of it (parallel compressors write several).
fn decompressed(path: &Path, bytes: &[u8], limit: u64) -> Result<Vec<u8>, CalibError> {
    if bytes.is_empty() {
        return Err(CalibError::Empty { path: path.into() });
    }
    let mut text = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut text)
        .map_err(|source| CalibError::Gzip { path: path.into(), source })?;
    if text.len() as u64 > limit {
        return Err(CalibError::Inflated { path: path.into(), limit });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn several_members_are_one_text_and_a_cut_one_is_refused() {
        let path = Path::new("some/text.gz");
        let both = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decompressed(path, &both, 7).unwrap(), b"one two");
        for length in 1..gzip(b"one ").len() {
            let text = decompressed(path, &both[..length], 7).unwrap_err().to_string();
            assert!(text.starts_with("some/text.gz is not a whole gzip file: "), "{length}: {text}");
        }
    }

    #[test]
    fn the_limit_holds_before_and_after_decompression() {
        let folder = std::env::temp_dir().join(format!("maskwright-calib-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (plain, packed) = (folder.join("text.txt"), folder.join("text.txt.gz"));
        fs::write(&plain, "a ".repeat(500)).unwrap();
        fs::write(&packed, gzip("a ".repeat(500).as_bytes())).unwrap();
        for path in [&plain, &packed] {
            assert!(matches!(Source::read_at_most(path, 1000), Ok(Source::Text(text)) if text.len() == 1000));
        }
        let refused = |path: &Path, limit| Source::read_at_most(path, limit).unwrap_err().to_string();
        let text = refused(&plain, 999);
        assert!(text.contains("has 1000 bytes, more than the 999"), "{text}");
        let text = refused(&packed, 999);
        assert!(text.contains("text.txt.gz holds more than 999 bytes when decompressed"), "{text}");
        let text = refused(&packed, 10);
        assert!(text.contains("bytes, more than the 10"), "{text}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
