//! A guest that takes frames late, or not, or cannot.

use super::*;
use crate::cut::Why;

#[test]
fn a_guest_that_takes_frames_is_waited_for_and_one_that_takes_none_is_not() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    sender.write(&frame(1, 0, 100)).unwrap();
    receiver.port.turn();
    assert_eq!(receiver.got(), [0]);
    let fill = |from: u32| {
        let mut sent = from;
        while sender.may_write() {
            sender.write(&frame(1, sent, 60_000)).unwrap();
            sent += 1;
            receiver.port.turn();
            sender.turn();
        }
        sent
    };
    let sent = fill(1);
    assert!((18..60).contains(&sent), "{sent}: it reads ahead, and then not");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sender.may_write() {
        assert!(Instant::now() < deadline, "a dead guest stalls the others");
        receiver.port.0.poll.wait(Duration::from_secs(5));
        receiver.port.turn();
        sender.turn();
    }
    for more in 0..200 {
        sender.write(&frame(1, sent + more, 60_000)).unwrap();
        receiver.port.turn();
        sender.turn();
    }
    assert!(receiver.port.counters().dropped > 0);
    let got = receiver.got();
    assert!(got.is_sorted() && got[0] == 1, "what it gets in the end is in order");
}

#[test]
fn who_stands_still_in_many_cuts_loses_nothing() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    // It takes frames, and is asked whether it still does when it can take none.
    let mut sent = 0;
    let mut fill = || {
        while sender.may_write() {
            sender.write(&frame(1, sent, 60_000)).unwrap();
            sent += 1;
        }
        sent
    };
    fill();
    receiver.port.turn();
    let mut got = receiver.got();
    let mut log_was_full = false;
    for cut in (1..).map(Colour).take_while(|cut| cut.0 < 40) {
        fill();
        for port in [&receiver.port, sender] {
            port.tell(Input::CutRequested(cut)).unwrap();
            port.tell(Input::CutTaken(cut)).unwrap();
        }
        receiver.port.stand();
        let attended = receiver.port.clone();
        let attends = std::thread::spawn(move || attended.complete_cut());
        while !attends.is_finished() {
            sender.turn();
        }
        attends.join().unwrap();
        let failed = |event| matches!(event, Event::Cut(Output::Failed(_, Why::LogFull { .. })));
        log_was_full |= receiver.events.try_iter().any(failed);
    }
    assert!(log_was_full, "what it keeps has bounds");
    let sent = fill();
    let deadline = Instant::now() + Duration::from_secs(30);
    while got.len() < sent as usize {
        assert!(Instant::now() < deadline, "{} of {sent}: {:?}", got.len(), receiver.port.counters());
        receiver.port.turn();
        got.extend(receiver.got());
        sender.turn();
    }
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
    assert_eq!(receiver.port.counters().dropped, 0);
}
