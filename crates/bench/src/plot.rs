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

/// One line of a chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// `(x, y)` in order of `x`; what is not finite, or not positive on a logarithmic axis, is
    /// left out.
    pub points: Vec<(f64, f64)>,
}

/// Lines over each other, with a legend. In a page, colours are the page's: `--line-0` to
/// `--line-5`, `--ink`, `--faint` and `--grid`; alone, the chart has its own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What `x` is.
    pub x: String,
    /// What `y` is.
    pub y: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// Whether `x` is logarithmic.
    pub log_x: bool,
    /// An `x` to mark, and its name.
    pub mark: Option<(f64, String)>,
}

impl Chart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        const SIZE: (f64, f64) = (640.0, 320.0);
        // Left, right, top and bottom of the frame.
        const FRAME: [f64; 4] = [56.0, 624.0, 64.0, 272.0];
        const COLOURS: [&str; 6] = [
            "#1f7a4d", "#c8551b", "#3456c8", "#a3296f", "#8a6d00", "#00788a",
        ];
        const DASHES: [&str; 3] = ["none", "7 3", "2 3"];
        let lines: Vec<(&str, Vec<(f64, f64)>)> = self
            .lines
            .iter()
            .map(|line| {
                let valid = |p: &&(f64, f64)| {
                    p.0.is_finite() && p.1.is_finite() && (p.0 > 0.0 || !self.log_x)
                };
                (
                    line.name.as_str(),
                    line.points.iter().filter(valid).copied().collect(),
                )
            })
            .collect();
        let all = || lines.iter().flat_map(|l| l.1.iter().copied());
        let (right, top) = all()
            .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
            .unwrap_or((1.0, 1.0));
        let left = match self.log_x {
            true => all().map(|p| p.0).fold(right, f64::min),
            false => 0.0,
        };
        let (ticks, left, right) = match self.log_x {
            true => log_ticks(left, right),
            false => (linear_ticks(right), 0.0, right.max(f64::MIN_POSITIVE)),
        };
        let rows = linear_ticks(top);
        // A step more where the highest point is above the last tick.
        let step = rows.get(1).copied().unwrap_or(1.0);
        let top = (top / step).ceil().max(1.0) * step;
        let rows = (0..=(top / step).round() as usize).map(|i| i as f64 * step);
        let scale = |v: f64| if self.log_x { v.log10() } else { v };
        let x = |v: f64| {
            let share = (scale(v) - scale(left)) / (scale(right) - scale(left));
            FRAME[0] + share * (FRAME[1] - FRAME[0])
        };
        let y = |v: f64| FRAME[3] - v / top * (FRAME[3] - FRAME[2]);
        let mut svg = String::new();
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" \
             font-family=\"system-ui,sans-serif\" font-size=\"12\">\n<title>{title}</title>\n\
             <text x=\"8\" y=\"20\" font-size=\"14\" font-weight=\"600\" \
             style=\"fill:var(--ink,#1c2420)\">{title}</text>\n\
             <g style=\"fill:var(--faint,#5c6862)\">\n",
            SIZE.0,
            SIZE.1,
            title = escape(&self.title),
        );
        for value in rows {
            let _ = write!(
                svg,
                "<path d=\"M{} {y:.1}H{}\" style=\"stroke:var(--grid,#dde3df)\"/>\n\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                FRAME[0],
                FRAME[1],
                FRAME[0] - 6.0,
                y(value) + 4.0,
                number(value),
                y = y(value),
            );
        }
        for value in ticks {
            let _ = write!(
                svg,
                "<path d=\"M{x:.1} {}V{}\" style=\"stroke:var(--grid,#dde3df)\"/>\n\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>\n",
                FRAME[2],
                FRAME[3],
                FRAME[3] + 18.0,
                // What stands at the edge stays within it.
                if x(value) > FRAME[1] - 16.0 {
                    "end"
                } else {
                    "middle"
                },
                number(value),
                x = x(value),
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
            FRAME[1],
            SIZE.1 - 10.0,
            escape(&self.x),
            FRAME[1],
            20.0,
            escape(&self.y),
        );
        if let Some((at, name)) = &self.mark
            && (left..=right).contains(at)
        {
            let (at, room) = (x(*at), x(*at) < FRAME[1] - 80.0);
            let _ = write!(
                svg,
                "<path d=\"M{at:.1} {}V{}\" stroke-dasharray=\"4 4\" \
                 style=\"stroke:var(--faint,#5c6862)\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>\n",
                FRAME[2],
                FRAME[3],
                if room { at + 4.0 } else { at - 4.0 },
                FRAME[3] - 6.0,
                if room { "start" } else { "end" },
                escape(name),
            );
        }
        svg.push_str("</g>\n");
        let mut legend = 8.0;
        for (i, (name, points)) in lines.iter().enumerate() {
            let style = format!(
                "fill=\"none\" stroke-width=\"1.8\" stroke-linejoin=\"round\" \
                 stroke-dasharray=\"{}\" style=\"stroke:var(--line-{},{})\"",
                DASHES[i / COLOURS.len() % DASHES.len()],
                i % COLOURS.len(),
                COLOURS[i % COLOURS.len()],
            );
            let _ = write!(
                svg,
                "<path d=\"M{legend:.1} 40h20\" {style}/>\n<text x=\"{:.1}\" y=\"44\" \
                 style=\"fill:var(--ink,#1c2420)\">{}</text>\n",
                legend + 26.0,
                escape(name)
            );
            legend += 44.0 + 7.0 * name.chars().count() as f64;
            if let [(px, py)] = points[..] {
                let _ = writeln!(
                    svg,
                    "<path d=\"M{:.1} {:.1}h0.1\" stroke-linecap=\"round\" {}/>",
                    x(px),
                    y(py),
                    style.replace("1.8", "6"),
                );
                continue;
            }
            let _ = write!(svg, "<polyline {style} points=\"");
            for &(px, py) in points {
                let _ = write!(svg, "{:.1},{:.1} ", x(px), y(py));
            }
            svg.push_str("\"/>\n");
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Ticks at 1, 2 and 5 times powers of ten, or at the powers alone where there are many, and
/// the range around both ends.
fn log_ticks(low: f64, high: f64) -> (Vec<f64>, f64, f64) {
    let (low, high) = (low.clamp(1e-9, 1e12), high.clamp(1e-9, 1e12));
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let power = |e: i32| 10f64.powi(e);
    let steps = (first..=last + 1).flat_map(|e| [1.0, 2.0, 5.0].map(|s| s * power(e)));
    let steps: Vec<f64> = steps.collect();
    // A hair of room for rounding.
    let below = steps.iter().copied().filter(|v| *v <= low * 1.000_001);
    let left = below.fold(power(first), f64::max);
    let above = steps
        .iter()
        .copied()
        .filter(|v| *v >= high * 0.999_999 && *v > left);
    let right = above.fold(power(last + 2), f64::min);
    let within = |v: &f64| (left..=right).contains(v);
    let ticks = match right / left <= 1000.0 {
        true => steps.into_iter().filter(within).collect(),
        false => (first..=last).map(power).filter(within).collect(),
    };
    (ticks, left, right)
}

/// About five ticks from 0.
fn linear_ticks(high: f64) -> Vec<f64> {
    let step = nice(high / 6.0);
    let count = (high / step).floor().clamp(0.0, 10.0) as usize;
    (0..=count).map(|i| i as f64 * step).collect()
}

/// A number with three digits that count, without zeros behind.
fn number(value: f64) -> String {
    if value >= 100.0 || value == 0.0 {
        return format!("{value:.0}");
    }
    let decimals = (2 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
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

/// A text within a document of HTML or SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
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

    #[test]
    fn a_chart_has_its_lines_its_legend_and_ticks() {
        let line = |name: &str, points: &[(f64, f64)]| Line {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let chart = Chart {
            title: "TTFT <\"quoted\">".to_owned(),
            x: "ms".to_owned(),
            y: "%".to_owned(),
            lines: vec![
                line(
                    "a",
                    &[(0.0, 1.0), (10.0, 0.0), (1000.0, 100.0), (f64::NAN, 1.0)],
                ),
                line("b", &[(20.0, 50.0)]),
            ],
            log_x: true,
            mark: Some((100.0, "SLO".to_owned())),
        };
        let svg = chart.svg();
        assert!(svg.contains("TTFT &lt;&quot;quoted&quot;&gt;"));
        // From 10 to 1000 in logarithms: the mark at 100 is in the middle.
        assert!(svg.contains("points=\"56.0,272.0 624.0,64.0 \""), "{svg}");
        assert!(svg.contains("M340.0 64V272"), "{svg}");
        assert!(svg.contains(">b</text>") && svg.contains(">SLO</text>"));
        let empty = Chart::default().svg();
        assert!(
            empty.ends_with("</svg>\n") && !empty.contains("NaN"),
            "{empty}"
        );
    }

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        assert_eq!(
            log_ticks(3.0, 30.0),
            (vec![2.0, 5.0, 10.0, 20.0, 50.0], 2.0, 50.0)
        );
        let (_, low, high) = log_ticks(5.0, 5.0);
        assert!(low <= 5.0 && 5.0 < high);
        assert_eq!(linear_ticks(9.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(
            [0.0, 0.005, 0.25, 2.0, 2.5, 50.0, 1000.0].map(number),
            ["0", "0.005", "0.25", "2", "2.5", "50", "1000"]
        );
    }
}
