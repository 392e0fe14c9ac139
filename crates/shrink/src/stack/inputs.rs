//! How a matrix's inputs vary together, as decomposing needs it.

use sedge_kernels::Team;

use crate::moment::{Moment, upper_factor};

/// Share of the mean of the diagonal that is added to it, so that inputs that never vary have a
/// weight too.
const DAMPING: f32 = 0.01;

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

impl Inputs {
    /// Of a moment; without any rows all inputs are alike.
    pub fn of(team: &Team, moment: &Moment) -> Inputs {
        let (cols, sum) = (moment.columns(), moment.sum());
        let diagonal = (0..cols).map(|i| f64::from(sum[i * (cols + 1)]));
        let mean = (diagonal.sum::<f64>() / cols as f64) as f32;
        let seen = mean > 0.0 && (1.0 / mean).is_finite();
        let scale = if seen { 1.0 / mean } else { 0.0 };
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|a, b| {
            let size = |i: usize| sum[i * (cols + 1)];
            size(*b).total_cmp(&size(*a))
        });
        let value = |at: usize| sum[order[at / cols] * cols + order[at % cols]] * scale;
        let mut moment: Vec<f32> = (0..cols * cols).map(value).collect();
        for i in 0..cols {
            moment[i * (cols + 1)] += if seen { DAMPING } else { 1.0 };
        }
        if let Some(factor) = upper_factor(team, cols, &|i, j| moment[i * cols + j]) {
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
