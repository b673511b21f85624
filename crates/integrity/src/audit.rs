//! The audit line: what was judged, why it failed, for whom.
//!
//! The wording is the kernel's, so that everything that greps its log greps ours.
//!
//! Source: Linux `security/integrity/integrity_audit.c`, `integrity_audit_message()`;
//! `kernel/audit.c`, `audit_log_untrustedstring()` for the quoting.

use std::fmt;

use crate::appraise::Cause;
use crate::event::Uid;

/// What was being done; the `op=` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `appraise_data`: a label was compared with the file.
    AppraiseData,
    /// `collect_data`: the digest was taken, or its algorithm was not allowed.
    CollectData,
}

impl Operation {
    /// The kernel's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AppraiseData => "appraise_data",
            Self::CollectData => "collect_data",
        }
    }
}

/// What happened to the one who asked. The kernel does not say it; we append it as `action=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The open failed.
    Denied,
    /// The open went through although the file was judged bad (mode `log`, or a repair in mode `fix` failed).
    Allowed,
    /// The label was written anew (mode `fix`) and the open went through.
    Repaired,
}

impl Action {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Denied, Self::Allowed, Self::Repaired];

    /// Our word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Allowed => "allowed",
            Self::Repaired => "repaired",
        }
    }
}

/// Who asked, as far as the audit line tells it. Absent values are those of a task that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Process id, or thread id where that is what the kernel gave us.
    pub pid: i32,
    /// Real user id.
    pub uid: Option<Uid>,
    /// Login user id; `u32::MAX` if never set.
    pub login_uid: Option<u32>,
    /// Audit session id; `u32::MAX` if never set.
    pub session: Option<u32>,
    /// Command name, at most 15 bytes, any bytes.
    pub comm: Vec<u8>,
}

/// One line of the log: a file that did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was being done.
    pub operation: Operation,
    /// Why it failed.
    pub cause: Cause,
    /// Who asked.
    pub asker: Asker,
    /// Path of the file as bytes; empty if it has none.
    pub path: Vec<u8>,
    /// Device, as the kernel names the superblock (`sb->s_id`), e.g. `loop0`.
    pub device: String,
    /// Inode number.
    pub inode: u64,
    /// What became of the request.
    pub action: Action,
}

impl fmt::Display for Record {
    /// `pid=… uid=… auid=… ses=… op=… cause=… comm="…" name="…" dev="…" ino=… res=0 errno=0 action=…`
    ///
    /// `subj=` is left out: it belongs to the kernel's own LSM.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = Fields {
            asker: &self.asker,
            operation: self.operation.name(),
            cause: self.cause.word(),
            path: &self.path,
            device: &self.device,
            inode: self.inode,
            result: 0,
        };
        write!(f, "{fields}")?;
        write!(f, " action={}", self.action.name())
    }
}

/// What the kernel's record says itself.
pub(crate) struct Fields<'r> {
    pub(crate) asker: &'r Asker,
    pub(crate) operation: &'r str,
    pub(crate) cause: &'r str,
    pub(crate) path: &'r [u8],
    pub(crate) device: &'r str,
    pub(crate) inode: u64,
    /// `res=`: 1 if what is told is no failure.
    pub(crate) result: u8,
}

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid={}", self.asker.pid)?;
        for (key, value) in
            [("uid", self.asker.uid.map(|uid| uid.0)), ("auid", self.asker.login_uid), ("ses", self.asker.session)]
        {
            if let Some(value) = value {
                write!(f, " {key}={value}")?;
            }
        }
        write!(f, " op={} cause={}", self.operation, self.cause)?;
        write!(f, " comm={}", Untrusted(&self.asker.comm))?;
        if !self.path.is_empty() {
            write!(f, " name={}", Untrusted(self.path))?;
        }
        write!(f, " dev={} ino={} res={} errno=0", Untrusted(self.device.as_bytes()), self.inode, self.result)
    }
}

/// A string that an attacker may have chosen: quoted if it is plain, else upper-case hex without quotes.
///
/// Source: Linux `kernel/audit.c`, `audit_string_contains_control()`: `"`, bytes below 0x21 and above 0x7e ask for hex.
struct Untrusted<'a>(&'a [u8]);

impl fmt::Display for Untrusted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if text.bytes().all(|byte| (0x21..=0x7e).contains(&byte) && byte != b'"') => {
                write!(f, "\"{text}\"")
            }
            _ => self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            operation: Operation::AppraiseData,
            cause: Cause::InvalidHash,
            asker: Asker {
                pid: 177,
                uid: Some(Uid(0)),
                login_uid: Some(u32::MAX),
                session: Some(u32::MAX),
                comm: b"labopen".to_vec(),
            },
            path: b"/scratch/c/t-hash".to_vec(),
            device: "vda".into(),
            inode: 25,
            action: Action::Denied,
        }
    }

    #[test]
    fn the_line_is_the_kernels_with_the_action_behind_it() {
        assert_eq!(
            record().to_string(),
            "pid=177 uid=0 auid=4294967295 ses=4294967295 op=appraise_data cause=invalid-hash \
             comm=\"labopen\" name=\"/scratch/c/t-hash\" dev=\"vda\" ino=25 res=0 errno=0 action=denied"
        );
    }

    #[test]
    fn a_name_that_could_forge_a_field_is_written_in_hex() {
        let names: [(&[u8], &str); 5] = [
            (b"a b", "name=612062"),
            (b"a\nres=1", "name=610A7265733D31"),
            (b"quo\"te", "name=71756F227465"),
            (b"\xff", "name=FF"),
            ("ä".as_bytes(), "name=C3A4"),
        ];
        for (name, expected) in names {
            let line = Record { path: name.to_vec(), ..record() }.to_string();
            assert!(line.contains(&format!(" {expected} dev=")), "{line}");
        }
    }
}
