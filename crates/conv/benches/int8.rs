//! Int8 layers of MobileNetV2 and MobileNetV3-Large at 224 × 224, batch 1: each layer's time,
//! its speed, and its share of the machine's limit; then all of a net's layers one after the
//! other.
//!
//!     cargo bench -p sedge-conv --bench int8 [-- NET THREADS]

use std::time::Instant;

use sedge_conv::{Activation, Int8Conv, Picture, PictureMut, Quant, Shape, Window};
use sedge_kernels::{Team, int8_peak};

/// One convolution: outputs, taps of a side, stride, whether depthwise, and what comes after.
struct Layer {
    out: usize,
    side: usize,
    stride: usize,
    depthwise: bool,
    activation: Activation,
    /// Whether the input of the block, two layers before this one's, is added.
    add: bool,
}

/// Blocks of `[expanded, out, side, stride]`, and whether they end in hard swish.
type Block = ([usize; 4], Activation);

fn layers(first: (usize, Activation), blocks: &[Block], last: (usize, Activation)) -> Vec<Layer> {
    let plain = |out, side, stride, activation| Layer {
        out,
        side,
        stride,
        depthwise: false,
        activation,
        add: false,
    };
    let mut layers = vec![plain(first.0, 3, 2, first.1)];
    let mut channels = first.0;
    for ([expanded, out, side, stride], activation) in blocks.iter().copied() {
        if expanded != channels {
            layers.push(plain(expanded, 1, 1, activation));
        }
        layers.push(Layer {
            depthwise: true,
            ..plain(expanded, side, stride, activation)
        });
        layers.push(Layer {
            add: stride == 1 && out == channels && expanded != channels,
            ..plain(out, 1, 1, Activation::Identity)
        });
        channels = out;
    }
    layers.push(plain(last.0, 1, 1, last.1));
    layers
}

fn mobilenet_v2() -> Vec<Layer> {
    let relu6 = Activation::Clip {
        low: 0.0,
        high: 6.0,
    };
    let mut blocks = vec![([32, 16, 3, 1], relu6)];
    let mut channels = 16;
    for (out, repeats, stride) in [
        (24, 2, 2),
        (32, 3, 2),
        (64, 4, 2),
        (96, 3, 1),
        (160, 3, 2),
        (320, 1, 1),
    ] {
        for i in 0..repeats {
            let stride = if i == 0 { stride } else { 1 };
            blocks.push(([6 * channels, out, 3, stride], relu6));
            channels = out;
        }
    }
    layers((32, relu6), &blocks, (1280, relu6))
}

/// Without its squeezing and exciting.
fn mobilenet_v3() -> Vec<Layer> {
    let (relu, swish) = (Activation::Relu, Activation::HardSwish);
    let blocks = [
        ([16, 16, 3, 1], relu),
        ([64, 24, 3, 2], relu),
        ([72, 24, 3, 1], relu),
        ([72, 40, 5, 2], relu),
        ([120, 40, 5, 1], relu),
        ([120, 40, 5, 1], relu),
        ([240, 80, 3, 2], swish),
        ([200, 80, 3, 1], swish),
        ([184, 80, 3, 1], swish),
        ([184, 80, 3, 1], swish),
        ([480, 112, 3, 1], swish),
        ([672, 112, 3, 1], swish),
        ([672, 160, 5, 2], swish),
        ([960, 160, 5, 1], swish),
        ([960, 160, 5, 1], swish),
    ];
    layers((16, swish), &blocks, (960, swish))
}

struct Ready {
    conv: Int8Conv,
    name: String,
    x: Shape,
    y: Shape,
    add: bool,
    products: f64,
}

const QUANT: Quant = Quant {
    scale: 0.0235,
    zero: 110,
};

fn ready(net: &[Layer]) -> Vec<Ready> {
    let mut x = Shape {
        n: 1,
        h: 224,
        w: 224,
        c: 3,
    };
    let mut seed = 1u32;
    let mut ready = Vec::new();
    for layer in net {
        let groups = if layer.depthwise { x.c } else { 1 };
        let window = Window::square(layer.side, layer.stride, layer.side / 2);
        let each = x.c / groups * window.taps();
        let mut weight = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as i8
        };
        let weights: Vec<i8> = (0..layer.out * each).map(|_| weight()).collect();
        let conv = Int8Conv::new(
            layer.out,
            x.c,
            groups,
            window,
            &weights,
            &vec![0.005; layer.out],
            Some(&vec![0.1; layer.out]),
            QUANT,
            layer.activation,
            QUANT,
        )
        .expect("a layer");
        let y = conv.output(x).expect("a layer that fits");
        let kind = if layer.depthwise { "depthwise" } else { "conv" };
        ready.push(Ready {
            name: format!(
                "{kind} {0}×{0}/{1} {2}→{3} {4}²",
                layer.side, layer.stride, x.c, y.c, y.h
            ),
            products: (y.values() * each) as f64,
            conv,
            x,
            y,
            add: layer.add,
        });
        x = y;
    }
    ready
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let only = arguments.next();
    let threads: Vec<usize> = match arguments.next().and_then(|n| n.parse().ok()) {
        Some(threads) => vec![threads],
        None => vec![1, 2],
    };
    for (name, net) in [("v2", mobilenet_v2()), ("v3", mobilenet_v3())] {
        if only.as_deref().is_none_or(|only| only == name) {
            for threads in &threads {
                measure(name, &ready(&net), &Team::new(*threads));
            }
        }
    }
}

fn measure(name: &str, layers: &[Ready], team: &Team) {
    let peak = int8_peak(team);
    let threads = team.threads();
    let most = |f: &dyn Fn(&Ready) -> usize| layers.iter().map(f).max().unwrap_or(0);
    let values = most(&|l| l.x.values().max(l.y.values()));
    // Three buffers in turns, so that the one a block began with is there when it ends.
    let mut buffers = [vec![99u8; values], vec![9u8; values], vec![50u8; values]];
    let mut scratch = vec![0; most(&|l| l.conv.scratch(l.x, threads))];
    let mut times = vec![Vec::new(); layers.len()];
    let mut whole = Vec::new();
    for round in 0..60 {
        let start = Instant::now();
        for (i, layer) in layers.iter().enumerate() {
            let [a, b, c] = &mut buffers;
            let (x, y, beside) = match i % 3 {
                0 => (a, b, c),
                1 => (b, c, a),
                _ => (c, a, b),
            };
            let add = layer
                .add
                .then(|| (Picture::new(beside.as_slice(), layer.y), QUANT));
            let mut y = PictureMut::new(y, layer.y);
            let start = Instant::now();
            let x = Picture::new(x.as_slice(), layer.x);
            layer.conv.run(x, add, &mut y, &mut scratch, team);
            times[i].push(start.elapsed().as_secs_f64());
        }
        if round > 0 {
            whole.push(start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{name}, {threads} threads; limit {:.0} Gop/s by {}",
        2e-9 * peak.per_second,
        peak.by
    );
    for (layer, times) in layers.iter().zip(&mut times) {
        let (median, least) = spread(times);
        let speed = layer.products / least;
        println!(
            "{:34} {:8.1} µs (least {:7.1})  {:7.1} Gop/s  {:5.1} %",
            layer.name,
            1e6 * median,
            1e6 * least,
            2e-9 * speed,
            100.0 * speed / peak.per_second
        );
    }
    let (median, least) = spread(&mut whole);
    println!(
        "{name}, {threads} threads, all layers: {:.0} µs (least {:.0})\n",
        1e6 * median,
        1e6 * least
    );
}

/// The median and the least.
fn spread(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}
