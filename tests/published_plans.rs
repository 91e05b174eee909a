//! `prune --dry-run` from the config.json of published models alone, and the README's table of what they take.
//! `MASKWRIGHT_BLESS=1 cargo test --test published_plans` writes the table anew.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::Path;

use cli_tools::{json, run};
use host_fixture::Scratch;
use serde_json::Value;

/// A card of 24 GiB with the binding limit of the least of adapters, and the tile shape of GPUs: what the table is for.
const ADAPTER: [&str; 6] = ["--max-binding-bytes", "134217728", "--preset", "tile64", "--gpu-memory", "24"];

/// The models of the table.
const TABLE: [(&str, &str); 12] = [
    ("smollm2-135m", "SmolLM2-135M"),
    ("llama-3.2-1b", "Llama-3.2-1B"),
    ("gemma-2-2b", "Gemma-2-2B"),
    ("qwen3-4b", "Qwen3-4B"),
    ("mistral-7b-v0.3", "Mistral-7B"),
    ("llama-3.1-8b", "Llama-3.1-8B"),
    ("phi-4", "Phi-4"),
    ("qwen2.5-32b", "Qwen2.5-32B"),
    ("c4ai-command-r-v01", "Command R"),
    ("llama-3.1-70b", "Llama-3.1-70B"),
    ("qwen2.5-72b", "Qwen2.5-72B"),
    ("llama-3.1-405b", "Llama-3.1-405B"),
];

fn published() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published")
}

fn planned(dir: &Scratch, name: &str, more: &[&str]) -> Value {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(published().join(format!("{name}.json")), folder.join("config.json"))
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut args = args!["prune", folder, "--dry-run", "--json", "--quiet"].to_vec();
    args.extend(more.iter().chain(&ADAPTER).map(std::ffi::OsString::from));
    let ran = run(&args);
    // The plan is told whole, also where this machine has no room for it.
    assert!(ran.code == Some(0) || ran.err.contains("error: the plan takes"), "{name}: {}", ran.err);
    json(&ran.out)
}

/// All that is read is planned: at least one model of every family, the least and the largest.
#[test]
fn every_published_model_is_planned() {
    let dir = Scratch::new();
    let mut names: Vec<String> = fs::read_dir(published())
        .expect("tests/fixtures/published")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
        .filter(|name| name != "opt-350m")
        .collect();
    names.sort();
    assert!(names.len() >= 30, "{names:?}");
    for name in &names {
        let plan = planned(&dir, name, &["--recipe", "fast"]);
        assert!(plan["total"].as_u64().is_some_and(|total| total > 0), "{name}: {plan}");
    }
}

/// The table between the README's marks is what the command says.
#[test]
fn the_table_of_the_readme() {
    let dir = Scratch::new();
    let gib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 30));
    let sum = |items: &Value| {
        let items = items.as_array().into_iter().flatten();
        items.map(|item| item["bytes"].as_u64().unwrap_or(0)).sum::<u64>()
    };
    let mut table = String::from(
        "| model | `--recipe fast`: GPU | host | `--objective block`: GPU | host |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    for (name, title) in TABLE {
        let fast = planned(&dir, name, &["--recipe", "fast"]);
        let block = planned(&dir, name, &["--method", "relaxed", "--objective", "block"]);
        let stage = &block["stages"][0];
        let most = fast["total"].as_u64().unwrap_or(0).max(sum(&stage["plan"]));
        table += &format!(
            "| {title} | {} GiB | {} GiB | {} GiB | {} GiB |\n",
            gib(fast["total"].as_u64().expect("a total")),
            gib(sum(&fast["host"])),
            gib(most),
            gib(sum(&stage["host"])),
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).expect("the README");
    let (start, end) = ("<!-- plans: tests/published_plans.rs -->\n", "<!-- end of plans -->");
    let (before, rest) = readme.split_once(start).expect("the mark of the table's start");
    let (found, after) = rest.split_once(end).expect("the mark of its end");
    if std::env::var_os("MASKWRIGHT_BLESS").is_some() {
        fs::write(&path, format!("{before}{start}{table}{end}{after}")).expect("to write the README");
        return;
    }
    assert_eq!(found, table, "MASKWRIGHT_BLESS=1 writes it anew");
}
