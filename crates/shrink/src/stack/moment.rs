//! How a matrix's inputs vary together: what an error of its weights does to its outputs.

use sedge_kernels::Team;

use super::linear::{inverse_factor, product, transposed};

/// `Σ xᵀx` over rows of inputs.
#[derive(Debug, Clone)]
pub struct Moment {
    cols: usize,
    /// `[cols, cols]`.
    sum: Vec<f32>,
    rows: u64,
}

/// Share of the mean of the diagonal that is added to it, so that inputs that never vary have a
/// weight too.
const DAMPING: f32 = 0.01;

impl Moment {
    /// Of no rows yet, of so many inputs.
    pub fn new(cols: usize) -> Moment {
        Moment {
            cols,
            sum: vec![0.0; cols * cols],
            rows: 0,
        }
    }

    /// Adds whole rows of inputs. One that is not finite is left out.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn add(&mut self, team: &Team, x: &[f32]) {
        let cols = self.cols;
        assert_eq!(x.len() % cols, 0, "whole rows of {cols}");
        let finite = |row: &&[f32]| row.iter().all(|x| x.is_finite());
        let whole = x.chunks_exact(cols).filter(finite);
        let x: Vec<f32> = whole.flatten().copied().collect();
        let rows = x.len() / cols;
        if rows == 0 {
            return;
        }
        let turned = transposed(&x, rows, cols);
        let more = product(team, &turned, &turned, rows);
        for (sum, more) in self.sum.iter_mut().zip(more) {
            *sum += more;
        }
        self.rows += rows as u64;
    }

    /// Rows that were added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Ready for the matrices that read these inputs.
    pub fn inputs(&self) -> Inputs {
        let cols = self.cols;
        let diagonal = (0..cols).map(|i| f64::from(self.sum[i * (cols + 1)]));
        let mean = (diagonal.sum::<f64>() / cols as f64) as f32;
        let seen = mean > 0.0 && (1.0 / mean).is_finite();
        let scale = if seen { 1.0 / mean } else { 0.0 };
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|a, b| {
            let size = |i: usize| self.sum[i * (cols + 1)];
            size(*b).total_cmp(&size(*a))
        });
        let value = |at: usize| self.sum[order[at / cols] * cols + order[at % cols]] * scale;
        let mut moment: Vec<f32> = (0..cols * cols).map(value).collect();
        for i in 0..cols {
            moment[i * (cols + 1)] += if seen { DAMPING } else { 1.0 };
        }
        if let Some(factor) = inverse_factor(&moment, cols) {
            return Inputs {
                cols,
                order,
                moment,
                factor,
            };
        }
        // Sums that have left the range of f32 say nothing.
        let identity = |i: usize| f32::from(u8::from(i.is_multiple_of(cols + 1)));
        let identity: Vec<f32> = (0..cols * cols).map(identity).collect();
        Inputs {
            cols,
            order,
            moment: identity.clone(),
            factor: identity,
        }
    }
}

/// The second moment of a matrix's inputs, of a mean diagonal of about 1.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub(super) cols: usize,
    /// The inputs, largest first: the order of all that follows. Errors are made up for by what
    /// matters less.
    pub(super) order: Vec<usize>,
    /// `[cols, cols]`, its diagonal raised.
    pub(super) moment: Vec<f32>,
    /// Upper factor of its inverse. Row `j` tells how the inputs after `j` make up for an error
    /// in `j` (GPTQ, Frantar et al., ICLR 2023).
    pub(super) factor: Vec<f32>,
}
