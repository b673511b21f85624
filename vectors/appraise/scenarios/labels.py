#!/usr/bin/env python3
"""Prints the scenarios of labels.tsv: one file each, its security.ima label planted offline, opened for reading twice."""
import hashlib, subprocess

ALGOS = [("md4", 16), ("md5", 16), ("sha1", 20), ("rmd160", 20), ("sha256", 32), ("sha384", 48), ("sha512", 64), ("sha224", 28),
         ("rmd128", 16), ("rmd256", 32), ("rmd320", 40), ("wp256", 32), ("wp384", 48), ("wp512", 64), ("tgr128", 16), ("tgr160", 20),
         ("tgr192", 24), ("sm3", 32), ("streebog256", 32), ("streebog512", 64), ("sha3-256", 32), ("sha3-384", 48), ("sha3-512", 64)]
C, OTHER, EMPTY, BIG = b"content\n", b"other content\n", b"", b"0123456789abcdef" * 9
# Not in Python nor OpenSSL: as written by the kernel itself in fix mode with streebog_generic loaded.
STREEBOG = {
    ("streebog256", C): "c767163e21a5adbd47c1df00856175fa35e47fe3c82a78c25b107adf28d2b17f",
    ("streebog512", C): "af9e3e0352f6e9b05f713f74dbb12a75d957ac5715c2c43c0165f7b5e5455c2a"
                        "4c2fc1979213a775815ba5f05a8ac2742f17735adebe678f512ea7d8979909b3",
}


def openssl(algo, data):
    out = subprocess.run(["openssl", "dgst", "-provider", "legacy", "-provider", "default", "-" + algo, "-binary"],
                         input=data, stdout=subprocess.PIPE, check=True)
    return out.stdout


def digest(algo, data):
    """The digest, or None for an algorithm that nothing here can compute (the kernel has not got it either)."""
    if algo in ("md4", "rmd160"):
        return openssl(algo, data)
    if algo.startswith("wp"):
        return openssl("whirlpool", data)[: int(algo[2:]) // 8]
    if algo.startswith("streebog"):
        return bytes.fromhex(STREEBOG[algo, data])
    if algo.startswith(("rmd", "tgr")):
        return None
    return hashlib.new(algo.replace("-", "_"), data).digest()


rows = {}


def row(name, label, content=C):
    assert name not in rows, name
    rows[name] = (content, label)


sha256, sha512, sha1, md5 = (digest(a, C) for a in ("sha256", "sha512", "sha1", "md5"))
wrong = bytes([sha256[0] ^ 1]) + sha256[1:]
ng = lambda i, d: bytes([4, i]) + d

row("none", None)
row("right-sha256", ng(4, sha256))
row("wrong-first-bit", ng(4, wrong))
row("wrong-last-bit", ng(4, sha256[:-1] + bytes([sha256[-1] ^ 0x80])))
row("other-files-label", ng(4, digest("sha256", OTHER)))
row("label-of-empty", ng(4, digest("sha256", EMPTY)))

for i, (a, n) in enumerate(ALGOS):
    d = digest(a, C)
    if d is not None:
        row(f"right-ng-{a}", ng(i, d))
        row(f"wrong-ng-{a}", ng(i, d[:-1] + bytes([d[-1] ^ 1])))
        row(f"short-ng-{a}", ng(i, d[:-1]))
        row(f"long-ng-{a}", ng(i, d + b"\0"))
    row(f"zeros-ng-{a}", ng(i, bytes(n)))
    if a != "sha256":
        row(f"sha256-as-{a}", ng(i, sha256))
        row(f"sha256-as-{a}-padded", ng(i, sha256 + bytes(32)))
for a in ("md5", "sha1", "sha224", "sha384", "sha512", "sha3-256"):
    row(f"{a}-as-sha256", ng(4, digest(a, C)))

row("legacy-sha1", b"\1" + sha1)
row("legacy-sha1-wrong", b"\1" + sha1[:-1] + bytes([sha1[-1] ^ 1]))
row("legacy-sha1-long", b"\1" + sha1 + b"\0")
row("legacy-sha1-short", b"\1" + sha1[:-1])
row("legacy-sha1-16-and-zeros", b"\1" + sha1[:16] + bytes(4))
row("legacy-md4", b"\1" + digest("md4", C))
row("legacy-md5", b"\1" + md5)
row("legacy-md5-wrong", b"\1" + md5[:-1] + bytes([md5[-1] ^ 1]))
row("legacy-md5-padded", b"\1" + md5 + bytes(4))
row("legacy-md5-padded-wrong", b"\1" + bytes([md5[0] ^ 1]) + md5[1:] + bytes(4))
row("legacy-md5-padded-not-zero", b"\1" + md5 + b"\0\0\0\1")
row("legacy-md5-long", b"\1" + md5 + b"\0")
row("legacy-md5-short", b"\1" + md5[:-1])
row("legacy-sha256", b"\1" + sha256)
row("legacy-sha256-long", b"\1" + sha256 + b"\0")
row("legacy-sha256-as-20", b"\1" + sha256[:20])
row("legacy-sha256-as-16", b"\1" + sha256[:16])
row("legacy-sha512", b"\1" + sha512)
row("legacy-zeros-20", bytes([1]) + bytes(20))
row("legacy-zeros-16", bytes([1]) + bytes(16))
row("ng-md5-padded", ng(1, md5 + bytes(4)))
row("ng-sha1-padded", ng(2, sha1 + bytes(12)))

for i in (0x17, 0x18, 0x63, 0x80, 0xff):
    row(f"id-{i:02x}-sha256", ng(i, sha256))
    row(f"id-{i:02x}-sha256-wrong", ng(i, wrong))
    row(f"id-{i:02x}-sha256-short", ng(i, sha256[:-1]))
    row(f"id-{i:02x}-sha256-long", ng(i, sha256 + b"\0"))
    row(f"id-{i:02x}-sha512", ng(i, sha512))
    row(f"id-{i:02x}-sha1", ng(i, sha1))
    row(f"id-{i:02x}-alone", ng(i, b""))

for n in (31, 20, 16, 1, 0):
    row(f"sha256-cut-to-{n}", ng(4, sha256[:n]))
row("sha256-and-1", ng(4, sha256 + b"\xff"))
row("sha256-and-32", ng(4, sha256 + bytes(32)))
row("sha256-and-200", ng(4, sha256 + b"\xaa" * 200))
row("sha256-late-by-1", ng(4, b"\0" + sha256))
row("value-empty", b"")
for t in range(0, 9):
    row(f"only-{t:02x}", bytes([t]))
row("only-ff", b"\xff")
row("ascii-hex", b"0404" + sha256.hex().encode())

for t in (0x00, 0x02, 0x05, 0x06, 0x07, 0x08, 0x10, 0x40, 0xff):
    row(f"type-{t:02x}-sha256", bytes([t]) + sha256)
    row(f"type-{t:02x}-04-sha256", bytes([t, 4]) + sha256)
    row(f"type-{t:02x}-0204-sha256", bytes([t, 2, 4]) + sha256)
    row(f"type-{t:02x}-0304-sha256", bytes([t, 3, 4]) + sha256)
    row(f"type-{t:02x}-zeros-20", bytes([t]) + bytes(20))
    row(f"type-{t:02x}-zeros-33", bytes([t]) + bytes(33))
    row(f"type-{t:02x}-two-bytes", bytes([t, 2]))

head = lambda version, algo, size, t=3: bytes([t, version, algo]) + bytes.fromhex("01020304") + size.to_bytes(2, "big")
row("sig-sha256", b"\3" + sha256)
row("sig-04-sha256", b"\3\4" + sha256)
row("sig-zeros-33", b"\3" + bytes(33))
for v in (0, 1, 2, 3, 4, 5, 0x7f, 0xff):
    row(f"sig-v{v}-two-bytes", bytes([3, v]))
    row(f"sig-v{v}-header-only", head(v, 4, 0))
    row(f"sig-v{v}-header-cut", head(v, 4, 0)[:8])
    row(f"sig-v{v}-unknown-key", head(v, 4, 8) + bytes(range(8)))
row("sig-v2-size-too-big", head(2, 4, 9) + bytes(8))
row("sig-v2-size-too-small", head(2, 4, 7) + bytes(8))
row("sig-v2-size-zero", head(2, 4, 0) + bytes(8))
row("sig-v2-id-17", head(2, 0x17, 8) + bytes(8))
row("sig-v2-id-ff", head(2, 0xff, 8) + bytes(8))
for i, (a, _) in enumerate(ALGOS):
    if a != "sha256":
        row(f"sig-v2-{a}", head(2, i, 8) + bytes(8))
row("sig-v2-256-bytes", head(2, 4, 256) + bytes(256))
row("verity-v3-unknown-key", head(3, 4, 8, 6) + bytes(8))
row("verity-v2-unknown-key", head(2, 4, 8, 6) + bytes(8))
row("verity-v3-sha512", head(3, 6, 8, 6) + bytes(8))
row("verity-v3-rmd128", head(3, 8, 8, 6) + bytes(8))
row("verity-v3-id-17", head(3, 0x17, 8, 6) + bytes(8))
row("verity-v3-header-only", head(3, 6, 0, 6))
row("portable-v2-unknown-key", head(2, 4, 8, 5) + bytes(8))

E = lambda a: digest(a, EMPTY)
row("empty-none", None, EMPTY)
row("empty-right-sha256", ng(4, E("sha256")), EMPTY)
row("empty-right-sha512", ng(6, E("sha512")), EMPTY)
row("empty-wrong", ng(4, sha256), EMPTY)
row("empty-zeros", ng(4, bytes(32)), EMPTY)
row("empty-legacy-sha1", b"\1" + E("sha1"), EMPTY)
row("empty-legacy-md5", b"\1" + E("md5"), EMPTY)
row("empty-legacy-md5-padded", b"\1" + E("md5") + bytes(4), EMPTY)
row("empty-ng-alone", ng(4, b""), EMPTY)
row("empty-only-04", b"\4", EMPTY)
row("empty-value-empty", b"", EMPTY)
row("empty-sig-v2", head(2, 4, 8) + bytes(8), EMPTY)
row("empty-sig-short", b"\3\2", EMPTY)
row("empty-verity-v3", head(3, 4, 8, 6) + bytes(8), EMPTY)
row("empty-type-05", b"\5" + sha256, EMPTY)
row("empty-rmd128", ng(8, bytes(16)), EMPTY)
row("big-none", None, BIG)
row("big-right", ng(4, digest("sha256", BIG)), BIG)
row("big-wrong", ng(4, sha256), BIG)

hexed = lambda b: "-" if b is None else b.hex() or "empty"
for name, (content, label) in rows.items():
    print(f"{name}\tf:{hexed(content)}:{hexed(label)}\tcat f; cat f")
