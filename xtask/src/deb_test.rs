//! `make deb-test`: the package in a guest that runs systemd, from its installation to its purge.
//!
//! The guest is a fresh Debian 12 with Debian's own kernel, under qemu without acceleration, so that it runs anywhere.
//! What it checks is `packaging/guest/checks`, and what it says comes over its second serial port. Here it is only made,
//! started, listened to and counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::print::print_line;
use crate::run::{apart, run, run_within};
use crate::scratch::own_mounts;
use crate::{deb, interrupt, root};

/// What the guest's system consists of, besides what every Debian has.
const PACKAGES: &str = "dbus,e2fsprogs,init-system-helpers,kmod,linux-image-cloud-amd64,systemd-sysv,udev";

/// How long the making of the system, and how long the guest may take: far longer than they do, on a busy machine.
const LIMIT: Duration = Duration::from_secs(3600);

/// How long the guest may say nothing: it boots, or waits in vain for one thing.
const SILENCE: Duration = Duration::from_secs(900);

/// On a busy machine the guest's devices may take minutes to appear.
const KERNEL: &str = "root=/dev/vda console=ttyS0 mitigations=off panic=-1 systemd.default_timeout_start_sec=900";

const FSTAB: &str = "/dev/vda / ext4 errors=remount-ro,x-systemd.device-timeout=900 0 1\n\
                     LABEL=guarded /srv ext4 defaults,x-systemd.device-timeout=900 0 2\n";

/// Makes the packages and the guest, and prints what it found.
pub(crate) fn run_deb_test(_: &[String]) -> Result<()> {
    ensure!(geteuid().is_root(), "it makes a Debian system for its guest, which takes root: sudo make deb-test");
    // What mmdebstrap mounts goes with us, however we end. (A /proc that stays in target/ is in the way of whoever copies it.)
    own_mounts()?;
    interrupt::watch()?;
    let begin = Instant::now();
    let version = env!("CARGO_PKG_VERSION");
    let (old, new) = (deb::build(version)?, deb::build(&format!("{version}+next"))?);
    let place = root().join("target/deb-test");
    let base = base(&place)?;
    let checks = fs::read_to_string(source("checks"))?;
    disks(
        &place,
        &base,
        [("old.deb", &old), ("new.deb", &new), ("checks", &source("checks")), ("window", &source("window"))],
    )?;
    print_line!("The guest boots, and checks")?;
    let found = Guest::start(&place, &base)?.listen()?;
    proved(&found, expected(&checks))?;
    print_line!("\nproved: {} checks ({:.0} s)", found.len(), begin.elapsed().as_secs_f64())
}

/// What the guest is given.
fn source(name: &str) -> PathBuf {
    root().join("packaging/guest").join(name)
}

/// The guest's system, made at the first time and kept.
fn base(place: &Path) -> Result<PathBuf> {
    let (base, making, recipe) = (place.join("base"), place.join("making"), place.join("recipe"));
    if base.exists() && fs::read_to_string(&recipe).is_ok_and(|made| made == PACKAGES) {
        return Ok(base);
    }
    for old in [&base, &making] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(place)?;
    print_line!("Debian 12 for the guest is made in {}", base.display())?;
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--mode=root", "--variant=minbase"]).arg(format!("--include={PACKAGES}"));
    run_within(bootstrap.arg("bookworm").arg(&making), LIMIT)?;
    fs::write(&recipe, PACKAGES)?;
    fs::rename(&making, &base)?;
    Ok(base)
}

/// The guest's disks, new at each time: its system, what is guarded, and what it is given.
fn disks(place: &Path, base: &Path, files: [(&str, &PathBuf); 4]) -> Result<()> {
    fs::write(base.join("etc/fstab"), FSTAB)?;
    fs::write(base.join("etc/hostname"), "guest\n")?;
    fs::create_dir_all(base.join("given"))?;
    // Kept on the disk, the journal tells of the boot before.
    fs::create_dir_all(base.join("var/log/journal"))?;
    let units = base.join("etc/systemd/system");
    fs::copy(source("checks.service"), units.join("checks.service"))?;
    let wants = units.join("multi-user.target.wants/checks.service");
    if wants.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("/etc/systemd/system/checks.service", wants)?;
    }
    let given = place.join("given");
    fs::create_dir_all(&given)?;
    for (name, file) in files {
        fs::copy(file, given.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    disk(&place.join("system.img"), 2048, "system", Some(base))?;
    disk(&place.join("guarded.img"), 256, "guarded", None)?;
    disk(&place.join("given.img"), 64, "given", Some(&given))
}

/// An ext4 file system in a sparse file, with a copy of `content`.
fn disk(image: &Path, megabytes: u64, label: &str, content: Option<&Path>) -> Result<()> {
    if image.exists() {
        fs::remove_file(image)?;
    }
    fs::File::create_new(image)?.set_len(megabytes << 20)?;
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-L", label]);
    if let Some(content) = content {
        make.arg("-d").arg(content);
    }
    run(make.arg(image))?;
    Ok(())
}

/// The file in `boot` whose name begins so.
fn boot_file(base: &Path, beginning: &str) -> Result<PathBuf> {
    let files = fs::read_dir(base.join("boot"))?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    files.filter(is_it).max().with_context(|| format!("{}/boot has no {beginning}…", base.display()))
}

/// A guest that runs. It is killed when this is dropped, and with us.
#[derive(Debug)]
struct Guest {
    child: Child,
    said: PathBuf,
    console: PathBuf,
}

impl Guest {
    fn start(place: &Path, base: &Path) -> Result<Self> {
        let (said, console) = (place.join("said"), place.join("console"));
        fs::write(&said, "")?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
        qemu.arg("-kernel").arg(boot_file(base, "vmlinuz-")?).arg("-initrd").arg(boot_file(base, "initrd.img-")?);
        qemu.args(["-append", KERNEL]);
        for port in [&console, &said] {
            qemu.arg("-serial").arg(format!("file:{}", port.display()));
        }
        for (name, read_only) in [("system", "off"), ("guarded", "off"), ("given", "on")] {
            let image = place.join(name).with_extension("img");
            // What the host keeps of it after its end is of no use to anybody, so nothing waits for the host's disk.
            let options = format!("file={},format=raw,if=virtio,cache=unsafe,readonly={read_only}", image.display());
            qemu.arg("-drive").arg(options);
        }
        let errors = fs::File::create(place.join("qemu"))?;
        let child = apart(&mut qemu).stdout(Stdio::null()).stderr(errors).spawn();
        Ok(Self { child: child.context("cannot run qemu-system-x86_64")?, said, console })
    }

    /// Prints what it says, until it has switched itself off, and returns what it has found.
    fn listen(mut self) -> Result<Vec<Found>> {
        let (begin, mut heard, mut printed) = (Instant::now(), Instant::now(), 0);
        loop {
            let ended = self.child.try_wait()?;
            let said = fs::read_to_string(&self.said)?;
            // A line that is not whole yet is read again.
            let lines: Vec<&str> = said.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            for line in lines.iter().skip(printed) {
                if let Some(found) = Found::read(line) {
                    print_line!("{found}")?;
                }
                heard = Instant::now();
            }
            printed = lines.len();
            if let Some(status) = ended {
                ensure!(status.success(), "qemu: {status}{}", self.last_words());
                ensure!(
                    lines.last().is_some_and(|line| line.trim() == "end"),
                    "the guest has gone{}",
                    self.last_words()
                );
                return Ok(lines.iter().filter_map(|line| Found::read(line)).collect());
            }
            interrupt::check()?;
            if heard.elapsed() > SILENCE || begin.elapsed() > LIMIT {
                bail!("the guest says nothing any more{}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn last_words(&self) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
        format!("; the last lines of {}:\n{}", self.console.display(), last.join("\n"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of what the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    good: bool,
    what: String,
    figure: String,
}

impl Found {
    /// `ok|what|figure` or `FAILED|what|why`; absent if it is something else.
    fn read(line: &str) -> Option<Self> {
        let mut parts = line.trim().splitn(3, '|');
        let good = match parts.next()? {
            "ok" => true,
            "FAILED" => false,
            _ => return None,
        };
        Some(Self { good, what: parts.next()?.to_owned(), figure: parts.next()?.to_owned() })
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.good { "ok" } else { "FAILED" };
        write!(f, "  {word:<6}  {:<66}  {}", self.what, self.figure)
    }
}

/// How many checks the script has.
fn expected(script: &str) -> usize {
    script.lines().filter(|line| line.trim_start().starts_with("check '")).count()
}

/// Fails unless each check was made, and none failed.
fn proved(found: &[Found], expected: usize) -> Result<()> {
    let failed: Vec<&str> = found.iter().filter(|found| !found.good).map(|found| &*found.what).collect();
    ensure!(failed.is_empty(), "not proved; failed: {}", failed.join("; "));
    ensure!(
        expected > 0 && found.len() == expected,
        "not proved: {} checks were made, expected {expected}",
        found.len()
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn it_is_proved_only_if_each_check_was_made_and_none_failed() {
        let script = "check() {\ncheck 'one' a\n    check 'two' b c\n";
        assert_eq!(expected(script), 2);
        let found = |words: &[&str]| words.iter().filter_map(|line| Found::read(line)).collect::<Vec<_>>();
        let good = found(&["ok|one|3 ms | more\r\n", "boot noise\n", "ok|two|\n"]);
        assert_eq!(good[0].figure, "3 ms | more");
        proved(&good, 2).unwrap();
        for (words, said) in [
            (&["ok|one|"][..], "not proved: 1 checks were made, expected 2"),
            (&["ok|one|", "FAILED|two|why"], "not proved; failed: two"),
            (&[], "not proved: 0 checks were made, expected 2"),
        ] {
            assert_eq!(proved(&found(words), 2).unwrap_err().to_string(), said);
        }
        assert!(proved(&[], 0).is_err());
    }
}
