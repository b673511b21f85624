//! Why something could not be done with a file, in words, and what helps.

use std::io;

use imara_integrity::appraise::{Cause, LabelRead};
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_linux::dir::Kind;
use imara_linux::mounts::MountError;
use imara_linux::xattr::{Refusal, XattrWriteError};

use crate::content::ContentError;
use crate::walk::Barren;
use crate::words::shown;

/// `EPERM`: the same on every architecture that Linux has.
const NOT_PERMITTED: i32 = 1;

/// `EIO`, likewise.
const BROKEN: i32 = 5;

/// `ENFILE`, likewise.
const TOO_MANY_OF_ALL: i32 = 23;

/// `EMFILE`, likewise.
const TOO_MANY: i32 = 24;

/// What was found in the place of a regular file.
pub(crate) const fn not_a_file(kind: Kind) -> &'static str {
    match kind {
        Kind::Link => "a symbolic link, which is not followed (name what it points to)",
        Kind::Pipe => "a named pipe, not a regular file",
        Kind::Socket => "a socket, not a regular file",
        Kind::Device => "a device, not a regular file",
        Kind::Directory => "a directory, not a regular file",
        Kind::File | Kind::Unknown => "not a regular file",
    }
}

/// What is wrong with a path that was named and is no regular file.
pub(crate) fn unfit(kind: Kind) -> String {
    format!("{} (fix: name a regular file, nothing else has labels)", not_a_file(kind))
}

/// A path that was named cannot be looked at.
pub(crate) fn not_found(error: &io::Error) -> String {
    let fix = fix_of(error).unwrap_or("name a file or directory that exists and may be looked at");
    format!("{error} (fix: {fix})")
}

/// A symbolic link that was named leads to nothing.
pub(crate) fn dangling(error: &io::Error) -> String {
    let fix = fix_of(error).unwrap_or("name a file that exists, or mend the link");
    format!("a symbolic link that cannot be followed: {error} (fix: {fix})")
}

/// What helps against an error whatever was tried.
fn fix_of(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(TOO_MANY) => Some("raise the limit of open files, `ulimit -n`, or name fewer --jobs"),
        Some(TOO_MANY_OF_ALL) => Some("raise the limit of all open files, `sysctl fs.file-max`"),
        _ if error.kind() == io::ErrorKind::PermissionDenied => Some("run as root"),
        _ => None,
    }
}

/// A path that was named led to no regular file; `done` is what would have been done with one.
pub(crate) fn barren(barren: &Barren, done: &str) -> String {
    let found = match barren.kind {
        Kind::Directory => "there is no regular file in this directory, nor below it",
        kind @ (Kind::File | Kind::Link | Kind::Pipe | Kind::Socket | Kind::Device | Kind::Unknown) => not_a_file(kind),
    };
    let path = shown(&barren.path);
    format!("{path}: nothing was {done}: {found} (fix: name a regular file, or a directory that holds some)")
}

/// A file or directory could not be opened.
pub(crate) fn not_opened(error: &io::Error) -> String {
    let fix = if error.raw_os_error() == Some(NOT_PERMITTED) {
        ": a guard refuses it, so what it contains cannot be judged from here (fix: look for the cause in the guard's log; \
         to have the file opened all the same, `imara mode log` meanwhile, or end the guard)"
    } else {
        let gone = error.kind() == io::ErrorKind::NotFound;
        let other = if gone { "name one that exists" } else { "see that its file system is healthy, then again" };
        return format!("cannot be opened: {error} (fix: {})", fix_of(error).unwrap_or(other));
    };
    format!("cannot be opened: {error}{fix}")
}

/// What a file is on could not be told.
pub(crate) fn no_file_system(error: &MountError) -> String {
    let fix = if let MountError::Call(call) = error { fix_of(&call.error) } else { None };
    let fix = fix.unwrap_or("see that /proc is mounted, and belongs to these mounts");
    format!("its file system cannot be told: {error} (fix: {fix})")
}

/// A content could not be hashed.
pub(crate) fn not_hashed(error: &ContentError) -> String {
    match error {
        ContentError::Call(error) if error.raw_os_error() == Some(BROKEN) => {
            format!("cannot be read: {error} (fix: look at the kernel's log, the disk may be failing)")
        }
        ContentError::Call(error) => {
            format!("cannot be read: {error} (fix: see that its file system is healthy, then again)")
        }
        ContentError::Changing { reads } => format!(
            "was read {reads} times and kept changing, expected to find it at rest (fix: stop who writes to it, then again)"
        ),
    }
}

/// A label could not be written, were it tried.
pub(crate) const READ_ONLY: &str =
    "its label could not be written: it is on a read-only mount (fix: mount -o remount,rw)";

/// A label that the policy would not accept is not written.
pub(crate) fn algorithm_refused(hash: HashAlgorithm, rule: &str) -> String {
    format!("a label of {hash} would not be accepted ({rule}; fix: imara label --hash with one that the rule lists)")
}

/// A label could not be written.
pub(crate) fn not_written(error: &XattrWriteError) -> String {
    let fix = match error.refusal {
        Refusal::NoSpace => "the file system has no room for the label; fix: make room",
        Refusal::ReadOnly => "fix: mount -o remount,rw",
        Refusal::NotPermitted => "fix: run as root; if it is immutable or append-only, chattr -i -a first",
        Refusal::Unsupported => NO_LABELS,
        Refusal::Absent | Refusal::Other | _ => "expected it to be taken",
    };
    format!("its label cannot be written: {} ({fix})", error.error)
}

/// The file system has no extended attributes.
pub(crate) const NO_LABELS: &str = "the file system keeps no security labels; fix: use one that does, such as ext4, xfs, btrfs or \
                         tmpfs";

/// A denial in words, and what would help if the content is meant.
pub(crate) fn denied(cause: Cause, label: LabelRead<'_>, digest: &Digest) -> String {
    const RELABEL: &str = "fix, if the content is meant: imara label";
    const UNSIGN: &str = "fix, if the content is meant: setfattr -x security.ima, then imara label; or leave the file out by a \
                          rule dont_appraise";
    match cause {
        Cause::MissingHash => format!("it has no label ({RELABEL})"),
        Cause::InvalidHash => format!("the content gives {digest}, the label says something else ({RELABEL})"),
        Cause::ImaSignatureRequired => "the rule asks for a signature, the label is none (fix: sign the file)".into(),
        Cause::VeritySignatureRequired => {
            "the rule asks for a signature of the fs-verity digest, the label is none (fix: sign the file)".into()
        }
        Cause::InvalidSignature | Cause::InvalidVeritySignature => {
            format!("the signature is made with a key that is not known here: there are no keys yet ({UNSIGN})")
        }
        Cause::InvalidSignatureVersion => {
            format!("the signature has a version that does not belong here ({UNSIGN})")
        }
        Cause::UnknownImaData => {
            let kind = label.bytes().and_then(<[u8]>::first).copied().unwrap_or_default();
            format!("the label's type {kind:#04x} has no meaning (expected 0x01, 0x03, 0x04 or 0x06; {RELABEL})")
        }
        Cause::DeniedHashAlgorithm => {
            format!("the rule does not allow {} (fix: imara label --hash with one that it lists)", digest.algorithm())
        }
        Cause::NoVerityDigest => {
            "the rule asks for an fs-verity digest and the file has none (fix: enable fs-verity on it, or change the rule)"
                .into()
        }
        Cause::NoXattrSupport => NO_LABELS.into(),
        Cause::Unknown => format!("the label cannot be read, or is a signature of version 0 ({UNSIGN})"),
        Cause::Failed | Cause::Unjudged => {
            "the label could not be judged (fix: look at the kernel's log, then again)".into()
        }
    }
}
