//! Every set against the definition, and the definition against f64.

use proptest::prelude::*;

use super::choice::{Choice, Set};
use super::kernels::{self, Kernels};
use super::product::products_on;
use super::*;

/// Reproducible values in −1 to 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The quantised types, then those of 16 bits.
fn types() -> Vec<DType> {
    let packed = DType::ALL.into_iter().filter(|d| facts(*d).is_some());
    let mut all: Vec<DType> = packed.collect();
    all.sort_by_key(|d| halves::is_half(*d));
    all
}

/// Random bytes, with ordinary scales of both signs.
fn matrix(dtype: DType, rows: usize, cols: usize, seed: u64) -> Matrix {
    let len = dtype.bytes_for(rows * cols).unwrap();
    if halves::is_half(dtype) {
        let bits = |v: &f32| match dtype {
            DType::F16 => f16::from_f32(*v).to_bits(),
            _ => half::bf16::from_f32(*v).to_bits(),
        };
        let values = values(rows * cols, seed);
        let bytes: Vec<u8> = values.iter().flat_map(|v| bits(v).to_le_bytes()).collect();
        return Matrix::new(dtype, rows, cols, bytes.into()).unwrap();
    }
    let mut bytes: Vec<u8> = values(len, seed)
        .iter()
        .map(|v| (v * 128.0) as i8 as u8)
        .collect();
    let scales: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_mut(dtype.block_bytes()) {
        for &at in scales {
            let value = f32::from(block[at] as i8) / 512.0;
            block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
    }
    Matrix::new(dtype, rows, cols, bytes.into()).unwrap()
}

fn columns(dtype: DType, pick: usize) -> usize {
    if halves::is_half(dtype) {
        return [1, 31, 64, 96, 255, 300][pick % 6];
    }
    let blocks = match dtype.block_len() {
        32 => [1, 2, 3, 7, 64, 67][pick % 6],
        128 => [1, 2, 3, 4, 16, 17][pick % 6],
        _ => [1, 2, 9][pick % 3],
    };
    dtype.block_len() * blocks
}

fn packed(w: &Matrix) -> Packed {
    let memory = Packed::pack(&Team::new(2), &[w], &mut |_| {}).unwrap();
    Packed::within([w].into_iter(), &memory).unwrap().remove(0)
}

fn product(k: &'static Kernels, threads: usize, x: &[f32], w: &Packed) -> Vec<f32> {
    product_of(k, threads, x, w, None)
}

/// A list of bits for each group: all alike, or any.
fn bits_for(cols: usize, pick: u8, seed: u64) -> Option<ActivationBits> {
    let list = match pick {
        1..9 => vec![pick],
        _ => values(cols.div_ceil(64), seed)
            .iter()
            .map(|v| 1 + ((v + 1.0) * 3.99) as u8)
            .collect(),
    };
    ActivationBits::new(&list, cols).unwrap()
}

fn product_of(
    k: &'static Kernels,
    threads: usize,
    x: &[f32],
    w: &Packed,
    bits: Option<&ActivationBits>,
) -> Vec<f32> {
    let team = Team::new(threads);
    let mut quantized = Activations::default();
    quantized.fill(&team, x, w.cols(), x.len() / w.cols(), w.forms(bits));
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    products_on(
        Set::Only(k),
        &team,
        &quantized,
        &mut [Product {
            weight: w,
            bias: None,
            out: &mut out,
            add: false,
        }],
    );
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_packed_row_has_the_values_of_the_stored_one(d in 0usize..22, n in 1usize..40, pick in 0usize..6, seed: u32) {
        let dtype = types()[d];
        let w = matrix(dtype, n, columns(dtype, pick), seed.into());
        let p = packed(&w);
        let (mut a, mut b) = (vec![0.0; w.cols()], vec![0.0; w.cols()]);
        for row in 0..n {
            w.row(row, &mut a);
            p.row(row, &mut b);
            for (a, b) in a.iter().zip(&b) {
                prop_assert!(a == b, "{dtype}: {a}, packed {b}");
            }
        }
    }

    #[test]
    fn every_set_packs_quantises_and_multiplies_to_the_same_bits(
        d in 0usize..22, m in 1usize..50, n in 1usize..40, pick in 0usize..6, seed: u32, threads in 1usize..3,
        q in 1u8..10,
    ) {
        let dtype = types()[d];
        let k = columns(dtype, pick);
        let w = matrix(dtype, n, k, seed.into());
        let p = packed(&w);
        let x = values(m * k, u64::from(seed) + 1);
        let bits = bits_for(k, q, seed.into());
        let expected = product_of(&kernels::PORTABLE, 1, &x, &p, bits.as_ref());
        for set in kernels::all() {
            let facts = facts(dtype).unwrap();
            let mut strip = vec![0u8; strip_bytes(facts, k)];
            let rows = n.min(STRIP) * w.row_bytes();
            if !halves::is_half(dtype) {
                (set.pack)(dtype, &w.bytes()[..rows], w.row_bytes(), &mut strip);
            }
            prop_assert!(halves::is_half(dtype) || p.with_strip(0, |other| strip == other), "{dtype}: {} packs otherwise", set.name);
            let out = product_of(set, threads, &x, &p, bits.as_ref());
            for (i, (a, b)) in out.iter().zip(&expected).enumerate() {
                prop_assert!(a == b, "{dtype} × {q} bits, {}: output {i} of {m} × {n} × {k} is {a}, not {b}", set.name);
            }
        }
    }

    #[test]
    fn the_definition_is_near_f64(d in 0usize..22, m in 1usize..4, pick in 0usize..6, seed: u32, power in -12i32..12) {
        let dtype = types()[d];
        let (n, k) = (19, columns(dtype, pick));
        let w = matrix(dtype, n, k, seed.into());
        let mut x = values(m * k, u64::from(seed) + 1);
        x.iter_mut().for_each(|x| *x *= 10f32.powi(power));
        let out = product(&kernels::PORTABLE, 1, &x, &packed(&w));
        let mut row = vec![0.0; k];
        for r in 0..n {
            w.row(r, &mut row);
            for (i, x) in x.chunks(k).enumerate() {
                let exact: f64 = x.iter().zip(&row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                // An activation is off by at most half a step of its group, here 1/254 of the
                // largest value there is.
                let largest = f64::from(x.iter().fold(0f32, |a, b| a.max(b.abs())));
                let weights: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                let size: f64 = x.iter().zip(&row).map(|(a, b)| f64::from((a * b).abs())).sum();
                let bound = weights * largest / 253.0 + size * 1e-4 + 1e-30;
                let y = f64::from(out[i * n + r]);
                prop_assert!((y - exact).abs() <= bound, "{dtype}: {y}, not {exact}");
            }
        }
    }

    /// For each pair of bits, products of bits and of bytes, in all sets, few rows and many.
    #[test]
    fn products_of_bits_are_those_of_bytes(p in 1usize..4, q in 1u8..3, m in 1usize..40, n in 1usize..40, blocks in 1usize..8, seed: u32) {
        let k = 128 * blocks;
        let w = packed(&matrix(DType::bipolar(p).unwrap(), n, k, seed.into()));
        let bits = bits_for(k, q, 0);
        let x = values(m * k, u64::from(seed) + 1);
        let expected = product_of(&kernels::PORTABLE, 1, &x, &w, bits.as_ref());
        let serial = |_: DType| {
            let few = kernels::all().into_iter().rfind(|set| set.serial);
            let few = few.unwrap_or(kernels::kernels());
            let few_rows = if few.direct.is_some() { quantized::BLOCK_ROWS } else { 0 };
            Choice { few, many: kernels::kernels(), few_rows }
        };
        let team = Team::new(2);
        let mut rows = Activations::default();
        rows.fill(&team, &x, k, m, Forms { few: quantized::BLOCK_ROWS, ..w.forms(bits.as_ref()) });
        let mut out = vec![f32::NAN; m * n];
        let product = Product { weight: &w, bias: None, out: &mut out, add: false };
        products_on(Set::By(kernels::kernels(), serial), &team, &rows, &mut [product]);
        prop_assert_eq!(&out, &expected);
        let product = Product { weight: &w, bias: None, out: &mut out, add: false };
        vector_products(&team, &rows, &mut [product]);
        prop_assert_eq!(&out, &expected);
    }

    /// The integers that products are of stand for activations near enough to the real ones.
    #[test]
    fn fewer_bits_are_coarser_but_near(q in 1u8..9, groups in 1usize..4, seed: u32) {
        let x = values(64 * groups, seed.into());
        let mut y = x.clone();
        if let Some(bits) = ActivationBits::new(&[q], x.len()).unwrap() {
            activations::coarsen(&mut y, &bits, seed % 2 == 0);
        }
        let sum = |of: &dyn Fn(f32, f32) -> f32| -> f32 { x.iter().zip(&y).map(|(x, y)| of(*x, *y)).sum() };
        let off = (sum(&|x, y| (x - y).powi(2)) / sum(&|x, _| x * x)).sqrt();
        // A uniform value loses a half with one bit, and half as much with each further one.
        let most = [0.6, 0.35, 0.35, 0.12, 0.06, 0.03, 0.015, 0.0][usize::from(q) - 1];
        prop_assert!(off <= most, "{q} bits: {off}");
        prop_assert!(q == 8 || off >= most / 4.0);
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch(d in 0usize..22, m in 2usize..40, n in 1usize..40, pick in 0usize..6, seed: u32) {
        let dtype = types()[d];
        let k = columns(dtype, pick);
        let p = packed(&matrix(dtype, n, k, seed.into()));
        let x = values(m * k, u64::from(seed) + 1);
        for set in kernels::all() {
            let all = product(set, 2, &x, &p);
            for (x, y) in x.chunks(k).zip(all.chunks(n)) {
                prop_assert_eq!(&product(set, 1, x, &p)[..], y);
            }
        }
    }

    #[test]
    fn every_set_quantises_alike(seed: u32, power in -40i32..38, sparse in any::<bool>(), q in 1usize..9, together in 1usize..3) {
        let mut x = values(together * layout::GROUP, seed.into());
        x.iter_mut().enumerate().for_each(|(i, x)| {
            *x *= if sparse && i % 7 > 0 { 0.0 } else { 10f32.powi(power) };
        });
        let x: &[[f32; layout::GROUP]] = x.as_chunks().0;
        let run = |k: &Kernels| {
            let (mut codes, mut scales, mut sums) = ([[0; 64]; 2], [0.0; 2], [[0; 4]; 2]);
            let mut slab_sums = [[0.0; 2]; 2];
            let cells = codes.iter_mut().zip(&mut scales).zip(sums.iter_mut().zip(&mut slab_sums));
            let mut outs: Vec<_> = cells
                .map(|((codes, scale), (sums, slab_sums))| quantized::GroupOut { codes, scale, sums, slab_sums })
                .collect();
            (k.quantize)(x, q, &mut outs[..x.len()]);
            (codes, scales.map(f32::to_bits), sums, slab_sums.map(|s| s.map(f32::to_bits)))
        };
        let expected = run(&kernels::PORTABLE);
        let scale = f32::from_bits(expected.1[0]);
        prop_assert!(together == 1 || expected.1[0] == expected.1[1]);
        for (code, x) in expected.0.as_flattened().iter().zip(x.as_flattened()).filter(|_| q > 2) {
            let back = f32::from(*code) * scale;
            prop_assert!((back - x).abs() <= scale * 0.51 + x.abs() * 1e-6 + 1e-37);
        }
        for set in kernels::all() {
            prop_assert_eq!(&run(set), &expected);
        }
    }
}

#[test]
fn several_matrices_biases_and_sums_are_the_products_one_by_one() {
    let team = Team::new(2);
    let (a, b) = (
        packed(&matrix(DType::Q4K, 33, 512, 1)),
        packed(&matrix(DType::Q6K, 7, 512, 2)),
    );
    for m in [1, 5, 40] {
        let x = values(m * 512, 3);
        let mut q = Activations::default();
        q.fill(&team, &x, 512, m, a.forms(None));
        let bias = values(33, 4);
        let (mut out_a, mut out_b) = (vec![1.0; m * 33], vec![2.0; m * 7]);
        products(
            &team,
            &q,
            &mut [
                Product {
                    weight: &a,
                    bias: Some(&bias),
                    out: &mut out_a,
                    add: false,
                },
                Product {
                    weight: &b,
                    bias: None,
                    out: &mut out_b,
                    add: true,
                },
            ],
        );
        let alone_a = product(kernels::kernels(), 1, &x, &a);
        let alone_b = product(kernels::kernels(), 1, &x, &b);
        for (i, (out, alone)) in out_a.iter().zip(alone_a).enumerate() {
            assert_eq!(*out, alone + bias[i % 33]);
        }
        for (out, alone) in out_b.iter().zip(alone_b) {
            assert_eq!(*out, 2.0 + alone);
        }
        let other = packed(&matrix(DType::Q4K, 33, 512, 9));
        // As integers, the gated product is the input of the next one.
        let mut expected = out_a;
        crate::silu_mul(&mut expected, &product(kernels::kernels(), 1, &x, &other));
        let mut gated = Activations::default();
        gated_product(
            &team,
            &q,
            (&a, Some(&bias)),
            (&other, None),
            crate::silu_mul,
            &mut Vec::new(),
            (&mut gated, a.forms(None)),
        );
        let mut direct = Activations::default();
        direct.fill(&team, &expected, 33, m, a.forms(None));
        assert_eq!(gated.integers, direct.integers);
    }
}

#[test]
fn what_is_not_finite_spoils_its_row_alone() {
    let p = packed(&matrix(DType::Q8_0, 20, 128, 1));
    for m in [3, 20] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(m * 128, 2);
            x[128 + 5] = bad;
            for set in kernels::all() {
                let out = product(set, 1, &x, &p);
                for (row, out) in out.chunks(20).enumerate() {
                    assert!(
                        out.iter().all(|v| v.is_nan() == (row == 1)),
                        "{} {row}",
                        set.name
                    );
                }
            }
        }
    }
}

#[test]
fn matrices_that_are_packed_together_are_those_packed_alone() {
    let all = [
        matrix(DType::Q4_0, 40, 96, 1),
        matrix(DType::Q6K, 17, 512, 2),
        matrix(DType::Q8_0, 1, 32, 3),
    ];
    let mut handed = Vec::new();
    let refs: Vec<&Matrix> = all.iter().collect();
    let memory = Packed::pack(&Team::new(2), &refs, &mut |b| handed.push(b)).unwrap();
    assert!(Packed::within(all.iter(), &memory.slice(1..)).is_none());
    assert!(Packed::within(all[1..].iter(), &memory).is_none());
    let together = Packed::within(all.iter(), &memory).unwrap();
    for (w, p) in all.iter().zip(&together) {
        let alone = packed(w);
        for strip in 0..p.strips() {
            p.with_strip(strip, |a| alone.with_strip(strip, |b| assert_eq!(a, b)));
        }
    }
    let bytes: Vec<_> = all.iter().map(|w| w.bytes().clone()).collect();
    assert_eq!(handed, bytes);
}

#[test]
fn plain_types_stay_as_they_are() {
    assert!(!packs(DType::F32));
    let mut plain = crate::Weight::from(Matrix::from_f32(2, 32, &[1.0; 64]).unwrap());
    let mut quantised = crate::Weight::from(matrix(DType::Q4_0, 3, 32, 1));
    let packer = crate::Packer::new([&mut plain, &mut quantised]);
    packer.pack(&Team::new(1), &mut |_| {}).unwrap();
    assert!(!plain.is_packed() && quantised.is_packed());
    assert_eq!(
        (quantised.rows(), quantised.cols(), quantised.bytes()),
        (3, 32, 576)
    );
}

/// Products of rounded rows by one set, all rows rounded or some of them.
fn rounded_product(k: &'static Kernels, integers: usize, x: &[f32], w: &Packed) -> Vec<f32> {
    let team = Team::new(2);
    let mut rows = Activations::default();
    rows.fill(&team, x, w.cols(), integers, w.forms(None));
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let product = Product {
        weight: w,
        bias: None,
        out: &mut out,
        add: false,
    };
    products_on(Set::Only(k), &team, &rows, &mut [product]);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn rounded_products_are_near_f64(
        d in 0usize..22, m in 1usize..70, n in 1usize..70, pick in 0usize..6, seed: u32, power in -12i32..12,
    ) {
        let dtype = types()[d];
        let k = columns(dtype, pick);
        let w = matrix(dtype, n, k, seed.into());
        let p = packed(&w);
        let mut x = values(m * k, u64::from(seed) + 1);
        x.iter_mut().for_each(|x| *x *= 10f32.powi(power));
        let mut row = vec![0.0; k];
        for set in [&kernels::PORTABLE, kernels::kernels()] {
            let out = rounded_product(set, 0, &x, &p);
            for r in 0..n {
                w.row(r, &mut row);
                for (i, x) in x.chunks(k).enumerate() {
                    let exact: f64 = x.iter().zip(&row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    // A weight and an activation are each off by 2⁻⁸ of themselves.
                    let size: f64 = x.iter().zip(&row).map(|(a, b)| f64::from((a * b).abs())).sum();
                    let y = f64::from(out[i * n + r]);
                    prop_assert!((y - exact).abs() <= size * 0.0079 + 1e-30, "{dtype}, {}: {y}, not {exact}", set.name);
                }
            }
        }
    }

    #[test]
    fn every_set_decodes_and_rounds_alike(d in 0usize..22, n in 1usize..40, pick in 0usize..6, seed: u32) {
        let dtype = types()[d];
        let (p, facts) = (packed(&matrix(dtype, n, columns(dtype, pick), seed.into())), facts(dtype).unwrap());
        let x: [f32; 32] = values(32, seed.into()).try_into().unwrap();
        let run = |k: &Kernels| {
            let mut tiles = vec![rounded::Tiles::ZERO; p.cols().div_ceil(facts.unit) * facts.unit / 32];
            p.with_strip(0, |strip| (k.rounded.decode)(dtype, strip, 1, &mut tiles));
            let (mut once, mut rows) = ([0; 32], [[0; 32]; 16]);
            (k.rounded.round)(&x, &mut once);
            (k.rounded.round_rows)(&[x[..16].try_into().unwrap(); 9], 1, &mut rows);
            (tiles.iter().map(|t| t.0).collect::<Vec<_>>(), once, rows)
        };
        let expected = run(&kernels::PORTABLE);
        for set in kernels::all() {
            prop_assert!(run(set) == expected, "{dtype}: {} differs", set.name);
        }
    }

    #[test]
    fn a_rounded_row_does_not_depend_on_its_batch_nor_on_integers_before_it(
        d in 0usize..22, m in 2usize..70, n in 1usize..70, pick in 0usize..6, seed: u32, integers in 0usize..40,
    ) {
        let dtype = types()[d];
        let k = columns(dtype, pick);
        let p = packed(&matrix(dtype, n, k, seed.into()));
        let x = values(m * k, u64::from(seed) + 1);
        let (set, integers) = (kernels::kernels(), integers.min(m));
        let all = rounded_product(set, integers, &x, &p);
        for (row, (x, y)) in x.chunks(k).zip(all.chunks(n)).enumerate() {
            let alone = rounded_product(set, usize::from(row < integers), x, &p);
            prop_assert_eq!(&alone[..], y);
        }
    }

    #[test]
    fn a_gated_product_of_rounded_rows_is_rounded_once(m in 1usize..70, n in 1usize..70, seed: u32) {
        let (team, k) = (Team::new(2), 256);
        let [gate, up] = [1, 2].map(|i| packed(&matrix(DType::Q4K, n, k, u64::from(seed) + i)));
        let x = values(m * k, u64::from(seed));
        let mut rows = Activations::default();
        rows.fill(&team, &x, k, m / 3, gate.forms(None));
        // Memory that was used for something larger.
        let mut gated = Activations::default();
        gated.fill(&team, &values(100 * 99, 5), 99, 3, gate.forms(None));
        gated_product(&team, &rows, (&gate, None), (&up, None), crate::silu_mul, &mut Vec::new(), (&mut gated, gate.forms(None)));
        let mut plain = rounded_product(kernels::kernels(), m / 3, &x, &gate);
        crate::silu_mul(&mut plain, &rounded_product(kernels::kernels(), m / 3, &x, &up));
        let mut expected = Activations::default();
        expected.fill(&team, &plain, n, m / 3, gate.forms(None));
        prop_assert!(gated.integers == expected.integers);
        prop_assert_eq!((gated.rows(), gated.cols()), (m, n));
        for pair in 0..expected.rounded.pairs() {
            prop_assert!(gated.rounded.pair(pair) == expected.rounded.pair(pair));
        }
    }
}

/// The measured table may send the matrices of one product to different sets.
#[test]
fn matrices_with_different_kernels_share_their_rows() {
    let mixed = |dtype| {
        let all = kernels::all();
        let best = all[all.len() - 1];
        let other = all[all.len().saturating_sub(2)];
        Choice {
            few: best,
            many: if dtype == DType::Q4K { other } else { best },
            few_rows: if best.direct.is_some() { 4 } else { 0 },
        }
    };
    let team = Team::new(2);
    let weights = [DType::Q4K, DType::Q6K].map(|d| packed(&matrix(d, 33, 512, 1)));
    for m in [1, 4, 5, 12, 16, 21, 28] {
        let x = values(m * 512, 3);
        let mut rows = Activations::default();
        // Not filled up, as the type without tiles wants it.
        let forms = Forms {
            few: 16,
            ..weights[0].forms(None)
        };
        rows.fill(&team, &x, 512, m, forms);
        let mut outs = [vec![0.0; m * 33], vec![0.0; m * 33]];
        let mut all: Vec<_> = weights
            .iter()
            .zip(&mut outs)
            .map(|(weight, out)| Product {
                weight,
                bias: None,
                out,
                add: false,
            })
            .collect();
        products_on(Set::By(kernels::kernels(), mixed), &team, &rows, &mut all);
        for (w, out) in weights.iter().zip(&outs) {
            assert_eq!(out, &product(&kernels::PORTABLE, 1, &x, w), "{m} rows");
        }
    }
}
