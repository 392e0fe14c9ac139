//! The real binary: run, served, and asked.
#![allow(dead_code)] // each test file uses a part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

pub(crate) fn sedge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sedge"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for name in ["SEDGE_API_KEY", "SEDGE_SERVER", "SEDGE_LOG"] {
        command.env_remove(name);
    }
    command
}

/// Standard output of a command that succeeded.
#[track_caller]
pub(crate) fn done(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that failed with this code.
#[track_caller]
pub(crate) fn complaint(output: Output, code: i32) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(
        errors.starts_with("sedge: ") && !errors.contains("panicked"),
        "{errors}"
    );
    errors
}

pub(crate) fn run(args: &[&str]) -> Output {
    sedge(args).stderr(Stdio::piped()).output().unwrap()
}

/// Writes a random adapter of the built-in model into `folder/name`.
pub(crate) fn synth(folder: &Path, name: &str, method: &str) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    let args = [
        "synth",
        "--from",
        "seedling",
        "--adapter",
        method,
        "--alpha",
        "64",
        "--seed",
        "3",
        &path,
    ];
    done(run(&args));
    path
}

/// A server that is ended with the test.
pub(crate) struct Serving {
    child: Child,
    address: String,
    pub(crate) greeting: String,
}

impl Serving {
    pub(crate) fn start(args: &[&str]) -> Serving {
        let all: Vec<&str> = ["serve", "--port", "0"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let mut child = sedge(&all).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("\nrequest ") {
            assert!(out.read_line(&mut greeting).unwrap() > 0, "{greeting}");
        }
        let address = greeting.split("http://").nth(1).unwrap();
        let end = address.find('/').unwrap();
        Serving {
            child,
            address: address[..end].to_owned(),
            greeting,
        }
    }

    /// `sedge adapter …` against this server.
    pub(crate) fn adapter(&self, args: &[&str]) -> Output {
        let mut command = sedge(&["adapter"]);
        command
            .args(args)
            .env("SEDGE_SERVER", format!("http://{}", self.address));
        command.stderr(Stdio::piped()).output().unwrap()
    }

    /// Sends a request and leaves its answer to be read.
    pub(crate) fn send(&self, path: &str, body: &Value) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        BufReader::new(stream)
    }

    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Text and tokens' log-probabilities, to the last bit, of a greedy answer.
    pub(crate) fn answer(&self, model: &str, prompt: &str) -> (String, Vec<f64>) {
        let body = json!({
            "model": model, "messages": [{"role": "user", "content": prompt}],
            "temperature": 0, "max_tokens": 24, "logprobs": true,
        });
        let mut answer = String::new();
        let mut stream = self.send("/v1/chat/completions", &body);
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], model);
        let choice = &body["choices"][0];
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let logprobs = tokens.iter().map(|t| t["logprob"].as_f64().unwrap());
        let text = choice["message"]["content"].as_str().unwrap();
        (text.to_owned(), logprobs.collect())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const PROMPTS: [&str; 2] = ["find all files larger than 100MB", "count lines in a file"];
