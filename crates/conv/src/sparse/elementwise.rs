//! What is done to each value of planes, or to all of one.

use sedge_kernels::Team;

use super::epilogue::Form;
use super::isa::{Isa, Work};
use super::lanes::{Lanes, first};
use super::planes::{Planes, PlanesMut, Target};
use crate::Activation;

impl Planes<'_> {
    /// The mean of each plane. Allocates nothing.
    ///
    /// # Panics
    /// When `means` has not a value for each plane.
    pub fn mean(&self, means: &mut [f32], team: &Team) {
        assert_eq!(means.len(), self.channels(), "means of all planes");
        let isa = Isa::best();
        team.for_rows(means, 1, &|channel, mean| {
            isa.run(Mean {
                x: self.plane(channel),
                mean: &mut mean[0],
            });
        });
    }
}

impl PlanesMut<'_> {
    /// Multiplies each plane by a value of its own, and applies an activation.
    ///
    /// # Panics
    /// When `scales` has not a value for each plane.
    pub fn scale(&mut self, scales: &[f32], activation: Activation, team: &Team) {
        assert_eq!(scales.len(), self.channels(), "scales of all planes");
        self.each(Operand::Scales(scales), activation, team);
    }

    /// Adds planes to these, and applies an activation.
    ///
    /// # Panics
    /// When `x` has other planes.
    pub fn add(&mut self, x: Planes<'_>, activation: Activation, team: &Team) {
        assert_eq!(x.channels(), self.channels(), "planes that are added");
        assert_eq!(x.size(), self.size(), "size of what is added");
        self.each(Operand::Planes(x), activation, team);
    }

    /// Applies an activation to each value.
    pub fn activate(&mut self, activation: Activation, team: &Team) {
        self.each(Operand::Nothing, activation, team);
    }

    fn each(&mut self, operand: Operand<'_>, activation: Activation, team: &Team) {
        let isa = Isa::best();
        let [h, w] = self.size();
        let channels = self.channels();
        let y = self.target();
        let run = channels.div_ceil(4 * team.threads()).max(1);
        team.run(channels.div_ceil(run), &|task| {
            for channel in task * run..channels.min((task + 1) * run) {
                isa.run(Each {
                    channel,
                    pixels: h * w,
                    operand,
                    form: Form::new(activation),
                    y,
                });
            }
        });
    }
}

/// What a plane is combined with.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Nothing,
    Scales(&'a [f32]),
    Planes(Planes<'a>),
}

/// One plane.
struct Each<'a> {
    channel: usize,
    pixels: usize,
    operand: Operand<'a>,
    form: Form,
    y: Target<'a>,
}

impl Work for Each<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // SAFETY: no other task has this channel.
        let y = unsafe { self.y.plane(self.channel) };
        let (scale, other) = match self.operand {
            Operand::Nothing => (1.0, None),
            Operand::Scales(scales) => (scales[self.channel], None),
            Operand::Planes(x) => (1.0, Some(x.plane(self.channel))),
        };
        let scale = l.splat(scale);
        for at in (0..self.pixels).step_by(L::LANES) {
            let n = (self.pixels - at).min(L::LANES);
            let mask = first(n);
            let values = y[at..at + n].as_mut_ptr();
            // SAFETY: the mask is as long as the slices.
            unsafe {
                let mut v = l.mul(l.load_masked(values, mask), scale);
                if let Some(other) = other {
                    v = l.add(v, l.load_masked(other[at..at + n].as_ptr(), mask));
                }
                l.store_masked(self.form.apply(l, v), values, mask);
                self.form.finish(values, n);
            }
        }
    }
}

/// The mean of one plane.
struct Mean<'a> {
    x: &'a [f32],
    mean: &'a mut f32,
}

impl Work for Mean<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut sums = [l.splat(0.0); 2];
        for (i, values) in self.x.chunks(L::LANES).enumerate() {
            // SAFETY: the mask is as long as the slice.
            let values = unsafe { l.load_masked(values.as_ptr(), first(values.len())) };
            sums[i % 2] = l.add(sums[i % 2], values);
        }
        let mut lanes = [0.0; 16];
        // SAFETY: no vector is longer than the array.
        unsafe { l.store(l.add(sums[0], sums[1]), lanes.as_mut_ptr()) };
        *self.mean = lanes.iter().sum::<f32>() / self.x.len().max(1) as f32;
    }
}
