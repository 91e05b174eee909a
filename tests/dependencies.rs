//! Licences and sources of all crates that the program is built from on this platform, by the lists of deny.toml, without a network and without cargo-deny.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, ParseMode};

#[test]
fn licences_and_sources_are_those_of_deny_toml() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let deny: toml::Table = std::fs::read_to_string(root.join("deny.toml")).unwrap().parse().unwrap();
    let list = |table: &str, key: &str| -> Vec<String> {
        let all = deny[table][key].as_array().expect("a list");
        all.iter().map(|v| v.as_str().expect("a word").to_string()).collect()
    };
    let (licences, registries) = (list("licenses", "allow"), list("sources", "allow-registry"));
    let banned = list("bans", "deny");
    let cargo = |args: &[&str]| {
        let ran = Command::new(env!("CARGO")).args(args).current_dir(root).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    // Of this platform, whose crates are all here since the test was built from them.
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let args = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
    let metadata: Value = serde_json::from_str(&cargo(&args)).unwrap();
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "{} packages", packages.len());
    let word = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_string();
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|package| package["name"] != env!("CARGO_PKG_NAME")) {
        let (name, licence, source) =
            (word(package, "name"), word(package, "license"), word(package, "source"));
        if !registries.iter().any(|registry| source == format!("registry+{registry}")) {
            wrong.push(format!("{name} comes from {source:?}"));
        }
        if banned.contains(&name) {
            wrong.push(format!("{name} is banned"));
        }
        let allowed = Expression::parse_mode(&licence, ParseMode::LAX)
            .is_ok_and(|expression| expression.evaluate(|needed| licences.contains(&needed.to_string())));
        if !allowed {
            wrong.push(format!("{name} has the licence {licence:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
