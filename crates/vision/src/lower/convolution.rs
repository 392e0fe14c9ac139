//! Operators with windows: convolutions, pools, and the norms that follow them.

use sedge_conv::Window;

use super::constant::Constant;
use super::quantised::Stored;
use super::{Known, Lowering, Reader, Refusal, unsupported, wrong};
use crate::op::{Activation, Conv, ConvTranspose, Op, Pool};

type Made = Result<Vec<Known>, Refusal>;

impl Lowering<'_> {
    /// `None` when the operator is not one of these.
    pub(super) fn convolution(&mut self, node: &Reader<'_>, op: &str) -> Option<Made> {
        Some(match op {
            "Conv" => self.conv(node),
            "ConvTranspose" => self.conv_transpose(node),
            "MaxPool" => self.pool(node, Pool::Max),
            "AveragePool" => self.average(node),
            "BatchNormalization" => self.batch_norm(node),
            _ => return None,
        })
    }

    fn conv(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let stored = self.stored(node, 1)?;
        let (&[outputs, per_group, kh, kw], &[_, inputs, h, w]) = (&stored.shape[..], &shape[..])
        else {
            return unsupported("only pictures [n, channels, height, width] are convolved");
        };
        let groups = usize::try_from(node.int("group", 1)?).unwrap_or(0);
        if groups.checked_mul(per_group) != Some(inputs) {
            return wrong(format!(
                "{groups} groups of {per_group} inputs read {inputs} channels"
            ));
        }
        let window = self.window(node, [kh, kw], [h, w])?;
        let bias = self.bias(node, 2)?;
        let op = Op::Conv(Conv {
            weights: stored.weights(0)?,
            bias,
            outputs,
            inputs,
            groups,
            window,
            activation: Activation::Identity,
        });
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn bias(&self, node: &Reader<'_>, i: usize) -> Result<std::sync::Arc<[f32]>, Refusal> {
        Ok(match node.optional(i)? {
            None => Vec::new().into(),
            Some(_) => self.stored(node, i)?.to_floats(),
        })
    }

    fn conv_transpose(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let Some(weights) = node.constant(1)? else {
            return wrong("its weights are missing");
        };
        let (&[inputs, per_group, kh, kw], &[_, _, h, w]) = (&weights.shape[..], &shape[..]) else {
            return unsupported("only pictures [n, channels, height, width] are convolved");
        };
        let groups = usize::try_from(node.int("group", 1)?).unwrap_or(0);
        let Some(outputs) = groups.checked_mul(per_group) else {
            return wrong("too many groups");
        };
        if node.ints("output_shape")?.is_some() {
            return unsupported("output_shape");
        }
        let auto = node.string("auto_pad", "NOTSET")?;
        if auto != "NOTSET" && auto != "VALID" {
            return unsupported(format!("auto_pad {auto}"));
        }
        let window = self.window(node, [kh, kw], [h, w])?;
        let more = pair(node.ints("output_padding")?, [0, 0])?;
        let op = Op::ConvTranspose(ConvTranspose {
            weights: weights.to_floats(),
            bias: self.bias(node, 2)?,
            outputs,
            inputs,
            groups,
            window,
            more,
            activation: Activation::Identity,
        });
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn average(&mut self, node: &Reader<'_>) -> Made {
        let padding = node.int("count_include_pad", 0)? != 0;
        // Windows that reach beyond the picture in ceil mode count only what is there.
        if padding && node.int("ceil_mode", 0)? != 0 {
            return unsupported("ceil_mode with count_include_pad");
        }
        self.pool(node, Pool::Average { padding })
    }

    fn pool(&mut self, node: &Reader<'_>, pool: Pool) -> Made {
        if node.node.outputs.len() > 1 {
            return unsupported("indices of maxima");
        }
        if node.int("storage_order", 0)? != 0 {
            return unsupported("storage_order");
        }
        let x = node.input(0)?;
        let &[_, _, h, w] = &self.shape(&x)[..] else {
            return unsupported("only pictures [n, channels, height, width] are pooled");
        };
        let kernel = pair(node.ints("kernel_shape")?, [0, 0])?;
        let mut window = self.window(node, kernel, [h, w])?;
        if node.int("ceil_mode", 0)? != 0 {
            window = rounded_up(window, [h, w]);
        }
        Ok(vec![self.apply(node, Op::Pool(pool, window), &[x])?])
    }

    /// A norm with known numbers is a factor and a summand for each channel.
    fn batch_norm(&mut self, node: &Reader<'_>) -> Made {
        if node.int("training_mode", 0)? != 0 {
            return unsupported("training_mode");
        }
        let x = node.input(0)?;
        let numbers = |i: usize| -> Result<Constant, Refusal> {
            match node.constant(i)? {
                Some(constant) => Ok(constant),
                None => wrong(format!("input {i} is missing")),
            }
        };
        let (gamma, beta) = (numbers(1)?.to_floats(), numbers(2)?.to_floats());
        let (mean, variance) = (numbers(3)?.to_floats(), numbers(4)?.to_floats());
        if [beta.len(), mean.len(), variance.len()] != [gamma.len(); 3] {
            return wrong("its numbers are not as many as each other");
        }
        let epsilon = f64::from(node.float("epsilon", 1e-5)?);
        let factor = |i: usize| f64::from(gamma[i]) / (f64::from(variance[i]) + epsilon).sqrt();
        let scale = (0..gamma.len()).map(|i| factor(i) as f32).collect();
        let shift = (0..gamma.len())
            .map(|i| (f64::from(beta[i]) - f64::from(mean[i]) * factor(i)) as f32)
            .collect();
        let op = Op::Affine {
            scale,
            shift,
            activation: Activation::Identity,
        };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn window(
        &self,
        node: &Reader<'_>,
        kernel: [usize; 2],
        size: [usize; 2],
    ) -> Result<Window, Refusal> {
        if let Some(said) = node.ints("kernel_shape")?
            && pair(Some(said), kernel)? != kernel
        {
            return wrong("kernel_shape is not that of its weights");
        }
        let stride = pair(node.ints("strides")?, [1, 1])?;
        let dilation = pair(node.ints("dilations")?, [1, 1])?;
        let mut window = Window {
            kernel,
            stride,
            dilation,
            pads: [0; 4],
        };
        // What is written is checked before it is multiplied.
        let checked = [u16::MAX as usize * 2; 2];
        if let Err(error) = window.output(checked[0], checked[1])
            && !matches!(error, sedge_conv::WindowError::NoRoom { .. })
        {
            return wrong(error.to_string());
        }
        match node.string("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => {
                if let Some(pads) = node.ints("pads")? {
                    let size = |x: i64| u16::try_from(x).ok().map(usize::from);
                    let all: Option<Vec<usize>> = pads.iter().map(|&x| size(x)).collect();
                    window.pads = match all.as_deref() {
                        Some(&[a, b, c, d]) => [a, b, c, d],
                        _ => return wrong(format!("pads {pads:?} are not four sizes")),
                    };
                }
            }
            "VALID" => {}
            auto @ ("SAME_UPPER" | "SAME_LOWER") => {
                for (axis, &size) in size.iter().enumerate() {
                    let steps = size.div_ceil(stride[axis]).max(1) - 1;
                    let reach = (kernel[axis] - 1) * dilation[axis] + 1;
                    let all = (steps * stride[axis] + reach).saturating_sub(size);
                    let less = all / 2;
                    let (before, after) = match auto {
                        "SAME_UPPER" => (less, all - less),
                        _ => (all - less, less),
                    };
                    window.pads[axis] = before;
                    window.pads[axis + 2] = after;
                }
            }
            auto => return unsupported(format!("auto_pad {auto}")),
        }
        Ok(window)
    }
}

/// Widens the pads below and to the right so that a last, partial window fits; never one that
/// would see nothing but padding.
fn rounded_up(mut window: Window, size: [usize; 2]) -> Window {
    for (axis, size) in size.into_iter().enumerate() {
        let reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
        let padded = size + window.pads[axis] + window.pads[axis + 2];
        let over = padded.saturating_sub(reach) % window.stride[axis];
        let starts = padded.saturating_sub(reach) / window.stride[axis] + 1;
        let last_is_inside = starts * window.stride[axis] < size + window.pads[axis];
        if over > 0 && last_is_inside {
            window.pads[axis + 2] += window.stride[axis] - over;
        }
    }
    window
}

fn pair(ints: Option<Vec<i64>>, default: [usize; 2]) -> Result<[usize; 2], Refusal> {
    let Some(ints) = ints else {
        return Ok(default);
    };
    let all: Option<Vec<usize>> = ints.iter().map(|&x| usize::try_from(x).ok()).collect();
    match all.as_deref() {
        Some(&[rows, columns]) => Ok([rows, columns]),
        _ => wrong(format!("{ints:?} are not two sizes")),
    }
}

impl Stored {
    fn to_floats(&self) -> std::sync::Arc<[f32]> {
        self.constant().to_floats()
    }
}
