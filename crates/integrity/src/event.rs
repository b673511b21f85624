//! What a hook tells us: facts only, nothing here judges.
//!
//! An [`Event`] is one access of one [`Subject`] to one [`Object`] as the kernel's hooks describe it.
//!
//! Source: Linux `security/integrity/ima/ima.h` (`enum ima_hooks`), `ima_main.c` (which hook passes which mask).

use std::fmt;
use std::str::FromStr;

/// A place in the kernel where IMA is asked; the value of `func=` in a rule.
///
/// Source: Linux `security/integrity/ima/ima.h`, `__ima_hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `FILE_CHECK` (also spelled `PATH_CHECK`): a regular file is opened.
    FileCheck,
    /// `MMAP_CHECK` (also spelled `FILE_MMAP`): a file is mapped with effective `PROT_EXEC`.
    MmapCheck,
    /// `MMAP_CHECK_REQPROT`: a file is mapped with requested `PROT_EXEC` (Linux 6.3).
    MmapCheckReqprot,
    /// `BPRM_CHECK`: a file is executed (each interpreter level).
    BprmCheck,
    /// `CREDS_CHECK`: a file is executed, judged with the credentials of the new program.
    CredsCheck,
    /// Internal: ownership or mode has changed; not spelled in a policy.
    PostSetattr,
    /// `MODULE_CHECK`: a kernel module is loaded.
    ModuleCheck,
    /// `FIRMWARE_CHECK`: firmware is loaded.
    FirmwareCheck,
    /// `KEXEC_KERNEL_CHECK`: a kernel image for kexec is loaded.
    KexecKernelCheck,
    /// `KEXEC_INITRAMFS_CHECK`: an initramfs for kexec is loaded.
    KexecInitramfsCheck,
    /// `POLICY_CHECK`: an IMA policy file is loaded by path.
    PolicyCheck,
    /// `KEXEC_CMDLINE`: the command line of a kexec kernel (a buffer).
    KexecCmdline,
    /// `KEY_CHECK`: an asymmetric key is added to a keyring (a buffer).
    KeyCheck,
    /// `CRITICAL_DATA`: kernel integrity critical data (a buffer).
    CriticalData,
    /// `SETXATTR_CHECK`: `security.ima` is written.
    SetxattrCheck,
}

impl Hook {
    /// Every hook, in the kernel's order.
    pub const ALL: [Self; 15] = [
        Self::FileCheck,
        Self::MmapCheck,
        Self::MmapCheckReqprot,
        Self::BprmCheck,
        Self::CredsCheck,
        Self::PostSetattr,
        Self::ModuleCheck,
        Self::FirmwareCheck,
        Self::KexecKernelCheck,
        Self::KexecInitramfsCheck,
        Self::PolicyCheck,
        Self::KexecCmdline,
        Self::KeyCheck,
        Self::CriticalData,
        Self::SetxattrCheck,
    ];

    /// The kernel's name, as `func=` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileCheck => "FILE_CHECK",
            Self::MmapCheck => "MMAP_CHECK",
            Self::MmapCheckReqprot => "MMAP_CHECK_REQPROT",
            Self::BprmCheck => "BPRM_CHECK",
            Self::CredsCheck => "CREDS_CHECK",
            Self::PostSetattr => "POST_SETATTR",
            Self::ModuleCheck => "MODULE_CHECK",
            Self::FirmwareCheck => "FIRMWARE_CHECK",
            Self::KexecKernelCheck => "KEXEC_KERNEL_CHECK",
            Self::KexecInitramfsCheck => "KEXEC_INITRAMFS_CHECK",
            Self::PolicyCheck => "POLICY_CHECK",
            Self::KexecCmdline => "KEXEC_CMDLINE",
            Self::KeyCheck => "KEY_CHECK",
            Self::CriticalData => "CRITICAL_DATA",
            Self::SetxattrCheck => "SETXATTR_CHECK",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No hook has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown hook (expected FILE_CHECK, MMAP_CHECK, BPRM_CHECK, …)")]
pub struct UnknownHook;

impl FromStr for Hook {
    type Err = UnknownHook;

    /// Accepts the kernel's names and its two aliases `PATH_CHECK` and `FILE_MMAP`; not the internal `POST_SETATTR`.
    fn from_str(name: &str) -> Result<Self, UnknownHook> {
        match name {
            "PATH_CHECK" => return Ok(Self::FileCheck),
            "FILE_MMAP" => return Ok(Self::MmapCheck),
            "POST_SETATTR" => return Err(UnknownHook),
            _ => {}
        }
        Self::ALL.into_iter().find(|hook| hook.name() == name).ok_or(UnknownHook)
    }
}

/// What kind of access is asked for; the bits of the kernel's `MAY_*`.
///
/// Source: Linux `include/linux/fs.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask(u8);

impl Mask {
    /// No bits: the mask of hooks that have none.
    pub const NONE: Self = Self(0);
    /// `MAY_EXEC`.
    pub const EXEC: Self = Self(1);
    /// `MAY_WRITE`.
    pub const WRITE: Self = Self(2);
    /// `MAY_READ`.
    pub const READ: Self = Self(4);
    /// `MAY_APPEND`.
    pub const APPEND: Self = Self(8);

    /// All bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every bit of `other` is set here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A user id in the initial user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u32);

/// A group id in the initial user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(pub u32);

/// Who asks: the credentials of the task that made the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Real user id.
    pub uid: Uid,
    /// Effective user id.
    pub euid: Uid,
    /// Saved user id.
    pub suid: Uid,
    /// Real group id.
    pub gid: Gid,
    /// Effective group id.
    pub egid: Gid,
    /// Saved group id.
    pub sgid: Gid,
    /// Effective `CAP_SETUID`: makes `euid=` match any of the three user ids.
    pub cap_setuid: bool,
    /// Effective `CAP_SETGID`: makes `egid=` match any of the three group ids.
    pub cap_setgid: bool,
}

impl Subject {
    /// A process of root with every capability.
    pub const ROOT: Self = Self {
        uid: Uid(0),
        euid: Uid(0),
        suid: Uid(0),
        gid: Gid(0),
        egid: Gid(0),
        sgid: Gid(0),
        cap_setuid: true,
        cap_setgid: true,
    };
}

/// The file system that an [`Object`] is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Superblock magic (`statfs.f_type`), e.g. `0xef53` for ext4.
    pub magic: u64,
    /// Type name as in `/proc/self/mountinfo`, e.g. `ext4`; without the subtype.
    pub name: String,
    /// Subtype (`fuse.NAME`), if any.
    pub subtype: Option<String>,
    /// Superblock UUID; all zero if the file system has none.
    pub uuid: [u8; 16],
}

/// Labels that Linux security modules put on subject or object; raw text, absent if not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LsmLabel {
    /// User part.
    pub user: Option<String>,
    /// Role part (for AppArmor: the profile).
    pub role: Option<String>,
    /// Type part.
    pub kind: Option<String>,
}

/// What is asked for: the regular file behind the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Owner, through the mount's id map.
    pub owner: Uid,
    /// Group, through the mount's id map.
    pub group: Gid,
    /// The file system.
    pub fs: &'a FileSystem,
}

/// One access, as a hook describes it.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Where the kernel asks.
    pub hook: Hook,
    /// What kind of access.
    pub mask: Mask,
    /// Who asks.
    pub subject: Subject,
    /// For which file.
    pub object: Object<'a>,
    /// The subject's LSM label, if the host has one.
    pub subject_label: Option<&'a LsmLabel>,
    /// The object's LSM label, if the host has one.
    pub object_label: Option<&'a LsmLabel>,
    /// For `KEY_CHECK` the keyring, for `CRITICAL_DATA` the label; else absent.
    pub data: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// An access to a file by a host that knows of no LSM labels.
    #[must_use]
    pub const fn of_file(hook: Hook, mask: Mask, subject: Subject, object: Object<'a>) -> Self {
        Self { hook, mask, subject, object, subject_label: None, object_label: None, data: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_hook_name_parses_back_and_the_internal_one_does_not() {
        for hook in Hook::ALL {
            let expected = if hook == Hook::PostSetattr { Err(UnknownHook) } else { Ok(hook) };
            assert_eq!(hook.name().parse(), expected, "{hook}");
        }
        assert_eq!("PATH_CHECK".parse(), Ok(Hook::FileCheck));
        assert_eq!("FILE_MMAP".parse(), Ok(Hook::MmapCheck));
        assert_eq!("FILE_CHEK".parse::<Hook>(), Err(UnknownHook));
    }
}
