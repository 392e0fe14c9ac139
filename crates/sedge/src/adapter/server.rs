//! The adapters of a running server, over its HTTP API.

use sedge_bench::load::{ClientError, Target};
use serde_json::{Value, json};

use crate::adapters::AdapterArg;
use crate::failure::Failure;
use crate::output;
use crate::size::Bytes;
use crate::table::table;

/// Which server is asked, and how its answer is printed.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the running server
    #[arg(
        long,
        value_name = "URL",
        env = "SEDGE_SERVER",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,

    /// Key to send as a bearer token
    #[arg(
        long,
        value_name = "KEY",
        env = "SEDGE_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,

    /// Print the server's answer, a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Add {
    /// Name and folder; the first model's if none is named, and named after the folder without a
    /// name
    #[arg(value_name = "[MODEL:]NAME=FOLDER")]
    adapter: AdapterArg,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(clap::Args)]
pub(crate) struct Named {
    /// Adapter, as `sedge adapter list` prints it
    #[arg(value_name = "MODEL:NAME")]
    name: String,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn add(args: &Add) -> Result<(), Failure> {
    let AdapterArg {
        model,
        name,
        folder,
    } = &args.adapter;
    // The server has another current folder, and may be another machine.
    let path = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let Some(path) = path.to_str() else {
        let what = format_args!("{}: the path is not UTF-8", path.display()).to_string();
        return Err(Failure::new(what));
    };
    let body = json!({"model": model, "name": name, "path": path});
    let card = args.server.ask("POST", "/v1/adapters", Some(body))?;
    args.server.print(&card, |card| {
        format!(
            "{}: {}, {}, {}\n",
            text(card, "id"),
            text(card, "method"),
            bytes(&card["bytes"]),
            state(card)
        )
    })
}

pub(crate) fn list(args: &List) -> Result<(), Failure> {
    let list = args.server.ask("GET", "/v1/adapters", None)?;
    args.server.print(&list, |list| {
        let all = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        if all.is_empty() {
            return "no adapters\n".to_owned();
        }
        let head = ["adapter", "method", "size", "weights", "requests", "loads"];
        let row = |card: &Value| {
            let number = |field: &str| card[field].to_string();
            vec![
                text(card, "id"),
                text(card, "method"),
                bytes(&card["bytes"]),
                state(card),
                number("requests"),
                number("loads"),
            ]
        };
        let head = head.map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(all.iter().map(row)).collect();
        table(&rows)
    })
}

pub(crate) fn remove(args: &Named) -> Result<(), Failure> {
    let gone = args.server.ask("DELETE", &path(&args.name, ""), None)?;
    args.server
        .print(&gone, |_| format!("{} is removed\n", args.name))
}

pub(crate) fn merge(server: &ServerArgs, name: &str) -> Result<(), Failure> {
    let card = server.ask("POST", &path(name, "/merge"), None)?;
    server.print(&card, |card| format!("{name} is {}\n", state(card)))
}

pub(crate) fn unmerge(args: &Named) -> Result<(), Failure> {
    let card = args
        .server
        .ask("POST", &path(&args.name, "/unmerge"), None)?;
    let name = &args.name;
    args.server
        .print(&card, |_| format!("{name} is beside the weights again\n"))
}

impl ServerArgs {
    /// What the server answers, if it does what was asked.
    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let key = self.api_key.clone().filter(|key| !key.is_empty());
        let target = Target::at(&self.server, key);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::new)?;
        let asked = runtime.block_on(target.request(method, path, body));
        let (status, answer) = asked.map_err(|e| match e {
            ClientError::Connect { .. } => {
                Failure::new(e).hint("sedge serve, or --server with the address of one that runs")
            }
            ClientError::Address { .. } => Failure::new(e).hint("an address over plain HTTP"),
            e => Failure::new(e),
        })?;
        let answer = serde_json::from_str::<Value>(&answer).ok();
        match answer {
            Some(answer) if (200..300).contains(&status) => Ok(answer),
            answer => Err(refusal(&self.server, status, answer.as_ref())),
        }
    }

    fn print(&self, answer: &Value, text: impl Fn(&Value) -> String) -> Result<(), Failure> {
        let text = match self.json {
            true => format!("{answer:#}\n"),
            false => text(answer),
        };
        Ok(output::print(&text)?)
    }
}

/// Why the server did not do it, in its words.
fn refusal(server: &str, status: u16, answer: Option<&Value>) -> Failure {
    let error = answer.map(|answer| &answer["error"]);
    let Some(message) = error.and_then(|e| e["message"].as_str()) else {
        return Failure::new(format_args!(
            "{server} answers {status} and no JSON that says why"
        ))
        .hint("--server with the address of a Sedge server, without a path");
    };
    let failure = Failure::new(message);
    match error.and_then(|e| e["code"].as_str()) {
        Some("invalid_api_key") => failure.hint("--api-key KEY"),
        Some("adapter_not_found" | "model_not_found") => failure.hint("sedge adapter list"),
        _ => failure,
    }
}

/// The address of an adapter, and what to do with it.
fn path(name: &str, action: &str) -> String {
    let mut path = "/v1/adapters/".to_owned();
    for byte in name.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~:/".contains(&b) => path.push(char::from(b)),
            b => path.push_str(&format!("%{b:02X}")),
        }
    }
    path + action
}

fn text(card: &Value, field: &str) -> String {
    card[field].as_str().unwrap_or("?").to_owned()
}

fn bytes(value: &Value) -> String {
    value
        .as_u64()
        .map_or("?".to_owned(), |n| Bytes(n).to_string())
}

/// Where an adapter is.
fn state(card: &Value) -> String {
    match (&card["merged"], card["resident"] == true) {
        (Value::Number(_), _) => format!("merged, {}", bytes(&card["merged"])),
        (_, true) => "in memory".to_owned(),
        (_, false) => "on disk".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_makes_a_path() {
        assert_eq!(path("org/a:sql", "/merge"), "/v1/adapters/org/a:sql/merge");
        assert_eq!(path("a b?#é%", ""), "/v1/adapters/a%20b%3F%23%C3%A9%25");
    }
}
