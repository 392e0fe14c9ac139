//! Prints what the products reach on this machine: GFLOP/s of a large f32 product, and for one
//! row the bytes of weights read in a second. Best of several runs.
//!
//! `cargo run --release -p sedge-kernels --example peak [threads]`

use std::time::{Duration, Instant};

use sedge_kernels::{
    Attention, DType, KvPages, KvShape, KvType, Matrix, PAGE_TOKENS, Segment, Team, attend, matmul,
    quantize,
};

fn values(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(700) {
        let run = Instant::now();
        f();
        best = best.min(run.elapsed().as_secs_f64());
    }
    best
}

fn matrix(dtype: DType, rows: usize, cols: usize) -> Matrix {
    let mut bytes = Vec::new();
    quantize(dtype, &values(rows * cols), &mut bytes).expect("whole blocks of a type Sedge writes");
    Matrix::new(dtype, rows, cols, bytes.into()).expect("the bytes of that shape")
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = std::env::args().nth(1).and_then(|a| a.parse().ok());
    let counts = threads.map_or_else(|| vec![1, all], |n| vec![n]);
    for threads in counts {
        let team = Team::new(threads);
        println!("{threads} thread(s)");
        for (dtype, m, n, k) in [
            (DType::F32, 512, 512, 512),
            (DType::F32, 512, 2048, 2048),
            (DType::Q8_0, 512, 2048, 2048),
            (DType::Q4K, 512, 2048, 2048),
            (DType::Q4K, 8, 2048, 2048),
        ] {
            let (w, x) = (matrix(dtype, n, k), values(m * k));
            let mut out = vec![0.0; m * n];
            let time = best(|| matmul(&team, &x, &w, &mut out));
            let rate = 2.0 * (m * n * k) as f64 / time * 1e-9;
            println!("  {m} × {n} × {k}, {dtype:5} {rate:8.1} GFLOP/s");
        }
        let (n, k) = (8192, 4096);
        for dtype in [
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::Q8_0,
            DType::Q6K,
            DType::Q4_0,
            DType::Q4K,
        ] {
            let (w, x) = (matrix(dtype, n, k), values(k));
            let mut out = vec![0.0; n];
            let time = best(|| matmul(&team, &x, &w, &mut out));
            let (bytes, weights) = (w.bytes().len() as f64, (n * k) as f64);
            println!(
                "  1 × {n} × {k}, {dtype:5} {:8.2} GB/s, {:6.2} G weights/s",
                bytes / time * 1e-9,
                weights / time * 1e-9
            );
        }
        for (rows, context) in [(1, 4096), (512, 512)] {
            for kv_type in [KvType::F16, KvType::F32] {
                let shape = KvShape {
                    heads: 8,
                    k_dim: 128,
                    v_dim: 128,
                    v_in_k: false,
                };
                let mut kv = KvPages::new(1, context / PAGE_TOKENS, shape, kv_type);
                let token = values(8 * 128);
                for p in 0..context {
                    kv.write(0, (p / PAGE_TOKENS) as u32, p % PAGE_TOKENS, &token, &token);
                }
                let tables: Vec<u32> = (0..kv.pages() as u32).collect();
                let pages = 0..tables.len();
                let segments = [Segment {
                    rows: 0..rows,
                    position: context - rows,
                    pages,
                }];
                let a = Attention {
                    layer: 0,
                    heads: 32,
                    scale: 0.09,
                    window: None,
                    softcap: None,
                    segments: &segments,
                    rounded_from: usize::MAX,
                    tables: &tables,
                };
                let q = values(rows * 32 * 128);
                let mut out = vec![0.0; rows * 32 * 128];
                let time = best(|| attend(&team, &a, &q, &kv, &mut out));
                println!(
                    "  attention, {rows} rows at context {context}, 32/8 heads of 128, {kv_type:?}: {:.2} ms",
                    time * 1e3
                );
            }
        }
        let empty = best(|| (0..1000).for_each(|_| team.run(2, &|_| {})));
        println!("  an empty job takes {:.2} µs", empty * 1e3);
    }
}
