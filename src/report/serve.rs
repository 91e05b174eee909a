//! The page over HTTP while a run goes on: two addresses, `/` and `/data.json`, for a browser on the same machine.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Given, Page, ReportError, Run};

/// Browsers at a time; others are turned away.
const CONNECTIONS: usize = 32;
/// More than the head of any request of a browser.
const REQUEST: usize = 16 << 10;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its answer may take to go: a page of some mebibytes, through a tunnel perhaps.
const PATIENCE_ANSWER: Duration = Duration::from_secs(30);
/// Bytes behind the head of a request that are read and thrown away.
const DRAINED: usize = 256 << 10;

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
    hosts: Hosts,
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
        let bound = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address: bound, hosts: Hosts::new(bound, address) })
    }

    /// Where browsers find it.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Answers in threads of its own until the process ends.
    pub fn start(self, live: Arc<Live>) {
        let open = Arc::new(AtomicUsize::new(0));
        let hosts = Arc::new(self.hosts);
        thread::spawn(move || {
            for stream in self.listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of files, perhaps; not a reason to keep a core busy.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::SeqCst);
                    turn_away(stream);
                    continue;
                }
                let (live, open, hosts) = (live.clone(), open.clone(), hosts.clone());
                thread::spawn(move || {
                    // A browser that went away is no news.
                    let _ = answer(Client::new(stream), &live, &hosts);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }
}

/// One browser too many: told so as far as that takes no time.
fn turn_away(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(true);
    let _ = stream.write(
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
}

/// A connection, which takes [`PATIENCE`] and then [`PATIENCE_ANSWER`] at most.
struct Client {
    stream: TcpStream,
    until: Instant,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        Self { stream, until: Instant::now() + PATIENCE }
    }

    /// What is left of the time.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(self.left()?)?;
            match self.stream.write(bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => bytes = bytes.get(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Ends the connection so that the answer arrives: bytes that nobody read would have it reset.
    fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.until = Instant::now() + PATIENCE;
        let (mut piece, mut all) = ([0; 2048], 0);
        while all < DRAINED {
            match self.read(&mut piece)? {
                0 => break,
                n => all += n,
            }
        }
        Ok(())
    }
}

/// The hosts under whose names it is served. A name of a foreign site may be made to lead to this machine, and its pages would then read
/// the report: so the name must be one of these.
struct Hosts {
    bound: SocketAddr,
    /// As the address of `--serve` has it.
    given: String,
}

impl Hosts {
    fn new(bound: SocketAddr, address: &str) -> Self {
        let given = address.rsplit_once(':').map_or("", |(host, _)| host);
        Self { bound, given: given.to_ascii_lowercase() }
    }

    /// Whether a `Host` header names this server: the address it is bound to, the name that it was bound by, or for this machine alone
    /// `localhost`; bound to all addresses, any address, but no foreign name. The port is another one behind a tunnel.
    fn allow(&self, header: &str) -> bool {
        let Some(host) = host_of(header) else { return false };
        let own = self.bound.ip();
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let address: Option<IpAddr> = match literal {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        match address {
            Some(address) => own.is_unspecified() || address == own,
            None if literal.is_some() => false,
            None => {
                let here = own.is_loopback() || own.is_unspecified();
                (here && host == "localhost") || (!self.given.is_empty() && host == self.given)
            }
        }
    }
}

/// The host of a `Host` header, without its port; nothing for what is no such thing.
fn host_of(header: &str) -> Option<String> {
    let (host, port) = match header.rfind(']') {
        Some(end) => header.split_at_checked(end + 1)?,
        None => header.find(':').map_or((header, ""), |colon| header.split_at(colon)),
    };
    let is_port = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok();
    if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
        return None;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    (!host.is_empty() && host.bytes().all(plain)).then(|| host.to_ascii_lowercase())
}

/// What is answered: status, further headers, type, body.
struct Answer {
    status: &'static str,
    more: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: &str) -> Self {
        Self { status, more: "", kind: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// The first line and the hosts of a request.
struct Request {
    method: String,
    target: String,
    hosts: Vec<String>,
}

impl Request {
    /// Reads the head of a request; what is to be answered where it is none.
    fn read(client: &mut Client) -> io::Result<Result<Self, Answer>> {
        let (mut head, mut piece) = (Vec::new(), [0; 2048]);
        let end = loop {
            if let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") {
                break end;
            }
            if head.len() > REQUEST {
                return Ok(Err(Answer::text("431 Request Header Fields Too Large", "too long a request\n")));
            }
            match client.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => head.extend_from_slice(piece.get(..n).unwrap_or_default()),
            }
        };
        let head = String::from_utf8_lossy(head.get(..end).unwrap_or_default());
        let mut lines = head.split("\r\n");
        let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, target, version] = *words.as_slice() else {
            return Ok(Err(Answer::text("400 Bad Request", "no request of HTTP/1.1\n")));
        };
        if !version.starts_with("HTTP/1.") {
            return Ok(Err(Answer::text("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here\n")));
        }
        let fields = lines.filter_map(|line| line.split_once(':'));
        let hosts = fields.filter(|(name, _)| name.eq_ignore_ascii_case("host"));
        let hosts = hosts.map(|(_, host)| host.trim().to_string()).collect();
        Ok(Ok(Self { method: method.into(), target: target.into(), hosts }))
    }

    fn answer(&self, live: &Live, hosts: &Hosts) -> Answer {
        let [host] = self.hosts.as_slice() else {
            return Answer::text("400 Bad Request", "a request names one host\n");
        };
        if !hosts.allow(host) {
            return Answer::text(
                "403 Forbidden",
                "this is not served under that name; use the address that was printed\n",
            );
        }
        if !matches!(self.method.as_str(), "GET" | "HEAD") {
            let only = Answer::text("405 Method Not Allowed", "only GET and HEAD\n");
            return Answer { more: "Allow: GET, HEAD\r\n", ..only };
        }
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        match path {
            "/" => Answer { kind: "text/html; charset=utf-8", ..Answer::text("200 OK", &live.page().html()) },
            "/data.json" => {
                let page = live.page();
                match (query.strip_prefix("seen="), &page.live) {
                    (Some(seen), Some(state)) if seen == state => Answer::text("204 No Content", ""),
                    _ => Answer { kind: "application/json", ..Answer::text("200 OK", &page.json()) },
                }
            }
            _ => Answer::text("404 Not Found", "there is / and /data.json\n"),
        }
    }
}

fn answer(mut client: Client, live: &Live, hosts: &Hosts) -> io::Result<()> {
    let request = Request::read(&mut client)?;
    let bare = request.as_ref().is_ok_and(|request| request.method == "HEAD");
    let Answer { status, more, kind, body } =
        request.map_or_else(|refused| refused, |r| r.answer(live, hosts));
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}Cache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    );
    client.until = Instant::now() + PATIENCE_ANSWER;
    client.write_all(head.as_bytes())?;
    if !bare {
        client.write_all(body.as_bytes())?;
    }
    client.end()
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

    /// What a server answers to these bytes.
    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    fn serve() -> SocketAddr {
        let server = Server::bind("127.0.0.1:0").unwrap();
        let address = server.address;
        server.start(Arc::new(Live::new(Path::new("no such run"), "")));
        address
    }

    /// 10 000 headers made of good ones by cutting, joining and changing bytes: those that are let in are one of a list, but for the port.
    #[test]
    fn mutated_hosts_are_let_in_only_as_they_should_be() {
        let seeds = [
            "127.0.0.1:8350",
            "localhost",
            "[::1]:8350",
            "mill.example:80",
            "127.evil.example",
            "localhost.evil:1",
        ];
        let pool = b".:[]@%/\\ \0-_0179aeEilmx\x7f\xc3";
        let local = Hosts::new("127.0.0.1:8350".parse().unwrap(), "mill.example:8350");
        let all = Hosts::new("[::]:8350".parse().unwrap(), "[::]:8350");
        let mut state = 1u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut let_in, mut to_all) = (0, 0);
        for _ in 0..10_000 {
            let mut header = seeds[draw(seeds.len())].as_bytes().to_vec();
            for _ in 0..draw(4) {
                let at = draw(header.len() + 1);
                match draw(4) {
                    0 => header.insert(at, pool[draw(pool.len())]),
                    1 if at < header.len() => header[at] = pool[draw(pool.len())],
                    2 if at < header.len() => drop(header.remove(at)),
                    _ => header.extend_from_slice(&seeds[draw(seeds.len())].as_bytes()[..draw(10)]),
                }
            }
            let header = String::from_utf8_lossy(&header).into_owned();
            let small = header.to_ascii_lowercase();
            let port = |rest: &str| {
                rest.is_empty()
                    || rest.strip_prefix(':').is_some_and(|p| !p.starts_with('+') && p.parse::<u16>().is_ok())
            };
            let named = |name: &&str| small.strip_prefix(*name).is_some_and(port);
            let expected = ["127.0.0.1", "localhost", "mill.example"].iter().any(&named);
            assert_eq!(local.allow(&header), expected, "{header:?}");
            let_in += usize::from(expected);
            if all.allow(&header) {
                to_all += 1;
                let address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
                let host = small.rsplit_once(':').map_or(&small[..], |(host, _)| host);
                assert!(named(&"localhost") || address(&small) || address(host), "{header:?}");
            }
        }
        assert!(let_in > 1000 && to_all > 1000, "{let_in}, {to_all}");
    }

    #[test]
    fn only_its_own_names_are_hosts() {
        let hosts = |bound: &str, given: &str| Hosts::new(bound.parse().unwrap(), given);
        let local = hosts("127.0.0.1:8350", "127.0.0.1:8350");
        for host in ["127.0.0.1:8350", "localhost:8350", "LocalHost:9000", "localhost"] {
            assert!(local.allow(host), "{host}");
        }
        for host in [
            "127.evil.example",
            "127.evil.example:8350",
            "127.0.0.1.evil.example:8350",
            "127.0.0.2:8350",
            "127.1:8350",
            "localhost.evil.example:8350",
            "localhost:",
            "localhost:+8350",
            "localhost:98350",
            "[::1]:8350",
            "[127.0.0.1]:8350",
            "evil.example:8350@localhost:8350",
            "evil@127.0.0.1:8350",
            "127.0.0.1:8350/",
            "127.0.0.1:8350 evil.example",
            "",
            ":8350",
            "[::1",
        ] {
            assert!(!local.allow(host), "{host}");
        }
        let six = hosts("[::1]:80", "[::1]:80");
        assert!(six.allow("[::1]") && six.allow("[0:0::1]:80") && six.allow("localhost"));
        assert!(!six.allow("::1") && !six.allow("[::2]") && !six.allow("127.0.0.1"));
        let named = hosts("192.168.1.5:8350", "Gpu-Box.lan:8350");
        assert!(named.allow("gpu-box.lan:8350") && named.allow("192.168.1.5:8350"));
        assert!(
            !named.allow("localhost:8350") && !named.allow("192.168.1.6:8350") && !named.allow("lan:8350")
        );
        let all = hosts("0.0.0.0:8350", "0.0.0.0:8350");
        assert!(all.allow("10.1.2.3:8350") && all.allow("localhost:8350") && !all.allow("evil.example:8350"));
    }

    #[test]
    fn requests_are_get_and_head_and_short() {
        let address = serve();
        let begins = |request: &str, status: &str| {
            let told = ask(address, request.replace("HOST", &address.to_string()).as_bytes());
            assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {told}");
            told
        };
        let whole = begins("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", "200 OK");
        let bare = begins("HEAD / HTTP/1.1\r\nHost: HOST\r\n\r\n", "200 OK");
        assert_eq!(whole.split("\r\n\r\n").next(), bare.split("\r\n\r\n").next());
        assert!(bare.ends_with("\r\n\r\n"), "{bare}");
        let body = "x".repeat(100_000);
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get", "TRACE"] {
            let told = begins(&format!("{method} / HTTP/1.1\r\nHost: HOST\r\n\r\n{body}"), "405");
            assert!(told.contains("\r\nAllow: GET, HEAD\r\n"), "{told}");
        }
        for request in ["GET /", "nonsense", "GET  / HTTP/1.1", "GET / HTTP/1.1 more", ""] {
            begins(&format!("{request}\r\nHost: HOST\r\n\r\n"), "400");
        }
        begins("GET / HTTP/2.0\r\nHost: HOST\r\n\r\n", "505");
        begins("GET / HTTP/1.1\r\n\r\n", "400");
        begins("GET / HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n", "400");
        begins("GET http://evil.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n", "404");
        begins("GET /../../etc/passwd HTTP/1.1\r\nHost: HOST\r\n\r\n", "404");
        begins(&format!("GET / HTTP/1.1\r\nHost: HOST\r\nX: {}", "x".repeat(REQUEST)), "431");
        begins(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * REQUEST)), "431");
    }

    /// Hundreds that say nothing, or a byte now and then, hold a place for a few seconds only, and none beyond the bound.
    #[test]
    fn slow_clients_and_many_are_bounded() {
        let address = serve();
        let began = Instant::now();
        let mut silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
        // One byte at a time keeps no connection alive.
        let mut dripping = silent.swap_remove(0);
        let drip = thread::spawn(move || {
            while dripping.write_all(b"G").is_ok() && began.elapsed() < 4 * PATIENCE {
                thread::sleep(Duration::from_millis(200));
            }
            began.elapsed()
        });
        let request = format!("GET /data.json HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let turned = ask(address, request.as_bytes());
        assert!(turned.is_empty() || turned.starts_with("HTTP/1.1 503"), "{turned}");
        while !ask(address, request.as_bytes()).starts_with("HTTP/1.1 200") {
            assert!(began.elapsed() < 3 * PATIENCE, "no place came free");
            thread::sleep(Duration::from_millis(100));
        }
        assert!(drip.join().unwrap() < 3 * PATIENCE);
    }
}
