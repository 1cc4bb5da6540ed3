//! Lays out a table: in columns where they fit, otherwise row by row.

use anstyle::Style;
use pulldown_cmark::Alignment;

use super::layout::{Layout, visible_width};
use crate::terminal::style::{Styles, paint};

/// Columns narrower than this are not read but deciphered.
const COLUMN_WIDTH_MIN: usize = 8;
/// Between two columns.
const GAP: &str = " │ ";
const GAP_WIDTH: usize = 3;

/// The pieces of text in a cell.
type Cell = Vec<(Style, String)>;

/// A table that is being read.
pub(crate) struct Table {
    alignments: Vec<Alignment>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(alignments: Vec<Alignment>) -> Self {
        Self { alignments, rows: Vec::new() }
    }

    pub(crate) fn begin_row(&mut self) {
        self.rows.push(Vec::new());
    }

    pub(crate) fn begin_cell(&mut self) {
        if let Some(row) = self.rows.last_mut() {
            row.push(Cell::new());
        }
    }

    pub(crate) fn text(&mut self, text: &str, style: Style) {
        if let Some(cell) = self.rows.last_mut().and_then(|row| row.last_mut()) {
            cell.push((style, text.to_owned()));
        }
    }

    /// Gives the table's lines, none wider than `width` unless a cell's single character is.
    pub(crate) fn lay_out(&self, width: usize, styles: Styles) -> Vec<String> {
        match self.column_widths(width) {
            Some(widths) => self.grid(&widths, styles),
            None => self.records(width, styles),
        }
    }

    /// The widths that the columns need, the widest made narrower until all fit; `None` if they can't.
    fn column_widths(&self, width: usize) -> Option<Vec<usize>> {
        let mut widths: Vec<usize> = vec![1; self.alignments.len()];
        for row in &self.rows {
            for (column, cell) in widths.iter_mut().zip(row) {
                let (line, _) = wrap(cell, usize::MAX);
                *column = (*column).max(visible_width(&line));
            }
        }
        let room = width.checked_sub(GAP_WIDTH * widths.len().saturating_sub(1))?;
        while widths.iter().sum::<usize>() > room {
            let widest = widths.iter_mut().max()?;
            if *widest <= COLUMN_WIDTH_MIN {
                return None;
            }
            *widest -= 1;
        }
        Some(widths)
    }

    fn grid(&self, widths: &[usize], styles: Styles) -> Vec<String> {
        let mut lines = Vec::new();
        for (idx, row) in self.rows.iter().enumerate() {
            let cells: Vec<Vec<String>> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| {
                    let empty = Cell::new();
                    let cell = row.get(column).unwrap_or(&empty);
                    let cell = if idx == 0 { bold(cell, styles) } else { cell.clone() };
                    wrap(&cell, *width).0.split('\n').map(str::to_owned).collect()
                })
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                let columns = cells.iter().zip(widths).zip(&self.alignments).map(|((cell, width), alignment)| {
                    pad(cell.get(line).map_or("", String::as_str), *width, *alignment)
                });
                let joined = columns.collect::<Vec<_>>().join(&paint(styles.dim, GAP));
                lines.push(joined.trim_end().to_owned());
            }
            if idx == 0 {
                let dashes: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                lines.push(paint(styles.dim, &dashes.join("─┼─")));
            }
        }
        lines
    }

    /// Each row as lines of `header: cell`.
    fn records(&self, width: usize, styles: Styles) -> Vec<String> {
        let mut lines = Vec::new();
        let Some((headers, rows)) = self.rows.split_first() else { return lines };
        let mut push = |cell: &Cell| lines.extend(wrap(cell, width).0.split('\n').map(str::to_owned));
        if rows.is_empty() {
            headers.iter().for_each(|header| push(&bold(header, styles)));
        }
        for row in rows {
            for (header, cell) in headers.iter().zip(row) {
                let mut both = bold(header, styles);
                both.push((Style::new(), ": ".to_owned()));
                both.extend(cell.iter().cloned());
                push(&both);
            }
            push(&vec![(styles.dim, "─".repeat(width.min(COLUMN_WIDTH_MIN)))]);
        }
        lines
    }
}

fn bold(cell: &Cell, styles: Styles) -> Cell {
    cell.iter()
        .map(|(style, text)| (style.effects(style.get_effects() | styles.bold.get_effects()), text.clone()))
        .collect()
}

fn wrap(cell: &Cell, width: usize) -> (String, usize) {
    let mut layout = Layout::new(width);
    cell.iter().for_each(|(style, text)| layout.text(text, *style));
    layout.finish()
}

fn pad(line: &str, width: usize, alignment: Alignment) -> String {
    let free = width.saturating_sub(visible_width(line));
    let left = match alignment {
        Alignment::Right => free,
        Alignment::Center => free / 2,
        Alignment::Left | Alignment::None => 0,
    };
    format!("{}{line}{}", " ".repeat(left), " ".repeat(free - left))
}
