//! Every template renders what Python's jinja2 renders, byte for byte
//! (`templates-golden/make.py` made the texts), and docs/chat-templates.md says which.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use sedge_formats::template::{ChatInput, ChatTemplate, TemplateError};
use serde_json::{Map, Value};

/// The time in the golden texts: 5 July 2026, 09:08:07.
const NOW: Duration = Duration::from_secs(1_783_242_487);

/// Cases in which we render and Python does not, with Python's reason.
const BETTER: &[(&str, &[&str], &str)] = &[(
    "Kimi-K2-Thinking",
    &["tools", "tool_turn"],
    "calls list.append, which transformers' sandbox forbids",
)];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn sources() -> BTreeMap<String, String> {
    let files =
        fs::read_dir(folder().join("templates")).expect("the templates are in the repository");
    files
        .map(|file| file.expect("a readable folder").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jinja")
        })
        .map(|path| {
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(&path).expect("text"))
        })
        .collect()
}

fn read_json(path: PathBuf) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(path).expect("a golden file")).expect("JSON")
}

fn input(case: &Value) -> ChatInput {
    ChatInput {
        messages: case["messages"].as_array().expect("messages").clone(),
        tools: case["tools"].as_array().cloned().unwrap_or_default(),
        add_generation_prompt: case["add_generation_prompt"] == true,
        extra: case["extra"].as_object().cloned().unwrap_or_default(),
    }
}

fn render(source: &str, case: &Value) -> Result<String, TemplateError> {
    ChatTemplate::new(source, Some("<BOS>"), Some("<EOS>"))?
        .render_at(&input(case), UNIX_EPOCH + NOW)
}

#[test]
fn templates_render_what_python_renders() {
    let cases = read_json(folder().join("templates-golden/cases.json"));
    let mut wrong = Vec::new();
    for (name, source) in sources() {
        let golden = read_json(folder().join(format!("templates-golden/{name}.json")));
        for (case, expected) in &golden {
            let ours = render(&source, &cases[case]);
            let same = match (
                &ours,
                expected["text"].as_str(),
                expected["refused"].as_str(),
            ) {
                (Ok(text), Some(expected), _) => text == expected,
                (Err(TemplateError::Refused(reason)), None, Some(expected)) => reason == expected,
                (Ok(_), None, None) => BETTER
                    .iter()
                    .any(|(better, cases, _)| *better == name && cases.contains(&case.as_str())),
                (Err(TemplateError::Render(_)), None, None) => true,
                _ => false,
            };
            if !same {
                wrong.push(format!(
                    "{name}, {case}:\n  ours   {ours:?}\n  python {expected}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The table of docs/chat-templates.md.
fn table() -> String {
    let cases = read_json(folder().join("templates-golden/cases.json"));
    let columns = [
        ("user", "user"),
        ("system", "system, several turns"),
        ("closed", "ends with the answer"),
        ("tools", "tools, call, result, answer"),
        ("tool_turn", "ends with a tool's result"),
    ];
    let mut out = String::from("| template |");
    for (_, title) in columns {
        out += &format!(" {title} |");
    }
    out += " why not |\n|---|---|---|---|---|---|---|\n";
    for (name, source) in sources() {
        out += &format!("| {name} |");
        let mut reasons: Vec<String> = Vec::new();
        for (case, _) in columns {
            let (mark, reason) = match render(&source, &cases[case]) {
                Ok(text) => {
                    let shows = |word: &str| text.contains(word);
                    let silent = case.starts_with("tool") && !(shows("temperature") && shows("21"));
                    match silent {
                        true => (
                            "–",
                            Some("has no words for tools: leaves calls or results out".to_owned()),
                        ),
                        false => ("yes", None),
                    }
                }
                Err(TemplateError::Refused(reason)) => ("refuses", Some(format!("“{reason}”"))),
                Err(error) => (
                    "fails",
                    Some(
                        error
                            .to_string()
                            .replace("rendering the chat template failed: ", ""),
                    ),
                ),
            };
            out += &format!(" {mark} |");
            reasons.extend(reason.filter(|reason| !reasons.contains(reason)));
        }
        out += &format!(" {} |\n", reasons.join("; "));
    }
    out
}

/// `UPDATE_DOCS=1 cargo test -p sedge-formats --test templates` writes the table.
#[test]
fn the_documentation_says_which_templates_render() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/chat-templates.md");
    let text = fs::read_to_string(&path).expect("docs/chat-templates.md");
    let (start, end) = ("<!-- table -->\n", "<!-- end of table -->");
    let (before, rest) = text.split_once(start).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where the table ends");
    let new = format!("{before}{start}{}{end}{after}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &new).expect("a file that can be written");
    }
    assert!(
        text == new || std::env::var_os("UPDATE_DOCS").is_some(),
        "run with UPDATE_DOCS=1"
    );
}

/// A template that misuses the engine ends with an error, soon and without much memory.
#[test]
fn hostile_templates_end_with_an_error() {
    let nested = format!("{{{{ {}x{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let blocks = "{% if true %}".repeat(50_000);
    let long_chain = format!("{{{{ x{} }}}}", ".a".repeat(200_000));
    let sums = format!("{{{{ 1{} }}}}", " + 1".repeat(200_000));
    let nots = format!("{{{{ {}x }}}}", "not ".repeat(200_000));
    let lists = format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000));
    let hostile: &[(&str, &str)] = &[
        (
            "loop",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        ),
        ("repeat", "{{ 'x' * 10**9 }}"),
        ("repeat list", "{{ [0] * 100000 * 100000 }}"),
        ("range", "{% for a in range(1000000000000) %}x{% endfor %}"),
        ("power", "{{ 9**999999999 }}"),
        (
            "doubling",
            "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        ),
        (
            "shared json",
            "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        ),
        (
            "shared text",
            "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        ),
        ("indent", "{{ {'a': [1]} | tojson(indent=1000000000) }}"),
        (
            "macro",
            "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        ),
        (
            "two macros",
            "{% macro m(x) %}{{ x }}{{ m(x ~ x) }}{{ m(x ~ x) }}{% endmacro %}{{ m('a') }}",
        ),
        (
            "recursive loop",
            "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        ),
        (
            "replace",
            "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        ),
        (
            "method replace",
            "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        ),
        ("method join", "{{ ('b' * 1000000).join(range(99999)) }}"),
        ("method format", "{{ '{:1000000000}'.format(1) }}"),
        ("format", "{{ '%1000000000d' | format(1) }}"),
        ("include", "{% include '/etc/passwd' %}"),
        ("extends", "{% extends '/etc/passwd' %}"),
        ("import", "{% import '/etc/passwd' as x %}"),
        ("parentheses", &nested),
        ("blocks", &blocks),
        ("chain", &long_chain),
        ("nots", &nots),
        ("lists", &lists),
        ("unknown filter", "{{ messages | nosuchfilter }}"),
        ("unclosed", "{% for x in messages %}"),
    ];
    let case = serde_json::json!({"messages": [{"role": "user", "content": "Hello"}]});
    for (name, template) in hostile {
        let start = std::time::Instant::now();
        let result = render(template, &case);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
        assert!(result.is_err(), "{name}");
    }
    // These may end well, but must end.
    let deep =
        "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}";
    for template in [
        &sums,
        deep,
        &format!("{deep}{{{{ n.x }}}}"),
        &format!("{deep}{{{{ n.x | tojson }}}}"),
    ] {
        let _ = render(template, &case);
    }
}
