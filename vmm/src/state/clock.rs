//! Guest time: the kvmclock, the time stamp counters, and what becomes of them across a checkpoint.
//!
//! Invariant: all vCPUs of a restored machine have the TSC offsets relative to each other that they had at the cut
//! (nearly always none), set as offsets rather than as values, so that they cannot drift while they are set.
//!
//! Policy **freeze** (the default): the guest's monotonic time goes on from the cut; nothing times out that would not
//! have. Policy **passed**: the time that passed on the host is added to the kvmclock and to the TSC; all of it, or less
//! what the VMs of a network are all told: each was cut, and each goes on, at a moment of its own, and their clocks differ
//! afterwards by what they differed before.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd};

use ckvmm_snapshot::Saved;
use jiff::Timestamp;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msrs;
use crate::error::{Error, Result};

/// Two frequencies closer than this are the same clock: Linux' NTP tolerance, 250 parts per million.
const TSC_TOLERANCE_PPM: u64 = 250;
/// What takes longer, nanoseconds, is not done at one instant: somebody else had the CPU meanwhile.
const INSTANT_NS: u64 = 200_000;
/// How often it is tried, on a host that has no CPU for us.
const INSTANT_TRIES: usize = 8;

/// The clocks at the instant of a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// kvmclock in nanoseconds.
    kvmclock_ns: u64,
    /// Guest TSC of vCPU 0.
    tsc: u64,
    /// Guest TSC of each vCPU less that of vCPU 0.
    tsc_skew: Vec<i64>,
    /// Guest TSC frequency in kHz.
    tsc_khz: u32,
    /// Host's wall clock in nanoseconds since 1970.
    wall_ns: u64,
}

impl Saved for ClockState {
    const KIND: &'static str = "x86-clock";
    const VERSION: u16 = 1;
}

/// What becomes of guest time between the cut and the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockPolicy {
    /// Time stands still across the gap.
    #[default]
    Freeze,
    /// As much time has passed as on the host, or less.
    Passed {
        /// So many nanoseconds less. 0: time jumps to the present.
        less_ns: i64,
    },
}

impl ClockState {
    /// Reads the clocks of a paused machine.
    ///
    /// # Errors
    /// If KVM cannot be asked.
    pub fn save(vm: &VmFd, vcpus: &[&VcpuFd]) -> Result<Self> {
        let (wall_ns, (clock, tsc)) = at_instant(|_| {
            let clock = vm.get_clock().map_err(Error::kvm("reading the kvmclock"))?;
            Ok((clock, read_tsc(vcpus[0])?))
        })?;
        let offsets: Vec<u64> = vcpus.iter().map(|vcpu| tsc_offset(vcpu).unwrap_or(0)).collect();
        Ok(ClockState {
            kvmclock_ns: clock.clock,
            tsc,
            tsc_skew: offsets.iter().map(|offset| offset.wrapping_sub(offsets[0]) as i64).collect(),
            tsc_khz: vcpus[0].get_tsc_khz().map_err(Error::kvm("reading the TSC frequency"))?,
            wall_ns,
        })
    }

    /// When they were read.
    pub fn instant(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.wall_ns.into()).unwrap_or(Timestamp::MAX)
    }

    /// Gives vCPUs the frequency and the value of the saved TSC. Before their MSRs: a deadline counts in this time.
    ///
    /// # Errors
    /// If this host's TSC runs at another frequency and cannot be scaled, if it cannot be set and would go back, or if
    /// the machine has other vCPUs.
    pub fn restore_tsc(&self, vm: &VmFd, vcpus: &[&VcpuFd], policy: ClockPolicy) -> Result<()> {
        if self.tsc_skew.len() != vcpus.len() {
            let what = format!("the clocks are of {} vCPUs, the machine has {}", self.tsc_skew.len(), vcpus.len());
            return Err(Error::State { what });
        }
        for vcpu in vcpus {
            self.restore_frequency(vm, vcpu)?;
        }
        let (wall, read) = at_instant(|_| read_tsc(vcpus[0]))?;
        let passed = u128::from(self.passed_ns(policy, wall)) * u128::from(self.tsc_khz) / 1_000_000;
        let tsc = self.tsc.wrapping_add(passed as u64);
        let skewed = self.tsc_skew.iter().map(|skew| *skew as u64);
        match tsc_offset(vcpus[0]) {
            // Not as a value: one that is less than a second from what the counter says, KVM takes for an attempt to
            // synchronise the counter with itself, and leaves it alone.
            Some(offset) => {
                let base = offset.wrapping_add(tsc.wrapping_sub(read));
                vcpus.iter().zip(skewed).try_for_each(|(vcpu, skew)| set_tsc_offset(vcpu, base.wrapping_add(skew)))?;
            }
            // So the first counter goes through a value that is far away, and the others are synchronised with it.
            None => {
                msrs::set(vcpus[0], 0, &[(msrs::IA32_TSC, tsc ^ 1 << 62)])?;
                for (id, (vcpu, skew)) in (0..).zip(vcpus.iter().zip(skewed)) {
                    msrs::set(vcpu, id, &[(msrs::IA32_TSC, tsc.wrapping_add(skew))])?;
                }
            }
        }
        self.judge(tsc, read_tsc(vcpus[0])?)
    }

    /// Whether a guest bears it that its TSC, which was set to `wanted`, says `found`. A little less than that it may be,
    /// where it cannot be set: time has passed, measured by two reads of two clocks. Less than at the cut it may not.
    fn judge(&self, wanted: u64, found: u64) -> Result<()> {
        let second = i64::from(self.tsc_khz) * 1000;
        let since_cut = found.wrapping_sub(self.tsc) as i64;
        if since_cut < 0 {
            let what = format!(
                "the guest's TSC would go back by {} s, for this host's KVM does not let it be set; restore on another \
                 host",
                since_cut.unsigned_abs() / second.unsigned_abs().max(1) + 1
            );
            return Err(Error::State { what });
        }
        let jump = found.wrapping_sub(wanted) as i64;
        if jump > second {
            tracing::info!(
                "the guest's TSC jumps by {} s: this host's KVM does not let it be set",
                jump / second.max(1)
            );
        }
        Ok(())
    }

    /// Sets the kvmclock: the last thing before the vCPUs run, and before any of them does.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn restore_kvmclock(&self, vm: &VmFd, policy: ClockPolicy) -> Result<()> {
        let set = |wall| {
            let clock = self.kvmclock_ns.saturating_add(self.passed_ns(policy, wall));
            let clock = kvm_clock_data { clock, ..Default::default() };
            vm.set_clock(&clock).map_err(Error::kvm("setting the kvmclock"))
        };
        at_instant(set).map(|_| ())
    }

    /// What has passed for the guest when the host's wall clock says `wall`. Time never goes back.
    fn passed_ns(&self, policy: ClockPolicy, wall: u64) -> u64 {
        match policy {
            ClockPolicy::Freeze => 0,
            ClockPolicy::Passed { less_ns } => {
                let passed = i128::from(wall) - i128::from(self.wall_ns) - i128::from(less_ns);
                passed.clamp(0, u64::MAX.into()) as u64
            }
        }
    }

    fn restore_frequency(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<()> {
        let host = vcpu.get_tsc_khz().map_err(Error::kvm("reading the TSC frequency"))?;
        if same_frequency(host, self.tsc_khz) {
            return Ok(());
        }
        let refused = |why: &str| Error::State {
            what: format!(
                "the guest's TSC runs at {} kHz, this host's at {host} kHz, and {why}; restore on a host with a TSC of \
                 the same frequency",
                self.tsc_khz
            ),
        };
        if !vm.check_extension(Cap::TscControl) {
            return Err(refused("its KVM cannot scale it (no KVM_CAP_TSC_CONTROL)"));
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(|_| refused("its KVM refuses to scale it that far"))
    }
}

fn same_frequency(a: u32, b: u32) -> bool {
    u64::from(a.abs_diff(b)) * 1_000_000 <= u64::from(a.max(b)) * TSC_TOLERANCE_PPM
}

fn wall_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Does something at an instant of the wall clock that is known, which it is told: again if it took too long for that.
fn at_instant<T>(mut act: impl FnMut(u64) -> Result<T>) -> Result<(u64, T)> {
    let mut tries = 0..INSTANT_TRIES;
    loop {
        tries.next();
        let wall = wall_ns();
        let done = act(wall)?;
        if wall_ns().saturating_sub(wall) <= INSTANT_NS || tries.is_empty() {
            return Ok((wall, done));
        }
    }
}

fn read_tsc(vcpu: &VcpuFd) -> Result<u64> {
    Ok(msrs::get(vcpu, 0, &[msrs::IA32_TSC])?[0].1)
}

/// `KVM_VCPU_TSC_OFFSET` (kernel document `virt/kvm/devices/vcpu`): absent before Linux 5.16 and on some backends.
fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0;
    tsc_attribute(vcpu, KVM_GET_DEVICE_ATTR, &mut offset).ok().map(|()| offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<()> {
    tsc_attribute(vcpu, KVM_SET_DEVICE_ATTR, &mut offset).map_err(Error::os("setting a TSC offset"))
}

fn tsc_attribute(vcpu: &VcpuFd, request: libc::c_ulong, offset: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw mut *offset as u64,
        flags: 0,
    };
    // SAFETY: `addr` points at eight bytes that outlive the call, which is the size of this attribute.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, &raw const attribute) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `_IOW(KVMIO, number, struct kvm_device_attr)`, which kvm-ioctls does not have for a vCPU on x86.
const fn device_attribute_ioctl(number: libc::c_ulong) -> libc::c_ulong {
    1 << 30 | (size_of::<kvm_device_attr>() as libc::c_ulong) << 16 | 0xae << 8 | number
}

const KVM_SET_DEVICE_ATTR: libc::c_ulong = device_attribute_ioctl(0xe1);
const KVM_GET_DEVICE_ATTR: libc::c_ulong = device_attribute_ioctl(0xe2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_within_the_tolerance_are_one() {
        assert!(same_frequency(2_596_148, 2_596_148));
        assert!(same_frequency(2_596_148, 2_596_700));
        assert!(!same_frequency(2_596_148, 2_600_000));
        assert!(!same_frequency(0, 2_600_000));
    }

    const CLOCK: ClockState =
        ClockState { kvmclock_ns: 5, tsc: 7, tsc_skew: Vec::new(), tsc_khz: 1_000_000, wall_ns: 0 };

    #[test]
    fn a_tsc_that_cannot_be_set_may_jump_and_not_go_back() {
        CLOCK.judge(7, 7).unwrap();
        CLOCK.judge(7, 7_000_000_000).unwrap();
        let later = ClockState { tsc: 7_000_000_000, ..CLOCK };
        let error = later.judge(7_000_000_000, 7).unwrap_err().to_string();
        assert!(error.contains("TSC would go back by 7 s"), "{error}");
    }

    #[test]
    fn less_than_has_passed_is_no_way_back() {
        CLOCK.judge(5_000, 4_900).unwrap();
        CLOCK.judge(5_000, CLOCK.tsc).unwrap();
        CLOCK.judge(5_000, CLOCK.tsc - 1).unwrap_err();
    }

    #[test]
    fn frozen_time_does_not_pass_and_none_goes_back() {
        let clock = ClockState { wall_ns: 1_000, ..CLOCK };
        let passed = |policy| clock.passed_ns(policy, 5_000);
        assert_eq!(passed(ClockPolicy::Freeze), 0);
        assert_eq!(passed(ClockPolicy::Passed { less_ns: 0 }), 4_000);
        assert_eq!(passed(ClockPolicy::Passed { less_ns: 3_990 }), 10);
        assert_eq!(passed(ClockPolicy::Passed { less_ns: 6_000 }), 0);
        assert_eq!(clock.instant().as_nanosecond(), 1_000);
    }

    #[test]
    fn what_is_done_at_an_instant_is_done_again_if_it_took_too_long() {
        let mut calls = 0;
        let (wall, told) = at_instant(|wall| {
            calls += 1;
            if calls == 1 {
                std::thread::sleep(std::time::Duration::from_nanos(2 * INSTANT_NS));
            }
            Ok(wall)
        })
        .unwrap();
        assert!(calls > 1);
        assert_eq!(wall, told);
    }
}
