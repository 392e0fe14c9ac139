//! Names that come from outside: of models, and of files in a repository or folder.
//! What is not plainly safe is refused; nothing here is ever joined to a path before it passed.

/// Most bytes of a model's name.
const LONGEST: usize = 96;

/// Why a name cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the name of a model.
    #[error(
        "{name:?} cannot be a model's name: 1 to {LONGEST} letters, digits, `.`, `_` and `-`, beginning with a letter or digit, not ending in .gguf"
    )]
    Model {
        /// The name.
        name: String,
    },
    /// Not the path of a file in a repository.
    #[error("{path:?} is not the path of a file inside a repository")]
    File {
        /// The path.
        path: String,
    },
}

/// Whether a model can have this name: it must not look like a flag, a path, a file, an alias
/// (`a=b`) or a reference (`hf:a/b`).
///
/// # Errors
/// When it cannot.
pub fn check_model_name(name: &str) -> Result<(), NameError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let good = (1..=LONGEST).contains(&name.len())
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.to_ascii_lowercase().ends_with(".gguf");
    match good {
        true => Ok(()),
        false => Err(NameError::Model {
            name: name.to_owned(),
        }),
    }
}

/// Whether a path names a file inside a repository: relative, of plain components with `/`
/// between them, no `..`, no drive, no backslash, nothing that is not printed.
///
/// # Errors
/// When it does not.
pub fn check_file_path(path: &str) -> Result<(), NameError> {
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':' | '\u{202a}'..='\u{202e}');
    let component =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    match !path.is_empty()
        && path.len() <= 1024
        && !path.contains(odd)
        && path.split('/').all(component)
    {
        true => Ok(()),
        false => Err(NameError::File {
            path: path.to_owned(),
        }),
    }
}

/// Of `names`, those within a few slips of the keyboard of `name`, or that contain it.
pub fn close_names<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_ascii_lowercase();
    let mut close: Vec<(usize, &str)> = names
        .filter_map(|known| {
            let lower = known.to_ascii_lowercase();
            let slips = distance(&wanted, &lower);
            let near = slips <= 1 + wanted.len() / 3
                || (wanted.len() >= 3 && (lower.contains(&wanted) || wanted.contains(&lower)));
            near.then_some((slips, known))
        })
        .collect();
    close.sort();
    close.truncate(3);
    close.into_iter().map(|(_, known)| known).collect()
}

/// Letters to insert, take away or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_something_else_are_refused() {
        for good in ["a", "Llama-3.2-1B", "q4_k_m", "7b"] {
            assert_eq!(check_model_name(good), Ok(()), "{good}");
        }
        let long = "a".repeat(97);
        for bad in [
            "", "-m", "--help", ".hidden", "..", "a/b", "a\\b", "a=b", "hf:a", "a b", "é", "a\n",
            "x.gguf", "x.GGUF", &long,
        ] {
            assert!(check_model_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_leave_the_repository_are_refused() {
        for good in [
            "config.json",
            "1_Pooling/config.json",
            "a b+c%.gguf",
            "é.json",
        ] {
            assert_eq!(check_file_path(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "C:\\x",
            "C:x",
            "a\\b",
            "a\0b",
            "a\nb",
            "\u{202e}gpj.exe",
        ] {
            assert!(check_file_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn slips_find_the_name_that_was_meant() {
        let names = ["llama-3.2-1b", "qwen3-0.6b", "smollm3"];
        let close = |name| close_names(name, names.iter().copied());
        assert_eq!(close("llama-3.2-1B"), ["llama-3.2-1b"]);
        assert_eq!(close("lama-3.2-1b"), ["llama-3.2-1b"]);
        assert_eq!(close("qwen3"), ["qwen3-0.6b"]);
        assert!(close("mistral").is_empty());
    }
}
