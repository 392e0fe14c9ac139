//! A hub as the real one behaves: a list with hashes, redirects of large files to another host,
//! ranges and ETags; and a script that makes it misbehave.
#![allow(dead_code)] // each test uses some of it

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Whether it came to the second host, where large files are.
    pub(crate) cdn: bool,
    pub(crate) path: String,
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) if_range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// What to do with it.
#[derive(Clone)]
pub(crate) enum Action {
    /// As the real one.
    Serve,
    /// Another status, with a header.
    Status(u16, &'static str),
    /// The body breaks off after so many bytes.
    Truncate(usize),
    /// The body stops after so many bytes until the gate opens.
    Hold(usize, Arc<Gate>),
    /// The whole file, as a server without ranges gives it.
    Whole,
    /// Another content, with another ETag.
    Other(Vec<u8>),
    /// Another content, with the right length and ETag.
    Corrupt,
}

/// Opens once; who waits at it is counted.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        while !state.0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// Returns when so many wait.
    pub(crate) fn wait_for(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        while state.1 < count {
            state = self.changed.wait(state).unwrap();
        }
    }
}

#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    large: bool,
    listed_size: u64,
    listed_hash: String,
}

type Script = Box<dyn Fn(&Request) -> Action + Send + Sync>;

struct State {
    files: Mutex<BTreeMap<String, File>>,
    script: Mutex<Script>,
    log: Mutex<Vec<Request>>,
    cdn: SocketAddr,
    /// Whether the list has sizes and hashes.
    hashes: Mutex<bool>,
}

pub(crate) struct Hub {
    state: Arc<State>,
    address: SocketAddr,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn git(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Hub {
    pub(crate) fn start() -> Hub {
        let (hub, cdn) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let address = hub.local_addr().unwrap();
        let state = Arc::new(State {
            files: Mutex::default(),
            script: Mutex::new(Box::new(|_| Action::Serve)),
            log: Mutex::default(),
            cdn: cdn.local_addr().unwrap(),
            hashes: Mutex::new(true),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || {
                        // A client that goes away ends its thread alone.
                        let _ = serve(&state, connection, is_cdn);
                    });
                }
            });
        }
        Hub { state, address }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file that git holds itself.
    pub(crate) fn small(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, bytes.into(), false);
    }

    /// A file of large file storage.
    pub(crate) fn large(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, bytes.into(), true);
    }

    fn put(&self, path: &str, bytes: Vec<u8>, large: bool) {
        let file = File {
            large,
            listed_size: bytes.len() as u64,
            listed_hash: if large { sha256(&bytes) } else { git(&bytes) },
            bytes: bytes.into(),
        };
        self.state.files.lock().unwrap().insert(path.into(), file);
    }

    /// Lists a file with another size or hash than it has.
    pub(crate) fn lie(&self, path: &str, size: Option<u64>, hash: Option<&str>) {
        let mut files = self.state.files.lock().unwrap();
        let file = files.get_mut(path).unwrap();
        file.listed_size = size.unwrap_or(file.listed_size);
        if let Some(hash) = hash {
            file.listed_hash = hash.into();
        }
    }

    /// Lists names alone.
    pub(crate) fn without_hashes(&self) {
        *self.state.hashes.lock().unwrap() = false;
    }

    /// Decides on every request from now on.
    pub(crate) fn script(&self, script: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    /// The requests since the last call.
    pub(crate) fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }
}

fn serve(state: &State, mut connection: TcpStream, cdn: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut request = Request {
            cdn,
            path,
            range: None,
            if_range: None,
            authorization: None,
        };
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else {
                break;
            };
            let value = value.to_owned();
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let (start, end) = value
                        .strip_prefix("bytes=")
                        .unwrap()
                        .split_once('-')
                        .unwrap();
                    request.range = Some((start.parse().unwrap(), end.parse().unwrap()));
                }
                "if-range" => request.if_range = Some(value),
                "authorization" => request.authorization = Some(value),
                _ => {}
            }
        }
        state.log.lock().unwrap().push(request.clone());
        let action = (state.script.lock().unwrap())(&request);
        if !answer(state, &mut connection, &request, action)? {
            return Ok(());
        }
    }
}

/// Answers, and says whether the connection goes on.
fn answer(
    state: &State,
    to: &mut TcpStream,
    request: &Request,
    action: Action,
) -> std::io::Result<bool> {
    let plain = |to: &mut TcpStream, status: u16, headers: &str, body: &[u8]| {
        write!(
            to,
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )?;
        to.write_all(body)?;
        Ok(true)
    };
    if let Action::Status(status, header) = action {
        let header = match header {
            "" => String::new(),
            header => format!("{header}\r\n"),
        };
        return plain(to, status, &header, b"no");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let files = state.files.lock().unwrap().clone();
    if path.starts_with("/api/models/") {
        if let Action::Hold(_, gate) = &action {
            gate.pass();
        }
        let hashes = *state.hashes.lock().unwrap();
        let siblings: Vec<String> = files
            .iter()
            .map(|(path, file)| {
                let path = path.replace('\\', "\\\\");
                match (hashes, file.large) {
                    (false, _) => format!(r#"{{"rfilename":"{path}"}}"#),
                    (true, true) => format!(
                        r#"{{"rfilename":"{path}","size":{0},"blobId":"{2}","lfs":{{"sha256":"{1}","size":{0},"pointerSize":135}}}}"#,
                        file.listed_size, file.listed_hash, git(b"pointer")
                    ),
                    (true, false) => format!(
                        r#"{{"rfilename":"{path}","size":{},"blobId":"{}"}}"#,
                        file.listed_size, file.listed_hash
                    ),
                }
            })
            .collect();
        let body = format!(
            r#"{{"id":"x","sha":"{COMMIT}","siblings":[{}]}}"#,
            siblings.join(",")
        );
        return plain(
            to,
            200,
            "content-type: application/json\r\n",
            body.as_bytes(),
        );
    }
    let name = match request.cdn {
        true => path.strip_prefix("/cdn/"),
        false => path
            .split_once(&format!("/resolve/{COMMIT}/"))
            .map(|(_, name)| name),
    };
    let Some(file) = name.and_then(|name| files.get(name)) else {
        return plain(to, 404, "", b"not found");
    };
    if file.large && !request.cdn {
        let headers = format!(
            "location: http://{}/cdn/{}?signature=secret\r\nx-linked-etag: \"{}\"\r\nx-linked-size: {}\r\nx-repo-commit: {COMMIT}\r\n",
            state.cdn,
            name.unwrap_or_default(),
            file.listed_hash,
            file.listed_size
        );
        return plain(to, 302, &headers, b"");
    }
    let (bytes, etag) = match &action {
        Action::Other(bytes) => (Arc::new(bytes.clone()), "\"other\"".to_owned()),
        Action::Corrupt => {
            let mut bytes = file.bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            (Arc::new(bytes), format!("\"{}\"", git(&file.bytes)))
        }
        _ => (file.bytes.clone(), format!("\"{}\"", git(&file.bytes))),
    };
    let size = bytes.len() as u64;
    let range = request
        .range
        .filter(|_| request.if_range.as_ref().is_none_or(|known| *known == etag))
        .filter(|_| !matches!(action, Action::Whole));
    let body = match range {
        Some((start, _)) if start >= size => return plain(to, 416, "", b""),
        Some((start, end)) => {
            let end = end.min(size - 1);
            write!(
                to,
                "HTTP/1.1 206 x\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{end}/{size}\r\netag: {etag}\r\n\r\n",
                end + 1 - start
            )?;
            &bytes[start as usize..=end as usize]
        }
        None => {
            write!(
                to,
                "HTTP/1.1 200 x\r\ncontent-length: {size}\r\netag: {etag}\r\n\r\n"
            )?;
            &bytes[..]
        }
    };
    match action {
        Action::Truncate(at) if at < body.len() => {
            to.write_all(&body[..at])?;
            to.shutdown(std::net::Shutdown::Both)?;
            Ok(false)
        }
        Action::Hold(at, gate) if at < body.len() => {
            to.write_all(&body[..at])?;
            to.flush()?;
            gate.pass();
            to.write_all(&body[at..])?;
            Ok(true)
        }
        _ => {
            to.write_all(body)?;
            Ok(true)
        }
    }
}

/// A safetensors file: tensors of f32 by name, all of one length, filled from a seed.
pub(crate) fn safetensors(tensors: &[(&str, u64)], values: usize) -> Vec<u8> {
    let len = values * 4;
    let entries: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(i, (name, _))| {
            format!(
                r#""{name}":{{"dtype":"F32","shape":[{values}],"data_offsets":[{},{}]}}"#,
                i * len,
                (i + 1) * len
            )
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    for (_, seed) in tensors {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..len / 4 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            bytes.extend(((x >> 40) as f32 / (1 << 24) as f32).to_le_bytes());
        }
    }
    bytes
}
