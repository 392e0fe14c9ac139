//! What a network is for: pictures become its inputs, and its outputs become answers in the
//! picture's own pixels. How, a [`Preset`] says.

mod boxes;
mod draw;
mod frame;
mod guess;
mod labels;
mod mask;
mod preset;
mod ssd;
mod text;
mod yolo;

use sedge_formats::image::Image;

use crate::graph::Graph;
use boxes::Candidate;
pub use boxes::overlap;
pub use draw::draw;
pub use frame::{Fit, Frame};
pub use labels::{LabelSet, Labels};
pub use mask::Mask;
pub use preset::{Channels, Preset, Reads, presets};

/// What a network says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// What it shows, most likely first.
    Labels(Vec<Label>),
    /// What is where, most likely first.
    Boxes(Vec<Found>),
    /// What each pixel is.
    Mask(Mask),
}

/// What a picture may show.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Number of the class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// How likely, from 0 to 1.
    pub score: f32,
}

/// A thing and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Number of the class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// How likely, from 0 to 1.
    pub score: f32,
    /// Left, top, right, bottom in pixels of the picture.
    pub bounds: [f32; 4],
}

/// Why a picture cannot be read or outputs have no meaning.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// There is no preset of this name.
    #[error("there is no preset {name:?}; there are {}", preset::names())]
    Unknown {
        /// The name.
        name: String,
    },
    /// What pictures become and what outputs mean cannot be told.
    #[error(
        "{why}, which several presets could be or none; name one of {}",
        preset::names()
    )]
    Ambiguous {
        /// What the graph has.
        why: String,
    },
    /// The graph does not read one picture of three colours.
    #[error("the graph reads {found:?}, not one picture [1, 3, rows, columns]")]
    Input {
        /// Shapes of its inputs.
        found: Vec<Vec<usize>>,
    },
    /// Outputs do not have the shapes that the preset reads.
    #[error("outputs are {found:?}; preset {preset} reads {expected}")]
    Outputs {
        /// The preset.
        preset: &'static str,
        /// Shapes.
        found: Vec<Vec<usize>>,
        /// What it reads.
        expected: &'static str,
    },
    /// There are not as many numbers as the shape says.
    #[error("output {output} has {found} numbers, its shape says {expected}")]
    Length {
        /// Which output.
        output: usize,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A network has computed something that is no number.
    #[error("output {output} holds {value} at {at}")]
    NotFinite {
        /// Which output.
        output: usize,
        /// Infinity, or not a number.
        value: f32,
        /// Where.
        at: usize,
    },
    /// A picture without pixels, or with fewer than its size takes.
    #[error("a picture of {width} × {height} with {bytes} bytes")]
    Picture {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes that it has.
        bytes: usize,
    },
}

/// What a graph is used for.
#[derive(Clone, Debug)]
pub struct Task {
    /// What pictures become, and what outputs are.
    pub preset: Preset,
    /// Why this preset: that it was asked for, or what in the graph it was seen from.
    pub why: String,
    /// Names of classes.
    pub labels: Labels,
    /// Answers that are less likely are left out.
    pub score: f32,
    /// Of boxes of one class that overlap by more (area of both over area of either), the most
    /// likely one stays.
    pub overlap: f32,
    /// Most answers.
    pub most: usize,
    /// Columns and rows of the graph's input.
    size: [usize; 2],
    outputs: Vec<Vec<usize>>,
}

/// Rows or columns of an input: pictures are resized to cover it, which takes memory by the
/// square of the longer side.
const LONGEST: usize = 8192;

impl Task {
    /// What the graph is for, by the preset of this name, by what its metadata say, or by the
    /// shapes of its inputs and outputs.
    ///
    /// # Errors
    /// When there is no such preset, none can be told, or the graph does not have its shapes.
    pub fn of(graph: &Graph, preset: Option<&str>) -> Result<Task, TaskError> {
        let shapes = |values: &[crate::Value]| -> Vec<Vec<usize>> {
            values.iter().map(|&x| graph.shape(x).to_vec()).collect()
        };
        let (inputs, outputs) = (shapes(graph.inputs()), shapes(graph.outputs()));
        let size = match &inputs[..] {
            [input] => match input[..] {
                [1, 3, h, w] if (1..=LONGEST).contains(&h) && (1..=LONGEST).contains(&w) => [w, h],
                _ => return Err(TaskError::Input { found: inputs }),
            },
            _ => return Err(TaskError::Input { found: inputs }),
        };
        let (preset, why) = match preset {
            Some(name) => (preset::named(name)?, "it was asked for".to_owned()),
            None => guess::preset(&graph.metadata, size, &outputs)?,
        };
        let Some(classes) = classes(&preset, size, &outputs) else {
            return Err(TaskError::Outputs {
                preset: preset.name,
                found: outputs,
                expected: preset.reads.shapes(),
            });
        };
        let labels =
            Labels::of(&graph.metadata).unwrap_or_else(|| Labels::known(preset.labels, classes));
        Ok(Task {
            why,
            labels,
            score: preset.score,
            overlap: preset.overlap,
            most: preset.most,
            preset,
            size,
            outputs,
        })
    }

    /// The graph's input, `[1, 3, rows, columns]`, and how places in it are places in the picture.
    ///
    /// # Errors
    /// When the picture has no pixels.
    pub fn input(&self, image: &Image) -> Result<(Vec<f32>, Frame), TaskError> {
        let (width, height) = (image.width, image.height);
        let bytes = image.pixels.len();
        let whole = width.checked_mul(height).and_then(|n| n.checked_mul(3)) == Some(bytes);
        let sides = [width, height].iter().all(|&x| u32::try_from(x).is_ok());
        if bytes == 0 || !whole || !sides {
            return Err(TaskError::Picture {
                width,
                height,
                bytes,
            });
        }
        let (input, frame) = frame::fit(&self.preset, self.size, image);
        Ok((input, frame))
    }

    /// What the graph's outputs say of the picture.
    ///
    /// # Errors
    /// When they are not those of the graph, or hold what is no number.
    pub fn answer<T: AsRef<[f32]>>(
        &self,
        outputs: &[T],
        frame: &Frame,
    ) -> Result<Answer, TaskError> {
        if outputs.len() != self.outputs.len() {
            return Err(TaskError::Outputs {
                preset: self.preset.name,
                found: outputs.iter().map(|x| vec![x.as_ref().len()]).collect(),
                expected: self.preset.reads.shapes(),
            });
        }
        let mut pairs = Vec::with_capacity(outputs.len());
        for (output, (values, shape)) in outputs.iter().zip(&self.outputs).enumerate() {
            let values = values.as_ref();
            let (found, expected) = (values.len(), shape.iter().product());
            if found != expected {
                return Err(TaskError::Length {
                    output,
                    found,
                    expected,
                });
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                return Err(TaskError::NotFinite {
                    output,
                    value: values[at],
                    at,
                });
            }
            pairs.push((values, &shape[..]));
        }
        let (x, shape) = pairs[0];
        let score = self.score;
        Ok(match self.preset.reads {
            Reads::Classes => Answer::Labels(self.likely(x)),
            Reads::YoloX => self.boxes(yolo::x(x, shape, self.size, score), frame),
            Reads::YoloV5 => self.boxes(yolo::v5(x, shape, score), frame),
            Reads::YoloV8 => self.boxes(yolo::v8(x, shape, score), frame),
            Reads::Ssd => {
                let (boxes, logits) = match shape[2] == 4 && pairs[1].1[2] != 4 {
                    true => (x, pairs[1]),
                    false => (pairs[1].0, pairs[0]),
                };
                self.boxes(ssd::read(boxes, logits, self.size, score), frame)
            }
            Reads::Pixels => {
                Answer::Mask(mask::most_likely(x, shape, self.size, frame, &self.labels))
            }
            Reads::Text => self.boxes(text::boxes(x, shape, self.size, score), frame),
        })
    }

    /// The most likely classes, of probabilities or of logits.
    fn likely(&self, x: &[f32]) -> Vec<Label> {
        let mut scores = x.to_vec();
        let sum: f32 = scores.iter().sum();
        if scores.iter().any(|&x| x < 0.0) || !(0.5..1.5).contains(&sum) {
            sedge_kernels::softmax_in_place(&mut scores);
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let label = |class| Label {
            class,
            name: self.labels.name(class),
            score: scores[class],
        };
        let likely = order.into_iter().take(self.most).map(label);
        likely.filter(|label| label.score >= self.score).collect()
    }

    /// The boxes that stay, in the picture's pixels.
    fn boxes(&self, found: Vec<Candidate>, frame: &Frame) -> Answer {
        let kept = boxes::suppress(found, self.overlap, self.most);
        let placed = kept.into_iter().filter_map(|x| {
            let bounds = frame.picture(x.bounds);
            (bounds[0] < bounds[2] && bounds[1] < bounds[3]).then(|| Found {
                class: x.class,
                name: self.labels.name(x.class),
                score: x.score,
                bounds,
            })
        });
        Answer::Boxes(placed.collect())
    }
}

/// How many classes the outputs tell apart; `None` when the preset does not read such outputs.
fn classes(preset: &Preset, size: [usize; 2], outputs: &[Vec<usize>]) -> Option<usize> {
    let shapes: Vec<&[usize]> = outputs.iter().map(|x| &x[..]).collect();
    match (preset.reads, &shapes[..]) {
        (Reads::Classes, [[1, n] | [1, n, 1, 1]]) if *n > 0 => Some(*n),
        (Reads::YoloX, [[1, rows, n]]) if *rows == yolo::places(size) && *n > 5 => Some(n - 5),
        (Reads::YoloV5, [[1, _, n]]) if *n > 5 => Some(n - 5),
        (Reads::YoloV8, [[1, n, _]]) if *n > 4 => Some(n - 4),
        (Reads::Ssd, [[1, a, 4], [1, b, n]] | [[1, b, n], [1, a, 4]])
            if a == b && *a == ssd::count(size) && *n > 1 =>
        {
            Some(*n)
        }
        (Reads::Pixels, [[1, n, h, w]]) if *n > 1 && *n <= 65_536 && h * w > 0 => Some(*n),
        (Reads::Text, [[1, 1, h, w]]) if h * w > 0 => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::{self, Options};

    fn grey(width: usize, height: usize) -> Image {
        Image {
            width,
            height,
            pixels: vec![128; width * height * 3],
        }
    }

    #[test]
    fn networks_of_here_say_what_they_are_for() {
        for name in nets::names() {
            let options = Options {
                width: 0.25,
                ..Options::default()
            };
            let graph = nets::build(name, options).unwrap();
            let task = Task::of(&graph, None).unwrap();
            let (input, frame) = task.input(&grey(50, 30)).unwrap();
            let shape = graph.shape(graph.inputs()[0]);
            assert_eq!(input.len(), shape.iter().product::<usize>(), "{name}");
            let of = |&x: &crate::Value| vec![0.0; graph.shape(x).iter().product()];
            let outputs: Vec<Vec<f32>> = graph.outputs().iter().map(of).collect();
            task.answer(&outputs, &frame).unwrap();
        }
    }

    #[test]
    fn classes_are_the_likeliest_first() {
        let options = Options {
            classes: Some(3),
            width: 0.25,
            ..Options::default()
        };
        let net = nets::build("mobilenet-v1", options).unwrap();
        let mut task = Task::of(&net, None).unwrap();
        task.most = 2;
        let (_, frame) = task.input(&grey(2, 2)).unwrap();
        let Answer::Labels(labels) = task.answer(&[[0.0, 2.0, 1.0]], &frame).unwrap() else {
            panic!("a classifier names classes");
        };
        let found: Vec<usize> = labels.iter().map(|x| x.class).collect();
        assert_eq!(found, [1, 2]);
        assert_eq!(labels[0].name, "class 1");
        assert!((labels[0].score - 0.665).abs() < 1e-3);
        let Answer::Labels(labels) = task.answer(&[[0.5, 0.25, 0.25]], &frame).unwrap() else {
            panic!("a classifier names classes");
        };
        assert_eq!(labels[0].score, 0.5, "probabilities stay what they are");
    }

    #[test]
    fn graphs_of_another_kind_are_refused() {
        let of = |shape: &[usize], preset| {
            let mut graph = Graph::new();
            let x = graph.input("x", shape);
            graph.output(x);
            Task::of(&graph, preset).unwrap_err()
        };
        let picture = [1, 3, 64, 64];
        for shape in [
            &[1, 1, 64, 64][..],
            &[2, 3, 64, 64],
            &[1, 3],
            &[1, 3, 0, 64],
        ] {
            assert!(matches!(of(shape, None), TaskError::Input { .. }));
        }
        for preset in presets().iter().filter(|x| x.reads != Reads::Pixels) {
            let error = of(&picture, Some(preset.name));
            assert!(matches!(error, TaskError::Outputs { .. }), "{error}");
        }
        let error = of(&picture, Some("yolo-nine"));
        assert!(error.to_string().contains("yolov8, "), "{error}");
    }

    #[test]
    fn bad_pictures_and_outputs_are_errors() {
        let net = nets::build(
            "ssdlite-mobilenet-v2",
            Options {
                width: 0.25,
                classes: Some(2),
                ..Options::default()
            },
        )
        .unwrap();
        let task = Task::of(&net, None).unwrap();
        assert!(matches!(
            task.input(&grey(0, 5)),
            Err(TaskError::Picture { .. })
        ));
        let mut short = grey(4, 4);
        short.pixels.pop();
        assert!(matches!(task.input(&short), Err(TaskError::Picture { .. })));
        let (_, frame) = task.input(&grey(4, 4)).unwrap();
        let mut outputs = vec![vec![0.0; 3234 * 2], vec![0.0; 3234 * 4]];
        assert!(task.answer(&outputs, &frame).is_ok());
        assert!(matches!(
            task.answer(&outputs[..1], &frame),
            Err(TaskError::Outputs { .. })
        ));
        outputs[1][7] = f32::NAN;
        assert!(matches!(
            task.answer(&outputs, &frame),
            Err(TaskError::NotFinite {
                output: 1,
                at: 7,
                ..
            })
        ));
        outputs[1].pop();
        assert!(matches!(
            task.answer(&outputs, &frame),
            Err(TaskError::Length { output: 1, .. })
        ));
    }
}
