//! Many capsules as one document: Markdown, or a page that needs nothing but itself.

use crate::capsule::bench::{BenchRecord, BenchTest};
use crate::capsule::validate::Verdict;
use crate::capsule::{Capsule, facts};
use crate::grid::{Grid, escaped, markdown_escaped};
use crate::plot::{Distribution, Marks, Palette, Row, RowChart};
use crate::stats::median;

/// The look of the page; it follows the reader's choice of light or dark.
const STYLE: &str = include_str!("report.css");

/// Speeds of some benches: a row per test and path.
fn speeds(capsules: &[&Capsule]) -> Grid {
    let header =
        ["model", "test", "backend", "path", "tokens/s", "vs first", "range", "of probe", "probe GB/s"];
    let mut grid = Grid::new(4, &header);
    for (capsule, bench, test) in capsules.iter().copied().flat_map(tests) {
        let rate = median(&test.samples_s).map(|s| test.tokens_per_sample as f64 / s);
        let [ratio, spread] = facts::speed_up_cells(bench, test);
        let share = facts::bandwidth_share(bench, test);
        grid.row(vec![
            capsule.model.name.clone(),
            test.name.clone(),
            facts::backend(capsule, test),
            test.fusion.clone(),
            facts::number(rate, 1),
            ratio,
            spread,
            share.map_or_else(facts::dash, |share| format!("{:.0} %", share * 100.0)),
            facts::number(facts::probe(bench, test).map(|bytes_per_second| bytes_per_second / 1e9), 1),
        ]);
    }
    grid.without_repetition()
}

/// What some validations came to: a row each.
fn verdicts(capsules: &[&Capsule]) -> Grid {
    let mut grid =
        Grid::new(4, &["model", "backend", "suite", "against", "checks", "explained", "failed", "verdict"]);
    for capsule in capsules {
        let Some(record) = &capsule.validate else { continue };
        let all = record.checks.iter().map(|c| c.verdict).chain(record.logits.iter().map(|l| l.verdict));
        let all: Vec<Verdict> = all.collect();
        let count = |verdict| all.iter().filter(|v| **v == verdict).count().to_string();
        grid.row(vec![
            capsule.model.name.clone(),
            capsule.backend.description.clone(),
            record.suite.clone(),
            record.against.join(", "),
            all.len().to_string(),
            count(Verdict::Explained),
            count(Verdict::Fail),
            record.verdict.name().to_owned(),
        ]);
    }
    grid
}

/// A machine and what was recorded there.
struct Origin<'a> {
    machine: String,
    /// The days and commits.
    builds: Vec<String>,
    capsules: Vec<&'a Capsule>,
}

/// The machines, in the order of their first capsules.
fn origins(capsules: &[Capsule]) -> Vec<Origin<'_>> {
    let mut origins: Vec<Origin<'_>> = Vec::new();
    for c in capsules {
        let machine = format!("{}, {} cores, {}", c.machine.cpu, c.machine.physical_cores, c.machine.level);
        let at = origins.iter().position(|o| o.machine == machine).unwrap_or_else(|| {
            origins.push(Origin { machine, builds: Vec::new(), capsules: Vec::new() });
            origins.len() - 1
        });
        let day = c.date.get(..10).unwrap_or(&c.date);
        let build = format!("{day}, commit {}, {}", c.zmlx.short_commit(), c.zmlx.profile);
        if !origins[at].builds.contains(&build) {
            origins[at].builds.push(build);
        }
        origins[at].capsules.push(c);
    }
    origins
}

/// All tests of a capsule's bench.
fn tests(capsule: &Capsule) -> impl Iterator<Item = (&Capsule, &BenchRecord, &BenchTest)> {
    capsule.bench.iter().flat_map(move |bench| bench.tests.iter().map(move |test| (capsule, bench, test)))
}

/// The tables as Markdown.
pub fn markdown(capsules: &[Capsule]) -> String {
    let mut text = String::new();
    for origin in origins(capsules) {
        let builds = origin.builds.join("; ");
        text += &format!("\n**{}** ({})\n", markdown_escaped(&origin.machine), markdown_escaped(&builds));
        for grid in [speeds(&origin.capsules), verdicts(&origin.capsules)] {
            if !grid.is_empty() {
                text += &format!("\n{}", grid.markdown());
            }
        }
    }
    text
}

/// Tables and plots as one page.
pub fn html(capsules: &[Capsule]) -> String {
    let mut body = String::from("<h1>zmlx report</h1>\n<ul class=\"origins\">\n");
    let origins = origins(capsules);
    for origin in &origins {
        body += &format!("<li>{}: {}</li>\n", escaped(&origin.machine), escaped(&origin.builds.join("; ")));
    }
    body += "</ul>\n";
    // A table of each machine.
    let by_machine = |grid: &dyn Fn(&[&Capsule]) -> Grid| {
        let tables = origins.iter().map(|o| (&o.machine, grid(&o.capsules))).filter(|(_, g)| !g.is_empty());
        tables.map(|(m, g)| format!("<h3>{}</h3>\n{}", escaped(m), g.html())).collect::<String>()
    };
    let verdicts = by_machine(&verdicts);
    if !verdicts.is_empty() {
        body += &section(
            "Verdicts",
            "Every check of every validation; a divergence is explained where the margin is \
             within what rounding may decide.",
            &verdicts,
        );
    }
    body += &speed_plots(capsules);
    let speeds = by_machine(&speeds);
    if !speeds.is_empty() {
        body += &section(
            "Speeds",
            "Medians; the ratio is the median over repetitions that ran next to each other, the \
             range its smallest and largest.",
            &speeds,
        );
    }
    body += "<section><h2>Capsules</h2>\n";
    for capsule in capsules {
        body += &details(capsule);
    }
    body += "</section>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>zmlx report</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

fn section(title: &str, remark: &str, content: &str) -> String {
    format!("<section><h2>{title}</h2>\n<p class=\"remark\">{remark}</p>\n{content}</section>\n")
}

/// The name of a test's path in plots; of several backends, with the backend.
fn series(bench: &BenchRecord, test: &BenchTest) -> String {
    let is_alone = bench.tests.iter().all(|t| t.backend == test.backend);
    if is_alone { test.fusion.clone() } else { format!("{} on {}", test.fusion, test.backend) }
}

fn speed_plots(capsules: &[Capsule]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (_, bench, test) in capsules.iter().flat_map(tests) {
        let name = series(bench, test);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let palette = &Palette::new(names.iter().cloned());
    let (mut ratios, mut shares, mut curves) = (Vec::new(), Vec::new(), String::new());
    for capsule in capsules {
        let Some(bench) = &capsule.bench else { continue };
        let group = || Row::Group(format!("{} — {}", capsule.model.name, capsule.backend.description));
        let label = |test: &BenchTest| format!("{} · {}", test.name, series(bench, test));
        let mut rows = Vec::new();
        for test in &bench.tests {
            let Some((value, range)) = facts::speed_up(bench, test) else { continue };
            let text = format!("{value:.3}× ({:.3}–{:.3})", range.0, range.1);
            let series = series(bench, test);
            rows.push(Row::Value { label: label(test), series, value, range: Some(range), text });
        }
        push_group(&mut ratios, group(), rows);
        let mut rows = Vec::new();
        for test in &bench.tests {
            let Some(share) = facts::bandwidth_share(bench, test) else { continue };
            let (value, series) = (share * 100.0, series(bench, test));
            rows.push(Row::Value {
                label: label(test),
                series,
                value,
                range: None,
                text: format!("{value:.0} %"),
            });
        }
        push_group(&mut shares, group(), rows);
        curves += &distributions(capsule, bench, palette);
    }
    let legend = palette.legend(names.iter().map(String::as_str));
    let mut body = String::new();
    if !ratios.is_empty() {
        let chart = RowChart {
            title: "Speed-up",
            marks: Marks::Dots,
            unit: "times as fast as the first path",
            reference: 1.0,
            rows: &ratios,
        };
        let remark = "Dot: the median over repetitions; line: from the slowest to the fastest repetition. Right of 1 is faster.";
        body += &section("Speed-up", remark, &format!("{legend}<figure>{}</figure>", chart.svg(palette)));
    }
    if !curves.is_empty() {
        let remark = "The share of decoded tokens that took at most so long, up to the 99th percentile. Further left is faster, \
                      steeper is steadier.";
        body += &section("Token latency", remark, &format!("{legend}<div class=\"plots\">{curves}</div>"));
    }
    if !shares.is_empty() {
        let chart = RowChart {
            title: "Roofline",
            marks: Marks::Bars,
            unit: "% of the read bandwidth that the probe reached",
            reference: 100.0,
            rows: &shares,
        };
        let remark = "Decoding reads every weight that a token uses once: the machine's read bandwidth is its roof. A model \
                      that fits into the caches may pass it.";
        body += &section(
            "Roofline position",
            remark,
            &format!("{legend}<figure>{}</figure>", chart.svg(palette)),
        );
    }
    body
}

fn push_group(all: &mut Vec<Row>, group: Row, rows: Vec<Row>) {
    if !rows.is_empty() {
        all.push(group);
        all.extend(rows);
    }
}

/// A plot of token latencies for each test.
fn distributions(capsule: &Capsule, bench: &BenchRecord, palette: &Palette) -> String {
    let mut names: Vec<&str> = Vec::new();
    for test in bench.tests.iter().filter(|t| !t.token_latencies_s.is_empty()) {
        if !names.contains(&test.name.as_str()) {
            names.push(&test.name);
        }
    }
    let mut html = String::new();
    for name in names {
        let of_name = bench.tests.iter().filter(|t| t.name == name && !t.token_latencies_s.is_empty());
        let ms = |t: &BenchTest| t.token_latencies_s.iter().map(|s| s * 1e3).collect::<Vec<_>>();
        let all: Vec<_> = of_name.map(|t| (series(bench, t), ms(t))).collect();
        let title = format!("{} · {name}", capsule.model.name);
        let plot = Distribution { title: &title, unit: "ms per token", series: &all };
        html +=
            &format!("<figure><figcaption>{}</figcaption>{}</figure>\n", escaped(&title), plot.svg(palette));
    }
    html
}

/// All that a capsule says, folded.
fn details(capsule: &Capsule) -> String {
    let kind = if capsule.bench.is_some() { "bench" } else { "validate" };
    let title = format!("{kind}: {}, {}, {}", capsule.model.name, capsule.backend.description, capsule.date);
    let mut html = format!(
        "<details><summary>{}</summary>\n<div class=\"about\">{}</div>",
        escaped(&title),
        facts::about(capsule).html()
    );
    let mut part = |title: &str, grid: &Grid| html += &format!("<h3>{title}</h3>\n{}", grid.html());
    if let Some(bench) = &capsule.bench {
        part("Tests", &facts::speed(bench));
        if !bench.profile.is_empty() {
            part("Where the time of a token goes", &facts::profile(bench));
        }
    }
    for (title, grid) in capsule.validate.iter().flat_map(facts::validation) {
        part(title, &grid);
    }
    html + "</details>\n"
}
