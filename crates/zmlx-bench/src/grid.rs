//! A table of texts that can be written as Markdown or HTML.

use std::fmt::Write;

/// A table of texts.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The names of the columns.
    pub header: Vec<String>,
    /// The rows, each with a cell for every column.
    pub rows: Vec<Vec<String>>,
    /// The number of columns, counted from the left, that hold words and are aligned to the left.
    pub n_left: usize,
}

impl Grid {
    /// A table without rows.
    pub fn new(n_left: usize, header: &[&str]) -> Self {
        Self { header: header.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new(), n_left }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table without the words that a row repeats from the row above.
    pub fn without_repetition(mut self) -> Self {
        for at in (1..self.rows.len()).rev() {
            let (above, below) = self.rows.split_at_mut(at);
            let (above, row) = (&above[at - 1], &mut below[0]);
            // The last of the words distinguishes the rows, so it stays.
            let n = self.n_left.saturating_sub(1);
            let same = row.iter().zip(above).take(n).take_while(|(a, b)| a == b).count();
            row[..same].iter_mut().for_each(String::clear);
        }
        self
    }

    /// The table as Markdown; cells are escaped.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|c| markdown_escaped(c)).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = (0..self.header.len()).map(|c| if c < self.n_left { "---|" } else { "--:|" });
        let mut text = line(&self.header) + "|" + &rule.collect::<String>() + "\n";
        for row in &self.rows {
            text += &line(row);
        }
        text
    }

    /// The table as HTML; cells are escaped.
    pub fn html(&self) -> String {
        let mut text = "<div class=\"scroll\"><table>\n<thead><tr>".to_owned();
        let class = |c: usize| if c < self.n_left { "" } else { " class=\"n\"" };
        for (c, cell) in self.header.iter().enumerate() {
            let _ = write!(text, "<th{}>{}</th>", class(c), escaped(cell));
        }
        text += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            text += "<tr>";
            for (c, cell) in row.iter().enumerate() {
                let content = match cell.as_str() {
                    "PASS" | "FAIL" | "EXPLAINED" => {
                        format!("<span class=\"badge {}\">{cell}</span>", cell.to_lowercase())
                    }
                    _ => escaped(cell),
                };
                let _ = write!(text, "<td{}>{content}</td>", class(c));
            }
            text += "</tr>\n";
        }
        text + "</tbody>\n</table></div>\n"
    }
}

/// Escapes an untrusted text for HTML: for elements and for quoted attributes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Control characters are not allowed in a page.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Escapes an untrusted text for a cell of a Markdown table.
pub fn markdown_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Replaces control characters in an untrusted text, because a terminal would obey them.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_words_are_left_out_and_nothing_else() {
        let mut grid = Grid::new(2, &["a", "b", "n"]);
        for row in [["x", "p", "1"], ["x", "p", "1"], ["y", "p", "1"]] {
            grid.row(row.map(str::to_owned).to_vec());
        }
        let rows = grid.without_repetition().rows;
        assert_eq!(rows, [["x", "p", "1"], ["", "p", "1"], ["y", "p", "1"]]);
    }

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(escaped("<a b='c'>&\"\u{1b}"), "&lt;a b=&#39;c&#39;&gt;&amp;&quot;\u{fffd}");
        assert_eq!(markdown_escaped("a|b\n<i>"), "a\\|b\u{fffd}&lt;i>");
    }
}
