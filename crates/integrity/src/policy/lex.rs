//! Lines and words of a policy, and the nearest spelling of a word that is none.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_parse_add_rule()`, `ima_parse_rule()`.

/// One line, without its LF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: usize,
    /// Up to a NUL byte, where a kernel stops reading.
    pub(super) text: &'a [u8],
    /// Whether there is a NUL byte.
    pub(super) nul: bool,
}

pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|&byte| byte == b'\n').zip(1..).map(|(whole, number)| {
        let text = whole.split(|&byte| byte == 0).next().unwrap_or(whole);
        Line { number, text, nul: text.len() < whole.len() }
    })
}

/// One word and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// Of its first byte, from 1, in bytes.
    pub(super) column: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Word<'a> {
    /// The last `bytes` of this word.
    pub(super) const fn tail(self, bytes: &'a [u8]) -> Self {
        Self { column: self.column + self.bytes.len().saturating_sub(bytes.len()), bytes }
    }
}

/// Words are separated by blanks and tabs, by nothing else: CR and VT are letters.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = Word<'_>> {
    let mut next = 1;
    let place = move |bytes: &'_ [u8]| {
        let column = next;
        next += bytes.len() + 1;
        column
    };
    let mut place = place;
    line.split(|byte| matches!(byte, b' ' | b'\t'))
        .map(move |bytes| Word { column: place(bytes), bytes })
        .filter(|word| !word.bytes.is_empty())
}

/// Longest word that is compared with others; every word of the language is shorter.
const MAX_COMPARED: usize = 40;

/// The word of `known` that `found` is most likely meant to be: at most a third of its letters differ.
pub(super) fn nearest(found: &[u8], known: &[&'static str]) -> Option<&'static str> {
    if found.is_empty() || found.len() > MAX_COMPARED {
        return None;
    }
    let (distance, word) =
        known.iter().map(|word| (distance(found, word.as_bytes()), *word)).min_by_key(|best| best.0)?;
    (distance <= word.len().max(3) / 3 && distance < found.len()).then_some(word)
}

/// Edits (insert, delete, replace a letter) from one to the other, where case does not count.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, &above) in b.iter().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(!from.eq_ignore_ascii_case(to))).min(left + 1).min(above + 1);
            diagonal = above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_know_their_column_in_bytes() {
        let found: Vec<_> = words(b" \tmeasure\t func=X ").collect();
        assert_eq!(found, [Word { column: 3, bytes: b"measure" }, Word { column: 12, bytes: b"func=X" }]);
        assert_eq!(found[1].tail(b"X"), Word { column: 17, bytes: b"X" });
        assert_eq!(words(b"a\rb\x0bc").count(), 1);
        assert_eq!(words(b"").count() + words(b" \t ").count(), 0);
    }

    #[test]
    fn a_line_ends_at_lf_and_its_text_at_nul() {
        let found: Vec<_> = lines(b"a\0b\n\nc").collect();
        let line = |number, text, nul| Line { number, text, nul };
        assert_eq!(found, [line(1, &b"a"[..], true), line(2, b"", false), line(3, b"c", false)]);
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("CHEK", "check", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), edits, "{a} {b}");
        }
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let known = ["FILE_CHECK", "MMAP_CHECK", "BPRM_CHECK"];
        assert_eq!(nearest(b"FILE_CHEK", &known), Some("FILE_CHECK"));
        assert_eq!(nearest(b"mmap_check", &known), Some("MMAP_CHECK"));
        assert_eq!(nearest(b"NOTHING", &known), None);
        assert_eq!(nearest(b"", &known), None);
        assert_eq!(nearest(&[b'A'; 41], &known), None);
        assert_eq!(nearest(b"x", &["y"]), None);
    }
}
