//! What a model is to become: a scheme, or a budget.

use std::str::FromStr;

use sedge_kernels::DType;
use sedge_models::{Origin, Rewriting, Tensor};

use crate::shrink::{ShrinkError, Types};

/// What a model is to become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// One type for all matrices.
    Scheme(Scheme),
    /// At most so many bytes of file, each matrix in the type that the whole loses least by.
    Fit {
        /// Bytes.
        bytes: u64,
    },
    /// As few bytes as a perplexity allows.
    Perplexity {
        /// The most that it may grow: 0.02 for 2 %.
        growth: f64,
    },
    /// A stack of residual blocks, of which as many are loaded as memory allows.
    Stack,
}

/// Bits of weights, activations, and keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheme {
    /// Type of the matrices.
    pub weights: DType,
    /// Bits of the activations that they multiply: 16 leaves the choice to who serves, 8 is what
    /// packed products use, fewer are written into the file.
    pub activations: u32,
    /// Keys and values of 4 or 8 bits.
    pub kv: Option<u32>,
    /// A fifth of the activations at most, where outliers are, keeps eight bits.
    pub mixed: bool,
}

/// A target that there is not.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{given:?} is no target: {problem}")]
pub struct TargetError {
    given: String,
    problem: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(given: &str) -> Result<Target, TargetError> {
        let wrong = |problem: &str| TargetError {
            given: given.to_owned(),
            problem: problem.to_owned(),
        };
        let text = given.to_ascii_lowercase();
        if text == "stack" {
            return Ok(Target::Stack);
        }
        if let Some(budget) = text.strip_prefix("fit:") {
            let bytes = bytes(budget).ok_or_else(|| {
                wrong("a budget is a number and B, kB, MB, GB, KiB, MiB or GiB, as in fit:14MB")
            })?;
            return Ok(Target::Fit { bytes });
        }
        if let Some(growth) = text.strip_prefix("ppl:") {
            let percent = growth
                .strip_prefix('+')
                .and_then(|g| g.strip_suffix('%'))
                .and_then(|g| g.parse::<f64>().ok())
                .filter(|g| g.is_finite() && *g > 0.0);
            let percent = percent.ok_or_else(|| {
                wrong("the growth of perplexity is a percentage above 0, as in ppl:+2%")
            })?;
            return Ok(Target::Perplexity {
                growth: percent / 100.0,
            });
        }
        if let Some(pair) = text.strip_prefix("bits:") {
            return bits(pair).map(Target::Scheme).ok_or_else(|| {
                wrong("bits:P,Q are those of weights and activations, each 1 to 8, as in bits:2,4")
            });
        }
        if let Some(dtype) = DType::from_name(&text) {
            return Ok(Target::Scheme(Scheme {
                weights: dtype,
                activations: 16,
                kv: None,
                mixed: false,
            }));
        }
        scheme(&text).map(Target::Scheme).ok_or_else(|| {
            wrong(
                "targets are schemes such as w8a8, w4a16, w4a8kv4, w4a4kv4, w3a16 and w2a16, \
                 bits:P,Q, a type such as q4_k, fit:14MB, ppl:+2% and stack",
            )
        })
    }
}

/// `w4a8kv4`: w and a number, a and a number, and kv and a number if wanted.
fn scheme(text: &str) -> Option<Scheme> {
    let (weights, rest) = text.strip_prefix('w')?.split_once('a')?;
    let (activations, kv) = match rest.split_once("kv") {
        Some((activations, kv)) => (activations, Some(kv.parse().ok()?)),
        None => (rest, None),
    };
    let weights = match weights.parse().ok()? {
        8 => DType::Q8_0,
        6 => DType::Q6K,
        5 => DType::Q5K,
        4 => DType::Q4K,
        3 => DType::Q3K,
        2 => DType::Q2K,
        _ => return None,
    };
    let activations = activations.parse().ok()?;
    let known = matches!(activations, 2..=8 | 16) && matches!(kv, None | Some(4 | 8 | 16));
    known.then_some(Scheme {
        weights,
        activations,
        kv: kv.filter(|bits| *bits < 16),
        mixed: activations < 8,
    })
}

/// `P,Q`.
fn bits(pair: &str) -> Option<Scheme> {
    let (p, q) = pair.split_once(',')?;
    let (p, activations): (u32, u32) = (p.trim().parse().ok()?, q.trim().parse().ok()?);
    let weights = DType::from_name(&format!("b{p}"))?;
    (1..=8).contains(&activations).then_some(Scheme {
        weights,
        activations,
        kv: None,
        mixed: false,
    })
}

/// `14MB`: a number and a unit.
fn bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = (text[..at].trim().parse::<f64>().ok()?, text[at..].trim());
    let unit = match unit {
        "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => return None,
    };
    let bytes = number * unit;
    (bytes.is_finite() && bytes >= 1.0).then_some(bytes as u64)
}

/// The type that a matrix whose rows do not fill a type's blocks takes in its place: one of
/// shorter blocks with as many bits, or more.
pub(crate) fn fitting(dtype: DType, columns: usize) -> DType {
    let near = match dtype {
        DType::Q2K | DType::Q3K | DType::Q4K => DType::Q4_0,
        DType::Iq4Xs => DType::Iq4Nl,
        DType::Q5K => DType::Q5_0,
        other => other,
    };
    [dtype, near, DType::Q8_0, DType::F16]
        .into_iter()
        .find(|d| d.bytes_for(columns).is_some())
        .unwrap_or(DType::F16)
}

/// The type of an output head, which the logits come straight from: never below six bits where
/// one type is asked for.
pub(crate) fn head(dtype: DType) -> DType {
    match dtype.block_bytes() * 8 < 6 * dtype.block_len() {
        true => DType::Q6K,
        false => dtype,
    }
}

/// Types whose values are not rounded to blocks, or to blocks of eight bits: what is shrunk.
fn is_whole(dtype: DType) -> bool {
    dtype.block_bytes() * 8 >= 8 * dtype.block_len()
}

/// Refuses a model whose matrices have fewer than eight bits already.
///
/// # Errors
/// When they do, or it cannot be opened.
pub fn whole(origin: &Origin<'_>) -> Result<(), ShrinkError> {
    let file = Rewriting::open(origin)?;
    let quantised = file.tensors().find(|t| t.weight && !is_whole(t.dtype));
    match quantised {
        Some(tensor) => Err(ShrinkError::Quantised {
            tensor: tensor.name,
            dtype: tensor.dtype,
        }),
        None => Ok(()),
    }
}

/// The type that a scheme gives each matrix: the output head keeps six bits.
///
/// # Errors
/// When the model cannot be opened.
pub fn by_scheme(origin: &Origin<'_>, scheme: &Scheme) -> Result<Types, ShrinkError> {
    let file = Rewriting::open(origin)?;
    let tied = !file.has("output.weight");
    let of = |tensor: Tensor| {
        let is_head =
            tensor.name == "output.weight" || (tied && tensor.name == "token_embd.weight");
        let wanted = match is_head {
            true => head(scheme.weights),
            false => scheme.weights,
        };
        let dtype = fitting(wanted, tensor.cols());
        (tensor.name, dtype)
    };
    Ok(file.tensors().filter(|t| t.weight).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let scheme = |weights, activations, kv| {
            Ok(Target::Scheme(Scheme {
                weights,
                activations,
                kv,
                mixed: activations < 8,
            }))
        };
        let read = |text: &str| text.parse::<Target>();
        assert_eq!(read("w8a8"), scheme(DType::Q8_0, 8, None));
        assert_eq!(read("W4A16"), scheme(DType::Q4K, 16, None));
        assert_eq!(read("w4a4kv4"), scheme(DType::Q4K, 4, Some(4)));
        assert_eq!(read("w2a16kv16"), scheme(DType::Q2K, 16, None));
        assert_eq!(read("iq4_xs"), scheme(DType::Iq4Xs, 16, None));
        assert_eq!(read("fit:14MB"), Ok(Target::Fit { bytes: 14_000_000 }));
        assert_eq!(
            read("fit: 1.5 GiB"),
            Ok(Target::Fit {
                bytes: 1_610_612_736
            })
        );
        assert_eq!(read("ppl:+2%"), Ok(Target::Perplexity { growth: 0.02 }));
        assert_eq!(read("stack"), Ok(Target::Stack));
    }

    #[test]
    fn what_is_no_target_says_what_one_is() {
        for bad in [
            "",
            "w7a8",
            "w4",
            "w4a9",
            "w4a8kv3",
            "fit:",
            "fit:14",
            "fit:-1MB",
            "fit:nanMB",
            "ppl:2%",
            "ppl:+0%",
            "ppl:+x%",
            "bits:2",
            "bits:0,1",
            "bits:1,9",
            "q9_k",
            "a4w4",
        ] {
            let error = bad.parse::<Target>().unwrap_err().to_string();
            assert!(
                error.contains("as in") || error.contains("such as"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn rows_that_fill_no_blocks_take_shorter_ones() {
        assert_eq!(fitting(DType::Q3K, 512), DType::Q3K);
        assert_eq!(fitting(DType::Q3K, 96), DType::Q4_0);
        assert_eq!(fitting(DType::Iq4Xs, 96), DType::Iq4Nl);
        assert_eq!(fitting(DType::Q2K, 20), DType::F16);
        assert_eq!(head(DType::Q4K), DType::Q6K);
        assert_eq!(head(DType::Q8_0), DType::Q8_0);
    }
}
