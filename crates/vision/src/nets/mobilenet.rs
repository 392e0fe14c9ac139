//! MobileNet V1 (Howard et al. 2017), V2 (Sandler et al. 2018) and V3 (Howard et al. 2019).

use super::builder::{After, Builder, HARD_SIGMOID, Layer, RELU6};
use super::{NetError, Sizes, divisible};
use crate::graph::Value;
use crate::op::{Activation, Op};

/// What the layers of a trunk made.
pub(super) struct Trunk {
    /// Of the stem, each block, and the last convolution.
    pub(super) features: Vec<Value>,
    /// Inside each block, before its channels are filtered; the stem's is its input.
    pub(super) expanded: Vec<Value>,
}

impl Trunk {
    /// What the last layer made.
    pub(super) fn last(&self) -> Value {
        self.features[self.features.len() - 1]
    }
}

/// What a trunk ends with.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Tail {
    /// All of it.
    Full,
    /// Half the channels in the stage of stride 32, for detection.
    Halved,
    /// The stage of stride 32 with stride 16 and windows twice as far, for segmentation.
    Dilated,
}

/// Channels and stride of each block of V1.
#[rustfmt::skip]
const V1: [(usize, usize); 13] = [
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
];

/// Classifies. torchvision has no V1: parts are named as those of V2, `features.N.0` filters and
/// `features.N.1` mixes.
pub(super) fn v1(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    let x = b.picture(sizes.input);
    let stem = Layer::dense(sizes.scaled(32), 3, 2, RELU6);
    let mut x = b.unit("features.0", x, stem)?;
    for (i, (channels, stride)) in V1.into_iter().enumerate() {
        let name = format!("features.{}", i + 1);
        let filter = Layer::depthwise(b.channels(x), 3, stride, RELU6);
        x = b.unit(&format!("{name}.0"), x, filter)?;
        let mix = Layer::pointwise(sizes.scaled(channels), RELU6);
        x = b.unit(&format!("{name}.1"), x, mix)?;
    }
    let x = b.flat_mean(x)?;
    let x = b.linear("classifier", x, sizes.classes, Activation::Identity)?;
    b.output("logits", x);
    Ok(())
}

/// Times that channels are expanded, channels, blocks, stride of the first.
const V2: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// The layers of V2 before the classifier.
pub(super) fn v2_trunk(b: &mut Builder, sizes: &Sizes, tail: Tail) -> Result<Trunk, NetError> {
    let picture = b.picture(sizes.input);
    let stem = Layer::dense(sizes.scaled(32), 3, 2, RELU6);
    let mut x = b.unit("features.0", picture, stem)?;
    let mut trunk = Trunk {
        features: vec![x],
        expanded: vec![picture],
    };
    for (times, channels, blocks, stride) in V2 {
        let dilated = tail == Tail::Dilated && channels >= 160;
        for block in 0..blocks {
            let name = format!("features.{}.conv", trunk.features.len());
            let outputs = sizes.scaled(channels);
            let stride = if block == 0 { stride } else { 1 };
            let reads = b.channels(x);
            let mut wide = x;
            let mut part = 0;
            if times > 1 {
                let expand = Layer::pointwise(reads * times, RELU6);
                wide = b.unit(&format!("{name}.0"), x, expand)?;
                part = 1;
            }
            let mut filter = Layer::depthwise(reads * times, 3, stride, RELU6);
            if dilated {
                // The first window still looks at neighbours.
                filter.dilation = if stride == 2 { 1 } else { 2 };
                filter.stride = 1;
            }
            let filtered = b.unit(&format!("{name}.{part}"), wide, filter)?;
            let norm = format!("{name}.{}", part + 2);
            let add = (stride == 1 && reads == outputs).then_some(x);
            let inputs: Vec<Value> = [filtered].into_iter().chain(add).collect();
            x = b.conv(
                &format!("{name}.{}", part + 1),
                After::Norm(&norm),
                &inputs,
                Layer::pointwise(outputs, Activation::Identity),
            )?;
            trunk.features.push(x);
            trunk.expanded.push(wide);
        }
    }
    let last = divisible(1280.0 * f64::from(sizes.width.max(1.0)));
    let x = b.unit("features.18", x, Layer::pointwise(last, RELU6))?;
    trunk.features.push(x);
    Ok(trunk)
}

/// Classifies.
pub(super) fn v2(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    let trunk = v2_trunk(b, sizes, Tail::Full)?;
    let x = b.flat_mean(trunk.last())?;
    let x = b.linear("classifier.1", x, sizes.classes, Activation::Identity)?;
    b.output("logits", x);
    Ok(())
}

const RE: Activation = Activation::Relu;
const HS: Activation = Activation::HardSwish;

/// A block of V3: kernel, expanded channels, channels, whether channels are weighed by what is in
/// the whole picture, activation, stride.
type Row = (usize, usize, usize, bool, Activation, usize);

/// One of the two V3.
pub(super) struct V3 {
    rows: &'static [Row],
    /// The first block of the stage of stride 32.
    pub(super) deep: usize,
    /// Channels of the classifier's first product.
    last: usize,
}

#[rustfmt::skip]
pub(super) const LARGE: V3 = V3 {
    rows: &[
        (3, 16, 16, false, RE, 1),
        (3, 64, 24, false, RE, 2),
        (3, 72, 24, false, RE, 1),
        (5, 72, 40, true, RE, 2),
        (5, 120, 40, true, RE, 1),
        (5, 120, 40, true, RE, 1),
        (3, 240, 80, false, HS, 2),
        (3, 200, 80, false, HS, 1),
        (3, 184, 80, false, HS, 1),
        (3, 184, 80, false, HS, 1),
        (3, 480, 112, true, HS, 1),
        (3, 672, 112, true, HS, 1),
        (5, 672, 160, true, HS, 2),
        (5, 960, 160, true, HS, 1),
        (5, 960, 160, true, HS, 1),
    ],
    deep: 13,
    last: 1280,
};

#[rustfmt::skip]
pub(super) const SMALL: V3 = V3 {
    rows: &[
        (3, 16, 16, true, RE, 2),
        (3, 72, 24, false, RE, 2),
        (3, 88, 24, false, RE, 1),
        (5, 96, 40, true, HS, 2),
        (5, 240, 40, true, HS, 1),
        (5, 240, 40, true, HS, 1),
        (5, 120, 48, true, HS, 1),
        (5, 144, 48, true, HS, 1),
        (5, 288, 96, true, HS, 2),
        (5, 576, 96, true, HS, 1),
        (5, 576, 96, true, HS, 1),
    ],
    deep: 9,
    last: 1024,
};

/// The layers of V3 before the classifier.
pub(super) fn v3_trunk(
    b: &mut Builder,
    v3: &V3,
    sizes: &Sizes,
    tail: Tail,
) -> Result<Trunk, NetError> {
    b.eps = 1e-3;
    let picture = b.picture(sizes.input);
    let mut x = b.unit(
        "features.0",
        picture,
        Layer::dense(sizes.scaled(16), 3, 2, HS),
    )?;
    let mut trunk = Trunk {
        features: vec![x],
        expanded: vec![picture],
    };
    for (i, &(kernel, wide, channels, squeeze, activation, stride)) in v3.rows.iter().enumerate() {
        let i = i + 1;
        let name = format!("features.{i}.block");
        let halve = |channels: usize, from: usize| match tail == Tail::Halved && i >= from {
            true => channels / 2,
            false => channels,
        };
        // The deep stage's first block still expands as its neighbours before it.
        let wide = sizes.scaled(halve(wide, v3.deep + 1));
        let channels = sizes.scaled(halve(channels, v3.deep));
        let reads = b.channels(x);

        let mut part = 0..;
        let mut next = || format!("{name}.{}", part.next().unwrap_or_default());
        let mut y = x;
        if wide != reads {
            y = b.unit(&next(), y, Layer::pointwise(wide, activation))?;
        }
        trunk.expanded.push(y);
        let mut filter = Layer::depthwise(wide, kernel, stride, activation);
        if tail == Tail::Dilated && i >= v3.deep {
            (filter.stride, filter.dilation) = (1, 2);
        }
        y = b.unit(&next(), y, filter)?;
        if squeeze {
            y = squeezed(b, &next(), y)?;
        }
        let name = next();
        let add = (stride == 1 && reads == channels).then_some(x);
        let inputs: Vec<Value> = [y].into_iter().chain(add).collect();
        x = b.conv(
            &format!("{name}.0"),
            After::Norm(&format!("{name}.1")),
            &inputs,
            Layer::pointwise(channels, Activation::Identity),
        )?;
        trunk.features.push(x);
    }
    let last = Layer::pointwise(6 * b.channels(x), HS);
    let x = b.unit(&format!("features.{}", v3.rows.len() + 1), x, last)?;
    trunk.features.push(x);
    Ok(trunk)
}

/// Channels times weights made of all channels' means (squeeze and excite).
fn squeezed(b: &mut Builder, name: &str, x: Value) -> Result<Value, NetError> {
    let channels = b.channels(x);
    let mean = b.mean(&format!("{name}.mean"), x)?;
    let few = Layer::pointwise(divisible((channels / 4) as f64), RE);
    let few = b.conv(&format!("{name}.fc1"), After::Bias, &[mean], few)?;
    let all = Layer::pointwise(channels, HARD_SIGMOID);
    let all = b.conv(&format!("{name}.fc2"), After::Bias, &[few], all)?;
    let scale = Op::Scale(Activation::Identity);
    Ok(b.graph.push(name, scale, &[x, all])?)
}

fn v3(b: &mut Builder, v3: &V3, sizes: &Sizes) -> Result<(), NetError> {
    let trunk = v3_trunk(b, v3, sizes, Tail::Full)?;
    let x = b.flat_mean(trunk.last())?;
    let x = b.linear("classifier.0", x, sizes.scaled(v3.last), HS)?;
    let x = b.linear("classifier.3", x, sizes.classes, Activation::Identity)?;
    b.output("logits", x);
    Ok(())
}

/// Classifies.
pub(super) fn v3_large(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    v3(b, &LARGE, sizes)
}

/// Classifies.
pub(super) fn v3_small(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    v3(b, &SMALL, sizes)
}
