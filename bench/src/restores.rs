//! Restores: how long until the guest works again.

use std::{fs::File, time::Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use crate::{
    case::{Case, Method, Place, size},
    guest::{Guest, all_ram_read, first_unit},
    report::{heading, ms, row},
    sample::median,
    scratch::Scratch,
    vm::{Vm, files},
};

/// Restores of one checkpoint.
const ROUNDS: usize = 5;

/// From the start of the process, in seconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Restores {
    pub(crate) method: Method,
    pub(crate) touched_mib: u64,
    /// Whether the image was in the page cache.
    pub(crate) warm: bool,
    pub(crate) first_unit: f64,
    pub(crate) all_read: f64,
}

pub(crate) fn begin_table() {
    heading("Restore, from exec", &["RAM touched", "VMM", "image", "first unit ms", "all RAM read ms"]);
}

/// Restores a checkpoint that is in the page cache, and one that is not.
pub(crate) fn measure(touched_mib: u64, method: Method, scratch: &mut Scratch) -> Vec<Restores> {
    let case = Case { place: Place::Disk, ..Case::new(touched_mib, 16) };
    let mut guest = Guest::boot(method, case, scratch);
    guest.vm.checkpoint();
    [true, false]
        .map(|warm| {
            let times = (0..ROUNDS).map(|_| restart(&mut *guest.vm, warm, scratch));
            let (first, all): (Vec<f64>, Vec<f64>) = times.unzip();
            let [first_unit, all_read] = [first, all].map(median);
            let image = if warm { "warm" } else { "cold" };
            let name = method.name().split(' ').next().unwrap_or_default();
            row(&[size(touched_mib), name.to_owned(), image.to_owned(), ms(first_unit, 1), ms(all_read, 0)]);
            Restores { method, touched_mib, warm, first_unit, all_read }
        })
        .into()
}

/// Kills the VM and restores it: when its guest has done something, and when it has read all of its RAM.
fn restart(vm: &mut dyn Vm, warm: bool, scratch: &Scratch) -> (f64, f64) {
    vm.end();
    for path in files(&vm.image()) {
        let file = File::open(&path).expect("an image can be read");
        if warm {
            std::io::copy(&mut &file, &mut std::io::sink()).expect("an image can be read");
        } else {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("files take advice");
        }
    }
    let begun = Instant::now();
    vm.restart(scratch);
    first_unit(vm.process());
    let first = begun.elapsed().as_secs_f64();
    all_ram_read(vm.process());
    (first, begun.elapsed().as_secs_f64())
}
