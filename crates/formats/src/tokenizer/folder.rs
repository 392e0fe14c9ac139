//! The tokenizer of a Hugging Face folder.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokenizers::AddedToken;

use super::pipeline::Pipeline;
use super::vocabulary::{Kind, Spelling, Token};
use super::{Encoder, Tokenizer, TokenizerError};

/// Larger files are not read.
const SIZE_LIMIT: u64 = 256 << 20;

/// `tokenizer.json` without its vocabulary.
#[derive(Debug, Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: ModelOutline,
}

/// What kind of model it is.
#[derive(Debug, Deserialize)]
pub(super) struct ModelOutline {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
}

/// The steps of a normalizer, pre-tokenizer or decoder, out of their sequences.
pub(super) fn steps(value: &Value) -> Vec<&Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Object(step) if step.get("type").is_some_and(|kind| kind == "Sequence") => {
            let inner = ["normalizers", "pretokenizers", "decoders"]
                .iter()
                .find_map(|key| step.get(*key));
            let inner = inner.and_then(Value::as_array);
            inner.into_iter().flatten().flat_map(steps).collect()
        }
        step => vec![step],
    }
}

/// A special token: its text, or an object with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Object { content: String },
}

impl Special {
    fn text(&self) -> &str {
        match self {
            Special::Text(text) | Special::Object { content: text } => text,
        }
    }
}

/// One template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    fn default(self) -> Option<String> {
        match self {
            Templates::One(template) => Some(template),
            Templates::Named(mut named) => {
                let at = named
                    .iter()
                    .position(|template| template.name == "default")
                    .unwrap_or(0);
                (at < named.len()).then(|| named.swap_remove(at).template)
            }
        }
    }
}

/// `tokenizer_config.json`, and `special_tokens_map.json`, which has the first four.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    pad_token: Option<Special>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
    added_tokens_decoder: std::collections::BTreeMap<String, AddedToken>,
}

/// `generation_config.json` and `config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ids {
    bos_token_id: Option<Several>,
    eos_token_id: Option<Several>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Several {
    One(u32),
    List(Vec<u32>),
}

impl Several {
    fn ids(&self) -> &[u32] {
        match self {
            Several::One(id) => std::slice::from_ref(id),
            Several::List(ids) => ids,
        }
    }
}

/// A file's bytes, or nothing if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |source| TokenizerError::Io {
        path: path.display().to_string(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(about) if about.len() > SIZE_LIMIT => {
            Err(malformed(path, format!("larger than {SIZE_LIMIT} bytes")))
        }
        Ok(_) => std::fs::read(path).map(Some).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// How a file of the folder is read.
type Read<'a> = &'a dyn Fn(&Path) -> Result<Option<Vec<u8>>, TokenizerError>;

fn read_json<T: DeserializeOwned>(
    read: Read<'_>,
    path: &Path,
) -> Result<Option<T>, TokenizerError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| malformed(path, error.to_string()))
}

fn malformed(path: &Path, reason: String) -> TokenizerError {
    TokenizerError::File {
        path: path.display().to_string(),
        reason,
    }
}

/// What a BPE model's merges refer to.
#[derive(Deserialize)]
struct Bpe<'a> {
    #[serde(borrow)]
    vocab: HashMap<Cow<'a, str>, IgnoredAny>,
    #[serde(borrow, default)]
    merges: Vec<Merge<'a>>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// A merge in either of the two ways of writing it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>),
    Text(#[serde(borrow)] Cow<'a, str>),
}

/// Refuses merges into more bytes than any token has: the crate panics on them.
fn check_merges(bytes: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        model: Bpe<'a>,
    }
    let Bpe {
        vocab,
        merges,
        continuing_subword_prefix,
    } = serde_json::from_slice::<Outer<'_>>(bytes)
        .map_err(|error| error.to_string())?
        .model;
    let longest = vocab.keys().map(|token| token.len()).max().unwrap_or(0);
    let prefix = continuing_subword_prefix.map_or(0, |prefix| prefix.len());
    let fits = |left: &str, right: &str| {
        right.len() >= prefix && left.len() + right.len() - prefix <= longest
    };
    for merge in &merges {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_ref(), right.as_ref()),
            Merge::Text(text) => text.split_once(' ').unwrap_or((text, "")),
        };
        if !fits(left, right) {
            return Err(format!(
                "the merge of {left:?} and {right:?} makes no token"
            ));
        }
    }
    Ok(())
}

pub(super) fn open(folder: &Path) -> Result<Tokenizer, TokenizerError> {
    build(folder, &read)
}

pub(super) fn from_files(
    place: &str,
    find: &dyn Fn(&str) -> Option<Bytes>,
) -> Result<Tokenizer, TokenizerError> {
    build(Path::new(place), &|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        match name.and_then(find) {
            Some(bytes) if bytes.len() as u64 > SIZE_LIMIT => {
                Err(malformed(path, format!("larger than {SIZE_LIMIT} bytes")))
            }
            found => Ok(found.map(|bytes| bytes.to_vec())),
        }
    })
}

fn build(folder: &Path, read: Read<'_>) -> Result<Tokenizer, TokenizerError> {
    let path = folder.join("tokenizer.json");
    let bytes = read(&path)?.ok_or_else(|| TokenizerError::Io {
        path: path.display().to_string(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let config: Option<Config> = read_json(read, &folder.join("tokenizer_config.json"))?;
    let map: Config = read_json(read, &folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let generation: Ids =
        read_json(read, &folder.join("generation_config.json"))?.unwrap_or_default();
    let model: Ids = read_json(read, &folder.join("config.json"))?.unwrap_or_default();

    let outline: Outline =
        serde_json::from_slice(&bytes).map_err(|error| malformed(&path, error.to_string()))?;
    if outline.model.kind == "BPE" {
        check_merges(&bytes).map_err(|reason| malformed(&path, reason))?;
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
        .map_err(|error| malformed(&path, error.to_string()))?;
    drop(bytes);
    if let Some(config) = &config {
        add_missing(&mut inner, config).map_err(|error| malformed(&path, error.to_string()))?;
    }
    let (spelling, drops_first_space) = spelling(&outline);
    let tokens = tokens(&inner, &outline, spelling).map_err(|reason| malformed(&path, reason))?;
    let pipeline = Pipeline::new(inner).map_err(|error| malformed(&path, error.to_string()))?;
    let (mut before, mut after) = pipeline
        .around()
        .map_err(|error| malformed(&path, error.to_string()))?;

    let told = config.is_some();
    let config = config.unwrap_or_default();
    let find = |token: &Option<Special>, mapped: &Option<Special>| {
        let token = token.as_ref().or(mapped.as_ref())?;
        pipeline.inner().token_to_id(token.text())
    };
    let in_range = |id: &u32| (*id as usize) < tokens.len();
    let listed = |which: fn(&Ids) -> &Option<Several>| {
        let both = [which(&generation), which(&model)];
        both.into_iter()
            .flatten()
            .flat_map(Several::ids)
            .copied()
            .filter(in_range)
            .collect::<Vec<u32>>()
    };
    // A tokenizer that says nothing of a BOS token has none, whatever the model was trained with.
    let bos = find(&config.bos_token, &map.bos_token).or_else(|| {
        listed(|ids| &ids.bos_token_id)
            .first()
            .copied()
            .filter(|_| !told)
    });
    let mut eos: Vec<u32> = find(&config.eos_token, &map.eos_token)
        .into_iter()
        .collect();
    for id in listed(|ids| &ids.eos_token_id) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    set(&mut before, bos, config.add_bos_token, true);
    set(
        &mut after,
        eos.first().copied(),
        config.add_eos_token,
        false,
    );

    let chat_template = match read(&folder.join("chat_template.jinja"))? {
        Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        None => config.chat_template.and_then(Templates::default),
    };
    let chat_template = match chat_template {
        Some(template) => Some(template),
        None => {
            let file: Option<Config> = read_json(read, &folder.join("chat_template.json"))?;
            file.and_then(|file| file.chat_template)
                .and_then(Templates::default)
        }
    };
    let unknown = find(&config.unk_token, &map.unk_token).or_else(|| {
        pipeline
            .inner()
            .token_to_id(outline.model.unk_token.as_ref()?)
    });
    let padding = find(&config.pad_token, &map.pad_token);
    Ok(Tokenizer {
        encoder: Encoder::Pipeline(Box::new(pipeline)),
        tokens,
        before,
        after,
        bos,
        eos,
        unknown,
        padding,
        drops_first_space,
        chat_template,
        outline: Some(outline),
    })
}

/// Puts a token at an end, or takes it away, if the configuration says so.
fn set(around: &mut Vec<u32>, token: Option<u32>, wanted: Option<bool>, first: bool) {
    let Some(token) = token else { return };
    let present = around.contains(&token);
    match wanted {
        Some(true) if !present => around.insert(if first { 0 } else { around.len() }, token),
        Some(false) => around.retain(|&id| id != token),
        _ => {}
    }
}

/// Adds the tokens that only `tokenizer_config.json` knows.
fn add_missing(inner: &mut tokenizers::Tokenizer, config: &Config) -> tokenizers::Result<()> {
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    for (id, token) in &config.added_tokens_decoder {
        if inner.token_to_id(&token.content).is_none() {
            missing.push((id.parse()?, token.clone()));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    inner.add_tokens(missing.into_iter().map(|(_, token)| token))?;
    Ok(())
}

/// How tokens are written, and whether a text's first space is dropped: what the decoder says.
fn spelling(outline: &Outline) -> (Spelling, bool) {
    let steps = steps(&outline.decoder);
    let step = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    let strips = step("Strip").is_some_and(|step| step["content"] == " " && step["start"] != 0);
    if step("ByteLevel").is_some() {
        return (Spelling::ByteLevel, strips);
    }
    if let Some(step) = step("WordPiece") {
        return (
            Spelling::WordPiece {
                tidy: step["cleanup"] != false,
            },
            true,
        );
    }
    if let Some(step) = step("Metaspace") {
        let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
        return (Spelling::SentencePiece, strips || !never);
    }
    if step("Replace").is_some() || step("ByteFallback").is_some() {
        return (Spelling::SentencePiece, strips);
    }
    if step("BPEDecoder").is_some() {
        return (Spelling::WordEnd, false);
    }
    (Spelling::Words, true)
}

/// One token for each id.
fn tokens(
    inner: &tokenizers::Tokenizer,
    outline: &Outline,
    spelling: Spelling,
) -> Result<Vec<Token>, String> {
    let vocabulary = inner.get_vocab(true);
    let len = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    // Ids may have gaps, but a gap must not decide how much memory we take.
    if len > 4 * vocabulary.len() + 65_536 {
        return Err(format!(
            "{} tokens have ids up to {}",
            vocabulary.len(),
            len - 1
        ));
    }
    let added = inner.get_added_tokens_decoder();
    let mut tokens: Vec<Token> = Vec::new();
    tokens.resize_with(len, || Token::new(String::new(), Kind::Unused, spelling));
    for (text, id) in vocabulary {
        let kind = match added.get(&id) {
            Some(token) if token.special => Kind::Control,
            Some(_) => Kind::UserDefined,
            None if outline.model.unk_token.as_ref() == Some(&text) => Kind::Unknown,
            None if outline.model.byte_fallback && super::spm::byte(&text).is_some() => Kind::Byte,
            None => Kind::Normal,
        };
        tokens[id as usize] = Token::new(text, kind, spelling);
    }
    Ok(tokens)
}
