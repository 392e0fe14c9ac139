//! How tokens are chosen: what the command line says, else what the model's author says, else ours.

use sedge_engine::Sampling;
use sedge_models::Recommended;

use crate::failure::Failure;

/// Temperature where neither the user nor the model says one.
pub(crate) const TEMPERATURE: f32 = 0.8;
/// Top-p where neither the user nor the model says one.
pub(crate) const TOP_P: f32 = 0.95;

/// Sampling options of `sedge run`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token; higher is more varied [default: the model's, else 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Choose among the fewest tokens whose probabilities sum to P [default: the model's, else 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Choose among the N likeliest tokens; 0 for all [default: the model's, else 0]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,

    /// Choose among tokens at least this share as likely as the likeliest [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Repeats the same choices on every run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The model's settings with the command line's over them.
    pub(crate) fn over(&self, mut defaults: Sampling) -> Sampling {
        defaults.temperature = self.temperature.unwrap_or(defaults.temperature);
        defaults.top_p = self.top_p.unwrap_or(defaults.top_p);
        defaults.top_k = self.top_k.unwrap_or(defaults.top_k);
        defaults.min_p = self.min_p.unwrap_or(defaults.min_p);
        defaults.seed = self.seed.or(defaults.seed);
        defaults
    }
}

/// What the model's author recommends, with our own settings where nothing is said. A model
/// that names a temperature was tuned for what it names, so it is not cut by our top-p.
pub(crate) fn of_model(author: &Recommended) -> Sampling {
    let top_p = author.temperature.map_or(TOP_P, |_| 1.0);
    Sampling {
        temperature: author.temperature.unwrap_or(TEMPERATURE),
        top_p: author.top_p.unwrap_or(top_p),
        top_k: author.top_k.unwrap_or(0),
        repetition_penalty: author.repetition_penalty.unwrap_or(1.0),
        ..Sampling::default()
    }
}

/// Changes one setting by its name, as `/set` in a chat does.
pub(crate) fn set(sampling: &mut Sampling, name: &str, value: &str) -> Result<(), Failure> {
    let wrong = || Failure::new(format_args!("{value:?} is not a value of {name}"));
    let float = || value.parse::<f32>().map_err(|_| wrong());
    let whole = || value.parse::<u64>().map_err(|_| wrong());
    match name {
        "temperature" => sampling.temperature = float()?,
        "top_p" | "top-p" => sampling.top_p = float()?,
        "min_p" | "min-p" => sampling.min_p = float()?,
        "top_k" | "top-k" => sampling.top_k = whole()? as usize,
        "seed" => sampling.seed = Some(whole()?),
        _ => {
            return Err(Failure::new(format_args!("{name:?} is no setting"))
                .hint("temperature, top_p, top_k, min_p, seed or max_tokens"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_model_and_the_model_before_us() {
        let ours = of_model(&Recommended::default());
        assert_eq!(
            (ours.temperature, ours.top_p, ours.top_k),
            (TEMPERATURE, TOP_P, 0)
        );

        let models = of_model(&Recommended {
            temperature: Some(0.0),
            ..Recommended::default()
        });
        assert_eq!((models.temperature, models.top_p), (0.0, 1.0));

        let args = SamplingArgs {
            temperature: Some(0.5),
            seed: Some(7),
            ..SamplingArgs::default()
        };
        let merged = args.over(models);
        assert_eq!(
            (merged.temperature, merged.top_p, merged.seed),
            (0.5, 1.0, Some(7))
        );
    }

    #[test]
    fn set_takes_known_names_and_numbers_only() {
        let mut s = Sampling::default();
        assert!(set(&mut s, "temperature", "0.7").is_ok());
        assert!(set(&mut s, "top-k", "40").is_ok());
        assert_eq!((s.temperature, s.top_k), (0.7, 40));
        assert!(set(&mut s, "temperature", "hot").is_err());
        assert!(set(&mut s, "colour", "1").is_err());
    }
}
