//! Checkpoints as operations.

use super::*;

#[test]
fn a_checkpoint_is_an_operation() {
    let vm = Vm::new();
    let client = vm.client();
    let (status, head, body) = ask(&vm.path(), "POST", "/v1/checkpoints", "");
    assert_eq!(status, 202);
    let location = format!("/v1/operations/{}", body["id"].as_str().unwrap());
    assert!(head.contains(&format!("location: {location}\r\n")), "{head}");
    assert_eq!(body["state"], "running");
    let running = vm.next_checkpoint();
    assert_eq!(running.id().to_string(), body["id"].as_str().unwrap());
    assert!(client.get::<VmInfo>("/v1/vm").unwrap().checkpoint_running);
    let operation: Operation = client.get(&location).unwrap();
    assert_eq!((operation.state, operation.phase.as_deref()), (OperationState::Running, Some("waiting")));
    running.done(done());
    let operation: Operation = client.get(&location).unwrap();
    assert_eq!(operation.state, OperationState::Done);
    assert_eq!(operation.result.unwrap().dir, PathBuf::from("/store/000001"));
    assert!(operation.finished.unwrap() >= operation.started);
    let info: VmInfo = client.get("/v1/vm").unwrap();
    assert_eq!(info.last_checkpoint.unwrap().dir, PathBuf::from("/store/000001"));
    assert!(!info.checkpoint_running);
}

#[test]
fn a_second_checkpoint_is_refused_while_one_runs() {
    let vm = Vm::new();
    let client = vm.client();
    let first = client.post_for_location("/v1/checkpoints", &json!({})).unwrap();
    let id = first.rsplit('/').next().unwrap();
    let line = format!("checkpoint: one is being made already (operation {id}); wait until it is done");
    let refused = problem(client.post_for_location("/v1/checkpoints", &json!({})).unwrap_err());
    assert_eq!(refused, (409, line.clone()));
    // the same for a signal
    let signal = vm.control.checkpoint(Asker::Signal, None, Default::default(), false, false);
    assert_eq!(signal.unwrap_err().to_string(), line);
    vm.next_checkpoint().fail("disk full");
    let operation: Operation = client.get(&first).unwrap();
    assert_eq!((operation.state, operation.error.as_deref()), (OperationState::Failed, Some("disk full")));
    client.post_for_location("/v1/checkpoints", &json!({ "dir": "/x/y", "stop": true, "mode": "stop" })).unwrap();
    let request = vm.requests.recv().unwrap();
    assert!(matches!(&request.command, Command::Checkpoint { dir: Some(dir), stop: true, .. } if dir.ends_with("x/y")));
}

#[test]
fn a_checkpoint_that_is_dropped_has_failed() {
    let vm = Vm::new();
    let location = vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    drop(vm.requests.recv().unwrap());
    let operation: Operation = vm.client().get(&location).unwrap();
    assert_eq!(operation.state, OperationState::Failed);
    assert!(operation.error.unwrap().starts_with("checkpoint: the VM ended before it was made; "));
}

#[test]
fn a_checkpoint_is_refused_before_and_after_the_guests_life() {
    let vm = Vm::new();
    for (state, words) in
        [(VmState::Starting, "still starting"), (VmState::Stopping, "ending"), (VmState::Off, "ending")]
    {
        vm.control.shared().set_state(state);
        let (status, line) = problem(vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap_err());
        assert_eq!(status, 409);
        assert!(line.starts_with("checkpoint: the VM is ") && line.contains(words), "{line}");
    }
}

#[test]
fn a_running_operation_can_be_cancelled_once() {
    let vm = Vm::new();
    let client = vm.client();
    let location = client.post_for_location("/v1/checkpoints", &json!({})).unwrap();
    let running = vm.next_checkpoint();
    assert!(!running.progress().is_cancelled());
    client.delete(&location).unwrap();
    assert!(running.progress().is_cancelled());
    let id = running.id();
    running.fail("checkpoint: cancelled");
    let line = format!("operation {id}: it has ended already (checkpoint: cancelled)");
    assert_eq!(problem(client.delete(&location).unwrap_err()), (409, line));
    // a forced end does not wait for the checkpoint that is being made
    client.post_for_location("/v1/checkpoints", &json!({})).unwrap();
    let running = vm.next_checkpoint();
    let (_server, main_loop) = vm.answer(vec![Ok(())]);
    let _: VmInfo = client.put("/v1/vm/power", &json!({ "state": "off", "force": true })).unwrap();
    assert!(running.progress().is_cancelled());
    main_loop.join().unwrap();
}
