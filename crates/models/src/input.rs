//! What a layer's products read: the same rows as f32 for stored weights, as 8-bit integers for
//! packed ones, each made once.

use sedge_kernels::{
    Product, Quantized, Team, add_assign, add_bias, gated_product, gelu_mul, matmul, products,
    silu_mul,
};

use crate::config::Activation;
use crate::decoder::sized;
use crate::weights::{Gated, Linear};

/// Rows of activations, in the forms that their readers want.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    rows: usize,
    plain: &'a [f32],
    quantized: &'a Quantized,
}

/// A product to be computed.
pub(crate) struct Read<'a> {
    pub(crate) linear: &'a Linear,
    /// `[rows, linear.rows]`.
    pub(crate) out: &'a mut [f32],
}

impl<'a> Input<'a> {
    /// Rows of `cols` values that are there as f32, for these readers.
    pub(crate) fn of(
        team: &Team,
        x: &'a [f32],
        cols: usize,
        readers: &[&Linear],
        quantized: &'a mut Quantized,
    ) -> Input<'a> {
        if readers.iter().any(|r| r.weight.is_packed()) {
            quantized.fill(team, x, cols);
        }
        Input {
            rows: x.len() / cols,
            plain: x,
            quantized,
        }
    }

    /// Rows that `make` writes, for these readers. They are kept as f32 only where one wants them.
    pub(crate) fn made(
        team: &Team,
        (rows, cols): (usize, usize),
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
        readers: &[&Linear],
        plain: &'a mut Vec<f32>,
        quantized: &'a mut Quantized,
    ) -> Input<'a> {
        if readers.iter().all(|r| r.weight.is_packed()) {
            quantized.fill_with(team, rows, cols, make);
            return Input {
                rows,
                plain: &[],
                quantized,
            };
        }
        let plain = sized(plain, rows * cols);
        team.for_rows(plain, cols, make);
        Input::of(team, plain, cols, readers, quantized)
    }

    /// `out = x · wᵀ + b` for up to three matrices.
    pub(crate) fn products<const N: usize>(&self, team: &Team, reads: [Read<'_>; N]) {
        self.compute(team, reads, false);
    }

    /// `out += x · wᵀ + b`.
    pub(crate) fn add_product(&self, team: &Team, read: Read<'_>, work: &mut Vec<f32>) {
        if read.linear.weight.is_packed() {
            return self.compute(team, [read], true);
        }
        let sums = sized(work, read.out.len());
        let linear = read.linear;
        self.products(team, [Read { linear, out: sums }]);
        add_assign(read.out, sums);
    }

    fn compute<const N: usize>(&self, team: &Team, reads: [Read<'_>; N], add: bool) {
        let mut packed = reads.map(|Read { linear, out }| {
            let bias = linear.bias.as_deref();
            match &linear.weight {
                sedge_kernels::Weight::Packed(weight) => Some(Product {
                    weight,
                    bias,
                    out,
                    add,
                }),
                sedge_kernels::Weight::Stored(weight) => {
                    matmul(team, self.plain, weight, out);
                    if let Some(bias) = bias {
                        add_bias(out, bias);
                    }
                    None
                }
            }
        });
        match packed.iter().filter(|p| p.is_some()).count() {
            0 => {}
            n if n == N => products(
                team,
                self.quantized,
                &mut packed.map(|p| p.expect("all are")),
            ),
            _ => {
                for product in packed.iter_mut().flatten() {
                    products(team, self.quantized, std::slice::from_mut(product));
                }
            }
        }
    }

    /// `out = activation(x · gateᵀ) · (x · upᵀ)`, with `up` as working memory.
    pub(crate) fn gated(
        &self,
        team: &Team,
        activation: Activation,
        w: &Gated,
        up: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let activate = match activation {
            Activation::Silu => silu_mul,
            Activation::GeluTanh | Activation::Gelu => gelu_mul,
        };
        let forms = (&w.gate.weight, &w.up.weight);
        if let (sedge_kernels::Weight::Packed(gate), sedge_kernels::Weight::Packed(up)) = forms {
            let (gate, up) = ((gate, w.gate.bias.as_deref()), (up, w.up.bias.as_deref()));
            return gated_product(team, self.quantized, gate, up, activate, out);
        }
        let up = sized(up, out.len());
        let reads = [(&w.gate, &mut *out), (&w.up, &mut *up)];
        self.products(team, reads.map(|(linear, out)| Read { linear, out }));
        let inner = out.len() / self.rows.max(1);
        let up = &*up;
        team.for_rows(out, inner, &|row, gate| {
            activate(gate, &up[row * inner..][..inner])
        });
    }
}

/// `out = down(activation(gate(x)) · up(x))`, with `work` as working memory.
pub(crate) fn feed_forward(
    team: &Team,
    activation: Activation,
    w: &Gated,
    x: Input<'_>,
    work: &mut FeedForwardWork,
    out: FeedForwardOut<'_>,
) {
    let width = w.gate.weight.rows();
    let inner = sized(&mut work.gate, x.rows * width);
    x.gated(team, activation, w, &mut work.up, inner);
    let inner = Input::of(team, inner, width, &[&w.down], &mut work.quantized);
    match out {
        FeedForwardOut::Set(out) => {
            let linear = &w.down;
            inner.products(team, [Read { linear, out }]);
        }
        FeedForwardOut::Add(out) => {
            let linear = &w.down;
            inner.add_product(team, Read { linear, out }, &mut work.up);
        }
    }
}

/// Where a feed-forward block's result goes.
pub(crate) enum FeedForwardOut<'a> {
    /// In place of what is there.
    Set(&'a mut [f32]),
    /// Added to what is there.
    Add(&'a mut [f32]),
}

/// Working memory of a feed-forward block.
#[derive(Debug, Default)]
pub(crate) struct FeedForwardWork {
    gate: Vec<f32>,
    up: Vec<f32>,
    quantized: Quantized,
}
