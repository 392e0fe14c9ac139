//! A hub on this machine with one model, to measure pulls from: a list, a redirect and ranges as
//! the real one has them, as fast as the machine sends or at a rate.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Bytes of each tensor of the file that is sent.
const TENSOR: u64 = 16 << 20;

/// Bytes that are sent before the rate is looked at.
const SLICE: u64 = 256 << 10;

const CONFIG: &[u8] = b"{}";

/// Serves one model until the process ends.
#[derive(Debug)]
pub struct BenchHub {
    address: SocketAddr,
}

#[derive(Debug)]
struct State {
    weights: PathBuf,
    size: u64,
    sha256: String,
    /// Bytes in a second of all connections together, and when the next may be sent.
    rate: Option<(u64, Mutex<Instant>)>,
}

/// Writes a safetensors file of about `size` bytes of noise.
///
/// # Errors
/// When it cannot be written.
pub fn write_weights(path: &Path, size: u64) -> io::Result<()> {
    let count = (size / TENSOR).max(1);
    let entries: Vec<String> = (0..count)
        .map(|i| {
            let (begin, end) = (i * TENSOR, (i + 1) * TENSOR);
            let rows = TENSOR / 2 / 1024;
            format!(
                r#""model.layers.{i}.weight":{{"dtype":"BF16","shape":[{rows},1024],"data_offsets":[{begin},{end}]}}"#
            )
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut file = File::create(path)?;
    file.write_all(&(json.len() as u64).to_le_bytes())?;
    file.write_all(json.as_bytes())?;
    // xorshift64*: noise that no disk or network can make smaller.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..count * TENSOR / block.len() as u64 {
        for word in block.as_chunks_mut::<8>().0 {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            *word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

impl BenchHub {
    /// Serves `weights` as `model.safetensors` of every repository, at most so many bytes a
    /// second.
    ///
    /// # Errors
    /// When the file cannot be read or no port is free.
    pub fn start(weights: &Path, rate: Option<u64>) -> io::Result<BenchHub> {
        let mut hash = Sha256::new();
        let mut file = File::open(weights)?;
        let size = file.metadata()?.len();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => break,
                read => hash.update(&block[..read]),
            }
        }
        let state = Arc::new(State {
            weights: weights.to_owned(),
            size,
            sha256: hash.finalize().iter().map(|b| format!("{b:02x}")).collect(),
            rate: rate.map(|rate| (rate.max(1), Mutex::new(Instant::now()))),
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = state.clone();
                // A client that goes away ends its thread alone.
                std::thread::spawn(move || drop(serve(&state, connection, address)));
            }
        });
        Ok(BenchHub { address })
    }

    /// What `HF_ENDPOINT` must be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the weights are sent from, without redirect.
    pub fn url(&self) -> String {
        format!("http://{}/cdn", self.address)
    }
}

fn serve(state: &State, mut to: TcpStream, address: SocketAddr) -> io::Result<()> {
    to.set_nodelay(true)?;
    let mut reader = BufReader::new(to.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else {
                break;
            };
            if name.eq_ignore_ascii_case("range") {
                let span = value.strip_prefix("bytes=").and_then(|v| v.split_once('-'));
                range = span.and_then(|(a, b)| Some((a.parse().ok()?, b.parse::<u64>().ok()?)));
            }
        }
        answer(state, &mut to, &path, range, address)?;
    }
}

fn answer(
    state: &State,
    to: &mut TcpStream,
    path: &str,
    range: Option<(u64, u64)>,
    address: SocketAddr,
) -> io::Result<()> {
    let (size, sha256) = (state.size, &state.sha256);
    let mut whole = |headers: &str, body: &[u8]| {
        write!(
            to,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )?;
        to.write_all(body)
    };
    if path.starts_with("/api/") {
        let list = format!(
            r#"{{"sha":"main","siblings":[{{"rfilename":"config.json","size":{}}},{{"rfilename":"model.safetensors","size":{size},"lfs":{{"sha256":"{sha256}","size":{size}}}}}]}}"#,
            CONFIG.len()
        );
        return whole("", list.as_bytes());
    }
    if path.ends_with("/config.json") {
        return whole("", CONFIG);
    }
    if path != "/cdn" {
        return write!(
            to,
            "HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: http://{address}/cdn\r\nx-linked-etag: \"{sha256}\"\r\nx-linked-size: {size}\r\n\r\n"
        );
    }
    let (start, end) = match range {
        Some((start, last)) if start < size => {
            let end = last.saturating_add(1).min(size);
            write!(
                to,
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{size}\r\netag: \"1\"\r\n\r\n",
                end - start,
                end - 1
            )?;
            (start, end)
        }
        _ => {
            write!(
                to,
                "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\netag: \"1\"\r\n\r\n"
            )?;
            (0, size)
        }
    };
    let mut file = File::open(&state.weights)?;
    file.seek(SeekFrom::Start(start))?;
    let mut left = end - start;
    while left > 0 {
        let now = match state.rate {
            None => left,
            Some(_) => left.min(SLICE),
        };
        state.wait(now);
        // From file to socket within the kernel, where it can.
        let sent = io::copy(&mut (&file).take(now), to)?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= sent;
    }
    Ok(())
}

impl State {
    /// Waits until so many bytes may be sent.
    fn wait(&self, bytes: u64) {
        let Some((rate, next)) = &self.rate else {
            return;
        };
        let due = {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            // What was not sent in time is not made up for, but for a moment.
            let earliest = Instant::now()
                .checked_sub(Duration::from_millis(50))
                .unwrap_or(*next);
            let due = (*next).max(earliest);
            *next = due + Duration::from_secs_f64(bytes as f64 / *rate as f64);
            due
        };
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        write_weights(&path, TENSOR).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let hub = BenchHub::start(&path, None).unwrap();
        let mut to = TcpStream::connect(hub.address).unwrap();
        write!(to, "GET /cdn HTTP/1.1\r\nrange: bytes=5-104\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let mut block = [0; 1024];
        while !answer.ends_with(&bytes[5..105]) {
            let read = to.read(&mut block).unwrap();
            assert!(read > 0);
            answer.extend_from_slice(&block[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 206"));
    }
}
