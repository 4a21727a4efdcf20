//! The API over a real socket, against a main loop that does what a test tells it.

mod checkpoints;
mod events;
mod sockets;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::socket::{BoundSocket, SocketError};
use super::types::VmInfo;
use super::{BODY_MAX, CONNECTIONS_MAX, Server};
use crate::client::{Client, ClientError};
use crate::config::VmConfig;
use crate::control::{Command, CommandError, Control, Request, Shared, VmState};
use crate::operations::{Asker, CheckpointDone, Operation, OperationState, Running};

struct Vm {
    dir: tempfile::TempDir,
    server: Server,
    control: Control,
    requests: Receiver<Request>,
}

impl Vm {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "version": 1, "name": "stub", "vcpus": 3, "kernel": { "image": "k" }, "serial": "none" });
        let shared = Shared::new(&VmConfig::from_value(config, dir.path()).unwrap());
        shared.set_state(VmState::Running);
        let (control, requests) = Control::channel(shared);
        let socket = BoundSocket::bind(&dir.path().join("api.sock")).unwrap();
        let server = Server::start(socket, control.clone()).unwrap();
        Self { dir, server, control, requests }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.path()).unwrap()
    }

    /// A main loop that answers `answers` in turn and returns what it was asked.
    fn answer(self, answers: Vec<Result<(), CommandError>>) -> (Server, JoinHandle<Vec<String>>) {
        let Self { server, requests, dir, .. } = self;
        let thread = std::thread::spawn(move || {
            let _dir = dir;
            let answered = answers.into_iter().map(|answer| {
                let request = requests.recv().unwrap();
                let asked = format!("{:?}", request.command);
                request.reply.send(answer);
                asked
            });
            answered.collect()
        });
        (server, thread)
    }

    /// What the main loop would get next, if it is a checkpoint.
    fn next_checkpoint(&self) -> Running {
        let request = self.requests.recv_timeout(Duration::from_secs(5)).unwrap();
        match request.command {
            Command::Checkpoint { operation, .. } => operation,
            other => panic!("{other:?} is no checkpoint"),
        }
    }
}

fn done() -> CheckpointDone {
    let id = uuid::Uuid::new_v4();
    let created = Timestamp::UNIX_EPOCH;
    let (written_bytes, pause_us, pause_cpu_us, duration_us) = (4096, 10, 5, 20);
    CheckpointDone { dir: "/store/000001".into(), id, created, written_bytes, pause_us, pause_cpu_us, duration_us }
}

/// Status, headers and body of a request written by hand.
fn raw(path: &std::path::Path, request: &str) -> (u16, String, Value) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or_else(|_| body.into()))
}

fn ask(path: &std::path::Path, method: &str, target: &str, body: &str) -> (u16, String, Value) {
    let length = body.len();
    raw(
        path,
        &format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[track_caller]
fn problem(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Problem { status, detail } => (status, detail),
        other => panic!("{other} is no problem of the API"),
    }
}

#[test]
fn reading_does_not_need_the_main_loop() {
    let vm = Vm::new(); // nobody receives
    vm.control.shared().set_disks([("root".to_owned(), PathBuf::from("/w/root"))].into());
    let info: VmInfo = vm.client().get("/v1/vm").unwrap();
    assert_eq!((info.name.as_str(), info.vcpus, info.memory_bytes), ("stub", 3, 512 << 20));
    assert_eq!((info.state, info.pid), (VmState::Running, std::process::id()));
    assert_eq!(info.disks["root"], PathBuf::from("/w/root"));
    assert_eq!(info.config["serial"], "none");
    for state in [VmState::Starting, VmState::Paused, VmState::Stopping, VmState::Off] {
        vm.control.shared().set_state(state);
        assert_eq!(vm.client().get::<VmInfo>("/v1/vm").unwrap().state, state);
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}

#[test]
fn power_is_asked_of_the_main_loop() {
    let vm = Vm::new();
    let client = vm.client();
    let refusal = CommandError::Conflict("pause: not now; wait".into());
    let (_server, main_loop) = vm.answer(vec![Ok(()), Ok(()), Ok(()), Ok(()), Err(refusal)]);
    let put = |body: Value| client.put::<VmInfo>("/v1/vm/power", &body);
    put(json!({ "state": "paused" })).unwrap();
    put(json!({ "state": "running" })).unwrap();
    put(json!({ "state": "off" })).unwrap();
    put(json!({ "state": "off", "force": true })).unwrap();
    let refused = problem(put(json!({ "state": "paused" })).unwrap_err());
    assert_eq!(refused, (409, "pause: not now; wait".into()));
    let asked = main_loop.join().unwrap();
    assert_eq!(asked, ["Pause", "Resume", "PowerOff { force: false }", "PowerOff { force: true }", "Pause"]);
}

#[test]
fn a_main_loop_that_has_gone_is_said_so() {
    let vm = Vm::new();
    let client = vm.client();
    let Vm { server: _server, requests, dir: _dir, .. } = vm;
    // in flight
    let main_loop = std::thread::spawn(move || drop(requests.recv().unwrap()));
    let gone = (503, "the VM is ending; nothing can be asked of it any more".to_owned());
    assert_eq!(problem(client.put::<VmInfo>("/v1/vm/power", &json!({ "state": "paused" })).unwrap_err()), gone);
    main_loop.join().unwrap();
    // afterwards
    assert_eq!(problem(client.put::<VmInfo>("/v1/vm/power", &json!({ "state": "paused" })).unwrap_err()), gone);
    assert_eq!(problem(client.post_for_location("/v1/checkpoints", &json!({})).unwrap_err()), gone);
    let vm: VmInfo = client.get("/v1/vm").unwrap();
    assert!(!vm.checkpoint_running, "a checkpoint that nobody makes has failed");
}

#[test]
fn what_is_not_there_is_a_problem() {
    let vm = Vm::new();
    let (status, head, body) = ask(&vm.path(), "GET", "/v2/vm", "");
    assert_eq!(status, 404);
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    assert_eq!(
        body,
        json!({
            "type": "about:blank", "title": "Not Found", "status": 404,
            "detail": "/v2/vm: no such path; GET /openapi.json lists them",
        })
    );
    let (status, _, body) = ask(&vm.path(), "DELETE", "/v1/vm", "");
    assert_eq!(
        (status, body["detail"].as_str()),
        (405, Some("DELETE /v1/vm: not for this path; GET /openapi.json lists what is"))
    );
    for id in ["7", "00000000-0000-4000-8000-000000000000", "%00%ff", &"x".repeat(1000)] {
        let (status, head, body) = ask(&vm.path(), "GET", &format!("/v1/operations/{id}"), "");
        assert!(head.contains("problem+json"), "{head}");
        let line = "operation: no such one is known; the Location of a checkpoint's answer names it";
        assert_eq!((status, body["detail"].as_str()), (404, Some(line)));
    }
}

#[test]
fn bad_bodies_are_problems() {
    let vm = Vm::new();
    let put = |body: &str| {
        let (status, head, answer) = ask(&vm.path(), "PUT", "/v1/vm/power", body);
        assert!(head.contains("problem+json"), "{head}");
        let line = answer["detail"].as_str().unwrap().to_owned();
        assert!(!line.contains('\n') && line.contains("; "), "{line}");
        (status, line)
    };
    assert!(put("").1.starts_with("body: EOF"));
    assert!(put("{").1.starts_with("body: EOF"));
    assert!(put("[]").1.starts_with("body: "));
    assert!(put("{}").1.starts_with("body: missing field `state`"));
    assert!(
        put("{\"state\":\"on\"}")
            .1
            .starts_with("state: unknown variant `on`, expected one of `running`, `paused`, `off`")
    );
    assert!(put("{\"state\":\"off\"} x").1.starts_with("body: trailing characters"));
    assert!(put("{\"state\":\"off\",\"now\":true}").1.starts_with("now: unknown field `now`"));
    assert!(put("{\"state\":\"paused\",\"force\":true}").1.starts_with("force: only with "));
    assert!(put("{\"state\":\"off\",\"force\":1}").1.starts_with("force: invalid type"));
    assert_eq!(put("{").0, 400);
    let long = format!("{{\"state\":\"{}\"}}", "x".repeat(BODY_MAX));
    assert_eq!(put(&long), (413, format!("body: longer than {BODY_MAX} bytes; send less")));
    let (status, _, body) = ask(&vm.path(), "POST", "/v1/checkpoints", "{\"dir\":\"x\"}");
    assert_eq!(
        (status, body["detail"].as_str().unwrap()),
        (400, "dir: \"x\" is relative, and to what is not known; give an absolute path")
    );
    assert!(vm.requests.try_recv().is_err(), "nothing of this may reach the main loop");
}

#[test]
fn metrics_and_openapi() {
    let vm = Vm::new();
    let card = std::sync::Arc::new(ckvmm_devices::NetCounters::default());
    card.received_frames.store(7, std::sync::atomic::Ordering::Relaxed);
    vm.control.shared().set_cards([("eth0".to_owned(), card)].into());
    vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    vm.next_checkpoint().done(done());
    let (status, head, page) = ask(&vm.path(), "GET", "/metrics", "");
    let page = page.as_str().unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"));
    for line in [
        "ckvmm_vcpus 3",
        "ckvmm_memory_bytes 536870912",
        "ckvmm_checkpoints_total 1",
        "ckvmm_checkpoint_last_pause_us 10",
        "ckvmm_nic_received_frames_total{nic=\"eth0\"} 7",
        "ckvmm_nic_transmit_drops_total{nic=\"eth0\"} 0",
        "# TYPE ckvmm_nic_received_frames_total counter",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    assert!(page.lines().any(|l| l.starts_with("ckvmm_vm_info{name=\"stub\"") && l.ends_with(",state=\"running\"} 1")));
    assert_eq!(vm.client().get::<VmInfo>("/v1/vm").unwrap().nics["eth0"].received_frames, 7);
    let (status, _, document) = ask(&vm.path(), "GET", "/openapi.json", "");
    assert_eq!(status, 200);
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(
        paths,
        ["/metrics", "/openapi.json", "/v1/checkpoints", "/v1/events", "/v1/operations/{id}", "/v1/vm", "/v1/vm/power"]
    );
    for schema in ["VmInfo", "PowerRequest", "CheckpointRequest", "Operation", "Problem"] {
        assert!(document["components"]["schemas"][schema].is_object(), "{schema}");
    }
}
