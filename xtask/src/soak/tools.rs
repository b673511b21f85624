//! The tools that work in the guarded file system.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use imara_linux::child::killed_with_us;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::root;

/// A tool: its name, the program that has to be there, and what a shell does with it again and again, in a directory of
/// the guarded file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    name: &'static str,
    needs: &'static str,
    script: &'static str,
}

/// All of them. `$SOURCES` is this repository.
pub(super) const ALL: [Tool; 6] = [
    Tool {
        name: "cargo",
        needs: "cargo",
        script: r#"rm -rf target; mkdir -p sources; git -C "$SOURCES" ls-files -z Cargo.toml Cargo.lock clippy.toml crates xtask |
            (cd "$SOURCES" && xargs -0 tar -cf -) | tar -C sources -xf -
            cd sources && CARGO_TARGET_DIR=../target cargo build --quiet --offline --jobs 2 --package imara-integrity"#,
    },
    Tool {
        name: "git",
        needs: "git",
        script: r#"rm -rf one two; git init -q one; cd one; git config user.name soak; git config user.email soak@localhost
            for round in 1 2 3 4 5; do
                for file in 1 2 3 4 5 6 7 8 9; do echo "$round $file" > "file-$file"; done
                git add .; git commit -q -m "$round"; git tag "round-$round"
            done
            cd ..; git clone -q --no-hardlinks one two; cd two
            for round in 1 3 2 5 4; do git checkout -q "round-$round"; test "$(cat file-7)" = "$round 7"; done
            git fsck --strict >/dev/null 2>&1; git gc -q; git status --porcelain | (! grep .)"#,
    },
    Tool {
        name: "sqlite",
        needs: "python3",
        script: r#"python3 -c '
import sqlite3
for mode in ("delete", "wal", "truncate"):
    base = sqlite3.connect("base-" + mode)
    base.execute("pragma journal_mode=" + mode)
    base.execute("create table if not exists t (a, b)")
    for number in range(40):
        with base:
            base.execute("insert into t values (?, ?)", (number, "x" * number * 50))
        if number % 10 == 0:
            base.close(); base = sqlite3.connect("base-" + mode)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    with base:
        base.execute("delete from t")
    base.close()
'"#,
    },
    Tool {
        name: "dpkg",
        needs: "dpkg-deb",
        script: r#"rm -rf tree out; mkdir -p tree/DEBIAN tree/usr/share/soak out
            printf 'Package: soak\nVersion: 1\nArchitecture: all\nMaintainer: soak <soak@localhost>\nDescription: soak\n' > tree/DEBIAN/control
            cp /bin/true tree/usr/share/soak/program; for file in 1 2 3 4 5 6 7 8 9; do seq "$file" 2000 > "tree/usr/share/soak/$file"; done
            dpkg-deb --build tree soak.deb >/dev/null; dpkg -x soak.deb out; out/usr/share/soak/program
            for deb in /var/cache/apt/archives/*.deb; do test ! -e "$deb" || dpkg -x "$deb" out; done
            diff -r tree/usr out/usr"#,
    },
    Tool {
        name: "apt",
        needs: "apt-get",
        // Without a network it fails everywhere, which is not the guard's fault; twice a minute is enough for the mirrors.
        // 77: there was nothing to do.
        script: r#"fetch() {
                mkdir -p "$1/archives/partial"
                apt-get -qq -y -o Dir::Cache="$1" -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
                    --download-only --reinstall install sed hello
            }
            rm -rf cache out beside; beside=$(mktemp -d); trap 'rm -rf "$beside"' EXIT
            if ! fetch "$PWD/cache"; then ! fetch "$beside" || exit 1; sleep 30; exit 77; fi
            for deb in cache/archives/*.deb; do dpkg --contents "$deb" >/dev/null; dpkg -x "$deb" out; done
            test "$(echo guarded | out/bin/sed s/guarded/unpacked/)" = unpacked; out/usr/bin/hello >/dev/null; sleep 20"#,
    },
    Tool {
        name: "log rotation",
        needs: "gzip",
        script: r#"for round in 1 2 3 4 5 6; do
                for line in 1 2 3 4 5 6 7 8 9; do echo "$round $line" >> log; tail -n 1 log >/dev/null; done
                rm -f log.2.gz; test ! -e log.1 || { gzip -c log.1 > log.2.gz; zcat log.2.gz >/dev/null; }
                mv log log.1; : > log
            done
            cp log.1 copied; : > copied; echo again >> copied; cat copied >/dev/null"#,
    },
];

/// What the shell ends with if the host lacks something that the tool needs: a network, say.
const LACKING: i32 = 77;

/// What came of a tool's work.
pub(super) struct Work {
    pub(super) said: String,
    /// Whether it never came to its end, though nothing was lacking for that.
    pub(super) idle: bool,
}

/// Has a tool work until it is over; says how often it came to its end. An error if it failed.
pub(super) fn work(tool: Tool, mount: &Path, over: &AtomicBool) -> Result<Work> {
    let Tool { name, needs, script } = tool;
    let there = Command::new("sh").args(["-c", "command -v \"$0\"", needs]).stdout(Stdio::null()).status()?;
    if !there.success() {
        return Ok(Work { said: format!("{name}: skipped: needs {needs}"), idle: false });
    }
    let directory = mount.join(name);
    fs::create_dir(&directory)?;
    let (mut rounds, mut lacking, script) = (0_u32, 0_u32, format!("set -eu\n{script}"));
    while !over.load(Ordering::Relaxed) {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(&directory).env("SOURCES", root()).stdin(Stdio::null());
        let output = directory.with_extension("out");
        let said = mount.parent().unwrap_or(mount).join(output.file_name().unwrap_or_default());
        let file = fs::File::create(&said).with_context(|| format!("cannot make {}", said.display()))?;
        shell.stdout(file.try_clone()?).stderr(file);
        let child = killed_with_us(shell.process_group(0)).spawn().context("cannot run sh")?;
        match wait(child, over)? {
            Some(ended) if ended.success() => rounds += 1,
            Some(ended) if ended.code() == Some(LACKING) => lacking += 1,
            Some(failed) => bail!("{name}: {failed}: {}", fs::read_to_string(&said).unwrap_or_default()),
            None => {}
        }
        fs::remove_file(&said)?;
    }
    let without =
        if lacking > 0 { format!("; {lacking} for which something was lacking, a network say") } else { String::new() };
    Ok(Work { said: format!("{name}: {rounds} rounds to their end{without}"), idle: rounds + lacking == 0 })
}

/// Waits for a shell, and kills it with all it has begun when it is over; how it ended if it did so by itself.
fn wait(mut child: Child, over: &AtomicBool) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if over.load(Ordering::Relaxed) {
            // It may have ended by itself just now.
            let _ = killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
