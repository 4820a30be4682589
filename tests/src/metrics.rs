//! Prometheus text: parsed into samples, summed by name and labels.

use std::collections::BTreeMap;

/// One line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name, with `_bucket`, `_sum`, `_count` for histograms.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads an exposition; comment lines are skipped, a line that can't be read panics: it is a bug.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| sample(line).unwrap_or_else(|| panic!("no metric: {line}"))).collect())
    }

    /// The samples named `name` that carry all of `labels`.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        })
    }

    /// Their sum; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// The same, of counters.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.sum(name, labels) as u64
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, labels, rest) = if let Some((name, rest)) = line.split_once('{') {
        let (labels, rest) = labels(rest)?;
        (name, labels, rest)
    } else {
        let (name, rest) = line.split_once(' ')?;
        (name, BTreeMap::new(), rest)
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it. Values may hold escaped quotes, braces, commas.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        loop {
            let (index, c) = chars.next()?;
            match c {
                '\\' => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                '"' => {
                    rest = &after[index + 1..];
                    break;
                }
                other => value.push(other),
            }
        }
        found.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn labels_may_hold_quotes_braces_and_commas() {
        let metrics = Metrics::parse("# HELP a b\na{x=\"1,}\",y=\"q\\\"\"} 2\na{x=\"2\"} 3\nb 4.5\n");
        assert_eq!(metrics.count("a", &[]), 5);
        assert_eq!(metrics.count("a", &[("y", "q\"")]), 2);
        assert!((metrics.sum("b", &[]) - 4.5).abs() < 1e-9);
        assert_eq!(metrics.count("c", &[]), 0);
    }
}
