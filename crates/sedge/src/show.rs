//! `sedge show`: what a model's file or folder holds.

mod network;

use std::collections::BTreeMap;
use std::fmt::Write;

use sedge_formats::tokenizer::Tokenizer;
use sedge_models::{Config, Info, Opened};
use sedge_store::{Kind, Manifest};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output;
use crate::see::{self, Size};
use crate::size::{self, Bytes};
use crate::source::Source;
use crate::store;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sedge show seedling\n  sedge show --tensors ./model.gguf\n  sedge show --json ./model-dir\n  sedge show Qwen3-0.6B\n  sedge show yolov8n.onnx --size 640x640"
)]
pub(crate) struct Args {
    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model; or an ONNX
    /// file, or a network that `sedge see` builds
    #[arg(value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Rows and columns of a network's input, where its file leaves them open
    #[arg(long, value_name = "HxW")]
    size: Option<Size>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if let Some(text) = of_network(&args)? {
        return Ok(output::print(&text)?);
    }
    let stored = stored(&args.model)?;
    if let Some(manifest) = stored.as_ref().filter(|m| m.kind == Kind::Adapter) {
        return Ok(output::print(&adapter(&args, manifest))?);
    }
    let opened = args.model.open()?;
    let text = if args.json {
        let mut object = as_json(&args.model.name, &opened, args.tensors);
        if let Some(manifest) = &stored {
            object["source"] = manifest.origin.source.clone().into();
            object["revision"] = manifest.origin.revision.clone().into();
        }
        format!("{object:#}\n")
    } else {
        let mut text = as_text(&args.model.name, &opened, args.tensors);
        if let Some(manifest) = &stored {
            // After the name, which is the first line.
            let at = text.find('\n').map_or(text.len(), |end| end + 1);
            text.insert_str(at, &format!("  {:<14} {}\n", "source", origin(manifest)));
        }
        text
    };
    Ok(output::print(&text)?)
}

/// What a network for pictures holds, if the model is one.
fn of_network(args: &Args) -> Result<Option<String>, Failure> {
    let Args {
        model, size, json, ..
    } = args;
    let text = match (model.path(), model.stored().and_then(see::network_named)) {
        (Some(path), _) if network::is_onnx(path) => {
            network::file(&model.name, path, *size, *json)?
        }
        (None, Some(name)) if stored(model)?.is_none() => network::built(name, *size, *json)?,
        _ => return Ok(None),
    };
    Ok(Some(text))
}

/// The manifest of a model that is in the store, if it is.
fn stored(source: &Source) -> Result<Option<Manifest>, Failure> {
    match source.stored() {
        // That it is not there is told when it is opened.
        Some(name) => store::store()?.find(name).map_err(store::failure),
        None => Ok(None),
    }
}

fn origin(manifest: &Manifest) -> String {
    let origin = &manifest.origin;
    match &origin.revision {
        Some(revision) => format!("{} at {revision}", origin.source),
        None => origin.source.clone(),
    }
}

/// What is known of an adapter without its model.
fn adapter(args: &Args, manifest: &Manifest) -> String {
    let bytes: u64 = manifest.tensors.iter().map(|t| t.blob.len).sum();
    let (name, count) = (&args.model.name, manifest.tensors.len());
    if args.json {
        let mut object = json!({
            "name": name,
            "kind": manifest.kind.name(),
            "source": manifest.origin.source,
            "revision": manifest.origin.revision,
            "bytes": bytes,
        });
        if args.tensors {
            object["tensors"] = manifest
                .tensors
                .iter()
                .map(|t| json!({"name": t.name, "type": t.dtype, "shape": t.shape, "bytes": t.blob.len}))
                .collect();
        }
        return format!("{object:#}\n");
    }
    let mut text = format!("{name}\n");
    for (key, value) in [
        ("kind", manifest.kind.name().to_owned()),
        ("source", origin(manifest)),
        ("tensors", count.to_string()),
        ("bytes", format!("{} ({bytes})", Bytes(bytes))),
    ] {
        let _ = writeln!(text, "  {key:<14} {value}");
    }
    if args.tensors {
        text.push('\n');
        for t in &manifest.tensors {
            let shape = format!("{:?}", t.shape);
            let _ = writeln!(text, "  {:<6} {shape:<18} {}", t.dtype, t.name);
        }
    }
    text
}

/// Tensors and bytes of one stored type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    tensors: usize,
    bytes: u64,
}

fn shares(info: &Info) -> BTreeMap<&'static str, Share> {
    let mut shares: BTreeMap<&str, Share> = BTreeMap::new();
    for tensor in &info.tensors {
        let share = shares.entry(tensor.dtype.name()).or_default();
        share.tensors += 1;
        share.bytes += tensor.bytes;
    }
    shares
}

/// Name of the type that holds most of the bytes.
pub(crate) fn main_type(info: &Info) -> &'static str {
    let shares = shares(info);
    let largest = shares.iter().max_by_key(|(_, share)| share.bytes);
    largest.map_or("empty", |(name, _)| name)
}

fn as_text(name: &str, opened: &Opened, tensors: bool) -> String {
    let (info, config) = (&opened.info, opened.model.config());
    let mut text = format!("{name}\n");
    let mut line = |key: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {key:<14} {value}");
    };
    line("architecture", config.architecture.name().to_owned());
    line("container", info.container.to_owned());
    line(
        "parameters",
        format!("{} ({})", size::count(info.parameters), info.parameters),
    );
    line("bytes", format!("{} ({})", Bytes(info.bytes), info.bytes));
    let types: Vec<String> = shares(info)
        .iter()
        .map(|(name, s)| format!("{name} × {} ({})", s.tensors, Bytes(s.bytes)))
        .collect();
    line("tensor types", types.join(", "));
    if info.left_out > 0 {
        let note = format!(
            "{} tensors of a vision tower: only text is read",
            info.left_out
        );
        line("left out", note);
    }
    line("context", format!("{} tokens", config.context));
    for (key, value) in shape(config) {
        line(key, value.to_string());
    }
    line("tokenizer", tokenizer(opened.tokenizer.as_deref()));
    line("chat template", template(opened.chat_template.as_deref()));
    if tensors {
        text.push('\n');
        for t in &info.tensors {
            let _ = writeln!(
                text,
                "  {:<6} {:<18} {}",
                t.dtype.name(),
                format!("{:?}", t.shape),
                t.name
            );
        }
    }
    text
}

fn as_json(name: &str, opened: &Opened, tensors: bool) -> Value {
    let (info, config) = (&opened.info, opened.model.config());
    let types: serde_json::Map<String, Value> = shares(info)
        .into_iter()
        .map(|(name, s)| {
            (
                name.to_owned(),
                json!({"tensors": s.tensors, "bytes": s.bytes}),
            )
        })
        .collect();
    let mut object = json!({
        "name": name,
        "architecture": config.architecture.name(),
        "container": info.container,
        "parameters": info.parameters,
        "bytes": info.bytes,
        "tensor_types": types,
        "left_out": info.left_out,
        "context": config.context,
    });
    for (key, value) in shape(config) {
        object[key.replace(' ', "_")] = value.into();
    }
    object["chat_template"] = opened.chat_template.clone().into();
    if tensors {
        object["tensors"] = info
            .tensors
            .iter()
            .map(|t| json!({"name": t.name, "type": t.dtype.name(), "shape": t.shape, "bytes": t.bytes}))
            .collect();
    }
    object
}

/// The sizes that tell models of one architecture apart.
fn shape(config: &Config) -> Vec<(&'static str, usize)> {
    let mut facts = vec![
        ("layers", config.layers.len()),
        ("hidden", config.hidden),
        ("heads", config.heads),
        ("kv heads", config.kv_heads),
        ("head size", config.head_dim),
        ("intermediate", config.intermediate),
        ("vocabulary", config.vocab),
    ];
    if let Some(moe) = &config.moe {
        facts.push(("experts", moe.experts));
        facts.push(("experts used", moe.per_token));
    }
    if let Some(window) = config.layers.iter().find_map(|layer| layer.window) {
        facts.push(("window", window));
    }
    facts
}

fn tokenizer(tokenizer: Option<&Tokenizer>) -> String {
    let Some(t) = tokenizer else {
        return "none".to_owned();
    };
    let word = |id: u32| t.token(id).unwrap_or("?").to_owned();
    let ends: Vec<String> = t.eos().iter().map(|id| word(*id)).collect();
    format!("{} tokens, ends with {}", t.len(), ends.join(" or "))
}

fn template(source: Option<&str>) -> String {
    match source {
        None => "none".to_owned(),
        Some(text) => format!(
            "{} characters{}",
            text.chars().count(),
            if text.contains("tools") {
                ", with tools"
            } else {
                ""
            }
        ),
    }
}
