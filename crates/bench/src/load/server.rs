//! Servers under measurement: one that runs already, or one that is started for each run and
//! stopped after it, so that no two compete.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Api, Target};

/// Most time that a server may take to start.
const START: Duration = Duration::from_secs(600);
/// Time that it has to end when asked to.
const END: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Lines that are kept of what a server says.
const LINES: usize = 4;

/// A server to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    /// What it is called in figures.
    pub name: String,
    /// `http://host:port`.
    pub url: String,
    /// Starts it; `None` if it runs already.
    pub command: Option<String>,
}

/// Why a server cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The text names no server.
    #[error("{text:?} is not NAME=URL, NAME=COMMAND or NAME='URL COMMAND'")]
    Text {
        /// What was given.
        text: String,
    },
    /// Somebody answers where the server is to be.
    #[error("{name} cannot start: something answers at {url} already")]
    Taken {
        /// The server.
        name: String,
        /// Its address.
        url: String,
    },
    /// There is no shell.
    #[error("{name} cannot start: {source}")]
    Start {
        /// The server.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended before it answered.
    #[error("{name} ended before it answered at {url} ({status}){said}")]
    Ended {
        /// The server.
        name: String,
        /// Its address.
        url: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to standard error, each on a line of its own.
        said: String,
    },
    /// It never answered.
    #[error("{name} does not answer at {url} after {} s", START.as_secs())]
    Silent {
        /// The server.
        name: String,
        /// Its address.
        url: String,
    },
}

impl ServerSpec {
    /// Reads `NAME=URL`, `NAME=COMMAND` (which serves at `url`), `NAME='URL COMMAND'`, or a URL
    /// alone.
    pub fn parse(text: &str, url: &str) -> Result<ServerSpec, ServerError> {
        let wrong = || ServerError::Text {
            text: text.to_owned(),
        };
        let is_url = |text: &str| text.starts_with("http://") || text.starts_with("https://");
        let (name, rest) = match text.split_once('=') {
            _ if is_url(text) => (text.split_whitespace().next().unwrap_or(text), text),
            Some((name, rest)) => (name.trim(), rest.trim()),
            None => return Err(wrong()),
        };
        if name.is_empty() || rest.is_empty() {
            return Err(wrong());
        }
        let (url, command) = match rest.split_once(char::is_whitespace) {
            Some((url, command)) if is_url(rest) => (url, Some(command)),
            _ if is_url(rest) => (rest, None),
            _ => (url, Some(rest)),
        };
        let name = name.trim_start_matches("http://").trim_end_matches('/');
        Ok(ServerSpec {
            name: name.to_owned(),
            url: url.trim_end_matches('/').to_owned(),
            command: command.map(|c| c.trim().to_owned()),
        })
    }

    /// Starts the server, if it does not run already, and waits until it answers.
    pub async fn launch(&self) -> Result<Launched, ServerError> {
        let Some(command) = &self.command else {
            return Ok(Launched { process: None });
        };
        let target = Target {
            url: self.url.clone(),
            models: Vec::new(),
            api: Api::Completions,
            key: None,
            vocab: 0,
            timeout: START,
        };
        if target.get("/health").await.is_ok() {
            return Err(ServerError::Taken {
                name: self.name.clone(),
                url: self.url.clone(),
            });
        }
        let mut process = Process::start(command).map_err(|source| ServerError::Start {
            name: self.name.clone(),
            source,
        })?;
        let start = Instant::now();
        while start.elapsed() < START {
            if let Ok(Some(status)) = process.child.try_wait() {
                // What it said last may still be on its way.
                tokio::time::sleep(PAUSE).await;
                return Err(ServerError::Ended {
                    name: self.name.clone(),
                    url: self.url.clone(),
                    status,
                    said: process.said(),
                });
            }
            if answers(&target).await {
                return Ok(Launched {
                    process: Some(process),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(ServerError::Silent {
            name: self.name.clone(),
            url: self.url.clone(),
        })
    }
}

/// Whether a server is ready: its health says so, or, where there is none, it lists its models.
async fn answers(target: &Target) -> bool {
    let status = async |path| {
        let asking = tokio::time::timeout(Duration::from_secs(5), target.get(path));
        asking.await.ok()?.ok().map(|(status, _)| status)
    };
    match status("/health").await {
        Some(200) => true,
        // With keys, a server may hide even that.
        Some(401 | 403) => true,
        Some(404 | 405) => matches!(status("/v1/models").await, Some(200 | 401 | 403)),
        _ => false,
    }
}

/// A server that answers; stopped when dropped, if it was started for this.
#[derive(Debug)]
pub struct Launched {
    process: Option<Process>,
}

impl Launched {
    /// Asks a server that was started for this to end, waits for it, and ends it by force if it
    /// takes too long.
    pub async fn stop(mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        process.ask_to_end();
        let start = Instant::now();
        while start.elapsed() < END {
            if !matches!(process.child.try_wait(), Ok(None)) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Last lines of standard error.
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    fn start(command: &str) -> std::io::Result<Process> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // Its own group: Ctrl-C reaches this program alone, and what the command starts ends
        // with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child = shell.spawn()?;
        let last = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(errors) = child.stderr.take() {
            let last = last.clone();
            // Read to its end, or a server that says much would block.
            std::thread::spawn(move || {
                let mut errors = BufReader::new(errors);
                let mut line = Vec::new();
                while matches!(errors.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                    let text = String::from_utf8_lossy(&line).trim().to_owned();
                    if !text.is_empty() {
                        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                        if last.len() == LINES {
                            last.pop_front();
                        }
                        last.push_back(text);
                    }
                    line.clear();
                }
            });
        }
        Ok(Process { child, last })
    }

    fn said(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().map(|line| format!("\n  {line}")).collect()
    }

    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).ok();
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
            // A group that is gone already needs no signal.
            let _ = rustix::process::kill_process_group(id, signal);
        }
    }

    fn ask_to_end(&mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::TERM);
        #[cfg(not(unix))]
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_run_already_or_are_started() {
        let spec = |name: &str, url: &str, command: Option<&str>| ServerSpec {
            name: name.to_owned(),
            url: url.to_owned(),
            command: command.map(str::to_owned),
        };
        let of = |text: &str| ServerSpec::parse(text, "http://d:1").unwrap();
        assert_eq!(of("a=http://h:2/"), spec("a", "http://h:2", None));
        assert_eq!(
            of("a=sedge serve --policy x=y"),
            spec("a", "http://d:1", Some("sedge serve --policy x=y"))
        );
        assert_eq!(
            of("a=http://h:2 llama-server --port 2"),
            spec("a", "http://h:2", Some("llama-server --port 2"))
        );
        assert_eq!(of("http://h:2"), spec("h:2", "http://h:2", None));
        for wrong in ["", "a", "a=", "=b"] {
            assert!(ServerSpec::parse(wrong, "http://d:1").is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_says_why() {
        // The port is taken and freed: nobody answers there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let text = "a=sh -c 'echo no such model >&2; exit 3'";
        let error = ServerSpec::parse(text, &url).unwrap().launch().await;
        let said = error.unwrap_err().to_string();
        assert!(
            said.contains("no such model") && said.contains('3'),
            "{said}"
        );
    }
}
