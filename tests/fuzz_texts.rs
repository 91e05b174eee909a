//! Mutated texts and caches: each gives an error or tokens of the model, without a panic, within the memory of the files plus a constant, in
//! bounded time. The same cases at every run; docs/fuzzing.md says how to repeat one.

mod fuzzing;
mod host_fixture;
mod tables;

use std::fs;
use std::path::Path;

use fuzzing::models::CASES;
use fuzzing::{Case, Corpus, End, fuzz, refused};
use host_fixture::{Scratch, model};
use maskwright::calib::tokens_of_file;
use maskwright::hub::{Need, RepoName, Settings, Watch, snapshot, snapshot_of_folder};
use maskwright::model::{Architecture, Tokenizer};
use parquet::basic::{Compression, ZstdLevel};

fn judged(tokenizer: &Tokenizer, config: &Architecture, path: &Path) -> Result<End, String> {
    match tokens_of_file(tokenizer, path) {
        Ok(ids) if ids.iter().any(|&id| id as usize >= config.vocab_size) => {
            Err("an id without an embedding".into())
        }
        Ok(_) => Ok(End::Accepted),
        Err(e) => refused(&e),
    }
}

/// A model without weights and a file to be mutated.
fn read(target: &str, cases: u64, dir: &Scratch, files: &[&str]) {
    let config = model(dir.path());
    let tokenizer = Tokenizer::open(dir.path(), &config).unwrap();
    fuzz(target, &Corpus::of(dir.path(), files), cases, |case: &Case<'_>| {
        judged(&tokenizer, &config, case.file)
    });
}

#[test]
fn tables_of_texts() {
    let dir = Scratch::in_memory();
    let rows = [Some("w2 w3"), None, Some("w5")];
    let compressions =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())];
    let names = ["a.parquet", "b.parquet", "c.parquet"];
    for (name, compression) in names.iter().zip(compressions) {
        tables::texts(&dir.join(name), compression, &[("text", &rows), ("url", &rows)]);
    }
    read("tables_of_texts", CASES, &dir, &names);
}

#[test]
fn arrays_and_compressed_lines() {
    let dir = Scratch::in_memory();
    fs::write(dir.join("a.json"), "[{\"text\": \"w2\", \"n\": [1]}, \"w3\", {\"content\": \"w4 \\u00e9\"}]")
        .unwrap();
    let lines = "{\"text\": \"w2 w3\"}\n{\"content\": \"w4\"}\n".repeat(20);
    fs::write(dir.join("b.jsonl"), &lines).unwrap();
    fs::write(dir.join("c.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 3).unwrap()).unwrap();
    read("arrays_and_compressed_lines", CASES, &dir, &["a.json", "b.jsonl", "c.jsonl.zst"]);
}

#[test]
fn chat_templates() {
    let dir = Scratch::in_memory();
    let template = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}w2 {{ m['content'] | trim }}{% else %}w3 \
                    {{ m.content.strip() }}{% endif %}{% endfor %}";
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
    fs::write(dir.join("tokenizer_config.json"), "{\"bos_token\": {\"content\": \"w5\"}}").unwrap();
    let talk = "{\"messages\": [{\"role\": \"user\", \"content\": \"w7\"}, {\"role\": \"x\", \"content\": \"w8\"}]}\n";
    fs::write(dir.join("talk.jsonl"), talk).unwrap();
    let config = model(dir.path());
    let tokenizer = Tokenizer::open(dir.path(), &config).unwrap();
    let corpus = Corpus::of(dir.path(), &["chat_template.jinja", "tokenizer_config.json", "talk.jsonl"]);
    let talk = dir.join("talk.jsonl");
    fuzz("chat_templates", &corpus, CASES / 2, |_| judged(&tokenizer, &config, &talk));
}

struct Silent;

impl Watch for Silent {
    fn note(&mut self, _: String) {}
    fn file(&mut self, _: &str, _: u64) {}
    fn at(&mut self, _: u64) {}
}

/// What the cache says leads to a snapshot inside it, or to an error.
#[test]
fn caches_of_the_hub() {
    let dir = Scratch::in_memory();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let root = dir.join("models--a--b");
    let folder = root.join("snapshots").join(commit);
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::create_dir_all(&folder).unwrap();
    fs::write(root.join("refs/main"), format!("{commit}\n")).unwrap();
    for file in ["config.json", "tokenizer.json", "x.safetensors"] {
        fs::write(folder.join(file), "{}").unwrap();
    }
    let index = "model.safetensors.index.json";
    fs::write(folder.join(index), "{\"weight_map\": {\"a\": \"x.safetensors\"}}").unwrap();
    let index = format!("snapshots/{commit}/{index}");
    let corpus = Corpus::of(&root, &["refs/main", &index]);
    let settings = Settings { cache: Some(dir.path().into()), offline: true, ..Settings::default() };
    let name = RepoName::parse("a/b").unwrap().0;
    fuzz("caches_of_the_hub", &corpus, CASES, |_| {
        let found = snapshot(&settings, &name, None, Need::Whole, &mut Silent);
        let _ = snapshot_of_folder(&root, None);
        match found {
            Ok(found) if found.folder == folder => Ok(End::Accepted),
            Ok(found) => Err(format!("{} is another place", found.folder.display())),
            Err(e) => refused(&e),
        }
    });
}
