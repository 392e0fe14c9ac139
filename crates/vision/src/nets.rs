//! Networks written here: tables of layers, and a short forward function for each that turns its
//! table into a [`Graph`]. Layers, names and conventions are torchvision's where it has the
//! network, so that its checkpoints fit.

mod builder;
mod checkpoint;
mod lraspp;
mod mobilenet;
mod random;
mod raspp;
mod resnet;
mod ssdlite;

use sedge_formats::safetensors::Checkpoint;

use crate::graph::{Graph, GraphError};
use builder::Builder;
pub use random::randomize;
pub(crate) use ssdlite::ANCHORS;

/// Where the weights of a network come from.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Random ones, as [`randomize`] makes them.
    Random {
        /// Start of the random numbers.
        seed: u64,
    },
    /// A checkpoint with torchvision's names. Batch norms are folded into the products.
    Checkpoint(Checkpoint),
}

/// What a network is built with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Channels of all layers are multiplied with it and rounded to multiples of 8.
    pub width: f32,
    /// Classes that it tells apart, the background among them where there is one; `None` for as
    /// many as the data set has that the network is known from.
    pub classes: Option<usize>,
    /// Rows and columns of its input; `None` for what it is known from.
    pub size: Option<[usize; 2]>,
    /// Its weights.
    pub weights: Weights,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            width: 1.0,
            classes: None,
            size: None,
            weights: Weights::Random { seed: 0 },
        }
    }
}

/// Why a network cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no network of this name.
    #[error("there is no network {name:?}; there are {}", names().join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// An option is outside of what makes sense.
    #[error("{option} of {value}: it must be {range}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was asked for.
        value: String,
        /// What can be.
        range: &'static str,
    },
    /// The checkpoint has no tensor of this name.
    #[error("the checkpoint has no tensor {name:?}")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor of the checkpoint has another size.
    #[error("tensor {name:?} is {found:?}; the network has {expected:?}")]
    Size {
        /// The tensor.
        name: String,
        /// Its sizes.
        found: Vec<usize>,
        /// What they should be.
        expected: Vec<usize>,
    },
    /// Bytes of a tensor are not those of its type.
    #[error("tensor {name:?}: {error}")]
    Codec {
        /// The tensor.
        name: String,
        /// What is wrong.
        error: sedge_kernels::CodecError,
    },
    /// Layers do not fit each other, as when the input is too small.
    #[error(transparent)]
    Graph(Box<GraphError>),
}

impl From<GraphError> for NetError {
    fn from(error: GraphError) -> NetError {
        NetError::Graph(Box::new(error))
    }
}

/// A network that can be built.
struct Net {
    name: &'static str,
    /// The preset that its inputs and outputs follow.
    preset: &'static str,
    classes: usize,
    size: usize,
    forward: fn(&mut Builder, &Sizes) -> Result<(), NetError>,
}

/// What the forward functions are told.
pub(crate) struct Sizes {
    pub(crate) width: f32,
    pub(crate) classes: usize,
    pub(crate) input: [usize; 2],
}

impl Sizes {
    /// Channels of a layer that has `channels` at width 1: the nearest multiple of 8, or the next
    /// one when that would take more than a tenth away.
    pub(crate) fn scaled(&self, channels: usize) -> usize {
        divisible(channels as f64 * f64::from(self.width))
    }
}

pub(crate) fn divisible(channels: f64) -> usize {
    let near = ((channels + 4.0) as usize / 8 * 8).max(8);
    match (near as f64) < 0.9 * channels {
        true => near + 8,
        false => near,
    }
}

#[rustfmt::skip]
const NETS: [Net; 12] = [
    Net { name: "mobilenet-v1", preset: "imagenet", classes: 1000, size: 224, forward: mobilenet::v1 },
    Net { name: "mobilenet-v2", preset: "imagenet", classes: 1000, size: 224, forward: mobilenet::v2 },
    Net { name: "mobilenet-v3-large", preset: "imagenet", classes: 1000, size: 224, forward: mobilenet::v3_large },
    Net { name: "mobilenet-v3-small", preset: "imagenet", classes: 1000, size: 224, forward: mobilenet::v3_small },
    Net { name: "resnet-18", preset: "imagenet", classes: 1000, size: 224, forward: resnet::resnet18 },
    Net { name: "resnet-50", preset: "imagenet", classes: 1000, size: 224, forward: resnet::resnet50 },
    Net { name: "ssdlite-mobilenet-v2", preset: "ssdlite", classes: 91, size: 320, forward: ssdlite::on_v2 },
    Net { name: "ssdlite-mobilenet-v3-large", preset: "ssdlite", classes: 91, size: 320, forward: ssdlite::on_v3 },
    Net { name: "lraspp-mobilenet-v3-large", preset: "segment", classes: 21, size: 512, forward: lraspp::lraspp },
    Net { name: "raspp-mobilenet-v3-large", preset: "segment", classes: 21, size: 512, forward: raspp::raspp },
    Net { name: "lraspp-mobilenet-v3-small", preset: "segment", classes: 21, size: 512, forward: lraspp::lraspp_small },
    Net { name: "raspp-mobilenet-v2", preset: "segment", classes: 21, size: 512, forward: raspp::raspp_v2 },
];

/// The networks that [`build`] knows.
pub fn names() -> Vec<&'static str> {
    NETS.iter().map(|net| net.name).collect()
}

/// Builds a network. Its input is `input`, `[1, 3, rows, columns]`; its outputs are `logits`
/// (`[1, classes]`, or `[1, classes, rows, columns]` of segmentation), or for detection `logits`
/// `[1, boxes, classes]` and `boxes` `[1, boxes, 4]`.
///
/// # Errors
/// When there is no such network, an option makes no sense, or the checkpoint does not fit.
pub fn build(name: &str, options: Options) -> Result<Graph, NetError> {
    let net = NETS.iter().find(|net| net.name == name);
    let net = net.ok_or_else(|| NetError::Unknown {
        name: name.to_owned(),
    })?;
    let sizes = Sizes {
        width: options.width,
        classes: options.classes.unwrap_or(net.classes),
        input: options.size.unwrap_or([net.size; 2]),
    };
    let refused = |option, value: String, range| {
        Err(NetError::Option {
            option,
            value,
            range,
        })
    };
    if !(0.05..=8.0).contains(&sizes.width) {
        return refused("width", sizes.width.to_string(), "from 0.05 to 8");
    }
    if !(1..=100_000).contains(&sizes.classes) {
        return refused("classes", sizes.classes.to_string(), "from 1 to 100,000");
    }
    if !sizes.input.iter().all(|size| (1..=8192).contains(size)) {
        return refused("size", format!("{:?}", sizes.input), "from 1 to 8192");
    }

    let (checkpoint, seed) = match options.weights {
        Weights::Random { seed } => (None, Some(seed)),
        Weights::Checkpoint(checkpoint) => (Some(checkpoint), None),
    };
    let mut builder = Builder::new(checkpoint);
    (net.forward)(&mut builder, &sizes)?;
    let mut graph = builder.graph;
    graph
        .metadata
        .push(("sedge.preset".to_owned(), net.preset.to_owned()));
    if let Some(seed) = seed {
        randomize(&mut graph, seed);
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;

    fn built(name: &str, width: f32) -> Graph {
        let options = Options {
            width,
            ..Options::default()
        };
        build(name, options).unwrap()
    }

    /// Millions.
    fn millions(n: u64) -> f64 {
        n as f64 / 1e6
    }

    fn near(name: &str, what: &str, found: f64, expected: f64) {
        let far = (found / expected - 1.0).abs();
        assert!(far < 0.02, "{name}: {found} million {what}, not {expected}");
    }

    /// The papers' and torchvision's figures: products and weights, in millions.
    #[test]
    fn products_and_weights_are_the_published_ones() {
        for (name, width, macs, weights) in [
            ("mobilenet-v1", 1.0, 569.0, 4.2),
            ("mobilenet-v1", 0.5, 149.0, 1.3),
            ("mobilenet-v2", 1.0, 300.8, 3.47),
            ("mobilenet-v2", 1.4, 582.0, 6.06),
            ("mobilenet-v3-large", 1.0, 216.6, 5.46),
            ("mobilenet-v3-small", 1.0, 56.5, 2.53),
            ("resnet-18", 1.0, 1814.0, 11.68),
            ("resnet-50", 1.0, 4089.0, 25.5),
        ] {
            let graph = built(name, width);
            near(name, "products", millions(graph.macs()), macs);
            near(name, "weights", millions(graph.weights()), weights);
            assert_eq!(graph.shape(graph.outputs()[0]), [1, 1000]);
        }
    }

    /// torchvision's figures; and the V2 paper's products, with three more boxes at each of the
    /// 400 places of the first map, which its implementation leaves out.
    #[test]
    fn detectors_have_3234_boxes() {
        let more = 400.0 * 3.0 * 95.0 * 576.0 / 1e6;
        for (name, macs) in [
            ("ssdlite-mobilenet-v3-large", 583.0),
            ("ssdlite-mobilenet-v2", 800.0 + more),
        ] {
            let graph = built(name, 1.0);
            let [logits, boxes] = graph.outputs() else {
                panic!("{name} has two outputs");
            };
            assert_eq!(graph.shape(*logits), [1, 3234, 91]);
            assert_eq!(graph.shape(*boxes), [1, 3234, 4]);
            near(name, "products", millions(graph.macs()), macs);
        }
        let weights = built("ssdlite-mobilenet-v3-large", 1.0).weights();
        near("ssdlite", "weights", millions(weights), 3.42);
    }

    #[test]
    fn segmentation_is_as_large_as_the_picture() {
        for name in names().into_iter().filter(|name| name.contains("raspp")) {
            let options = Options {
                size: Some([160, 224]),
                ..Options::default()
            };
            let graph = build(name, options).unwrap();
            assert_eq!(graph.shape(graph.outputs()[0]), [1, 21, 160, 224]);
        }
    }

    #[test]
    fn every_network_has_every_width() {
        for name in names() {
            for width in [0.25, 0.75] {
                let graph = built(name, width);
                assert!(graph.macs() > 0, "{name}");
                let sharp = |node: &crate::Node| !matches!(&node.op, Op::Conv(conv) if conv.weights.to_float().iter().any(|w| !w.is_finite()));
                assert!(graph.nodes().iter().all(sharp), "{name} × {width}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let with = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            build("mobilenet-v2", options).unwrap_err().to_string()
        };
        assert!(with(|x| x.width = f32::NAN).contains("width"));
        assert!(with(|x| x.width = 1e9).contains("width"));
        assert!(with(|x| x.classes = Some(0)).contains("classes"));
        assert!(with(|x| x.size = Some([0, 224])).contains("size"));
        assert!(
            with(|x| x.weights = Weights::Checkpoint(Checkpoint::default()))
                .contains("features.0.0.weight")
        );
        let error = build("mobilenet-v9", Options::default()).unwrap_err();
        assert!(error.to_string().contains("mobilenet-v1"));
    }

    #[test]
    fn equal_seeds_give_equal_weights() {
        assert_eq!(
            built("mobilenet-v3-small", 0.25),
            built("mobilenet-v3-small", 0.25)
        );
    }

    /// Numbers that training learns in a checkpoint that a network of torchvision's size reads:
    /// what is missing is added until nothing is.
    fn learned(name: &str) -> usize {
        let mut checkpoint = Checkpoint::default();
        let tensor = |shape: &[usize]| sedge_formats::safetensors::Tensor {
            dtype: sedge_kernels::DType::F32,
            shape: shape.to_vec(),
            data: vec![0; 4 * shape.iter().product::<usize>()].into(),
        };
        let mut shape = vec![];
        loop {
            let options = Options {
                weights: Weights::Checkpoint(checkpoint.clone()),
                ..Options::default()
            };
            match build(name, options) {
                Err(NetError::Missing { name }) => {
                    shape.truncate(1);
                    checkpoint.tensors.insert(name, tensor(&shape));
                }
                Err(NetError::Size { name, expected, .. }) => {
                    checkpoint.tensors.insert(name, tensor(&expected));
                    shape = expected;
                }
                built => {
                    built.unwrap();
                    break;
                }
            }
        }
        let learned = checkpoint.tensors.iter();
        let learned = learned.filter(|(name, _)| !name.contains(".running_"));
        learned
            .map(|(_, x)| x.shape.iter().product::<usize>())
            .sum()
    }

    #[test]
    fn checkpoints_are_as_large_as_torchvisions() {
        for (name, expected) in [
            ("mobilenet-v3-small", 2_542_856),
            ("mobilenet-v2", 3_504_872),
            ("lraspp-mobilenet-v3-large", 3_221_538),
        ] {
            assert_eq!(learned(name), expected, "{name}");
        }
    }
}
