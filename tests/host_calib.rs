//! Windows of real files with a real tokenizer: those that SparseGPT and Wanda would draw, and what is refused.

mod host_fixture;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use host_fixture::{Scratch, mentions};
use maskwright::calib::{Segments, read_windows, tokens_of_file};
use maskwright::model::{Architecture, Tokenizer};
use serde_json::json;

fn village(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/village").join(file)
}

fn tokenizer() -> Tokenizer {
    let folder = village("");
    Tokenizer::open(&folder, &Architecture::read(&folder).unwrap()).unwrap()
}

fn gzip(path: &Path, bytes: &[u8]) {
    let mut encoder = GzEncoder::new(fs::File::create(path).unwrap(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap();
}

fn json_lines<S: AsRef<str>>(texts: &[S]) -> String {
    let lines =
        texts.iter().map(|text| json!({"url": "somewhere", "text": text.as_ref()}).to_string() + "\n");
    lines.collect()
}

#[track_caller]
fn refused(path: &Path, segments: Segments, parts: &[&str]) {
    let text = read_windows(&tokenizer(), path, segments, 4, 16).expect_err("should be refused").to_string();
    mentions(&text, &[path.file_name().unwrap().to_str().unwrap()]);
    mentions(&text, parts);
}

/// Refused with the same words whichever windows are asked for.
#[track_caller]
fn always_refused(path: &Path, parts: &[&str]) {
    refused(path, Segments::Sequential, parts);
    refused(path, Segments::Random { seed: 0 }, parts);
}

/// The lines of the calibration text that serve as documents, and how many tokens each has.
const LENGTHS: [usize; 12] = [378, 241, 290, 284, 240, 187, 325, 325, 299, 287, 212, 304];

fn documents() -> Vec<String> {
    let text = fs::read_to_string(village("calib.txt")).unwrap();
    text.lines().take(LENGTHS.len()).map(Into::into).collect()
}

#[test]
fn random_windows_of_a_text_start_where_pythons_do() {
    let dir = Scratch::new();
    let tokenizer = tokenizer();
    let bytes = fs::read(village("calib.txt")).unwrap();
    let ids = tokenizer.encode(std::str::from_utf8(&bytes).unwrap()).unwrap();
    assert_eq!(ids.len(), 89_574);
    let packed = dir.join("CALIB.TXT.GZ");
    gzip(&packed, &bytes);
    // Printed by CPython 3.11: random.seed(seed); [random.randint(0, 89574 - length - 1) for _ in range(8)]
    let cases = [
        (0, 128, [50_494, 55_125, 5_306, 33_936, 67_013, 63_691, 53_075, 39_755]),
        (1, 128, [17_611, 74_606, 8_271, 33_432, 15_455, 64_937, 58_915, 61_898]),
        (0, 89_564, [6, 6, 0, 4, 8, 7, 6, 4]),
    ];
    for (seed, length, starts) in cases {
        let segments = Segments::Random { seed };
        let windows = read_windows(&tokenizer, &village("calib.txt"), segments, 8, length).unwrap();
        assert_eq!((windows.count(), windows.window()), (8, length));
        for (window, start) in windows.iter().zip(starts) {
            assert!(window == &ids[start..start + length], "seed {seed}, start {start}");
        }
        assert!(read_windows(&tokenizer, &packed, segments, 8, length).unwrap() == windows);
        let three = read_windows(&tokenizer, &packed, segments, 3, length).unwrap();
        assert!(three == windows.clone().first(3), "the first windows do not depend on their number");
        assert_eq!(read_windows(&tokenizer, &packed, segments, 0, length).unwrap().count(), 1);
    }
}

#[test]
fn random_windows_of_documents_are_pythons() {
    let dir = Scratch::new();
    let tokenizer = tokenizer();
    let texts = documents();
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    assert_eq!(ids.iter().map(Vec::len).collect::<Vec<_>>(), LENGTHS);
    let (plain, packed) = (dir.join("docs.jsonl"), dir.join("c4-train.00000.json.gz"));
    // Blank lines are no documents, so they do not shift the others.
    let content = json_lines(&texts).replacen('\n', "\r\n\n", 1);
    fs::write(&plain, &content).unwrap();
    gzip(&packed, content.as_bytes());
    // (document, start), printed by CPython 3.11 from LENGTHS with the loop of get_c4 and windows of 240. On the way
    // documents 5 and 10 are drawn, which are shorter, and 4, which has exactly 240 tokens. 1 has one start.
    let cases = [
        (0, [(6, 53), (0, 66), (8, 31), (6, 38), (7, 45), (9, 13), (8, 8), (2, 48), (1, 0), (8, 45)]),
        (1, [(2, 36), (1, 0), (1, 0), (7, 60), (6, 26), (1, 0), (0, 99), (6, 77), (0, 114), (11, 29)]),
        (2, [(0, 23), (1, 0), (2, 47), (9, 13), (9, 2), (9, 43), (2, 27), (6, 65), (8, 28), (8, 17)]),
    ];
    for (seed, drawn) in cases {
        for path in [&plain, &packed] {
            let windows = read_windows(&tokenizer, path, Segments::Random { seed }, 10, 240).unwrap();
            assert_eq!(windows.count(), 10);
            for (window, (document, start)) in windows.iter().zip(drawn) {
                assert_eq!(window, &ids[document][start..start + 240], "seed {seed}, document {document}");
            }
        }
    }
}

#[test]
fn sequential_windows_join_documents_in_their_order() {
    let dir = Scratch::new();
    let tokenizer = tokenizer();
    let texts = documents();
    let ids: Vec<u32> = texts.iter().flat_map(|text| tokenizer.encode(text).unwrap()).collect();
    let path = dir.join("docs.jsonl.gz");
    gzip(&path, json_lines(&texts).as_bytes());
    assert_eq!(tokens_of_file(&tokenizer, &path).unwrap(), ids);
    for (count, expected) in [(0, 1), (1, 1), (9, 9), (25, 25), (26, 26), (27, 26), (usize::MAX, 26)] {
        let windows = read_windows(&tokenizer, &path, Segments::Sequential, count, 128).unwrap();
        assert_eq!((windows.count(), windows.window()), (expected, 128));
        assert_eq!(windows.tokens(), &ids[..expected * 128]);
    }

    let text = fs::read(village("calib.txt")).unwrap();
    let packed = dir.join("calib.txt.gz");
    gzip(&packed, &text);
    let ids = tokens_of_file(&tokenizer, &village("calib.txt")).unwrap();
    assert_eq!(tokens_of_file(&tokenizer, &packed).unwrap(), ids);
    let windows = read_windows(&tokenizer, &packed, Segments::Sequential, 5, 100).unwrap();
    assert_eq!(windows.tokens(), &ids[..500]);
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let dir = Scratch::new();
    for name in ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"] {
        let path = dir.join(name);
        always_refused(&path, &["cannot read", "give a text"]);
        for empty in ["", "\n \r\n"] {
            fs::write(&path, empty).unwrap();
            if name.ends_with(".gz") && !empty.is_empty() {
                always_refused(&path, &["is not a whole gzip file", "take the .gz off"]);
                gzip(&path, empty.as_bytes());
            }
            always_refused(&path, &["is empty", "with text in it"]);
        }
        let bytes = b"{\"text\": \"over and \xff over\"}";
        match name.ends_with(".gz") {
            true => gzip(&path, bytes),
            false => fs::write(&path, bytes).unwrap(),
        }
        always_refused(&path, &["not a text in UTF-8", "byte 19", "convert it"]);
    }
    let folder = dir.join("folder.gz");
    fs::create_dir(&folder).unwrap();
    always_refused(&folder, &["folder.gz is a folder without a text in it"]);
}

#[test]
fn damaged_gzip_is_refused() {
    let dir = Scratch::new();
    let path = dir.join("docs.jsonl.gz");
    gzip(&path, json_lines(&documents()).as_bytes());
    let whole = fs::read(&path).unwrap();
    for length in [1, 5, 20, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        always_refused(&path, &["is not a whole gzip file", "download or compress it again"]);
    }
    let mut flipped = whole.clone();
    *flipped.iter_mut().nth_back(6).unwrap() ^= 1;
    fs::write(&path, &flipped).unwrap();
    always_refused(&path, &["is not a whole gzip file"]);
    fs::write(&path, "{\"text\": \"not compressed at all\"}\n").unwrap();
    always_refused(&path, &["is not a whole gzip file", "take the .gz off its name"]);
    // Compressed without saying so.
    let path = dir.join("docs.jsonl");
    fs::write(&path, &whole).unwrap();
    always_refused(&path, &["docs.jsonl is no text: it begins as gzip does", "let its name end in .gz"]);
}

#[test]
fn bad_lines_are_refused_by_their_number() {
    let dir = Scratch::new();
    let good = json_lines(&documents());
    for (line, problem) in [
        ("{\"text\": \"cut o", "it is not JSON"),
        (
            "{\"body\": \"a\"}",
            "it has no `text`, `content` or `messages`; it has body; --field NAME takes another",
        ),
        ("{\"text\": 7}", "its `text` is a number, not a string"),
        ("[1, 2]", "it is an array, not an object"),
    ] {
        let content = format!("{good}{line}\n{good}");
        let (plain, packed) = (dir.join("docs.json"), dir.join("docs.jsonl.gz"));
        fs::write(&plain, &content).unwrap();
        gzip(&packed, content.as_bytes());
        for path in [plain, packed] {
            always_refused(&path, &["line 13: ", problem, "each line must be one JSON object"]);
        }
    }
    let path = dir.join("docs.jsonl");
    fs::write(&path, json_lines(&["", " \n"])).unwrap();
    always_refused(&path, &["is empty"]);
}

#[test]
fn texts_and_documents_that_are_too_short_are_refused() {
    let dir = Scratch::new();
    let tokenizer = tokenizer();
    let text = &documents()[4];
    let error = |path: &Path, segments, length| {
        read_windows(&tokenizer, path, segments, 4, length).unwrap_err().to_string()
    };
    let random = Segments::Random { seed: 0 };

    // Exactly one window is enough in sequence, but not to draw from.
    let path = dir.join("text.txt");
    fs::write(&path, text).unwrap();
    assert_eq!(read_windows(&tokenizer, &path, Segments::Sequential, 4, 240).unwrap().count(), 1);
    mentions(&error(&path, Segments::Sequential, 241), &["240 tokens", "one window of 241"]);
    mentions(&error(&path, random, 240), &["text.txt has 240 tokens", "more than 240", "shorter window"]);
    mentions(&error(&path, random, 1000), &["text.txt has 240 tokens", "more than 1000"]);
    let windows = read_windows(&tokenizer, &path, random, 4, 239).unwrap();
    assert!(windows.iter().all(|window| window == windows.get(0).unwrap()), "only one start");

    let path = dir.join("docs.jsonl");
    fs::write(&path, json_lines(&[text.as_str(), "Bram", "", text])).unwrap();
    let parts =
        ["none of the 4 documents", "docs.jsonl", "window of 240", "longest has 240", "longer documents"];
    mentions(&error(&path, random, 240), &parts);
    assert_eq!(read_windows(&tokenizer, &path, random, 4, 239).unwrap().count(), 4);
    // One document in a thousand is enough.
    let mut texts = vec!["Bram"; 999];
    texts.push(text);
    fs::write(&path, json_lines(&texts)).unwrap();
    assert_eq!(read_windows(&tokenizer, &path, random, 4, 239).unwrap().tokens(), windows.tokens());

    for segments in [Segments::Sequential, random] {
        for length in [0, 1] {
            mentions(&error(&path, segments, length), &["at least 2"]);
        }
    }
    for count in [1 << 23, usize::MAX] {
        let text = read_windows(&tokenizer, &path, random, count, 239).unwrap_err().to_string();
        mentions(&text, &[&count.to_string(), "239", "fewer windows"]);
    }
}
