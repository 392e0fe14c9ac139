//! As much of an HTTP/1.1 client as the tests need, over bare sockets so that they can misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON of a good answer.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Status, `param` and `code` of an error.
    #[track_caller]
    pub(crate) fn error(&self) -> (u16, Value, Value) {
        let error = self.json()["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{}",
            self.text()
        );
        (self.status, error["param"].clone(), error["code"].clone())
    }
}

/// Sends a request and reads the response to its end.
pub(crate) fn exchange(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = send(server, method, path, headers, body);
    read(&mut stream)
}

fn send(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| *name == "Host") {
        head += &format!("Host: {server}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).unwrap();
    // The server may answer, and close, before it has read all of a body that is too large.
    let _ = stream.write_all(body);
    BufReader::new(stream)
}

fn read(stream: &mut BufReader<TcpStream>) -> Reply {
    let (status, headers) = head(stream);
    let mut reply = Reply {
        status,
        headers,
        body: Vec::new(),
    };
    if reply.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = chunk(stream) {
            reply.body.extend(chunk);
        }
    } else {
        let length = reply
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        reply.body.resize(length, 0);
        stream.read_exact(&mut reply.body).unwrap();
    }
    reply
}

fn head(stream: &mut BufReader<TcpStream>) -> (u16, Vec<(String, String)>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_string()),
        }
    }
    let status = lines
        .first()
        .expect("no response")
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
    (
        status,
        headers
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
    )
}

fn chunk(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut size = String::new();
    if stream.read_line(&mut size).ok()? == 0 {
        return None;
    }
    let size = usize::from_str_radix(size.trim(), 16).unwrap();
    let mut bytes = vec![0; size + 2];
    stream.read_exact(&mut bytes).unwrap();
    bytes.truncate(size);
    (size > 0).then_some(bytes)
}

/// A response that is read as it comes. Dropping it closes the connection.
pub(crate) struct Streamed {
    pub(crate) status: u16,
    stream: BufReader<TcpStream>,
    pending: String,
}

impl Streamed {
    pub(crate) fn open(server: SocketAddr, path: &str, body: &Value) -> Streamed {
        let headers = [("Content-Type", "application/json")];
        let mut stream = send(server, "POST", path, &headers, body.to_string().as_bytes());
        let (status, _) = head(&mut stream);
        Streamed {
            status,
            stream,
            pending: String::new(),
        }
    }

    /// The next event's data; comments are left out.
    pub(crate) fn next_text(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.find("\n\n") {
                let event: String = self.pending.drain(..end + 2).collect();
                match event.trim_end().strip_prefix("data: ") {
                    Some(data) => return Some(data.to_string()),
                    None => continue,
                }
            }
            self.pending
                .push_str(std::str::from_utf8(&chunk(&mut self.stream)?).unwrap());
        }
    }

    /// All events that are left; the last must be `[DONE]`, which is left out.
    pub(crate) fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            match self.next_text().expect("the stream broke off").as_str() {
                "[DONE]" => return events,
                data => events.push(serde_json::from_str(data).unwrap()),
            }
        }
    }
}

impl Iterator for Streamed {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let data = self.next_text()?;
        Some(serde_json::from_str(&data).unwrap_or(Value::String(data)))
    }
}
