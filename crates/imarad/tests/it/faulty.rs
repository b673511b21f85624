//! A disk that is slow, broken, or silent, as it is told.
//!
//! It is a file that a process of its own serves (FUSE), and a loop device on top of that: `losetup` with direct I/O, so
//! that each block is asked for each time. The process is this program once more, which [`serve_a_faulty_disk`] becomes;
//! when it dies, the kernel answers whatever it has not answered with an error. Nothing that uses such a disk can hang for
//! longer than that.
//!
//! Source: Linux `include/uapi/linux/fuse.h`; `fuse(4)`.
#![allow(clippy::host_endian_bytes, reason = "the kernel speaks to the process in the host's byte order")]

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use imara_linux::mounts::mounts;
use imara_linux::testing::FsKind;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::daemon::{RunDir, eventually};

/// Names the directory in which a process is to serve a disk, and makes it do so.
const SERVE: &str = "IMARA_FAULTY_DISK";

/// What is wrong with a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Each read takes so many milliseconds.
    Slow(u64),
    /// Reads fail: `EIO`.
    Unreadable,
    /// Writes fail: `EIO`.
    Unwritable,
    /// No answer comes.
    Silent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(milliseconds) => write!(f, "slow {milliseconds}"),
            Self::Unreadable => f.write_str("unreadable 0"),
            Self::Unwritable => f.write_str("unwritable 0"),
            Self::Silent => f.write_str("silent 0"),
        }
    }
}

impl Fault {
    fn parse(word: &str, number: u64) -> Self {
        match word {
            "slow" => Self::Slow(number),
            "unreadable" => Self::Unreadable,
            "unwritable" => Self::Unwritable,
            "silent" => Self::Silent,
            _ => panic!("no fault {word:?}"),
        }
    }
}

/// What has a fault here, keeps those waiting who close the file that stands for the disk.
pub(crate) const CLOSING: Range<u64> = u64::MAX - 1..u64::MAX;

/// A file system on such a disk, mounted; gone when dropped.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    kind: FsKind,
    point: PathBuf,
    device: String,
    server: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    // Removed last.
    directory: RunDir,
}

impl FaultyDisk {
    /// A disk of `size` bytes, without any fault as yet; it takes no room for what is not written.
    pub(crate) fn new(kind: FsKind, size: u64) -> Self {
        Self::with(kind, size, &[], |_| {})
    }

    /// The same, with options for `mkfs`, and with something done to the disk before it is mounted.
    pub(crate) fn with(kind: FsKind, size: u64, options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let directory = RunDir::new();
        let (point, image) = (directory.path().join("mount"), directory.path().join("image"));
        fs::create_dir(&point).unwrap();
        File::create(&image).unwrap().set_len(size.max(kind.minimum())).unwrap();
        let mut mkfs = Command::new(format!("mkfs.{}", kind.name()));
        let quietly: &[&str] = if kind == FsKind::Ext4 { &["-q", "-F", "-b", "4096"] } else { &["-q", "-f"] };
        run(mkfs.args(quietly).args(options).arg(&image));
        prepare(&image);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "faulty::serve_a_faulty_disk", "--nocapture", "--test-threads=1"]);
        command.env(SERVE, directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        let (orders, answers) = (server.stdin.take().unwrap(), BufReader::new(server.stdout.take().unwrap()));
        let device = String::new();
        let mut disk = Self { kind, point, device, server, orders, answers, directory };
        disk.await_word("serving");
        let served = disk.directory.path().join("disk");
        let losetup = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(served));
        disk.device = losetup.trim().to_owned();
        disk.mount();
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// The file that stands for the disk. It is on a FUSE file system.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// From now on this part of the disk, in bytes, has this fault, besides those that it has.
    pub(crate) fn becomes(&mut self, fault: Fault, part: Range<u64>) {
        self.order(&format!("{fault} {} {}", part.start, part.end));
    }

    /// All is well again.
    pub(crate) fn heals(&mut self) {
        self.order("heals 0 0 0");
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.await_word("obeyed");
    }

    fn await_word(&mut self, word: &str) {
        let mut line = String::new();
        while !line.ends_with(&format!("{word}\n")) {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the disk's process has gone");
        }
    }

    /// Where the content of a file is on the disk, in bytes.
    pub(crate) fn place_of(&self, file: &Path) -> Vec<Range<u64>> {
        // Lines like `   0:        0..     255:       1280..      1535:    256:`, in blocks.
        let extents = run(Command::new("filefrag").args(["-s", "-v", "-b4096"]).arg(file));
        let place = |line: &str| -> Option<Range<u64>> {
            let mut fields = line.split(':');
            fields.next()?.trim().parse::<u64>().ok()?;
            let (first, last) = fields.nth(1)?.split_once("..")?;
            Some(first.trim().parse::<u64>().ok()? * 4096..(last.trim().parse::<u64>().ok()? + 1) * 4096)
        };
        let places: Vec<_> = extents.lines().filter_map(place).collect();
        assert!(!places.is_empty(), "{extents}");
        places
    }

    /// Where the extended attributes of a file are on the disk, if they have a block of their own.
    pub(crate) fn place_of_label(&self, file: &Path) -> Range<u64> {
        let inode = fs::metadata(file).unwrap().ino();
        let shown = run(Command::new("debugfs").args(["-R", &format!("stat <{inode}>")]).arg(&self.device));
        let (_, rest) = shown.split_once("File ACL: ").unwrap_or_else(|| panic!("{shown}"));
        let block: u64 = rest.split_whitespace().next().unwrap().parse().unwrap();
        assert!(block > 0, "{shown}");
        block * 4096..(block + 1) * 4096
    }

    /// Gives the content of a file a fault.
    pub(crate) fn content_becomes(&mut self, fault: Fault, file: &Path) {
        for part in self.place_of(file) {
            self.becomes(fault, part);
        }
    }

    /// Unmounts and mounts again: nothing of it is in memory any more.
    pub(crate) fn cycle(&mut self) {
        assert!(eventually(|| self.unmount().then_some(())).is_some());
        // Whoever looks at all loop devices meanwhile keeps in memory what has been read of this one.
        run(Command::new("blockdev").arg("--flushbufs").arg(&self.device));
        self.mount();
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-t", self.kind.name()]).arg(&self.device).arg(&self.point));
    }

    fn unmount(&self) -> bool {
        let mounted = || mounts().is_ok_and(|mounts| mounts.iter().any(|mount| mount.point == self.point));
        !mounted() || Command::new("umount").arg(&self.point).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // Whatever hangs gets its answers, so that it can be unmounted.
        let _ = writeln!(self.orders, "heals 0 0 0");
        if eventually(|| self.unmount().then_some(())).is_none() {
            drop(Command::new("umount").arg("-l").arg(&self.point).output());
        }
        drop(Command::new("losetup").arg("-d").arg(&self.device).output());
        drop(self.server.kill());
        drop(self.server.wait());
        let _ = unmount(self.directory.path().join("disk"), UnmountFlags::DETACH);
    }
}

/// Runs a program; what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// No test: what the process of a [`FaultyDisk`] does.
#[test]
fn serve_a_faulty_disk() {
    let Some(directory) = std::env::var_os(SERVE) else { return };
    let disk = Disk::mount(Path::new(&directory)).unwrap();
    for _ in 0..THREADS {
        let disk = Arc::clone(&disk);
        std::thread::spawn(move || while disk.serve_one().is_ok() {});
    }
    println!("serving");
    for line in io::stdin().lines().map_while(Result::ok) {
        disk.obey(&line);
        println!("obeyed");
    }
    std::process::exit(0);
}

/// So many requests may wait for an answer at once; the kernel asks for no more (`max_background`).
const THREADS: u16 = 96;

/// The longest piece of content in one request.
const PIECE: u32 = 128 << 10;

/// The kernel's side of the disk.
#[derive(Debug)]
struct Disk {
    kernel: File,
    image: File,
    faults: Mutex<Vec<(Fault, Range<u64>)>>,
    healed: Condvar,
}

/// A request of the kernel: `struct fuse_in_header` and what follows.
struct Request<'b> {
    operation: u32,
    unique: u64,
    body: &'b [u8],
}

impl Request<'_> {
    fn number(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    fn short(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().unwrap())
    }
}

impl Disk {
    /// Mounts the disk over the file `disk`; its content is in the file `image`.
    fn mount(directory: &Path) -> io::Result<Arc<Self>> {
        let kernel = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let image = OpenOptions::new().read(true).write(true).open(directory.join("image"))?;
        let place = directory.join("disk");
        File::create(&place)?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0\0", kernel.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        mount(c"imara-faulty", &place, c"fuse", MountFlags::NOSUID, options)?;
        Ok(Arc::new(Self { kernel, image, faults: Mutex::default(), healed: Condvar::new() }))
    }

    fn obey(&self, order: &str) {
        let words: Vec<_> = order.split(' ').collect();
        let mut faults = self.faults.lock().unwrap();
        if words[0] == "heals" {
            faults.clear();
            self.healed.notify_all();
        } else {
            let [number, start, end] = [1, 2, 3].map(|place| words[place].parse().unwrap());
            faults.push((Fault::parse(words[0], number), start..end));
        }
    }

    /// Lets the faults of this part have their way. Whether it works all the same.
    fn suffer(&self, part: Range<u64>, fatal: Fault) -> bool {
        let met = |(_, place): &&(Fault, Range<u64>)| place.start < part.end && part.start < place.end;
        let mut delay = 0;
        let mut faults = self.faults.lock().unwrap();
        while faults.iter().filter(met).any(|(fault, _)| *fault == Fault::Silent) {
            faults = self.healed.wait(faults).unwrap();
        }
        for (fault, _) in faults.iter().filter(met) {
            match fault {
                Fault::Slow(milliseconds) if fatal == Fault::Unreadable => delay = delay.max(*milliseconds),
                Fault::Unreadable | Fault::Unwritable if *fault == fatal => return false,
                Fault::Slow(_) | Fault::Unreadable | Fault::Unwritable | Fault::Silent => {}
            }
        }
        drop(self.healed.wait_timeout_while(faults, Duration::from_millis(delay), |faults| !faults.is_empty()));
        true
    }

    /// Takes one request and answers it; an error if the disk has been unmounted.
    fn serve_one(&self) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(PIECE).unwrap() + 4096];
        let length = match rustix::io::read(&self.kernel, &mut *buffer) {
            // Interrupted, or the request was withdrawn.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => return Ok(()),
            length => length?,
        };
        let number = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
        let unique = u64::from_ne_bytes(buffer[8..16].try_into().unwrap());
        let request = Request { operation: number(4), unique, body: &buffer[40..length] };
        if let Some(answer) = self.answer(&request) {
            let (error, body) = answer.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
            let length = u32::try_from(16 + body.len()).unwrap();
            let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &request.unique.to_ne_bytes(), &body].concat();
            // An error says that nobody waits for it any more.
            let _ = rustix::io::write(&self.kernel, &head);
        }
        Ok(())
    }

    /// The answer, or the number of an error; none for what wants none.
    fn answer(&self, request: &Request<'_>) -> Option<Result<Vec<u8>, i32>> {
        const EIO: i32 = 5;
        const ENOSYS: i32 = 38;
        Some(match request.operation {
            // FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET
            2 | 36 | 42 => return None,
            // FUSE_INIT
            26 => Ok(Self::introduction()),
            // FUSE_GETATTR, FUSE_SETATTR
            3 | 4 => Ok(self.attributes()),
            // FUSE_OPEN: a handle, which is not used, and FOPEN_DIRECT_IO
            14 => Ok([0_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat()),
            // FUSE_READ
            15 => {
                let (offset, size) = (request.number(8), u64::from(request.short(16)));
                let mut content = vec![0; usize::try_from(size).unwrap()];
                let read = self.suffer(offset..offset + size, Fault::Unreadable)
                    && self.image.read_exact_at(&mut content, offset).is_ok();
                if read { Ok(content) } else { Err(EIO) }
            }
            // FUSE_WRITE
            16 => {
                let (offset, size) = (request.number(8), request.short(16));
                let content = &request.body[40..40 + usize::try_from(size).unwrap()];
                let wrote = self.suffer(offset..offset + u64::from(size), Fault::Unwritable)
                    && self.image.write_all_at(content, offset).is_ok();
                if wrote { Ok([size.to_ne_bytes(), [0; 4]].concat()) } else { Err(EIO) }
            }
            // FUSE_FLUSH
            25 => {
                self.suffer(CLOSING, Fault::Unwritable);
                Ok(Vec::new())
            }
            // FUSE_RELEASE, FUSE_FSYNC, FUSE_DESTROY
            18 | 20 | 38 => Ok(Vec::new()),
            _ => Err(ENOSYS),
        })
    }

    /// `struct fuse_init_out` of version 7.31.
    fn introduction() -> Vec<u8> {
        // FUSE_ASYNC_READ, FUSE_BIG_WRITES, FUSE_ASYNC_DIO
        let flags: u32 = 1 | 1 << 5 | 1 << 15;
        let head = [7, 31, PIECE, flags].map(u32::to_ne_bytes).concat();
        let background = [THREADS, THREADS].map(u16::to_ne_bytes).concat();
        [head, background, PIECE.to_ne_bytes().to_vec(), 1_u32.to_ne_bytes().to_vec(), vec![0; 36]].concat()
    }

    /// `struct fuse_attr_out` of the one file there is.
    fn attributes(&self) -> Vec<u8> {
        let size = self.image.metadata().unwrap().len();
        let validity = [3600, 0].map(u64::to_ne_bytes).concat();
        let long = [1, size, size.div_ceil(512), 0, 0, 0].map(u64::to_ne_bytes).concat();
        let short = [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
        [validity, long, short].concat()
    }
}

#[test]
fn a_faulty_disk_does_what_it_is_told() {
    let Some(_) = imara_linux::testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let mut disk = FaultyDisk::new(kind, 64 << 20);
        let (broken, silent) = (disk.path().join("broken"), disk.path().join("silent"));
        fs::write(&broken, vec![1; 300_000]).unwrap();
        fs::write(&silent, vec![2; 300_000]).unwrap();
        rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
        disk.content_becomes(Fault::Unreadable, &broken);
        disk.content_becomes(Fault::Silent, &silent);
        assert_eq!(fs::read(&broken).unwrap().len(), 300_000, "it is in memory");
        disk.cycle();
        assert_eq!(fs::read(&broken).unwrap_err().raw_os_error(), Some(5));
        let mut reader = Command::new("cat").arg(&silent).stdout(Stdio::null()).spawn().unwrap();
        let waits = eventually(|| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", reader.id())).unwrap();
            stat.contains(") D ").then_some(())
        });
        assert_eq!(fs::read(&broken).unwrap_err().raw_os_error(), Some(5), "others are answered meanwhile");
        assert!(waits.is_some() && reader.try_wait().unwrap().is_none());
        disk.heals();
        assert!(reader.wait().unwrap().success());
        assert_eq!(fs::read(&broken).unwrap(), vec![1; 300_000]);
    }
}
