//! Prints what the packed products reach: multiply-adds in a second for many rows, bytes of
//! weights read in a second for one. Best of several runs.
//!
//! `cargo run --release -p sedge-kernels --example packed [threads]`

use std::time::{Duration, Instant};

use sedge_kernels::{Activations, DType, Forms, Matrix, Packed, Product, Team, products};

fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(500) {
        let run = Instant::now();
        f();
        best = best.min(run.elapsed().as_secs_f64());
    }
    best
}

/// Random bytes, which are blocks of any type.
fn matrix(dtype: DType, rows: usize, cols: usize) -> Matrix {
    let len = dtype.bytes_for(rows * cols).expect("whole blocks");
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    };
    let mut bytes: Vec<u8> = (0..len).map(|_| next()).collect();
    if matches!(dtype, DType::BF16 | DType::F16) {
        // Ordinary values: others take longer.
        bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b = 0x3c);
    }
    Matrix::new(dtype, rows, cols, bytes.into()).expect("the bytes of that shape")
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = std::env::args().nth(1).and_then(|a| a.parse().ok());
    for threads in threads.map_or_else(|| vec![1, all], |n| vec![n]) {
        let team = Team::new(threads);
        println!("{threads} thread(s)");
        for dtype in [
            DType::Q4_0,
            DType::Q8_0,
            DType::Q4K,
            DType::Q6K,
            DType::Q5_0,
            DType::BF16,
            DType::F16,
        ] {
            let (n, k) = (8192, 2048);
            let stored = matrix(dtype, n, k);
            let start = Instant::now();
            let memory = Packed::pack(&team, &[&stored], &mut |_| {}).expect("memory");
            let packed = Packed::within([&stored].into_iter(), &memory).expect("its own");
            let w = &packed[0];
            let packing = start.elapsed().as_secs_f64();
            print!(
                "  {dtype:5} packs {:5.2} GB/s;",
                stored.bytes().len() as f64 / packing * 1e-9
            );
            for m in [1, 2, 4, 8, 16, 64, 512] {
                let x: Vec<f32> = (0..m * k)
                    .map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0)
                    .collect();
                let mut q = Activations::default();
                let mut out = vec![0.0; m * n];
                q.fill(&team, &x, k, m, w.forms(None));
                let time = best(|| {
                    let out = &mut out;
                    products(
                        &team,
                        &q,
                        &mut [Product {
                            weight: w,
                            bias: None,
                            out,
                            add: false,
                        }],
                    );
                });
                if m == 1 {
                    print!(" 1: {:.1} GB/s,", w.bytes() as f64 / time * 1e-9);
                } else {
                    print!(" {m}: {:.0} GMAC/s,", (m * n * k) as f64 / time * 1e-9);
                }
            }
            for m in [1, 16, 64, 512] {
                let x = vec![0.25; m * k];
                let mut q = Activations::default();
                let mut out = vec![0.0; m * n];
                q.fill(&team, &x, k, 0, w.forms(None));
                let time = best(|| {
                    let product = Product {
                        weight: w,
                        bias: None,
                        out: &mut out,
                        add: false,
                    };
                    products(&team, &q, &mut [product]);
                });
                print!(
                    " rounded {m}: {:.0} GMAC/s,",
                    (m * n * k) as f64 / time * 1e-9
                );
            }
            println!();
        }
        let codes = Forms {
            codes: true,
            ..Forms::default()
        };
        let x = vec![0.5; 512 * 2048];
        let mut q = Activations::default();
        let time = best(|| q.fill(&team, &x, 2048, 512, codes.clone()));
        println!("  quantising 512 × 2048: {:.0} µs", time * 1e6);
        let time = best(|| q.fill(&team, &x[..2048], 2048, 1, codes.clone()));
        println!("  quantising 1 × 2048: {:.2} µs", time * 1e6);
        let empty = best(|| (0..1000).for_each(|_| team.run(2, &|_| {})));
        println!("  an empty job takes {:.2} µs", empty * 1e3);
    }
}
