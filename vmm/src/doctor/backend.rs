//! What stands behind `/dev/kvm`: the CPU's virtualisation, or software in its place.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Check, read_small};

/// What executes guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Intel VT-x.
    KvmIntel,
    /// AMD-V.
    KvmAmd,
    /// Software without virtualisation by the CPU: user mode runs natively, kernel mode is emulated.
    KvmPvm,
    /// The CPU can, but no module of KVM is loaded.
    NotLoaded,
    /// Neither.
    None,
}

impl Backend {
    pub(super) fn detect() -> Self {
        let cpu = read_small("/proc/cpuinfo").unwrap_or_default();
        Self::from(|name| Path::new("/sys/module").join(name).exists(), &cpu)
    }

    fn from(module: impl Fn(&str) -> bool, cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let flag = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
        // a module may be loaded without the CPU being able to: built into the kernel it always is
        if module("kvm_intel") && flag("vmx") {
            Self::KvmIntel
        } else if module("kvm_amd") && flag("svm") {
            Self::KvmAmd
        } else if module("kvm_pvm") {
            Self::KvmPvm
        } else if flag("vmx") || flag("svm") {
            Self::NotLoaded
        } else {
            Self::None
        }
    }

    /// Whether stock Linux boots on it.
    #[must_use]
    pub fn runs_linux(self) -> bool {
        matches!(self, Self::KvmIntel | Self::KvmAmd)
    }

    pub(super) fn check(self) -> Check {
        let name = "virtualisation";
        let nested = read_small("/proc/cpuinfo").is_some_and(|cpu| cpu.contains(" hypervisor"));
        let nested = if nested { "; this host is a VM itself, so that guests are slower than on hardware" } else { "" };
        match self {
            Self::KvmIntel => Check::ok(name, format!("kvm_intel (VT-x){nested}")),
            Self::KvmAmd => Check::ok(name, format!("kvm_amd (AMD-V){nested}")),
            Self::KvmPvm => Check::failure(
                name,
                "kvm_pvm, without the CPU's help: kernel code of a guest is emulated. Linux does not boot, \
                 bare-metal guests in user mode run at full speed",
                "for Linux guests use a host with VT-x or AMD-V, or turn nested virtualisation on for this VM",
            ),
            Self::NotLoaded => Check::failure(
                name,
                "the CPU can, but no KVM module is loaded",
                "sudo modprobe kvm_intel (or kvm_amd); if that fails turn virtualisation on in the firmware",
            ),
            Self::None => Check::failure(
                name,
                "neither vmx nor svm among the CPU's flags",
                "turn virtualisation on in the firmware, or nested virtualisation if this host is a VM",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(modules: &[&str], flags: &str) -> Backend {
        Backend::from(|name| modules.contains(&name), &format!("processor : 0\nflags\t\t: fpu {flags} sse\nbugs :"))
    }

    #[test]
    fn module_and_flag_decide_together() {
        assert_eq!(backend(&["kvm", "kvm_intel"], "vmx"), Backend::KvmIntel);
        assert_eq!(backend(&["kvm", "kvm_amd"], "svm"), Backend::KvmAmd);
        assert_eq!(backend(&["kvm", "kvm_pvm"], "hypervisor"), Backend::KvmPvm);
        assert_eq!(backend(&["kvm", "kvm_amd"], "hypervisor"), Backend::None);
        assert_eq!(backend(&["kvm", "kvm_amd", "kvm_pvm"], ""), Backend::KvmPvm);
        assert_eq!(backend(&[], "vmx"), Backend::NotLoaded);
        assert_eq!(backend(&[], "vmxx"), Backend::None);
        assert_eq!(Backend::from(|_| false, ""), Backend::None);
    }

    #[test]
    fn linux_needs_the_cpu() {
        assert!(Backend::KvmAmd.runs_linux() && Backend::KvmIntel.runs_linux());
        assert!(!Backend::KvmPvm.runs_linux() && !Backend::NotLoaded.runs_linux() && !Backend::None.runs_linux());
    }
}
