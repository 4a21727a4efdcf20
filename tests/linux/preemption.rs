//! A scheduler takes the machine away: SIGUSR2, exit status 85, and elsewhere the guest goes on with its connections.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use ckvmm_tests::{LIMIT, config, console::value, network};
use nix::sys::signal::Signal;

use crate::vm::{Home, committed, complaints};

const PORT: u16 = 7000;

#[test]
fn a_tcp_transfer_survives_being_stopped_and_restored() {
    network::enter_namespace_with_tap();
    let home = Home::new();
    let config = config::with_network(config::with_disk(config::linux("send,kmsg")));
    let words = format!("ckvmm.to={}:{PORT} ckvmm.mib=8 ckvmm.seed=7", network::HOST);
    let config = config::add_to_cmdline(config, &words);
    let listener = TcpListener::bind((network::HOST, PORT)).unwrap();
    let mut vm = home.boot(&config);
    let start = vm.console.expect("CKVMM send start", LIMIT);
    let (bytes, sum): (usize, String) =
        (value(&start, "bytes").unwrap().parse().unwrap(), value(&start, "sha256").unwrap().to_owned());
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    let mut received = vec![0; bytes / 4];
    connection.read_exact(&mut received).unwrap();

    vm.signal(Signal::SIGUSR2);
    let image = committed(&vm);
    assert_eq!(vm.wait(LIMIT), 85);
    assert_eq!(image, home.checkpoint(1));
    let restored = home.restore(&image, "restored", &[]);
    read_to(&mut connection, &mut received, bytes);
    assert_eq!(received.len(), bytes);
    assert_eq!(sha256(&received), sum);
    drop(connection);
    restored.console.expect("CKVMM send done", LIMIT);
    assert!(complaints(&restored.console.all()).is_empty());
}

fn read_to(connection: &mut TcpStream, received: &mut Vec<u8>, bytes: usize) {
    let mut buffer = vec![0; 1 << 16];
    while received.len() < bytes {
        let read = connection.read(&mut buffer).expect("the connection lives");
        assert_ne!(read, 0, "the guest closed after {} of {bytes} bytes", received.len());
        received.extend_from_slice(&buffer[..read]);
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut tool = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tool.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = tool.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn the_power_button_ends_the_guest_in_order() {
    let home = Home::new();
    let mut vm = home.boot(&config::with_disk(config::linux("idle")));
    vm.signal(Signal::SIGTERM);
    vm.console.expect("CKVMM poweroff", LIMIT);
    assert_eq!(vm.wait(LIMIT), 0);
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended() {
    let home = Home::new();
    let mut config = config::linux("idle");
    config["stop_timeout"] = "1s".into();
    // A guest that does without ACPI does not hear of the button.
    let config = config::add_to_cmdline(config, "acpi=off");
    let mut vm = home.boot(&config);
    vm.signal(Signal::SIGTERM);
    vm.messages.expect("did not power off within 1 s", Duration::from_secs(60));
    assert_eq!(vm.wait(LIMIT), 1);
}
