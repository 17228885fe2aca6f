// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table in the test output, whether or not output is captured.

use std::io::Write;

/// Prints rows of equal length, the first of which names the columns.
pub fn print(title: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = format!("\n{title}\n");
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(&format!(
            "  {}\n",
            cells.collect::<Vec<_>>().join("  ").trim_end()
        ));
    }
    // Not `print!`, which the test harness keeps to itself when a test passes.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
