//! Families are data: no code outside `src/model/families` asks which one a model is of, and the documents list those that there are.

use std::fs;
use std::path::{Path, PathBuf};

use maskwright::model::family_names;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "wgsl") {
            into.push(path);
        }
    }
}

#[test]
fn no_code_asks_for_a_family() {
    let mut files = Vec::new();
    sources(&repository().join("src"), &mut files);
    sources(&repository().join("shaders"), &mut files);
    files.retain(|path| !path.starts_with(repository().join("src/model/families")));
    assert!(files.len() > 10);
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        // Unit tests may write a config.json.
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        for (i, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let named = family_names().find(|name| code.contains(&format!("\"{name}\"")));
            // It is shown, and never looked at.
            let asked =
                ["family ==", "family !=", "family.starts", "match self.family", "match config.family"];
            if named.is_some() || asked.iter().any(|asked| code.contains(asked)) {
                wrong.push(format!("{}:{}: {}", path.display(), i + 1, line.trim()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "what differs between families belongs into `Architecture`:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn each_file_is_a_family() {
    let folder = repository().join("src/model/families");
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let stems = files.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let mut stems: Vec<_> = stems
        .filter(|stem| !["mod", "keys", "rope", "harmless", "seeing"].contains(&stem.as_str()))
        .collect();
    stems.push("gemma3_text".into());
    stems.sort();
    let mut names: Vec<_> = family_names().collect();
    names.sort_unstable();
    assert_eq!(stems, names);
}

#[test]
fn the_documents_list_the_families() {
    let page = fs::read_to_string(repository().join("docs/families.md")).unwrap();
    let table = page.lines().skip_while(|line| !line.starts_with("| family")).skip(2);
    let rows: Vec<&str> = table.map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, family_names().collect::<Vec<_>>());
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let models = readme.split("**Models**").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    let missing: Vec<_> = family_names().filter(|name| !models.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "the README's paragraph on models lacks {missing:?}");
}

#[test]
fn the_example_of_the_documents_is_the_code() {
    let page = fs::read_to_string(repository().join("docs/families.md")).unwrap();
    let example = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let code = fs::read_to_string(repository().join("src/model/families/starcoder2.rs")).unwrap();
    assert!(code.contains(example), "the example is not in starcoder2.rs any more");
}
