//! `sedge bench products`: products alone, by type of weights, bits of activations and rows.

use std::num::NonZeroUsize;
use std::time::Duration;

use sedge_bench::{ProductCase, ProductFigure, ProductOptions, Spread};
use sedge_kernels::{DType, Peak, Team, packed_kernels, read_bandwidth};
use serde_json::json;

use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};

const ABOUT: &str = "\
Examples:
  sedge bench products
  sedge bench products --rows 1,4 --pairs 1:1,2:2 --weights b4
  sedge bench products --shape 2048x8192 --json

A pair P:Q is weights of P bits (the type bP) and activations of Q. Types of --weights are measured
with activations of 8 bits. Each figure is the median of turns, in which every way runs once:

  over int8     beside q8_0 weights with 8-bit activations by vector instructions (VNNI, AVX2)
  over bf16     beside bf16 weights with f32 activations: tokens that are generated, up to 16 rows
  over tiles    beside bf16 weights with bf16 activations in tiles: prompts, from 16 rows, where the
                processor has tiles

GB/s is weights read; for one row, `of memory` compares it with what the machine reads.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct ProductsArgs {
    /// Rows of activations, with commas between
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,16,256"
    )]
    rows: Vec<NonZeroUsize>,

    /// Outputs and inputs of the matrices
    #[arg(
        long,
        value_name = "NxK",
        value_delimiter = ',',
        default_value = "4096x4096",
        value_parser = parse_shape
    )]
    shape: Vec<(usize, usize)>,

    /// Types of weights, with activations of 8 bits
    #[arg(
        long,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "q4_0,q4_k,b4",
        value_parser = crate::convert::parse_type
    )]
    weights: Vec<DType>,

    /// Bits of weights and activations
    #[arg(
        long,
        value_name = "P:Q",
        value_delimiter = ',',
        default_value = "1:1,1:2,2:1,2:2,3:1,3:2,2:4,4:4,1:8,2:8,3:8,6:8,8:8",
        value_parser = parse_pair
    )]
    pairs: Vec<(DType, u8)>,

    /// Turns
    #[arg(short, long, value_name = "N", default_value = "7")]
    repeats: NonZeroUsize,

    /// Bytes of weights in rotation, of each of three types at a time
    #[arg(long, value_name = "MB", default_value = "640")]
    rotation: usize,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().ok().filter(|n: &usize| *n > 0);
    let shape = text.split_once('x');
    let shape = shape.and_then(|(n, k)| Some((number(n)?, number(k)?)));
    // Blocks of all types.
    let whole = shape.filter(|(n, k)| k.is_multiple_of(256) && n.saturating_mul(*k) <= 1 << 30);
    whole.ok_or_else(|| {
        "expected outputs × inputs such as 4096x4096, inputs a multiple of 256, a thousand million \
         values at most"
            .into()
    })
}

fn parse_pair(text: &str) -> Result<(DType, u8), String> {
    let (p, q) = text.split_once(':').unwrap_or_default();
    let weights = p.trim().parse().ok().and_then(DType::bipolar);
    let bits = q.trim().parse().ok().filter(|q| (1..=8).contains(q));
    weights
        .zip(bits)
        .ok_or_else(|| "expected bits of weights and activations, 1 to 8 each, such as 2:4".into())
}

pub(super) fn run(args: &ProductsArgs) -> Result<(), Failure> {
    let team = Team::new(machine::threads(args.threads));
    let weights = args.weights.iter().map(|dtype| (*dtype, 8));
    let pairs: Vec<(DType, u8)> = weights.chain(args.pairs.iter().copied()).collect();
    let cases: Vec<ProductCase> = args
        .shape
        .iter()
        .flat_map(|&shape| pairs.iter().map(move |&pair| (shape, pair)))
        .flat_map(|(shape, (weights, bits))| {
            args.rows.iter().map(move |rows| ProductCase {
                weights,
                bits,
                shape,
                rows: rows.get(),
            })
        })
        .collect();
    let plain = |case: &&ProductCase| case.weights.block_len() == 1;
    if let Some(case) = cases.iter().find(plain) {
        return Err(Failure::new(format_args!(
            "{} weights are what the others are measured beside",
            case.weights
        ))
        .hint("types of quantised weights, such as q4_0 or b4"));
    }
    let options = ProductOptions {
        turns: args.repeats.get(),
        rotation: args.rotation << 20,
        turn: Duration::from_millis(40),
    };
    let mut line = ProgressLine::new();
    let memory = |e| Failure::new(format_args!("memory to measure with: {e}"));
    let read = read_bandwidth(&team).map_err(memory)?;
    let figures = sedge_bench::products(&team, &cases, &options, &mut |i, case| {
        let what = format!("{} × {} bits", case.weights, case.bits);
        line.show(i as u64, cases.len() as u64, &what);
    });
    line.clear();
    let figures = figures.map_err(memory)?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&figures, &read, team.threads())),
        false => as_text(&figures, &read, team.threads()),
    };
    Ok(output::print(&text)?)
}

/// Multiply-adds in a second.
fn multiplied(figure: &ProductFigure) -> f64 {
    let case = &figure.case;
    (case.rows * case.shape.0 * case.shape.1) as f64 / figure.seconds.median
}

/// Bytes of weights in a second.
fn read_rate(figure: &ProductFigure) -> f64 {
    figure.bytes as f64 / figure.seconds.median
}

fn as_text(figures: &[ProductFigure], read: &Peak, threads: usize) -> String {
    let mut text = format!(
        "machine       {threads} threads, {} kernels at best; reads {:.1} GB/s\n\n\
         {:<8} {:>4} {:>5} {:>11} {:>10} {:>9} {:>8} {:>7} {:>9}  {:<20} {:<20} {:<20} kernels\n",
        packed_kernels(),
        read.per_second / 1e9,
        "weights",
        "bits",
        "rows",
        "shape",
        "bits/value",
        "µs",
        "GMAC/s",
        "GB/s",
        "of memory",
        "over int8",
        "over bf16",
        "over tiles",
    );
    let ratio = |s: &Option<Spread>| {
        s.map_or_else(String::new, |s| {
            format!("{:.2} × ({:.2} – {:.2})", s.median, s.min, s.max)
        })
    };
    for figure in figures {
        let ProductCase {
            weights,
            bits,
            shape: (n, k),
            rows,
        } = figure.case;
        let of_memory = match rows {
            1 => format!("{:.0} %", 100.0 * read_rate(figure) / read.per_second),
            _ => String::new(),
        };
        text.push_str(&format!(
            "{:<8} {bits:>4} {rows:>5} {:>11} {:>10.3} {:>9.1} {:>8.0} {:>7.1} {of_memory:>9}  {:<20} {:<20} {:<20} {}\n",
            weights.name(),
            format!("{n}x{k}"),
            8.0 * figure.bytes as f64 / (n * k) as f64,
            figure.seconds.median * 1e6,
            multiplied(figure) / 1e9,
            read_rate(figure) / 1e9,
            ratio(&Some(figure.over_int8)),
            ratio(&figure.over_bf16),
            ratio(&figure.over_bf16_tiles),
            figure.kernels,
        ));
    }
    text
}

fn as_json(figures: &[ProductFigure], read: &Peak, threads: usize) -> serde_json::Value {
    let spread = |s: Spread| json!({"median": s.median, "min": s.min, "max": s.max});
    let rows: Vec<_> = figures
        .iter()
        .map(|figure| {
            let case = &figure.case;
            json!({
                "weights": case.weights.name(),
                "activation_bits": case.bits,
                "rows": case.rows,
                "outputs": case.shape.0,
                "inputs": case.shape.1,
                "weight_bytes": figure.bytes,
                "seconds": spread(figure.seconds),
                "multiply_adds_per_second": multiplied(figure),
                "weight_bytes_per_second": read_rate(figure),
                "over_int8": spread(figure.over_int8),
                "over_bf16": figure.over_bf16.map(spread),
                "over_bf16_tiles": figure.over_bf16_tiles.map(spread),
                "kernels": figure.kernels,
            })
        })
        .collect();
    json!({
        "threads": threads,
        "kernels": packed_kernels(),
        "read_bytes_per_second": read.per_second,
        "products": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_pairs_are_what_they_say() {
        assert_eq!(parse_shape("64x256"), Ok((64, 256)));
        assert_eq!(parse_pair("2:4"), Ok((DType::B2, 4)));
        for wrong in ["64", "64x100", "0x256", "x", "1000000x1000000"] {
            assert!(parse_shape(wrong).is_err(), "{wrong}");
        }
        for wrong in ["2", "0:1", "9:1", "1:9", "a:b"] {
            assert!(parse_pair(wrong).is_err(), "{wrong}");
        }
    }
}
