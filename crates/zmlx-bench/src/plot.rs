//! Plots as SVG. Colours are classes, whose values the page defines.

use std::fmt::Write;

use crate::grid::escaped;

/// The colours of the series by name, so that a path has the same colour in every plot.
#[derive(Debug)]
pub(crate) struct Palette {
    names: Vec<String>,
}

impl Palette {
    /// Number of colours. Further series start again with the first.
    const N_COLOURS: usize = 6;

    pub(crate) fn new(others: impl IntoIterator<Item = String>) -> Self {
        let mut names = ["stock", "concat", "fused"].map(str::to_owned).to_vec();
        for name in others {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Self { names }
    }

    fn class(&self, name: &str) -> String {
        let at = self.names.iter().position(|n| n == name).unwrap_or(0);
        format!("s{}", at % Self::N_COLOURS)
    }

    /// The names with their colours.
    pub(crate) fn legend<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> String {
        let item = |name| {
            format!("<span class=\"key\"><i class=\"{}\"></i>{}</span>", self.class(name), escaped(name))
        };
        format!("<p class=\"legend\">{}</p>\n", names.into_iter().map(item).collect::<String>())
    }
}

/// A row of a chart: a value with its name.
#[derive(Debug)]
pub(crate) struct Row {
    /// The name of the value.
    pub(crate) label: String,
    /// The series, which determines the colour.
    pub(crate) series: String,
    /// The value.
    pub(crate) value: f64,
    /// The smallest and the largest value.
    pub(crate) range: Option<(f64, f64)>,
    /// The value as text.
    pub(crate) text: String,
}

/// How a chart displays its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    /// A bar from zero.
    Bars,
    /// A dot, with a line from the smallest to the largest value.
    Dots,
}

/// A chart with one row per value.
#[derive(Debug)]
pub(crate) struct RowChart<'a> {
    pub(crate) title: &'a str,
    pub(crate) marks: Marks,
    pub(crate) unit: &'a str,
    /// The value at which a line is drawn.
    pub(crate) reference: f64,
    pub(crate) rows: &'a [Row],
}

const WIDTH: f64 = 960.0;
const ROW: f64 = 24.0;
/// Width of the space for the texts at the right of the rows.
const TEXTS: f64 = 190.0;
const TOP: f64 = 12.0;
const AXIS: f64 = 44.0;
/// Width of a letter in a label.
const LETTER: f64 = 7.0;

impl RowChart<'_> {
    pub(crate) fn svg(&self, palette: &Palette) -> String {
        let ends = self.rows.iter().map(|row| row.range.unwrap_or((row.value, row.value)));
        let (mut low, mut high) = (self.reference, self.reference);
        for (l, h) in ends.filter(|(l, h)| l.is_finite() && h.is_finite()) {
            (low, high) = (low.min(l), high.max(h));
        }
        if self.marks == Marks::Bars {
            low = 0.0;
        } else {
            let margin = (high - low).max(0.02) * 0.06;
            (low, high) = (low - margin, high + margin);
        }
        let longest = self.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
        let left = (longest as f64 * LETTER + 30.0).clamp(120.0, 460.0);
        let right = WIDTH - TEXTS;
        let axis = Axis { low, high, from: left, to: right };
        let bottom = TOP + ROW * self.rows.len() as f64;
        let mut svg = open(WIDTH, bottom + AXIS, self.title);
        for tick in axis.ticks() {
            let x = axis.at(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
            );
            text(&mut svg, x, bottom + 18.0, "tick middle", &axis.label(tick));
        }
        text(&mut svg, (left + right) / 2.0, bottom + 37.0, "unit middle", self.unit);
        let x = axis.at(self.reference);
        let _ = write!(svg, "<line class=\"ref\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
        for (i, row) in self.rows.iter().enumerate() {
            let y = TOP + ROW * (i as f64 + 0.5);
            let class = palette.class(&row.series);
            text(&mut svg, 6.0, y + 4.5, "label", &clipped(&row.label, 60));
            text(&mut svg, right + 14.0, y + 4.5, "value", &row.text);
            if !row.value.is_finite() {
                continue;
            }
            let x = axis.at(row.value);
            if self.marks == Marks::Bars {
                let (y, width) = (y - 7.0, (x - left).max(1.0));
                let _ = write!(
                    svg,
                    "<rect class=\"{class}\" x=\"{left}\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" rx=\"2\"/>"
                );
                continue;
            }
            if let Some((l, h)) = row.range.filter(|(l, h)| l.is_finite() && h.is_finite()) {
                let (x1, x2) = (axis.at(l), axis.at(h));
                let _ = write!(
                    svg,
                    "<line class=\"{class} spread\" x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y}\" y2=\"{y}\"/>"
                );
            }
            let _ = write!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y}\" r=\"6\"/>");
        }
        svg + "</svg>\n"
    }
}

/// Curves that show which fraction of the values is below x.
#[derive(Debug)]
pub(crate) struct Distribution<'a> {
    pub(crate) title: &'a str,
    pub(crate) unit: &'a str,
    /// Name and values of each series.
    pub(crate) series: &'a [(String, Vec<f64>)],
}

impl Distribution<'_> {
    pub(crate) fn svg(&self, palette: &Palette) -> String {
        use crate::stats::quantile;
        const SIZE: (f64, f64) = (470.0, 270.0);
        const PLOT: (f64, f64, f64, f64) = (52.0, 14.0, 456.0, 222.0); // left, top, right, bottom
        let at = |q: f64| self.series.iter().filter_map(move |(_, values)| quantile(values, q));
        let (low, high) = (at(0.0).fold(f64::INFINITY, f64::min), at(0.99).fold(f64::NEG_INFINITY, f64::max));
        let margin = if high > low { (high - low) * 0.04 } else { high.abs().max(1e-9) * 0.04 };
        let (left, top, right, bottom) = PLOT;
        let across = Axis { low: (low - margin).max(0.0), high: high + margin, from: left, to: right };
        let up = Axis { low: 0.0, high: 100.0, from: bottom, to: top };
        let mut svg = open(SIZE.0, SIZE.1, self.title);
        for tick in up.ticks() {
            let y = up.at(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
            text(&mut svg, left - 8.0, y + 4.0, "tick end", &format!("{}%", up.label(tick)));
        }
        for tick in across.ticks() {
            let x = across.at(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
            );
            text(&mut svg, x, bottom + 17.0, "tick middle", &across.label(tick));
        }
        text(&mut svg, (left + right) / 2.0, bottom + 37.0, "unit middle", self.unit);
        for (name, values) in self.series {
            // Values beyond the 99th percentile are left out, because a single outlier would squeeze everything else.
            let points = (0..=99).filter_map(|q| {
                let x = across.at(quantile(values, f64::from(q) / 100.0)?);
                Some(format!("{x:.1},{:.1}", up.at(f64::from(q))))
            });
            let points = points.collect::<Vec<_>>().join(" ");
            let _ = write!(svg, "<polyline class=\"{} curve\" points=\"{points}\"/>", palette.class(name));
        }
        svg + "</svg>\n"
    }
}

/// A scale that maps values to positions.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low).max(f64::MIN_POSITIVE);
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    /// The distance between ticks: one, two or five times a power of ten.
    fn step(self) -> f64 {
        let about = (self.high - self.low).max(f64::MIN_POSITIVE) / 6.0;
        let power = 10f64.powf(about.log10().floor());
        let step = [1.0, 2.0, 5.0].into_iter().find(|m| m * power >= about).unwrap_or(10.0) * power;
        if step.is_normal() { step } else { 1.0 }
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let step = self.step();
        let first = (self.low / step).ceil();
        // The number of ticks is limited, in case values are too large to differ.
        (0..12).map(move |i| (first + f64::from(i)) * step).take_while(move |t| *t <= self.high + step * 1e-9)
    }

    fn label(self, tick: f64) -> String {
        let decimals = (-self.step().log10().floor()).clamp(0.0, 9.0) as usize;
        // Avoids a minus sign before a zero.
        format!("{:.decimals$}", if tick.abs() < self.step() / 2.0 { 0.0 } else { tick })
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
    )
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let _ = write!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(content));
}

/// At most `n` characters. A longer text is cut and ends in dots.
fn clipped(text: &str, n: usize) -> String {
    if text.chars().count() <= n {
        return text.to_owned();
    }
    text.chars().take(n - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let ticks = |low, high| {
            let axis = Axis { low, high, from: 0.0, to: 1.0 };
            axis.ticks().map(|t| axis.label(t)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(0.0, 100.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(ticks(0.96, 1.11), ["1.00", "1.05", "1.10"]);
        assert!(ticks(1.0, 1.0).len() <= 12);
    }

    #[test]
    fn nothing_that_is_no_number_is_drawn() {
        let value =
            |value| Row { label: "<".into(), series: "fused".into(), value, range: None, text: "?".into() };
        let rows = [value(f64::NAN), value(1.5)];
        let chart = RowChart { title: "t", marks: Marks::Dots, unit: "×", reference: 1.0, rows: &rows };
        let svg = chart.svg(&Palette::new([]));
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("><<"), "{svg}");
        let empty = Distribution { title: "t", unit: "ms", series: &[("fused".into(), vec![])] };
        let svg = empty.svg(&Palette::new([]));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
