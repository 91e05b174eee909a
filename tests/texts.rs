//! Texts of all kinds: parquet, JSON arrays, conversations, zstd, folders; the tokens they give, and what is said of those that give none.

mod cli_tools;
mod host_fixture;
mod tables;

use std::fs;
use std::path::Path;

use cli_tools::{fails, fails_in, shared_model, succeeds, village, village_text};
use host_fixture::{Scratch, model};
use maskwright::calib::{Segments, TextOptions, read_windows, tokens_of, tokens_of_file};
use maskwright::model::{Architecture, Tokenizer};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use serde_json::json;
use tables::{conversations, texts};

/// A tiny model; its tokenizer knows w0 to w11 and opens every text with 1.
fn setup() -> (Scratch, Tokenizer) {
    let dir = Scratch::new();
    let config = model(&dir.join("model"));
    let tokenizer = Tokenizer::open(&dir.join("model"), &config).unwrap();
    (dir, tokenizer)
}

fn error(tokenizer: &Tokenizer, path: &Path, options: &TextOptions) -> String {
    tokens_of(tokenizer, path, options, usize::MAX).unwrap_err().to_string()
}

#[test]
fn parquet_of_every_usual_compression() {
    let (dir, tokenizer) = setup();
    let rows = [Some("w2 w3"), None, Some("w5")];
    for (i, compression) in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.join(&format!("{i}.parquet"));
        texts(&path, compression, &[("url", &[Some("w9"); 3]), ("text", &rows)]);
        assert_eq!(tokens_of_file(&tokenizer, &path).unwrap(), [1, 2, 3, 1, 5]);
    }
    // Rows are documents for random windows, too.
    let windows =
        read_windows(&tokenizer, &dir.join("1.parquet"), Segments::Random { seed: 0 }, 4, 2).unwrap();
    assert!(windows.iter().all(|w| [[1, 2], [2, 3]].contains(&[w[0], w[1]])), "{windows:?}");
}

#[test]
fn columns_are_found_or_named() {
    let (dir, tokenizer) = setup();
    let (path, none) = (dir.join("t.parquet"), TextOptions::default());
    let column = |name: &str| TextOptions { field: None, column: Some(name.into()) };
    texts(&path, Compression::SNAPPY, &[("question", &[Some("w7")]), ("answer", &[Some("w8 w9")])]);
    let told = error(&tokenizer, &path, &none);
    for part in ["t.parquet has no column `text`", "it has question, answer", "--column names"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(tokens_of(&tokenizer, &path, &column("answer"), usize::MAX).unwrap(), [1, 8, 9]);
    assert!(error(&tokenizer, &path, &column("url")).contains("has no column url"));
    texts(&path, Compression::SNAPPY, &[("body", &[Some("w4")])]);
    assert_eq!(tokens_of(&tokenizer, &path, &none, usize::MAX).unwrap(), [1, 4], "the only column of texts");
    texts(&path, Compression::SNAPPY, &[("text", &[None, Some("  ")])]);
    assert!(error(&tokenizer, &path, &none).contains("is empty"));
}

#[test]
fn damaged_parquet_is_refused() {
    let (dir, tokenizer) = setup();
    let path = dir.join("t.parquet");
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        error(&tokenizer, &path, &TextOptions::default())
    };
    texts(&path, Compression::SNAPPY, &[("text", &[Some("w2")])]);
    let whole = fs::read(&path).unwrap();
    for bytes in [&whole[..whole.len() - 9], &b"no parquet"[..], b""] {
        let told = told(bytes);
        assert!(told.contains("t.parquet is not a whole parquet file"), "{told}");
    }
    // The same file under another name.
    fs::write(dir.join("t.txt"), &whole).unwrap();
    let told = error(&tokenizer, &dir.join("t.txt"), &TextOptions::default());
    assert!(told.contains("let its name end in .parquet") || told.contains("UTF-8"), "{told}");
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %} w2 {% else %} w3 {% endif %}\
                        {{ m['content'] }}{% endfor %} {{ eos_token }}";

#[test]
fn conversations_go_through_the_chat_template() {
    let (dir, tokenizer) = setup();
    let path = dir.join("chat.jsonl");
    let line =
        json!({"messages": [{"role": "user", "content": "w7 w8"}, {"role": "assistant", "content": "w9"}]});
    fs::write(&path, format!("{line}\n{{\"text\": \"w4\"}}\n")).unwrap();
    let none = TextOptions::default();
    let told = error(&tokenizer, &path, &none);
    assert!(told.contains("has no chat template") && told.contains("--field"), "{told}");
    let config = dir.join("model/tokenizer_config.json");
    let tokens = json!({"bos_token": {"content": "w5"}, "eos_token": "w6", "chat_template": TEMPLATE});
    fs::write(&config, tokens.to_string()).unwrap();
    // The template writes the opening token; a plain text gets the tokenizer's.
    let expected = [5, 2, 7, 8, 3, 9, 6];
    assert_eq!(tokens_of(&tokenizer, &path, &none, usize::MAX).unwrap(), [&expected[..], &[1, 4]].concat());
    // Under another key, and as a column.
    let talk = json!([{"role": "user", "content": "w7 w8"}, {"role": "assistant", "content": "w9"}]);
    fs::write(&path, json!({"text": "w4", "talk": talk}).to_string()).unwrap();
    let field = TextOptions { field: Some("talk".into()), column: None };
    assert_eq!(tokens_of(&tokenizer, &path, &field, usize::MAX).unwrap(), expected);
    let table = dir.join("chat.parquet");
    conversations(&table, "messages", &[&[("user", "w7 w8"), ("assistant", "w9")], &[("user", "w10")]]);
    assert_eq!(
        tokens_of(&tokenizer, &table, &none, usize::MAX).unwrap(),
        [&expected[..], &[5, 2, 10, 6]].concat()
    );
    // A file of its own goes before, and may be bad.
    fs::write(dir.join("model/chat_template.jinja"), "{% for %}").unwrap();
    let told = error(&tokenizer, &table, &none);
    assert!(told.contains("chat_template.jinja is not a usable chat template"), "{told}");
    fs::write(dir.join("model/chat_template.jinja"), "{{ raise_exception('no users') }}").unwrap();
    let told = error(&tokenizer, &table, &none);
    assert!(told.contains("chat.parquet, row 1: the chat template refuses its messages: no users"), "{told}");
}

#[test]
fn arrays_zstd_and_folders() {
    let (dir, tokenizer) = setup();
    let folder = dir.join("texts");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("b.json"), "\n [{\"content\": \"w3\"}, \"w4\"]").unwrap();
    fs::write(folder.join("a.txt.zst"), zstd::encode_all(&b"w2"[..], 3).unwrap()).unwrap();
    texts(&folder.join("c.parquet"), Compression::SNAPPY, &[("text", &[Some("w5")])]);
    assert_eq!(tokens_of_file(&tokenizer, &folder).unwrap(), [1, 2, 1, 3, 1, 4, 1, 5]);
    assert_eq!(tokens_of_file(&tokenizer, &folder.join("a.txt.zst")).unwrap(), [1, 2]);
    fs::write(folder.join("d.txt"), b"\x1f\x8b\x08\x00").unwrap();
    let told = error(&tokenizer, &folder, &TextOptions::default());
    assert!(told.contains("d.txt is no text") && told.contains(".gz"), "{told}");
}

#[test]
fn commands_take_the_options() {
    let (dir, _) = setup();
    let (model, table, out) = (dir.join("model"), dir.join("t.parquet"), dir.join("out"));
    let long = "w2 w3 w5 w7 ".repeat(20);
    texts(&table, Compression::SNAPPY, &[("a", &[Some(&long)]), ("b", &[Some("w2")])]);
    let plain = ["--window", "8", "--preset", "rows16"];
    let eval = args![
        "eval", model, "--text", table, "--column", "a", plain[0], plain[1], plain[2], plain[3], "--json"
    ];
    assert_eq!(cli_tools::json(&succeeds(eval).out)["windows"], 10);
    fails(args!["eval", model, "--text", table, "--window", "8"], &["t.parquet has no column", "--column"]);
    let run = args![
        "prune",
        model,
        "--calib",
        table,
        "--column",
        "a",
        "--method",
        "wanda",
        "--windows",
        "4",
        plain[0],
        plain[1],
        plain[2],
        plain[3],
        "--out",
        out
    ];
    succeeds(run);
    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains("column = \"a\""), "{config}");
    for command in [
        &["eval", "MODEL", "--text", "t", "--windows", "0"][..],
        &["prune", "MODEL", "--calib", "t", "--out", "o", "--windows", "0"],
        &["prune", "MODEL", "--calib", "t", "--out", "o", "--eval-windows", "0"],
    ] {
        let mut zero = cli_tools::command();
        zero.args(command);
        fails_in(zero, 2, &["0", "--"]);
    }
}

/// The tiny model was made for 64 positions.
#[test]
fn windows_beyond_the_positions_are_told() {
    let (dir, _) = setup();
    let (model, text, out) = (dir.join("model"), dir.join("text"), dir.join("out"));
    fs::write(&text, "w2 w3 w5 w7 ".repeat(100)).unwrap();
    let said = "windows of 72 tokens are longer than the 64 the model was made for";
    let ran = succeeds(args!["eval", model, "--text", text, "--window", "72", "--preset", "rows16"]);
    assert!(ran.err.contains(said), "{}", ran.err);
    let ran = succeeds(args![
        "prune",
        model,
        "--calib",
        text,
        "--window",
        "72",
        "--windows",
        "4",
        "--method",
        "wanda",
        "--preset",
        "rows16",
        "--out",
        out
    ]);
    assert!(ran.err.contains(said), "{}", ran.err);
}

/// Long texts are tokenized in pieces, whose tokens are those of the whole: of the tokenizers here, and of real ones where they lie next to
/// the repository.
#[test]
fn long_texts_have_the_tokens_of_the_whole() {
    let dir = Scratch::new();
    let mut models = vec![village()];
    let real = ["stories260K", "stories3M", "smollm2-135m"].map(shared_model);
    models.extend(real.into_iter().filter(|folder| folder.join("config.json").is_file()));
    let mut texts = vec![village_text("calib"), village_text("heldout")];
    let shared = village().join("../../../shared/texts");
    texts.extend(["wikitext2-calib.txt", "tinystories-valid.txt"].map(|name| shared.join(name)));
    // Of several lengths, and with what no word is.
    let long: String =
        (0..60_000).map(|i| format!("{i} {}\r\n", "\u{e9}\u{4f60}\u{1f600} ".repeat(i % 5))).collect();
    fs::write(dir.join("numbers.txt"), &long).unwrap();
    texts.push(dir.join("numbers.txt"));
    for folder in &models {
        let tokenizer = Tokenizer::open(folder, &Architecture::read(folder).unwrap()).unwrap();
        for path in texts.iter().filter(|path| path.is_file()) {
            let text = fs::read_to_string(path).unwrap();
            let whole = tokenizer.encode(&text).unwrap();
            let (folder, path) = (folder.display(), path.display());
            assert!(text.len() > 300_000, "{path} is not long");
            assert!(tokenizer.encode_first(&text, usize::MAX).unwrap() == whole, "{folder} on {path}");
            let some = tokenizer.encode_first(&text, 1000).unwrap();
            assert_eq!(some, whole[..1000], "{folder} on {path}");
            println!("{folder}: {} tokens of {path}", whole.len());
        }
    }
}
