//! How a guest's life ends, and what the process says about it.

use std::{fs, process::Output};

use ckvmm_tests::{LIMIT, api::wait_until, bare_metal::Home};
use nix::sys::signal::Signal;

use crate::guest::{self, PROTOCOLS};

/// Runs `job` to the end of the process.
fn run(protocol: &str, job: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let home = Home::in_memory();
    let Output { status, stdout, stderr } = home.boot_to_its_end(&guest::config(protocol, "16MiB", job), more);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn a_guest_that_powers_off_ends_with_0() {
    if guest::skipped() {
        return;
    }
    for protocol in PROTOCOLS {
        let (status, console, messages) = run(protocol, "job=hello", &[]);
        assert_eq!((status, &*messages), (Some(0), ""), "{console}");
        assert_eq!(console, format!("CKVMM hello protocol={protocol} ram_mib=15\r\nCKVMM poweroff\r\n"));
    }
}

#[test]
fn a_guest_that_is_told_to_powers_off() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut vm = home.boot(&guest::config("pvh", "16MiB", "job=write mib=1"));
    vm.type_bytes(b"q");
    assert_eq!(vm.wait(LIMIT), 0);
}

#[test]
fn a_reboot_ends_with_0_if_reboots_are_not_wanted() {
    if guest::skipped() {
        return;
    }
    for via in ["i8042", "acpi"] {
        let (status, console, messages) = run("linux", &format!("job=reboot via={via}"), &["--no-reboot"]);
        assert_eq!((status, &*messages), (Some(0), ""), "{console}");
        assert_eq!(console, format!("CKVMM reboot via={via}\r\n"));
    }
}

#[test]
fn a_reboot_starts_the_guest_again() {
    if guest::skipped() {
        return;
    }
    for (via, protocol) in [("i8042", "pvh"), ("acpi", "linux")] {
        let home = Home::in_memory();
        let vm = home.start(&guest::config(protocol, "16MiB", &format!("job=reboot via={via}")), &[]);
        for _ in 0..5 {
            vm.console.expect("CKVMM reboot", LIMIT);
        }
        let (_, messages) = vm.kill9();
        assert!(messages.all().is_empty(), "{:?}", messages.all());
    }
}

#[test]
fn who_asks_for_the_end_while_a_guest_reboots_asks_the_guest() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    // To read it takes a while, in which the next machine is being built.
    let initrd = home.join("initrd");
    fs::File::create(&initrd).and_then(|file| file.set_len(64 << 20)).expect("it can be made");
    let mut config = guest::config("linux", "128MiB", "job=reboot via=acpi");
    config["kernel"]["initrd"] = initrd.to_str().into();
    let mut vm = home.start(&config, &[]);
    vm.console.expect("CKVMM reboot", LIMIT);
    wait_until("it starts again", || (home.api().vm()["state"] == "starting").then_some(()));
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait(LIMIT), 0, "it takes no notice, and its next reset is its end: {:?}", vm.messages.all());
    assert!(vm.messages.all().is_empty(), "{:?}", vm.messages.all());
}

#[test]
fn a_panic_and_a_triple_fault_end_with_3_in_one_line() {
    if guest::skipped() {
        return;
    }
    for protocol in PROTOCOLS {
        for (job, said) in [("panic", "panicked"), ("triple", "triple fault")] {
            for more in [&[][..], &["--no-reboot"]] {
                let (status, _, messages) = run(protocol, &format!("job={job}"), more);
                assert_eq!(status, Some(3), "{job}: {messages}");
                assert!(messages.contains(said) && messages.lines().count() == 1, "{job}: {messages}");
            }
        }
    }
}

/// An ELF that does what `first` says, and then goes to where there is no RAM, by Linux' protocol, whose page tables map
/// it.
pub(crate) fn lost_kernel(first: &[u8]) -> Vec<u8> {
    const AT: u64 = 0x20_0000;
    const HEADERS: u64 = 64 + 56;
    // mov eax, 0x20000000; jmp rax
    let code = [first, &[0xb8, 0x00, 0x00, 0x00, 0x20, 0xff, 0xe0]].concat();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    put(&(AT + HEADERS).to_le_bytes()); // entry
    put(&64u64.to_le_bytes()); // program headers
    put(&[0; 8 + 4]); // no sections, no flags
    put(&[64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]); // sizes: this header; one program header; section headers
    put(&[1, 0, 0, 0, 5, 0, 0, 0]); // load, read and execute
    put(&0u64.to_le_bytes()); // from the file's beginning
    put(&AT.to_le_bytes());
    put(&AT.to_le_bytes());
    put(&(HEADERS + code.len() as u64).to_le_bytes());
    put(&(HEADERS + code.len() as u64).to_le_bytes());
    put(&4096u64.to_le_bytes());
    put(&code);
    elf
}

#[test]
fn an_exit_that_nobody_knows_ends_in_one_line_with_the_registers() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let kernel = home.join("lost.elf");
    fs::write(&kernel, lost_kernel(&[])).expect("it can be written");
    let mut config = guest::config("linux", "16MiB", "");
    config["kernel"]["image"] = kernel.to_str().into();
    let Output { status, stderr, .. } = home.boot_to_its_end(&config, &[]);
    let messages = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!((status.code(), messages.lines().count()), (Some(1), 1), "{messages}");
    for part in ["ckvmm: vCPU 0: KVM could not go on", "rip=0x20000000", "rax=0x20000000", "cr3=0x9000", "cs=0x10"] {
        assert!(messages.contains(part), "no {part}: {messages}");
    }
}
