//! Ten restores of one image side by side.

use std::{collections::BTreeSet, fs};

use ckvmm_tests::{LIMIT, config, console::value, process};

use crate::vm::{Count, Home, checkpoint};

const CLONES: usize = 10;

#[test]
fn ten_clones_have_their_own_disks_and_consoles_and_leave_the_image_as_it_was() {
    let home = Home::new();
    let mut config = config::with_disk(config::linux("counter,fsync"));
    config["memory"] = "96MiB".into();
    let vm = home.boot(&config);
    let first = Count::next(&vm);
    vm.console.expect("fsync seq=2", LIMIT);
    let image = checkpoint(&vm);
    vm.kill9();
    let verify = || process::run(home.path(), ["verify", image.to_str().unwrap()]).status.code();
    let manifest = fs::read(image.join("manifest.json")).unwrap();
    assert_eq!(verify(), Some(0));

    let clones: Vec<_> = (0..CLONES)
        .map(|clone| home.restore(&image, &format!("clone{clone}"), &["--set", &format!("name=clone{clone}")]))
        .collect();
    for (number, clone) in clones.iter().enumerate() {
        let next = Count::next(clone);
        assert!(next.same_process(&first), "clone {number}");
        let wrote = clone.console.expect("fsync seq=", LIMIT);
        assert!(value(&wrote, "seq").is_some());
        clone
            .console
            .next("ten counts", LIMIT, |line| Count::parse(line).filter(|count| count.count > next.count + 10));
    }
    for clone in clones {
        clone.kill9();
    }
    let disks: BTreeSet<_> =
        (0..CLONES).map(|clone| home.path().join(format!("clone{clone}/disks/root.raw"))).collect();
    assert!(disks.iter().all(|disk| disk.exists()));
    assert_eq!(fs::read(image.join("manifest.json")).unwrap(), manifest);
    assert_eq!(verify(), Some(0), "the image is untouched");
}
