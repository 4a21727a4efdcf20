//! Checkpoints as operations of the API: 202 and a Location, progress, the end, and an early end.

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
};
use serde_json::{Value, json};

/// RAM that takes a while to write.
fn slow() -> Value {
    let mut config = bare_metal::config("job=write mib=320 hot=1");
    config["memory"] = "352MiB".into();
    config
}

#[test]
fn a_checkpoint_is_an_operation() {
    let home = Home::new();
    let mut vm = home.boot(&slow());
    let api = home.api();
    let dir = home.join("there");
    let answer = api.ask("POST", "/v1/checkpoints", &json!({ "dir": dir, "mode": "stop" }).to_string());
    assert_eq!(answer.status, 202, "{answer:?}");
    let (location, begun) = (answer.header("location").unwrap(), answer.json());
    assert_eq!(location, format!("/v1/operations/{}", begun["id"].as_str().unwrap()));
    assert_eq!((&begun["kind"], &begun["state"]), (&json!("checkpoint"), &json!("running")));
    assert_eq!(api.vm()["checkpoint_running"], true);
    let ended = api.ended(location);
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(ended["result"]["dir"], dir.to_str().unwrap());
    assert_eq!(ended["id"], begun["id"]);
    assert!(ended["finished"].as_str() > ended["started"].as_str(), "{ended}");
    assert_eq!(api.vm()["checkpoint_running"], false);
    assert_eq!(api.vm()["last_checkpoint"], ended["result"]);
    let line = api.ask("DELETE", location, "").problem(409);
    assert!(line.contains("done already") && line.contains("there"), "{line}");
    home.ok(["verify", "there"]);
    bare_metal::goes_on(&mut vm);
}

#[test]
fn a_cancelled_checkpoint_leaves_nothing() {
    let home = Home::new();
    let mut vm = home.boot(&slow());
    let api = home.api();
    let operation = api.begin_checkpoint("");
    let answer = api.ask("DELETE", &operation, "");
    assert_eq!((answer.status, &answer.json()["state"]), (202, &json!("running")), "it ends when it notices");
    let ended = api.ended(&operation);
    assert_eq!((&ended["state"], &ended["error"]), (&json!("failed"), &json!("checkpoint: cancelled")), "{ended}");
    assert_eq!(home.names("checkpoints"), [""; 0], "nothing is left");
    let said = vm.messages.expect("cancelled", LIMIT);
    assert_eq!(said, "ckvmm: checkpoint: cancelled; the guest goes on");
    let line = api.ask("DELETE", &operation, "").problem(409);
    assert!(line.contains("ended already"), "{line}");
    bare_metal::goes_on(&mut vm);
    assert_eq!(api.ended(&api.begin_checkpoint(""))["state"], "done");
    home.ok(["verify", "checkpoints/000001"]);
}

#[test]
fn a_failed_checkpoint_says_why() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let ended = home.api().ended(&home.api().begin_checkpoint(&json!({ "dir": home.path() }).to_string()));
    assert_eq!(ended["state"], "failed");
    assert!(ended["error"].as_str().unwrap().contains("exists already; "), "{ended}");
    assert!(ended["result"].is_null(), "{ended}");
    bare_metal::goes_on(&mut vm);
}

#[test]
fn who_asked_for_the_end_is_told_how_it_came() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let operation = home.api().begin_checkpoint(r#"{"stop": true}"#);
    assert_eq!(home.api().ended(&operation)["state"], "done");
    assert_eq!(vm.wait(LIMIT), 85);
}
