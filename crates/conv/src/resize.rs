//! Resizing: each output row and column is a mean of two of the input's.

use sedge_kernels::Team;

use crate::lanes::{Kernel, Lanes, Set};
use crate::shared::{Shared, part, tasks};
use crate::{Picture, PictureMut, Shape};

/// Where the values of a row or a column come from: `(1 − weight) · first + weight · second`.
/// Which these are is the caller's, so all ways to map coordinates are the same to this code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Rows or columns of the input.
    pub from: [usize; 2],
    /// Of the second; at 0, only the first is read.
    pub weight: f32,
}

impl Mix {
    /// One row or column as it is: what the nearest is.
    pub fn one(from: usize) -> Mix {
        Mix {
            from: [from; 2],
            weight: 0.0,
        }
    }
}

/// `y[n, i, j] = ` the mean, by `rows[i]` and `columns[j]`, of four pixels of `x[n]`.
///
/// # Panics
/// When `y` has not as many rows and columns as there are of these, or they are not of `x`.
pub fn resize(x: Picture, rows: &[Mix], columns: &[Mix], y: &mut PictureMut, team: &Team) {
    resize_by(Set::best(), x, rows, columns, y, team);
}

fn resize_by(set: Set, x: Picture, rows: &[Mix], columns: &[Mix], y: &mut PictureMut, team: &Team) {
    let (from, to) = (x.shape(), y.shape());
    let (h, w) = (rows.len(), columns.len());
    assert_eq!(to, Shape { h, w, ..from }, "the result's shape differs");
    let within = |mixes: &[Mix], size: usize| {
        let mut all = mixes.iter().flat_map(|mix| mix.from);
        all.all(|from| from < size)
    };
    assert!(
        within(rows, from.h) && within(columns, from.w),
        "a row or column is not in the picture"
    );
    let lines = to.n * to.h;
    let tasks = tasks(lines, team.threads());
    let stride = y.stride();
    let out = Shared::new(y.values());
    team.run(tasks, &|task| {
        set.run(Lines {
            x,
            rows,
            columns,
            lines: part(task, tasks, lines),
            y: out,
            stride,
        });
    });
}

struct Lines<'a> {
    x: Picture<'a>,
    rows: &'a [Mix],
    columns: &'a [Mix],
    lines: std::ops::Range<usize>,
    /// The lines are this work's own.
    y: Shared<f32>,
    stride: usize,
}

impl Kernel for Lines<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let shape = self.x.shape();
        for line in self.lines.clone() {
            let picture = line / self.rows.len() * shape.h;
            let row = self.rows[line % self.rows.len()];
            for (i, column) in self.columns.iter().enumerate() {
                let at = |row: usize, column: usize| {
                    let pixel = (picture + row) * shape.w + column;
                    self.x.pixel(pixel).as_ptr()
                };
                let [top, below] = row.from;
                let [left, right] = column.from;
                let corners = [
                    at(top, left),
                    at(top, right),
                    at(below, left),
                    at(below, right),
                ];
                let [down, across] = [l.splat(row.weight), l.splat(column.weight)];
                let copied = row.weight == 0.0 && column.weight == 0.0;
                let mut c = 0;
                while c < shape.c {
                    let part = l.first(shape.c - c);
                    // SAFETY: pixels have their channels, and y has the pixel.
                    unsafe {
                        let mut mean = l.load_part(corners[0].add(c), part);
                        if !copied {
                            let b = l.load_part(corners[1].add(c), part);
                            let d = l.load_part(corners[2].add(c), part);
                            let e = l.load_part(corners[3].add(c), part);
                            mean = l.fma(across, l.sub(b, mean), mean);
                            let low = l.fma(across, l.sub(e, d), d);
                            mean = l.fma(down, l.sub(low, mean), mean);
                        }
                        let pixel = line * self.columns.len() + i;
                        l.store_part(mean, self.y.at(pixel * self.stride + c), part);
                    }
                    c += L::N;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    #[test]
    fn resizing_is_a_mean_of_four_pixels() {
        let mut random = Random(1);
        for round in 0..20 {
            let c = 1 + random.below(40);
            let from = Shape {
                n: 2,
                h: 4,
                w: 5,
                c,
            };
            let stride = c + random.below(3);
            let x = random.values(from.pixels() * stride);
            let x = Picture::strided(&x, from, stride);
            let mut mixes = |n: usize, size: usize| -> Vec<Mix> {
                let mut one = |_| match round % 2 {
                    0 => Mix::one(random.below(size)),
                    _ => Mix {
                        from: [random.below(size), random.below(size)],
                        weight: random.below(8) as f32 / 8.0,
                    },
                };
                (0..n).map(&mut one).collect()
            };
            let (rows, columns) = (mixes(7, 4), mixes(9, 5));
            let to = Shape { h: 7, w: 9, ..from };
            let mut expected = vec![];
            for i in 0..to.pixels() {
                let (row, column) = (rows[i / 9 % 7], columns[i % 9]);
                for c in 0..c {
                    let at = |r: usize, j: usize| {
                        x.pixel((i / 63 * 4 + row.from[r]) * 5 + column.from[j])[c]
                    };
                    let mean = |a: f32, b: f32, w: f32| (1.0 - w) * a + w * b;
                    let top = mean(at(0, 0), at(0, 1), column.weight);
                    let low = mean(at(1, 0), at(1, 1), column.weight);
                    expected.push(mean(top, low, row.weight));
                }
            }
            for set in Set::all() {
                let mut y = vec![0.0; to.values()];
                let mut out = PictureMut::new(&mut y, to);
                resize_by(set, x, &rows, &columns, &mut out, &Team::new(2));
                close(&y, &expected, 1e-6);
            }
        }
    }
}
