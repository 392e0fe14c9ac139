//! Blocks of fine-tunes that are nearly the same, and one serving for the other.
//! What this changes is no more exact: whoever asks for it must know what it costs.

use sedge_kernels::{Matrix, Team, Weight};

use crate::family::{Family, Place};
use crate::open::Model;
use crate::weights::LayerWeights;

/// A layer of one member that is near another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similar {
    /// The member whose layer it is.
    pub member: usize,
    /// The layer.
    pub layer: usize,
    /// The earlier member whose layer is nearest to it.
    pub with: usize,
    /// Cosine of all their weights, as one vector each.
    pub cosine: f64,
}

impl Model {
    /// For every layer of a member that is not an earlier one's, the earlier one nearest to it.
    /// All weights of such layers are read.
    pub fn similar(&mut self, team: &Team) -> Vec<Similar> {
        let Model::Decoder(model) = self else {
            return Vec::new();
        };
        let family = &mut model.family;
        let mut found = Vec::new();
        for member in 1..family.members.len() {
            for layer in 0..model.config.layers.len() {
                found.extend(family.nearest(member, layer, team));
            }
        }
        found
    }

    /// Adds a member that is equal to another; its number.
    ///
    /// # Panics
    /// When there is no such member.
    pub fn double(&mut self, member: usize) -> usize {
        match self {
            Model::Decoder(model) => {
                let weights = model.family.members[member].clone();
                model.family.add(weights)
            }
            Model::Encoder(_) => member,
        }
    }

    /// Lets the nearest layer serve in place of the member's own from now on, norms included.
    ///
    /// # Panics
    /// When there is no such member or layer.
    pub fn substitute(&mut self, similar: &Similar) {
        if let Model::Decoder(model) = self {
            model.family.substitute(similar);
        }
    }
}

impl Family {
    fn nearest(&mut self, member: usize, layer: usize, team: &Team) -> Option<Similar> {
        if (0..member).any(|other| self.has_layer_of(member, other, layer)) {
            return None;
        }
        let (earlier, rest) = self.members.split_at_mut(member);
        let own = &mut rest[0].layers[layer];
        let mut best: Option<Similar> = None;
        for (with, other) in earlier.iter_mut().enumerate() {
            let cosine = cosine(own, &mut other.layers[layer], team);
            if best.is_none_or(|best| cosine > best.cosine) {
                best = Some(Similar {
                    member,
                    layer,
                    with,
                    cosine,
                });
            }
        }
        best
    }
}

/// Dot product and squared lengths, summed row by row.
fn cosine(a: &mut LayerWeights, b: &mut LayerWeights, team: &Team) -> f64 {
    let mut sums = [0.0; 3];
    for (a, b) in a.matrices().into_iter().zip(b.matrices()) {
        let (a, b) = (Reader::of(a), Reader::of(b));
        let mut rows = vec![[0.0f64; 3]; a.rows()];
        team.for_rows(&mut rows, 1, &|row, sums| {
            let (mut x, mut y) = (vec![0.0; a.cols()], vec![0.0; b.cols()]);
            a.row(row, &mut x);
            b.row(row, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                sums[0][0] += x * y;
                sums[0][1] += x * x;
                sums[0][2] += y * y;
            }
        });
        for row in rows {
            for (sum, part) in sums.iter_mut().zip(row) {
                *sum += part;
            }
        }
    }
    match sums[1] * sums[2] {
        0.0 => 0.0,
        squares => sums[0] / squares.sqrt(),
    }
}

/// A matrix, read row by row.
enum Reader<'a> {
    Weight(&'a Weight),
    Matrix(&'a Matrix),
}

impl<'a> Reader<'a> {
    fn of(place: Place<'a>) -> Reader<'a> {
        match place {
            Place::Weight(w) => Reader::Weight(w),
            Place::Matrix(m) => Reader::Matrix(m),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Reader::Weight(w) => w.rows(),
            Reader::Matrix(m) => m.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Reader::Weight(w) => w.cols(),
            Reader::Matrix(m) => m.cols(),
        }
    }

    fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Reader::Weight(w) => w.row(row, out),
            Reader::Matrix(m) => m.row(row, out),
        }
    }
}
