//! Which matrix takes which type, so that a model of so many bytes loses least: what rounding
//! each matrix alone does to the model's predictions is measured, and every byte goes to where
//! it saves most.

use std::collections::BTreeMap;

use sedge_kernels::{DType, Matrix, Team};
use sedge_models::{Layerwise, Model, Origin, Rewriting, Site, Tensor};

use crate::distance::Distance;
use crate::round::nearest;
use crate::shrink::{ShrinkError, Types, check_text, decode};

/// Types that a matrix can take, from the smallest.
const TYPES: [DType; 9] = [
    DType::Q2K,
    DType::Q3K,
    DType::Iq4Xs,
    DType::Q4_0,
    DType::Q4K,
    DType::Q5_0,
    DType::Q5K,
    DType::Q6K,
    DType::Q8_0,
];

/// What each matrix is rounded to while the others are whole.
const TRIED: [DType; 2] = [DType::Q3K, DType::Q4_0];

/// Logits that are kept of the whole model: 64 MiB.
const LOGITS: usize = 16 << 20;

/// Rows of a matrix on which the errors of types are compared.
const ROWS: usize = 256;

/// A matrix and the types that it can take.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Tensor.
    pub tensor: String,
    /// From the smallest; of two as small, the better one only.
    pub candidates: Vec<Candidate>,
}

/// A type that a matrix can take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Type.
    pub dtype: DType,
    /// Bytes of the matrix.
    pub bytes: u64,
    /// What the model's predictions lose by it, in nats a token.
    pub loss: f64,
}

impl Candidate {
    fn of(tensor: &Tensor, dtype: DType, loss: f64) -> Candidate {
        let bytes = dtype.bytes_for(tensor.values()).unwrap_or(0) as u64;
        Candidate { dtype, bytes, loss }
    }
}

/// All matrices' choices.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of the file.
    pub choices: Vec<Choice>,
    /// Bytes of the file beside the matrices.
    pub overhead: u64,
}

/// Measures what each matrix's types cost, on sequences of tokens.
///
/// # Errors
/// When the model cannot be opened, is no decoder, the text is too short, or memory for its weights
/// cannot be had.
pub fn plan(
    origin: &Origin<'_>,
    text: &[Vec<u32>],
    team: &Team,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<Plan, ShrinkError> {
    check_text(text)?;
    let file = Rewriting::open(origin)?;
    let squares = squares(origin, &file, text, team)?;
    let mut model = origin.model()?.model;
    model.round_prompts(sedge_kernels::rounds_fast());
    model.pack(team).map_err(ShrinkError::Memory)?;
    let sample = sample(text, model.config().vocab);
    let mut distance = Distance::new(team, &model, &sample);
    let tensors: Vec<Tensor> = file.tensors().filter(|t| t.weight).collect();
    let total = tensors.len();
    let mut choices = Vec::new();
    for (done, tensor) in tensors.into_iter().enumerate() {
        progress(done, total, &tensor.name);
        choices.push(choice(
            &file,
            &tensor,
            &squares,
            &model,
            &mut distance,
            team,
        ));
    }
    let plain = file.tensors().filter(|t| !t.weight);
    let plain: u64 = plain.map(|t| t.values() as u64 * 4 + 32).sum();
    Ok(Plan {
        choices,
        overhead: file.overhead() + plain,
    })
}

/// What a tensor's rows are multiplied with: for each site its rows and mean squares.
type Squares = BTreeMap<String, Vec<(std::ops::Range<usize>, Vec<f32>)>>;

/// The mean squares of what every matrix reads, by one pass through the model as it is.
fn squares(
    origin: &Origin<'_>,
    file: &Rewriting<'_>,
    text: &[Vec<u32>],
    team: &Team,
) -> Result<Squares, ShrinkError> {
    let few = &text[..text.len().min(8)];
    let model = origin.model()?.model;
    let has = |name: &str| file.has(name);
    let mut layers = Layerwise::new(team, model, few, &has).ok_or(ShrinkError::Encoder)?;
    let mut all = Squares::new();
    while !layers.is_done() {
        let sites = layers.sites();
        let mut sums: BTreeMap<usize, (Vec<f64>, usize)> = BTreeMap::new();
        let columns = |input: usize| {
            let reader = sites.iter().find(|s: &&Site| s.input == input);
            reader.map_or(1, |s| s.weight.cols())
        };
        let seen = layers.observe(team, &mut |input, rows| {
            let columns = columns(input);
            let (sums, count) = sums.entry(input).or_insert((vec![0.0; columns], 0));
            add_squares(rows, sums);
            *count += rows.len() / columns;
        });
        seen.map_err(ShrinkError::Memory)?;
        for site in sites {
            let Some((sums, count)) = sums.get(&site.input) else {
                continue;
            };
            let mean = |s: &f64| (s / (*count).max(1) as f64) as f32;
            let squares = sums.iter().map(mean).collect();
            all.entry(site.tensor)
                .or_default()
                .push((site.rows, squares));
        }
        layers.advance(team).map_err(ShrinkError::Memory)?;
    }
    let mut sums = vec![0.0; layers.config().hidden];
    layers.head_inputs(team, &mut |rows| add_squares(rows, &mut sums));
    let tokens: usize = few.iter().map(Vec::len).sum();
    let mean = |s: &f64| (s / tokens.max(1) as f64) as f32;
    let head = match file.has("output.weight") {
        true => "output.weight",
        false => "token_embd.weight",
    };
    let squares = sums.iter().map(mean).collect();
    all.insert(head.into(), vec![(0..usize::MAX, squares)]);
    Ok(all)
}

fn add_squares(rows: &[f32], sums: &mut [f64]) {
    for row in rows.chunks_exact(sums.len().max(1)) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x * x);
        }
    }
}

/// What a tensor's types cost.
fn choice(
    file: &Rewriting<'_>,
    tensor: &Tensor,
    squares: &Squares,
    model: &Model,
    distance: &mut Distance<'_>,
    team: &Team,
) -> Choice {
    let columns = tensor.cols();
    let row = tensor.dtype.bytes_for(columns).unwrap_or(1);
    let pieces: Vec<Matrix> = file
        .pieces(&tensor.name)
        .into_iter()
        .filter_map(|bytes| Matrix::new(tensor.dtype, bytes.len() / row, columns, bytes).ok())
        .collect();
    let fits = |d: &&DType| d.bytes_for(columns).is_some();
    let tried = TRIED.iter().find(fits).copied().unwrap_or(DType::F16);
    // What the model loses when this matrix alone is rounded.
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for piece in &pieces {
        values.resize(piece.rows() * columns, 0.0);
        decode(team, piece, &mut values);
        bytes.extend_from_slice(&nearest(team, tried, &values, columns, None).bytes);
    }
    let changed = model.with_tensor(team, &tensor.name, tried, bytes.into());
    let Some(changed) = changed else {
        // What cannot be changed alone is not judged, and keeps what costs nothing anywhere.
        let whole = [DType::Q8_0, DType::F16].iter().find(fits).copied();
        return Choice {
            tensor: tensor.name.clone(),
            candidates: vec![Candidate::of(tensor, whole.unwrap_or(DType::F16), 0.0)],
        };
    };
    let lost = distance.of(team, &changed).max(0.0);
    // How the other types compare, on some rows.
    let empty = Vec::new();
    let sites = squares.get(&tensor.name).unwrap_or(&empty);
    let step = (tensor.values() / columns).div_ceil(ROWS).max(1);
    let mut sampled: Vec<(Vec<f32>, Option<&[f32]>)> = Vec::new();
    let mut first = 0;
    for piece in &pieces {
        for at in (0..piece.rows()).step_by(step) {
            let row = first + at;
            let site = sites.iter().find(|(rows, _)| rows.contains(&row));
            let mut values = vec![0.0; columns];
            piece.row(at, &mut values);
            sampled.push((values, site.map(|(_, squares)| &squares[..])));
        }
        first += piece.rows();
    }
    let error = |dtype: DType| -> f64 {
        // Rows that are multiplied with the same, together.
        let alike = |a: &(_, Option<&[f32]>), b: &(_, Option<&[f32]>)| {
            a.1.map(<[f32]>::as_ptr) == b.1.map(<[f32]>::as_ptr)
        };
        let groups = sampled.chunk_by(alike).map(|group| {
            let rows: Vec<f32> = group
                .iter()
                .flat_map(|(row, _)| row.iter().copied())
                .collect();
            nearest(team, dtype, &rows, columns, group[0].1).error
        });
        groups.sum()
    };
    let unit = lost / error(tried).max(f64::MIN_POSITIVE);
    let types = TYPES.iter().filter(fits);
    let types = types.map(|&dtype| Candidate::of(tensor, dtype, unit * error(dtype)));
    let mut candidates: Vec<Candidate> = types.collect();
    if candidates.is_empty() {
        candidates.push(Candidate::of(tensor, DType::F16, 0.0));
    }
    Choice {
        tensor: tensor.name.clone(),
        candidates: convex(candidates),
    }
}

/// Those that are worth their bytes: each further one saves less for a byte than the one before.
fn convex(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut kept: Vec<Candidate> = Vec::new();
    for next in candidates {
        if kept
            .last()
            .is_some_and(|last| next.bytes == last.bytes || next.loss >= last.loss)
        {
            continue;
        }
        while let [.., a, b] = kept[..]
            && saving(a, b) <= saving(b, next)
        {
            kept.pop();
        }
        kept.push(next);
    }
    kept
}

/// Loss that each byte saves from one candidate to the next.
fn saving(from: Candidate, to: Candidate) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes).max(1) as f64
}

impl Plan {
    /// The whole way from the smallest model to the largest: at each step the matrix for which a
    /// byte saves most takes its next type. Bytes of the file and loss after each step.
    pub fn frontier(&self) -> Vec<(u64, f64)> {
        let mut points = Vec::new();
        self.walk(&mut |bytes, loss, _| {
            points.push((bytes, loss));
            true
        });
        points
    }

    /// The types of a file of at most so many bytes.
    ///
    /// # Errors
    /// When the smallest is larger.
    pub fn within(&self, bytes: u64) -> Result<Types, ShrinkError> {
        let smallest = self.frontier()[0].0;
        if smallest > bytes {
            return Err(ShrinkError::TooSmall {
                wanted: bytes,
                smallest,
            });
        }
        let mut best = None;
        self.walk(&mut |size, _, types| {
            // Later steps are larger, but one matrix's next type may fit where another's did not.
            if size <= bytes {
                best = Some(types.to_vec());
            }
            size <= bytes
        });
        let mut at = best.unwrap_or_else(|| vec![0; self.choices.len()]);
        self.fill(bytes, &mut at);
        Ok(self.types(&at))
    }

    /// The types of the smallest file that loses at most so much.
    pub fn losing(&self, loss: f64) -> Types {
        let mut best = None;
        self.walk(&mut |_, lost, types| {
            best = Some(types.to_vec());
            lost > loss
        });
        let at = best.unwrap_or_else(|| vec![0; self.choices.len()]);
        self.types(&at)
    }

    /// What these types lose, by the plan.
    pub fn loss(&self, types: &Types) -> f64 {
        let of = |choice: &Choice| {
            let dtype = types.get(&choice.tensor);
            let taken = choice.candidates.iter().find(|c| Some(&c.dtype) == dtype);
            taken.map_or(0.0, |c| c.loss)
        };
        self.choices.iter().map(of).sum()
    }

    fn types(&self, at: &[usize]) -> Types {
        let of =
            |(choice, &i): (&Choice, &usize)| (choice.tensor.clone(), choice.candidates[i].dtype);
        self.choices.iter().zip(at).map(of).collect()
    }

    /// Walks the frontier until `see` has seen enough.
    fn walk(&self, see: &mut dyn FnMut(u64, f64, &[usize]) -> bool) {
        let mut at = vec![0; self.choices.len()];
        let (mut bytes, mut loss) = (self.overhead, 0.0);
        for choice in &self.choices {
            bytes += choice.candidates[0].bytes;
            loss += choice.candidates[0].loss;
        }
        while see(bytes, loss, &at) {
            let next = (0..at.len())
                .filter_map(|i| {
                    let candidates = &self.choices[i].candidates;
                    let (from, to) = (candidates[at[i]], *candidates.get(at[i] + 1)?);
                    Some((saving(from, to), i))
                })
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let Some((_, i)) = next else { return };
            let candidates = &self.choices[i].candidates;
            let (from, to) = (candidates[at[i]], candidates[at[i] + 1]);
            bytes += to.bytes - from.bytes;
            loss -= from.loss - to.loss;
            at[i] += 1;
        }
    }

    /// Spends what is left of a budget where it still buys something.
    fn fill(&self, budget: u64, at: &mut [usize]) {
        let size = |at: &[usize]| -> u64 {
            let each = self
                .choices
                .iter()
                .zip(at)
                .map(|(c, &i)| c.candidates[i].bytes);
            self.overhead + each.sum::<u64>()
        };
        let mut left = budget.saturating_sub(size(at));
        loop {
            let affordable = (0..at.len()).filter_map(|i| {
                let candidates = &self.choices[i].candidates;
                let (from, to) = (candidates[at[i]], *candidates.get(at[i] + 1)?);
                (to.bytes - from.bytes <= left).then(|| (saving(from, to), i))
            });
            let best = affordable.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let Some((_, i)) = best else { return };
            let candidates = &self.choices[i].candidates;
            left -= candidates[at[i] + 1].bytes - candidates[at[i]].bytes;
            at[i] += 1;
        }
    }
}

/// Sequences whose logits are kept: as many as fit.
fn sample(text: &[Vec<u32>], vocab: usize) -> Vec<Vec<u32>> {
    let tokens = (LOGITS / vocab.max(1)).clamp(128, 4096);
    let each = (tokens / 8).clamp(64, 256);
    let pieces = text
        .iter()
        .filter(|s| s.len() > 8)
        .map(|s| s[..s.len().min(each)].to_vec());
    pieces.take(tokens.div_ceil(each)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(dtype: DType, bytes: u64, loss: f64) -> Candidate {
        Candidate { dtype, bytes, loss }
    }

    fn plan() -> Plan {
        let choice = |tensor: &str, unit: f64| Choice {
            tensor: tensor.into(),
            candidates: convex(vec![
                candidate(DType::Q2K, 100, 8.0 * unit),
                candidate(DType::Q3K, 150, 3.0 * unit),
                candidate(DType::Q4K, 200, 1.0 * unit),
                candidate(DType::Q8_0, 400, 0.1 * unit),
            ]),
        };
        Plan {
            choices: vec![choice("a", 1.0), choice("b", 0.1)],
            overhead: 10,
        }
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let plan = plan();
        let points = plan.frontier();
        assert!(
            points
                .windows(2)
                .all(|p| p[0].0 < p[1].0 && p[0].1 > p[1].1)
        );
        assert_eq!(points[0], (210, 8.8));
        let types = plan.within(310).unwrap();
        assert_eq!((types["a"], types["b"]), (DType::Q4K, DType::Q2K));
        assert!((plan.loss(&types) - 1.8).abs() < 1e-9);
        let error = plan.within(209).unwrap_err().to_string();
        assert!(error.contains("210"), "{error}");
        let types = plan.losing(1.2);
        assert!(plan.loss(&types) <= 1.2);
        // What is left buys something further down the way.
        let types = plan.within(460).unwrap();
        assert_eq!((types["a"], types["b"]), (DType::Q4K, DType::Q4K));
    }

    #[test]
    fn types_that_are_not_worth_their_bytes_are_left_out() {
        let kept = convex(vec![
            candidate(DType::Q2K, 100, 5.0),
            candidate(DType::Q3K, 150, 4.9),
            candidate(DType::Q4_0, 200, 1.0),
            candidate(DType::Q4K, 200, 0.8),
            candidate(DType::Q5K, 300, 0.9),
            candidate(DType::Q8_0, 400, 0.0),
        ]);
        let types: Vec<DType> = kept.iter().map(|c| c.dtype).collect();
        assert_eq!(types, [DType::Q2K, DType::Q4K, DType::Q8_0]);
    }
}
