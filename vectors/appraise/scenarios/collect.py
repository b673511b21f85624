#!/usr/bin/env python3
"""collect.py SCENARIOS COLUMNS:DIR... > TSV: joins the steps of each run with the audit records they caused.
COLUMNS: the values (joined by ',') that go before the others, e.g. "stock,sha256,enforce". Labels (two "cat f" steps) become
one row; of the runs other than "stock,sha256" only the rows that differ from those of the same mode."""
import re, sys

AUDIT = re.compile(r"audit\((\d+)\.(\d+):(\d+)\): .*?op=(\S+) cause=(\S+) comm=(\S+)(?: name=(\S+))?.* res=(\d) errno=(-?\d+)")
scenarios = {}
for line in open(sys.argv[1]):
    line = line.rstrip("\n")
    if line and not line.startswith("#"):
        name, files, steps = line.split("\t")
        scenarios[name] = files


def load(directory):
    audits, unused = [], []
    for line in open(directory + "/audit"):
        m = AUDIT.search(line)
        if m:
            audits.append((int(m[1]) * 1000 + int(m[2]), int(m[3]), *m.groups()[3:]))
        elif "type=1807" not in line and "type=1802" not in line:
            unused.append(line)
    if unused:
        sys.exit("not understood: " + "".join(unused))
    steps = [line.rstrip("\n").split("\t") for line in open(directory + "/steps")]
    taken = 0
    for s in steps:
        mine = sorted((a for a in audits if int(s[5]) <= a[0] <= int(s[6])), key=lambda a: a[1])
        taken += len(mine)
        s.append(mine)
    first = min((int(s[5]) for s in steps), default=0)
    late = [a for a in audits if a[0] >= first]
    assert taken == len(late), (directory, taken, len(late))
    return steps


def causes(mine):
    """cause, or FILE=cause if the record names another file than the scenario's `f`; several joined by ' '."""
    out = []
    for _, _, op, cause, _, name, res, errno in mine:
        name = (name or "?").strip('"')
        base = name.rsplit("/", 1)[-1]
        text = cause.strip('"')
        if op != "appraise_data":
            text = f"{op}:{text}"
        if (res, errno) != ("0", "0"):
            text += f"(res={res},errno={errno})"
        out.append(text if base == "f" else f"{base}={text}")
    return " ".join(out) or "-"


labels = sys.argv[1].endswith("labels.in")
keys = sys.argv[2].split(":")[0].split(",")
names = ["kernel", "ima_hash", "mode"][-len(keys):]
if labels:
    print("\t".join(["name", *names, "content", "label", "result", "cause", "label_after", "again_result", "again_cause"]))
else:
    print("\t".join(["scenario", *names, "files", "step", "do", "result", "cause", "label_after"]))
stock = {}
for arg in sys.argv[2:]:
    columns, directory = arg.split(":", 1)
    steps = load(directory)
    if labels:
        for one, two in zip(steps[::2], steps[1::2]):
            assert one[0] == two[0] and one[4] == two[4]
            _, content, label = scenarios[one[0]].split(":")
            ok = lambda r: "ok" if r.startswith("data:") else r
            outcome = [ok(one[3]), causes(one[7]), one[4], ok(two[3]), causes(two[7])]
            key = one[0], columns.rsplit(",", 1)[1]
            if stock.setdefault(key, outcome) is outcome or stock[key] != outcome:
                print("\t".join([one[0], *columns.split(","), content, label, *outcome]))
    else:
        for s in steps:
            print("\t".join([s[0], *columns.split(","), scenarios[s[0]], s[1], s[2], s[3], causes(s[7]), s[4]]))
