//! Products of weights and activations alone, by type, bits and rows, beside those of 8-bit
//! integers with vector instructions and of bfloat16 weights, in turns.
//!
//! Weights are several matrices in rotation, more than the caches hold, as the layers of a model
//! are. Activations are converted before.

use std::time::{Duration, Instant};

use sedge_kernels::{
    ActivationBits, Activations, DType, Matrix, Packed, Product, Team, quantize, rounds_fast,
    vector_products,
};

use crate::Spread;

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductCase {
    /// Type of the weights, one that Sedge writes.
    pub weights: DType,
    /// Bits of the activations, 1 to 8.
    pub bits: u8,
    /// Outputs and inputs of a matrix.
    pub shape: (usize, usize),
    /// Rows of activations.
    pub rows: usize,
}

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct ProductOptions {
    /// Turns; each times every way once.
    pub turns: usize,
    /// Bytes of weights in rotation, of each type.
    pub rotation: usize,
    /// Least time of one way in a turn.
    pub turn: Duration,
}

/// Figures of one case.
#[derive(Debug, Clone)]
pub struct ProductFigure {
    /// What was multiplied.
    pub case: ProductCase,
    /// The kernels that the measured table chose.
    pub kernels: &'static str,
    /// Bytes of a packed matrix.
    pub bytes: usize,
    /// Seconds of a product.
    pub seconds: Spread,
    /// How many times faster than q8_0 weights with 8-bit activations by vector instructions.
    pub over_int8: Spread,
    /// How many times faster than bfloat16 weights with f32 activations, which is what generated
    /// tokens take; up to 16 rows.
    pub over_bf16: Option<Spread>,
    /// How many times faster than bfloat16 weights with activations rounded to bfloat16, which
    /// is what prompts take where there are tiles; from 16 rows.
    pub over_bf16_tiles: Option<Spread>,
}

/// Rows up to which products with f32 activations are measured, and from which rounded ones are.
const MIDDLE: usize = 16;

/// Measures cases. `progress` hears of each before it is measured.
///
/// # Errors
/// When memory for the weights cannot be had.
///
/// # Panics
/// When a case's type is one that is not written or packed, its bits are not 1 to 8, or its
/// columns do not fill blocks of the type and of `q8_0`.
pub fn products(
    team: &Team,
    cases: &[ProductCase],
    options: &ProductOptions,
    progress: &mut dyn FnMut(usize, &ProductCase),
) -> std::io::Result<Vec<ProductFigure>> {
    let mut figures = Vec::new();
    let mut yardsticks: Option<((usize, usize), [Weights; 2])> = None;
    let mut ours: Option<(DType, Weights)> = None;
    for (i, case) in cases.iter().enumerate() {
        progress(i, case);
        if yardsticks
            .as_ref()
            .is_none_or(|(shape, _)| *shape != case.shape)
        {
            // Memory is given back before more is taken.
            drop((yardsticks.take(), ours.take()));
            let new = |dtype| Weights::new(team, dtype, case.shape, options.rotation);
            yardsticks = Some((case.shape, [new(DType::Q8_0)?, new(DType::BF16)?]));
        }
        if ours
            .as_ref()
            .is_none_or(|(dtype, _)| *dtype != case.weights)
        {
            drop(ours.take());
            let new = Weights::new(team, case.weights, case.shape, options.rotation)?;
            ours = Some((case.weights, new));
        }
        if let (Some((_, [int8, bf16])), Some((_, ours))) = (&mut yardsticks, &mut ours) {
            figures.push(measure(team, case, options, [ours, int8, bf16]));
        }
    }
    Ok(figures)
}

/// Matrices of one type and shape, one after the other in memory.
struct Weights {
    all: Vec<Packed>,
    next: usize,
}

impl Weights {
    fn new(
        team: &Team,
        dtype: DType,
        (rows, cols): (usize, usize),
        bytes: usize,
    ) -> std::io::Result<Weights> {
        // Some rows of normal values, again and again: what they are does not matter to time.
        let some = rows.min(64);
        let mut state = 1;
        let values: Vec<f32> = (0..some * cols).map(|_| normal(&mut state)).collect();
        let mut stored = Vec::new();
        quantize(dtype, &values, &mut stored).expect("a type that is written");
        let row = stored.len() / some;
        let stored: Vec<u8> = stored.iter().copied().cycle().take(row * rows).collect();
        let matrix = Matrix::new(dtype, rows, cols, stored.into()).expect("as many values");
        let count = bytes.div_ceil(row * rows).max(2);
        let stored: Vec<&Matrix> = (0..count).map(|_| &matrix).collect();
        let memory = Packed::pack(team, &stored, &mut |_| {})?;
        let all = Packed::within(stored.into_iter(), &memory).expect("its own memory");
        Ok(Weights { all, next: 0 })
    }

    fn next(&mut self) -> &Packed {
        self.next = (self.next + 1) % self.all.len();
        &self.all[self.next]
    }
}

/// Nearly normal, of variance 1.
fn normal(state: &mut u64) -> f32 {
    let mut sum = 0.0;
    for _ in 0..4 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        sum += (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    }
    sum * 3f32.sqrt()
}

type Multiply = fn(&Team, &Activations, &mut [Product<'_>]);

fn measure(
    team: &Team,
    case: &ProductCase,
    options: &ProductOptions,
    [ours, int8, bf16]: [&mut Weights; 3],
) -> ProductFigure {
    let (n, k) = case.shape;
    let bits = ActivationBits::new(&[case.bits], k).expect("1 to 8 bits");
    let mut state = 2;
    let x: Vec<f32> = (0..case.rows * k).map(|_| normal(&mut state)).collect();
    let mut out = vec![0.0; case.rows * n];
    let converted = |w: &Packed, bits, exact, unfilled: bool| {
        let mut forms = w.forms(bits);
        if unfilled {
            // Vector instructions gain nothing by rows of zeros.
            forms.few = MIDDLE;
        }
        let mut rows = Activations::default();
        rows.fill(team, &x, k, exact, forms);
        rows
    };
    let by_table = converted(&ours.all[0], bits.as_ref(), case.rows, false);
    let by_vectors = converted(&int8.all[0], None, case.rows, true);
    let exact = (case.rows <= MIDDLE).then(|| converted(&bf16.all[0], None, case.rows, false));
    let tiles = case.rows >= MIDDLE && rounds_fast();
    let rounded = tiles.then(|| converted(&bf16.all[0], None, 0, false));

    let mut time = |weights: &mut Weights, x: &Activations, multiply: Multiply| {
        let (start, mut count) = (Instant::now(), 0u32);
        while start.elapsed() < options.turn || count == 0 {
            let product = Product {
                weight: weights.next(),
                bias: None,
                out: &mut out,
                add: false,
            };
            multiply(team, x, &mut [product]);
            count += 1;
        }
        start.elapsed().as_secs_f64() / f64::from(count)
    };
    let mut seconds = Vec::new();
    let [mut over_int8, mut over_bf16, mut over_tiles] = [const { Vec::new() }; 3];
    // The first turn only warms up.
    for turn in 0..=options.turns {
        let own = time(ours, &by_table, sedge_kernels::products);
        let vectors = time(int8, &by_vectors, vector_products);
        let exact = exact
            .as_ref()
            .map(|x| time(bf16, x, sedge_kernels::products));
        let rounded = rounded
            .as_ref()
            .map(|x| time(bf16, x, sedge_kernels::products));
        if turn > 0 {
            seconds.push(own);
            over_int8.push(vectors / own);
            over_bf16.extend(exact.map(|t| t / own));
            over_tiles.extend(rounded.map(|t| t / own));
        }
    }
    let spread = |figures: &[f64]| Spread::of(figures).expect("at least one turn");
    ProductFigure {
        case: *case,
        kernels: ours.all[0].kernels(case.rows, bits.as_ref()),
        bytes: ours.all[0].bytes(),
        seconds: spread(&seconds),
        over_int8: spread(&over_int8),
        over_bf16: Spread::of(&over_bf16),
        over_bf16_tiles: Spread::of(&over_tiles),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_figures() {
        let options = ProductOptions {
            turns: 1,
            rotation: 1 << 10,
            turn: Duration::ZERO,
        };
        let case = |weights, bits, rows| ProductCase {
            weights,
            bits,
            rows,
            shape: (48, 256),
        };
        let cases = [
            case(DType::Q4K, 8, 1),
            case(DType::B2, 2, 16),
            case(DType::B2, 4, 20),
        ];
        let mut heard = 0;
        let found = products(&Team::new(2), &cases, &options, &mut |_, _| heard += 1).unwrap();
        assert_eq!((found.len(), heard), (3, 3));
        for (figure, case) in found.iter().zip(&cases) {
            assert_eq!(figure.case, *case);
            assert!(figure.seconds.median > 0.0 && figure.over_int8.median > 0.0);
            assert_eq!(figure.over_bf16.is_some(), case.rows <= 16);
            assert_eq!(
                figure.over_bf16_tiles.is_some(),
                case.rows >= 16 && rounds_fast()
            );
        }
        // Three strips of 256 columns each: planes and scales.
        assert_eq!(found[1].bytes, 3 * (2 * 512 + 64));
    }
}
