//! What stands after the `=` of each key.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_parse_rule()`; numbers as in `lib/kstrtox.c`.

use super::action::Action;
use super::dialect::{Dialect, Feature, Lsm};
use super::error::{Expected, Problem};
use super::key::{self, Key};
use super::lex::Word;
use super::parse::Reader;
use super::rule::{Algorithms, Bound, Comparison, Credential, MaskCondition, MaskMode, Pcr, Template, Which};
use crate::digest::HashAlgorithm;
use crate::event::Hook;

/// Why a value is not taken: where, what, and what would be.
type Refusal<'a> = (Word<'a>, Problem, Expected);

/// Takes one value into the rule, or reports why not.
pub(super) fn take<'a>(reader: &mut Reader<'a, '_>, key: Key, sign: u8, word: Word<'a>, bytes: &'a [u8]) {
    let at = word.tail(bytes);
    let Ok(text) = str::from_utf8(bytes) else {
        reader.fail(at, Problem::NotText, Expected::Nothing);
        return;
    };
    let value = Value { key, word, at, text };
    let lsm = reader.options.lsm;
    let taken = match key {
        Key::Func => value.func(reader),
        Key::Mask => value.mask(reader),
        Key::Fsmagic => value.fsmagic(reader),
        Key::Fsuuid => value.fsuuid(reader),
        Key::Fsname => {
            reader.rule.fsname = Some(text.into());
            Ok(())
        }
        Key::FsSubtype => value.once(reader.rule.fs_subtype.is_some()).map(|()| {
            reader.rule.fs_subtype = Some(text.into());
        }),
        Key::Uid => value.credential(&mut reader.rule.user, Which::Real, Key::Euid, sign),
        Key::Euid => value.credential(&mut reader.rule.user, Which::Effective, Key::Uid, sign),
        Key::Gid => value.credential(&mut reader.rule.group, Which::Real, Key::Egid, sign),
        Key::Egid => value.credential(&mut reader.rule.group, Which::Effective, Key::Gid, sign),
        Key::Fowner => value.owner(&mut reader.rule.fowner, sign),
        Key::Fgroup => value.owner(&mut reader.rule.fgroup, sign),
        Key::SubjUser => value.lsm(&mut reader.rule.subject.user, lsm),
        Key::SubjRole => value.lsm(&mut reader.rule.subject.role, lsm),
        Key::SubjType => value.lsm(&mut reader.rule.subject.kind, lsm),
        Key::ObjUser => value.lsm(&mut reader.rule.object.user, lsm),
        Key::ObjRole => value.lsm(&mut reader.rule.object.role, lsm),
        Key::ObjType => value.lsm(&mut reader.rule.object.kind, lsm),
        Key::DigestType => value.digest_type(reader),
        Key::AppraiseType => value.appraise_type(reader),
        Key::AppraiseFlag => value.appraise_flag(reader),
        Key::AppraiseAlgos => value.appraise_algos(reader),
        Key::Pcr => value.pcr(reader),
        Key::Template => value.template(reader),
        Key::Keyrings => value.list(reader.rule.keyrings.is_empty()).map(|names| reader.rule.keyrings = names),
        Key::Label => value.list(reader.rule.labels.is_empty()).map(|names| reader.rule.labels = names),
        Key::PermitDirectio => Ok(()),
    };
    match taken {
        Ok(()) => reader.saw(key, word),
        Err((at, problem, expected)) => reader.fail(at, problem, expected),
    }
}

/// One value of one key.
#[derive(Clone, Copy)]
struct Value<'a> {
    key: Key,
    /// Key and value.
    word: Word<'a>,
    /// The value.
    at: Word<'a>,
    text: &'a str,
}

impl<'a> Value<'a> {
    fn refuse<T>(self, problem: Problem, expected: Expected) -> Result<T, Refusal<'a>> {
        Err((self.at, problem, expected))
    }

    fn once(self, already: bool) -> Result<(), Refusal<'a>> {
        if already { self.refuse(Problem::Repeated(self.key), Expected::Nothing) } else { Ok(()) }
    }

    fn one_of(self, words: Vec<&'static str>) -> Refusal<'a> {
        (self.at, Problem::UnknownValue(self.key), Expected::Words(words))
    }

    fn func(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        self.once(reader.rule.func.is_some())?;
        let dialect = reader.options.dialect;
        let words = || key::hook_words(dialect);
        let hook = self.text.parse::<Hook>().map_err(|_| self.one_of(words()))?;
        if hook == Hook::MmapCheckReqprot && !dialect.has(Feature::Reqprot) {
            return self.refuse(Problem::NotInDialect(dialect), Expected::Words(words()));
        }
        reader.rule.func = Some(hook);
        Ok(())
    }

    fn mask(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        self.once(reader.rule.mask.is_some())?;
        let (mode, name) =
            self.text.strip_prefix('^').map_or((MaskMode::Exact, self.text), |name| (MaskMode::Includes, name));
        let found = key::MASKS.into_iter().find(|(word, _)| *word == name);
        let (_, mask) = found.ok_or_else(|| self.one_of(key::MASKS.map(|(word, _)| word).to_vec()))?;
        reader.rule.mask = Some(MaskCondition { mode, mask });
        Ok(())
    }

    fn fsmagic(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        // The kernel takes a magic of zero for none, so a second one may follow it.
        self.once(reader.rule.fsmagic.is_some_and(|magic| magic != 0))?;
        let digits = self.text.strip_prefix('+').unwrap_or(self.text);
        let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
        let magic = self.number(digits, 16, "a hexadecimal number of up to 16 digits")?;
        reader.rule.fsmagic = Some(magic);
        Ok(())
    }

    fn fsuuid(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        self.once(reader.rule.fsuuid.is_some_and(|uuid| uuid != [0; 16]))?;
        let form = Expected::Phrase("a UUID like 11111111-2222-3333-4444-555555555555");
        let strict = reader.options.dialect.has(Feature::Strict);
        match uuid(self.text) {
            Some((uuid, rest)) if rest.is_empty() || !strict => reader.rule.fsuuid = Some(uuid),
            Some(_) | None => return self.refuse(Problem::UnknownValue(self.key), form),
        }
        Ok(())
    }

    fn credential(self, place: &mut Option<Credential>, which: Which, other: Key, sign: u8) -> Result<(), Refusal<'a>> {
        if place.is_some_and(|taken| taken.which != which) {
            return self.refuse(Problem::SharesPlace(self.key, other), Expected::Nothing);
        }
        self.once(place.is_some())?;
        *place = Some(Credential { which, bound: self.bound(sign)? });
        Ok(())
    }

    fn owner(self, place: &mut Option<Bound>, sign: u8) -> Result<(), Refusal<'a>> {
        self.once(place.is_some())?;
        *place = Some(self.bound(sign)?);
        Ok(())
    }

    fn bound(self, sign: u8) -> Result<Bound, Refusal<'a>> {
        let what = "a decimal number from 0 to 4294967294";
        let digits = self.text.strip_prefix('+').unwrap_or(self.text);
        let number = self.number(digits, 10, what)?;
        // The largest is no id: it stands for "leave it as it is" in system calls.
        let id = u32::try_from(number).ok().filter(|&id| id != u32::MAX);
        let id = id.ok_or((self.at, Problem::OutOfRange(self.key), Expected::Phrase(what)))?;
        let comparison = match sign {
            b'>' => Comparison::Above,
            b'<' => Comparison::Below,
            _ => Comparison::Equal,
        };
        Ok(Bound { comparison, id })
    }

    fn lsm(self, place: &mut Option<String>, lsm: Lsm<'_>) -> Result<(), Refusal<'a>> {
        self.once(place.is_some())?;
        let known = match lsm {
            Lsm::Any => true,
            Lsm::AppArmor(profiles) => self.key == Key::SubjRole && profiles.contains(&self.text),
        };
        if !known {
            return self.refuse(Problem::UnknownLabel(self.key), Expected::Nothing);
        }
        *place = Some(self.text.to_owned());
        Ok(())
    }

    fn digest_type(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        if self.text != "verity" {
            return Err(self.one_of(vec!["verity"]));
        }
        let flags = &mut reader.rule.flags;
        if flags.signature_required && !reader.options.dialect.has(Feature::Sigv3Alone) {
            return self.refuse(Problem::Contradiction(self.key), Expected::Phrase("it before appraise_type="));
        }
        flags.verity = true;
        Ok(())
    }

    fn appraise_type(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        let dialect = reader.options.dialect;
        let flags = &mut reader.rule.flags;
        let after_verity = Expected::Phrase("sigv3 with digest_type=verity");
        match self.text {
            "imasig" if flags.verity => return self.refuse(Problem::Contradiction(self.key), after_verity),
            "imasig" => {}
            "sigv3" if !flags.verity && !dialect.has(Feature::Sigv3Alone) => {
                let expected = Expected::Phrase("digest_type=verity before it");
                return self.refuse(Problem::Contradiction(self.key), expected);
            }
            "sigv3" => flags.sigv3 = true,
            "imasig|modsig" if reader.options.modsig => {
                if flags.verity || flags.sigv3 {
                    return self.refuse(Problem::Contradiction(self.key), after_verity);
                }
                flags.modsig_allowed = true;
            }
            _ => {
                let all = vec!["imasig", "sigv3", "imasig|modsig"];
                let there = if reader.options.modsig { all } else { vec!["imasig", "sigv3"] };
                return Err(self.one_of(there));
            }
        }
        flags.signature_required = true;
        flags.blacklist |= dialect.has(Feature::BlacklistAlways);
        Ok(())
    }

    fn appraise_flag(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        let dialect = reader.options.dialect;
        let known = match dialect {
            Dialect::Linux6_1 => reader.options.modsig && self.text.contains("blacklist"),
            Dialect::Linux6_12 | Dialect::Linux7_2 => true,
            Dialect::Imara => self.text == "check_blacklist",
        };
        if !known {
            return Err(self.one_of(vec!["check_blacklist"]));
        }
        if !dialect.has(Feature::BlacklistAlways) {
            reader.rule.blacklist_flag = true;
            reader.rule.flags.blacklist = true;
        }
        Ok(())
    }

    fn appraise_algos(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        self.once(reader.rule.algorithms.is_some())?;
        let there = reader.options.algorithms;
        let words = || Expected::Words(there.iter().map(HashAlgorithm::name).collect());
        let mut set = Algorithms::NONE;
        for at in items(self.at, b',') {
            if at.bytes.is_empty() {
                return self.refuse(Problem::EmptyItem(self.key), words());
            }
            let named = HashAlgorithm::ALL.iter().copied().find(|a| a.name().as_bytes() == at.bytes);
            match named {
                Some(algorithm) if there.contains(algorithm) => set = set.with(algorithm),
                Some(_) => return Err((at, Problem::UnavailableAlgorithm, words())),
                None => return Err((at, Problem::UnknownValue(self.key), words())),
            }
        }
        reader.rule.algorithms = Some(set);
        Ok(())
    }

    fn pcr(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        let what = "a decimal number from 0 to 63";
        let minus = self.text.strip_prefix('-');
        let digits = minus.or_else(|| self.text.strip_prefix('+')).unwrap_or(self.text);
        let number = self.number(digits, 10, what)?;
        let pcr = u8::try_from(number).ok().and_then(Pcr::new).filter(|pcr| minus.is_none() || pcr.index() == 0);
        if pcr.is_none() {
            return self.refuse(Problem::OutOfRange(self.key), Expected::Phrase(what));
        }
        reader.rule.pcr = pcr;
        Ok(())
    }

    fn template(self, reader: &mut Reader<'a, '_>) -> Result<(), Refusal<'a>> {
        if reader.action.is_none_or(|(action, _)| action != Action::Measure) {
            let expected = Expected::Phrase("the action measure before it");
            return Err((self.word, Problem::NeedsAction(self.key, Action::Measure), expected));
        }
        self.once(reader.rule.template.is_some())?;
        let named = |template: &Template| template.name() == self.text || template.format() == self.text;
        let found = Template::ALL.into_iter().find(named);
        reader.rule.template = Some(found.ok_or_else(|| self.one_of(key::template_words()))?);
        Ok(())
    }

    fn list(self, first: bool) -> Result<Vec<Box<str>>, Refusal<'a>> {
        self.once(!first)?;
        let names: Vec<Box<str>> = self.text.split('|').map(Into::into).collect();
        if names.iter().any(|name| name.is_empty()) {
            return self.refuse(Problem::EmptyItem(self.key), Expected::Phrase("names separated by one |"));
        }
        Ok(names)
    }

    fn number(self, digits: &str, radix: u32, what: &'static str) -> Result<u64, Refusal<'a>> {
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
            return self.refuse(Problem::NotANumber(self.key), Expected::Phrase(what));
        }
        u64::from_str_radix(digits, radix)
            .or_else(|_| self.refuse(Problem::OutOfRange(self.key), Expected::Phrase(what)))
    }
}

/// The items of a list, each with its place.
fn items(list: Word<'_>, separator: u8) -> impl Iterator<Item = Word<'_>> {
    list.bytes.split(move |&byte| byte == separator).scan(list.column, |next, bytes| {
        let column = *next;
        *next += bytes.len() + 1;
        Some(Word { column, bytes })
    })
}

/// A UUID in its canonical form, and what follows it.
fn uuid(text: &str) -> Option<([u8; 16], &str)> {
    let (text, rest) = text.split_at_checked(36)?;
    let mut uuid = [0; 16];
    let mut places = uuid.iter_mut();
    let mut groups = text.split('-');
    for length in [8, 4, 4, 4, 12] {
        let group = groups.next().filter(|group| group.len() == length)?;
        for pair in group.as_bytes().chunks(2) {
            let pair = str::from_utf8(pair).ok().filter(|pair| pair.chars().all(|digit| digit.is_ascii_hexdigit()))?;
            *places.next()? = u8::from_str_radix(pair, 16).ok()?;
        }
    }
    Some((uuid, rest))
}

#[cfg(test)]
mod tests {
    use super::uuid;
    use crate::policy::{Dialect, Options, Policy};

    #[test]
    fn values_are_read_as_the_kernel_reads_them() {
        for (rule, canonical) in [
            ("measure pcr=-0", Some("measure pcr=0")),
            ("measure pcr=-1", None),
            ("measure pcr=+007", Some("measure pcr=7")),
            ("measure pcr=-+0", None),
            ("measure pcr=10 pcr=11", Some("measure pcr=11")),
            ("measure fsmagic=+0XeF53", Some("measure fsmagic=0xef53")),
            ("measure fsmagic=0x+1", None),
            ("measure fsmagic=0 fsmagic=1", Some("measure fsmagic=0x1")),
            ("measure fsmagic=1 fsmagic=0", None),
            ("measure fsname=a fsname=b", Some("measure fsname=b")),
            ("measure uid=00005", Some("measure uid=5")),
            ("measure uid=++5", None),
            ("measure uid>4294967294", Some("measure uid>4294967294")),
            ("measure func=PATH_CHECK", Some("measure func=FILE_CHECK")),
            ("measure template=d-ngv2|n-ng", Some("measure template=ima-ngv2")),
            ("measure template=n-ng|d-ng", None),
            ("appraise appraise_algos=sha512,md5,sha512", Some("appraise appraise_algos=md5,sha512")),
            ("appraise appraise_type=imasig appraise_type=imasig", Some("appraise appraise_type=imasig")),
            ("measure permit_directio permit_directio", Some("measure permit_directio")),
            ("measure permit_directio=1", None),
            (
                "measure fsuuid=00000000-0000-0000-0000-000000000000 fsuuid=ABCDEF01-2345-6789-abcd-ef0123456789",
                Some("measure fsuuid=abcdef01-2345-6789-abcd-ef0123456789"),
            ),
        ] {
            let parsed = Policy::parse(rule.as_bytes(), &Options::new(Dialect::Linux6_12)).ok();
            let text = parsed.map(|policy| policy.to_string());
            assert_eq!(text.as_deref().map(str::trim_end), canonical, "{rule}");
        }
    }

    #[test]
    fn only_the_canonical_form_is_a_uuid() {
        let text = "00112233-4455-6677-8899-aabbccddeeffrest";
        let bytes = [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(uuid(text), Some((bytes, "rest")));
        for bad in [
            "00112233-4455-6677-8899-aabbccddeef",
            "001122334455-6677-8899-aabb-ccddeeff",
            "00112233-4455-6677-8899-aabbccddee+f",
            "0011223g-4455-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccdd-eff",
            "00112233-4455-6677-8899-aabbccdéeff",
        ] {
            assert_eq!(uuid(bad), None, "{bad}");
        }
    }
}
