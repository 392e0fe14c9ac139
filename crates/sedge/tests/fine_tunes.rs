//! Fine-tunes in one process: what they share, and that nobody's answer shows it.

mod common;

use std::path::Path;

use common::{PROMPTS, Serving, complaint, done, run};

/// Writes a fine-tune of the built-in model that differs in some layers.
fn tune(folder: &Path, name: &str, layers: &str) -> String {
    let path = folder.join(format!("{name}.gguf"));
    let path = path.to_str().unwrap().to_owned();
    let perturb = format!("layers={layers}");
    let from = ["synth", "--from", "seedling", "--perturb", &perturb];
    done(run(&[&from[..], &["--seed", "7", &path]].concat()));
    path
}

#[test]
fn fine_tunes_answer_together_as_each_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = [("a", "3,7"), ("b", "0")].map(|(name, layers)| tune(folder.path(), name, layers));
    let models = ["-m", "seedling", "-m", &tuned[0], "-m", &tuned[1]];
    let together = Serving::start(&models);
    let shared = "shared     3 models hold";
    assert!(together.greeting.contains(shared), "{}", together.greeting);
    let apart = Serving::start(&[&models[..], &["--share", "off"]].concat());
    assert!(!apart.greeting.contains(shared), "{}", apart.greeting);

    let names = ["seedling", "a", "b"];
    let alone = names.map(|name| apart.answer(name, PROMPTS[0]));
    assert!(alone[0] != alone[1] && alone[0] != alone[2] && alone[1] != alone[2]);
    // In one batch, to the last bit of every log-probability.
    let together = &together;
    std::thread::scope(|scope| {
        for (name, alone) in names.iter().zip(&alone) {
            for _ in 0..3 {
                scope.spawn(move || {
                    assert_eq!(together.answer(name, PROMPTS[0]), *alone, "{name}");
                });
            }
        }
    });
}

#[test]
fn near_layers_serve_for_each_other_where_that_costs_little() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = tune(folder.path(), "tuned", "3");
    let text = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../assets/seedling/heldout.txt"
    );
    let short = folder.path().join("text.txt");
    let part: String = std::fs::read_to_string(text)
        .unwrap()
        .chars()
        .take(4000)
        .collect();
    std::fs::write(&short, part).unwrap();
    let short = short.to_str().unwrap();
    let models = ["-m", "seedling", "-m", &tuned, "--share", "approximate"];

    let wanting = complaint(run(&[&["serve"][..], &models].concat()), 2);
    assert!(wanting.contains("--share-text"), "{wanting}");

    let own = Serving::start(&["-m", "seedling", "-m", &tuned]);
    let (base, exact) = (
        own.answer("seedling", PROMPTS[1]),
        own.answer("tuned", PROMPTS[1]),
    );
    assert_ne!(base, exact);
    let limits = |cosine| {
        let text = ["--share-text", short, "--max-loss", "50%"];
        [&models[..], &text, &["--min-similarity", cosine]].concat()
    };
    let near = Serving::start(&limits("0.9"));
    assert_eq!(near.answer("tuned", PROMPTS[1]), base);
    // What is not near enough stays apart.
    let kept = Serving::start(&limits("0.99999"));
    assert_eq!(kept.answer("tuned", PROMPTS[1]), exact);
}
