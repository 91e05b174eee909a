//! A small Hugging Face hub on loopback: listings, files with ranges, redirects to a second address, and the faults of real networks.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use maskwright::model::sha256_hex;
use serde_json::json;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    /// Whether it came to the second address.
    pub cdn: bool,
}

/// What the server has and does.
#[derive(Default)]
pub struct State {
    /// ORG/NAME to revision to commit.
    pub revisions: BTreeMap<String, BTreeMap<String, String>>,
    /// Commit to file to content.
    pub files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Status and `X-Error-Code` of every file and listing of a repository.
    pub refused: BTreeMap<String, (u16, &'static str)>,
    /// The token without which weights are refused, as the hub refuses gated ones.
    pub wanted_token: Option<String>,
    /// How many bytes each of the next connections for weights gives before it breaks.
    pub breaks: Vec<usize>,
    /// From then on no connection gives anything.
    pub dead: bool,
    /// Ranges are ignored.
    pub no_ranges: bool,
    /// Contents come with one byte changed.
    pub damaged: bool,
    pub log: Vec<Request>,
}

pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let (hub, cdn) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = format!("http://{}", hub.local_addr().unwrap());
        let cdn_address = format!("http://{}", cdn.local_addr().unwrap());
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let (state, cdn_address) = (state.clone(), cdn_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, cdn_address) = (state.clone(), cdn_address.clone());
                    std::thread::spawn(move || answer(&stream, &state, &cdn_address, is_cdn));
                }
            });
        }
        Self { address, state }
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves the files of a folder as a revision of a repository.
    pub fn add(&self, name: &str, revision: &str, commit: &str, folder: &Path) {
        let files = fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
        });
        let files = files.collect();
        self.change(|state| {
            state.revisions.entry(name.into()).or_default().insert(revision.into(), commit.into());
            state.files.insert(commit.into(), files);
        });
    }

    pub fn log(&self) -> Vec<Request> {
        self.change(|state| state.log.clone())
    }

    /// The ranges of the requests for a file's content, in their order.
    pub fn ranges(&self, file: &str) -> Vec<Option<String>> {
        let gets = self.log().into_iter().filter(|r| r.method == "GET" && r.cdn && r.path.ends_with(file));
        gets.map(|request| request.range).collect()
    }
}

fn read_request(stream: &TcpStream, cdn: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut request = Request { method, path, range: None, token: None, cdn };
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.into()),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    Some(request)
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>, cdn_address: &str, cdn: bool) {
    let Some(request) = read_request(stream, cdn) else { return };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.log.push(request.clone());
    let mut send = |status: u16, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n{headers}\r\n");
        let _ = stream.write_all(head.as_bytes());
        if request.method == "GET" {
            let _ = stream.write_all(body);
        }
        let _ = stream.flush();
    };
    let refuse = |status: u16, code: &str| (status, format!("X-Error-Code: {code}\r\nContent-Length: 0\r\n"));
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    if let ["api", "models", org, name, "revision", revision] = parts[..] {
        let (name, revision) = (format!("{org}/{name}"), revision.replace("%2F", "/"));
        let found = state.revisions.get(&name).map(|all| {
            all.get(&revision).or_else(|| all.values().find(|commit| commit.starts_with(&revision)))
        });
        match (state.refused.get(&name), found) {
            (Some(&(status, code)), _) if code != "GatedRepo" => {
                let (status, headers) = refuse(status, code);
                send(status, &headers, b"");
            }
            (_, None) => {
                let (status, headers) = refuse(401, "RepoNotFound");
                send(status, &headers, b"");
            }
            (_, Some(None)) => {
                let (status, headers) = refuse(404, "RevisionNotFound");
                send(status, &headers, b"");
            }
            (_, Some(Some(commit))) => {
                let files = state.files[commit].keys().map(|file| json!({ "rfilename": file }));
                let body = json!({ "sha": commit, "siblings": files.collect::<Vec<_>>() }).to_string();
                send(200, &format!("Content-Length: {}\r\n", body.len()), body.as_bytes());
            }
        }
        return;
    }
    let [org, name, "resolve", commit, file] = parts[..] else {
        send(404, "Content-Length: 0\r\n", b"");
        return;
    };
    let Some(mut content) = state.files.get(commit).and_then(|files| files.get(file)).cloned() else {
        let (status, headers) = refuse(404, "EntryNotFound");
        send(status, &headers, b"");
        return;
    };
    let gated = state.refused.get(&format!("{org}/{name}")).copied();
    let no_token = state.wanted_token.is_some() && state.wanted_token != request.token;
    if let Some((status, code)) = gated.filter(|_| !cdn).or((no_token && !cdn).then_some((401, "GatedRepo")))
    {
        let (status, headers) = refuse(status, code);
        send(status, &headers, b"");
        return;
    }
    let large = file.ends_with(".safetensors");
    // As on the hub: the SHA-256 of what is large, some other hash (here of 40 digits, too) of the rest.
    let hash = sha256_hex(&content);
    let etag = if large { &hash[..] } else { &hash[..40] };
    if large && !cdn {
        let headers = format!(
            "Location: {cdn_address}{}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nETag: \"other\"\r\nContent-Length: 0\r\n",
            request.path,
            content.len()
        );
        send(302, &headers, b"");
        return;
    }
    let all = content.len();
    let mut start = 0;
    if let Some(range) = request.range.as_deref().filter(|_| !state.no_ranges) {
        start = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    }
    if state.damaged {
        content[all / 2] ^= 1;
    }
    let mut length = all - start;
    if large && state.dead {
        length = 0;
    } else if large && request.method == "GET" && !state.breaks.is_empty() {
        length = state.breaks.remove(0).min(length);
    }
    let part = match start {
        0 => String::new(),
        _ => format!("Content-Range: bytes {start}-{}/{all}\r\n", all - 1),
    };
    let headers = format!("ETag: W/\"{etag}\"\r\nContent-Length: {}\r\n{part}", all - start);
    send(if start > 0 { 206 } else { 200 }, &headers, &content[start..start + length]);
}
