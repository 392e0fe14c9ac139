//! Names for answers, calls and requests that do not repeat.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// `prefix` and 24 hexadecimal digits. Nobody's secret: the randomness is that of the standard
/// library's hash keys.
pub(crate) fn unique(prefix: &str) -> String {
    let random = || RandomState::new().hash_one(prefix);
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
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
        let ids: HashSet<String> = (0..10_000).map(|_| unique("call_")).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(
            ids.iter()
                .all(|id| id.starts_with("call_") && id.len() == 29)
        );
    }
}
