//! The rest: room for checkpoints, and whether network cards can be plugged in.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::Check;
use crate::cli::output::bytes;

/// Less than this and a checkpoint of a VM of common size does not fit.
const SPACE_WANTED: u64 = 2 << 30;
const TUN: &str = "/dev/net/tun";

pub(super) fn space(dir: &Path) -> Check {
    let name = "space";
    match statvfs(dir) {
        Ok(fs) => {
            #[allow(clippy::unnecessary_cast, reason = "the types differ between targets")]
            let free = (fs.blocks_available() as u64).saturating_mul(fs.fragment_size() as u64);
            let found = format!("{} has {} free", dir.display(), bytes(free));
            if free >= SPACE_WANTED {
                Check::ok(name, found)
            } else {
                Check::warning(
                    name,
                    found,
                    "a checkpoint takes what the guest's RAM holds: set checkpoint.dir elsewhere",
                )
            }
        }
        Err(e) => {
            let mend = "make it, or name another directory: ckvmm doctor DIR";
            Check::failure(name, format!("{} cannot be looked at: {}", dir.display(), e.desc()), mend)
        }
    }
}

pub(super) fn tun() -> Check {
    let name = "TAP";
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Check::ok(name, format!("{TUN} opens; a TAP is made by: sudo ip tuntap add tap0 mode tap user $USER")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Check::warning(name, format!("{TUN} does not exist: no network cards"), "sudo modprobe tun")
        }
        Err(e) => Check::warning(name, format!("{TUN}: {e}: no network cards"), format!("sudo chmod 666 {TUN}")),
    }
}
