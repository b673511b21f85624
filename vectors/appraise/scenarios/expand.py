#!/usr/bin/env python3
"""Turns the readable scenarios (*.txt) into what steps.c reads: contents and labels by name become hex.
FILES: words FILE:CONTENT:LABEL. CONTENT: a name of CONTENTS, or any other word = that text and a newline.
LABEL: none, good, good:ALGO (as the kernel stores it), ng:ALGO, bad (another file's), hex. In steps, 'TEXT' becomes hex."""
import hashlib, re, struct, sys

IDS = {"md5": 1, "sha1": 2, "sha256": 4, "sha384": 5, "sha512": 6, "sha224": 7}
LOADER = "/scratch/%s/ld"


def elf(kind, base, interpreter=b""):
    """A smallest 64-bit program: exit(42). With an interpreter it never gets to run itself."""
    code = bytes.fromhex("bf2a000000b83c0000000f05")
    phnum = 2 if interpreter else 1
    at = 64 + 56 * phnum
    data = code + (interpreter + b"\0" if interpreter else b"")
    size = at + len(data)
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", kind, 62, 1, base + at, 64, 0, 0, 64, 56, phnum, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    interp = b""
    if interpreter:
        n = len(interpreter) + 1
        interp = struct.pack("<IIQQQQQQ", 3, 4, at + len(code), base + at + len(code), base + at + len(code), n, n, 1)
    return header + interp + load + data


def content(word, scenario):
    fixed = {"empty": b"", "elf": elf(2, 0x400000), "elf2": elf(2, 0x500000), "ld": elf(3, 0),
             "dynamic": elf(2, 0x400000, (LOADER % scenario).encode()),
             "script": f"#!/scratch/{scenario}/interp\n".encode(), "script2": f"#!/scratch/{scenario}/script\n".encode(),
             "page": b"p" * 4096}
    return fixed.get(word, (word + "\n").encode())


def label(word, data):
    if word == "none":
        return "-"
    if word == "bad":
        return label("good", b"another file\n")
    kind, _, algo = word.partition("=")
    if kind in ("good", "ng"):
        algo = algo or "sha256"
        digest = hashlib.new(algo, data).digest()
        legacy = kind == "good" and IDS[algo] <= 2
        return (b"\1" + digest if legacy else bytes([4, IDS[algo]]) + digest).hex()
    return word


for line in sys.stdin:
    line = line.strip()
    if not line or line.startswith("#"):
        continue
    name, files, steps = (part.strip() for part in line.split("|"))
    out = []
    for word in files.split():
        if word == "-":
            continue
        f, c, l = word.split(":")
        data = content(c, name)
        out.append(f"{f}:{data.hex() or 'empty'}:{label(l, data)}")
    steps = re.sub(r"'([^']*)'", lambda m: m[1].encode().hex() or "empty", steps)
    print(f"{name}\t{','.join(out) or '-'}\t{steps}")
