//! Weights of a checkpoint, batch norms folded into them.

use sedge_formats::safetensors::Checkpoint;

use super::NetError;

/// A tensor as f32.
pub(super) fn read(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, NetError> {
    let tensor = checkpoint.tensors.get(name);
    let tensor = tensor.ok_or_else(|| NetError::Missing {
        name: name.to_owned(),
    })?;
    if tensor.shape != shape {
        return Err(NetError::Size {
            name: name.to_owned(),
            found: tensor.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    let mut values = vec![0.0; shape.iter().product()];
    sedge_kernels::dequantize(tensor.dtype, &tensor.data, &mut values).map_err(|error| {
        NetError::Codec {
            name: name.to_owned(),
            error,
        }
    })?;
    Ok(values)
}

/// A batch norm: `(x − mean) / √(var + eps) · weight + bias` of each channel.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) mean: Vec<f32>,
    pub(super) var: Vec<f32>,
    pub(super) eps: f32,
}

impl Norm {
    /// Multiplies the weights of the product before it, and gives the bias that it then has.
    pub(super) fn fold(&self, weights: &mut [f32]) -> Vec<f32> {
        let each = weights.len() / self.weight.len();
        let fold = |(i, weights): (usize, &mut [f32])| {
            let scale = self.weight[i] / (self.var[i] + self.eps).sqrt();
            weights.iter_mut().for_each(|w| *w *= scale);
            self.bias[i] - self.mean[i] * scale
        };
        weights
            .chunks_exact_mut(each)
            .enumerate()
            .map(fold)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folded_norm_is_the_norm_of_the_product() {
        let norm = Norm {
            weight: vec![2.0, -1.0],
            bias: vec![0.5, 0.25],
            mean: vec![1.0, -3.0],
            var: vec![4.0, 0.25],
            eps: 1e-3,
        };
        let weights = [1.0, 2.0, 3.0, -1.0, 0.5, 0.25f32];
        let x = [0.3, -0.7, 1.1f32];
        let mut folded = weights;
        let bias = norm.fold(&mut folded);
        for i in 0..2 {
            let product = |w: &[f32]| (0..3).map(|j| w[i * 3 + j] * x[j]).sum::<f32>();
            let normed = (product(&weights) - norm.mean[i]) / (norm.var[i] + norm.eps).sqrt()
                * norm.weight[i]
                + norm.bias[i];
            assert!((product(&folded) + bias[i] - normed).abs() < 1e-5);
        }
    }
}
