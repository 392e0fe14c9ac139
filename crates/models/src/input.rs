//! What a layer's products read: the same rows as f32 for stored weights, as integers or
//! bfloat16 for packed ones, each made once. Where the file says that activations have fewer than
//! 8 bits, all rows are integers of so many, and what stored weights read is rounded alike.

use sedge_kernels::{
    ActivationBits, Activations, Forms, Product, Team, Weight, add_assign, add_bias, gated_product,
    gelu_mul, matmul, products, silu_mul,
};

use crate::changed::{ChangeWork, Changed, Changes, add_terms, change, scale_inputs};
use crate::config::Activation;
use crate::decoder::sized;
use crate::weights::{Gated, Linear};

impl Activation {
    /// Gates the second argument with the activated first one, which takes the result.
    fn gate(self) -> fn(&mut [f32], &[f32]) {
        match self {
            Activation::Silu => silu_mul,
            Activation::GeluTanh | Activation::Gelu => gelu_mul,
        }
    }
}

/// Rows of activations, in the forms that their readers want.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    rows: usize,
    plain: &'a [f32],
    /// What stored weights read: the same, unless activations have fewer bits.
    stored: &'a [f32],
    converted: &'a Activations,
    integers: usize,
}

/// How many rows there are, and how many of them, the first ones, packed weights multiply as
/// integers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rows {
    pub(crate) all: usize,
    pub(crate) integers: usize,
}

/// A product to be computed.
pub(crate) struct Read<'a> {
    pub(crate) linear: &'a Linear,
    /// `[rows, linear.rows]`.
    pub(crate) out: &'a mut [f32],
}

/// What some readers want.
struct Wanted {
    /// Bits of activations, if not 8.
    bits: Option<ActivationBits>,
    /// The forms that packed ones want; `None` if there are none.
    forms: Option<Forms>,
    /// Whether there are stored ones.
    stored: bool,
    /// Whether some are bipolar, with blocks of two groups of activations.
    pairs: bool,
    /// Whether all rows are integers, those of prompts too.
    integers: bool,
}

impl Wanted {
    fn by(readers: &[&Linear]) -> Wanted {
        let bits = bits(readers);
        let packed = readers.iter().filter_map(|r| match &r.weight {
            Weight::Packed(w) => Some(w.forms(bits.as_ref())),
            Weight::Stored(_) => None,
        });
        let forms = packed.reduce(|a, b| a | b);
        let stored = readers.iter().any(|r| !r.weight.is_packed());
        Wanted {
            bits,
            forms,
            stored,
            pairs: readers.iter().any(|r| bipolar(r)),
            integers: integers(readers),
        }
    }

    /// How many of the rows are not rounded to bfloat16, the rest being so for speed alone.
    fn exact(&self, rows: Rows) -> usize {
        match self.integers {
            true => rows.all,
            false => rows.integers,
        }
    }
}

fn bipolar(linear: &Linear) -> bool {
    linear.weight.dtype().bipolar_bits().is_some()
}

/// Whether some matrices read integers alone: because their activations have fewer bits than 8,
/// which a rounding to bfloat16 would ignore, or because all are bipolar, whose products of
/// integers are the faster ones for many rows too.
fn integers(readers: &[&Linear]) -> bool {
    bits(readers).is_some() || readers.iter().all(|r| bipolar(r))
}

/// The bits of activations that some matrices share.
fn bits(readers: &[&Linear]) -> Option<ActivationBits> {
    let (first, rest) = readers.split_first()?;
    let first = first.activation_bits.clone();
    rest.iter().fold(first, |bits, r| {
        ActivationBits::finest(bits.as_ref(), r.activation_bits.as_ref())
    })
}

impl<'a> Input<'a> {
    /// Rows that are there as f32, for these readers, of which there is one.
    pub(crate) fn of(
        team: &Team,
        x: &'a [f32],
        integers: usize,
        readers: &[&Linear],
        converted: &'a mut Activations,
    ) -> Input<'a> {
        let cols = readers[0].weight.cols();
        let (wanted, all) = (Wanted::by(readers), x.len() / cols);
        if let Some(forms) = &wanted.forms {
            let exact = wanted.exact(Rows { all, integers });
            converted.fill(team, x, cols, exact, forms.clone());
        }
        let coarse = wanted.bits.as_ref().filter(|_| wanted.stored);
        if let Some(bits) = coarse {
            converted.coarsen(team, x, cols, (bits, wanted.pairs));
        }
        let converted = &*converted;
        Input {
            rows: all,
            plain: x,
            stored: coarse.map_or(x, |_| converted.coarse()),
            converted,
            integers,
        }
    }

    /// Rows that `make` writes, for these readers. They are kept as f32 only where one of them,
    /// or the caller, wants them.
    pub(crate) fn made(
        team: &Team,
        rows: Rows,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
        readers: &[&Linear],
        plain: &'a mut Vec<f32>,
        converted: &'a mut Activations,
        keep: bool,
    ) -> Input<'a> {
        let cols = readers[0].weight.cols();
        let keep = keep || readers.iter().any(|r| r.watch.is_some());
        let wanted = Wanted::by(readers);
        if let (false, Some(forms)) = (wanted.stored, &wanted.forms) {
            let (shape, exact) = ((rows.all, cols), wanted.exact(rows));
            let forms = forms.clone();
            let plain = match keep {
                true => {
                    let plain = sized(plain, rows.all * cols);
                    converted.fill_kept(team, shape, exact, forms, make, plain);
                    &*plain
                }
                false => {
                    converted.fill_with(team, shape, exact, forms, make);
                    &[]
                }
            };
            return Input {
                rows: rows.all,
                plain,
                stored: &[],
                converted,
                integers: rows.integers,
            };
        }
        let plain = sized(plain, rows.all * cols);
        team.for_rows(plain, cols, make);
        Input::of(team, plain, rows.integers, readers, converted)
    }

    /// The rows as f32, if they were kept.
    pub(crate) fn plain(&self) -> &'a [f32] {
        self.plain
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
            if let Some(watch) = &linear.watch {
                watch.see(self.plain);
            }
            let bias = linear.bias.as_deref();
            match &linear.weight {
                Weight::Packed(weight) => Some(Product {
                    weight,
                    bias,
                    out,
                    add,
                }),
                Weight::Stored(weight) => {
                    matmul(team, self.stored, weight, out);
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
                self.converted,
                &mut packed.map(|p| p.expect("all are")),
            ),
            _ => {
                for product in packed.iter_mut().flatten() {
                    products(team, self.converted, std::slice::from_mut(product));
                }
            }
        }
    }

    /// `activation(x · gateᵀ) · (x · upᵀ)`, as input of `w.down`.
    fn gated<'b>(
        &self,
        team: &Team,
        activation: Activation,
        w: &Gated,
        work: &'b mut FeedForwardWork,
    ) -> Input<'b> {
        let activate = activation.gate();
        let FeedForwardWork {
            gate,
            up,
            converted,
            ..
        } = work;
        use Weight::Packed;
        let weights = (&w.gate.weight, &w.up.weight, &w.down.weight);
        let down_bits = w.down.activation_bits.as_ref();
        // As many rows of the result are rounded as of what it is made of.
        let alike = integers(&[&w.gate, &w.up]) == integers(&[&w.down]);
        let alike = alike || self.integers == self.rows;
        if let (Packed(gates), Packed(ups), Packed(down), true) =
            (weights.0, weights.1, weights.2, alike)
            && gates.forms(None) == ups.forms(None)
            && w.down.watch.is_none()
        {
            let next = (&mut *converted, down.forms(down_bits));
            let gates = (gates, w.gate.bias.as_deref());
            let ups = (ups, w.up.bias.as_deref());
            gated_product(team, self.converted, gates, ups, activate, gate, next);
            return Input {
                plain: &[],
                stored: &[],
                converted,
                ..*self
            };
        }
        let width = w.gate.weight.rows();
        let (gate, up) = (sized(gate, self.rows * width), sized(up, self.rows * width));
        let reads = [(&w.gate, &mut *gate), (&w.up, &mut *up)];
        self.products(team, reads.map(|(linear, out)| Read { linear, out }));
        let up = &*up;
        team.for_rows(gate, width, &|row, gate| {
            activate(gate, &up[row * width..][..width])
        });
        Input::of(team, gate, self.integers, &[&w.down], converted)
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
    let mut sums = std::mem::take(&mut work.sums);
    let inner = x.gated(team, activation, w, work);
    match out {
        FeedForwardOut::Set(out) => {
            let linear = &w.down;
            inner.products(team, [Read { linear, out }]);
        }
        FeedForwardOut::Add(out) => {
            let linear = &w.down;
            inner.add_product(team, Read { linear, out }, &mut sums);
        }
    }
    work.sums = sums;
}

/// The same for rows some of which have adapters that change gate, up and down.
pub(crate) fn adapted(
    team: &Team,
    activation: Activation,
    w: &Gated,
    x: Input<'_>,
    [of_gate, of_up, of_down]: [Changes<'_>; 3],
    (work, change_work): (&mut FeedForwardWork, &mut ChangeWork),
    out: ChangedOut<'_>,
) {
    let FeedForwardWork {
        gate,
        up,
        inner,
        converted,
        ..
    } = work;
    let width = w.gate.weight.rows();
    let (gate, up) = (sized(gate, x.rows * width), sized(up, x.rows * width));
    let reads = [(&w.gate, &mut *gate), (&w.up, &mut *up)];
    x.products(team, reads.map(|(linear, out)| Read { linear, out }));
    let products = [(&w.gate, of_gate, &mut *gate), (&w.up, of_up, &mut *up)];
    let products = products.map(|(linear, changes, out)| Changed {
        linear,
        changes,
        out,
    });
    change(team, (x.plain, x.integers), false, products, change_work);
    let (activate, gate, up) = (activation.gate(), &*gate, &*up);
    let make = |row: usize, out: &mut [f32]| {
        let here = row * width..(row + 1) * width;
        out.copy_from_slice(&gate[here.clone()]);
        activate(out, &up[here]);
        scale_inputs(out, row, &of_down);
    };
    let (linear, rows) = (
        &w.down,
        Rows {
            all: x.rows,
            integers: x.integers,
        },
    );
    let inner = Input::made(team, rows, &make, &[linear], inner, converted, true);
    inner.changed(team, linear, of_down, out, change_work);
}

/// Where the result of a product that adapters change goes.
pub(crate) enum ChangedOut<'a> {
    /// In place of what is there.
    Set(&'a mut [f32]),
    /// Added to what is in the first one; the second is working memory.
    Add(&'a mut [f32], &'a mut Vec<f32>),
}

impl Input<'_> {
    /// A product of rows whose inputs are scaled already, with its changes. What only adds to a
    /// product is added to where it goes, so that a row's sum has one order whatever its
    /// neighbours' adapters are.
    pub(crate) fn changed(
        &self,
        team: &Team,
        linear: &Linear,
        changes: Changes<'_>,
        out: ChangedOut<'_>,
        work: &mut ChangeWork,
    ) {
        let x = (self.plain, self.integers);
        let (out, sums) = match out {
            ChangedOut::Set(out) => {
                self.products(
                    team,
                    [Read {
                        linear,
                        out: &mut *out,
                    }],
                );
                let products = [Changed {
                    linear,
                    changes,
                    out,
                }];
                return change(team, x, true, products, work);
            }
            ChangedOut::Add(out, sums) => (out, sums),
        };
        let (adding, scaling): (Changes<'_>, Changes<'_>) = changes
            .into_iter()
            .partition(|(change, _)| change.only_adds());
        if scaling.is_empty() {
            let out = &mut *out;
            self.add_product(team, Read { linear, out }, sums);
        } else {
            let sums = sized(sums, out.len());
            self.changed(team, linear, scaling, ChangedOut::Set(sums), work);
            add_assign(out, sums);
        }
        add_terms(team, self.plain, &mut [(&adding, out)]);
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
    inner: Vec<f32>,
    sums: Vec<f32>,
    converted: Activations,
}
