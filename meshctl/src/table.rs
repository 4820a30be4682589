//! Rows of text in aligned columns.

/// Prints `rows` under `head`; the last column is not padded.
pub fn print(head: &[&str], rows: &[Vec<String>]) {
    print!("{}", render(head, rows));
}

fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&title| title.to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in all() {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// `-` for nothing, so that columns stay readable.
pub fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".into(), "ä long one".into(), "x".into()],
            vec!["bb".into(), or_dash(""), String::new()],
        ];
        assert_eq!(render(&["N", "M", "L"], &rows), "N   M           L\na   ä long one  x\nbb  -\n");
    }
}
