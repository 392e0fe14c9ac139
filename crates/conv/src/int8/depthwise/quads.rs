//! Depthwise windows of 3 × 3 and 5 × 5 with VNNI: four rows of a column of taps lie beside each
//! other in 32 bits, so that one product sums them. A column serves all the windows that it is
//! part of; sums are finished in their registers.
//!
//! Bringing rows together leaves channels in an order of their own, which packing them to bytes
//! undoes: of 16 channels, vector `v` of four has `4v` to `4v + 3`.

use std::arch::x86_64::*;

use sedge_kernels::Team;

use crate::{Picture, Shape};

use super::super::finish::avx512::{Quick, quantised};
use super::super::finish::{Finish, Scales};
use super::super::vectors::Vector;
use super::super::{Output, PANEL};
use super::{Depthwise, Line};

/// Windows whose sums are in registers together.
const WINDOWS: usize = 4;

/// Weights for these kernels.
#[derive(Debug)]
pub(in super::super) struct Quads {
    finish: Quick,
    line: LineFn,
    panels: Vec<Panel>,
}

/// Weights of up to 64 channels: four vectors, of which fewer channels use the beginnings.
#[derive(Debug)]
struct Panel {
    /// `[column of taps][four rows][vector]`
    weights: Vec<[[i8; 64]; 4]>,
    start: [[i32; 16]; 4],
    scale: [[f32; 16]; 4],
    bias: [[f32; 16]; 4],
}

type LineFn = unsafe fn(&Quads, &Line<'_>, usize, *mut u8, usize);

/// In which vector a channel of a panel is, and where.
fn place(channel: usize) -> (usize, usize) {
    (channel % 16 / 4, channel / 16 * 4 + channel % 4)
}

fn placed<T: Copy + Default>(from: &[T; PANEL]) -> [[T; 16]; 4] {
    let mut out = [[T::default(); 16]; 4];
    for (channel, x) in from.iter().enumerate() {
        let (vector, lane) = place(channel);
        out[vector][lane] = *x;
    }
    out
}

impl Quads {
    /// The kernel, where there is one.
    pub(in super::super) fn new(d: &Depthwise, finish: Finish, scales: &Scales) -> Option<Quads> {
        let window = d.window;
        let [side, across] = window.kernel;
        let [down, right] = window.stride;
        if side != across || down != right || window.dilation != [1, 1] {
            return None;
        }
        let line: LineFn = match (side, right) {
            (3, 1) => line::<3, 1>,
            (3, 2) => line::<3, 2>,
            (5, 1) => line::<5, 1>,
            (5, 2) => line::<5, 2>,
            _ => return None,
        };
        let quads = side.div_ceil(4);
        let panel = |panel: usize| {
            let mut weights = vec![[[0; 64]; 4]; side * quads];
            let taps = &d.weights[panel * window.taps()..][..window.taps()];
            for (tap, channels) in taps.iter().enumerate() {
                let (row, column) = (tap / side, tap % side);
                for (channel, w) in channels.iter().enumerate() {
                    let (vector, lane) = place(channel);
                    weights[column * quads + row / 4][vector][4 * lane + row % 4] = *w;
                }
            }
            Panel {
                weights,
                start: placed(&d.start[panel]),
                scale: placed(&scales.scale[panel]),
                bias: placed(&scales.bias[panel]),
            }
        };
        Some(Quads {
            finish: Quick::new(finish)?,
            line,
            panels: (0..d.start.len()).map(panel).collect(),
        })
    }

    /// Whether it can make such a result.
    pub(in super::super) fn takes(&self, y: Shape) -> bool {
        y.w >= WINDOWS
    }

    /// All of `y`, whose pixels are `stride` apart.
    pub(in super::super) fn run(
        &self,
        depthwise: &Depthwise,
        x: Picture<'_, u8>,
        y: Shape,
        (out, stride): (&Output<'_, u8>, usize),
        team: &Team,
    ) {
        assert!(self.takes(y));
        depthwise.lines(x, y, team, &|line| {
            let out = out.at(line.pixel * stride + line.panel * PANEL);
            // SAFETY: the set is there, or there would be no such kernel. The line's pixels have
            // the panel's channels, and are one task's.
            unsafe { (self.line)(self, &line, y.w, out, stride) };
        });
    }
}

/// The bytes of a line of `width` results.
///
/// # Safety
/// The machine has the set, the line's picture is there, and `out` has `width` pixels of the
/// panel's channels, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn line<const K: usize, const S: usize>(
    quads: &Quads,
    line: &Line<'_>,
    width: usize,
    out: *mut u8,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match line.channels() {
            0..=16 => line_of::<__m128i, K, S>(quads, line, width, out, stride),
            17..=32 => line_of::<__m256i, K, S>(quads, line, width, out, stride),
            _ => line_of::<__m512i, K, S>(quads, line, width, out, stride),
        }
    }
}

/// # Safety
/// As [`line`]; the channels fit a vector.
#[inline(always)]
unsafe fn line_of<V: Vector, const K: usize, const S: usize>(
    quads: &Quads,
    line: &Line<'_>,
    width: usize,
    out: *mut u8,
    stride: usize,
) {
    let panel = &quads.panels[line.panel];
    let mask = u64::MAX >> (64 - line.channels());
    let mut rows = [None; K];
    for (ky, row) in rows.iter_mut().enumerate() {
        *row = line.tap_row(ky);
    }
    let mut first = 0;
    while first < width {
        // The last windows overlap.
        let at = first.min(width - WINDOWS);
        let mut sums = [panel.start.map(|start| V::of(&start)); WINDOWS];
        for column in 0..(WINDOWS - 1) * S + K {
            // SAFETY: taps have the panel's channels.
            let x = unsafe {
                let tap = |row| V::load(line.tap(row, at * S + column), mask);
                rows.map(tap)
            };
            let x = together::<V, K>(x);
            for (window, sums) in sums.iter_mut().enumerate() {
                let Some(kx @ 0..) = column.checked_sub(window * S).filter(|kx| *kx < K) else {
                    continue;
                };
                let weights = &panel.weights[kx * K.div_ceil(4)..][..K.div_ceil(4)];
                for (x, w) in x.iter().zip(weights) {
                    for v in 0..4 {
                        sums[v] = sums[v].dot(x[v], V::of(&w[v]));
                    }
                }
            }
        }
        for (window, sums) in sums.iter().enumerate() {
            let mut numbers = [V::splat_f32(0.0); 4];
            for v in 0..4 {
                let (scale, bias) = (V::floats(&panel.scale[v]), V::floats(&panel.bias[v]));
                numbers[v] = V::fma(sums[v].to_f32(), scale, bias);
            }
            // SAFETY: the pixel is one of the line, and has the panel's channels.
            unsafe {
                let out = out.add((at + window) * stride);
                quantised::<V>(numbers, quads.finish).store(out, mask);
            }
        }
        first += WINDOWS;
    }
}

/// Bytes of three or five rows, four rows beside each other in 32 bits.
#[inline(always)]
fn together<V: Vector, const K: usize>(rows: [V; K]) -> [[V; 4]; 2] {
    let fourth = match K {
        3 => V::zero(),
        _ => rows[3],
    };
    let (low, low_next) = (rows[0].low8(rows[1]), rows[2].low8(fourth));
    let (high, high_next) = (rows[0].high8(rows[1]), rows[2].high8(fourth));
    let first = [
        low.low16(low_next),
        low.high16(low_next),
        high.low16(high_next),
        high.high16(high_next),
    ];
    let mut second = [V::zero(); 4];
    if K == 5 {
        for (v, second) in second.iter_mut().enumerate() {
            let mut order = [255; 16];
            for i in 0..4 {
                order[4 * i] = (4 * v + i) as u8;
            }
            *second = rows[4].shuffle(V::lanes(order));
        }
    }
    [first, second]
}
