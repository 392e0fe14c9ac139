//! Known ways from pictures to inputs and from outputs to answers, as a table.

use sedge_formats::image::Filter;

use super::{Fit, LabelSet, TaskError};

/// In which order a pixel's colours are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red first, as most read pictures.
    Rgb,
    /// Blue first, as OpenCV does.
    Bgr,
}

/// What outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// A number for each class.
    Classes,
    /// YOLOX: for each place of three maps, offset and log size, objectness, classes.
    YoloX,
    /// YOLOv5: boxes in pixels, objectness, classes.
    YoloV5,
    /// YOLOv8 and later: a column for each box, in pixels, and its classes.
    YoloV8,
    /// SSDLite: classes (the first is nothing), and boxes relative to default ones.
    Ssd,
    /// A number for each class and pixel.
    Pixels,
    /// How likely each pixel is one of text.
    Text,
}

impl Reads {
    /// The shapes of outputs, in words.
    pub(super) fn shapes(self) -> &'static str {
        match self {
            Reads::Classes => "[1, classes]",
            Reads::YoloX => "[1, places of strides 8, 16 and 32, 5 + classes]",
            Reads::YoloV5 => "[1, boxes, 5 + classes]",
            Reads::YoloV8 => "[1, 4 + classes, boxes]",
            Reads::Ssd => "[1, boxes, classes] and [1, boxes, 4], six boxes a place",
            Reads::Pixels => "[1, classes, rows, columns]",
            Reads::Text => "[1, 1, rows, columns]",
        }
    }
}

/// How pictures become inputs and outputs become answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// How a picture gets the input's size.
    pub fit: Fit,
    /// How its pixels become fewer or more.
    pub filter: Filter,
    /// In which order colours are.
    pub channels: Channels,
    /// The input is `(byte · scale − mean) / std`.
    pub scale: f32,
    /// Of each channel, in the input's order.
    pub mean: [f32; 3],
    /// Of each channel, in the input's order.
    pub std: [f32; 3],
    /// What outputs are.
    pub reads: Reads,
    /// The classes, unless the model names them.
    pub labels: LabelSet,
    /// The least score of an answer.
    pub score: f32,
    /// The most that boxes of a class overlap.
    pub overlap: f32,
    /// Most answers.
    pub most: usize,
}

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// What classifiers of torchvision read.
const IMAGENET: Preset = Preset {
    name: "imagenet",
    fit: Fit::Crop {
        zoom: 256.0 / 224.0,
    },
    filter: Filter::Antialiased,
    channels: Channels::Rgb,
    scale: 1.0 / 255.0,
    mean: MEAN,
    std: STD,
    reads: Reads::Classes,
    labels: LabelSet::ImageNet,
    score: 0.0,
    overlap: 1.0,
    most: 5,
};

const YOLOX: Preset = Preset {
    name: "yolox",
    fit: Fit::Letterbox {
        fill: 114.0,
        centre: false,
    },
    filter: Filter::Plain,
    channels: Channels::Bgr,
    scale: 1.0,
    mean: [0.0; 3],
    std: [1.0; 3],
    reads: Reads::YoloX,
    labels: LabelSet::Coco,
    score: 0.3,
    overlap: 0.45,
    most: 300,
};

const YOLOV8: Preset = Preset {
    name: "yolov8",
    fit: Fit::Letterbox {
        fill: 114.0,
        centre: true,
    },
    channels: Channels::Rgb,
    scale: 1.0 / 255.0,
    reads: Reads::YoloV8,
    score: 0.25,
    overlap: 0.7,
    ..YOLOX
};

/// All presets.
const PRESETS: [Preset; 10] = [
    IMAGENET,
    Preset {
        name: "inception",
        mean: [0.5; 3],
        std: [0.5; 3],
        ..IMAGENET
    },
    Preset {
        name: "yolo-classify",
        fit: Fit::Crop { zoom: 1.0 },
        mean: [0.0; 3],
        std: [1.0; 3],
        ..IMAGENET
    },
    YOLOX,
    Preset {
        name: "yolov5",
        reads: Reads::YoloV5,
        overlap: 0.45,
        ..YOLOV8
    },
    YOLOV8,
    // torchvision measures with a least score of 0.001; what is shown needs a greater one.
    Preset {
        name: "ssdlite",
        fit: Fit::Stretch,
        mean: [0.5; 3],
        std: [0.5; 3],
        reads: Reads::Ssd,
        labels: LabelSet::Coco91,
        score: 0.3,
        overlap: 0.55,
        ..YOLOV8
    },
    Preset {
        name: "segment",
        fit: Fit::Stretch,
        reads: Reads::Pixels,
        labels: LabelSet::Voc,
        ..IMAGENET
    },
    // PaddleOCR subtracts the means of red, green and blue from blue, green and red.
    Preset {
        name: "text",
        fit: Fit::Stretch,
        filter: Filter::Plain,
        channels: Channels::Bgr,
        reads: Reads::Text,
        labels: LabelSet::Text,
        score: 0.6,
        most: 1000,
        ..IMAGENET
    },
    Preset {
        name: "text-direction",
        fit: Fit::Letterbox {
            fill: 127.5,
            centre: false,
        },
        filter: Filter::Plain,
        channels: Channels::Bgr,
        mean: [0.5; 3],
        std: [0.5; 3],
        labels: LabelSet::Direction,
        ..IMAGENET
    },
];

/// All presets there are.
pub fn presets() -> &'static [Preset] {
    static ALL: [Preset; PRESETS.len()] = PRESETS;
    &ALL
}

/// The names of all, for errors.
pub(super) fn names() -> String {
    let names: Vec<&str> = presets().iter().map(|preset| preset.name).collect();
    names.join(", ")
}

/// The preset of this name.
pub(super) fn named(name: &str) -> Result<Preset, TaskError> {
    let found = presets().iter().find(|preset| preset.name == name);
    found.cloned().ok_or_else(|| TaskError::Unknown {
        name: name.to_owned(),
    })
}
