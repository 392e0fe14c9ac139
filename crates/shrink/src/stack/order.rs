//! The order in which memory takes blocks: by what each was measured to be worth.
//!
//! With all blocks of all matrices, one matrix at a time is brought down to each of its levels,
//! and it is measured how far the model's predictions of a text then are from those of the model
//! as it was. Not the loss: that may fall for the wrong reason, where a text is not of the kind
//! that the model was made for. A block's worth is what the distance falls by for each byte; of
//! all matrices' next blocks the one that is worth most comes first. So one matrix may be some
//! blocks ahead of another, and a budget's model is that of the longest beginning that fits.
//!
//! BitStack measures from below, one matrix raised where all are at a level. Measured so, what
//! a block adds to a model that is broken elsewhere ranks it too high: matrices that seem not to
//! matter there are left behind.

use sedge_kernels::Team;
use sedge_models::{Model, StackedMatrix};

use crate::distance::Distance;

/// The order, from what each block is worth: `gains[matrix][n]` is what the distance falls by when
/// `n + 1` blocks of the matrix become `n + 2`, beside all blocks of the others.
pub(super) fn by_worth(matrices: &[StackedMatrix], gains: &[Vec<f64>]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..matrices.len() as u32).collect();
    let mut next = vec![1; matrices.len()];
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (number, matrix) in matrices.iter().enumerate() {
            let Some(block) = matrix.blocks.get(next[number]) else {
                continue;
            };
            let worth = gains[number][next[number] - 1] / block.bytes().len() as f64;
            if best.is_none_or(|(most, _)| worth > most) {
                best = Some((worth, number));
            }
        }
        let Some((_, number)) = best else {
            return order;
        };
        order.push(number as u32);
        next[number] += 1;
    }
}

/// Measures what each block is worth; see [`by_worth`]. The model's matrices are these stacks.
pub(super) fn gains(
    team: &Team,
    model: &mut Model,
    matrices: &[StackedMatrix],
    distance: &mut Distance<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Vec<f64>> {
    let whole: Vec<usize> = matrices.iter().map(|m| m.blocks.len()).collect();
    let total: usize = whole.iter().map(|blocks| blocks - 1).sum();
    let mut done = 0;
    let mut all = Vec::with_capacity(matrices.len());
    model.set_levels(&whole);
    let least = distance.of(team, model);
    for (number, matrix) in matrices.iter().enumerate() {
        let mut far = Vec::with_capacity(whole[number]);
        for level in 1..matrix.blocks.len() {
            let mut lowered = whole.clone();
            lowered[number] = level;
            model.set_levels(&lowered);
            let distance = distance.of(team, model);
            far.push(if distance.is_finite() { distance } else { 0.0 });
            done += 1;
            progress(done, total);
        }
        far.push(least);
        all.push(far.windows(2).map(|far| far[0] - far[1]).collect());
    }
    all
}

#[cfg(test)]
mod tests {
    use half::f16;
    use sedge_kernels::StackBlock;

    use super::*;

    #[test]
    fn first_blocks_come_first_and_then_what_is_worth_most_for_its_bytes() {
        let matrix = |name: &str, cols: usize| {
            let (rows, one) = (16, f16::ONE);
            let bytes = StackBlock::encode(
                (rows, cols),
                &vec![false; rows * cols],
                &[one; 16],
                &vec![one; cols],
            );
            let block = StackBlock::new(rows, cols, bytes.into()).unwrap();
            StackedMatrix {
                name: name.into(),
                rows,
                cols,
                blocks: vec![block; 3],
            }
        };
        let matrices = [matrix("small", 64), matrix("large", 640)];
        // The large one's second block is worth more, but not for its bytes.
        let gains = [vec![1.0, 0.1], vec![2.0, 1.9]];
        assert_eq!(by_worth(&matrices, &gains), [0, 1, 0, 1, 1, 0]);
        // A block that does harm still comes before those after it.
        let gains = [vec![-1.0, 5.0], vec![2.0, -3.0]];
        assert_eq!(by_worth(&matrices, &gains), [0, 1, 1, 1, 0, 0]);
    }
}
