//! What to do, as told on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::place::Kind;
use super::ways::Way;

/// What is played on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// Only reads and executions are judged: whoever opens a file for writing passes, and labels do not follow him.
    Reads,
    /// All of root's files are judged; tamperers give them away, change them and take them back.
    Owners,
    /// All of root's files are judged, and labels follow those who change them.
    Follow,
}

impl Scene {
    pub(super) const ALL: [Self; 3] = [Self::Reads, Self::Owners, Self::Follow];

    /// Its name on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Owners => "owners",
            Self::Follow => "follow",
        }
    }

    /// What the guard is to judge.
    pub(super) const fn policy(self) -> &'static str {
        match self {
            Self::Reads => "appraise func=FILE_CHECK mask=MAY_READ fowner=0\nappraise func=BPRM_CHECK fowner=0\n",
            Self::Owners | Self::Follow => "appraise fowner=0\n",
        }
    }
}

/// When a scene is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    For(Duration),
    Opens(u64),
}

/// All that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Of all scenes on one file system together.
    pub(super) length: Length,
    pub(super) kinds: Vec<Kind>,
    pub(super) scenes: Vec<Scene>,
    /// How files are changed, as far as their file system can.
    pub(super) ways: Vec<Way>,
    pub(super) imarad: Option<PathBuf>,
    pub(super) seed: u64,
    /// Files that are opened again and again.
    pub(super) hot: usize,
    /// Files that are opened now and then.
    pub(super) cold: usize,
    pub(super) readers: usize,
    pub(super) writers: usize,
    /// Threads that try to execute files that are no programs.
    pub(super) probers: usize,
    /// Processes that execute programs.
    pub(super) runners: usize,
    /// How long nothing is expected of the guard after a change of owner, which it hears of a little later.
    pub(super) grace: Duration,
    /// Whether all is over as soon as something has gone wrong. (Not on the command line.)
    pub(super) until_wrong: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length: Length::For(Duration::from_secs(15)),
            kinds: Kind::ALL.to_vec(),
            scenes: Scene::ALL.to_vec(),
            ways: Way::ALL.to_vec(),
            imarad: None,
            seed: 1,
            hot: 12,
            cold: 400,
            readers: 3,
            writers: 3,
            probers: 1,
            runners: 1,
            grace: Duration::from_secs(30),
            until_wrong: false,
        }
    }
}

impl Options {
    /// Each option is followed by its value.
    pub(super) fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let (pairs, rest) = arguments.as_chunks::<2>();
        for [option, value] in pairs {
            options.set(option, value).with_context(|| format!("{option} {value}"))?;
        }
        if let [odd] = rest {
            bail!("{odd}: no such option, or it has no value; {HELP}");
        }
        ensure!(options.hot > 0 && options.readers > 0 && options.writers > 0, "nobody reads or writes; {HELP}");
        Ok(options)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--seconds" => self.length = Length::For(Duration::from_secs(value.parse()?)),
            "--opens" => self.length = Length::Opens(value.parse()?),
            "--fs" => self.kinds = chosen(value, &Kind::ALL, Kind::name)?,
            "--scene" => self.scenes = chosen(value, &Scene::ALL, Scene::name)?,
            "--ways" => self.ways = chosen(value, &Way::ALL, Way::name)?,
            "--imarad" => self.imarad = Some(value.into()),
            "--seed" => self.seed = value.parse()?,
            "--hot" => self.hot = value.parse()?,
            "--cold" => self.cold = value.parse()?,
            "--readers" => self.readers = value.parse()?,
            "--writers" => self.writers = value.parse()?,
            "--probers" => self.probers = value.parse()?,
            "--runners" => self.runners = value.parse()?,
            "--grace" => self.grace = Duration::from_millis(value.parse()?),
            _ => bail!("no such option; {HELP}"),
        }
        Ok(())
    }

    /// The part of one scene in the whole.
    pub(super) fn part(&self) -> Length {
        let scenes = self.scenes.len().max(1);
        match self.length {
            Length::For(time) => Length::For(time / u32::try_from(scenes).unwrap_or(1)),
            Length::Opens(opens) => Length::Opens(opens / u64::try_from(scenes).unwrap_or(1)),
        }
    }
}

const HELP: &str = "options: --seconds N or --opens N (for each file system, all scenes together), --fs \
                    ext4,xfs,btrfs,tmpfs, --scene reads,owners,follow, --ways mmap,write,…, --imarad PATH, --seed N, --hot FILES, --cold FILES, \
                    --readers N, --writers N, --probers N, --runners N, --grace MILLISECONDS";

fn chosen<T: Copy>(list: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>> {
    let one = |word: &str| {
        let known = || all.iter().map(|item| name(*item)).collect::<Vec<_>>().join(", ");
        let found = all.iter().copied().find(|item| name(*item) == word);
        found.with_context(|| format!("\"{word}\" is none of {}", known()))
    };
    list.split(',').map(one).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_not_said_is_as_usual() {
        assert_eq!(parse("").unwrap(), Options::default());
        let some = parse("--fs xfs,tmpfs --opens 9 --scene owners --cold 7").unwrap();
        let expected = Options {
            kinds: vec![Kind::Xfs, Kind::Tmpfs],
            length: Length::Opens(9),
            scenes: vec![Scene::Owners],
            cold: 7,
            ..Options::default()
        };
        assert_eq!(some, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("--fs ext5", "\"ext5\" is none of ext4, xfs, btrfs, tmpfs"),
            ("--seconds", "--seconds: no such option, or it has no value"),
            ("--second 1", "--second 1: no such option"),
            ("--seconds x", "--seconds x: invalid digit"),
            ("--writers 0", "nobody reads or writes"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
