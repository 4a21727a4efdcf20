//! How a guest's life goes on and ends: reset, panic, triple fault, console.

use ckvmm_tests::{LIMIT, config};

use crate::vm::Home;

#[test]
fn a_guest_that_powers_off_ends_with_0() {
    let home = Home::new();
    let mut vm = home.boot(&config::with_disk(config::linux("poweroff")));
    assert_eq!(vm.wait(LIMIT), 0);
    let messages = vm.messages.all();
    assert!(messages.iter().any(|line| line.contains("disk root: the guest's copy is")), "{messages:?}");
}

#[test]
fn a_reset_starts_the_guest_again_by_acpi_and_by_the_keyboard_controller() {
    for how in ["acpi", "kbd"] {
        let home = Home::new();
        let config = config::add_to_cmdline(config::linux("reboot"), &format!("reboot={how}"));
        let vm = home.boot(&config);
        vm.console.expect("CKVMM reboot", LIMIT);
        vm.console.expect("CKVMM ready", LIMIT);
        drop(vm);
        let home = Home::new();
        let mut vm = home.boot_with(&config, &["--no-reboot"]);
        assert_eq!(vm.wait(LIMIT), 0, "reboot={how}");
    }
}

#[test]
fn a_panic_and_a_triple_fault_end_with_3() {
    let home = Home::new();
    let mut vm = home.boot(&config::linux("panic"));
    vm.messages.expect("the guest has panicked", LIMIT);
    assert_eq!(vm.wait(LIMIT), 3);
    let home = Home::new();
    let mut vm = home.boot(&config::add_to_cmdline(config::linux("reboot"), "reboot=triple"));
    vm.messages.expect("triple fault", LIMIT);
    assert_eq!(vm.wait(LIMIT), 3);
}

#[test]
fn the_console_takes_what_is_typed() {
    let home = Home::new();
    let mut vm = home.boot(&config::linux("exec"));
    vm.console.expect("CKVMM exec ready", LIMIT);
    // More than the serial port's 64 bytes at once.
    let text = "x".repeat(500);
    vm.type_line(&format!("echo {text} | wc -c"));
    vm.console.expect("501", LIMIT);
    vm.type_line("cat /sys/class/block/vda/size; exit 7");
    vm.console.expect("CKVMM exec n=2 status=7", LIMIT);
}
