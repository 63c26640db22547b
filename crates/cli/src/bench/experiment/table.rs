//! Tables as CSV and as text.

use std::fmt::Write as _;

/// Rows under named columns.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// A value of a table.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    /// A word.
    Text(String),
    /// A number, of which four digits are kept.
    Number(f64),
    /// Nothing.
    Empty,
}

impl Table {
    /// Starts a table.
    pub(super) fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the table as CSV.
    pub(super) fn csv(&self) -> String {
        let mut text = self.columns.join(",") + "\n";
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| quoted(&cell.text())).collect();
            text += &(cells.join(",") + "\n");
        }
        text
    }

    /// Returns the table as text, columns below each other.
    pub(super) fn text(&self) -> String {
        let cells = self.rows.iter().map(|row| row.iter().map(Cell::text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(self.columns.clone()).chain(cells).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map_while(width).collect();
        let mut text = String::new();
        for line in &lines {
            for (cell, width) in line.iter().zip(&widths) {
                // Writing to a string can't fail.
                let _ = write!(text, "{cell:>width$}  ", width = *width);
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => digits(*number),
            Self::Empty => String::new(),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Text(count.to_string())
    }
}

impl From<Option<f64>> for Cell {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Empty, Self::Number)
    }
}

/// Quotes what a comma would cut.
fn quoted(text: &str) -> String {
    if text.contains(',') { format!("\"{text}\"") } else { text.to_owned() }
}

/// Writes a number with four digits that count, and no more than four after the point.
pub(super) fn digits(number: f64) -> String {
    let magnitude = number.abs().max(1e-9).log10().floor() as i32;
    let places = (3 - magnitude).clamp(0, 4) as usize;
    let text = format!("{number:.places$}");
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Table, digits};

    #[test]
    fn numbers_keep_what_counts() {
        for (number, text) in
            [(0.0, "0"), (1.0, "1"), (0.123_456, "0.1235"), (123.456, "123.5"), (98_765.4, "98765")]
        {
            assert_eq!(digits(number), text);
        }
        let mut table = Table::new(&["policy", "s"]);
        table.row(["vllm, 8".into(), 1.25.into()]);
        assert_eq!(table.csv(), "policy,s\n\"vllm, 8\",1.25\n");
        assert_eq!(table.text(), " policy     s\nvllm, 8  1.25\n");
    }
}
