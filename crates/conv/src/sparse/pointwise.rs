//! Pointwise convolutions whose weights are mostly zero.
//! Lists of inputs with a weight, for 1 to 16 outputs at once, and the order that keeps pixels in
//! caches while weights stream past.

use sedge_kernels::Team;

use super::SparseError;
use super::epilogue::Form;
use super::isa::{Isa, Work};
use super::lanes::Lanes;
use super::planes::{Planes, PlanesMut, Target};
use super::strip::{PANEL, Strip, widest};
use crate::{Activation, Aligned};

/// Bytes of pixels that are used for all outputs before the next are. Lists for few outputs read
/// a vector for every multiplication or two, and are only fast from the first level of cache;
/// others use what they read often enough that half of a small second level will do, and read
/// their weights, of which there are more, the less often.
const GROUP: [usize; 2] = [32 << 10, 256 << 10];

/// A pointwise convolution whose weights are mostly zero,
/// `y[o, p] = activation(Σ w[o, i] x[i, p] + bias[o] + add[o, p])`.
///
/// `block` outputs next to each other share a list of the inputs that any of them has a weight
/// for; weights that are 0 among them are multiplied. The time is that of the weights in lists.
#[derive(Clone, Debug)]
pub struct Sparse {
    inputs: usize,
    outputs: usize,
    block: usize,
    form: Form,
    /// Which block each list is for. Lists of equal length follow each other, since a processor
    /// foresees the end of a loop that ended there the last time.
    order: Vec<usize>,
    /// Where each list begins, and the last one's end.
    starts: Vec<usize>,
    /// Inputs, list after list.
    indices: Vec<u32>,
    /// For each panel of a block, for each input of its list, the weights of the panel's outputs.
    values: Aligned,
    /// Of all outputs of all blocks, 0 for those that do not exist.
    biases: Vec<f32>,
    isa: Isa,
}

impl Sparse {
    /// Packs `weights` `[outputs, inputs]`, with a list for each `block` of 1, 2, 4, 8 or 16
    /// outputs.
    ///
    /// # Errors
    /// When there is no such block, or weights or biases are not as many as there should be.
    pub fn new(
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        bias: Option<&[f32]>,
        activation: Activation,
        block: usize,
    ) -> Result<Sparse, SparseError> {
        Sparse::on(
            Isa::best(),
            weights,
            [outputs, inputs],
            bias,
            activation,
            block,
        )
    }

    pub(super) fn on(
        isa: Isa,
        weights: &[f32],
        [outputs, inputs]: [usize; 2],
        bias: Option<&[f32]>,
        activation: Activation,
        block: usize,
    ) -> Result<Sparse, SparseError> {
        if !BLOCKS.contains(&block) {
            return Err(SparseError::Block(block));
        }
        let large = SparseError::Large { outputs, inputs };
        if inputs > u32::MAX as usize || outputs > u32::MAX as usize {
            return Err(large);
        }
        let expected = outputs.checked_mul(inputs).ok_or(large)?;
        if weights.len() != expected {
            let found = weights.len();
            return Err(SparseError::Weights { found, expected });
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != outputs) {
            return Err(SparseError::Bias {
                found: bias.len(),
                expected: outputs,
            });
        }
        let blocks = outputs.div_ceil(block);
        let mut biases = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        biases.resize(blocks * block, 0.0);
        let weight = |output: usize, input: usize| match output < outputs {
            true => weights[output * inputs + input],
            false => 0.0,
        };
        let used = |at: usize, input: usize| {
            (at * block..(at + 1) * block).any(|output| weight(output, input) != 0.0)
        };
        let length = |at: &usize| (0..inputs).filter(|&input| used(*at, input)).count();
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by_cached_key(length);
        let (mut starts, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for &at in &order {
            let list = indices.len();
            let inputs = (0..inputs).filter(|&input| used(at, input));
            indices.extend(inputs.map(|input| input as u32));
            let first = at * block;
            for panel in (first..first + block).step_by(PANEL) {
                for &input in &indices[list..] {
                    let rows = panel..panel + block.min(PANEL);
                    values.extend(rows.map(|output| weight(output, input as usize)));
                }
            }
            starts.push(indices.len());
        }
        Ok(Sparse {
            inputs,
            outputs,
            block,
            form: Form::new(activation),
            order,
            starts,
            indices,
            values: Aligned::of(&values),
            biases,
            isa,
        })
    }

    /// The block with which weights `[outputs, inputs]` take the least time, by what an input of
    /// a list costs for each block.
    ///
    /// # Panics
    /// When the weights are not `outputs · inputs`.
    pub fn best_block(weights: &[f32], outputs: usize, inputs: usize) -> usize {
        assert_eq!(weights.len(), outputs * inputs, "weights of all outputs");
        let cost = |&(block, cost): &(usize, f32)| {
            let used = |rows: &[f32]| {
                (0..inputs)
                    .filter(|&i| rows[i..].iter().step_by(inputs).any(|w| *w != 0.0))
                    .count()
            };
            let lists = weights.chunks(block * inputs.max(1)).map(used);
            lists.sum::<usize>() as f32 * cost
        };
        let costs = BLOCKS.into_iter().zip(COSTS);
        costs
            .min_by(|a, b| cost(a).total_cmp(&cost(b)))
            .map_or(1, |(block, _)| block)
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Weights in lists, as a part of all.
    pub fn density(&self) -> f32 {
        let listed = self.indices.len() * self.block;
        listed as f32 / (self.outputs * self.inputs).max(1) as f32
    }

    /// Bytes of the packed weights, biases and lists.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.order)
            + size_of_val(&*self.starts)
            + size_of_val(&*self.indices)
            + size_of_val(self.values.values())
            + size_of_val(&*self.biases)
    }

    /// Computes all pixels of a picture. Allocates nothing.
    ///
    /// # Panics
    /// When `x` has not the inputs as planes, `y` or `add` not the outputs, or their sizes
    /// differ.
    pub fn run(&self, x: Planes<'_>, add: Option<Planes<'_>>, y: &mut PlanesMut<'_>, team: &Team) {
        assert_eq!(x.channels(), self.inputs, "planes of inputs");
        assert_eq!(y.channels(), self.outputs, "planes of outputs");
        assert_eq!(x.size(), y.size(), "sizes of inputs and outputs");
        if let Some(add) = add {
            assert_eq!(add.channels(), self.outputs, "planes that are added");
            assert_eq!(add.size(), y.size(), "sizes of outputs and what is added");
        }
        let pixels = x.pixels();
        let bytes = GROUP[usize::from(self.block >= 4)];
        let group = (bytes / size_of::<f32>() / self.inputs.max(1)).next_multiple_of(128);
        let groups = pixels.div_ceil(group);
        // Enough tasks that threads end at the same time, which one thread does anyway.
        let threads = team.threads();
        let parts = match threads {
            1 => 1,
            _ => (4 * threads).div_ceil(groups.max(1)).min(self.lists()),
        };
        let y = y.target();
        team.run(groups * parts, &|task| {
            let start = task / parts * group;
            let lists = |part: usize| part * self.lists() / parts;
            self.isa.run(Task {
                sparse: self,
                lists: (lists(task % parts), lists(task % parts + 1)),
                pixels: (start, pixels.min(start + group)),
                x,
                add,
                y,
            });
        });
    }

    /// Lists.
    pub(super) fn lists(&self) -> usize {
        self.order.len()
    }
}

/// Outputs that can share a list.
const BLOCKS: [usize; 5] = [1, 2, 4, 8, 16];

/// What an input of a list costs for each of them: what MobileNetV1 gained on a Sapphire Rapids
/// between 70 % and 90 % of zeros. Lists for one output wait for pixels, and a second output
/// comes free.
const COSTS: [f32; 5] = [1.0, 1.02, 1.5, 2.7, 6.0];

/// Some lists, and some pixels.
struct Task<'a> {
    sparse: &'a Sparse,
    lists: (usize, usize),
    pixels: (usize, usize),
    x: Planes<'a>,
    add: Option<Planes<'a>>,
    y: Target<'a>,
}

impl Work for Task<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (begin, end) = self.pixels;
        let (first, last) = self.lists;
        for list in first..last {
            // The pixels that come next, some planes with each list.
            let inputs = self.x.channels();
            let part = |list: usize| (list - first) * inputs / (last - first);
            for input in part(list)..part(list + 1) {
                self.x.prefetch(input, end, 2 * end - begin);
            }
            // SAFETY: planes are whole vectors of 16 apart, so what is read past the last pixel
            // is the plane's, and every task writes other pixels or outputs.
            unsafe {
                self.sparse.list(
                    l,
                    list,
                    (self.x.start().add(begin), self.x.stride()),
                    self.add.map(|add| (add.start().add(begin), add.stride())),
                    (self.y.at(0, begin), self.y.stride),
                    end - begin,
                );
            }
        }
    }
}

impl Sparse {
    /// The outputs of one list for `pixels` pixels from where `x`, `add` and `y` point to in
    /// their first planes, with the distances from plane to plane.
    ///
    /// # Safety
    /// - `x` can be read for whole vectors in all inputs' planes.
    /// - `add` can be read, and `y` written, for the pixels in the outputs' planes; nobody else
    ///   uses those meanwhile.
    #[inline(always)]
    pub(super) unsafe fn list<L: Lanes>(
        &self,
        l: L,
        list: usize,
        x: (*const f32, usize),
        add: Option<(*const f32, usize)>,
        y: (*mut f32, usize),
        pixels: usize,
    ) {
        let (start, end) = (self.starts[list], self.starts[list + 1]);
        let height = self.block.min(PANEL);
        let alone = height == PANEL && pixels % L::LANES == 1;
        let vectors = pixels.div_ceil(L::LANES) - usize::from(alone);
        // Strips as equal as can be: a last one of a single vector would waste the most.
        let strips = vectors.div_ceil(widest::<L>(height)).max(1);
        let first = self.order[list] * self.block;
        let last = self.outputs.min(first + self.block);
        for panel in (first..last).step_by(PANEL) {
            for strip in 0..strips {
                let (from, to) = (strip * vectors / strips, (strip + 1) * vectors / strips);
                let at = from * L::LANES;
                let last_one = alone && strip + 1 == strips;
                let values = start * self.block + (panel - first) * (end - start);
                // SAFETY: lists are as long as `starts` says; the rest is the caller's promise.
                unsafe {
                    Strip {
                        indices: self.indices.as_ptr().add(start),
                        count: end - start,
                        values: self.values.values().as_ptr().add(values),
                        biases: self.biases.as_ptr().add(panel),
                        rows: height.min(last - panel),
                        x: (x.0.add(at), x.1),
                        add: add.map(|add| (add.0.add(panel * add.1 + at), add.1)),
                        y: (y.0.add(panel * y.1 + at), y.1),
                        pixels: pixels.min(to * L::LANES + usize::from(last_one)) - at,
                        alone: last_one,
                        form: self.form,
                    }
                    .run(l, height, to - from);
                }
            }
        }
    }
}
