//! Text tables, and the list of what was claimed and whether it was true.

/// A table with a head; columns as wide as they must be.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("   {}", padded.join("  ").trim_end());
    };
    line(head.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// What the demo said, and whether it held.
#[derive(Default)]
pub struct Claims {
    false_ones: Vec<String>,
    count: usize,
}

impl Claims {
    /// Prints `what` with a mark, and remembers it if it does not hold.
    pub fn check(&mut self, holds: bool, what: &str) {
        self.count += 1;
        println!("   {} {what}", if holds { "✔" } else { "✘ NOT TRUE:" });
        if !holds {
            self.false_ones.push(what.to_owned());
        }
    }

    /// How many were made.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those that did not hold.
    pub fn false_ones(&self) -> &[String] {
        &self.false_ones
    }
}

/// The value at `percent` of sorted `values`.
pub fn percentile(values: &[u64], percent: usize) -> u64 {
    values.get(values.len() * percent / 100).or(values.last()).copied().unwrap_or(0)
}

/// Microseconds, readable.
pub fn us(value: u64) -> String {
    if value < 10_000 { format!("{value} µs") } else { format!("{} ms", value / 1000) }
}
