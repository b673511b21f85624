//! A parser of the text format of Prometheus that refuses what a server would not take, or not understand.
//!
//! Source: prometheus.io, 'Exposition formats', 'Text-based format'; 'Metric and label naming'.

use std::collections::{BTreeMap, BTreeSet};

/// Labels and their values.
type Labels = BTreeMap<String, String>;

/// What a page says.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    kinds: BTreeMap<String, String>,
    helps: BTreeSet<String>,
    /// In the order of the page.
    samples: Vec<(String, Labels, f64)>,
}

impl Exposition {
    /// The value with these labels and no others.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        self.samples.iter().find(|(found, with, _)| found == name && *with == labels).map(|(.., value)| *value)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').ok_or("a HELP without text")?;
            let new = is_name(name) && !text.is_empty() && self.helps.insert(name.to_owned());
            return if new { Ok(()) } else { Err(format!("the second or a bad HELP of {name}")) };
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("a TYPE without kind")?;
            let known = ["counter", "gauge", "histogram"].contains(&kind) && self.helps.contains(name);
            let late = self.samples.iter().any(|(sample, ..)| sample == name);
            let second = self.kinds.insert(name.to_owned(), kind.to_owned()).is_some();
            return if known && !late && !second { Ok(()) } else { Err(format!("the TYPE of {name}")) };
        }
        let (name, labels, value) = sample(line)?;
        let family = self.family(&name).ok_or(format!("{name} has no TYPE"))?;
        let is_last = self.samples.last().is_none_or(|(last, ..)| self.family(last) == Some(family.clone()));
        let begun = self.samples.iter().any(|(sample, ..)| self.family(sample) == Some(family.clone()));
        if begun && !is_last {
            return Err(format!("{family} is in more than one place"));
        }
        if self.samples.iter().any(|(sample, with, _)| *sample == name && *with == labels) {
            return Err(format!("{name} {labels:?} comes twice"));
        }
        if (self.kinds.get(&family).map(String::as_str) == Some("counter")) != name.ends_with("_total") {
            return Err(format!("{name} is a counter or has its name"));
        }
        self.samples.push((name, labels, value));
        Ok(())
    }

    /// Whose TYPE counts for a sample of this name.
    fn family(&self, name: &str) -> Option<String> {
        if self.kinds.get(name).is_some_and(|kind| kind != "histogram") {
            return Some(name.to_owned());
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part))?;
        (self.kinds.get(base)? == "histogram").then(|| base.to_owned())
    }

    /// Buckets must rise, and the last one be the count.
    fn histogram(&self, name: &str) -> Result<(), String> {
        let bucket = format!("{name}_bucket");
        let buckets: Option<Vec<(f64, f64)>> = self
            .samples
            .iter()
            .filter(|(sample, ..)| *sample == bucket)
            .map(|(_, labels, count)| Some((number(labels.get("le")?).ok()?, *count)))
            .collect();
        let buckets = buckets.ok_or("a bucket without le")?;
        let rising = buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
        let count = self.value(&format!("{name}_count"), &[]);
        let whole = buckets.last().is_some_and(|(le, last)| *le == f64::INFINITY && Some(*last) == count);
        let sum = self.value(&format!("{name}_sum"), &[]);
        if rising && whole && sum.is_some() { Ok(()) } else { Err(format!("{name} does not add up: {buckets:?}")) }
    }
}

/// Reads a page.
pub(crate) fn parse(page: &str) -> Result<Exposition, String> {
    let body = page.strip_suffix('\n').ok_or("the last line does not end")?;
    let mut found = Exposition::default();
    for line in body.split('\n') {
        found.line(line).map_err(|why| format!("{why}: {line:?}"))?;
    }
    for (name, kind) in &found.kinds {
        if kind == "histogram" {
            found.histogram(name)?;
        }
        if !found.samples.iter().any(|(sample, ..)| found.family(sample).as_ref() == Some(name)) {
            return Err(format!("{name} has no samples"));
        }
    }
    Ok(found)
}

fn is_name(name: &str) -> bool {
    let good =
        |(place, byte): (usize, u8)| byte.is_ascii_alphabetic() || byte == b'_' || (place > 0 && byte.is_ascii_digit());
    !name.is_empty() && name.bytes().enumerate().all(good)
}

fn number(text: &str) -> Result<f64, String> {
    if text == "+Inf" {
        return Ok(f64::INFINITY);
    }
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn sample(line: &str) -> Result<(String, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    let (labels, value) = match rest.strip_prefix('{') {
        None => (Labels::new(), rest),
        Some(rest) => labels(rest)?,
    };
    let value = number(value.strip_prefix(' ').ok_or("no blank before the value")?)?;
    if is_name(name) { Ok((name.to_owned(), labels, value)) } else { Err("a bad name".into()) }
}

/// Behind the `{`: labels, and what comes behind the `}`.
fn labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").ok_or("no label")?;
        let (mut text, mut escaped, mut end) = (String::new(), false, None);
        for (place, letter) in quoted.char_indices() {
            match (escaped, letter) {
                (true, 'n') => text.push('\n'),
                (true, '\\' | '"') => text.push(letter),
                (true, _) => return Err("a bad escape".into()),
                (false, '"') => {
                    end = Some(place);
                    break;
                }
                (false, '\\') => {}
                (false, _) => text.push(letter),
            }
            escaped = !escaped && letter == '\\';
        }
        if !is_name(name) || labels.insert(name.to_owned(), text).is_some() {
            return Err(format!("the label {name}"));
        }
        rest = &quoted[end.ok_or("no closing quote")? + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok((labels, rest.strip_prefix('}').ok_or("no closing brace")?)),
        }
    }
}

#[test]
fn the_parser_refuses_what_is_wrong() {
    const HEAD: &str = "# HELP a_total A.\n# TYPE a_total counter\n";
    let good = format!("{HEAD}a_total{{x=\"1\\\"\\n\"}} 2\na_total 3\n");
    let page = parse(&good).unwrap();
    let values = (page.value("a_total", &[("x", "1\"\n")]), page.value("a_total", &[]), page.value("b", &[]));
    assert_eq!(values, (Some(2.0), Some(3.0), None));
    for wrong in [
        "a_total 1\n",
        &format!("{HEAD}a_total 1"),
        &format!("{HEAD}a_total x\n"),
        &format!("{HEAD}a_total 1\na_total 1\n"),
        &format!("{HEAD}a_total{{x=\"1}} 1\n"),
        &format!("{HEAD}a_total{{x=\"1\",x=\"2\"}} 1\n"),
        &format!("{HEAD}{HEAD}a_total 1\n"),
        &format!("{HEAD}b 1\n"),
        HEAD,
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
