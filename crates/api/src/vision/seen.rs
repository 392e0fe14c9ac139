//! Answers as JSON: the server's, and those of `sedge see --json`.

use std::time::Duration;

use sedge_formats::image::Image;
use sedge_vision::task::{Answer, Mask};
use serde::Serialize;

/// What a network sees in a picture: `width`, `height`, `time_ms`, and `labels`, `boxes` or
/// `mask`.
#[derive(Debug, Serialize)]
pub struct Seen {
    width: usize,
    height: usize,
    #[serde(flatten)]
    answer: Report,
    time_ms: f64,
}

/// By its key, one of what networks say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Labels(Vec<Label>),
    Boxes(Vec<Found>),
    Mask(Pixels),
}

#[derive(Debug, Serialize)]
struct Label {
    class: usize,
    label: String,
    score: f64,
}

#[derive(Debug, Serialize)]
struct Found {
    class: usize,
    label: String,
    score: f64,
    /// Left, top, right, bottom in pixels of the picture.
    #[serde(rename = "box")]
    bounds: [f64; 4],
}

#[derive(Debug, Serialize)]
struct Pixels {
    /// Those that are there, largest first.
    classes: Vec<Share>,
    /// Row after row from the top, in turn a class and how many pixels in a row have it.
    runs: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct Share {
    class: usize,
    label: String,
    /// Of all pixels.
    share: f64,
}

impl Seen {
    /// What a network said of a picture, and how long that took.
    pub fn new(image: &Image, answer: &Answer, time: Duration) -> Seen {
        let answer = match answer {
            Answer::Labels(labels) => {
                let label = |x: &sedge_vision::task::Label| Label {
                    class: x.class,
                    label: x.name.clone(),
                    score: rounded(x.score, 1e5),
                };
                Report::Labels(labels.iter().map(label).collect())
            }
            Answer::Boxes(boxes) => {
                let found = |x: &sedge_vision::task::Found| Found {
                    class: x.class,
                    label: x.name.clone(),
                    score: rounded(x.score, 1e5),
                    bounds: x.bounds.map(|x| rounded(x, 1e1)),
                };
                Report::Boxes(boxes.iter().map(found).collect())
            }
            Answer::Mask(mask) => {
                let share = |(class, share): (u16, f32)| Share {
                    class: class.into(),
                    label: mask.names[usize::from(class)].clone(),
                    share: rounded(share, 1e5),
                };
                Report::Mask(Pixels {
                    classes: mask.shares().into_iter().map(share).collect(),
                    runs: runs(mask),
                })
            }
        };
        Seen {
            width: image.width,
            height: image.height,
            answer,
            time_ms: (time.as_secs_f64() * 1e5).round() / 100.0,
        }
    }
}

/// As many digits as mean something.
fn rounded(x: f32, unit: f64) -> f64 {
    (f64::from(x) * unit).round() / unit
}

fn runs(mask: &Mask) -> Vec<u32> {
    let runs = mask.classes.chunk_by(|a, b| a == b);
    // Pictures have fewer than 2^32 pixels by the limits of their readers.
    runs.flat_map(|run| [u32::from(run[0]), run.len() as u32])
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mask_is_its_runs_and_shares() {
        let image = Image {
            width: 3,
            height: 2,
            pixels: vec![0; 18],
        };
        let mask = Mask {
            width: 3,
            height: 2,
            classes: vec![0, 2, 2, 2, 2, 0],
            names: ["ground", "sky", "tree"].map(str::to_owned).into(),
        };
        let time = Duration::from_micros(1234);
        let seen = serde_json::to_value(Seen::new(&image, &Answer::Mask(mask), time)).unwrap();
        let expected = json!({
            "width": 3,
            "height": 2,
            "time_ms": 1.23,
            "mask": {
                "classes": [
                    {"class": 2, "label": "tree", "share": 0.66667},
                    {"class": 0, "label": "ground", "share": 0.33333},
                ],
                "runs": [0, 1, 2, 4, 0, 1],
            },
        });
        assert_eq!(seen, expected);
    }
}
