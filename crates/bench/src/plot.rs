//! Figures over time: a line of blocks for a terminal, an SVG for a browser.

use std::fmt::Write;

/// `(x, y)` in order of `x` as one line of blocks of at most `width` characters, each the mean
/// of its share of `x`, scaled from 0, and the range below it. Empty without points.
pub fn sparkline(points: &[(f64, f64)], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some((_, top)) = range(points) else {
        return String::new();
    };
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let width = width.clamp(1, points.len());
    let mut cells = vec![(0.0, 0); width];
    for &(x, y) in points {
        let share = (x - first) / (last - first).max(f64::MIN_POSITIVE);
        let cell = &mut cells[((share * width as f64) as usize).min(width - 1)];
        *cell = (cell.0 + y, cell.1 + 1);
    }
    let line: String = cells
        .iter()
        .map(|&(sum, count)| match count {
            0 => ' ',
            _ => {
                let share = sum / f64::from(count) / top.max(f64::MIN_POSITIVE);
                BLOCKS[((share * 8.0) as usize).min(7)]
            }
        })
        .collect();
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    format!("{line}\nbetween {low:.1} and {top:.1}\n")
}

/// `(x, y)` in order of `x` as a line in an SVG document, `y` from 0.
pub fn line_plot(title: &str, points: &[(f64, f64)]) -> String {
    const SIZE: (f64, f64) = (720.0, 320.0);
    const EDGE: (f64, f64) = (56.0, 40.0);
    let (right, top) = range(points).unwrap_or((1.0, 1.0));
    let (right, top) = (right.max(f64::MIN_POSITIVE), nice(top));
    let x = |v: f64| EDGE.0 + v / right * (SIZE.0 - 2.0 * EDGE.0);
    let y = |v: f64| SIZE.1 - EDGE.1 - v / top * (SIZE.1 - 2.0 * EDGE.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{}\" y=\"22\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        EDGE.0,
        escape(title)
    );
    for i in 0..=4 {
        let value = top * f64::from(i) / 4.0;
        let _ = write!(
            svg,
            "<path d=\"M{:.1} {:.1}H{:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\n",
            x(0.0),
            y(value),
            x(right),
            x(0.0) - 6.0,
            y(value) + 4.0,
        );
        let value = right * f64::from(i) / 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.0}</text>",
            x(value),
            y(0.0) + 18.0,
        );
    }
    svg.push_str("<polyline fill=\"none\" stroke=\"#2a6f4e\" stroke-width=\"1.5\" points=\"");
    for &(px, py) in points {
        let _ = write!(svg, "{:.1},{:.1} ", x(px), y(py));
    }
    svg.push_str("\"/>\n</svg>\n");
    svg
}

/// The largest `x` and `y`.
fn range(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    points
        .iter()
        .copied()
        .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
}

/// The next of 1, 2 and 5 times a power of ten.
fn nice(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|s| s * power);
    steps
        .into_iter()
        .find(|s| *s >= value)
        .unwrap_or(10.0 * power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_figure_falls() {
        let points: Vec<_> = (0..100)
            .map(|i| (f64::from(i), f64::from(100 - i)))
            .collect();
        let text = sparkline(&points, 10);
        let line: Vec<char> = text.lines().next().unwrap().chars().collect();
        assert_eq!(line.len(), 10);
        assert!(line.windows(2).all(|w| w[0] >= w[1]) && line[0] > line[9]);
        assert!(text.contains("between 1.0 and 100.0"));
        assert_eq!(sparkline(&[], 10), "");
        assert_eq!(sparkline(&[(1.0, 5.0)], 10).lines().next(), Some("█"));
    }

    #[test]
    fn a_plot_has_its_points_within_its_frame() {
        let svg = line_plot("a < b", &[(0.0, 0.0), (50.0, 20.0)]);
        assert!(svg.contains("a &lt; b") && svg.contains("56.0,280.0 664.0,40.0"));
        assert!(line_plot("none", &[]).ends_with("</svg>\n"));
        assert_eq!(
            [0.9, 1.0, 3.0, 47.0, 0.0].map(nice),
            [1.0, 1.0, 5.0, 50.0, 1.0]
        );
    }
}
