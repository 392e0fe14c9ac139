//! What models share of each other, and what it costs where they share more than is equal.

use std::path::PathBuf;

use clap::ValueEnum;
use sedge_bench::agreement;
use sedge_engine::CpuExecutor;
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::{KvType, PAGE_TOKENS, Team};
use sedge_models::{Model, SharedModel, Similar, Variant};

use crate::failure::Failure;
use crate::machine::{self, MachineArgs};
use crate::output::{self, ProgressLine};
use crate::table::table;

/// Tokens of a window of the text that costs are measured on.
const WINDOW: usize = 256;

/// What models share of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Share {
    /// Tensors that are equal to the last bit, and their part of each step
    Exact,
    /// Layers that are nearly equal as well: answers change (see --share-text)
    Approximate,
    /// Nothing: each model has an engine of its own
    Off,
}

/// Options of what is shared.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sharing")]
pub(crate) struct ShareArgs {
    /// What models share of each other
    #[arg(long, value_enum, value_name = "WHAT", default_value = "exact")]
    pub(crate) share: Share,

    /// With --share approximate: least cosine of two layers' weights
    #[arg(long, value_name = "COSINE", default_value = "0.98", value_parser = parse_cosine)]
    min_similarity: f64,

    /// With --share approximate: text on which its cost is measured and shown
    #[arg(long, value_name = "FILE", required_if_eq("share", "approximate"))]
    share_text: Option<PathBuf>,

    /// With --share approximate: most increase of a model's perplexity; a model that loses more
    /// keeps its own layers
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_loss: f64,
}

fn parse_cosine(text: &str) -> Result<f64, String> {
    let cosine = text.parse().ok().filter(|c| (0.0..=1.0).contains(c));
    cosine.ok_or_else(|| format!("{text:?} is not a number from 0 to 1"))
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let percent = number.filter(|p: &f64| p.is_finite() && *p >= 0.0);
    let percent = percent.ok_or_else(|| format!("{text:?} is not a percentage such as 1%"))?;
    Ok(percent / 100.0)
}

impl ShareArgs {
    /// Lets near layers serve for each other where that costs little enough, and shows what it
    /// costs. `names` are the members' names. What was shared.
    pub(crate) fn approximate(
        &self,
        model: &mut Model,
        names: &[&str],
        tokenizer: &Tokenizer,
        machine: &MachineArgs,
        team: &Team,
    ) -> Result<Vec<Similar>, Failure> {
        let Some(path) = self.share_text.as_ref().filter(|_| names.len() > 1) else {
            return Ok(Vec::new());
        };
        let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, &e))?;
        let tokens = tokenizer.encode(&text, false, false);
        let mut near = model.similar(team);
        near.retain(|similar| similar.cosine >= self.min_similarity);
        if near.is_empty() {
            output::note(format_args!(
                "sedge: no layers are as near as {}: only what is equal is shared",
                self.min_similarity
            ));
            return Ok(near);
        }
        let mut shared = Vec::new();
        let mut line = ProgressLine::new();
        let mut rows = vec![
            ["model", "layers", "cosine", "perplexity", "top-1", ""]
                .map(String::from)
                .to_vec(),
        ];
        for (member, name) in names.iter().enumerate().skip(1) {
            let of_member: Vec<Similar> = near
                .iter()
                .filter(|s| s.member == member)
                .copied()
                .collect();
            if of_member.is_empty() {
                continue;
            }
            line.show(
                member as u64,
                names.len() as u64,
                &format!("what sharing costs {name}"),
            );
            let cost = self.cost(model, &of_member, member, &tokens, machine)?;
            let allowed = cost.increase() <= self.max_loss;
            if allowed {
                of_member
                    .iter()
                    .for_each(|similar| model.substitute(similar));
                shared.extend(&of_member);
            }
            let [before, after] = cost.perplexities();
            let least = of_member.iter().map(|s| s.cosine).fold(1.0, f64::min);
            rows.push(vec![
                (*name).to_string(),
                layers(&of_member, names),
                format!("{least:.4}"),
                format!(
                    "{before:.3} to {after:.3} ({:+.2} %)",
                    100.0 * cost.increase()
                ),
                format!("{:.2} %", 100.0 * cost.top1()),
                if allowed { "shared" } else { "kept apart" }.to_string(),
            ]);
        }
        line.clear();
        output::note(format_args!(
            "sedge: layers of others in place of a model's own, measured on {}:\n{}",
            path.display(),
            table(&rows).trim_end()
        ));
        Ok(shared)
    }

    /// A member with its own layers, against the same with those of others.
    fn cost(
        &self,
        model: &Model,
        similar: &[Similar],
        member: usize,
        tokens: &[u32],
        machine: &MachineArgs,
    ) -> Result<sedge_bench::Agreement, Failure> {
        // A copy, so that what is packed to measure does not stay.
        let mut copy = model.clone();
        let approximate = copy.double(member);
        for similar in similar {
            copy.substitute(&Similar {
                member: approximate,
                ..*similar
            });
        }
        let team = Team::new(machine::threads(machine.threads));
        machine.weights.ready_file(None, &mut copy, &team)?;
        let config = copy.config();
        let window = WINDOW.min(config.context);
        let (pages, context) = (window.div_ceil(PAGE_TOKENS), config.context);
        let shared = SharedModel::new(copy);
        let mut executor = CpuExecutor::new(shared, team, KvType::F16, pages, context);
        let of = |member| Variant {
            member,
            adapter: None,
        };
        let (exact, near) = (of(member), of(approximate));
        let variants = [&exact, &near];
        agreement(&mut executor, variants, tokens, window, &mut |_, _| {}).ok_or_else(|| {
            Failure::new("--share-text: the text has no two tokens").hint("a text of some pages")
        })
    }
}

/// `3, 7 of base`.
fn layers(similar: &[Similar], names: &[&str]) -> String {
    let mut parts = Vec::new();
    for of_one in similar.chunk_by(|a, b| a.with == b.with) {
        let layers: Vec<String> = of_one.iter().map(|s| s.layer.to_string()).collect();
        parts.push(format!(
            "{} of {}",
            layers.join(", "),
            names[of_one[0].with]
        ));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_cosines_are_read() {
        assert_eq!(parse_percent("1%"), Ok(0.01));
        assert_eq!(parse_percent("0.5 %"), Ok(0.005));
        assert!(parse_percent("-1%").is_err() && parse_percent("nan").is_err());
        assert_eq!(parse_cosine("0.98"), Ok(0.98));
        assert!(parse_cosine("1.1").is_err());
    }

    #[test]
    fn layers_are_named_with_whose_they_are() {
        let similar = |layer, with| Similar {
            member: 2,
            layer,
            with,
            cosine: 1.0,
        };
        let all = [similar(3, 0), similar(7, 0), similar(8, 1)];
        assert_eq!(layers(&all, &["a", "b", "c"]), "3, 7 of a; 8 of b");
    }
}
