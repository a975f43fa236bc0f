//! Aligned tables, with colours if a person reads them.

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

#[cfg(feature = "proof")]
use zmlx_bench::grid::Grid;

use crate::output::escaped;

/// A table. The first column is aligned to the left, the others to the right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// A table with the cells of `grid`.
    #[cfg(feature = "proof")]
    pub(crate) fn of(grid: &Grid) -> Self {
        let header: Vec<&str> = grid.header.iter().map(String::as_str).collect();
        let mut table = Self::new(&header);
        grid.rows.iter().for_each(|row| table.row(row.clone()));
        table
    }

    /// Adds a row. The cells are escaped, because they may contain names from files.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let one_line = |cell: String| escaped(&cell).replace(['\n', '\t'], " ");
        self.rows.push(cells.into_iter().map(one_line).collect());
    }

    /// The lines for stdout, each with a newline at its end.
    pub(crate) fn render(&self) -> String {
        self.lines(is_coloured())
    }

    fn lines(&self, is_coloured: bool) -> String {
        let n_columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..n_columns).map(width).collect();
        let mut text = String::new();
        for (r, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let style = if r == 0 { HEADER } else { style_of(cell) };
                let cell = if is_coloured { painted(cell, style) } else { cell.clone() };
                line += &if c == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// The style of the first row of a table.
pub(crate) const HEADER: Style = Style::new().bold();

/// Whether stdout shows colours: it is a terminal, and neither NO_COLOR nor CLICOLOR forbids them.
pub(crate) fn is_coloured() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// The text with the style's control sequences, or the text alone if stdout shows no colours.
pub(crate) fn painted(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// The style of a cell: verdicts are coloured.
fn style_of(cell: &str) -> Style {
    match cell {
        "PASS" => AnsiColor::Green.on_default(),
        "FAIL" => AnsiColor::Red.on_default().bold(),
        "EXPLAINED" => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec!["é".into(), "100".into()]);
        table.row(vec!["longer".into(), "7".into()]);
        assert_eq!(table.lines(false), "name      n\né       100\nlonger    7\n");
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(&["verdict", "n"]);
        table.row(vec!["FAIL".into(), "100".into()]);
        let text = table.lines(true);
        assert_ne!(text, table.lines(false));
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, "verdict    n\nFAIL     100\n");
    }
}
