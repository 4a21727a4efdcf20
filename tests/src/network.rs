//! A network namespace with a TAP, for a guest and for the host's end of its connections.

use std::{path::Path, process::Command};

use nix::sched::{CloneFlags, unshare};

/// The TAP's name in its namespace.
pub const TAP: &str = "tap0";
/// The host's address on the TAP, and the guest's.
pub const HOST: &str = "10.93.0.1";
/// The guest's address.
pub const GUEST: &str = "10.93.0.2";

/// Moves the calling thread, and what it starts, into a network namespace of its own with a TAP that is up.
///
/// # Panics
/// If that cannot be had (it takes root).
pub fn enter_namespace_with_tap() {
    enter_namespace_with(TAP);
}

/// The same, with a TAP of this name.
///
/// # Panics
/// If that cannot be had (it takes root).
pub fn enter_namespace_with(tap: &str) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace takes root");
    ip(&["link", "set", "lo", "up"]);
    ip(&["tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr"]);
    ip(&["address", "add", &format!("{HOST}/24"), "dev", tap]);
    ip(&["link", "set", tap, "up"]);
}

/// True if the guest answers a ping within five seconds.
///
/// # Panics
/// If there is no `ping`.
pub fn guest_answers() -> bool {
    let arguments = ["-q", "-c", "1", "-W", "5", GUEST];
    Command::new("ping").args(arguments).output().expect("ping is installed").status.success()
}

fn ip(arguments: &[&str]) {
    let ip = if Path::new("/sbin/ip").exists() { "/sbin/ip" } else { "ip" };
    let output = Command::new(ip).args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
