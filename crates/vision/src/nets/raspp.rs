//! R-ASPP, with which MobileNetV2 and V3 were compared as segmenters: DeepLabV3's head with two of
//! its branches, one pixel and the mean of all, and its 256 channels; no windows at several rates,
//! no shallow features. Names are those that torchvision's DeepLabV3 head has for the same parts.

use super::builder::{After, Builder, Layer};
use super::lraspp::backbone;
use super::mobilenet::{self, LARGE, Tail};
use super::{NetError, Sizes};
use crate::graph::Value;
use crate::op::{Activation, Op};

/// Channels of each branch and of both together.
const INNER: usize = 256;

/// Tells what each pixel is, on MobileNetV3-Large.
pub(super) fn raspp(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    b.rename = backbone;
    let trunk = mobilenet::v3_trunk(b, &LARGE, sizes, Tail::Dilated)?;
    head(b, trunk.last(), sizes)
}

/// Tells what each pixel is, on MobileNetV2.
pub(super) fn raspp_v2(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    b.rename = backbone;
    let trunk = mobilenet::v2_trunk(b, sizes, Tail::Dilated)?;
    head(b, trunk.last(), sizes)
}

fn head(b: &mut Builder, x: Value, sizes: &Sizes) -> Result<(), NetError> {
    b.eps = 1e-5;
    let mix = Layer::pointwise(INNER, Activation::Relu);
    let pixel = b.unit("classifier.0.convs.0", x, mix)?;
    let mean = b.mean("classifier.0.convs.1.0", x)?;
    let norm = After::Norm("classifier.0.convs.1.2");
    let all = b.conv("classifier.0.convs.1.1", norm, &[mean], mix)?;
    let everywhere = Op::Expand(b.graph.shape(pixel).to_vec());
    let all = b
        .graph
        .push("classifier.0.convs.1.wide", everywhere, &[all])?;
    let joined = b
        .graph
        .push("classifier.0.joined", Op::Concat(1), &[pixel, all])?;
    let x = b.unit("classifier.0.project", joined, mix)?;
    let classes = Layer::pointwise(sizes.classes, Activation::Identity);
    let x = b.conv("classifier.1", After::Bias, &[x], classes)?;
    let x = b.resize("logits", x, sizes.input)?;
    b.output("logits", x);
    Ok(())
}
