//! Many requests at once, and what waits for them: drain and reset.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn many_requests_are_in_flight_and_a_drain_waits_for_all_of_them() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..80);
    bench.rig.kick(REQUESTS);
    bench.wait_arrived(WORKERS);
    assert!(bench.rig.used(REQUESTS).is_empty());
    let mmio = bench.rig.mmio.clone();
    let drain = std::thread::spawn(move || mmio.drain());
    bench.rig.want_interrupt(REQUESTS, true);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!drain.is_finished(), "drained with requests in flight");
    assert!(bench.rig.mmio.save().is_err());
    bench.gate.set(false);
    drain.join().unwrap().unwrap();
    // All is in the used ring and announced when the drain returns; what comes now is held back.
    assert_eq!(bench.rig.used(REQUESTS).len(), 80);
    assert!(bench.rig.edges.take() > 0);
    bench.check_writes(0..80);
    bench.rig.mmio.save().unwrap();
    bench.offer_writes(80..100);
    bench.rig.kick(REQUESTS);
    std::thread::sleep(Duration::from_millis(20));
    assert!(bench.rig.used(REQUESTS).is_empty());
    bench.rig.mmio.undrain();
    bench.rig.run();
    bench.rig.wait_used(REQUESTS, 20);
    bench.check_writes(80..100);
}

#[test]
fn a_drain_that_takes_too_long_is_an_error_and_the_disk_goes_on() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..1);
    bench.rig.kick(REQUESTS);
    let error = bench.rig.mmio.drain_within(Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.contains("disk disk-with-a-name-of-more-than-20: requests are still in flight"), "{error}");
    bench.gate.set(false);
    bench.offer_writes(1..2);
    bench.rig.kick(REQUESTS);
    bench.rig.wait_used(REQUESTS, 2);
    bench.check_writes(0..2);
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_then_no_ram_is_touched() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..20);
    bench.rig.kick(REQUESTS);
    bench.wait_arrived(WORKERS);
    let mmio = bench.rig.mmio.clone();
    let reset = std::thread::spawn(move || crate::BusDevice::write(&*mmio, 0x70, &[0; 4]));
    while !bench.rig.mmio.is_stopping() {
        assert!(!reset.is_finished(), "reset with requests in flight");
        std::thread::yield_now();
    }
    assert!(!reset.is_finished(), "reset with requests in flight");
    assert_eq!(bench.rig.read(0x100), SECTORS as u32, "other vCPUs are served meanwhile");
    bench.offer_writes(20..40);
    bench.rig.kick(REQUESTS);
    bench.gate.set(false);
    reset.join().unwrap();
    assert_eq!(bench.rig.status(), 0);
    assert_eq!(bench.rig.used(REQUESTS).len(), 20, "what came while the reset waited is not taken");
    bench.check_writes(0..20);
    assert_eq!(bench.sector(20), [20; 512]);
    bench.rig.start_with_all();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 100, &[Piece::In(BUFFER, 512)]), (OK, 513));
}

#[test]
fn more_requests_than_the_queue_holds_go_through_it_in_turn() {
    let mut bench = bench(false);
    for first in (0..240).step_by(80) {
        bench.offer_writes(first..first + 80);
        bench.rig.kick(REQUESTS);
        bench.rig.wait_used(REQUESTS, 80);
    }
    bench.check_writes(0..240);
    assert_eq!(bench.counters.requests.load(Ordering::SeqCst), 240);
}

/// What the kernel says of each thread of this process whose name begins so.
fn statuses(name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let status = |task: io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("status")).ok();
    tasks.filter_map(status).filter(|status| status.starts_with(&format!("Name:\t{name}"))).collect()
}

#[test]
fn workers_block_all_signals() {
    use nix::sys::signal::Signal;
    let _bench = idle(false);
    let deadline = Instant::now() + Duration::from_secs(30);
    // A thread takes its name only when it runs.
    let workers = loop {
        let workers = statuses("disk disk-with");
        if workers.len() >= WORKERS {
            break workers;
        }
        assert!(Instant::now() < deadline, "{} of {WORKERS} workers", workers.len());
        std::thread::yield_now();
    };
    let blockable = Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP));
    let all: u64 = blockable.map(|signal| 1 << (signal as u32 - 1)).sum();
    for status in workers {
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let blocked = u64::from_str_radix(blocked, 16).unwrap();
        assert_eq!(blocked & all, all, "{blocked:#x}");
    }
}
