//! Which files of a repository or folder make a model or an adapter.

use crate::layout::Cut;
use crate::manifest::{Container, Kind};
use crate::name::check_file_path;
use crate::pull::PullError;

/// Small files that opening a model reads.
const SMALL: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "1_Pooling/config.json",
];

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Files to take, and what they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kind: Kind,
    pub(crate) container: Container,
    pub(crate) files: Vec<(String, Cut)>,
}

/// A file to choose from: its path and size.
pub(crate) type Offered = (String, Option<u64>);

/// Chooses from what `place` offers; `read` reads a small file of it.
pub(crate) fn choose(
    place: &str,
    offered: &[Offered],
    file: Option<&str>,
    read: &dyn Fn(&str) -> Result<Vec<u8>, PullError>,
) -> Result<Choice, PullError> {
    let has = |path: &str| offered.iter().any(|(p, _)| p == path);
    let small = |paths: &[&str], cut_of_weights: Vec<String>| {
        let small = paths.iter().filter(|path| has(path));
        let small = small.map(|path| ((*path).to_owned(), Cut::Whole));
        let weights = cut_of_weights.into_iter();
        small
            .chain(weights.map(|path| (path, Cut::Tensors(Container::Safetensors))))
            .collect()
    };
    let ggufs: Vec<&Offered> = offered
        .iter()
        .filter(|(path, _)| path.to_ascii_lowercase().ends_with(".gguf"))
        .collect();
    if let Some(file) = file {
        return gguf(place, &ggufs, offered, file);
    }
    let weights = if has(WEIGHTS) {
        Some(vec![WEIGHTS.to_owned()])
    } else if has(INDEX) {
        let shards = sedge_formats::safetensors::parse_index(&read(INDEX)?);
        let shards = shards.map_err(|source| PullError::Layout {
            file: INDEX.to_owned(),
            source: source.into(),
        })?;
        let shards: Vec<String> = shards.into_keys().collect();
        if let Some(lost) = shards.iter().find(|shard| !has(shard)) {
            return Err(PullError::NoFile {
                place: place.to_owned(),
                file: lost.clone(),
                choices: Vec::new(),
            });
        }
        Some(shards)
    } else {
        None
    };
    if has(ADAPTER_CONFIG) && weights.is_none() {
        if !has(ADAPTER_WEIGHTS) {
            return Err(PullError::NoFile {
                place: place.to_owned(),
                file: ADAPTER_WEIGHTS.to_owned(),
                choices: Vec::new(),
            });
        }
        return Ok(Choice {
            kind: Kind::Adapter,
            container: Container::Safetensors,
            files: small(&[ADAPTER_CONFIG], vec![ADAPTER_WEIGHTS.to_owned()]),
        });
    }
    if let Some(weights) = weights {
        if !has("config.json") {
            return Err(PullError::NoFile {
                place: place.to_owned(),
                file: "config.json".to_owned(),
                choices: Vec::new(),
            });
        }
        return Ok(Choice {
            kind: Kind::Model,
            container: Container::Safetensors,
            files: small(&SMALL, weights),
        });
    }
    let models = whole_models(&ggufs);
    match models.as_slice() {
        [] => Err(PullError::NoModel {
            place: place.to_owned(),
            pickle: offered.iter().any(|(path, _)| {
                [".bin", ".pt", ".pth", ".ckpt"]
                    .iter()
                    .any(|end| path.ends_with(end))
            }),
        }),
        [only] => gguf(place, &ggufs, offered, &only.0),
        _ => Err(PullError::Several {
            place: place.to_owned(),
            choices: models,
        }),
    }
}

/// A GGUF file by its path, or by the part of its name that says how it is quantised.
fn gguf(
    place: &str,
    ggufs: &[&Offered],
    offered: &[Offered],
    file: &str,
) -> Result<Choice, PullError> {
    let exact = ggufs.iter().find(|(path, _)| path == file);
    let models = whole_models(ggufs);
    let first = match exact {
        Some((path, _)) => path.clone(),
        None => {
            let matching: Vec<Offered> = models
                .iter()
                .filter(|(path, _)| is_quantised(path, file))
                .cloned()
                .collect();
            match matching.as_slice() {
                [only] => only.0.clone(),
                [] => {
                    let wrong_kind = offered.iter().any(|(path, _)| path == file);
                    return Err(match wrong_kind {
                        true => PullError::NotGguf {
                            file: file.to_owned(),
                        },
                        false => PullError::NoFile {
                            place: place.to_owned(),
                            file: file.to_owned(),
                            choices: models,
                        },
                    });
                }
                _ => {
                    return Err(PullError::Several {
                        place: place.to_owned(),
                        choices: matching,
                    });
                }
            }
        }
    };
    let mut files = Vec::new();
    for path in parts(&first) {
        check_file_path(&path)?;
        if !ggufs.iter().any(|(known, _)| *known == path) {
            return Err(PullError::NoFile {
                place: place.to_owned(),
                file: path,
                choices: Vec::new(),
            });
        }
        files.push((path, Cut::Tensors(Container::Gguf)));
    }
    Ok(Choice {
        kind: Kind::Model,
        container: Container::Gguf,
        files,
    })
}

/// `(stem, number, count)` of a part's path, `stem-00001-of-00003.gguf`.
fn part(path: &str) -> Option<(&str, u32, u32)> {
    let (stem, end) =
        path.split_at_checked(path.len().checked_sub("-00001-of-00003.gguf".len())?)?;
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    };
    let (no, count) = (number(end.get(1..6)?)?, number(end.get(10..15)?)?);
    let fits = end == format!("-{no:05}-of-{count:05}.gguf") && (1..=count).contains(&no);
    fits.then_some((stem, no, count))
}

/// All parts of the model that this file is a part of.
fn parts(path: &str) -> Vec<String> {
    match part(path) {
        Some((stem, _, count)) => (1..=count)
            .map(|no| format!("{stem}-{no:05}-of-{count:05}.gguf"))
            .collect(),
        None => vec![path.to_owned()],
    }
}

/// The models among files: a split one once, by its first part, with the size of all.
fn whole_models(ggufs: &[&Offered]) -> Vec<Offered> {
    let mut models: Vec<Offered> = Vec::new();
    for (path, size) in ggufs {
        match part(path) {
            None => models.push((path.clone(), *size)),
            Some((_, 1, _)) => {
                let size_of = |part: &String| {
                    let found = ggufs.iter().find(|(path, _)| path == part);
                    found.and_then(|(_, size)| *size)
                };
                let sizes: Option<u64> = parts(path).iter().map(size_of).sum();
                models.push((path.clone(), sizes));
            }
            Some(_) => {}
        }
    }
    // A projector of images is no model by itself.
    models.retain(|(path, _)| !file_name(path).to_ascii_lowercase().starts_with("mmproj"));
    models
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Whether a file's name says that it is quantised so: as a word of it, in any case.
fn is_quantised(path: &str, quantisation: &str) -> bool {
    let stem = match part(path) {
        Some((stem, _, _)) => stem,
        None => &path[..path.len() - ".gguf".len()],
    };
    let stem = file_name(stem).to_ascii_lowercase();
    let wanted = quantisation.to_ascii_lowercase();
    let apart = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    stem.match_indices(&wanted).any(|(at, found)| {
        apart(stem[..at].chars().next_back()) && apart(stem[at + found.len()..].chars().next())
    })
}

/// What a file's model is called when nothing else is said.
pub(crate) fn name_of_gguf(path: &str) -> &str {
    let name = file_name(path);
    match part(name) {
        Some((stem, _, _)) => stem,
        None => name
            .get(..name.len().saturating_sub(".gguf".len()))
            .unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose_of(paths: &[&str], file: Option<&str>) -> Result<Choice, PullError> {
        let offered: Vec<Offered> = paths.iter().map(|p| ((*p).to_owned(), Some(10))).collect();
        let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        choose("hf:a/b", &offered, file, &|_| Ok(index.to_vec()))
    }

    fn files(paths: &[&str], file: Option<&str>) -> Vec<String> {
        let choice = choose_of(paths, file).unwrap();
        choice.files.into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_repository_of_safetensors_gives_weights_and_what_opening_reads() {
        let all = [
            "README.md",
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "x.gguf",
            "pytorch_model.bin",
        ];
        assert_eq!(
            files(&all, None),
            ["config.json", "tokenizer.json", "model.safetensors"]
        );
        let sharded = [
            "config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
        ];
        assert_eq!(files(&sharded, None).len(), 3);
        assert!(matches!(
            choose_of(&sharded[..3], None),
            Err(PullError::NoFile { file, .. }) if file == "model-00002-of-00002.safetensors"
        ));
    }

    #[test]
    fn an_adapter_is_one_unless_a_model_lies_beside_it() {
        let adapter = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
        ];
        assert_eq!(choose_of(&adapter, None).unwrap().kind, Kind::Adapter);
        let both = ["adapter_config.json", "config.json", "model.safetensors"];
        assert_eq!(choose_of(&both, None).unwrap().kind, Kind::Model);
    }

    #[test]
    fn a_quantisation_names_one_file_or_is_an_error_that_lists_them() {
        let all = [
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "m-Q8_0.gguf",
            "m-IQ4_XS.gguf",
            "big/m-BF16-00001-of-00002.gguf",
            "big/m-BF16-00002-of-00002.gguf",
            "mmproj-m-F16.gguf",
        ];
        assert_eq!(files(&all, Some("Q4_K_M")), ["m-Q4_K_M.gguf"]);
        assert_eq!(files(&all, Some("q8_0")), ["m-Q8_0.gguf"]);
        assert_eq!(files(&all, Some("m-Q8_0.gguf")), ["m-Q8_0.gguf"]);
        assert_eq!(files(&all, Some("bf16")).len(), 2);
        // A beginning of a name is not it.
        for vague in ["Q4", "Q4_K", "K_M", "Q5_K_M", "4_K_M"] {
            assert!(
                matches!(choose_of(&all, Some(vague)), Err(PullError::NoFile { choices, .. }) if choices.len() == 5),
                "{vague}"
            );
        }
        assert!(matches!(
            choose_of(&all, Some("m")),
            Err(PullError::Several { choices, .. }) if choices.len() == 5
        ));
        match choose_of(&all, None) {
            Err(PullError::Several { choices, .. }) => {
                assert!(choices.contains(&("big/m-BF16-00001-of-00002.gguf".into(), Some(20))));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(files(&all[..1], None), ["m-Q4_K_M.gguf"]);
        assert!(matches!(
            choose_of(&all[..5], Some("bf16")),
            Err(PullError::NoFile { .. })
        ));
    }

    #[test]
    fn a_repository_without_a_model_says_so() {
        assert!(matches!(
            choose_of(&["pytorch_model.bin", "config.json"], None),
            Err(PullError::NoModel { pickle: true, .. })
        ));
        assert!(matches!(
            choose_of(&["README.md"], Some("README.md")),
            Err(PullError::NotGguf { .. })
        ));
    }
}
