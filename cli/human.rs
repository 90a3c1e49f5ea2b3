//! What people read: tables on stdout, questions and notes on stderr. No colour anywhere, so none can be missed.
//!
//! Invariants:
//! - stdout carries data, stderr carries talk;
//! - a reader that goes away (`landfall status | head -1`) is no error;
//! - columns line up by characters; a cell never holds a line break or a control character, whoever wrote it.

use crate::exit::{Code, Failure};
use serde::Serialize;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Prints an answer to stdout.
pub(crate) fn answer<T: Serialize>(
    form: Form,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match form {
        Form::Text => print(&text(value)),
        Form::Json => {
            let mut json = serde_json::to_string_pretty(value).map_err(|err| {
                Failure::failed(format_args!("the answer cannot be written as JSON: {err}"))
            })?;
            json.push('\n');
            print(&json)
        }
    }
}

/// Prints data to stdout, and flushes it.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format_args!("stdout cannot be written: {err}")))
        }
        _ => Ok(()),
    }
}

/// Says something on stderr. If that is gone, there is nobody to tell.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks a question on stderr; code 6 unless the answer is yes.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::NotConfirmed, "nobody can be asked: stdin is not a terminal")
            .next("look at what is shown above, then repeat the command with --yes"));
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::new(Code::NotConfirmed, "not confirmed: nothing was changed")),
    }
}

/// A table: columns as wide as their widest cell.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    indent: usize,
}

impl Table {
    /// A table with a heading.
    pub(crate) fn new(heading: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(heading);
        table
    }

    /// Columns of numbers, set to the right.
    pub(crate) fn right(mut self, columns: &[usize]) -> Table {
        self.right = columns.to_vec();
        self
    }

    /// Spaces before each row.
    pub(crate) fn indent(mut self, spaces: usize) -> Table {
        self.indent = spaces;
        self
    }

    /// Adds a row.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        self.rows.push(cells.iter().map(|cell| clean(cell.as_ref())).collect());
    }

    /// The text, each row with a line end.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(at))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (at, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[at] - cell.chars().count());
                if self.right.contains(&at) {
                    line.push_str(&pad);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                }
                line.push_str("  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Without control characters: names and reasons come from other machines.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["GROUP", "LSN"]).right(&[1]).indent(2);
        table.row(&["db", "12"]);
        table.row(&["größer", "1,234"]);
        table.row(&["short"]);
        assert_eq!(table.render(), "  GROUP     LSN\n  db         12\n  größer  1,234\n  short\n");
    }

    #[test]
    fn a_cell_cannot_move_the_cursor() {
        let mut table = Table::new(&["REASON"]);
        table.row(&["\u{1b}[2Jgone\nnext"]);
        assert_eq!(table.render(), "REASON\n\u{fffd}[2Jgone\u{fffd}next\n");
    }
}
