//! A chat in the terminal: a line editor, a conversation, and a few commands.

use std::path::{Path, PathBuf};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use sedge_engine::{Request, Sampling};
use serde_json::{Value, json};

use crate::answer;
use crate::failure::Failure;
use crate::launch::Running;
use crate::output;
use crate::sampling;

const HELP: &str = "\
/new                  forget the conversation
/system TEXT          set the system prompt (without TEXT: remove it) and start anew
/set NAME VALUE       temperature, top_p, top_k, min_p, seed or max_tokens
/save FILE            write the conversation as JSON
/help                 this list
/exit                 leave; so does Ctrl-D
Ctrl-C stops an answer. Pasted text may have many lines.
";

/// Prompt tokens stop short of the context by this much, so that an answer has room.
const ROOM_FOR_ANSWER: usize = 64;

/// Reads and answers until the user leaves.
pub(crate) fn run(
    running: &Running,
    request: Request,
    system: Option<String>,
    stats: bool,
) -> Result<(), Failure> {
    if !running.generates {
        return Err(Failure::new(format_args!(
            "{} is an encoder: it computes embeddings and cannot chat",
            running.name
        ))
        .hint("sedge serve and POST /v1/embeddings"));
    }
    let mut editor = DefaultEditor::new().map_err(Failure::new)?;
    let history = history_file();
    if let Some(file) = &history {
        // The first chat has no history yet.
        let _ = editor.load_history(file);
    }
    output::print(&format!(
        "{}: {}. /help lists commands, Ctrl-D leaves.\n",
        running.name,
        if running.template.is_some() {
            "a chat"
        } else {
            "the model has no chat template, so it continues each text"
        }
    ))?;

    let mut session = Session::new(request, system);
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(Failure::new(error)),
        };
        if line.trim().is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(&line);
        match session.line(&line) {
            Ok(Todo::Say(text)) => output::print(&text)?,
            Ok(Todo::Leave) => break,
            Ok(Todo::Answer) => match reply(running, &mut session, stats) {
                Err(Failure::PipeClosed) => return Err(Failure::PipeClosed),
                // The conversation goes on after a failed answer.
                Err(failure) => {
                    session.messages.pop();
                    complain(&failure);
                }
                Ok(()) => {}
            },
            Err(failure) => complain(&failure),
        }
    }
    if let Some(file) = &history {
        save_history(&mut editor, file);
    }
    Ok(())
}

fn complain(failure: &Failure) {
    if let Failure::Failed { what, hint } = failure {
        output::note(what);
        if let Some(hint) = hint {
            output::note(format_args!("  try: {hint}"));
        }
    }
}

/// Streams the answer to the conversation so far and adds it.
fn reply(running: &Running, session: &mut Session, stats: bool) -> Result<(), Failure> {
    let prompt = loop {
        let ids = answer::conversation(running, &session.all())?;
        if ids.len() + ROOM_FOR_ANSWER <= running.context || !session.forget_oldest() {
            break ids;
        }
        output::note(
            "(the context is full: the oldest question and answer are left out from here on)",
        );
    };
    let request = Request {
        prompt,
        ..session.request.clone()
    };
    let answer = answer::stream(running, request, answer::to_stdout)?;
    let end = match (&answer.finish, answer.text.ends_with('\n')) {
        (None, _) => " …\n",
        (Some(_), true) => "",
        (Some(_), false) => "\n",
    };
    answer::to_stdout(end)?;
    if let (Some(finish), true) = (&answer.finish, stats) {
        output::note(answer::statistics(finish));
    }
    session
        .messages
        .push(json!({"role": "assistant", "content": answer.text}));
    Ok(())
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Todo {
    Answer,
    Say(String),
    Leave,
}

/// A conversation and its settings.
struct Session {
    system: Option<String>,
    messages: Vec<Value>,
    request: Request,
}

impl Session {
    fn new(request: Request, system: Option<String>) -> Session {
        Session {
            system,
            messages: Vec::new(),
            request,
        }
    }

    /// The system prompt and the messages.
    fn all(&self) -> Vec<Value> {
        let system = self.system.iter();
        system
            .map(|text| json!({"role": "system", "content": text}))
            .chain(self.messages.iter().cloned())
            .collect()
    }

    /// Drops the first question and its answer; false when only the newest question is left.
    fn forget_oldest(&mut self) -> bool {
        if self.messages.len() < 3 {
            return false;
        }
        self.messages.drain(..2);
        true
    }

    /// Takes one line: a question, or a command that starts with `/`.
    fn line(&mut self, line: &str) -> Result<Todo, Failure> {
        let Some(command) = line.strip_prefix('/') else {
            self.messages.push(json!({"role": "user", "content": line}));
            return Ok(Todo::Answer);
        };
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "new" => self.messages.clear(),
            "system" => {
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                self.messages.clear();
            }
            "set" => return self.set(rest),
            "save" => return self.save(Path::new(rest)),
            "help" => return Ok(Todo::Say(HELP.to_owned())),
            "exit" | "quit" => return Ok(Todo::Leave),
            _ => {
                return Err(Failure::new(format_args!("/{name} is no command")).hint("/help"));
            }
        }
        Ok(Todo::Say("A new conversation.\n".to_owned()))
    }

    fn set(&mut self, rest: &str) -> Result<Todo, Failure> {
        let sampling = &mut self.request.sampling;
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            return Ok(Todo::Say(settings(sampling, self.request.max_tokens)));
        };
        match name {
            "max_tokens" | "max-tokens" => {
                let limit = value.trim().parse().map_err(|_| {
                    Failure::new(format_args!("{value:?} is not a number of tokens"))
                })?;
                self.request.max_tokens = Some(limit);
            }
            _ => sampling::set(sampling, name, value.trim())?,
        }
        Ok(Todo::Say(String::new()))
    }

    fn save(&self, path: &Path) -> Result<Todo, Failure> {
        if path.as_os_str().is_empty() {
            return Err(Failure::new("/save needs a file's name").hint("/save chat.json"));
        }
        let text = format!("{:#}\n", json!({"messages": self.all()}));
        std::fs::write(path, text).map_err(|e| Failure::file(path, &e))?;
        Ok(Todo::Say(format!("Saved {}.\n", path.display())))
    }
}

fn settings(s: &Sampling, max_tokens: Option<usize>) -> String {
    let or_none = |n: Option<String>| n.unwrap_or_else(|| "not set".to_owned());
    format!(
        "temperature {}\ntop_p {}\ntop_k {}\nmin_p {}\nseed {}\nmax_tokens {}\n",
        s.temperature,
        s.top_p,
        s.top_k,
        s.min_p,
        or_none(s.seed.map(|n| n.to_string())),
        or_none(max_tokens.map(|n| n.to_string())),
    )
}

/// `$XDG_STATE_HOME/sedge/history`, else under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("sedge/history"))
}

/// A history that cannot be kept is not worth an error.
fn save_history(editor: &mut DefaultEditor, file: &Path) {
    if let Some(folder) = file.parent()
        && std::fs::create_dir_all(folder).is_ok()
    {
        let _ = editor.save_history(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(Request::default(), None)
    }

    fn say(session: &mut Session, line: &str) -> Todo {
        session.line(line).unwrap()
    }

    #[test]
    fn lines_are_questions_and_slashes_are_commands() {
        let mut s = session();
        assert_eq!(say(&mut s, "hello\nworld"), Todo::Answer);
        assert_eq!(s.messages[0]["content"], "hello\nworld");
        assert_eq!(say(&mut s, "/exit"), Todo::Leave);
        assert!(matches!(say(&mut s, "/help"), Todo::Say(text) if text.contains("/save")));
        assert!(s.line("/dance").is_err());
    }

    #[test]
    fn new_and_system_start_a_conversation() {
        let mut s = session();
        say(&mut s, "hello");
        say(&mut s, "/system Answer in French.");
        assert_eq!(
            s.all(),
            [json!({"role": "system", "content": "Answer in French."})]
        );
        say(&mut s, "hello");
        say(&mut s, "/new");
        assert_eq!(s.all().len(), 1);
        say(&mut s, "/system");
        assert!(s.all().is_empty());
    }

    #[test]
    fn set_changes_what_the_next_request_asks() {
        let mut s = session();
        say(&mut s, "/set temperature 0.7");
        say(&mut s, "/set max_tokens 12");
        assert_eq!(
            (s.request.sampling.temperature, s.request.max_tokens),
            (0.7, Some(12))
        );
        assert!(s.line("/set max_tokens many").is_err());
        assert!(matches!(say(&mut s, "/set"), Todo::Say(text) if text.contains("temperature 0.7")));
    }

    #[test]
    fn a_saved_conversation_is_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chat.json");
        let mut s = session();
        say(&mut s, "hello");
        say(&mut s, &format!("/save {}", file.display()));
        let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(saved["messages"][0]["content"], "hello");
        assert!(s.line("/save").is_err());
    }

    #[test]
    fn the_newest_question_is_never_forgotten() {
        let mut s = session();
        for text in ["one", "two"] {
            say(&mut s, text);
            s.messages
                .push(json!({"role": "assistant", "content": "yes"}));
        }
        say(&mut s, "three");
        assert!(s.forget_oldest());
        assert_eq!(s.messages[0]["content"], "two");
        assert!(s.forget_oldest());
        assert!(!s.forget_oldest());
        assert_eq!(s.messages[0]["content"], "three");
    }
}
