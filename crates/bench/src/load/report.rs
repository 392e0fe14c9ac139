//! A page of HTML that stands alone: tables, distributions and the course of time.

use std::fmt::Write;

use super::compare::Trial;
use super::figures::{Outcome, Record, Slo};
use super::metrics::Sample;
use crate::plot::{Chart, Line, escape};

/// Points of a line at most.
const POINTS: usize = 400;
/// Looks at a server over which speeds are taken: a second.
const LOOKS: usize = 4;

/// A table, its first row the names of its columns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// What it is about.
    pub title: String,
    /// Names and values.
    pub facts: Vec<(String, String)>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Charts.
    pub charts: Vec<Chart>,
}

const HEAD: &str = "<meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
<style>\n\
:root{color-scheme:light dark;--paper:#fbfcfb;--card:#fff;--ink:#1c2420;--faint:#5c6862;\
--grid:#dde3df;--line-0:#1f7a4d;--line-1:#c8551b;--line-2:#3456c8;--line-3:#a3296f;\
--line-4:#8a6d00;--line-5:#00788a}\n\
@media(prefers-color-scheme:dark){:root{--paper:#121614;--card:#1a201d;--ink:#e6ece8;\
--faint:#98a59e;--grid:#2e3833;--line-0:#5fc793;--line-1:#f2935a;--line-2:#8da5ff;\
--line-3:#ee7fbd;--line-4:#d9b93f;--line-5:#4fc3d5}}\n\
body{margin:0 auto;padding:1.5rem;max-width:80rem;background:var(--paper);color:var(--ink);\
font:15px/1.45 system-ui,sans-serif}\n\
h1{font-size:1.5rem;margin:0 0 .75rem}h2{font-size:1.05rem;margin:1.75rem 0 .5rem}\n\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:0}\n\
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}\n\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));\
gap:1rem;margin-top:1.75rem}\n\
.charts div,.scroll{background:var(--card);border:1px solid var(--grid);border-radius:8px}\n\
.charts div{padding:.75rem}.charts svg{display:block;width:100%}\n\
.scroll{overflow-x:auto}\n\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\n\
th,td{padding:.3rem .75rem;text-align:right;white-space:nowrap}\n\
th:first-child,td:first-child{text-align:left}\n\
th{color:var(--faint);font-weight:600}tr+tr{border-top:1px solid var(--grid)}\n\
</style>\n";

impl Page {
    /// The page, with nothing outside it.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<title>{title}</title>\n{HEAD}<h1>{title}</h1>\n\
             <dl>\n"
        );
        for (name, value) in &self.facts {
            let (name, value) = (escape(name), escape(value));
            let _ = writeln!(html, "<dt>{name}</dt><dd>{value}</dd>");
        }
        html.push_str("</dl>\n<div class=\"charts\">\n");
        for chart in &self.charts {
            let _ = writeln!(html, "<div>{}</div>", chart.svg());
        }
        html.push_str("</div>\n");
        for table in &self.tables {
            let title = escape(&table.title);
            let _ = write!(html, "<h2>{title}</h2>\n<div class=\"scroll\"><table>\n");
            for (i, row) in table.rows.iter().enumerate() {
                let cell = if i == 0 { "th" } else { "td" };
                html.push_str("<tr>");
                for text in row {
                    let _ = write!(html, "<{cell}>{}</{cell}>", escape(text));
                }
                html.push_str("</tr>\n");
            }
            html.push_str("</table></div>\n");
        }
        html.push_str("</html>\n");
        html
    }
}

/// Charts of the runs of servers, of these names: the distributions of times over all seeds, and
/// the course of the first seed's run, as far as the servers tell of it.
pub fn charts(servers: &[String], trials: &[Trial], slo: Slo) -> Vec<Chart> {
    let mark = |time: std::time::Duration| Some((time.as_secs_f64() * 1e3, "SLO".to_owned()));
    let gaps = |r: &Record| r.gaps().collect();
    let mut charts = vec![
        distribution(
            "Time to first text (TTFT)",
            servers,
            trials,
            mark(slo.ttft),
            |r| vec![r.ttft()],
        ),
        distribution(
            "Time between texts (TBT)",
            servers,
            trials,
            mark(slo.tbt),
            gaps,
        ),
        distribution("Time to the end (E2E)", servers, trials, None, |r| {
            vec![r.e2e()]
        }),
    ];
    let over_time = |title: &str, y: &str, course: fn(&[Sample]) -> Vec<(f64, f64)>| {
        course_of_time(title, y, servers, trials, course)
    };
    charts.extend(over_time("Requests that run", "requests", |samples| {
        each(samples, |s| s.running)
    }));
    charts.extend(over_time("Requests that wait", "requests", |samples| {
        each(samples, |s| s.waiting)
    }));
    charts.extend(over_time(
        "Pages of keys and values in use",
        "% of all",
        |samples| {
            each(samples, |s| {
                let share = s.pages_used? / s.pages?;
                share.is_finite().then_some(100.0 * share)
            })
        },
    ));
    charts.extend(over_time(
        "Tokens of prompts computed",
        "per second",
        |samples| speed(samples, |s| s.prompt_tokens),
    ));
    charts.extend(over_time("Tokens generated", "per second", |samples| {
        speed(samples, |s| s.generated_tokens)
    }));
    charts
}

/// Which share of the times is at most so long.
fn distribution(
    title: &str,
    servers: &[String],
    trials: &[Trial],
    mark: Option<(f64, String)>,
    times: impl Fn(&Record) -> Vec<f64>,
) -> Chart {
    let line = |(server, name): (usize, &String)| {
        let records = trials
            .iter()
            .filter(|t| t.server == server)
            .flat_map(|t| &t.run.records)
            .filter(|r| r.outcome == Outcome::Done);
        Line {
            name: name.clone(),
            points: cumulative(records.flat_map(&times).collect()),
        }
    };
    Chart {
        title: title.to_owned(),
        x: "ms".to_owned(),
        y: "% at most so long".to_owned(),
        lines: servers.iter().enumerate().map(line).collect(),
        log_x: true,
        mark,
    }
}

/// Milliseconds and the percent of times that are at most so long. Times of less than 10 µs, of
/// texts that came together, count as that.
fn cumulative(mut times: Vec<f64>) -> Vec<(f64, f64)> {
    times.sort_by(f64::total_cmp);
    let count = times.len();
    let point = |i: usize| {
        (
            times[i].max(1e-5) * 1e3,
            100.0 * (i + 1) as f64 / count as f64,
        )
    };
    match count {
        0 => Vec::new(),
        _ if count <= POINTS => (0..count).map(point).collect(),
        _ => (0..=POINTS)
            .map(|i| point(i * (count - 1) / POINTS))
            .collect(),
    }
}

/// `None` if no server tells.
fn course_of_time(
    title: &str,
    y: &str,
    servers: &[String],
    trials: &[Trial],
    course: fn(&[Sample]) -> Vec<(f64, f64)>,
) -> Option<Chart> {
    let seed = trials.first()?.seed;
    let lines: Vec<Line> = trials
        .iter()
        .filter(|t| t.seed == seed)
        .filter_map(|t| {
            let points = course(&t.run.samples);
            let name = servers.get(t.server)?.clone();
            (!points.is_empty()).then_some(Line { name, points })
        })
        .collect();
    let title = match trials.iter().any(|t| t.seed != seed) {
        true => format!("{title}, seed {seed}"),
        false => title.to_owned(),
    };
    (!lines.is_empty()).then(|| Chart {
        title,
        x: "seconds".to_owned(),
        y: y.to_owned(),
        lines,
        ..Chart::default()
    })
}

fn each(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    samples
        .iter()
        .filter_map(|s| Some((s.at, of(s)?)))
        .collect()
}

/// The growth of a counter per second.
fn speed(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    samples
        .windows(LOOKS + 1)
        .filter_map(|w| {
            let (first, last) = (&w[0], &w[LOOKS]);
            let growth = of(last)? - of(first)?;
            Some((last.at, growth / (last.at - first.at).max(1e-9)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_rises_to_100_percent() {
        assert_eq!(cumulative(vec![0.2, 0.1]), [(100.0, 50.0), (200.0, 100.0)]);
        let many = cumulative((1..=10_000).map(f64::from).collect());
        assert_eq!(many.len(), POINTS + 1);
        assert_eq!(many.last(), Some(&(1e7, 100.0)));
        assert!(many.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        assert!(cumulative(Vec::new()).is_empty());
    }

    #[test]
    fn speed_is_the_growth_over_a_second() {
        let sample = |i: u32| Sample {
            at: f64::from(i) * 0.25,
            generated_tokens: Some(f64::from(i) * 5.0),
            ..Sample::default()
        };
        let samples: Vec<Sample> = (0..6).map(sample).collect();
        let points = speed(&samples, |s| s.generated_tokens);
        assert_eq!(points, [(1.0, 20.0), (1.25, 20.0)]);
        assert!(speed(&samples, |s| s.prompt_tokens).is_empty());
    }

    #[test]
    fn a_page_stands_alone() {
        let page = Page {
            title: "a <b>".to_owned(),
            facts: vec![("url".to_owned(), "http://h".to_owned())],
            tables: vec![Table {
                title: "t".to_owned(),
                rows: vec![vec!["x".to_owned()], vec!["1".to_owned()]],
            }],
            charts: vec![Chart::default()],
        };
        let html = page.html();
        assert!(html.contains("<h1>a &lt;b&gt;</h1>") && html.contains("<td>1</td>"));
        assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("@import"));
    }
}
