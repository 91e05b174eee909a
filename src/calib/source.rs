//! What a file holds by its name, decompressed and checked: one text, or documents.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::documents::Documents;
use super::fields::{Fields, Piece};
use super::{CalibError, parquet};
use crate::fsio::StandIn;
use crate::model::{ModelError, read_named};

/// More text than one file is meant to hold: plain text is tokenized in memory, at about a hundred bytes a character. A
/// shard of C4 has about 0.8e9 bytes. Holds for what is stored and for what that decompresses to.
const LIMIT_BYTES: u64 = 1 << 30;
/// Endings of the files that are taken of a folder; of compressed ones, before `.gz` or `.zst`.
const ENDINGS: [&str; 7] = [".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".parquet"];

/// The content of a file.
#[derive(Debug)]
pub(super) enum Source {
    /// One text, not blank.
    Text(String),
    /// Documents, not all of them blank.
    Documents(Documents),
}

/// How a file is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packed {
    Not,
    Gzip,
    Zstd,
}

/// Whether a file is a text as it is, which may be a web page.
fn is_prose(name: &str, packed: Packed) -> bool {
    let made = [".jsonl", ".ndjson", ".json", ".parquet"];
    packed == Packed::Not && !made.iter().any(|ending| name.ends_with(ending))
}

/// A file's name in small letters without the ending that says that it is compressed.
fn inner_name(path: &Path) -> (String, Packed) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    for (ending, packed) in [(".gz", Packed::Gzip), (".zst", Packed::Zstd), (".zstd", Packed::Zstd)] {
        if let Some(inner) = name.strip_suffix(ending) {
            return (inner.to_string(), packed);
        }
    }
    (name, Packed::Not)
}

impl Source {
    /// Reads a file as its name says, whatever the case: documents where it ends in .jsonl, .json or .parquet, else plain text; either
    /// compressed where it ends in .gz or .zst. Of a folder, all such files in the order of their names are documents.
    pub(super) fn read(path: &Path, fields: &mut Fields<'_>) -> Result<Self, CalibError> {
        match path.is_dir() {
            true => Self::folder(path, fields, LIMIT_BYTES),
            false => Self::read_at_most(path, fields, LIMIT_BYTES),
        }
    }

    fn read_at_most(path: &Path, fields: &mut Fields<'_>, limit: u64) -> Result<Self, CalibError> {
        let (name, packed) = inner_name(path);
        let mut bytes =
            read_named(path, limit, "give a text, or JSON lines with a `text` each (.jsonl); .gz works too")?;
        if let Some(found) = StandIn::of(&bytes).filter(|_| !is_prose(&name, packed)) {
            return Err(ModelError::StandIn { path: path.into(), found }.into());
        }
        if packed != Packed::Not {
            bytes = decompressed(path, &bytes, limit, packed)?;
        }
        if name.ends_with(".parquet") {
            return Ok(Self::Documents(table(path, bytes, fields, limit)?));
        }
        let text = text(path, bytes)?;
        let body = text.trim_start_matches('\u{feff}').trim_start();
        if body.is_empty() {
            return Err(CalibError::Empty { path: path.into() });
        }
        if name.ends_with(".json") && body.starts_with('[') {
            return Ok(Self::Documents(Documents::parse_array(path, body, fields)?));
        }
        if [".jsonl", ".ndjson", ".json"].iter().any(|ending| name.ends_with(ending)) {
            return Ok(Self::Documents(Documents::parse(path, text, fields)?));
        }
        Ok(Self::Text(text))
    }

    /// The files of a folder as documents: a text is one.
    fn folder(path: &Path, fields: &mut Fields<'_>, limit: u64) -> Result<Self, CalibError> {
        let mut all = Documents::empty(path);
        for file in texts_of(path)? {
            match Self::read_at_most(&file, fields, limit)? {
                Self::Text(text) => all.push(Piece { text, chat: false }),
                Self::Documents(documents) => all.append(documents)?,
            }
            if all.bytes() > limit {
                return Err(CalibError::Inflated { path: path.into(), limit });
            }
        }
        Ok(Self::Documents(all.not_blank()?))
    }
}

/// The files of a folder that are texts by their names, sorted; hidden ones are not.
fn texts_of(folder: &Path) -> Result<Vec<PathBuf>, CalibError> {
    let remedy = "check that it may be read";
    let fail = |source| ModelError::Read { path: folder.into(), source, remedy };
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = inner_name(&path).0;
        if !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending)) && path.is_file() {
            all.push(path);
        }
    }
    all.sort();
    match all.is_empty() {
        true => Err(CalibError::NoTexts { path: folder.into() }),
        false => Ok(all),
    }
}

/// The documents of a table.
fn table(path: &Path, bytes: Vec<u8>, fields: &mut Fields<'_>, limit: u64) -> Result<Documents, CalibError> {
    let (mut all, mut total) = (Documents::empty(path), 0);
    parquet::read(path, bytes, fields, |_, piece| {
        total += piece.text.len() as u64;
        if total > limit {
            return Err(CalibError::Inflated { path: path.into(), limit });
        }
        all.push(piece);
        Ok(())
    })?;
    all.not_blank()
}

/// The first bytes of files that are taken for texts by mistake: what they are, and what to do.
const KINDS: [(&[u8], &str, &str); 11] = [
    (b"PAR1", "parquet", "let its name end in .parquet"),
    (b"\x1f\x8b", "gzip", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "let its name end in .zst"),
    (b"\xff\xfe", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (
        b"PK\x03\x04",
        "a zip archive, or a document of an office program,",
        "unpack it, or save it as plain text",
    ),
    (b"%PDF", "PDF", "save it as plain text: pdftotext"),
    (b"BZh", "bzip2", "unpack it, or pack it with gzip or zstd"),
    (b"\xfd7zXZ", "xz", "unpack it, or pack it with gzip or zstd"),
    (b"GGUF", "the weights of a model", "give a text"),
    (b"\x7fELF", "a program", "give a text"),
];

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, CalibError> {
    let binary = |what, remedy| CalibError::Binary { path: path.into(), what, remedy };
    let kind =
        KINDS.iter().find(|(start, ..)| bytes.starts_with(start)).map(|&(_, what, remedy)| (what, remedy));
    // A safetensors file: the length of its header, and that, which is JSON.
    let header = bytes.get(..9).is_some_and(|start| start[8] == b'{' && start[5..8] == [0, 0, 0]);
    let kind = kind.or(header.then_some(("the weights of a model", "give a text")));
    let nul = bytes.iter().take(8192).any(|&byte| byte == 0);
    String::from_utf8(bytes).map_err(|e| match (kind, nul) {
        (Some((what, remedy)), _) => binary(what, remedy),
        (None, true) => binary("a binary file", "give a plain text in UTF-8"),
        (None, false) => CalibError::NotUtf8 { path: path.into(), at: e.utf8_error().valid_up_to() },
    })
}

/// What a compressed file holds, all members of it (parallel compressors write several).
fn decompressed(path: &Path, bytes: &[u8], limit: u64, packed: Packed) -> Result<Vec<u8>, CalibError> {
    if bytes.is_empty() {
        return Err(CalibError::Empty { path: path.into() });
    }
    let mut text = Vec::new();
    let read: io::Result<usize> = match packed {
        Packed::Zstd => zstd::stream::read::Decoder::with_buffer(bytes)
            .and_then(|decoder| decoder.take(limit + 1).read_to_end(&mut text)),
        Packed::Gzip | Packed::Not => MultiGzDecoder::new(bytes).take(limit + 1).read_to_end(&mut text),
    };
    read.map_err(|source| match packed {
        Packed::Zstd => CalibError::Zstd { path: path.into(), source },
        Packed::Gzip | Packed::Not => CalibError::Gzip { path: path.into(), source },
    })?;
    if text.len() as u64 > limit {
        return Err(CalibError::Inflated { path: path.into(), limit });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::calib::TextOptions;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 0).unwrap()
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("maskwright-calib-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn read(path: &Path, limit: u64) -> Result<Source, String> {
        let options = TextOptions::default();
        let mut fields = Fields::new(&options, None);
        match path.is_dir() {
            true => Source::folder(path, &mut fields, limit),
            false => Source::read_at_most(path, &mut fields, limit),
        }
        .map_err(|e| e.to_string())
    }

    #[test]
    fn several_members_are_one_text_and_a_cut_one_is_refused() {
        for (pack, packed, name) in
            [(gzip as fn(&[u8]) -> Vec<u8>, Packed::Gzip, "gzip"), (zst, Packed::Zstd, "zstd")]
        {
            let path = Path::new("some/text");
            let both = [pack(b"one "), pack(b"two")].concat();
            assert_eq!(decompressed(path, &both, 7, packed).unwrap(), b"one two");
            for length in 1..pack(b"one ").len() {
                let text = decompressed(path, &both[..length], 7, packed).unwrap_err().to_string();
                assert!(
                    text.starts_with(&format!("some/text is not a whole {name} file: ")),
                    "{length}: {text}"
                );
            }
        }
    }

    #[test]
    fn the_limit_holds_before_and_after_decompression() {
        let folder = scratch("limit");
        let long = "a ".repeat(500);
        let names = ["text.txt", "text.txt.gz", "text.TXT.ZST"];
        let contents = [long.clone().into_bytes(), gzip(long.as_bytes()), zst(long.as_bytes())];
        for (name, content) in names.iter().zip(&contents) {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            assert!(matches!(read(&path, 1000), Ok(Source::Text(text)) if text.len() == 1000));
            let text = read(&path, 999).unwrap_err();
            let inflated = format!("{name} holds more than 999 bytes when decompressed");
            assert!(text.contains("has 1000 bytes, more than the 999") || text.contains(&inflated), "{text}");
            let text = read(&path, 10).unwrap_err();
            assert!(text.contains("bytes, more than the 10"), "{text}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_files_of_a_folder_are_documents_in_the_order_of_their_names() {
        let folder = scratch("folder");
        let text = read(&folder, 1000).unwrap_err();
        assert!(text.contains("is a folder without a text in it"), "{text}");
        fs::write(folder.join("b.txt"), "of b").unwrap();
        fs::write(folder.join("c.jsonl.gz"), gzip(b"{\"text\": \"c1\"}\n{\"content\": \"c2\"}\n")).unwrap();
        fs::write(folder.join("a.md.zst"), zst(b"of a")).unwrap();
        fs::write(folder.join("d.json"), "[\"d1\", \"d2\"]").unwrap();
        fs::write(folder.join("image.png"), b"\x89PNG").unwrap();
        fs::write(folder.join(".hidden.txt"), "hidden").unwrap();
        let Source::Documents(all) = read(&folder, 1000).unwrap() else { panic!("documents") };
        let texts: Vec<_> = (0..all.len()).map(|i| all.text(i).unwrap().text.into_owned()).collect();
        assert_eq!(texts, ["of a", "of b", "c1", "c2", "d1", "d2"]);
        assert!(read(&folder, 9).unwrap_err().contains("more than"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_binary_file_is_named_as_what_it_is() {
        for (bytes, what) in [
            (&b"PAR1\xff"[..], "parquet does; let its name end in .parquet"),
            (b"\x1f\x8b\x08\0", "gzip does; let its name end in .gz"),
            (b"\xff\xfea\0b\0", "UTF-16 does; convert it"),
            (b"\x40\x01\0\0\0\0\0\0{\"a\": 1}\xff", "the weights of a model does; give a text"),
            (b"ab\0\xff", "a binary file does; give a plain text in UTF-8"),
        ] {
            let told = text(Path::new("t"), bytes.to_vec()).unwrap_err().to_string();
            assert!(told.starts_with("t is no text: it begins as ") && told.contains(what), "{told}");
        }
        let told = text(Path::new("t"), b"caf\xe9".to_vec()).unwrap_err().to_string();
        assert!(told.contains("not a text in UTF-8: byte 3"), "{told}");
        assert_eq!(text(Path::new("t"), b"BZh or PAR1".to_vec()).unwrap(), "BZh or PAR1");
    }
}
