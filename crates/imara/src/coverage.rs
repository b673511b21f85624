//! `imara status --coverage`: which ways to a file the running guard sees on this host.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::client::RunDir;
use crate::status::Form;
use crate::{Ended, screen};

/// Asks and prints.
pub(crate) fn run(guard: &RunDir, form: Form) -> anyhow::Result<Ended> {
    let answer = guard.ask(&json!({ "command": "coverage" }))?;
    match form {
        Form::Json => screen::print_json(&answer)?,
        Form::Text => screen::print(&text(&answer))?,
    }
    Ok(Ended::Fine)
}

fn text(answer: &Value) -> String {
    let word = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let mut out = format!("kernel {}\n", word(answer, "kernel"));
    let mut kind = String::new();
    for row in answer.get("rows").and_then(Value::as_array).into_iter().flatten() {
        if word(row, "kind") != kind {
            kind = word(row, "kind");
            let _ = writeln!(out, "\n{kind}");
        }
        let _ = writeln!(out, "  {:<10}{}", word(row, "here"), word(row, "what"));
        let _ = writeln!(out, "{:12}{} ({})", "", word(row, "why"), word(row, "id"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_by_their_status_on_this_host_under_their_kind() {
        let row = |kind, id, here| json!({ "kind": kind, "id": id, "what": "what", "status": "seen", "here": here, "why": "Why." });
        let rows = [row("opening", "a", "seen"), row("opening", "b", "absent"), row("around", "c", "not seen")];
        let expected = "\
kernel 6.1

opening
  seen      what
            Why. (a)
  absent    what
            Why. (b)

around
  not seen  what
            Why. (c)
";
        assert_eq!(text(&json!({ "kernel": "6.1", "rows": rows })), expected);
    }
}
