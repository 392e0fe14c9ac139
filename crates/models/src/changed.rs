//! Products with what adapters change of them: terms, scales of inputs and outputs, biases.
//! A row without an adapter keeps the bits that it has alone.

use sedge_kernels::{Activations, LowRankTerm, Team, add_low_rank, dequantize};

use crate::adapter::{Change, Kronecker, Term};
use crate::decoder::sized;
use crate::input::{Input, Read};
use crate::weights::Linear;

/// A product's changes, each with the rows that it is for.
pub(crate) type Changes<'a> = Vec<(&'a Change, &'a [u32])>;

/// Working memory.
#[derive(Debug, Default)]
pub(crate) struct ChangeWork {
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    converted: Activations,
}

/// Scales a row's inputs if its change says so.
pub(crate) fn scale_inputs(x: &mut [f32], row: usize, changes: &Changes<'_>) {
    for (change, rows) in changes {
        if let Some(inputs) = &change.inputs
            && rows.binary_search(&(row as u32)).is_ok()
        {
            multiply(x, inputs);
        }
    }
}

impl Change {
    /// Whether all that it does to outputs is to add to them.
    pub(crate) fn only_adds(&self) -> bool {
        self.outputs.is_none() && self.bias.is_none()
    }
}

/// A product that was computed as the model has it, and its changes.
pub(crate) struct Changed<'a> {
    pub(crate) linear: &'a Linear,
    pub(crate) changes: Changes<'a>,
    /// `[rows, linear.rows]`.
    pub(crate) out: &'a mut [f32],
}

/// Makes of products of `x`, of which packed weights multiply the first `integers` rows as
/// integers, what their changes make of them. Where `scaled`, inputs have been scaled before.
pub(crate) fn change<const N: usize>(
    team: &Team,
    (x, integers): (&[f32], usize),
    scaled: bool,
    mut products: [Changed<'_>; N],
    work: &mut ChangeWork,
) {
    for product in &mut products {
        if !scaled {
            product.scaled_inputs(team, x, integers, work);
        }
        product.without_bias();
    }
    let mut parts = products
        .each_mut()
        .map(|product| (&product.changes, &mut *product.out));
    add_terms(team, x, &mut parts);
    for product in &mut products {
        product.scale_outputs();
    }
}

/// Adds the terms of changes of `x` to outputs.
pub(crate) fn add_terms(team: &Team, x: &[f32], parts: &mut [(&Changes<'_>, &mut [f32])]) {
    let all = parts.iter().flat_map(|(changes, _)| changes.iter());
    let most = all.map(|(change, _)| change.terms.len()).max().unwrap_or(0);
    // A row takes one term at a time, so that its sum has one order.
    for nth in 0..most {
        let (mut terms, mut outs) = (Vec::new(), Vec::new());
        for (out, (changes, to)) in parts.iter_mut().enumerate() {
            for &(change, rows) in changes.iter() {
                match change.terms.get(nth) {
                    Some(Term::LowRank(term)) => terms.push(LowRankTerm {
                        x,
                        rows,
                        a: &term.a,
                        between: &term.between,
                        b: &term.b,
                        after: term.after.as_deref(),
                        out,
                    }),
                    Some(Term::Kronecker(term)) => add_kronecker(team, x, rows, term, to),
                    None => {}
                }
            }
            outs.push(&mut **to);
        }
        if !terms.is_empty() {
            add_low_rank(team, &terms, &mut outs);
        }
    }
}

impl Changed<'_> {
    /// Computes rows with scaled inputs again, for inputs that other products read as they are.
    fn scaled_inputs(&mut self, team: &Team, x: &[f32], integers: usize, work: &mut ChangeWork) {
        let (cols, n) = (self.linear.weight.cols(), self.linear.weight.rows());
        for (change, rows) in &self.changes {
            let Some(inputs) = &change.inputs else {
                continue;
            };
            let scaled = sized(&mut work.inputs, rows.len() * cols);
            for (to, &row) in scaled.chunks_exact_mut(cols).zip(*rows) {
                to.copy_from_slice(&x[row as usize * cols..][..cols]);
                multiply(to, inputs);
            }
            let integers = rows.partition_point(|&row| (row as usize) < integers);
            let out = sized(&mut work.outputs, rows.len() * n);
            let linear = self.linear;
            let input = Input::of(team, scaled, integers, &[linear], &mut work.converted);
            input.products(team, [Read { linear, out }]);
            for (from, &row) in out.chunks_exact(n).zip(*rows) {
                self.out[row as usize * n..][..n].copy_from_slice(from);
            }
        }
    }

    /// Takes the model's bias away where outputs are scaled or have another.
    fn without_bias(&mut self) {
        let Some(bias) = &self.linear.bias else {
            return;
        };
        self.of_rows(
            |change| change.outputs.is_some() || change.bias.is_some(),
            |_, out| {
                out.iter_mut()
                    .zip(bias)
                    .for_each(|(out, bias)| *out -= bias)
            },
        );
    }

    fn scale_outputs(&mut self) {
        let own = self.linear.bias.as_ref();
        self.of_rows(
            |change| change.outputs.is_some() || change.bias.is_some(),
            |change, out| {
                if let Some(outputs) = &change.outputs {
                    multiply(out, outputs);
                }
                if let Some(bias) = change.bias.as_ref().or(own) {
                    out.iter_mut()
                        .zip(bias)
                        .for_each(|(out, bias)| *out += bias);
                }
            },
        );
    }

    fn of_rows(&mut self, which: impl Fn(&Change) -> bool, each: impl Fn(&Change, &mut [f32])) {
        let n = self.linear.weight.rows();
        for (change, rows) in self.changes.iter().filter(|(change, _)| which(change)) {
            for &row in *rows {
                each(change, &mut self.out[row as usize * n..][..n]);
            }
        }
    }
}

fn multiply(x: &mut [f32], by: &[f32]) {
    x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
}

/// `out[row] += scale · (left ⊗ right) · x[row]`, as `left · X · rightᵀ` with the row's inputs
/// laid out as a matrix `X`.
fn add_kronecker(team: &Team, x: &[f32], rows: &[u32], term: &Kronecker, out: &mut [f32]) {
    let [left, right] = [&term.left, &term.right].map(|m| {
        let mut values = vec![0.0; m.rows() * m.cols()];
        dequantize(m.dtype(), m.bytes(), &mut values).expect("a matrix has the bytes of its shape");
        values
    });
    let (cols, n) = (
        term.left.cols() * term.right.cols(),
        term.left.rows() * term.right.rows(),
    );
    let mut sums = vec![0.0; rows.len() * n];
    team.for_rows(&mut sums, n, &|i, sums| {
        let x = &x[rows[i] as usize * cols..][..cols];
        kronecker_row(&left, &right, term, x, sums);
    });
    let width = term.rows.as_ref().map_or(n, |order| order.len());
    for (sums, &row) in sums.chunks_exact(n).zip(rows) {
        let out = &mut out[row as usize * width..][..width];
        match &term.rows {
            None => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            Some(order) => {
                for (out, &from) in out.iter_mut().zip(order.iter()) {
                    *out += sums[from as usize];
                }
            }
        }
    }
}

fn kronecker_row(left: &[f32], right: &[f32], term: &Kronecker, x: &[f32], sums: &mut [f32]) {
    let (right_rows, right_cols) = (term.right.rows(), term.right.cols());
    let left_cols = term.left.cols();
    // X · rightᵀ, `[left_cols, right_rows]`.
    let mut narrow = vec![0.0; left_cols * right_rows];
    for (x, narrow) in x
        .chunks_exact(right_cols)
        .zip(narrow.chunks_exact_mut(right_rows))
    {
        for (right, narrow) in right.chunks_exact(right_cols).zip(narrow) {
            *narrow = right.iter().zip(x).map(|(a, b)| a * b).sum::<f32>() * term.scale;
        }
    }
    for (left, sums) in left
        .chunks_exact(left_cols)
        .zip(sums.chunks_exact_mut(right_rows))
    {
        for (by, narrow) in left.iter().zip(narrow.chunks_exact(right_rows)) {
            sums.iter_mut()
                .zip(narrow)
                .for_each(|(sum, x)| *sum += by * x);
        }
    }
}
