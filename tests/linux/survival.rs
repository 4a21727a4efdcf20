//! A busy guest is checkpointed, goes on, is killed, and goes on where the checkpoint was.

use std::{path::Path, process::Command};

use ckvmm_tests::{LIMIT, config, network};

use crate::vm::{Count, Home, checkpoint, complaints};

#[test]
fn a_busy_guest_goes_on_where_it_was() {
    network::enter_namespace_with_tap();
    let home = Home::new();
    let jobs = "counter,fsync,ping,ram,kmsg";
    let mut config = config::with_network(config::with_disk(config::linux(jobs)));
    config = config::add_to_cmdline(config, &format!("ckvmm.to={} ckvmm.ram=8", network::HOST));
    config["vcpus"] = 2.into();
    let vm = home.boot(&config);
    let first = Count::next(&vm);
    vm.console.expect_all(&["fsync seq=3", "ping seq=3 ok", "pass=2 ok"], LIMIT);

    let before = Count::last(&vm.console.all());
    let image = checkpoint(&vm);
    let at_cut = Count::last(&vm.console.all());
    // It goes on as if nothing had happened; what it does now is lost with it.
    vm.console.skip();
    let later = Count::next(&vm);
    assert!(later.same_process(&first) && later.count >= at_cut.count);
    vm.console
        .next("thirty more counts", LIMIT, |line| Count::parse(line).filter(|count| count.count > later.count + 30));
    let lost = Count::last(&vm.console.all());
    let (console, messages) = vm.kill9();
    assert!(complaints(&console.all()).is_empty(), "{:?}", complaints(&console.all()));
    assert!(messages.all().iter().all(|line| !line.contains("error")), "{:#?}", messages.all());

    disk_is_clean(&image.join("disks/root"), home.path());
    let restored = home.restore(&image, "restored", &[]);
    let next = Count::next(&restored);
    assert!(next.same_process(&first), "{next:?} after {first:?}");
    assert!(next.count > before.count && next.count <= at_cut.count + 1, "{before:?} {next:?} {at_cut:?}");
    // Time stood still across the gap: what passed before the kill is not in it.
    assert!(next.uptime < at_cut.uptime + 1.0 && next.uptime < lost.uptime - 1.0, "{at_cut:?} {lost:?} {next:?}");
    let then = Count::next(&restored);
    assert_eq!(then.count, next.count + 1);
    restored.console.expect_all(&["CKVMM fsync seq=", "CKVMM ping seq=", "CKVMM ram mib="], LIMIT);
    assert!(network::guest_answers(), "the host pings the restored guest");
    restored.console.next("thirty counts after the restore", LIMIT, |line| {
        Count::parse(line).filter(|count| count.count > next.count + 30)
    });
    let lines = restored.console.all();
    assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
    assert!(!lines.iter().any(|line| line.contains("lost")), "no ping was lost");
}

/// `fsck -f` finds nothing to mend but what a file system that is in use always has: its journal, and the sums in the
/// superblock, which ext4 brings up to date when it is unmounted.
fn disk_is_clean(disk: &Path, scratch: &Path) {
    let copy = scratch.join("fsck.raw");
    let copied = Command::new("cp").arg("--sparse=always").args([disk, &copy]).status().unwrap();
    assert!(copied.success());
    let fsck = |flag: &str| Command::new("/sbin/e2fsck").args(["-f", flag]).arg(&copy).output().unwrap();
    let replayed = fsck("-y");
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    let lines: Vec<_> = said.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].starts_with("Fix?")) {
        let is_sum = ["Free blocks count wrong (", "Free inodes count wrong ("];
        assert!(is_sum.iter().any(|sum| pair[0].starts_with(sum)), "{said}");
    }
    assert!(replayed.status.code().is_some_and(|code| code <= 1), "{said}");
    let clean = fsck("-n");
    assert_eq!(clean.status.code(), Some(0), "{}", String::from_utf8_lossy(&clean.stdout));
}
