//! ResNet-18 and -50 (He et al. 2015), strides in the 3 × 3 windows as torchvision has them.

use super::builder::{After, Builder, Layer};
use super::{NetError, Sizes};
use crate::graph::Value;
use crate::op::{Activation, Op, Pool};
use sedge_conv::Window;

/// Classifies: two windows a block.
pub(super) fn resnet18(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    resnet(b, sizes, [2, 2, 2, 2], 1)
}

/// Classifies: one window a block, between products that narrow and widen.
pub(super) fn resnet50(b: &mut Builder, sizes: &Sizes) -> Result<(), NetError> {
    resnet(b, sizes, [3, 4, 6, 3], 4)
}

/// `wider` is how many times a block's channels it gives on.
fn resnet(
    b: &mut Builder,
    sizes: &Sizes,
    blocks: [usize; 4],
    wider: usize,
) -> Result<(), NetError> {
    let x = b.picture(sizes.input);
    let stem = Layer::dense(sizes.scaled(64), 7, 2, Activation::Relu);
    let x = b.conv("conv1", After::Norm("bn1"), &[x], stem)?;
    let pool = Op::Pool(Pool::Max, Window::square(3, 2, 1));
    let mut x = b.graph.push("maxpool", pool, &[x])?;
    for (stage, blocks) in blocks.into_iter().enumerate() {
        let channels = sizes.scaled(64 << stage);
        for block in 0..blocks {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = add(b, &name, x, channels, wider, stride)?;
        }
    }
    let x = b.flat_mean(x)?;
    let x = b.linear("fc", x, sizes.classes, Activation::Identity)?;
    b.output("logits", x);
    Ok(())
}

fn add(
    b: &mut Builder,
    name: &str,
    x: Value,
    channels: usize,
    wider: usize,
    stride: usize,
) -> Result<Value, NetError> {
    let outputs = channels * wider;
    let same = match stride == 1 && b.channels(x) == outputs {
        true => x,
        false => {
            let narrow = Layer::dense(outputs, 1, stride, Activation::Identity);
            b.unit(&format!("{name}.downsample"), x, narrow)?
        }
    };
    let window = |stride| Layer::dense(channels, 3, stride, Activation::Relu);
    let layers = match wider {
        1 => vec![window(stride), window(1)],
        _ => vec![
            Layer::pointwise(channels, Activation::Relu),
            window(stride),
            Layer::pointwise(outputs, Activation::Relu),
        ],
    };
    let last = layers.len();
    let mut y = x;
    for (layer, i) in layers.into_iter().zip(1..) {
        let norm = format!("{name}.bn{i}");
        let inputs: &[Value] = if i == last { &[y, same] } else { &[y] };
        y = b.conv(
            &format!("{name}.conv{i}"),
            After::Norm(&norm),
            inputs,
            layer,
        )?;
    }
    Ok(y)
}
