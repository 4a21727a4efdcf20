//! Fields of `vm.json` with values that no VM can have, and words on the command line and around it that mean nothing.
//! (That every field has its check is seen beside the parser.)

use ckvmm_tests::{
    bare_metal::{self, Home},
    lines::{USAGE, is_error, refused},
    process,
};
use serde_json::{Value, json};

fn refused_field(field: &str, value: Value, named: &[&str]) {
    let home = Home::new();
    let mut config = bare_metal::config("job=hello");
    config[field] = value;
    let named: Vec<&str> = ["vm.json: ", field].iter().chain(named).copied().collect();
    refused(&home.boot_to_its_end(&config, &[]), USAGE, &named);
    assert!(!home.join("t.ckvmm").exists(), "nothing is made for a configuration that cannot be used");
}

#[test]
fn memory_of_nothing_a_byte_a_pebibyte() {
    for bytes in [json!(0), json!("0GiB"), json!(1), json!(1u64 << 50), json!("1048576GiB"), json!((32 << 20) + 1)] {
        refused_field("memory", bytes, &["does not fit", "from \"16MiB\" to \"1024GiB\""]);
    }
}

#[test]
fn vcpus_of_0_and_1000() {
    for count in [0, 255, 1000] {
        refused_field("vcpus", json!(count), &[&format!("{count} does not fit"), "from 1 to 254"]);
    }
}

#[test]
fn a_field_that_does_not_exist() {
    refused_field("memroy", json!("1GiB"), &["no such field", "did you mean \"memory\"?"]);
}

#[test]
fn a_version_that_is_not_known() {
    refused_field("version", json!(2), &["give 1"]);
}

#[test]
fn usage_that_is_wrong() {
    let home = Home::new();
    for (arguments, named) in [
        (&["boot"][..], &["--config", "ckvmm boot --help"][..]),
        (&["reboot"], &["reboot", "--help"]),
        (&[], &["no command given", "ckvmm --help"]),
        (&["status"], &["ckvmm status --help"]),
        (&["status", "No/Name"], &["No/Name", "ckvmm ps"]),
        (&["restore", "x", "--verify=never"], &["never", "ckvmm restore --help"]),
    ] {
        refused(&home.run(arguments), USAGE, named);
    }
}

#[test]
fn a_log_level_that_is_none() {
    let home = Home::new();
    let output =
        process::command(home.path()).args(["list", "."]).env("CKVMM_LOG", "verbose").output().expect("ckvmm starts");
    is_error(&String::from_utf8_lossy(&output.stderr), &["CKVMM_LOG", "\"verbose\"", "give error, warn, info, debug,"]);
    assert!(output.status.success(), "the command does its work all the same");
}
