//! The largest machines.

use super::*;

#[test]
fn the_largest_number_of_vcpus_is_built_saved_and_restored() {
    if !has_kvm() {
        return;
    }
    let most = layout::VCPUS_MAX.min(kvm::open().unwrap().get_max_vcpus() as u32);
    let mut from = with_clock_reader(most);
    disturb(&from);
    let saved = save(&mut from);
    drop(from);
    let mut to = machine(most, RAM);
    restore(&mut to, saved.clone()).unwrap();
    same(&values(saved), &values(save(&mut to)), "");
}

/// Builds, saves and restores a machine with `bytes` of RAM, of which the first and the last are touched.
fn is_saved_and_restored(bytes: u64) {
    let last = GuestAddress(layout::MMIO_GAP_END + bytes - layout::MMIO_GAP_START - 8);
    let mut from = at_entry(machine(1, bytes), &CLOCK_READER);
    from.ram().memory().write_obj(7u64, last).unwrap();
    disturb(&from);
    let saved = save(&mut from);
    assert_eq!(from.ram().memory().read_obj::<u64>(last).unwrap(), 7);
    drop(from);
    let mut to = machine(1, bytes);
    restore(&mut to, saved.clone()).unwrap();
    same(&values(saved), &values(save(&mut to)), "");
}

#[test]
fn more_ram_than_the_host_has_is_built_saved_and_restored() {
    if has_kvm() {
        is_saved_and_restored(64 << 30);
    }
}

#[test]
#[ignore = "KVM without nested paging takes 2 GiB of the kernel's own memory for it"]
fn a_tebibyte_of_ram_is_built_saved_and_restored() {
    if has_kvm() {
        is_saved_and_restored(layout::RAM_MAX);
    }
}
