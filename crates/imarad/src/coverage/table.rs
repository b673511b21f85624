//! The list of ways to a file's bytes, and of ways to change or to run them; of each, what a guard that is asked by
//! fanotify makes of it.
//!
//! Source: `fanotify(7)`; Linux `fs/notify/fsnotify.h`, `include/linux/fsnotify.h` (`fsnotify_open_perm()`), `fs/open.c`
//! (`do_dentry_open()`).

/// What somebody wants who comes this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To read a file or to run it.
    Opening,
    /// To change a file.
    Changing,
    /// To reach a file by another mount, or to have another file in its place.
    Mounting,
    /// To have bytes that are in no file, or that are not read through one.
    Around,
}

impl Kind {
    #[cfg(test)]
    const ALL: [Self; 4] = [Self::Opening, Self::Changing, Self::Mounting, Self::Around];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Changing => "changing",
            Self::Mounting => "mounting",
            Self::Around => "around",
        }
    }

    #[cfg(test)]
    const fn title(self) -> &'static str {
        match self {
            Self::Opening => "Ways of opening and running a file",
            Self::Changing => "Ways of changing a file",
            Self::Mounting => "Mounts and file systems",
            Self::Around => "Ways around files",
        }
    }
}

/// What the guard makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is asked: a file that is not what its label says is refused.
    Seen,
    /// It hears of it: the label of a good file follows the change.
    Followed,
    /// Some of it; the row says what.
    Partly,
    /// Nothing.
    NotSeen,
}

impl Status {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Followed => "followed",
            Self::Partly => "partly",
            Self::NotSeen => "not seen",
        }
    }
}

/// What a host must have for the row to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing beyond what the guard needs.
    Nothing,
    /// overlayfs, without which nobody can come this way. Before this release, the row has the other status.
    OverlaySince { release: (u32, u32), before: Status },
    /// A kind of file system in the kernel, without which nobody can come this way.
    FileSystem(&'static str),
    /// A path that exists, without which nobody can come this way.
    Path(&'static str),
    /// io_uring, without which nobody can come this way.
    IoUring,
}

/// Whether `tests/it` tries the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// It does, where the host lets it.
    Tried,
    /// It does not, for this reason.
    Not(&'static str),
}

impl Trial {
    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Tried => None,
            Self::Not(reason) => Some(reason),
        }
    }
}

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its name, which stays.
    pub(crate) id: &'static str,
    pub(crate) kind: Kind,
    /// The way, in the words of manual pages.
    pub(crate) what: &'static str,
    pub(crate) status: Status,
    /// Why it is so.
    pub(crate) why: &'static str,
    /// What a tier inside the kernel (BPF LSM) would add; empty if nothing.
    pub(crate) later: &'static str,
    pub(crate) needs: Needs,
    pub(crate) trial: Trial,
}

const fn row(id: &'static str, kind: Kind, what: &'static str, status: Status, why: &'static str) -> Row {
    Row { id, kind, what, status, why, later: "", needs: Needs::Nothing, trial: Trial::Tried }
}

const fn opening(id: &'static str, what: &'static str, status: Status, why: &'static str) -> Row {
    row(id, Kind::Opening, what, status, why)
}

const fn changing(id: &'static str, what: &'static str, status: Status, why: &'static str) -> Row {
    row(id, Kind::Changing, what, status, why)
}

const fn mounting(id: &'static str, what: &'static str, status: Status, why: &'static str) -> Row {
    row(id, Kind::Mounting, what, status, why)
}

const fn around(id: &'static str, what: &'static str, status: Status, why: &'static str) -> Row {
    row(id, Kind::Around, what, status, why)
}

impl Row {
    const fn later(self, later: &'static str) -> Self {
        Self { later, ..self }
    }

    const fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    const fn untried(self, reason: &'static str) -> Self {
        Self { trial: Trial::Not(reason), ..self }
    }
}

use Status::{Followed, NotSeen, Partly, Seen};

/// All of them; docs/coverage.md has the same.
pub(crate) const ROWS: &[Row] = &[
    opening("open", "open(2), openat(2)", Seen, "The kernel asks before it gives the descriptor."),
    opening("openat2", "openat2(2), with any RESOLVE_ flags", Seen, "As open(2)."),
    opening("creat", "creat(2), O_TRUNC", Seen, "Asked before the file is cut; a bad one stays as it is."),
    opening("o-direct", "O_DIRECT", Seen, "As open(2); the guard itself reads through the page cache."),
    opening("execve", "execve(2)", Seen, "The kernel asks twice: for an open, and for an execution."),
    opening("execveat", "execveat(2) with a directory or with AT_EMPTY_PATH", Seen, "The file is opened anew to be executed."),
    opening("fexecve", "fexecve(3): execution of /proc/self/fd/N", Seen, "As execve(2)."),
    opening("script", "the interpreter that #! names", Seen, "The kernel opens it to be executed, after the script."),
    opening("script-argument", "a script as an argument: sh FILE", Seen, "The interpreter opens it: judged as a read.")
        .later("that it is to be executed (AT_EXECVE_CHECK)"),
    opening("loader", "the dynamic loader of a program (PT_INTERP)", Seen, "The kernel opens it to be executed."),
    opening("loader-argument", "a program as an argument: ld.so FILE", Seen, "The loader opens it: judged as a read.")
        .later("that it is mapped to be executed (MMAP_CHECK)"),
    opening("library", "shared libraries, LD_PRELOAD, dlopen(3)", Seen, "The loader opens them: judged as reads.")
        .later("that they are mapped to be executed (MMAP_CHECK)"),
    opening("binfmt-misc", "an interpreter of binfmt_misc, with the flag F too", Seen, "Opened anew for each execution.")
        .needs(Needs::FileSystem("binfmt_misc")),
    opening("o-path", "O_PATH, and reopening it through /proc/self/fd", Seen, "O_PATH gives no bytes and is not asked about; the reopening is."),
    opening("proc-exe", "/proc/PID/exe, /proc/PID/map_files", Seen, "To open it is an open like any other."),
    opening("by-handle", "open_by_handle_at(2)", Seen, "As open(2)."),
    opening("io-uring", "io_uring: IORING_OP_OPENAT, IORING_OP_OPENAT2", Seen, "They go the way of open(2), in the kernel's thread if they must wait.")
        .needs(Needs::IoUring),
    opening("hard-link", "a hard link", Seen, "It is the same inode, with the same label."),
    opening("symlink", "a symbolic link", Seen, "What it leads to is opened."),
    opening("rename", "rename(2) of a file, or of a directory above it", Seen, "Labels belong to inodes and go with them. That it now has another name is not noticed.")
        .later("which name is opened (with manifests)"),
    opening("replaced", "rename(2) of another file over it, RENAME_EXCHANGE", Seen, "The other one is judged by its own label; two good files can be swapped.")
        .later("which name is opened (with manifests)"),
    opening("other-user", "another user, another process or user namespace", Seen, "Who asks does not matter, unless a rule says so."),
    opening("kernel-reads", "opens by the kernel itself: the files of quotas, accounting, firmware, swap", Seen, "The kernel's own opens by name are asked about like others.")
        .untried("each needs something of the whole host; loop-image and core-dump try the same way into the kernel"),
    opening("helper", "programs that the kernel starts: core_pattern, modprobe, request-key", Seen, "They are executed by name, as by execve(2).")
        .untried("it would change a setting of the whole host"),
    changing("write", "write(2), pwrite(2), writev(2)", Followed, "The writer is asked about when he opens, and the label is renewed when the last one closes."),
    changing("mmap-store", "a store through a shared mapping, also after the close", Followed, "The mapping counts as a writer until it is unmapped."),
    changing("ftruncate", "ftruncate(2), O_TRUNC", Followed, "They take a writer."),
    changing("rdonly-trunc", "open(2) with O_RDONLY|O_TRUNC", Followed, "Seen at the next open by the size, or heard of by a notice.")
        .later("that it is a change (the kernel gives no close event for it)"),
    changing("truncate", "truncate(2)", Partly, "Followed if the file was opened lately and is remembered; else refused afterwards, as with the kernel's IMA.")
        .later("that it happens (path_truncate)"),
    changing("fallocate", "fallocate(2): holes, zeroes, collapsing", Followed, "It takes a writer."),
    changing("copy-range", "copy_file_range(2), sendfile(2), splice(2) into it", Followed, "They take a writer."),
    changing("reflink", "FICLONE, FICLONERANGE into it", Followed, "They take a writer.").needs(Needs::FileSystem("btrfs")),
    changing("io-uring-write", "io_uring writes, registered files", Followed, "They take a descriptor that was opened for writing.")
        .needs(Needs::IoUring)
        .untried("io_uring's own writes end in the same function as pwrite(2), and its descriptor is tried by io-uring"),
    changing("passed-writer", "a descriptor for writing that was passed on (fork, SCM_RIGHTS)", Followed, "The file counts as open for writing until the last copy is closed."),
    changing("new", "a new file: O_CREAT, mknod(2)", Followed, "The guard hears of its creation and labels it when its writer closes."),
    changing("tmpfile", "O_TMPFILE, then linkat(2)", Followed, "A nameless empty file is new; its label is written at the close."),
    changing("core-dump", "core dumps, and other files that the kernel writes", Followed, "Opened in the kernel, but as a new file like any other."),
    changing("xattr", "setxattr(2) of security.ima", Seen, "Not asked about; heard of a moment later, and the file is judged by the new label.")
        .later("who may do it (inode_setxattr)"),
    changing("chown", "chown(2)", Seen, "Not asked about; heard of a moment later. A file may begin or cease to be one that rules are about.")
        .later("who may do it (inode_setattr), and that owners are what they were (EVM)"),
    changing("chmod", "chmod(2), setcap(8)", NotSeen, "Not part of what a label says.")
        .later("that they are what they were (EVM)"),
    changing("unlink", "unlink(2) and other changes of names", NotSeen, "Names are not part of what a label says.")
        .later("that nothing is missing (with manifests)"),
    changing("swap-file", "swap files", Partly, "swapon(2) opens the file, which is asked about; what the kernel swaps goes to the disk past the file, and the label follows after swapoff(2).")
        .needs(Needs::Path("/proc/swaps"))
        .untried("it would put pages of the host's memory into the scratch file"),
    changing("accounting", "process accounting, acct(2)", Followed, "The kernel opens the file for writing, and closes it in the end.")
        .untried("it is one setting of the whole host"),
    changing("quota-file", "quota files", NotSeen, "The file system writes them past everything; leave them out by policy.")
        .needs(Needs::Path("/proc/sys/fs/quota"))
        .untried("it takes quota formats and tools that test machines do not have"),
    changing("exchange", "EXT4_IOC_MOVE_EXT, XFS_IOC_EXCHANGE_RANGE", Followed, "They take descriptors for writing of both files.")
        .untried("they differ from file system to file system, and from release to release"),
    mounting("bind", "bind mounts, detached mounts (open_tree(2))", Seen, "The whole file system is marked, not a mount of it."),
    mounting("mount-namespace", "another mount namespace", Seen, "The whole file system is marked, in whatever namespace it is mounted."),
    mounting("chroot", "chroot(2), pivot_root(2)", Seen, "As another mount."),
    mounting("read-only", "a mount that is read-only", Seen, "Judged like any other; labels are written through a mount of the guard's own."),
    mounting("id-mapped", "an id-mapped mount", Partly, "Asked about; but rules see the owners that the mount shows, so that a file of root may be nobody's concern there. In another mount namespace, what the kernel answers for by its owner here is not asked about.")
        .later("the owner that is on the disk"),
    mounting("overlay-lower", "overlayfs over a guarded file system: files from below", Seen, "The kernel tells of the file below when the overlay opens it.")
        .needs(Needs::OverlaySince { release: (6, 5), before: NotSeen }),
    mounting("overlay-upper", "overlayfs over a guarded file system: files that are changed through it", Followed, "As below: the overlay writes to a file in its upper directory.")
        .needs(Needs::OverlaySince { release: (6, 5), before: NotSeen }),
    mounting("remount", "mount(8) -o remount,ro", Followed, "What is being written is labelled first; then nothing can change."),
    mounting("unmount", "umount(8)", Followed, "Nothing that is only remembered keeps a mount busy."),
    mounting("lazy-unmount", "umount(8) -l", Seen, "As long as somebody uses it, it stays marked."),
    mounting("subvolume", "subvolumes and snapshots of btrfs", Seen, "They belong to the file system that is marked. A snapshot's file is another file with the same label.")
        .needs(Needs::FileSystem("btrfs")),
    mounting("receive", "btrfs receive, and other programs that write a tree", Followed, "They make files like anybody else.")
        .needs(Needs::FileSystem("btrfs"))
        .untried("it is a program that opens, writes and closes; writes.rs and patterns.rs try those"),
    mounting("over", "another file system mounted over a guarded directory", NotSeen, "Only what is named is guarded; `appraise` rules do not hold elsewhere.")
        .later("all file systems at once"),
    mounting("copy", "the same image mounted a second time, a snapshot of its device (dm-snapshot, LVM)", NotSeen, "It is another file system, which has to be named too.")
        .later("all file systems at once"),
    mounting("network", "NFS, CIFS, 9p, FUSE, cluster file systems", NotSeen, "Others can change their files unheard, so the guard refuses to guard them.")
        .untried("what is refused at the start is tried by starting.rs and operation.rs"),
    mounting("export", "export by NFS (knfsd) or SMB", Seen, "The server opens files here; it, not its client, is who asks.")
        .needs(Needs::FileSystem("nfsd"))
        .untried("test machines have no server in their kernel"),
    mounting("fuse-passthrough", "FUSE passthrough of a guarded file", Partly, "The server's open is asked about, those of its users need not be.")
        .needs(Needs::FileSystem("fuse"))
        .later("each open that reads from it")
        .untried("it takes a FUSE server of our own"),
    mounting("loop-image", "a loop device on a guarded image, a file system in a file (erofs)", Partly, "Opening the image is asked about, and what is written to it followed when it is detached. Files inside belong to another file system.")
        .later("all file systems at once"),
    around("open-before", "descriptors that were open before the guard began", NotSeen, "Nobody is asked a second time about a descriptor.")
        .later("their reads (file_permission), and mapping them to be executed"),
    around("passed", "descriptors that are passed on: fork(2), SCM_RIGHTS, pidfd_getfd(2), io_uring's registered files", Partly, "They were asked about when they were opened; who uses them later is not.")
        .later("who receives them (file_receive)"),
    around("read-while-written", "reading through a descriptor while somebody else changes the file", NotSeen, "Both were asked about when they opened. A measurement would call it a violation.")
        .later("nothing: it is the same in the kernel's IMA"),
    around("mmap", "mmap(2), mprotect(2) with PROT_EXEC", Partly, "The open before them is asked about; that the file is to be run is not known.")
        .later("that it is to be run (mmap_file, file_mprotect)"),
    around("memory", "memfd_create(2), anonymous memory, code that is made at run time", NotSeen, "There is no file that could have a label.")
        .later("execution from files without a file system (bprm_check, mmap_file)"),
    around("standard-input", "an interpreter that reads from a pipe, a socket, its arguments, a file of no rule", NotSeen, "There is no guarded file."),
    around("process-memory", "ptrace(2), process_vm_writev(2), /proc/PID/mem", NotSeen, "Memory of a process is changed, no file.")
        .later("who may do it (ptrace_access_check)"),
    around("block-device", "writes to the block device under a mounted file system; a disk that changes", NotSeen, "Content that is read again from the disk is not judged again while the file is known.")
        .later("nothing; fs-verity and dm-verity are for that"),
    around("tmpfs-swap", "pages of a tmpfs that are on a swap device", NotSeen, "As a block device that is written to.")
        .untried("it would take the host's swap"),
    around("guard-descriptors", "the guard's own descriptors, through /proc", NotSeen, "Root alone can reach them, and can end the guard as well."),
    around("init-module", "kernel modules: init_module(2), finit_module(2)", Partly, "The open of a module's file is judged as a read; that it is loaded, and bytes from memory, are not seen.")
        .needs(Needs::Path("/proc/modules"))
        .later("what is loaded (kernel_read_file, kernel_load_data)")
        .untried("it would load code into the host's kernel"),
    around("firmware", "firmware", Partly, "The kernel's open is judged as a read; that it is firmware is not known.")
        .later("what is loaded (kernel_read_file)")
        .untried("it takes a device that asks for some"),
    around("kexec", "kexec_file_load(2), kexec_load(2)", Partly, "The open of the image is judged as a read; bytes from memory are not seen.")
        .needs(Needs::Path("/sys/kernel/kexec_loaded"))
        .later("what is loaded (kernel_read_file, kernel_load_data)")
        .untried("it would prepare the host to start another kernel"),
    around("bpf", "BPF programs, bpf(2)", NotSeen, "They come from memory; the file they were read from was judged as a read.")
        .later("who may load which (bpf_prog_load)")
        .untried("it would load code into the host's kernel"),
    around("not-regular", "directories, symbolic links, devices, pipes, sockets", NotSeen, "They have no labels. Opens of them pass."),
    around("attributes", "stat(2), getxattr(2), readdir(3)", NotSeen, "They open no file."),
    around("bad-moment", "files opened while the guard does not run, or in the modes log, fix and off", NotSeen, "Nothing is refused then.")
        .later("refusal while the guard does not run"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own_and_says_why() {
        let mut names = HashSet::new();
        for row in ROWS {
            assert!(names.insert(row.id), "{} twice", row.id);
            assert!(row.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit()));
            assert!(row.why.ends_with('.') && row.trial.reason() != Some(""), "{}", row.id);
        }
    }

    /// The tables of docs/coverage.md.
    fn page() -> String {
        let mut page = String::new();
        for kind in Kind::ALL {
            let _ = write!(
                page,
                "\n## {}\n| way | what | status | why | a tier in the kernel would add | tried |\n|---|---|---|---|---|---|\n",
                kind.title()
            );
            for row in ROWS.iter().filter(|row| row.kind == kind) {
                let needs = match row.needs {
                    Needs::OverlaySince { release: (major, minor), before } => {
                        format!("{} (since Linux {major}.{minor}; before: {})", row.status.word(), before.word())
                    }
                    Needs::Nothing | Needs::FileSystem(_) | Needs::Path(_) | Needs::IoUring => {
                        row.status.word().to_owned()
                    }
                };
                let tried = row.trial.reason().map_or_else(|| "yes".to_owned(), |reason| format!("no: {reason}"));
                let what = row.what.replace('|', "\\|");
                let _ = writeln!(page, "| `{}` | {what} | {needs} | {} | {} | {tried} |", row.id, row.why, row.later);
            }
        }
        page
    }

    #[test]
    fn the_page_has_the_same_rows() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/coverage.md");
        let found = std::fs::read_to_string(path).unwrap();
        let (head, _) = found.split_once("\n## ").unwrap_or((&found, ""));
        let expected = format!("{}\n{}", head.trim_end(), page());
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(path, &expected).unwrap();
            return;
        }
        assert!(
            found == expected,
            "docs/coverage.md is not what the table says (fix: WRITE_DOCS=1 cargo test -p imarad the_page_has)"
        );
    }
}
