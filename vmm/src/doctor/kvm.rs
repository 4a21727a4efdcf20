//! `/dev/kvm`: may it be opened, does it make a VM, can it do what a machine needs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use kvm_ioctls::{Cap, Kvm};

use super::{Backend, Check};
use crate::machine::kvm::{REQUIRED, create_vm};

const DEVICE: &str = "/dev/kvm";
/// The only version of the API since 2007.
const API_VERSION: i32 = 12;
/// What makes more possible, and what is missing without it.
const USEFUL: &[(Cap, &str, &str)] = &[
    (Cap::Xsave2, "KVM_CAP_XSAVE2", "guests with AMX"),
    (Cap::TscControl, "KVM_CAP_TSC_CONTROL", "restoring on a host whose TSC runs at another frequency"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER", "the guest's best timer"),
    (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL", "pauses that the guest's watchdog does not notice"),
];

pub(super) fn check(backend: Backend) -> Vec<Check> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return vec![cannot_open(e.errno(), backend)],
    };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        let mend = "use a Linux kernel of this century's second decade or later";
        return vec![Check::failure(DEVICE, format!("API version {version}, not {API_VERSION}"), mend)];
    }
    let vm = match create_vm(&kvm) {
        Ok(vm) => vm,
        Err(e) => {
            let mend = "end other hypervisors (VirtualBox, VMware) that hold the CPU; dmesg says more";
            return vec![Check::failure(DEVICE, format!("a VM cannot be made: {e}"), mend)];
        }
    };
    if let Err(e) = vm.create_irq_chip() {
        let mend = "use a kernel with CONFIG_KVM_IOAPIC";
        return vec![Check::failure(DEVICE, format!("interrupt controllers cannot be made: {e}"), mend)];
    }
    let most = kvm.get_max_vcpus();
    let opened = Check::ok(DEVICE, format!("opens and makes a VM; at most {most} vCPUs each"));
    vec![opened, required(&kvm), useful(&kvm)]
}

fn required(kvm: &Kvm) -> Check {
    let missing: Vec<&str> = REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, n)| *n).collect();
    match missing.is_empty() {
        true => Check::ok("KVM, needed", format!("all {} capabilities", REQUIRED.len())),
        false => Check::failure("KVM, needed", format!("missing: {}", missing.join(", ")), "use a newer kernel"),
    }
}

fn useful(kvm: &Kvm) -> Check {
    let missing = USEFUL.iter().filter(|(cap, ..)| !kvm.check_extension(*cap));
    let missing: Vec<String> = missing.map(|(_, name, what)| format!("{name} ({what})")).collect();
    let name = "KVM, useful";
    match missing.is_empty() {
        true => Check::ok(name, format!("all {} capabilities", USEFUL.len())),
        false => Check::warning(
            name,
            format!("not here: {}", missing.join(", ")),
            "nothing, unless you need one of these; then use another host",
        ),
    }
}

fn cannot_open(errno: i32, backend: Backend) -> Check {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Check::failure(
            DEVICE,
            "does not exist",
            match backend {
                Backend::None => "this CPU offers no virtualisation: see above",
                _ => "sudo modprobe kvm_intel or kvm_amd; in a container start it with --device /dev/kvm",
            },
        ),
        libc::EACCES | libc::EPERM => Check::failure(DEVICE, "may not be used by this user", permission_mend()),
        _ => {
            let e = std::io::Error::from_raw_os_error(errno);
            Check::failure(DEVICE, format!("cannot be opened: {e}"), "see dmesg for KVM's own words")
        }
    }
}

/// How a user gets at the device depends on whom it belongs to.
fn permission_mend() -> String {
    let join = "sudo usermod -aG kvm $USER, then log out and in again";
    let Ok(metadata) = fs::metadata(DEVICE) else { return join.into() };
    let for_group = metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0;
    if for_group { join.into() } else { format!("sudo chgrp kvm {DEVICE} && sudo chmod 660 {DEVICE}; then {join}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_device_that_cannot_be_opened_has_a_mend() {
        for errno in [libc::ENOENT, libc::EACCES, libc::EPERM, libc::EBUSY, libc::ENXIO] {
            for backend in [Backend::None, Backend::NotLoaded, Backend::KvmIntel] {
                let check = cannot_open(errno, backend);
                assert_eq!(check.level, Level::Failure);
                assert!(check.mend.is_some_and(|mend| !mend.is_empty()));
            }
        }
        assert!(cannot_open(libc::EACCES, Backend::KvmAmd).mend.unwrap().contains("usermod -aG kvm"));
    }
}
