//! `imara inspect`: everything that is known of a file: facts, labels, rules, and what a guarded open would get.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{FileType, Metadata};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use anyhow::{anyhow, bail};
use imara_integrity::appraise::LabelRead;
use imara_integrity::digest::Digest;
use imara_integrity::label::{EvmLabel, ImaLabel, SignatureHeader, SignatureLabel, algorithm_asked};
use imara_integrity::policy::Family;
use imara_linux::dir::Kind;
use imara_linux::hash::FileHasher;
use imara_linux::xattr;
use serde::Serialize;

use crate::content::{Leases, Opened};
use crate::rules::{self, Access, FileSystems, Rules};
use crate::verify::{self, SETTINGS};
use crate::words::{JsonPath, bytes, hex, shown};
use crate::{Ended, screen, why};

const JSON: &str = "\
With --json, one object a line for each FILE: path, target (of a symbolic link: its path), owner, group, mode (octal), size,
links, inode, device, filesystem; ima and evm (null without that label): hex, text, kind, algorithm, version, key_id; digest
of the content; read and exec: rule, verdict, cause, why.

Examples:
  imara inspect /usr/bin/passwd
  imara inspect --policy /etc/ima/ima-policy --json /usr/bin/* | jq .exec.verdict

A FILE that cannot be looked at is told on standard error, and the others are explained all the same.

Exit status: 0 fine, whatever the verdict; 2 could not look at a file.";

/// Arguments of `imara inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Arguments {
    /// The policy: a file, or builtin:NAME
    #[arg(long, value_name = "P", default_value = rules::DEFAULT)]
    policy: OsString,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Explains files.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let rules = Rules::load(&arguments.policy)?;
    let leases = Leases::new()?;
    let mut ended = Ended::Fine;
    for path in &arguments.files {
        let inspection = match inspect(path, &rules, leases) {
            Ok(inspection) => inspection,
            Err(error) => {
                screen::give_up(&error);
                ended = Ended::Nothing;
                continue;
            }
        };
        if arguments.json {
            screen::print_json(&inspection)?;
        } else {
            screen::print(&text(path, &inspection))?;
        }
    }
    Ok(ended)
}

#[derive(Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    path: JsonPath,
    /// What a symbolic link that was named leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<JsonPath>,
    owner: u32,
    group: u32,
    mode: String,
    size: u64,
    links: u32,
    inode: u64,
    device: String,
    filesystem: String,
    ima: Option<Label>,
    evm: Option<Label>,
    digest: String,
    read: Answer,
    exec: Answer,
}

/// A label taken apart.
#[derive(Debug, Serialize)]
struct Label {
    hex: String,
    text: String,
    kind: String,
    algorithm: Option<&'static str>,
    version: Option<u8>,
    key_id: Option<String>,
}

/// What an access would get.
#[derive(Debug, Serialize)]
struct Answer {
    rule: String,
    verdict: &'static str,
    cause: Option<&'static str>,
    why: String,
}

fn inspect(path: &Path, rules: &Rules, leases: Leases) -> anyhow::Result<Inspection> {
    let (target, mut opened) = open(path, leases)?;
    let fs = FileSystems::default()
        .of(opened.facts.device, opened.file())
        .map_err(|error| anyhow!("{}: {}", shown(path), why::no_file_system(&error)))?;
    let (mut ima, mut evm) = (Vec::new(), Vec::new());
    let label = opened.label(&mut ima);
    let _ = xattr::read_all(opened.file(), xattr::EVM, &mut evm);
    let mut hasher = FileHasher::default();
    let mut hash = |opened: &mut Opened, algorithm| opened.digest(&mut hasher, algorithm, &AtomicU64::new(0));
    let digest = hash(&mut opened, algorithm_asked(label.bytes(), SETTINGS.hash))
        .map_err(|error| anyhow!("{}: {}", shown(path), why::not_hashed(&error)))?;
    let mut answer = |access| -> anyhow::Result<Answer> {
        let decision = rules.decide(access, &opened.facts, &fs);
        let judged = verify::judge(&[(access, decision)], label, &mut opened, |_, _| Ok(digest))
            .map_err(|error| anyhow!("{}: {}", shown(path), why::not_hashed(&error)))?;
        let cause = judged.denied.map(|(_, cause)| cause);
        let executable = access == Access::Read || opened.facts.mode & 0o111 != 0;
        Ok(Answer {
            rule: rules.text(decision.decided.by(Family::Appraise).map(|by| by.rule)),
            verdict: if cause.is_some() { "deny" } else { "allow" },
            cause: cause.map(|cause| cause.word()),
            why: reason(&judged, label, &digest, executable),
        })
    };
    let (read, exec) = (answer(Access::Read)?, answer(Access::Exec)?);
    let facts = &opened.facts;
    Ok(Inspection {
        path: path.into(),
        target: target.as_deref().map(JsonPath::from),
        owner: facts.owner.0,
        group: facts.group.0,
        mode: format!("{:o}", facts.mode & 0o7777),
        size: facts.size,
        links: facts.links,
        inode: facts.inode,
        device: format!("{}:{}", facts.device.0, facts.device.1),
        filesystem: fs.name.clone(),
        ima: label.bytes().map(ima_label),
        evm: (!evm.is_empty()).then(|| evm_label(&evm)),
        digest: digest.to_string(),
        read,
        exec,
    })
}

/// Opens the file that is named, or that the symbolic link that is named leads to.
fn open(path: &Path, leases: Leases) -> anyhow::Result<(Option<PathBuf>, Opened)> {
    let target = target(path)?;
    let named = target.as_deref().unwrap_or(path);
    // Before it is opened: a socket cannot be, and the error would not tell.
    let unfit = |facts: Metadata| kind(facts.file_type()).filter(|kind| *kind != Kind::File);
    match named.symlink_metadata().map(unfit) {
        Ok(None) => {}
        Ok(Some(kind)) => bail!("{}: {}", shown(path), why::unfit(kind)),
        Err(error) => bail!("{}: {}", shown(path), why::not_found(&error)),
    }
    let opened = leases.open_path(named).map_err(|error| anyhow!("{}: {}", shown(path), why::not_opened(&error)))?;
    if !opened.facts.is_regular() {
        bail!("{}: {}", shown(path), why::unfit(Kind::Unknown));
    }
    Ok((target, opened))
}

fn kind(found: FileType) -> Option<Kind> {
    let kinds = [
        (found.is_file(), Kind::File),
        (found.is_dir(), Kind::Directory),
        (found.is_fifo(), Kind::Pipe),
        (found.is_socket(), Kind::Socket),
        (found.is_block_device() || found.is_char_device(), Kind::Device),
    ];
    kinds.into_iter().find(|(is, _)| *is).map(|(_, kind)| kind)
}

/// What a symbolic link leads to in the end; absent if `path` is none.
fn target(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    let leads = || path.canonicalize().map_err(|error| anyhow!("{}: {}", shown(path), why::dangling(&error)));
    path.is_symlink().then(leads).transpose()
}

/// The verdict in words.
fn reason(judged: &verify::Judged, label: LabelRead<'_>, digest: &Digest, executable: bool) -> String {
    let mut text = match judged.denied.map(|(_, cause)| cause) {
        None if !judged.appraised => "the policy does not ask for appraisal".to_owned(),
        None => "the content is what the label says".to_owned(),
        Some(cause) => why::denied(cause, label, digest),
    };
    if !executable {
        text += "; it has no execute bit, so nobody executes it";
    }
    text
}

fn ima_label(label: &[u8]) -> Label {
    let plain = |kind: &str, text: String, algorithm| Label {
        hex: hex(label),
        text,
        kind: kind.into(),
        algorithm,
        version: None,
        key_id: None,
    };
    match ImaLabel::parse(label) {
        Ok(ImaLabel::Digest(digest)) => {
            plain("digest", digest.to_string(), digest.algorithm().map(|algorithm| algorithm.name()))
        }
        Ok(ImaLabel::Signature(signature)) => signature_label("signature", label, signature),
        Ok(ImaLabel::VeritySignature(signature)) => signature_label("fs-verity signature", label, signature),
        Ok(unknown @ ImaLabel::Unknown { .. }) => plain("unknown", unknown.to_string(), None),
        Err(error) => plain("unknown", error.to_string(), None),
    }
}

fn evm_label(label: &[u8]) -> Label {
    let plain = |kind: &str, text: String, algorithm| Label {
        hex: hex(label),
        text,
        kind: kind.into(),
        algorithm,
        version: None,
        key_id: None,
    };
    match EvmLabel::parse(label) {
        Ok(hmac @ EvmLabel::Hmac(_)) => plain("hmac", hmac.to_string(), Some("sha1")),
        Ok(EvmLabel::Signature(signature)) => signature_label("signature", label, signature),
        Ok(EvmLabel::PortableSignature(signature)) => signature_label("portable signature", label, signature),
        Err(error) => plain("unknown", error.to_string(), None),
    }
}

fn signature_label(kind: &str, label: &[u8], signature: SignatureLabel<'_>) -> Label {
    let (algorithm, key_id) = match signature.header() {
        Ok(SignatureHeader::V1(header)) => (None, Some(hex(&header.key_id))),
        Ok(SignatureHeader::V2(header) | SignatureHeader::V3(header)) => {
            (header.algorithm().map(|algorithm| algorithm.name()), Some(header.key_id.to_string()))
        }
        Err(_) => (None, None),
    };
    Label {
        hex: hex(label),
        text: signature.to_string(),
        kind: kind.into(),
        algorithm,
        version: signature.version(),
        key_id,
    }
}

fn text(path: &Path, file: &Inspection) -> String {
    let mut out = shown(path);
    if let Some(target) = path.canonicalize().ok().filter(|_| path.is_symlink()) {
        let _ = write!(out, " → {}", shown(&target));
    }
    out.push('\n');
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<14}{value}");
    };
    row("owner", &format!("{}:{}", file.owner, file.group));
    row("mode", &file.mode);
    row("size", &format!("{} ({} bytes)", bytes(file.size), file.size));
    row("inode", &format!("{} on {} ({})", file.inode, file.filesystem, file.device));
    for (name, label) in [("security.ima", &file.ima), ("security.evm", &file.evm)] {
        match label {
            Some(label) => {
                row(name, &label.text);
                row("", &label.hex);
            }
            None => row(name, "none"),
        }
    }
    row("content", &file.digest);
    for (name, answer) in [("read", &file.read), ("exec", &file.exec)] {
        let cause = answer.cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
        row(name, &format!("{}{cause}: {}", answer.verdict, answer.why));
        row("", &answer.rule);
    }
    out
}
