//! The socket: whose it is, how it goes, who may connect.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use super::*;

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let vm = Vm::new();
    let path = vm.path();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let Vm { server, dir, .. } = vm;
    server.shutdown();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "neither socket nor lock is left");
    let line = Client::new(path.clone()).unwrap().get::<VmInfo>("/v1/vm").unwrap_err().to_string();
    assert_eq!(
        line,
        format!("{}: no VM runs there (there is no such socket); `ckvmm ps` lists those that run", path.display())
    );
}

#[test]
fn a_socket_in_use_is_refused_and_a_dead_one_replaced() {
    let vm = Vm::new();
    let path = vm.path();
    let line = BoundSocket::bind(&path).unwrap_err().to_string();
    assert!(line.starts_with(&format!("{}: in use by a running VM; stop that one", path.display())), "{line}");
    vm.client().get::<VmInfo>("/v1/vm").expect("the first still answers");
    // somebody else's socket, without our lock
    let other = vm.dir.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    assert!(matches!(BoundSocket::bind(&other), Err(SocketError::InUse(_))));
    drop(listener);
    let client = Client::new(other.clone()).unwrap();
    let line = client.get::<VmInfo>("/v1/vm").unwrap_err().to_string();
    assert!(line.contains("a VM that has died left the socket"), "{line}");
    drop(BoundSocket::bind(&other).expect("a dead one's is replaced"));
    assert!(!other.exists());
}

#[test]
fn of_many_that_start_at_once_one_gets_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    for round in 0..20 {
        if round % 2 == 1 {
            // what a killed VM leaves
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            fs::write(dir.path().join("api.sock.lock"), "").unwrap();
        }
        let (path, gate) = (&path, &std::sync::Barrier::new(8));
        let bound: Vec<Result<BoundSocket, SocketError>> = std::thread::scope(|scope| {
            let start = || {
                scope.spawn(move || {
                    gate.wait();
                    BoundSocket::bind(path)
                })
            };
            let threads: Vec<_> = (0..8).map(|_| start()).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|b| b.is_ok()).count(), 1);
        assert!(bound.iter().flat_map(|b| b.as_ref().err()).all(|e| matches!(e, SocketError::InUse(_))), "{bound:?}");
        UnixStream::connect(path).expect("the one that got it is reached by its name");
    }
}

#[test]
fn places_that_cannot_be_a_socket_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let line = |path: &std::path::Path| {
        let line = BoundSocket::bind(path).unwrap_err().to_string();
        assert!(!line.contains('\n') && line.contains("; "), "{line}");
        line.replace(dir.path().to_str().unwrap(), "D")
    };
    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
    assert_eq!(
        line(&long),
        format!(
            "{}: 108 bytes long, and a socket's path has room for 107; give a shorter --api-socket",
            long.display()
        )
    );
    fs::write(dir.path().join("file"), "precious").unwrap();
    assert_eq!(line(&dir.path().join("file")), "D/file: exists and is no socket; give another --api-socket");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"precious");
    assert!(
        line(&dir.path().join("no/such/x.sock"))
            .starts_with("D/no/such/x.sock.lock: the socket's lock cannot be made: No such file")
    );
    assert!(line(dir.path()).starts_with("D: exists and is no socket"));
    let just_fits = dir.path().join("y".repeat(107 - 1 - dir.path().as_os_str().len()));
    drop(BoundSocket::bind(&just_fits).unwrap());
}

#[test]
fn the_end_waits_for_who_wants_to_know() {
    let vm = Vm::new();
    let client = vm.client();
    let location = client.post_for_location("/v1/checkpoints", &json!({ "stop": true })).unwrap();
    vm.next_checkpoint().done(done());
    vm.control.shared().set_state(VmState::Off);
    let Vm { server, dir: _dir, .. } = vm;
    let end = std::thread::spawn(move || server.shutdown());
    std::thread::sleep(Duration::from_millis(200));
    let operation: Operation = client.get(&location).expect("the server is still there");
    assert_eq!(operation.state, OperationState::Done);
    end.join().unwrap();
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let vm = Vm::new();
    vm.client().post_for_location("/v1/checkpoints", &json!({})).unwrap();
    vm.next_checkpoint().done(done());
    // and with clients that say nothing
    let _idle = UnixStream::connect(vm.path()).unwrap();
    let mut half = UnixStream::connect(vm.path()).unwrap();
    half.write_all(b"PUT /v1/vm/power HTTP/1.1\r\nContent-Le").unwrap();
    let begin = Instant::now();
    vm.server.shutdown();
    assert!(begin.elapsed() < Duration::from_secs(4));
}

#[test]
fn clients_are_limited() {
    let vm = Vm::new();
    let idle: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(vm.path()).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    let mut one_more = UnixStream::connect(vm.path()).unwrap();
    one_more.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    one_more.write_all(b"GET /v1/vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    assert!(one_more.read_exact(&mut answer).is_err(), "it waits");
    drop(idle);
    one_more.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    one_more.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn who_does_not_speak_http_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = Client::new(path.clone()).unwrap();
    let answer = |bytes: &'static [u8]| {
        let listener = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(bytes).unwrap();
        });
        let error = client.get::<VmInfo>("/v1/vm").unwrap_err().to_string();
        server.join().unwrap();
        assert!(!error.contains('\n'));
        error.replace(path.to_str().unwrap(), "S")
    };
    assert_eq!(answer(b"SSH-2.0-x\r\n"), "S: what answers there does not speak HTTP; is it a ckvmm socket?");
    assert_eq!(answer(b""), "S: the VM ended before it answered");
    assert!(
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").starts_with("S: an answer that is not understood")
    );
    assert!(answer(b"HTTP/1.1 418 X\r\nContent-Length: 0\r\n\r\n").starts_with("S: 418"));
    assert_eq!(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), "S: the VM ended before it answered");
}
