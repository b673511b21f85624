//! The table of `imara status --coverage` against what really happens: each of its rows is tried by one of the modules
//! named here, or says why it is not.

use std::collections::BTreeSet;
use std::io;

use imara_linux::testing;

use crate::daemon::Daemon;
use crate::files::REFUSED;
use crate::image::ext4;
use crate::{around, changing, leaving, namespaces, overlay, unseen};

/// What came of a trial, in the words of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Seen,
    Followed,
    Partly,
    NotSeen,
}

impl Found {
    const fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Followed => "followed",
            Self::Partly => "partly",
            Self::NotSeen => "not seen",
        }
    }
}

/// One row, as the daemon tells it.
#[derive(Debug)]
struct Row {
    id: String,
    here: String,
    tried: bool,
}

/// The table, as a daemon tells it on this host.
#[derive(Debug)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn of(daemon: &Daemon) -> Self {
        let answer = daemon.ask(r#"{"command":"coverage"}"#);
        let rows = answer["rows"].as_array().unwrap().iter().map(|row| Row {
            id: row["id"].as_str().unwrap().into(),
            here: row["here"].as_str().unwrap().into(),
            tried: row["untried"].is_null(),
        });
        Self(rows.collect())
    }

    /// What the table says of this way on this host; nothing if nobody can come this way here.
    fn here(&self, id: &str) -> Option<&str> {
        let row = self.0.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("the table has no row {id}"));
        Some(row.here.as_str()).filter(|here| *here != "absent")
    }

    /// Whether the way exists on this host.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.here(id).is_some()
    }

    /// Compares what was found; what is wrong with the table, if anything.
    pub(crate) fn compare(&self, id: &str, found: &str, context: &str) -> Option<String> {
        let here = self.here(id)?;
        (here != found).then(|| format!("{context}: {id}: the table says {here:?}, the trial found {found:?}"))
    }

    /// The same, as an assertion.
    pub(crate) fn says(&self, id: &str, found: Found, context: &str) {
        assert_eq!(self.compare(id, found.word(), context), None);
    }
}

/// What it means how a good and a bad file could be opened by some way.
pub(crate) fn by_opening(good: &io::Result<()>, bad: &io::Result<()>) -> String {
    match (good, bad) {
        (Ok(()), Err(error)) if error.raw_os_error() == REFUSED => Found::Seen.word().to_owned(),
        (Ok(()), Ok(())) => Found::NotSeen.word().to_owned(),
        _ => format!("neither: good {good:?}, bad {bad:?}"),
    }
}

#[test]
fn each_row_of_the_coverage_table_is_tried_or_says_why_it_is_not() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    daemon.stop();
    let trials = around::WAYS.iter().map(|way| way.id).chain(changing::IDS.iter().copied());
    let others = [unseen::IDS, namespaces::IDS, overlay::IDS, leaving::IDS].into_iter().flatten().copied();
    let trials: BTreeSet<&str> = trials.chain(others).collect();
    let tried: BTreeSet<&str> = table.0.iter().filter(|row| row.tried).map(|row| row.id.as_str()).collect();
    assert_eq!(tried.difference(&trials).collect::<Vec<_>>(), Vec::<&&str>::new(), "rows that nobody tries");
    assert_eq!(
        trials.difference(&tried).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "trials of no row, or of one that says it is not tried"
    );
}
