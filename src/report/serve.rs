//! The page over HTTP while a run goes on: two addresses, `/` and `/data.json`, for a browser on the same machine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Given, Page, ReportError, Run};

/// Browsers at a time; others are turned away.
const CONNECTIONS: usize = 16;
/// More than the head of any request of a browser.
const REQUEST: usize = 16 << 10;
/// How long a browser may keep silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// A run under way.
pub struct Live {
    folder: PathBuf,
    given: Mutex<(usize, Given)>,
    /// The last answer and the state it was made of.
    made: Mutex<(String, Arc<Page>)>,
}

impl Live {
    /// The run that will write to `folder`, with its options as text.
    pub fn new(folder: &Path, config: &str) -> Self {
        let given = Given { config: config.into(), ..Given::default() };
        let page = Arc::new(Page::new(Vec::new()));
        Self { folder: folder.into(), given: Mutex::new((0, given)), made: Mutex::new((String::new(), page)) }
    }

    /// Tells what is known of the run, as `run.json` will begin.
    pub fn tell(&self, info: Value) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.0 += 1;
        given.1.info = info;
    }

    /// Changes when a file of the run or what was told of it does.
    fn state(&self) -> String {
        let length = |name: &str| std::fs::metadata(self.folder.join(name)).map_or(0, |m| m.len());
        let told = self.given.lock().unwrap_or_else(PoisonError::into_inner).0;
        format!("{told}-{}-{}-{}", length("metrics.jsonl"), length("windows.json"), length("run.json"))
    }

    /// The page as it is now; made anew only where something changed.
    fn page(&self) -> Arc<Page> {
        let state = self.state();
        // Held while the page is made: several browsers wait for one, and do not make it each.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != state {
            let given = self.given.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
            // Before the folder is there, or while files come and go, the page is empty or stays as it was.
            if let Ok(run) = Run::read(&self.folder, Some(&given)) {
                let mut page = Page::new(vec![run]);
                page.live = Some(state.clone());
                *made = (state, Arc::new(page));
            } else if made.1.live.is_none() {
                let mut page = Page::new(Vec::new());
                page.live = Some(String::new());
                made.1 = Arc::new(page);
            }
        }
        made.1.clone()
    }
}

/// A socket that waits for browsers.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes an address: "127.0.0.1:8350", "localhost:0" for any free port, or a port on this machine alone.
    ///
    /// # Errors
    /// [`ReportError::Address`] where it is none or is taken.
    pub fn bind(address: &str) -> Result<Self, ReportError> {
        let fail = |source| ReportError::Address { address: address.into(), source };
        let places: Vec<SocketAddr> = match address.parse::<u16>() {
            Ok(port) => vec![SocketAddr::from(([127, 0, 0, 1], port))],
            Err(_) => address.to_socket_addrs().map_err(fail)?.collect(),
        };
        let listener = TcpListener::bind(places.as_slice()).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }

    /// Where browsers find it.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Answers in threads of its own until the process ends.
    pub fn start(self, live: Arc<Live>) {
        let open = Arc::new(AtomicUsize::new(0));
        let local = self.address.ip().is_loopback();
        thread::spawn(move || {
            for stream in self.listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of files, perhaps; not a reason to keep a core busy.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (live, open) = (live.clone(), open.clone());
                thread::spawn(move || {
                    // A browser that went away is no news.
                    let _ = answer(stream, &live, local);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }
}

/// The first line and the host of a request.
struct Request {
    method: String,
    path: String,
    host: String,
}

impl Request {
    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let (mut head, mut piece) = (Vec::new(), [0; 2048]);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let n = stream.read(&mut piece)?;
            if n == 0 || head.len() > REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            head.extend_from_slice(piece.get(..n).unwrap_or_default());
        }
        let head = String::from_utf8_lossy(&head);
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_string);
        let host = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("host"))
            .map_or(String::new(), |(_, host)| host.trim().to_ascii_lowercase());
        Ok(Self { method: words.next().unwrap_or_default(), path: words.next().unwrap_or_default(), host })
    }

    /// Whether the browser was sent to this machine by its own name: a foreign site's name may be made to lead here, too.
    fn is_local(&self) -> bool {
        let name = match self.host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &self.host,
        };
        name == "localhost" || name == "[::1]" || name.starts_with("127.")
    }
}

fn answer(mut stream: TcpStream, live: &Live, local: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = Request::read(&mut stream)?;
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let (status, kind, body) = match (request.method.as_str(), path) {
        _ if local && !request.is_local() => {
            ("403 Forbidden", "text/plain", "this is served on this machine only\n".into())
        }
        ("GET", "/") => ("200 OK", "text/html; charset=utf-8", live.page().html()),
        ("GET", "/data.json") => {
            let page = live.page();
            match (query.strip_prefix("seen="), &page.live) {
                (Some(seen), Some(state)) if seen == state => ("204 No Content", "text/plain", String::new()),
                _ => ("200 OK", "application/json", page.json()),
            }
        }
        ("GET", _) => ("404 Not Found", "text/plain", "there is / and /data.json\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET\n".into()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_run_is_shown_while_it_grows() {
        let folder = std::env::temp_dir().join(format!("maskwright-live-{}", std::process::id()));
        let server = Server::bind("127.0.0.1:0").unwrap();
        let address = server.address;
        assert!(matches!(Server::bind(&address.to_string()), Err(ReportError::Address { .. })));
        let live = Arc::new(Live::new(&folder, "seed = 5\n"));
        server.start(live.clone());
        let host = address.to_string();
        let data = |seen: &str| get(address, &format!("/data.json{seen}"), &host);
        assert!(data("").contains("\"runs\":[]"), "there is no folder yet");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("metrics.jsonl"), "{\"step\":0,\"loss\":0.5}\n").unwrap();
        live.tell(serde_json::json!({"adapter": "none"}));
        let first = data("");
        for part in ["200 OK", "\"adapter\":\"none\"", "\"loss\":[0.5]", "seed = 5", "not finished"] {
            assert!(first.contains(part), "{part} in {first}");
        }
        let body: Value = serde_json::from_str(first.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let seen = format!("?seen={}", body["live"].as_str().unwrap());
        assert!(data(&seen).starts_with("HTTP/1.1 204"));
        std::fs::write(
            folder.join("metrics.jsonl"),
            "{\"step\":0,\"loss\":0.5}\n{\"step\":1,\"loss\":0.25}\n",
        )
        .unwrap();
        assert!(data(&seen).contains("\"loss\":[0.5,0.25]"));
        assert!(get(address, "/", "localhost").contains("<title>maskwright-live-"));
        assert!(get(address, "/", "elsewhere.example").starts_with("HTTP/1.1 403"));
        assert!(get(address, "/run.json", &host).starts_with("HTTP/1.1 404"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
