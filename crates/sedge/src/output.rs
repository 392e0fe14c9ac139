//! Standard output and the progress line.
//! A reader that goes away ends the command quietly; a terminal sees progress, a file does not.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes a whole text to standard output and flushes it.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error; that nobody reads it is no reason to stop.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// One line on standard error that is written over as work goes on.
#[derive(Debug)]
pub(crate) struct ProgressLine {
    visible: bool,
    width: usize,
    next: Instant,
}

impl ProgressLine {
    /// Visible on a terminal only.
    pub(crate) fn new() -> ProgressLine {
        ProgressLine {
            visible: io::stderr().is_terminal(),
            width: 0,
            next: Instant::now(),
        }
    }

    /// Shows `done` of `total` and a note, at most ten times a second.
    pub(crate) fn show(&mut self, done: u64, total: u64, note: &str) {
        let now = Instant::now();
        if !self.visible || now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(100);
        let line = bar(done, total, note);
        let width = line.chars().count();
        let blank = self.width.saturating_sub(width);
        let _ = write!(io::stderr(), "\r{line}{:blank$}", "");
        self.width = width;
    }

    /// Wipes the line.
    pub(crate) fn clear(&mut self) {
        if self.width > 0 {
            let _ = write!(io::stderr(), "\r{:1$}\r", "", self.width);
            self.width = 0;
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `[########--------]  50 %  note`, within 80 columns.
fn bar(done: u64, total: u64, note: &str) -> String {
    const WIDTH: usize = 24;
    let share = (done as f64 / total.max(1) as f64).min(1.0);
    let full = (share * WIDTH as f64) as usize;
    let note: String = note.chars().take(44).collect();
    format!(
        "[{}{}] {:3.0} %  {note}",
        "#".repeat(full),
        "-".repeat(WIDTH - full),
        share * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_bar_fills_and_never_overflows() {
        assert_eq!(bar(0, 0, ""), "[------------------------]   0 %  ");
        assert_eq!(bar(1, 2, "x"), "[############------------]  50 %  x");
        assert_eq!(bar(9, 2, ""), "[########################] 100 %  ");
        assert!(bar(1, 2, &"é".repeat(400)).chars().count() <= 80);
    }
}
