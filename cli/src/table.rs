//! A table: aligned for a person, separated by tabs for a program.

use std::io::{self, Write};

/// On which side a column's texts begin.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Align {
    Left,
    Right,
}

/// Rows of texts under a head.
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: &[(&str, Align)]) -> Table {
        let names = head.iter().map(|(name, _)| (*name).to_owned()).collect();
        Table { columns: head.iter().map(|(_, align)| *align).collect(), rows: vec![names] }
    }

    /// Adds a row, which has as many texts as the head.
    pub fn row(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.columns.len(), "a text for each column");
        self.rows.push(row);
    }

    /// Writes the table.
    pub fn write(&self, out: &mut dyn Write, aligned: bool) -> io::Result<()> {
        if !aligned {
            return self.rows.iter().try_for_each(|row| writeln!(out, "{}", row.join("\t")));
        }
        let width = |text: &String| text.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.rows.iter().map(|row| width(&row[column])).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((text, align), max) in row.iter().zip(&self.columns).zip(&widths) {
                let pad = " ".repeat(max - width(text));
                match align {
                    Align::Left => line.extend([text.as_str(), &pad]),
                    Align::Right => line.extend([&pad, text.as_str()]),
                }
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_not() {
        let mut table = Table::new(&[("N", Align::Right), ("NAME", Align::Left), ("X", Align::Left)]);
        table.row(vec!["1".into(), "é".into(), "-".into()]);
        table.row(vec!["100".into(), "longer".into(), String::new()]);
        let text = |aligned| {
            let mut out = Vec::new();
            table.write(&mut out, aligned).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(true), "  N  NAME    X\n  1  é       -\n100  longer\n");
        assert_eq!(text(false), "N\tNAME\tX\n1\té\t-\n100\tlonger\t\n");
    }
}
