//! Numbers of bytes, as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

const BINARY: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Accepts `4096`, `512MiB`, `512M` (the same), `2GB` (decimal), `1.5GiB`.
impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            other => return Err(format!("unknown unit {other:?}; write for example 512MiB")),
        };
        let bytes = number
            .parse::<f64>()
            .map_err(|_| format!("{text:?} is not a number of bytes; write for example 512MiB"))?
            * unit as f64;
        if bytes > (1u64 << 50) as f64 {
            return Err(format!("{text} is more than any machine has"));
        }
        Ok(Bytes(bytes as u64))
    }
}

/// A large count in short: `26.2 M`.
pub(crate) fn count(n: u64) -> String {
    for (name, unit) in [("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)] {
        if n as f64 >= unit {
            return format!("{:.1} {name}", n as f64 / unit);
        }
    }
    n.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("512M", 512 << 20),
            ("1.5 GiB", 3 << 29),
            ("2GB", 2_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "1..2", "12 parsecs", "-1", "9999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_counts_are_printed_short() {
        assert_eq!(Bytes(17).to_string(), "17 B");
        assert_eq!(Bytes(27_900_000).to_string(), "26.6 MiB");
        assert_eq!(count(26_214_912), "26.2 M");
        assert_eq!(count(999), "999");
    }
}
