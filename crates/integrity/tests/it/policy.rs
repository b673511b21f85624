//! The rule language against what a real kernel did: `vectors/policy`.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a table that is not as expected ends the test")]

use imara_integrity::digest::HashAlgorithm;
use imara_integrity::event::{Event, FileSystem, Gid, Hook, LsmLabel, Mask, Object, Subject, Uid};
use imara_integrity::policy::{Algorithms, Builtin, Decision, Dialect, Lsm, Options, Policy};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::Union;

const RULES: &str = include_str!("../../../../vectors/policy/policy-rules.tsv");
const MATCHES: &str = include_str!("../../../../vectors/policy/match-rules.tsv");

/// Rows of `policy-rules.tsv` where we differ from the kernel on purpose, each with the reason.
/// A row here that agrees is a failure too.
const EXCEPTIONS: &[(Dialect, &str, &str)] = &[];

fn algorithms(names: &[&str]) -> Algorithms {
    names.iter().map(|name| name.parse::<HashAlgorithm>().expect("a kernel name")).collect()
}

/// What Debian's kernels of the golden table have.
fn debian(dialect: Dialect) -> Options<'static> {
    let names: &[&str] = match dialect {
        Dialect::Linux6_1 => &["md5", "sha1", "sha224", "sha256"],
        Dialect::Linux6_12 | Dialect::Linux7_2 | Dialect::Imara => {
            &["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"]
        }
    };
    Options { dialect, algorithms: algorithms(names), modsig: false, lsm: Lsm::AppArmor(&["unconfined"]) }
}

/// Undoes the escapes of the table.
fn unescape(rule: &str) -> Vec<u8> {
    let mut bytes = rule.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, byte == b'\\') {
            (byte, false) => byte,
            (_, true) => match bytes.next().expect("an escape is two bytes") {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 0x0b,
                b'0' => 0,
                other => other,
            },
        });
    }
    out
}

/// One write to the kernel's policy file hands over one line: the rest comes with the next write.
fn first_line(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == b'\n').next().expect("split yields at least one part")
}

/// Compares one column of the table; returns how many rows were compared.
fn compare(dialect: Dialect, column: usize) -> usize {
    let (mut compared, mut met, mut wrong) = (0, 0, Vec::new());
    for row in RULES.lines().skip(1) {
        let fields: Vec<_> = row.split('\t').collect();
        assert_eq!(fields.len(), 5, "{row}");
        let expected = match fields[column] {
            "accept" => true,
            "reject" => false,
            "?" => continue,
            other => panic!("{other} in {row}"),
        };
        compared += 1;
        let text = unescape(fields[2]);
        let result = Policy::parse(first_line(&text), &debian(dialect));
        let excepted = EXCEPTIONS.iter().any(|&(d, rule, _)| d == dialect && rule == fields[2]);
        met += usize::from(excepted);
        if (result.is_ok() == expected) == excepted {
            let why = result.map_or_else(|errors| errors.to_string(), |policy| format!("accepted: {policy}"));
            wrong.push(format!("{row}\n    {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} rows disagree:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(met, EXCEPTIONS.iter().filter(|exception| exception.0 == dialect).count(), "each exception is a row");
    compared
}

#[test]
fn linux_6_12_accepts_and_rejects_what_the_kernel_does() {
    assert_eq!(compare(Dialect::Linux6_12, 0), 371);
}

#[test]
fn linux_6_1_accepts_and_rejects_what_the_kernel_does() {
    assert_eq!(compare(Dialect::Linux6_1, 4), 367);
}

#[test]
fn what_the_kernel_accepts_prints_as_text_that_parses_to_the_same_rule() {
    let options = debian(Dialect::Linux6_12);
    let mut rules = 0;
    for row in RULES.lines().skip(1).filter(|row| row.starts_with("accept")) {
        let text = unescape(row.split('\t').nth(2).expect("five columns"));
        let policy = Policy::parse(first_line(&text), &options).expect("the kernel accepts it");
        let again = Policy::parse(policy.to_string().as_bytes(), &options).expect("we wrote it");
        assert_eq!(policy, again, "{row}");
        rules += policy.len();
    }
    // Accepted rows whose audit record names an action; the others are empty lines and comments.
    assert_eq!(rules, 189);
}

/// One row of `match-rules.tsv`.
struct Case<'a> {
    rules: String,
    operation: &'a str,
    credentials: &'a str,
    preparation: &'a str,
    result: &'a str,
    entries: &'a str,
    audits: &'a str,
    cause: &'a str,
}

const OWNER: u32 = 40_000;
const GROUP: u32 = 50_000;

impl<'a> Case<'a> {
    fn of(row: &'a str) -> Self {
        let fields: Vec<_> = row.split('\t').collect();
        let [rules, operation, credentials, preparation, result, entries, audits, cause, _] = fields[..] else {
            panic!("not nine columns: {row}");
        };
        let rules = rules
            .replace(" ;; ", "\n")
            .replace("$G-1", &(GROUP - 1).to_string())
            .replace("$F", &OWNER.to_string())
            .replace("$G", &GROUP.to_string());
        Self { rules, operation, credentials, preparation, result, entries, audits, cause }
    }

    fn subject(&self) -> Subject {
        let ids: Vec<u32> = self.credentials.split(':').map(|id| id.parse().expect("a number")).collect();
        let uid = ids[0];
        let euid = ids.get(1).copied().unwrap_or(uid);
        let gid = ids.get(2).copied().unwrap_or(uid);
        let egid = ids.get(3).copied().unwrap_or(gid);
        // The ids were set by setresuid(uid, euid, euid) and an exec: capable is whose effective id is root.
        let capable = euid == 0;
        Subject {
            uid: Uid(uid),
            euid: Uid(euid),
            suid: Uid(euid),
            gid: Gid(gid),
            egid: Gid(egid),
            sgid: Gid(egid),
            cap_setuid: capable,
            cap_setgid: capable,
        }
    }

    /// The accesses that the operation makes to the file, in order.
    fn accesses(&self) -> Vec<(Hook, Mask)> {
        let open = |mask| vec![(Hook::FileCheck, mask)];
        let mapped = [(Hook::MmapCheckReqprot, Mask::EXEC), (Hook::MmapCheck, Mask::EXEC)];
        match self.operation {
            "r" => open(Mask::READ),
            "w" => open(Mask::WRITE),
            "a" => open(Mask::READ.union(Mask::WRITE)),
            "p" => open(Mask::WRITE.union(Mask::APPEND)),
            "q" => open(Mask::READ.union(Mask::WRITE).union(Mask::APPEND)),
            "t" => open(Mask::WRITE),
            "o" => Vec::new(),
            "x" => [(Hook::FileCheck, Mask::EXEC), (Hook::BprmCheck, Mask::EXEC), (Hook::CredsCheck, Mask::EXEC)]
                .into_iter()
                .chain(mapped)
                .collect(),
            "m" => open(Mask::READ).into_iter().chain(mapped).collect(),
            other => panic!("operation {other}"),
        }
    }

    fn decisions(&self, policy: &Policy) -> Vec<Decision> {
        let fs = FileSystem {
            magic: 0xef53,
            name: "ext4".to_owned(),
            subtype: None,
            uuid: *b"\x11\x11\x11\x11\x22\x22\x33\x33\x44\x44\x55\x55\x55\x55\x55\x55",
        };
        let decide = |(hook, mask)| {
            policy.decide(&Event {
                hook,
                mask,
                subject: self.subject(),
                object: Object { owner: Uid(OWNER), group: Gid(GROUP), fs: &fs },
                subject_label: None,
                object_label: None,
                data: None,
            })
        };
        self.accesses().into_iter().map(decide).collect()
    }

    /// Whether the kernel judged the label in any way that can be seen.
    fn appraisal_seen(&self) -> Option<bool> {
        match (self.cause, self.result, self.preparation) {
            ("-", "ok", "label") => None, // a good label leaves no trace
            ("-", "ok", _) => Some(false),
            (_, "EACCES", _) => Some(true),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rules_match_the_operations_that_they_match_in_the_kernel() {
    let (mut compared, mut unseen) = (0, 0);
    for row in MATCHES.lines().skip(1) {
        let case = Case::of(row);
        let policy = Policy::parse(case.rules.as_bytes(), &debian(Dialect::Linux6_12)).expect(row);
        let decisions = case.decisions(&policy);
        // The kernel makes one entry for a file and register, however many hooks ask for it.
        let entry = decisions.iter().find_map(|decision| decision.measure).map(|measure| {
            let pcr = measure.pcr.map_or(10, |pcr| pcr.index());
            format!("{pcr}:{}", measure.template.map_or("ima-sig", |template| template.name()))
        });
        assert_eq!(entry.as_deref().unwrap_or("-"), case.entries, "measured: {row}");
        let audited = decisions.iter().any(|decision| decision.audit.is_some());
        assert_eq!(if audited { "1" } else { "0" }, case.audits, "audited: {row}");
        match case.appraisal_seen() {
            Some(seen) => assert_eq!(decisions.iter().any(|d| d.appraise.is_some()), seen, "appraised: {row}"),
            None => unseen += 1,
        }
        if case.cause == "denied-hash-algorithm" {
            let sha256 = "sha256".parse().expect("a kernel name");
            let denied = |decision: &Decision| decision.algorithms.is_some_and(|set| !set.contains(sha256));
            assert!(decisions.iter().any(denied), "algorithm: {row}");
        }
        compared += 1;
    }
    // Every row can be asked; of two the appraisal passed, which the kernel does not tell apart from none.
    assert_eq!((compared, unseen), (121, 2));
}

#[test]
fn lsm_conditions_compare_each_part_and_an_unknown_label_matches_none() {
    let policy = Policy::parse(b"measure subj_role=editor obj_type=log_t", &Options::default()).expect("valid");
    let fs = FileSystem::default();
    let label = |role: Option<&str>, kind: Option<&str>| LsmLabel {
        user: Some("u".to_owned()),
        role: role.map(str::to_owned),
        kind: kind.map(str::to_owned),
    };
    for (subject, object, matches) in [
        (Some(label(Some("editor"), None)), Some(label(None, Some("log_t"))), true),
        (Some(label(Some("editor"), None)), Some(label(None, Some("log"))), false),
        (Some(label(None, Some("editor"))), Some(label(None, Some("log_t"))), false),
        (None, Some(label(None, Some("log_t"))), false),
        (Some(label(Some("editor"), None)), None, false),
    ] {
        let decision = policy.decide(&Event {
            hook: Hook::FileCheck,
            mask: Mask::READ,
            subject: Subject::ROOT,
            object: Object { owner: Uid(0), group: Gid(0), fs: &fs },
            subject_label: subject.as_ref(),
            object_label: object.as_ref(),
            data: None,
        });
        assert_eq!(decision.measure.is_some(), matches, "{subject:?} {object:?}");
    }
}

/// Words that may stand beside each other in a rule about files, each with a choice of values.
fn file_conditions() -> impl Strategy<Value = Vec<String>> {
    let name = "[!-~]{1,12}";
    let id = |real: &'static str, effective: &'static str| {
        (select(vec![real, effective]), select(vec!["=", ">", "<"]), 0..u32::MAX)
            .prop_map(|(key, sign, id)| format!("{key}{sign}{id}"))
    };
    let conditions: Vec<BoxedStrategy<String>> = vec![
        (select(vec!["", "^"]), select(vec!["EXEC", "WRITE", "READ", "APPEND"]))
            .prop_map(|(sign, mask)| format!("mask={sign}MAY_{mask}"))
            .boxed(),
        any::<u64>().prop_map(|magic| format!("fsmagic={magic:#X}")).boxed(),
        name.prop_map(|name| format!("fsname={name}")).boxed(),
        "[0-9a-fA-F]{8}(-[0-9a-f]{4}){3}-[0-9A-F]{12}".prop_map(|uuid| format!("fsuuid={uuid}")).boxed(),
        id("uid", "euid").boxed(),
        id("gid", "egid").boxed(),
        id("fowner", "fowner").boxed(),
        id("fgroup", "fgroup").boxed(),
        name.prop_map(|name| format!("subj_user={name}")).boxed(),
        name.prop_map(|name| format!("obj_type={name}")).boxed(),
        Just("permit_directio".to_owned()).boxed(),
    ];
    let count = conditions.len();
    subsequence(conditions, 0..=count).prop_flat_map(|chosen| chosen).prop_shuffle()
}

/// The beginning of a rule: action, hook, and options that go with them.
fn beginnings() -> impl Strategy<Value = String> {
    let files = select(vec!["", " func=PATH_CHECK", " func=BPRM_CHECK", " func=FILE_MMAP", " func=CREDS_CHECK"]);
    let actions = select(vec!["dont_measure", "dont_appraise", "audit", "hash", "dont_hash", "measure"]);
    let algorithms = subsequence(HashAlgorithm::ALL.to_vec(), 1..=4)
        .prop_map(|set| set.iter().map(|a| a.name()).collect::<Vec<_>>().join(","));
    let signature = select(vec!["", " appraise_type=imasig", " digest_type=verity appraise_type=sigv3"]);
    Union::new([
        (actions, files.clone()).prop_map(|(action, func)| format!("{action}{func}")).boxed(),
        (files.clone(), 0..64_u8, select(vec!["ima", "ima-ng", "d-ng|n-ng|sig", "evm-sig"]))
            .prop_map(|(func, pcr, template)| format!("measure{func} pcr={pcr} template={template}"))
            .boxed(),
        (files, signature).prop_map(|(func, signature)| format!("appraise{func}{signature}")).boxed(),
        algorithms.prop_map(|set| format!("appraise appraise_algos={set} func=MODULE_CHECK")).boxed(),
        Just("appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig".to_owned()).boxed(),
    ])
}

fn dialects() -> impl Strategy<Value = Dialect> {
    select(Dialect::ALL.to_vec())
}

proptest! {
    #[test]
    fn whatever_rule_parses_prints_as_the_same_rule(
        dialect in dialects(),
        rules in prop::collection::vec((beginnings(), file_conditions()), 1..5),
    ) {
        let options = Options::new(dialect);
        let text: String = rules.iter().map(|(begin, rest)| format!("{begin}\t {}\n", rest.join(" "))).collect();
        let policy = Policy::parse(text.as_bytes(), &options).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(policy.len(), rules.len());
        let shown = policy.to_string();
        let again = Policy::parse(shown.as_bytes(), &options).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&again, &policy);
        prop_assert_eq!(again.to_string(), shown);
    }

    #[test]
    fn rules_about_keys_and_data_print_as_the_same_rules(
        dialect in dialects(),
        (func, key) in select(vec![("KEY_CHECK", "keyrings"), ("CRITICAL_DATA", "label")]),
        names in prop::collection::vec("[!-{}~]{1,9}", 1..4),
        uid in 0..u32::MAX,
    ) {
        let options = Options::new(dialect);
        let text = format!("measure {key}={} uid>{uid} func={func}", names.join("|"));
        let policy = Policy::parse(text.as_bytes(), &options).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let expected = format!("measure func={func} uid>{uid} {key}={}\n", names.join("|"));
        prop_assert_eq!(policy.to_string(), expected);
        let again = Policy::parse(policy.to_string().as_bytes(), &options);
        prop_assert_eq!(again, Ok(policy));
    }

    #[test]
    fn any_bytes_give_a_policy_or_errors_that_point_into_the_text(
        dialect in dialects(),
        bytes in Union::new([
            prop::collection::vec(any::<u8>(), 0..200).boxed(),
            "(measure|appraise|func=|uid[=<>]|FILE_CHECK|mask=\\^?|digest_type=verity|pcr=|[ -~]|\\||,|\n|\t){0,40}"
                .prop_map(String::into_bytes).boxed(),
        ]),
    ) {
        let Err(errors) = Policy::parse(&bytes, &Options::new(dialect)) else { return Ok(()) };
        prop_assert!(errors.iter().count() > 0);
        prop_assert!(!errors.to_string().is_empty());
        for error in &errors {
            let line = bytes.split(|&byte| byte == b'\n').nth(error.line - 1).expect("the line is there");
            prop_assert_eq!(&line[error.column - 1..error.column - 1 + error.length], &*error.found);
        }
    }
}

#[test]
fn tcb_and_appraise_tcb_together_measure_and_appraise_what_root_runs_from_a_disk_only() {
    let policy = Policy::builtin([Builtin::Tcb, Builtin::AppraiseTcb].into_iter().collect(), Dialect::Linux6_12);
    let decide = |magic, owner, hook, mask| {
        let fs = FileSystem { magic, ..FileSystem::default() };
        let object = Object { owner: Uid(owner), group: Gid(0), fs: &fs };
        let subject = Subject::ROOT;
        let event = Event { hook, mask, subject, object, subject_label: None, object_label: None, data: None };
        let decision = policy.decide(&event);
        (decision.measure.is_some(), decision.appraise.is_some())
    };
    let (ext4, tmpfs) = (0xef53, 0x0102_1994);
    assert_eq!(decide(ext4, 0, Hook::BprmCheck, Mask::EXEC), (true, true));
    assert_eq!(decide(ext4, 1000, Hook::BprmCheck, Mask::EXEC), (true, false));
    assert_eq!(decide(ext4, 0, Hook::FileCheck, Mask::WRITE), (false, true));
    assert_eq!(decide(tmpfs, 0, Hook::BprmCheck, Mask::EXEC), (false, false));
}
