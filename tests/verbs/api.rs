//! The API over its socket: the VM, its power, metrics, its description, and what it says to nonsense.

use std::{io::Write, os::unix::net::UnixStream};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::Lines,
};
use serde_json::json;

#[test]
fn the_vm() {
    let home = Home::new();
    let vm = home.boot(&bare_metal::config("job=write"));
    let answer = home.api().get("/v1/vm");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let info = answer.json();
    assert_eq!((&info["name"], &info["state"], &info["pid"]), (&json!("t"), &json!("running"), &json!(vm.pid())));
    assert!(info["started"].as_str().unwrap().ends_with('Z'), "{info}");
    assert!(home.api().vm()["uptime_us"].as_u64() > info["uptime_us"].as_u64(), "it counts");
}

#[test]
fn power() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let api = home.api();
    for (wanted, state) in [("paused", "paused"), ("running", "running")] {
        let answer = api.ask("PUT", "/v1/vm/power", &json!({ "state": wanted }).to_string());
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!(state)));
    }
    bare_metal::goes_on(&mut vm);
    let answer = api.ask("PUT", "/v1/vm/power", r#"{"state": "off"}"#);
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("stopping")));
    let line = api.ask("PUT", "/v1/vm/power", r#"{"state": "paused"}"#).problem(409);
    assert!(line.contains("the VM is ending"), "{line}");
    let answer = api.ask("PUT", "/v1/vm/power", r#"{"state": "off", "force": true}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(vm.wait(LIMIT), 1);
}

#[test]
fn nonsense_is_answered_with_a_problem_and_harms_nobody() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let api = home.api();
    for (method, path, body, status, named) in [
        ("GET", "/v1/nothing", "", 404, "/v1/nothing: no such path"),
        ("DELETE", "/v1/vm", "", 405, "DELETE /v1/vm: not for this path"),
        ("GET", "/v1/operations/none", "", 404, "operation: no such one"),
        ("DELETE", "/v1/operations/00000000-0000-4000-8000-000000000000", "", 404, "operation: no such one"),
        ("PUT", "/v1/vm/power", "{", 400, "body"),
        ("PUT", "/v1/vm/power", r#"{"state": "on"}"#, 400, "state: "),
        ("PUT", "/v1/vm/power", r#"{"state": "paused", "force": true}"#, 400, "force: only with"),
        ("POST", "/v1/checkpoints", r#"{"dir": "relative"}"#, 400, "give an absolute path"),
        ("POST", "/v1/checkpoints", r#"{"directory": "/x"}"#, 400, "directory"),
        ("POST", "/v1/checkpoints", &"x".repeat(4 << 20), 413, "body: longer than"),
    ] {
        // a body that is too long may cost the connection before it is sent
        let Some(answer) = api.try_ask(method, path, body) else { continue };
        let line = answer.problem(status);
        assert!(line.contains(named) && !line.contains('\n'), "{line}");
    }
    assert!(!home.join("checkpoints").exists());
    bare_metal::goes_on(&mut vm);
}

#[test]
fn metrics() {
    let home = Home::new();
    let _vm = home.boot(&bare_metal::config("job=write"));
    let before = home.api().get("/metrics");
    assert!(before.header("content-type").unwrap().starts_with("text/plain"), "{before:?}");
    assert_eq!(number(&before.body, "ckvmm_checkpoints_total"), Some(0));
    assert_eq!(number(&before.body, "ckvmm_memory_bytes"), Some(32 << 20));
    assert_eq!(number(&before.body, "ckvmm_checkpoint_last_pause_us"), None);
    home.ok(["checkpoint", "t"]);
    assert!(!home.run(["checkpoint", "t", "/proc/nowhere"]).status.success());
    let after = home.api().get("/metrics").body;
    assert_eq!(number(&after, "ckvmm_checkpoints_total"), Some(1));
    assert_eq!(number(&after, "ckvmm_checkpoints_failed_total"), Some(1));
    assert!(number(&after, "ckvmm_checkpoint_last_pause_us").unwrap() > 0, "{after}");
    assert!(number(&after, "ckvmm_checkpoint_last_written_bytes").unwrap() >= 16 << 20, "{after}");
}

#[test]
fn events() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let events = Lines::read("events", stream);
    events.expect("content-type: text/event-stream", LIMIT);
    let follows = |event: &str, data: &str| {
        events.expect(&format!("event: {event}"), LIMIT);
        let line = events.expect("data: ", LIMIT);
        assert!(line.contains(data), "{event}: {line}");
    };
    follows("state", r#""running""#);
    home.ok(["pause", "t"]);
    follows("state", r#""paused""#);
    home.ok(["resume", "t"]);
    follows("state", r#""running""#);
    let dir = home.ok(["checkpoint", "t"]);
    follows("operation", r#""state":"running""#);
    // What is between is how far it is.
    events.expect(r#""state":"done""#, LIMIT);
    follows("checkpoint", &dir);
    home.ok(["kill", "t"]);
    follows("state", r#""stopping""#);
    follows("state", r#""off""#);
    events.wait_for_end(LIMIT);
    assert_eq!(vm.wait(LIMIT), 1);
}

fn number(page: &str, name: &str) -> Option<u64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn the_description_names_every_route() {
    let home = Home::new();
    let _vm = home.boot(&bare_metal::config("job=echo"));
    let description = home.api().get("/openapi.json").json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3."), "{description}");
    for (path, method) in [
        ("/v1/vm", "get"),
        ("/v1/vm/power", "put"),
        ("/v1/checkpoints", "post"),
        ("/v1/operations/{id}", "get"),
        ("/v1/operations/{id}", "delete"),
        ("/v1/events", "get"),
        ("/metrics", "get"),
        ("/openapi.json", "get"),
    ] {
        assert!(description["paths"][path][method].is_object(), "{method} {path}");
    }
}
