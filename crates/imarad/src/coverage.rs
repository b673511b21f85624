//! What this kind of guarding sees, and what it does not: the answer to `imara status --coverage`.
//!
//! [`table`] is the one list of it. `docs/coverage.md` is compared with it, and `tests/it` tries each of its rows on a real
//! file system, or the row says why it cannot be tried there. [`here`] is what this host makes of it.

mod here;
mod table;

use serde_json::{Value, json};

use here::Host;

/// Every row, as it is on this host.
pub(crate) fn answer() -> Value {
    let host = Host::find();
    let rows = table::ROWS.iter().map(|row| {
        let here = host.status_of(row);
        json!({
            "id": row.id,
            "kind": row.kind.word(),
            "what": row.what,
            "status": row.status.word(),
            "here": here.map_or("absent", table::Status::word),
            "why": row.why,
            "later": row.later,
            "untried": row.trial.reason(),
        })
    });
    json!({ "ok": true, "kernel": host.kernel(), "rows": rows.collect::<Vec<_>>() })
}

/// What fanotify does not show, in few words: the rows of `status` that are not seen.
pub(crate) fn not_seen() -> Vec<&'static str> {
    table::ROWS.iter().filter(|row| row.status == table::Status::NotSeen).map(|row| row.what).collect()
}
