//! `checkpoint`, `list`, `inspect`, `verify`, `restore --paused`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::{self, Home},
    lines::is_error,
};

/// Checkpointed and stopped.
const CHECKPOINTED: i32 = 85;

#[test]
fn checkpoint_prints_where_it_is() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    for number in 1..=2 {
        assert_eq!(Path::new(&home.ok(["checkpoint", "t"])), home.checkpoint(number));
        bare_metal::goes_on(&mut vm);
    }
    // a relative directory is relative to who asks
    assert_eq!(Path::new(&home.ok(["checkpoint", "t", "before"])), home.join("before"));
    let socket = home.socket();
    let by_socket = ["checkpoint", "--api-socket", socket.to_str().unwrap(), "new-store/after"];
    assert_eq!(Path::new(&home.ok(by_socket)), home.join("new-store/after"));
    assert_eq!(fs::read_link(home.join("checkpoints/latest")).unwrap(), Path::new("000002"));
    let status = home.json(["status", "t", "--json"]);
    assert_eq!(status["last_checkpoint"]["dir"], home.join("new-store/after").to_str().unwrap());
    for dir in ["checkpoints/000001", "checkpoints/latest", "before", "new-store/after"] {
        assert!(home.ok(["verify", dir]).contains("whole"), "{dir}");
        assert_eq!(home.json(["verify", dir, "--json"])["whole"], true);
    }
}

#[test]
fn a_stop_that_will_take_too_long_is_said_before_and_when_it_is_asked_for() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write");
    config["checkpoint"]["stop_deadline"] = "1ms".into();
    let mut vm = home.boot(&config);
    for _ in 0..2 {
        home.ok(["checkpoint", "t"]);
    }
    home.ok(["checkpoint", "t", "--stop"]);
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    let lines = vm.messages.all();
    let said = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
    assert_eq!(said("a checkpoint and stop would take about"), 1, "once: {lines:#?}");
    assert_eq!(said("this one will take about"), 1, "{lines:#?}");
    lines.iter().filter(|line| line.contains("stop_deadline")).for_each(|line| is_error(line, &["1ms"]));
}

#[test]
fn a_checkpoint_is_private() {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 1 << 20);
    let _vm = home.boot(&config);
    let dir = home.ok(["checkpoint", "t"]);
    let mode = |name: &str| fs::metadata(Path::new(&dir).join(name)).unwrap().permissions().mode() & 0o777;
    for (name, expected) in [("", 0o700), ("disks", 0o700), ("memory", 0o600), ("disks/root", 0o600), ("state", 0o600)]
    {
        assert_eq!(mode(name), expected, "{name}");
    }
    assert_eq!(mode("manifest.json"), 0o600);
    assert_eq!(fs::metadata(home.socket()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn checkpoint_and_stop() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let before = bare_metal::steps(&mut vm);
    let dir = home.ok(["checkpoint", "t", "--stop"]);
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    let mut again = home.restore(Path::new(&dir), &["--work", "w"]);
    assert!(bare_metal::steps(&mut again) > before, "it goes on where it was");
}

#[test]
fn checkpoint_without_waiting() {
    let home = Home::new();
    let vm = home.boot(&bare_metal::config("job=write"));
    let id = home.ok(["checkpoint", "t", "--no-wait"]);
    let ended = home.api().ended(&format!("/v1/operations/{id}"));
    assert_eq!(ended["result"]["dir"], bare_metal::committed(&vm).to_str().unwrap());
}

#[test]
fn list_shows_what_there_is() {
    let home = Home::new();
    let vm = home.boot(&bare_metal::config("job=write"));
    for _ in 0..3 {
        bare_metal::checkpoint(&vm);
    }
    // one that is damaged is shown with its error, what is none is not shown
    fs::write(home.checkpoint(2).join("manifest.json"), "{").unwrap();
    fs::create_dir(home.join("checkpoints/unrelated")).unwrap();
    let list = home.json(["list", "checkpoints", "--json"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 3, "{list:?}");
    for (entry, number) in list.iter().zip(1..) {
        assert!(entry["path"].as_str().unwrap().ends_with(&format!("{number:06}")), "{entry}");
        assert_eq!(entry["error"].is_string(), number == 2, "{entry}");
        assert_eq!(entry["on_disk_bytes"].is_u64(), number != 2, "{entry}");
    }
    assert_eq!(list[2]["manifest"]["lineage"], list[0]["manifest"]["lineage"]);
    let table = home.ok(["list", "checkpoints"]);
    assert!(table.lines().count() == 4 && table.contains("000003") && table.contains("damaged"), "{table}");
    fs::create_dir(home.join("none")).unwrap();
    assert_eq!(home.json(["list", "none", "--json"]), serde_json::json!([]));
}

#[test]
fn inspect_says_what_it_holds() {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 3 << 20);
    let _vm = home.boot(&config);
    let (first, second) = (home.ok(["checkpoint", "t"]), home.ok(["checkpoint", "t"]));
    let [parent, child] = [&first, &second].map(|dir| home.json(["inspect", dir, "--json"])["manifest"].clone());
    assert_eq!(child["parent"], parent["id"]);
    assert_eq!(child["lineage"], parent["lineage"]);
    assert_eq!(
        (&parent["format_version"], &child["format_version"]),
        (&serde_json::json!(1), &serde_json::json!(2)),
        "it builds on the first"
    );
    assert_eq!(child["config"]["name"], "t");
    assert_eq!(child["config"]["checkpoint"]["dir"], home.join("checkpoints").to_str().unwrap(), "absolute");
    assert_eq!(child["memory_bytes"], 32 << 20);
    assert_eq!(child["files"]["disks/root"]["bytes"], 3 << 20);
    assert!(child["pause_us"].as_u64().unwrap() > 0 && child["pause_us"].as_u64() <= child["duration_us"].as_u64());
    assert!(child["files"]["state"]["digest"].as_str().unwrap().starts_with("blake3:"), "{child}");
    let text = home.ok(["inspect", &second]);
    for word in ["checkpoint", "000002", "lineage", "disk root", "3MiB", "32MiB"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn restore_paused_then_resume() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let before = bare_metal::steps(&mut vm);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut vm = home.restore(&image, &["--work", "w", "--paused"]);
    wait_until("it is there", || (home.api().try_ask("GET", "/v1/vm", "")?.json()["state"] == "paused").then_some(()));
    // it has not run: its RAM is the image's, but for the page with the generation's id
    let again = home.ok(["checkpoint", "t", "--full"]);
    assert_eq!(header(Path::new(&again)), header(&image));
    home.ok(["resume", "t"]);
    assert!(bare_metal::steps(&mut vm) >= before);
    bare_metal::goes_on(&mut vm);
    assert_ne!(header(Path::new(&home.ok(["checkpoint", "t", "--full"]))), header(&image));
}

/// What the guest keeps account in: a page that changes all the time while it runs.
fn header(image: &Path) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let memory = fs::File::open(image.join("memory")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut page, 0x20_0000).unwrap();
    assert!(page.starts_with(b"CKVMMBMG"));
    page
}

#[test]
fn restore_without_a_work_directory_makes_one_and_says_where() {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 1 << 20);
    let vm = home.boot(&config);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut vm = home.restore(&image, &[]);
    let line = vm.messages.expect("the guest's copy is", LIMIT);
    let (_, copy) = line.split_once("copy is ").unwrap();
    assert_eq!(fs::read(home.join(copy)).unwrap(), fs::read(home.join("disk.raw")).unwrap());
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
    assert!(vm.messages.all().iter().filter(|line| line.contains(copy)).count() >= 2, "said again at the end");
}

#[test]
fn restore_verified_in_full() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let before = bare_metal::steps(&mut vm);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut vm = home.restore(&image, &["--work", "w", "--verify=full", "--clock", "now"]);
    assert!(bare_metal::steps(&mut vm) >= before);
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
}
