//! The hub over HTTP: what a repository holds, and its files.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::name::is_commit;
use super::{HubError, MAIN, RepoName, Settings};
use crate::model::{MESSAGE, clip};

/// How often a request is made before it is given up.
pub(super) const TRIES: u32 = 5;
/// Before the second try; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Redirects that are followed.
const HOPS: usize = 6;
/// More than the listing of any model takes.
const LIMIT_LISTING: u64 = 64 << 20;
/// A connection that is used for longer is made anew, so that one that hangs ends.
const BODY: Duration = Duration::from_secs(300);

/// How long to wait before try `number`, the first being 0.
pub(super) fn pause(number: u32) {
    if number > 0 {
        std::thread::sleep(FIRST_PAUSE * 2u32.pow((number - 1).min(6)));
    }
}

/// What a revision of a repository holds.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says about a file.
pub(super) struct Meta {
    /// Its name in the cache; 64 hexadecimal digits are the SHA-256 of its content.
    pub(super) etag: String,
    pub(super) bytes: u64,
    address: String,
}

/// A part of a file on its way.
pub(super) struct Part {
    /// The place in the file at which it begins.
    pub(super) start: u64,
    pub(super) content: Box<dyn Read>,
}

/// Why there is no part.
pub(super) enum NoPart {
    /// May be better at the next try.
    Passing(String),
    /// Stays.
    Lasting(HubError),
}

/// A hub.
pub(super) struct Remote {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Remote {
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        let config = Agent::config_builder()
            // Both are looked at here: some statuses have a meaning, and a redirect must not take the token along to another host.
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(BODY))
            .user_agent(concat!("maskwright/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(certificates()?).build())
            .build();
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        Ok(Self { agent: Agent::new_with_config(config), endpoint, token })
    }

    /// The page of a model.
    pub(super) fn page(&self, name: &RepoName) -> String {
        format!("{}/{name}", self.endpoint)
    }

    /// The commit and the files of a revision.
    pub(super) fn listing(&self, name: &RepoName, revision: &str) -> Result<Listing, HubError> {
        let revision_part = revision.replace('/', "%2F");
        let address = format!("{}/api/models/{name}/revision/{revision_part}", self.endpoint);
        let response = self.ask(&address, |address, token| self.request(address, token, None))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response.status(), response.headers(), name, revision, None));
        }
        let wrong =
            |problem: String| HubError::Answer { address: address.clone(), problem: clip(&problem, MESSAGE) };
        let mut text = Vec::new();
        let body = response.into_body().into_reader();
        body.take(LIMIT_LISTING).read_to_end(&mut text).map_err(|e| wrong(e.to_string()))?;
        let answer: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("no JSON, {e}")))?;
        let commit = answer.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| wrong("it names no commit (`sha`)".into()))?.to_string();
        let siblings = answer.get("siblings").and_then(Value::as_array).into_iter().flatten();
        let files = siblings.filter_map(|s| s.get("rfilename")?.as_str().map(str::to_string)).collect();
        Ok(Listing { commit, files })
    }

    /// What there is to know of a file before it is downloaded.
    pub(super) fn meta(&self, name: &RepoName, commit: &str, file: &str) -> Result<Meta, HubError> {
        let address = format!("{}/{name}/resolve/{commit}/{file}", self.endpoint);
        let mut at = address.clone();
        for _ in 0..HOPS {
            let response = self.ask(&at, |address, token| self.head(address, token))?;
            let headers = response.headers();
            let wrong = |problem: &str| HubError::Answer { address: at.clone(), problem: problem.into() };
            let (status, etag) =
                (response.status(), header(headers, "x-linked-etag").or_else(|| header(headers, "etag")));
            let moved = status.is_redirection().then(|| header(headers, "location")).flatten();
            match (moved, etag) {
                // A renamed repository, or a mirror: what counts is what it leads to.
                (Some(location), etag) if location.starts_with('/') || etag.is_none() => {
                    at = joined(&at, location).ok_or_else(|| wrong("it leads nowhere"))?;
                }
                (moved, Some(etag)) if moved.is_some() || status.is_success() => {
                    let bytes =
                        header(headers, "x-linked-size").or_else(|| header(headers, "content-length"));
                    let bytes = bytes
                        .and_then(|n| n.parse().ok())
                        .ok_or_else(|| wrong("it does not say the file's size"))?;
                    let etag = blob_name(etag).ok_or_else(|| wrong("its ETag can be no file name"))?;
                    return Ok(Meta { etag, bytes, address });
                }
                _ if status.is_success() => return Err(wrong("it has no ETag")),
                _ => return Err(self.refusal(status, headers, name, commit, Some(file))),
            }
        }
        Err(HubError::Answer { address, problem: "it leads on and on".into() })
    }

    /// The file from byte `from` on, or from its beginning where the server gives no parts.
    pub(super) fn part(&self, name: &RepoName, file: &str, meta: &Meta, from: u64) -> Result<Part, NoPart> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let mut at = meta.address.clone();
        let passing = |e: ureq::Error| NoPart::Passing(e.to_string());
        for _ in 0..HOPS {
            let response = self.request(&at, self.token_for(&at), range.as_deref()).map_err(passing)?;
            let (status, headers) = (response.status(), response.headers());
            let start = match status {
                StatusCode::OK => 0,
                StatusCode::PARTIAL_CONTENT => match header(headers, "content-range").and_then(first_byte) {
                    Some(start) if start <= from => start,
                    _ => return Err(NoPart::Passing("it sent another part than the one asked for".into())),
                },
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(Part { start: 0, content: Box::new(std::io::empty()) });
                }
                status if status.is_redirection() => {
                    let next = header(headers, "location").and_then(|location| joined(&at, location));
                    at = next.ok_or_else(|| NoPart::Passing("it leads nowhere".into()))?;
                    continue;
                }
                status if is_passing(status) => return Err(NoPart::Passing(format!("status {status}"))),
                status => {
                    return Err(NoPart::Lasting(self.refusal(status, headers, name, MAIN, Some(file))));
                }
            };
            return Ok(Part { start, content: Box::new(response.into_body().into_reader()) });
        }
        Err(NoPart::Passing("it leads on and on".into()))
    }

    /// The token, for the hub itself only.
    fn token_for(&self, address: &str) -> Option<&str> {
        let own = host(address).is_some_and(|name| host(&self.endpoint) == Some(name));
        self.token.as_deref().filter(|_| own)
    }

    /// Makes a request again while its failure may pass.
    fn ask(
        &self,
        address: &str,
        request: impl Fn(&str, Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        let mut problem = String::new();
        for number in 0..TRIES {
            pause(number);
            match request(address, self.token_for(address)) {
                Ok(response) if is_passing(response.status()) => {
                    problem = format!("status {}", response.status())
                }
                Ok(response) => return Ok(response),
                Err(e @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                    problem = e.to_string();
                    break;
                }
                Err(e) => problem = e.to_string(),
            }
        }
        Err(HubError::Unreachable { endpoint: self.endpoint.clone(), problem: clip(&problem, MESSAGE) })
    }

    fn head(&self, address: &str, token: Option<&str>) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.head(address).header("Accept-Encoding", "identity");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call()
    }

    fn request(
        &self,
        address: &str,
        token: Option<&str>,
        range: Option<&str>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(address).header("Accept-Encoding", "identity");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        request.call()
    }

    /// A status that is no success, in words that help.
    fn refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        name: &RepoName,
        revision: &str,
        file: Option<&str>,
    ) -> HubError {
        let code = header(headers, "x-error-code").unwrap_or_default();
        let (name_, endpoint, page) = (name.to_string(), self.endpoint.clone(), self.page(name));
        let has_token = self.token.is_some();
        match (status.as_u16(), code, file) {
            (_, "GatedRepo", _) | (403, _, _) => {
                let hint = match has_token {
                    false => "set HF_TOKEN to a token of the account that did (or `hf auth login`)",
                    true => "give a token of the account that did in HF_TOKEN: the one given may not read it",
                };
                HubError::Gated { name: name_, page, hint }
            }
            (_, "RevisionNotFound", _) => {
                HubError::NoRevision { name: name_, revision: revision.into(), page }
            }
            (_, "EntryNotFound", Some(file)) | (404, "", Some(file)) => {
                HubError::NoFile { name: name_, revision: revision.into(), file: file.into() }
            }
            (401, "", _) if has_token => HubError::Refused { endpoint },
            (401, _, _) | (404, _, _) => {
                let hint = match has_token {
                    false => "; one that is private or gated needs a token in HF_TOKEN",
                    true => "; one that is private needs the token of an account that may see it",
                };
                HubError::NotFound { name: name_, endpoint, hint }
            }
            (status, _, _) => HubError::Answer { address: page, problem: format!("status {status}") },
        }
    }
}

/// Whether the same request may be answered better a little later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An ETag as the name of a blob: what Python makes of it, where that is safe as a file name.
fn blob_name(etag: &str) -> Option<String> {
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
    let safe = etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    (safe && (1..=128).contains(&etag.len())).then(|| etag.to_string())
}

/// The first byte of `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.trim().parse().ok()
}

/// Scheme and host of an address.
fn host(address: &str) -> Option<&str> {
    let (scheme, rest) = address.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    address.get(..scheme.len() + 3 + end)
}

/// Where a redirect leads.
fn joined(from: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.into());
    }
    if location.starts_with("//") {
        return Some(format!("{}:{location}", from.split("://").next()?));
    }
    location.starts_with('/').then(|| host(from).map(|host| format!("{host}{location}"))).flatten()
}

/// The authorities to trust: Mozilla's, which come with the program, or those of the file that a network with its own names in
/// `SSL_CERT_FILE` (or `REQUESTS_CA_BUNDLE`, for Python).
fn certificates() -> Result<RootCerts, HubError> {
    let named = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    let Some(path) = named.iter().filter_map(std::env::var_os).find(|path| !path.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let bytes = std::fs::read(&path).map_err(|e| HubError::os("read the certificates", &path, e))?;
    let found = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    Ok(RootCerts::from(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_on_and_only_the_hub_gets_the_token() {
        let from = "https://hub.example/a/b/resolve/c/d?x=//y";
        assert_eq!(joined(from, "/new/b").as_deref(), Some("https://hub.example/new/b"));
        assert_eq!(joined(from, "http://cdn.example/f").as_deref(), Some("http://cdn.example/f"));
        assert_eq!(joined(from, "//cdn.example/f").as_deref(), Some("https://cdn.example/f"));
        assert_eq!(joined(from, "file:///etc/passwd"), None);
        assert_eq!(host(from), Some("https://hub.example"));
        let settings = Settings {
            endpoint: "https://hub.example".into(),
            token: Some("t".into()),
            ..Settings::default()
        };
        let remote = Remote::new(&settings).unwrap();
        assert_eq!(remote.token_for(from), Some("t"));
        for other in [
            "http://hub.example/a",
            "https://hub.example.evil/a",
            "https://hub.example:444/a",
            "https://cdn/a",
        ] {
            assert_eq!(remote.token_for(other), None, "{other}");
        }
    }

    #[test]
    fn etags_and_ranges_are_taken_apart() {
        assert_eq!(blob_name("W/\"abc-1\"").as_deref(), Some("abc-1"));
        for bad in ["", "\"\"", "\"../x\"", "\"a.b\"", "\"a/b\""] {
            assert_eq!(blob_name(bad), None, "{bad}");
        }
        assert_eq!(first_byte("bytes 5-9/10"), Some(5));
        assert_eq!(first_byte("bytes */10"), None);
    }
}
