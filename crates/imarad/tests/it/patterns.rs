//! The ways in which editors, package managers and others change files; the table of them is in [`crate::writes`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_linux::testing::install;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags};

use crate::files::{self, Mapping, open_to_change};

pub(crate) fn written(path: &Path, change: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<Vec<PathBuf>> {
    change(path)?;
    Ok(vec![path.to_owned()])
}

pub(crate) fn new_file_created_for_reading(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("lock");
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::EXCL;
    let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))?;
    // Somebody else writes a number into it while it is held.
    fs::write(&path, b"4711\n")?;
    drop(lock);
    Ok(vec![path])
}

pub(crate) fn new_file_by_mknod(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("node");
    rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
    fs::write(&path, b"written later")?;
    Ok(vec![path])
}

pub(crate) fn read_while_mapped(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("old");
    let mut mapping = Mapping::new(&open_to_change(&path)?)?;
    for _ in 0..5 {
        mapping.change_last_byte();
        files::read(&path)?;
    }
    drop(mapping);
    files::read(&path)?;
    Ok(vec![path])
}

pub(crate) fn truncated_by_path(path: &Path, length: u64) -> io::Result<()> {
    files::read(path)?;
    // truncate(2) opens nothing and closes nothing; there is a wrapper of it in neither std nor rustix.
    let script = format!("truncate({:?}, {length}) or die $!", path.to_str().unwrap());
    tool("perl", &["-e", &script], &[])
}

pub(crate) fn copied_by_range(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("old");
    let from = File::open(d.join("large"))?;
    let to = open_to_change(&path)?;
    let (mut at, mut into) = (1000, 5);
    let moved = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 100_000)?;
    assert!(moved > 0);
    Ok(vec![path, d.join("large")])
}

pub(crate) fn copied(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, open_to_change(to)?);
    let moved = rustix::fs::sendfile(&to, &from, None, 100_000)?;
    assert!(moved > 0);
    Ok(())
}

pub(crate) fn allocated(path: &Path, how: FallocateFlags) -> io::Result<()> {
    rustix::fs::fallocate(open_to_change(path)?, how, 4096, 65_536)?;
    Ok(())
}

/// Writes beside the file, makes that durable, renames it over.
pub(crate) fn replaced_by_rename(path: &Path) -> io::Result<Vec<PathBuf>> {
    for round in 0..5 {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(format!("edited {round}").as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        files::read(path)?;
    }
    Ok(vec![path.to_owned()])
}

pub(crate) fn edited_with_backup(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, backup) = (d.join("old"), d.join("old~"));
    fs::rename(&path, &backup)?;
    fs::write(&path, b"edited")?;
    Ok(vec![path, backup])
}

pub(crate) fn edited_with_link_backup(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, backup) = (d.join("old"), d.join("old~"));
    fs::hard_link(&path, &backup)?;
    fs::remove_file(&path)?;
    fs::copy(&backup, &path)?;
    files::append(&path, b"edited")?;
    Ok(vec![path, backup])
}

pub(crate) fn unpacked_as_dpkg_does(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, new, backup) = (d.join("program"), d.join("program.dpkg-new"), d.join("program.dpkg-tmp"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o000).open(&new)?;
    file.write_all(&[&files::program()[..], b"a newer version"].concat())?;
    rustix::fs::fchown(&file, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    fs::hard_link(&path, &backup)?;
    fs::rename(&new, &path)?;
    files::execute(&path)?;
    fs::remove_file(&backup)?;
    Ok(vec![path])
}

pub(crate) fn extracted_as_tar_does(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("extracted");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(b"extracted")?;
    file.set_modified(std::time::UNIX_EPOCH)?;
    drop(file);
    chown(&path, Some(0), Some(0))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(vec![path])
}

pub(crate) fn extracted_by_tar(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (archive, to) = (d.join("archive.tar"), d.join("to"));
    archived(d, &archive)?;
    fs::create_dir(&to)?;
    tool("tar", &["-C", to.to_str().unwrap(), "-xf"], &[&archive])?;
    files::execute(&to.join("script"))?;
    Ok(vec![archive, to.join("old"), to.join("large"), to.join("script")])
}

pub(crate) fn archived(d: &Path, archive: &Path) -> io::Result<()> {
    tool("tar", &["-C", d.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "old", "large", "script"], &[])
}

pub(crate) fn overwritten_by_tar(d: &Path) -> io::Result<Vec<PathBuf>> {
    let archive = d.join("archive.tar");
    archived(d, &archive)?;
    files::append(&d.join("old"), b"to be undone")?;
    // They have been read once, for the archive: of what is read again and again see `fast.rs`.
    let changed = [d.join("old"), d.join("large"), d.join("script")];
    tool("tar", &["-C", d.to_str().unwrap(), "--overwrite", "-xf"], &[&archive])?;
    Ok(changed.to_vec())
}

pub(crate) fn written_without_waiting(path: &Path) -> io::Result<()> {
    files::read(path)?;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    OpenOptions::new().append(true).custom_flags(flags).open(path)?.write_all(b"at once")
}

pub(crate) fn moved(from: &Path, to: &Path) -> io::Result<Vec<PathBuf>> {
    tool("mv", &["-f"], &[from, to])?;
    Ok(vec![to.to_owned()])
}

pub(crate) fn locked_as_git_does(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, lock, object) = (d.join("index"), d.join("index.lock"), d.join("objects-4711"));
    for round in 0..5 {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&lock)?;
        file.write_all(format!("index {round}").as_bytes())?;
        drop(file);
        fs::rename(&lock, &path)?;
        files::read(&path)?;
    }
    let temporary = d.join("tmp_obj");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&temporary)?;
    file.write_all(b"object")?;
    drop(file);
    fs::hard_link(&temporary, &object)?;
    fs::remove_file(&temporary)?;
    Ok(vec![path, object])
}

pub(crate) fn unnamed(d: &Path) -> io::Result<File> {
    let fd = rustix::fs::open(d, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o644))?;
    Ok(File::from(fd))
}

pub(crate) fn linked_later(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("named");
    let mut file = unnamed(d)?;
    file.write_all(b"first without a name")?;
    rustix::fs::linkat(file.as_fd(), "", CWD, &path, AtFlags::EMPTY_PATH)?;
    files::read(&path)?;
    file.write_all(b", then with one")?;
    drop(file);
    Ok(vec![path])
}

pub(crate) fn linked_after_close(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("named");
    let mut file = unnamed(d)?;
    file.write_all(b"written without a name")?;
    let reader = File::open(through(&file))?;
    drop(file);
    // By the time this is answered, the guard has heard of the close.
    files::read(&d.join("script"))?;
    rustix::fs::linkat(reader.as_fd(), "", CWD, &path, AtFlags::EMPTY_PATH)?;
    Ok(vec![path])
}

/// The path by which a descriptor's file can be opened once more.
pub(crate) fn through(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

pub(crate) fn two_names(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, other) = (d.join("old"), d.join("other-name"));
    fs::hard_link(&path, &other)?;
    files::append(&path, b"one")?;
    files::append(&other, b"two")?;
    fs::remove_file(&path)?;
    files::append(&other, b"three")?;
    Ok(vec![other])
}

pub(crate) fn journalled(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (database, journal) = (d.join("db"), d.join("db-journal"));
    fs::write(&database, vec![0; 8192])?;
    let connections = [open_to_change(&database)?, open_to_change(&database)?, File::open(&database)?];
    for round in 0..20_u8 {
        let mut log = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&journal)?;
        log.write_all(&[round; 512])?;
        log.sync_data()?;
        let mut writer = &connections[usize::from(round % 2)];
        writer.seek(SeekFrom::Start(u64::from(round) * 100))?;
        writer.write_all(&[round; 100])?;
        writer.sync_data()?;
        drop(log);
        if round % 3 == 0 {
            fs::remove_file(&journal)?;
        } else {
            OpenOptions::new().write(true).truncate(true).open(&journal)?;
        }
        files::read(&database)?;
    }
    drop(connections);
    Ok(vec![database, journal])
}

pub(crate) fn two_writers(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("old");
    let mut stays = open_to_change(&path)?;
    files::append(&path, b"by one who goes")?;
    files::read(&path)?;
    stays.write_all(b"by one who stays")?;
    files::read(&path)?;
    drop(stays);
    Ok(vec![path])
}

pub(crate) fn read_while_written(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("large");
    let mut writer = open_to_change(&path)?;
    let mut reader = File::open(&path)?;
    for _ in 0..10 {
        writer.write_all(&[9; 1000])?;
        files::read(&path)?;
        reader.read_exact(&mut [0; 1000])?;
    }
    drop(writer);
    files::read(&path)?;
    Ok(vec![path])
}

pub(crate) fn logged(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("log");
    let mut log = OpenOptions::new().append(true).create(true).open(&path)?;
    for line in 0..50 {
        log.write_all(format!("line {line}\n").as_bytes())?;
        assert!(files::read(&path)?.ends_with(format!("line {line}\n").as_bytes()));
    }
    fs::rename(&path, d.join("log.1"))?;
    let mut next = OpenOptions::new().append(true).create(true).open(&path)?;
    next.write_all(b"line after the rotation\n")?;
    log.write_all(b"a late line\n")?;
    drop(log);
    files::read(&d.join("log.1"))?;
    drop(next);
    Ok(vec![path, d.join("log.1")])
}

pub(crate) fn rewritten_script(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("script");
    for round in 0..20 {
        fs::write(&path, format!("#!/bin/sh\n# {round}\nexit 0\n"))?;
        files::execute(&path)?;
    }
    Ok(vec![path])
}

pub(crate) fn made_program(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("a.out");
    for round in 0..10_u8 {
        drop(fs::remove_file(&path));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o755).open(&path)?;
        file.write_all(&[&files::program()[..], &[round; 70_000]].concat())?;
        drop(file);
        files::execute(&path)?;
    }
    Ok(vec![path])
}

pub(crate) fn replaced_while_running(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (sleeper, new) = (d.join("sleeper"), d.join("sleeper.new"));
    install(Path::new("/bin/sleep"), &sleeper)?;
    let mut runs = Command::new(&sleeper).arg("60").spawn()?;
    install(Path::new("/bin/true"), &new)?;
    fs::rename(&new, &sleeper)?;
    let executed = files::execute(&sleeper);
    runs.kill()?;
    runs.wait()?;
    executed?;
    Ok(vec![sleeper])
}

pub(crate) fn deleted_and_made_again(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("old");
    for round in 0..20_u8 {
        let mut file = open_to_change(&path)?;
        fs::remove_file(&path)?;
        file.write_all(b"to nobody")?;
        fs::write(&path, [round; 10])?;
        files::read(&path)?;
    }
    Ok(vec![path])
}

pub(crate) fn read_after_deletion(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("here-document");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(b"text")?;
    let reader = File::open(through(&file))?;
    drop(file);
    // As programs do who copy themselves into an unnamed file to execute that.
    let mut again = File::open(through(&reader))?;
    let mut text = Vec::new();
    again.read_to_end(&mut text)?;
    assert_eq!(text, b"text");
    Ok(vec![])
}

/// As container runtimes do with themselves.
pub(crate) fn executed_without_a_name(d: &Path) -> io::Result<Vec<PathBuf>> {
    let mut file = unnamed(d)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.write_all(&files::program())?;
    let reader = File::open(through(&file))?;
    drop(file);
    files::read(&d.join("script"))?;
    // The child opens it through our descriptor: its own is closed by then.
    files::execute(&PathBuf::from(
        through(&reader).to_str().unwrap().replace("self", &std::process::id().to_string()),
    ))?;
    Ok(vec![])
}

pub(crate) fn renamed_while_open(d: &Path) -> io::Result<Vec<PathBuf>> {
    let (path, other) = (d.join("old"), d.join("elsewhere"));
    let mut file = open_to_change(&path)?;
    fs::rename(&path, &other)?;
    file.write_all(b"changed")?;
    drop(file);
    Ok(vec![other])
}

pub(crate) fn given_away_and_back(d: &Path) -> io::Result<Vec<PathBuf>> {
    let path = d.join("given");
    let mut file = File::create(&path)?;
    chown(&path, Some(1000), Some(1000))?;
    file.write_all(b"while it belongs to somebody else")?;
    drop(file);
    files::read(&path)?;
    chown(&path, Some(0), Some(0))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(vec![path])
}

pub(crate) fn written_through_bind_mount(d: &Path) -> io::Result<Vec<PathBuf>> {
    let other = d.join("bound");
    fs::create_dir(&other)?;
    let inner = d.join("inner");
    fs::create_dir(&inner)?;
    fs::rename(d.join("old"), inner.join("old"))?;
    tool("mount", &["--bind"], &[&inner, &other])?;
    let result = files::append(&other.join("old"), b"through the other mount")
        .and_then(|()| fs::write(other.join("new"), b"new"))
        .and_then(|()| files::read(&inner.join("new")));
    tool("umount", &["-l"], &[&other])?;
    result?;
    Ok(vec![inner.join("old"), inner.join("new")])
}

/// Runs a program of the host.
pub(crate) fn tool(name: &str, options: &[&str], paths: &[&Path]) -> io::Result<()> {
    let output = Command::new(name).args(options).args(paths).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
