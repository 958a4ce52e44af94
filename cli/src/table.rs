//! Aligned columns for terminals: no box art, two spaces between columns, a header line.

use croft_proto::printable;

use crate::text::or_dash;

/// Which side a column's values keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// A table under construction.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// The columns' headings; one that starts with `>` keeps its values to the right.
    pub fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| match heading.strip_prefix('>') {
            Some(heading) => (heading, Align::Right),
            None => (*heading, Align::Left),
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; empty cells become dashes, and rows that are too short end with dashes.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> =
            cells.into_iter().map(|cell| or_dash(&printable(&cell, ' '))).collect();
        row.resize(self.columns.len(), "-".to_owned());
        self.rows.push(row);
    }

    /// The table as lines; only a header line if it has no rows.
    pub fn render(&self) -> String {
        let length = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = self.rows.iter().map(|row| length(&row[i]));
                cells.max().unwrap_or(0).max(length(self.columns[i].0))
            })
            .collect();
        let headings: Vec<String> = self.columns.iter().map(|(h, _)| (*h).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                let padding = " ".repeat(width - length(cell));
                match align {
                    Align::Left => line.extend([cell.as_str(), &padding, "  "]),
                    Align::Right => line.extend([&padding, cell.as_str(), "  "]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `key  value` lines with the values under each other.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(key, value)| format!("{key:width$}  {}\n", or_dash(&printable(value, ' '))))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", ">CPU", "STATE"]);
        table.row(["n1", "7%", "Idle"].map(str::to_owned));
        table.row(["node-12", "100%", ""].map(str::to_owned));
        assert_eq!(table.render(), "NAME      CPU  STATE\nn1         7%  Idle\nnode-12  100%  -\n");
    }

    #[test]
    fn fields_stand_under_each_other() {
        let text = fields(&[("name", "n1".to_owned()), ("member", String::new())]);
        assert_eq!(text, "name    n1\nmember  -\n");
    }

    proptest! {
        #[test]
        fn every_row_is_one_line_whatever_it_holds(cells in proptest::collection::vec(any::<String>(), 0..5)) {
            let mut table = Table::new(&["A", ">B", "C"]);
            table.row(cells.into_iter().take(3));
            let text = table.render();
            prop_assert_eq!(text.split('\n').count(), 3, "{}", text);
        }
    }
}
