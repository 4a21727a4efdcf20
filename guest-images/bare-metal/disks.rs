//! `job=disks`: the same number to RAM and to two disks, one after the other, for ever.

use core::ptr::addr_of_mut;

use crate::disk::Disk;
use crate::disk_model::{FIRST_ADDRESS, WORDS, record, sector};
use crate::jobs::{Account, TICKS_A_POLL, place};
use crate::machine::{Boot, number};
use crate::model::{CELL, Header, Job, MAGIC, VERSION, Writes};
use crate::{fail, ram_mib};

/// Sectors that are read at once.
const SECTORS_A_READ: usize = 128;
static mut BUFFER: [u64; SECTORS_A_READ * WORDS] = [0; SECTORS_A_READ * WORDS];

/// The newest record's number; 0 if there is none.
fn newest(disk: &mut Disk) -> u64 {
    // SAFETY: nobody else has it, as only one disk is read at a time.
    let buffer = unsafe { &mut *addr_of_mut!(BUFFER) };
    let mut newest = 0;
    for sector in (0..disk.sectors).step_by(SECTORS_A_READ) {
        disk.read(sector, buffer);
        newest = buffer.iter().step_by(WORDS).fold(newest, |newest, &n| newest.max(n));
    }
    newest
}

fn write(disks: &mut [Disk; 2], seed: u64, disk: usize, n: u64) {
    let sector = sector(n, disks[disk].sectors);
    disks[disk].write(sector, &mut record(seed, disk as u64, n));
}

/// Never ends.
pub fn run(boot: &Boot) -> ! {
    let line = boot.command_line();
    let get = |name, default| number(line, name, default).unwrap_or_else(|| fail(format_args!("{name}= is no number")));
    let (seed, bytes, flush) = (get("seed", 1), get("mib", 1) << 20, get("flush", 16));
    let Some(arena) = place(boot, bytes, false) else { fail(format_args!("no room for the arena")) };
    let mut disks = [Disk::open(0), Disk::open(1)];
    if !disks.iter().all(|disk| disk.sectors.is_power_of_two() && disk.sectors >= SECTORS_A_READ as u64) {
        fail(format_args!("the disks' sizes are no powers of two, or they are too small"));
    }
    let found = [newest(&mut disks[0]), newest(&mut disks[1])];
    say!("found disk0={} disk1={}", found[0], found[1]);
    // A life that ended between the two.
    let first = found[0];
    if first == found[1] + 1 {
        write(&mut disks, seed, 1, first);
    } else if first != found[1] {
        fail(format_args!("the disks are not of one instant"));
    }
    // SAFETY: a word of the header's page, which is ours.
    unsafe { (FIRST_ADDRESS as *mut u64).write_volatile(first) };
    let mut account = Account::open(
        TICKS_A_POLL,
        Header {
            magic: MAGIC,
            version: VERSION,
            job: Job::Disks as u32,
            seed,
            arena,
            arena_bytes: bytes,
            hot_bytes: bytes,
            ..Header::EMPTY
        },
    );
    say!("ready job=disks protocol={} ram_mib={} seed={seed} first={first}", boot.protocol(), ram_mib(boot));
    let cells = bytes / CELL;
    let mut writes = Writes::new(seed, cells, cells);
    account.fill(&mut writes, cells);
    say!("filled steps={}", writes.done());
    loop {
        account.step(&mut writes);
        let n = first + writes.done() - cells;
        for disk in 0..disks.len() {
            write(&mut disks, seed, disk, n);
        }
        if n.is_multiple_of(flush) {
            disks.iter_mut().for_each(Disk::flush);
            say!("flushed n={n}");
        }
        account.look();
    }
}
