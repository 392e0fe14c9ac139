//! LR-ASPP (Howard et al. 2019): classes of each pixel from deep features, weighed by what is in
//! the whole picture, and from shallow ones for sharp edges.

use super::builder::{After, Builder, Layer};
use super::mobilenet::{self, LARGE, SMALL, Tail, V3};
use super::{NetError, Sizes};
use crate::op::{Activation, Op};

/// Channels between.
const INNER: usize = 128;

/// torchvision's name of the trunk.
pub(super) fn backbone(name: &str) -> String {
    match name.strip_prefix("features.") {
        Some(rest) => format!("backbone.{rest}"),
        None => name.to_owned(),
    }
}

/// Tells what each pixel is, on MobileNetV3-Large.
pub(super) fn lraspp(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    on(b, &LARGE, 4, sizes)
}

/// Tells what each pixel is, on MobileNetV3-Small.
pub(super) fn lraspp_small(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    on(b, &SMALL, 2, sizes)
}

/// `shallow` is the first block of stride 8.
fn on(b: &mut Builder, v3: &V3, shallow: usize, sizes: &Sizes) -> Result<(), NetError> {
    b.rename = backbone;
    let trunk = mobilenet::v3_trunk(b, v3, sizes, Tail::Dilated)?;
    let (low, high) = (trunk.features[shallow], trunk.last());

    b.eps = 1e-5;
    let mix = Layer::pointwise(INNER, Activation::Relu);
    let norm = After::Norm("classifier.cbr.1");
    let x = b.conv("classifier.cbr.0", norm, &[high], mix)?;
    let mean = b.mean("classifier.scale.0", high)?;
    let weigh = Layer::pointwise(INNER, Activation::Sigmoid);
    let scale = b.conv("classifier.scale.1", After::Nothing, &[mean], weigh)?;
    let x = b.graph.push(
        "classifier.weighed",
        Op::Scale(Activation::Identity),
        &[x, scale],
    )?;
    let &[_, _, h, w] = b.graph.shape(low) else {
        unreachable!("a trunk makes pictures");
    };
    let x = b.resize("classifier.wide", x, [h, w])?;

    let classes = Layer::pointwise(sizes.classes, Activation::Identity);
    let of_low = b.conv("classifier.low_classifier", After::Bias, &[low], classes)?;
    let both = [x, of_low];
    let x = b.conv("classifier.high_classifier", After::Bias, &both, classes)?;
    let x = b.resize("logits", x, sizes.input)?;
    b.output("logits", x);
    Ok(())
}
