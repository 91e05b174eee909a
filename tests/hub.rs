//! Models by their names on the hub: downloads from a server on loopback, the cache that they fill, and what is said when it does not
//! work. `inspect` stands for all commands where only the way to the model is looked at: it opens no device.
#![cfg(feature = "hub")]

mod cli_tools;
mod host_fixture;
mod hub_server;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli_tools::{Ran, command, fails_in, json_file, names};
use host_fixture::{Scratch, Tensor, config, model, tensors, write_config, write_safetensors, write_shards};
use hub_server::Server;
use maskwright::fsio;
use maskwright::hub::{self, Need, RepoName, Settings};
use maskwright::model::{Architecture, sha256_hex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const NAME: &str = "some-org/tiny_model.v1";
const WEIGHTS: &str = "model.safetensors";

/// A model of about 300 kB with all kinds of files.
fn repository(folder: &Path) {
    let config = model(folder);
    let mut all = tensors(&config);
    let data = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    all.insert("extra".into(), Tensor { dtype: safetensors::Dtype::U8, shape: vec![300_000], data });
    write_safetensors(&folder.join(WEIGHTS), &all);
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    for other in ["pytorch_model.bin", "README.md", "model.gguf", "optimizer.pt", "tf_model.h5"] {
        fs::write(folder.join(other), "x".repeat(1000)).unwrap();
    }
}

struct Hub {
    dir: Scratch,
    server: Server,
}

impl Hub {
    fn new() -> Self {
        let (dir, server) = (Scratch::new(), Server::start());
        repository(&dir.join("source"));
        server.add(NAME, "main", COMMIT, &dir.join("source"));
        Self { dir, server }
    }

    fn run(&self, args: &[OsString]) -> Command {
        let mut run = command();
        for (name, _) in std::env::vars_os() {
            let word = name.to_string_lossy().to_ascii_uppercase();
            if word.starts_with("HF_")
                || word.ends_with("_PROXY")
                || word.ends_with("HUB_CACHE")
                || word == "TRANSFORMERS_OFFLINE"
            {
                run.env_remove(name);
            }
        }
        run.env("HF_HOME", self.dir.join("hf")).env("HF_ENDPOINT", &self.server.address).args(args);
        run
    }

    fn inspect(&self, model: &str) -> Command {
        self.run(args!["inspect", model, "--json"])
    }

    /// The cache folder of the model.
    fn root(&self) -> PathBuf {
        self.dir.join("hf/hub/models--some-org--tiny_model.v1")
    }

    fn snapshot(&self) -> PathBuf {
        self.root().join("snapshots").join(COMMIT)
    }

    fn incomplete(&self) -> PathBuf {
        let hash = sha256_hex(&fs::read(self.dir.join("source").join(WEIGHTS)).unwrap());
        self.root().join("blobs").join(format!("{hash}.incomplete"))
    }

    #[track_caller]
    fn is_whole(&self) {
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS] {
            let (here, there) = (self.snapshot().join(file), self.dir.join("source").join(file));
            assert!(fs::read(here).unwrap() == fs::read(there).unwrap(), "{file} is another");
        }
    }
}

#[track_caller]
fn good(mut run: Command) -> Ran {
    let ran: Ran = run.output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran
}

#[test]
fn a_model_is_downloaded_once_into_the_cache_that_python_uses() {
    let hub = Hub::new();
    let ran = good(hub.inspect(NAME));
    assert!(ran.err.contains(&format!("downloading {NAME} (main, commit 01234567)")), "{}", ran.err);
    hub.is_whole();
    assert_eq!(names(&hub.snapshot()), ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(fs::read_to_string(hub.root().join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    {
        let hash = sha256_hex(&fs::read(hub.dir.join("source").join(WEIGHTS)).unwrap());
        let target = fs::read_link(hub.snapshot().join(WEIGHTS)).unwrap();
        assert_eq!(target, Path::new("../../blobs").join(hash));
    }
    assert_eq!(names(&hub.root().join("blobs")).len(), 4);
    // What no run needs is not asked for.
    let log = hub.server.log();
    let asked = |part: &str| log.iter().any(|request| request.path.contains(part));
    assert!(
        asked(WEIGHTS) && !asked(".bin") && !asked("README") && !asked(".gguf") && !asked(".h5"),
        "{log:?}"
    );
    // The second time nothing is asked at all, with the network or without.
    let before = log.len();
    good(hub.inspect(NAME));
    let mut offline = hub.inspect(NAME);
    offline.env("HF_HUB_OFFLINE", "1");
    let ran = good(offline);
    assert!(ran.err.contains(&format!("model: {NAME}, commit {COMMIT}, in ")), "{}", ran.err);
    good(hub.inspect(&format!("hf://{NAME}@{COMMIT}")));
    good(hub.inspect(&format!("{NAME}@01234567")));
    assert_eq!(hub.server.log().len(), before);
}

#[test]
fn a_broken_connection_goes_on_where_it_was() {
    let hub = Hub::new();
    hub.server.change(|state| state.breaks = vec![100_000, 50_000, 0]);
    good(hub.inspect(NAME));
    hub.is_whole();
    let ranges = hub.server.ranges(WEIGHTS);
    let expected = [None, Some("bytes=100000-"), Some("bytes=150000-"), Some("bytes=150000-")];
    assert_eq!(ranges, expected.map(|range| range.map(str::to_string)));
}

#[test]
fn the_next_command_goes_on_where_a_download_ended() {
    let hub = Hub::new();
    hub.server.change(|state| {
        state.breaks = vec![120_000];
        state.dead = false;
    });
    // The first connection gives 120 000 bytes, all others nothing.
    hub.server.change(|state| state.breaks.extend([0; 20]));
    let bytes = fs::metadata(hub.dir.join("source").join(WEIGHTS)).unwrap().len();
    let told = format!("the download of {WEIGHTS} broke off at 120000 of {bytes} bytes");
    fails_in(hub.inspect(NAME), 1, &[&told, "the same command goes on from there"]);
    assert_eq!(fs::metadata(hub.incomplete()).unwrap().len(), 120_000);
    // Nothing looks like a whole model.
    assert!(!hub.root().join("refs/main").exists() && !hub.snapshot().join(WEIGHTS).exists());
    hub.server.change(|state| {
        state.breaks.clear();
        state.log.clear();
    });
    good(hub.inspect(NAME));
    hub.is_whole();
    assert_eq!(hub.server.ranges(WEIGHTS), [Some("bytes=120000-".to_string())]);
    assert!(!hub.incomplete().exists());
    // What was whole already was not asked for again.
    assert!(!hub.server.log().iter().any(|request| request.path.ends_with("/tokenizer.json")));
}

#[test]
fn a_server_without_ranges_is_asked_for_all_again() {
    let hub = Hub::new();
    hub.server.change(|state| {
        state.no_ranges = true;
        state.breaks = vec![100_000];
    });
    good(hub.inspect(NAME));
    hub.is_whole();
}

#[test]
fn what_comes_damaged_is_not_kept() {
    let hub = Hub::new();
    hub.server.change(|state| state.damaged = true);
    let parts = [WEIGHTS, "came damaged", "SHA-256", "the same command downloads it again"];
    // Small files have no SHA-256 to hold them against; take them from before.
    fails_in(hub.inspect(NAME), 1, &parts);
    assert!(!hub.incomplete().exists() && !hub.snapshot().join(WEIGHTS).exists());
    hub.server.change(|state| state.damaged = false);
    fs::remove_dir_all(hub.root()).unwrap();
    good(hub.inspect(NAME));
    hub.is_whole();
}

#[test]
fn a_gated_model_says_what_to_do() {
    let hub = Hub::new();
    let page = format!("accept its terms at {}/{NAME}", hub.server.address);
    hub.server.change(|state| state.wanted_token = Some("hf_right".into()));
    fails_in(hub.inspect(NAME), 1, &[NAME, "is gated", &page, "set HF_TOKEN"]);
    let mut wrong = hub.inspect(NAME);
    wrong.env("HF_TOKEN", "hf_wrong");
    let told = fails_in(wrong, 1, &["is gated", &page, "the one given may not read it"]);
    assert!(!told.contains("hf_wrong"), "{told}");
    let mut refused = hub.inspect(NAME);
    refused.env("HF_TOKEN", "two words");
    let told = fails_in(refused, 1, &["HF_TOKEN holds no token"]);
    assert!(!told.contains("two words"), "{told}");
    hub.server.change(|state| {
        state.refused.insert(NAME.into(), (403, "GatedRepo"));
    });
    fails_in(hub.inspect(NAME), 1, &["is gated", &page]);
    // The token of `hf auth login`, which goes to the hub and to nobody else.
    hub.server.change(|state| {
        state.refused.clear();
        state.log.clear();
    });
    fs::create_dir_all(hub.dir.join("hf")).unwrap();
    fs::write(hub.dir.join("hf/token"), "hf_right\n").unwrap();
    good(hub.inspect(NAME));
    hub.is_whole();
    for request in hub.server.log() {
        let expected = (!request.cdn).then_some("hf_right");
        assert_eq!(request.token.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let hub = Hub::new();
    let address = hub.server.address.clone();
    fails_in(
        hub.inspect("some-org/other"),
        1,
        &[
            "no model some-org/other at",
            &address,
            "no folder of that name here",
            "look at the spelling",
            "HF_TOKEN",
        ],
    );
    let mut revision = hub.inspect(NAME);
    revision.args(["--revision", "v9"]);
    fails_in(revision, 1, &[NAME, "has no revision v9", "--revision"]);
    let mut bad = hub.inspect(NAME);
    bad.args(["--revision", "../main"]);
    fails_in(bad, 1, &["\"../main\" can be no revision"]);
    let mut offline = hub.inspect(NAME);
    offline.env("HF_HUB_OFFLINE", "1");
    let cache = hub.dir.join("hf/hub");
    fails_in(offline, 1, &[NAME, "nor in the cache", &cache.to_string_lossy(), "HF_HUB_OFFLINE"]);
    let mut unreachable = hub.inspect(NAME);
    // Nobody listens at a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    unreachable.env("HF_ENDPOINT", format!("http://{free}"));
    fails_in(unreachable, 1, &["cannot reach", &free.to_string(), "HF_ENDPOINT"]);
    // Below a folder that is there, a path is meant.
    fs::create_dir(hub.dir.join("models")).unwrap();
    let mut path = hub.inspect("models/village");
    path.current_dir(hub.dir.path());
    let before = hub.server.log().len();
    fails_in(path, 1, &["models/village"]);
    assert_eq!(hub.server.log().len(), before);
    assert!(!hub.dir.join("hf").exists(), "nothing is written for what is not there");
}

#[test]
fn weights_that_are_no_safetensors_are_not_downloaded() {
    let hub = Hub::new();
    hub.server.change(|state| drop(state.files.get_mut(COMMIT).unwrap().remove(WEIGHTS)));
    fails_in(
        hub.inspect(NAME),
        1,
        &[
            NAME,
            "no safetensors weights, but pytorch_model.bin",
            "AutoModelForCausalLM.from_pretrained",
            "save_pretrained",
        ],
    );
    hub.server.change(|state| drop(state.files.get_mut(COMMIT).unwrap().remove("config.json")));
    fails_in(hub.inspect(NAME), 1, &[NAME, "has no config.json"]);
    assert!(!hub.dir.join("hf").exists());
}

#[test]
fn shards_branches_and_folders_of_the_cache() {
    let hub = Hub::new();
    let sharded = hub.dir.join("sharded");
    write_config(&sharded, &config());
    write_shards(&sharded, &tensors(&Architecture::read(&sharded).unwrap()));
    fs::write(sharded.join("tokenizer.model"), "x").unwrap();
    hub.server.add(NAME, "refs/pr/1", OTHER, &sharded);
    good(hub.inspect(NAME));
    let mut branch = hub.inspect(NAME);
    branch.args(["--revision", "refs/pr/1"]);
    good(branch);
    let snapshot = hub.root().join("snapshots").join(OTHER);
    assert_eq!(
        names(&snapshot),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model"
        ]
    );
    assert_eq!(fs::read_to_string(hub.root().join("refs/refs/pr/1")).unwrap(), OTHER);
    // That there is no tokenizer.json is known from then on.
    let before = hub.server.log().len();
    let mut again = hub.inspect(NAME);
    again.args(["--revision", "refs/pr/1"]);
    good(again);
    // The folder of the cache stands for its model, main by default.
    let root = hub.root();
    for (revision, commit) in [(None, COMMIT), (Some("refs/pr/1"), OTHER), (Some("89abcdef01"), OTHER)] {
        let mut folder = hub.run(args!["inspect", root]);
        folder.args(revision.map(|revision| format!("--revision={revision}")));
        assert!(good(folder).err.contains(&format!("model: commit {commit} in ")));
    }
    let mut missing = hub.run(args!["inspect", root]);
    missing.arg("--revision=v2");
    fails_in(missing, 1, &["has no snapshot of v2", COMMIT, OTHER]);
    fs::write(root.join("refs/main"), "no commit").unwrap();
    fails_in(hub.inspect(NAME), 1, &["refs/main", "does not hold a commit"]);
    assert_eq!(hub.server.log().len(), before);
}

#[test]
fn commands_take_names() {
    let hub = Hub::new();
    let (text, out, mask) = (hub.dir.join("text"), hub.dir.join("out"), hub.dir.join("out/mask.safetensors"));
    fs::write(&text, "w2 w3 w5 w7 ".repeat(10)).unwrap();
    // A plan takes no weights.
    good(hub.run(args!["prune", NAME, "--method", "magnitude", "--dry-run", "--preset", "rows16"]));
    assert!(hub.server.ranges(WEIGHTS).is_empty() && hub.snapshot().join("config.json").exists());
    let run = ["prune", NAME, "--method", "magnitude", "--preset", "rows16", "--out"].map(OsString::from);
    let run: Vec<OsString> = run.into_iter().chain([out.clone().into_os_string()]).collect();
    good(hub.run(&run));
    let told = json_file(&out.join("run.json"));
    assert_eq!(told["model"], NAME);
    assert!(told["model_folder"].as_str().unwrap().ends_with(COMMIT), "{told}");
    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains(&format!("model = \"{NAME}\"")), "{config}");
    let masked = out.join("model");
    good(hub.run(args!["verify", masked, "--against", NAME, "--mask", mask]));
    let exported = hub.dir.join("exported");
    good(hub.run(args!["export", NAME, "--mask", mask, "--out", exported, "--revision", "main"]));
    let again = hub.dir.join("again");
    good(hub.run(args!["apply-mask", NAME, "--mask", mask, "--out", again]));
    assert!(again.join("config.json").is_file());
    good(hub.run(args![
        "eval",
        NAME,
        "--against",
        NAME,
        "--text",
        text,
        "--window",
        "8",
        "--preset",
        "rows16"
    ]));
    good(hub.run(args!["generate", NAME, "--tokens", "2", "--preset", "rows16"]));
}

/// Takes no notice.
struct Silent;

impl hub::Watch for Silent {
    fn note(&mut self, _: String) {}
    fn file(&mut self, _: &str, _: u64) {}
    fn at(&mut self, _: u64) {}
}

/// Whatever system call that changes a file fails once in a download: what is in the cache under a name of its own is whole, the message
/// names the cache, and the next download goes on to the whole model.
#[test]
fn each_call_of_a_download_fails() {
    let hub = Hub::new();
    let (name, _) = RepoName::parse(NAME).unwrap();
    let (mut number, mut failed) = (0, 0);
    loop {
        number += 1;
        let cache = hub.dir.join("hf/hub");
        if cache.exists() {
            fs::remove_dir_all(&cache).unwrap();
        }
        let (cache, endpoint) = (Some(cache), hub.server.address.clone());
        let settings = Settings { cache, endpoint, ..Settings::default() };
        let download = || hub::snapshot(&settings, &name, None, Need::Whole, &mut Silent);
        fsio::fail_at(number);
        let done = download();
        let past = fsio::fault_is_due();
        fsio::fail_at(0);
        if let Err(error) = done {
            failed += 1;
            let told = error.to_string();
            assert!(told.contains("hf/hub") && told.contains("a fault for a test"), "call {number}: {told}");
            let there = if hub.snapshot().exists() { names(&hub.snapshot()) } else { Vec::new() };
            for file in there {
                let (here, there) = (hub.snapshot().join(&file), hub.dir.join("source").join(&file));
                assert!(fs::read(here).unwrap() == fs::read(there).unwrap(), "call {number}: {file}");
            }
            assert!(!hub.root().join("refs/main").exists(), "call {number}: half a model is taken for whole");
            download().unwrap();
        }
        hub.is_whole();
        let blobs = names(&hub.root().join("blobs"));
        assert!(blobs.len() == 4 && !blobs.iter().any(|b| b.contains('.')), "call {number}: {blobs:?}");
        if past {
            break;
        }
    }
    println!("{failed} of {number} calls ended in an error");
    assert!(failed > 20, "only {failed} of {number} calls failed");
}
