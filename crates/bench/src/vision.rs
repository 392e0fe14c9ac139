//! Networks that see, beside onnxruntime with the same file, inputs and threads, in turns.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sedge_kernels::Team;
use sedge_vision::Program;
use serde_json::{Value, json};

use crate::Spread;

/// A Python with onnxruntime, which runs what it is asked to.
pub struct OnnxRuntime {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Why onnxruntime measured nothing.
#[derive(Debug, thiserror::Error)]
pub enum OnnxRuntimeError {
    /// Python could not be started, or went away.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It ended or printed something else than an answer.
    #[error("onnxruntime gave no answer; is it installed for this Python?")]
    Answer,
    /// It says what is wrong.
    #[error("onnxruntime: {0}")]
    Said(String),
}

impl OnnxRuntime {
    /// Starts a Python.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(python: &Path) -> Result<OnnxRuntime, OnnxRuntimeError> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("onnxruntime.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(asks), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(OnnxRuntimeError::Answer);
        };
        Ok(OnnxRuntime {
            child,
            asks,
            answers: BufReader::new(answers),
        })
    }

    /// Opens a model with so many threads; onnxruntime's version.
    ///
    /// # Errors
    /// When it does not take the model.
    pub fn open(&mut self, model: &Path, threads: usize) -> Result<String, OnnxRuntimeError> {
        let answer = self.ask(&json!({ "model": model, "threads": threads }))?;
        let version = answer["version"].as_str().ok_or(OnnxRuntimeError::Answer)?;
        Ok(version.to_owned())
    }

    /// Runs it on these inputs and sizes; values of its outputs.
    ///
    /// # Errors
    /// When it cannot.
    pub fn outputs(
        &mut self,
        inputs: &[(&[f32], &[usize])],
    ) -> Result<Vec<Vec<f32>>, OnnxRuntimeError> {
        let encoded: Vec<Value> = inputs
            .iter()
            .map(|(x, shape)| {
                let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!([STANDARD.encode(bytes), shape])
            })
            .collect();
        let answer = self.ask(&json!({ "inputs": encoded }))?;
        let outputs = answer["outputs"]
            .as_array()
            .ok_or(OnnxRuntimeError::Answer)?;
        outputs
            .iter()
            .map(|output| {
                let bytes = output.as_str().and_then(|text| STANDARD.decode(text).ok());
                let bytes = bytes.ok_or(OnnxRuntimeError::Answer)?;
                let (values, _) = bytes.as_chunks::<4>();
                Ok(values.iter().map(|&x| f32::from_le_bytes(x)).collect())
            })
            .collect()
    }

    /// Runs it for at least so long; seconds of each run.
    ///
    /// # Errors
    /// When it cannot.
    pub fn times(&mut self, time: Duration) -> Result<Vec<f64>, OnnxRuntimeError> {
        let answer = self.ask(&json!({ "seconds": time.as_secs_f64() }))?;
        let times = answer["times"].as_array().ok_or(OnnxRuntimeError::Answer)?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }

    fn ask(&mut self, ask: &Value) -> Result<Value, OnnxRuntimeError> {
        // Python that could not import it has gone: that is told by the missing answer.
        let sent = writeln!(self.asks, "{ask}").and_then(|()| self.asks.flush());
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if sent.is_err() || line.is_empty() {
            return Err(OnnxRuntimeError::Answer);
        }
        let answer: Value = serde_json::from_str(&line).map_err(|_| OnnxRuntimeError::Answer)?;
        match answer["error"].as_str() {
            Some(error) => Err(OnnxRuntimeError::Said(error.to_owned())),
            None => Ok(answer),
        }
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        // It reads from a pipe that is about to close; nothing is lost by ending it at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How fast a network ran.
#[derive(Clone, Copy, Debug)]
pub struct VisionFigure {
    /// Seconds of a run, medians of turns.
    pub seconds: Spread,
    /// Seconds of onnxruntime's.
    pub peer: Option<Spread>,
    /// Theirs over ours, turn by turn: above 1 is faster than onnxruntime.
    pub ratio: Option<Spread>,
}

/// Runs a network in turns with a peer that has opened it and has its inputs.
///
/// # Errors
/// When the peer fails.
pub fn vision(
    program: &mut Program,
    inputs: &[&[f32]],
    team: &Team,
    mut peer: Option<&mut OnnxRuntime>,
    turns: usize,
    turn: Duration,
) -> Result<VisionFigure, OnnxRuntimeError> {
    // Threads of a peer look for work a while after a run; ours are not to be measured then.
    const REST: Duration = Duration::from_millis(50);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    program.run(inputs, team);
    if let Some(peer) = &mut peer {
        peer.times(Duration::ZERO)?;
    }
    for _ in 0..turns {
        std::thread::sleep(REST);
        let mut times = Vec::new();
        let end = Instant::now() + turn;
        while times.is_empty() || Instant::now() < end {
            let start = Instant::now();
            program.run(inputs, team);
            times.push(start.elapsed().as_secs_f64());
        }
        let own = Spread::of(&times).map_or(0.0, |spread| spread.median);
        ours.push(own);
        if let Some(peer) = &mut peer {
            let times = peer.times(turn)?;
            let other = Spread::of(&times).ok_or(OnnxRuntimeError::Answer)?.median;
            theirs.push(other);
            ratios.push(other / own);
        }
    }
    Ok(VisionFigure {
        seconds: Spread::of(&ours).ok_or(OnnxRuntimeError::Answer)?,
        peer: Spread::of(&theirs),
        ratio: Spread::of(&ratios),
    })
}

/// The largest difference of two outputs, over the largest value of the second.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let largest = b.iter().fold(0f64, |max, &x| max.max(f64::from(x.abs())));
    let pairs = a.iter().zip(b);
    let off = pairs.fold(0f64, |max, (&a, &b)| {
        max.max((f64::from(a) - f64::from(b)).abs())
    });
    match largest {
        0.0 => off,
        largest => off / largest,
    }
}
