//! SSDLite on MobileNets: six maps of features, each with a small head for classes and one for
//! boxes. The deep maps come from the trunk's expansion at stride 16 and its last layer.

use super::builder::{After, Builder, Layer, RELU6};
use super::mobilenet::{self, Tail, Trunk};
use super::{NetError, Sizes};
use crate::graph::Value;
use crate::op::{Activation, Op};

/// Boxes of each place of a map.
pub(crate) const ANCHORS: usize = 6;

/// Channels of the maps after the trunk.
const EXTRA: [usize; 4] = [512, 256, 256, 128];

/// Detects, on MobileNetV3-Large with half the channels at its end.
pub(super) fn on_v3(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    b.rename = split_trunk;
    let trunk = mobilenet::v3_trunk(b, &mobilenet::LARGE, sizes, Tail::Halved)?;
    heads(b, &trunk, mobilenet::LARGE.deep, sizes)
}

/// Detects, on MobileNetV2.
pub(super) fn on_v2(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    b.rename = |name| match name.starts_with("features.") {
        true => format!("backbone.{name}"),
        false => name.to_owned(),
    };
    let trunk = mobilenet::v2_trunk(b, sizes, Tail::Full)?;
    heads(b, &trunk, 14, sizes)
}

/// Names of a trunk that is cut after the expansion of its block 13, as torchvision cuts it.
fn split_trunk(name: &str) -> String {
    let parts = name.strip_prefix("features.").and_then(|name| {
        let (block, rest) = name.split_once('.')?;
        Some((block.parse::<usize>().ok()?, rest))
    });
    let deep = mobilenet::LARGE.deep;
    match parts {
        None => name.to_owned(),
        Some((block, rest)) if block < deep => format!("backbone.features.0.{block}.{rest}"),
        Some((block, rest)) if block > deep => {
            format!("backbone.features.1.{}.{rest}", block - deep)
        }
        Some((block, rest)) => match rest.strip_prefix("block.0.") {
            Some(rest) => format!("backbone.features.0.{block}.{rest}"),
            None => format!("backbone.features.1.0.{}", rest.replacen("block.", "", 1)),
        },
    }
}

fn heads(b: &mut Builder, trunk: &Trunk, deep: usize, sizes: &Sizes) -> Result<(), NetError> {
    let mut x = trunk.last();
    let mut maps = vec![trunk.expanded[deep], x];
    for (i, channels) in EXTRA.into_iter().enumerate() {
        let name = format!("backbone.extra.{i}");
        let few = Layer::pointwise(channels / 2, RELU6);
        x = b.unit(&format!("{name}.0"), x, few)?;
        let filter = Layer::depthwise(channels / 2, 3, 2, RELU6);
        x = b.unit(&format!("{name}.1"), x, filter)?;
        x = b.unit(&format!("{name}.2"), x, Layer::pointwise(channels, RELU6))?;
        maps.push(x);
    }
    for (output, head, each) in [
        ("logits", "classification_head", sizes.classes),
        ("boxes", "regression_head", 4),
    ] {
        let mut parts = Vec::with_capacity(maps.len());
        for (i, &map) in maps.iter().enumerate() {
            let name = format!("head.{head}.module_list.{i}");
            parts.push(predict(b, &name, map, each)?);
        }
        let all = b.graph.push(output, Op::Concat(1), &parts)?;
        b.output(output, all);
    }
    Ok(())
}

/// `[n, boxes, each]` of a map, in the order of rows, columns, and boxes of a place.
fn predict(b: &mut Builder, name: &str, map: Value, each: usize) -> Result<Value, NetError> {
    let filter = Layer::depthwise(b.channels(map), 3, 1, RELU6);
    let x = b.unit(&format!("{name}.0"), map, filter)?;
    let mix = Layer::pointwise(ANCHORS * each, Activation::Identity);
    let x = b.conv(&format!("{name}.1"), After::Bias, &[x], mix)?;
    let &[n, _, h, w] = b.graph.shape(x) else {
        unreachable!("a convolution makes a picture");
    };
    let by_place = Op::Transpose(vec![0, 2, 3, 1]);
    let x = b.graph.push(&format!("{name}.by_place"), by_place, &[x])?;
    let boxes = Op::Reshape(vec![n, h * w * ANCHORS, each]);
    Ok(b.graph.push(&format!("{name}.boxes"), boxes, &[x])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_trunk_has_torchvisions_names() {
        for (name, expected) in [
            ("features.0.0.weight", "backbone.features.0.0.0.weight"),
            (
                "features.12.block.2.fc1.bias",
                "backbone.features.0.12.block.2.fc1.bias",
            ),
            (
                "features.13.block.0.1.bias",
                "backbone.features.0.13.1.bias",
            ),
            (
                "features.13.block.2.fc1.bias",
                "backbone.features.1.0.2.fc1.bias",
            ),
            (
                "features.14.block.0.0.weight",
                "backbone.features.1.1.block.0.0.weight",
            ),
            ("features.16.1.bias", "backbone.features.1.3.1.bias"),
            ("backbone.extra.0.0.1.bias", "backbone.extra.0.0.1.bias"),
        ] {
            assert_eq!(split_trunk(name), expected);
        }
    }
}
