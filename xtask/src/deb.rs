//! `make deb`: a Debian package of the release binaries, by `dpkg-deb` alone.
//!
//! Everything that is installed is on one list, [`FILES`] and what [`Tree::fill`] adds to it; what comes out is compared
//! with what was meant by [`contents`]. The same commit gives the same bytes: times are those of the commit.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::print::print_line;
use crate::root;
use crate::run::run;

mod contents;

/// What is copied as it is: source below the top directory, place in the package, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("packaging/imara.service", "lib/systemd/system/imara.service", 0o644),
    ("packaging/imara.tmpfiles", "usr/lib/tmpfiles.d/imara.conf", 0o644),
    ("packaging/imara.toml", "etc/imara/imara.toml", 0o644),
    ("README.md", "usr/share/doc/imara/README.md", 0o644),
    ("SECURITY.md", "usr/share/doc/imara/SECURITY.md", 0o644),
    ("docs/operation.md", "usr/share/doc/imara/docs/operation.md", 0o644),
    ("docs/failures.md", "usr/share/doc/imara/docs/failures.md", 0o644),
    ("docs/control.md", "usr/share/doc/imara/docs/control.md", 0o644),
    ("docs/coverage.md", "usr/share/doc/imara/docs/coverage.md", 0o644),
    ("docs/kernel-differences.md", "usr/share/doc/imara/docs/kernel-differences.md", 0o644),
    ("packaging/deb/postinst", "DEBIAN/postinst", 0o755),
    ("packaging/deb/prerm", "DEBIAN/prerm", 0o755),
    ("packaging/deb/postrm", "DEBIAN/postrm", 0o755),
];

/// What dpkg asks about before it replaces it.
const CONFIGURATION: &str = "/etc/imara/imara.toml\n";

/// The programs and where they go.
const PROGRAMS: [(&str, &str); 2] = [("imara", "usr/bin/imara"), ("imarad", "usr/sbin/imarad")];

/// Completion scripts: the shell, and where it looks.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/imara"),
    ("zsh", "usr/share/zsh/vendor-completions/_imara"),
    ("fish", "usr/share/fish/vendor_completions.d/imara.fish"),
];

/// Makes the package. An argument is its version; else it is the workspace's.
pub(crate) fn run_deb(arguments: &[String]) -> Result<()> {
    let version = arguments.first().map_or(env!("CARGO_PKG_VERSION"), String::as_str);
    let package = build(version)?;
    print_line!("{}", package.display())
}

/// Makes the package with this version and checks it; returns its path, below `target/deb`.
pub(crate) fn build(version: &str) -> Result<PathBuf> {
    let architecture = run(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
    let name = format!("imara_{version}_{architecture}");
    let tree = Tree::new(root().join("target/deb").join(&name))?;
    tree.fill()?;
    tree.control(version, &architecture)?;
    let package = root().join("target/deb").join(format!("{name}.deb"));
    let build = ["--root-owner-group", "-Zxz", "--build"];
    run(dated(Command::new("dpkg-deb").args(build).arg(&tree.0).arg(&package))?)?;
    contents::check(&package, &tree.0)?;
    Ok(package)
}

/// The time of the commit, for whoever would write the present one.
fn dated(command: &mut Command) -> Result<&mut Command> {
    Ok(command.env("SOURCE_DATE_EPOCH", commit("%ct")?))
}

/// Something about the commit that is packed. A source without its history has the time of the changelog.
fn commit(format: &str) -> Result<String> {
    let said = run(Command::new("git").current_dir(root()).args(["log", "-1", &format!("--format={format}")]));
    if let Ok(said) = said {
        return Ok(said.trim().to_owned());
    }
    let style = if format == "%ct" { "+%s" } else { "+%a, %d %b %Y %H:%M:%S %z" };
    Ok(run(Command::new("date").args(["-u", "-r"]).arg(root().join("CHANGELOG.md")).arg(style))?.trim().to_owned())
}

/// The directory that becomes the package.
struct Tree(PathBuf);

impl Tree {
    fn new(directory: PathBuf) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    /// The place of `path`, in directories with the mode that packages have, whatever our umask.
    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.0.join(path);
        let mut parent = self.0.clone();
        for part in Path::new(path).parent().into_iter().flatten() {
            parent.push(part);
            if !parent.exists() {
                fs::create_dir(&parent)?;
                fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(place)
    }

    fn write(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let place = self.place(path)?;
        fs::write(&place, content).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(fs::set_permissions(&place, fs::Permissions::from_mode(mode))?)
    }

    /// Everything but what tells dpkg about it.
    fn fill(&self) -> Result<()> {
        for (from, to, mode) in FILES {
            let content = fs::read(root().join(from)).with_context(|| format!("cannot read {from}"))?;
            self.write(to, *mode, &content)?;
        }
        for (program, to) in PROGRAMS {
            let from = binary(program);
            ensure!(from.exists(), "{} is not built (run: make build)", from.display());
            let place = self.place(to)?;
            run(Command::new("strip")
                .args(["--strip-unneeded", "--remove-section=.comment", "-o"])
                .arg(&place)
                .arg(&from))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        }
        for (shell, to) in COMPLETIONS {
            let script = run(Command::new(binary("imara")).args(["completions", shell]))?;
            self.write(to, 0o644, script.as_bytes())?;
        }
        self.manual()?;
        let license = fs::read_to_string(root().join("LICENSE-MIT"))?;
        let copyright = template("copyright", &[("@MIT@", &indented(&license))])?;
        self.write("usr/share/doc/imara/copyright", 0o644, copyright.as_bytes())
    }

    /// The manual's pages: the command's are made by itself.
    fn manual(&self) -> Result<()> {
        let pages = self.place("usr/share/man/man1/imara.1")?;
        let section = pages.parent().context("a page is in a section")?;
        run(Command::new(binary("imara")).arg("manual").arg(section))?;
        for page in fs::read_dir(section)? {
            compress(&page?.path())?;
        }
        for (page, section) in [("imara.toml.5", "man5"), ("imarad.8", "man8")] {
            let to = format!("usr/share/man/{section}/{page}");
            self.write(&to, 0o644, &fs::read(root().join("packaging").join(page))?)?;
            compress(&self.0.join(to))?;
        }
        Ok(())
    }

    /// What tells dpkg about the rest.
    fn control(&self, version: &str, architecture: &str) -> Result<()> {
        let changes = format!(
            "imara ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md of the source tells what changed.\n\n -- The Imara \
             authors <maintainers@users.noreply.github.com>  {}\n",
            commit("%cD")?
        );
        self.write("usr/share/doc/imara/changelog", 0o644, changes.as_bytes())?;
        compress(&self.0.join("usr/share/doc/imara/changelog"))?;
        let files = contents::files(&self.0)?;
        let mut size = 0;
        let mut sums = Command::new("md5sum");
        sums.current_dir(&self.0).arg("--");
        for file in files.iter().filter(|file| !file.starts_with("DEBIAN") && !file.starts_with("etc")) {
            size += self.0.join(file).metadata()?.len().div_ceil(1024);
            sums.arg(file);
        }
        self.write("DEBIAN/md5sums", 0o644, run(&mut sums)?.as_bytes())?;
        self.write("DEBIAN/conffiles", 0o644, CONFIGURATION.as_bytes())?;
        let values = [
            ("@VERSION@", version),
            ("@ARCHITECTURE@", architecture),
            ("@INSTALLED_SIZE@", &size.to_string()),
            ("@DEPENDS@", &depends()?),
        ];
        self.write("DEBIAN/control", 0o644, template("control", &values)?.as_bytes())
    }
}

fn binary(program: &str) -> PathBuf {
    root().join("target/release").join(program)
}

/// A file of `packaging/deb` with its blanks filled in.
fn template(name: &str, values: &[(&str, &str)]) -> Result<String> {
    let path = root().join("packaging/deb").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for (blank, _) in values {
        ensure!(text.contains(blank), "{} has no {blank}", path.display());
    }
    Ok(values.iter().fold(text, |text, (blank, value)| text.replace(blank, value)))
}

/// As a field of a control file has its further lines.
fn indented(text: &str) -> String {
    let line = |line: &str| if line.is_empty() { " .".to_owned() } else { format!(" {line}") };
    text.trim().lines().map(line).collect::<Vec<_>>().join("\n")
}

fn compress(path: &Path) -> Result<()> {
    run(Command::new("gzip").args(["-9", "-n"]).arg(path))?;
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    Ok(fs::set_permissions(packed, fs::Permissions::from_mode(0o644))?)
}

/// The libraries that the programs need, in the versions that they ask for.
fn depends() -> Result<String> {
    let mut newest = Version::default();
    for (program, _) in PROGRAMS {
        newest = newest.max(glibc(&run(Command::new("objdump").arg("-T").arg(binary(program)))?)?);
    }
    Ok(format!("libc6 (>= {}.{}), libgcc-s1 (>= 3.0)", newest.0, newest.1))
}

/// Of the C library: 2 and 34, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// The newest version of the C library that a table of dynamic symbols asks for.
fn glibc(symbols: &str) -> Result<Version> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Version(numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max().context("no symbol of the C library, expected some as GLIBC_2.34")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_asked_for_is_found() {
        let table =
            "0000 DF *UND* 0000 (GLIBC_2.9)  poll\n0000 DF *UND* 0000 (GLIBC_2.34) stat\n0000 w (GLIBC_2.2.5) __x\n";
        assert_eq!(glibc(table).unwrap(), Version(2, 34));
        assert!(glibc("0000 g DF .text main").is_err());
    }

    #[test]
    fn further_lines_of_a_field_are_indented_and_none_is_empty() {
        assert_eq!(indented("MIT\n\nas is\n"), " MIT\n .\n as is");
    }
}
