//! What clients hear of what happens.

use std::io::{BufRead as _, BufReader};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::events::{LISTENERS_MAX, QUEUE};

/// A client of `/v1/events`.
struct Ear(BufReader<UnixStream>);

impl Ear {
    fn new(vm: &Vm) -> Self {
        let mut stream = UnixStream::connect(vm.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        Ear(BufReader::new(stream))
    }

    /// One that has heard that it is heard.
    fn listening(vm: &Vm) -> Self {
        let mut ear = Self::new(vm);
        let head: Vec<String> = std::iter::from_fn(|| ear.line()).take_while(|line| !line.is_empty()).collect();
        assert!(
            head[0].contains(" 200 ") && head.iter().any(|line| line == "content-type: text/event-stream"),
            "{head:?}"
        );
        assert_eq!(ear.next(), ("state".into(), json!({ "state": "running" })));
        ear
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Name and data of the next event.
    fn next(&mut self) -> (String, Value) {
        let (mut name, mut data) = (None, None);
        while data.is_none() {
            let line = self.line().expect("there is more to hear");
            name = line.strip_prefix("event: ").map(str::to_owned).or(name);
            data = line.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap());
        }
        (name.expect("an event has a name"), data.unwrap())
    }

    /// The same, but for how far an operation is.
    fn next_but_progress(&mut self) -> (String, Value) {
        loop {
            let (name, data) = self.next();
            if data["phase"].is_null() || data["phase"] == "waiting" {
                return (name, data);
            }
        }
    }
}

#[test]
fn everybody_hears_states_and_checkpoints_in_their_order() {
    let vm = Vm::new();
    let shared = vm.control.shared();
    let mut ears = [Ear::listening(&vm), Ear::listening(&vm)];
    shared.set_state(VmState::Paused);
    shared.set_state(VmState::Paused);
    vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    let running = vm.next_checkpoint();
    let id = running.id().to_string();
    running.done(done());
    vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    vm.next_checkpoint().fail("no room");
    shared.set_state(VmState::Off);
    for ear in &mut ears {
        let heard: Vec<_> = (0..7).map(|_| ear.next_but_progress()).collect();
        let names: Vec<_> = heard.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["state", "operation", "operation", "checkpoint", "operation", "operation", "state"]);
        let data: Vec<_> = heard.iter().map(|(_, data)| data).collect();
        assert_eq!((&data[0]["state"], &data[6]["state"]), (&json!("paused"), &json!("off")));
        assert_eq!((&data[1]["id"], &data[1]["state"]), (&json!(id), &json!("running")));
        assert_eq!((&data[2]["id"], &data[2]["state"]), (&json!(id), &json!("done")));
        assert_eq!(data[3], &data[2]["result"]);
        assert_eq!((&data[4]["state"], &data[5]["error"]), (&json!("running"), &json!("no room")));
        assert_eq!(std::iter::from_fn(|| ear.line()).find(|line| line.starts_with("event")), None, "off is the last");
    }
}

#[test]
fn who_listens_hears_how_far_an_operation_is() {
    let vm = Vm::new();
    vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    let running = vm.next_checkpoint();
    let mut ear = Ear::listening(&vm);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let mut staged = ckvmm_snapshot::StagedImage::create(&vm.dir.path().join("c")).unwrap();
    staged.write_memory(&memory, &[], running.progress()).unwrap();
    let (name, data) = ear.next();
    assert_eq!((name.as_str(), &data["phase"], &data["state"]), ("operation", &json!("memory"), &json!("running")));
    assert_eq!((&data["id"], &data["done_bytes"]), (&json!(running.id().to_string()), &json!(1 << 20)));
    running.done(done());
    assert_eq!(ear.next().1["state"], "done");
}

#[test]
fn a_client_that_is_slow_is_told_what_it_lost_and_holds_nobody_up() {
    let vm = Vm::new();
    let mut ear = Ear::listening(&vm);
    // More than the queue and the socket hold together: it does not read meanwhile.
    let told = 200 * QUEUE;
    for number in 0..told {
        vm.control.shared().set_state([VmState::Paused, VmState::Running][number % 2]);
        if number % QUEUE == 0 {
            // Others are answered, and the API's thread fills the socket.
            vm.client().get::<VmInfo>("/v1/vm").unwrap();
        }
    }
    vm.control.shared().set_state(VmState::Off);
    let (mut heard, mut lost) = (0, 0);
    loop {
        let (name, data) = ear.next();
        match name.as_str() {
            "lost" => lost += data["events"].as_u64().unwrap() as usize,
            _ if data["state"] == "off" => break,
            _ => heard += 1,
        }
    }
    assert!(lost > 0, "nothing was lost of {told}");
    assert_eq!(heard + lost, told, "each event is heard or counted");
}

#[test]
fn there_is_a_limit_to_who_listens() {
    let vm = Vm::new();
    let mut ears: Vec<_> = (0..LISTENERS_MAX).map(|_| Ear::listening(&vm)).collect();
    let (status, line) = problem(vm.client().get::<Value>("/v1/events").unwrap_err());
    assert_eq!((status, line.as_str()), (429, "events: 16 clients listen already; end one of them"));
    vm.client().get::<VmInfo>("/v1/vm").unwrap();
    ears.pop();
    // That it has gone is noticed when there is something to tell.
    let again = || {
        vm.control.shared().set_state(VmState::Paused);
        vm.control.shared().set_state(VmState::Running);
        let mut line = String::new();
        Ear::new(&vm).0.read_line(&mut line).unwrap();
        line.contains(" 200 ")
    };
    assert!((0..10_000).any(|_| again()), "its place is not free");
}
