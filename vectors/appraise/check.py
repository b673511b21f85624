#!/usr/bin/env python3
"""Replays labels.tsv with the rules written down here; every row must come out as the kernel's. Also looks at the other tables' form.
The rules are the kernel's as these vectors show them: which hash a label asks for, what counts as equal, what fix mode writes."""
import csv, hashlib, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ALGOS = ["md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "rmd128", "rmd256", "rmd320", "wp256", "wp384", "wp512",
         "tgr128", "tgr160", "tgr192", "sm3", "streebog256", "streebog512", "sha3-256", "sha3-384", "sha3-512"]
STOCK = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"}
MODULES = STOCK | {"md4", "rmd160", "wp256", "wp384", "wp512", "streebog256", "streebog512"}
cache = {}


def digest(algo, data):
    if (algo, data) not in cache:
        if algo.startswith("streebog"):
            out = None  # nothing here computes it: such rows are counted, not checked
        elif algo in ("md4", "rmd160") or algo.startswith("wp"):
            name = "whirlpool" if algo.startswith("wp") else algo
            out = subprocess.run(["openssl", "dgst", "-provider", "legacy", "-provider", "default", "-" + name, "-binary"],
                                 input=data, stdout=subprocess.PIPE, check=True).stdout
            out = out[: int(algo[2:]) // 8] if algo.startswith("wp") else out
        else:
            out = hashlib.new(algo.replace("-", "_"), data).digest()
        cache[algo, data] = out
    return cache[algo, data]


def asked_for(label, default):
    """The algorithm a label asks the file to be hashed with."""
    known = lambda i: ALGOS[i] if i < len(ALGOS) else default
    if label is None or len(label) < 2:
        return default
    if label[0] == 1:
        return "md5" if len(label) == 17 or (len(label) == 21 and label[17:] == bytes(4)) else "sha1" if len(label) == 21 else default
    if label[0] == 4:
        return known(label[1])
    if len(label) > 9 and label[:2] in (b"\3\2", b"\6\3"):
        return known(label[2])
    return default


def cause_of(label, computed, keyring):
    """None = passes."""
    if label is None:
        return "missing-hash"
    if label == b"":
        return "missing-hash(res=1,errno=0)"
    if label[0] in (1, 4):
        stored = label[1:] if label[0] == 1 else label[2:]
        return None if stored[: len(computed)] == computed else "invalid-hash"
    version = label[1] if len(label) > 1 else 0
    if label[0] == 3:
        if version >= 3:
            return "invalid-signature-version"
        return "unknown" if keyring and len(label) > 1 and version == 0 else "invalid-signature"
    if label[0] == 6:
        return "invalid-verity-signature" if version == 3 else "invalid-signature-version"
    return "unknown-ima-data"


def replay(row):
    content, label = ((None if row[k] == "-" else b"" if row[k] == "empty" else bytes.fromhex(row[k])) for k in ("content", "label"))
    algo = asked_for(label, row["ima_hash"])
    enforce = "EACCES" if row["mode"] == "enforce" else "ok"
    if algo not in (MODULES if row["kernel"] == "modules" else STOCK):
        return enforce, "collect_data:failed", row["label"], enforce, "collect_data:failed"
    computed = digest(algo, content)
    if computed is None:
        return None
    cause = cause_of(label, computed, row["kernel"] == "keyring")
    if cause is None:
        return "ok", "-", row["label"], "ok", "-"
    if row["mode"] != "fix" or (label and label[0] == 3):
        return enforce, cause, row["label"], enforce, cause
    number = ALGOS.index(algo)
    written = b"\1" + computed if number <= 2 else bytes([4, number]) + computed
    return "ok", cause, written.hex(), "ok", "-"


def table(name):
    with open(os.path.join(HERE, name)) as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


bad = skipped = 0
rows = table("labels.tsv")
for row in rows:
    want = replay(row)
    have = tuple(row[k] for k in ("result", "cause", "label_after", "again_result", "again_cause"))
    if want is None:
        skipped += 1
    elif want != have:
        bad += 1
        print(row["name"], row["kernel"], row["ima_hash"], row["mode"], "kernel:", have, "rules:", want)
print(f"labels.tsv: {len(rows)} rows, {len(rows) - bad - skipped} as the rules say, {bad} not, {skipped} not computable here")
for name in ("new-files.tsv", "exec.tsv", "noxattr.tsv"):
    rows = table(name)
    for row in rows:
        assert None not in row and None not in row.values() and all(row.values()), row
    scenarios = {r["scenario"] for r in rows}
    for mode in ("enforce", "log", "fix"):
        assert {r["scenario"] for r in rows if r["mode"] == mode} == scenarios, (name, mode)
    print(f"{name}: {len(scenarios)} scenarios, {len(rows)} rows")
sys.exit(bad != 0)
