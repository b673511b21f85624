//! The errors of a policy, shown where they are.

use std::fmt::Write as _;

use super::error::{PolicyError, PolicyErrors};

impl PolicyErrors {
    /// Every error, with its line of `text`, which is the policy, and what was found underlined. For a terminal: what
    /// could move its cursor is shown as a blank.
    #[must_use]
    pub fn underlined(&self, text: &[u8]) -> String {
        let mut out = String::new();
        for error in self {
            let _ = writeln!(out, "{error}");
            underline(error, text, &mut out);
        }
        if self.omitted() > 0 {
            let _ = writeln!(out, "and {} errors more", self.omitted());
        }
        out.truncate(out.trim_end().len());
        out
    }
}

fn underline(error: &PolicyError, text: &[u8], out: &mut String) {
    let Some(line) = text.split(|byte| *byte == b'\n').nth(error.line.saturating_sub(1)) else { return };
    let (before, rest) = line.split_at_checked(error.column.saturating_sub(1)).unwrap_or((line, &[]));
    let (found, after) = rest.split_at_checked(error.length).unwrap_or((rest, &[]));
    let plain = |bytes: &[u8]| -> String {
        String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    };
    let (before, found, after) = (plain(before), plain(found), plain(after));
    let number = error.line.to_string();
    let (margin, blank) = (" ".repeat(number.len()), " ".repeat(before.chars().count()));
    let marks = "^".repeat(found.chars().count().max(1));
    let _ = writeln!(out, "{number} | {before}{found}{after}\n{margin} | {blank}{marks}");
}

#[cfg(test)]
mod tests {
    use crate::policy::{Options, Policy};

    #[test]
    fn an_error_is_underlined_where_it_is() {
        let text = b"# a\n\tappraise func=FILE_CHEK fowner=0\n";
        let errors = Policy::parse(text, &Options::default()).unwrap_err();
        let lines = errors.underlined(text);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines[1..], ["2 |  appraise func=FILE_CHEK fowner=0", "  |                ^^^^^^^^^"]);
        assert!(lines[0].starts_with("policy line 2, column 16: unknown func \"FILE_CHEK\""), "{}", lines[0]);
    }
}
