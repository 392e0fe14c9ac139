//! Names for answers, calls and requests that do not repeat.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// `prefix` and 24 hexadecimal digits. Nobody's secret: the randomness is that of the standard
/// library's hash keys.
pub(crate) fn unique(prefix: &str) -> String {
    let random = || RandomState::new().hash_one(prefix);
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

/// A tool call's id: nine letters and digits, the only form that Mistral's templates take back.
pub(crate) fn call() -> String {
    let mut rest = RandomState::new().hash_one("call");
    let digit = |_| {
        let digit = (rest % 36) as u32;
        rest /= 36;
        char::from_digit(digit, 36).unwrap_or('0')
    };
    (0..9).map(digit).collect()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| passed.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let ids: HashSet<String> = (0..10_000).map(|_| unique("cmpl-")).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(
            ids.iter()
                .all(|id| id.starts_with("cmpl-") && id.len() == 29)
        );
        let ids: HashSet<String> = (0..10_000).map(|_| call()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(
            ids.iter()
                .all(|id| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()))
        );
    }
}
