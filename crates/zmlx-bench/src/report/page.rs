//! The report as one page that needs no network and no scripts.

use super::{Recorded, answers, origins, short, speeds, verdicts};
use crate::capsule::bench::{BenchRecord, BenchTest};
use crate::capsule::{Capsule, facts};
use crate::grid::{Grid, escaped};
use crate::plot::{Distribution, Marks, Palette, Row, RowChart};

/// The style of the page, which follows the reader's choice of light or dark.
const STYLE: &str = include_str!("style.css");

/// Answers, plots and tables as one page.
pub fn html(capsules: &[Recorded]) -> String {
    let mut body = String::from("<h1>zmlx report</h1>\n");
    body += &answers::html(capsules);
    body += &speed_plots(capsules);
    // One table for each machine.
    let origins = origins(capsules);
    let by_machine = |grid: &dyn Fn(&[&Capsule]) -> Grid| {
        let tables = origins.iter().map(|o| (&o.machine, grid(&o.capsules))).filter(|(_, g)| !g.is_empty());
        tables.map(|(m, g)| format!("<h3>{}</h3>\n{}", escaped(m), g.html())).collect::<String>()
    };
    let verdicts = by_machine(&verdicts);
    if !verdicts.is_empty() {
        let remark = "The checks of every validation. A divergence is explained if the margin there is within what rounding can \
                      decide.";
        body += &section("Verdicts", remark, &verdicts);
    }
    let speeds = by_machine(&speeds);
    if !speeds.is_empty() {
        let remark = "Medians. The ratio is the median over repetitions that ran next to each other, the range its smallest and \
                      largest value.";
        body += &section("Speeds", remark, &speeds);
    }
    body += "<section><h2>Machines and builds</h2>\n<ul class=\"origins\">\n";
    for origin in &origins {
        body += &format!("<li>{}: {}</li>\n", escaped(&origin.machine), escaped(&origin.builds.join("; ")));
    }
    body += "</ul></section>\n<section><h2>Capsules</h2>\n";
    capsules.iter().for_each(|recorded| body += &details(recorded));
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

/// The name of a test's path in plots, with the backend if there are several.
fn series(bench: &BenchRecord, test: &BenchTest) -> String {
    let is_alone = bench.tests.iter().all(|t| t.backend == test.backend);
    if is_alone { test.fusion.clone() } else { format!("{} on {}", test.fusion, test.backend) }
}

/// A heading that distinguishes a capsule from others of the same model.
fn heading(recorded: &Recorded) -> String {
    let Recorded { file, capsule } = recorded;
    let day = capsule.date.get(..10).unwrap_or(&capsule.date);
    format!(
        "<h3>{}</h3>\n<p class=\"source\">{} · {day} · commit {} · {}</p>\n",
        escaped(&short(&capsule.model.name)),
        escaped(&capsule.backend.description),
        escaped(&capsule.zmlx.short_commit()),
        escaped(file)
    )
}

fn speed_plots(capsules: &[Recorded]) -> String {
    let benches = || capsules.iter().filter_map(|r| Some((r, r.capsule.bench.as_ref()?)));
    let mut names: Vec<String> = Vec::new();
    for (_, bench) in benches() {
        for name in bench.tests.iter().map(|test| series(bench, test)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let palette = &Palette::new(names.iter().cloned());
    let (mut ratios, mut shares, mut curves) = (String::new(), String::new(), String::new());
    for (recorded, bench) in benches() {
        ratios += &ratio_chart(recorded, bench, palette);
        shares += &share_chart(recorded, bench, palette);
        let plots = distributions(bench, palette);
        if !plots.is_empty() {
            curves += &format!("{}<div class=\"plots\">{plots}</div>\n", heading(recorded));
        }
    }
    let legend = palette.legend(names.iter().map(String::as_str));
    let mut body = String::new();
    if !ratios.is_empty() {
        let remark = "Dot: the median over repetitions. Line: from the slowest to the fastest repetition. Right of 1 is faster.";
        body += &section("Speed-up", remark, &format!("{legend}{ratios}"));
    }
    if !shares.is_empty() {
        let remark = "Decoding reads every weight that a token uses once, so the read bandwidth of the machine limits it. A model \
                      that fits into the caches can exceed the limit.";
        body += &section("Share of the read bandwidth", remark, &format!("{legend}{shares}"));
    }
    if !curves.is_empty() {
        let remark = "The share of decoded tokens that took at most so long, up to the 99th percentile. Further left is faster, \
                      steeper is steadier.";
        body += &section("Token latency", remark, &format!("{legend}{curves}"));
    }
    body
}

fn label(bench: &BenchRecord, test: &BenchTest) -> String {
    format!("{} · {}", test.name, series(bench, test))
}

/// The chart of a bench's speed-ups; empty if it has only one path.
fn ratio_chart(recorded: &Recorded, bench: &BenchRecord, palette: &Palette) -> String {
    let mut rows = Vec::new();
    let mut baseline = None;
    for test in &bench.tests {
        let Some((value, range)) = facts::speed_up(bench, test) else { continue };
        baseline = baseline.or(facts::baseline(bench, test));
        rows.push(Row {
            label: label(bench, test),
            series: series(bench, test),
            value,
            range: Some(range),
            text: format!("{value:.3}× ({:.3}–{:.3})", range.0, range.1),
        });
    }
    let Some(baseline) = baseline else { return String::new() };
    let unit = format!("times as fast as {}", series(bench, baseline));
    let chart = RowChart { title: "Speed-up", marks: Marks::Dots, unit: &unit, reference: 1.0, rows: &rows };
    format!("{}<figure>{}</figure>\n", heading(recorded), chart.svg(palette))
}

/// The chart of the fractions of the read bandwidth; empty if none is known.
fn share_chart(recorded: &Recorded, bench: &BenchRecord, palette: &Palette) -> String {
    let mut rows = Vec::new();
    for test in &bench.tests {
        let Some(share) = facts::bandwidth_share(bench, test) else { continue };
        let (value, series) = (share * 100.0, series(bench, test));
        let text = format!("{value:.0} %");
        rows.push(Row { label: label(bench, test), series, value, range: None, text });
    }
    if rows.is_empty() {
        return String::new();
    }
    let chart = RowChart {
        title: "Share of the read bandwidth",
        marks: Marks::Bars,
        unit: "% of the read bandwidth that the probe measured",
        reference: 100.0,
        rows: &rows,
    };
    format!("{}<figure>{}</figure>\n", heading(recorded), chart.svg(palette))
}

/// A plot of token latencies for each test.
fn distributions(bench: &BenchRecord, palette: &Palette) -> String {
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
        let plot = Distribution { title: name, unit: "ms per token", series: &all };
        html +=
            &format!("<figure><figcaption>{}</figcaption>{}</figure>\n", escaped(name), plot.svg(palette));
    }
    html
}

/// The full contents of a capsule, folded.
fn details(recorded: &Recorded) -> String {
    let Recorded { file, capsule } = recorded;
    let kind = if capsule.bench.is_some() { "bench" } else { "validate" };
    let title = format!("{file} ({kind}: {}, {})", short(&capsule.model.name), capsule.date);
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
