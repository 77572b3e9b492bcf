//! Columns that line up.

use crate::output::Style;

/// Which edge of a column is straight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// What stands between two columns.
const GAP: &str = "  ";

/// A table with a heading. Cells are plain text: their width is what is seen.
pub(super) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [(&'static str, Align); N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Writes the heading and the rows, each line ended.
    pub(super) fn text(&self, style: Style) -> String {
        let widths: [usize; N] = std::array::from_fn(|at| {
            let cells = self.rows.iter().map(|row| width(&row[at]));
            cells.chain([width(self.columns[at].0)]).max().unwrap_or(0)
        });
        let heading = self.columns.map(|(name, _)| name.to_owned());
        let mut text = style.dim(&self.line(&heading, &widths));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[String; N], widths: &[usize; N]) -> String {
        let mut line = String::new();
        for (at, cell) in cells.iter().enumerate() {
            if at > 0 {
                line.push_str(GAP);
            }
            let room = " ".repeat(widths[at].saturating_sub(width(cell)));
            match self.columns[at].1 {
                Align::Left => line.extend([cell.as_str(), &room]),
                Align::Right => line.extend([&room, cell.as_str()]),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// How many places a text takes. Everything printed here is one place a character.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// Lines of a name and what belongs to it, the second column aligned.
pub(super) struct Lines {
    rows: Vec<(&'static str, String)>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    pub(super) fn row(&mut self, name: &'static str, text: impl Into<String>) {
        self.rows.push((name, text.into()));
    }

    pub(super) fn text(&self, style: Style) -> String {
        let widest = self
            .rows
            .iter()
            .map(|(name, _)| width(name))
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.rows {
            let room = " ".repeat(widest.saturating_sub(width(name)));
            text.push_str(&format!("{}{room}{GAP}{value}\n", style.dim(name)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_with_a_space() {
        let mut table = Table::new([
            ("name", Align::Left),
            ("sat", Align::Right),
            ("", Align::Left),
        ]);
        table.row(["a".into(), "1 000".into(), "x".into()]);
        table.row(["12D3…é".into(), "7".into(), String::new()]);
        assert_eq!(
            table.text(Style::new(false)),
            "name      sat\n\
             a       1 000  x\n\
             12D3…é      7\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_heading() {
        let table = Table::new([("name", Align::Left)]);
        assert_eq!(table.text(Style::new(false)), "name\n");
    }
}
